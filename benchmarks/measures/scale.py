"""What many connections, sessions, agents and past events cost.

Each measurement starts servers of its own, without limits on their number. Costs that are compared
are measured in turn on servers that run side by side, so that both see the same machine.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from statistics import median

from benchmarks.client import BenchmarkError, Link, round_trip, run_fanouts
from benchmarks.measures.common import CHUNK, SETTLE, Figures, Measure, Sizes
from benchmarks.peers import Peer, started
from benchmarks.peers_real import ROOMY, AgentEach, NoSpare
from benchmarks.processes import cpu_seconds, descendants, rss_mib

KIB = 1024
FIRST_CONNECTIONS = 20
"""Opened before memory is counted: what the first ones load is not theirs."""
SESSIONS = 100
STREAMING = (1, 10, 100)
AGENTS = 20
STARTS = 10
SPARE = 0.5
"""Seconds in which the agent for the next session gets ready."""
GONE = 10.0
COMPARED = 7
"""How often costs are compared; the medians count."""
WATCHED = 5.0
"""Seconds of idleness in which CPU time is counted; pings come later."""
AT_ONCE = 100_000
"""Chunks of one turn when many are to pass."""


def connections(peer: Peer, sizes: Sizes) -> Figures:
    """Memory of initialised WebSocket connections and of idle sessions; CPU time of all of them."""
    with ExitStack() as stack:
        server = stack.enter_context(started(ROOMY[peer.name]))

        def more(count: int) -> list[Link]:
            links: list[Link] = []
            with suppress(BenchmarkError):  # some servers have a limit of their own
                while len(links) < count:
                    links.append(stack.enter_context(closing(server.connect())))
            return links

        link = more(FIRST_CONNECTIONS)[0]
        server.open_session(link)
        time.sleep(SETTLE)
        before = rss_mib(server.pid)
        count = len(more(sizes.connections))
        time.sleep(1)
        connected = rss_mib(server.pid)
        for _ in range(SESSIONS):
            server.open_session(link)
        time.sleep(SETTLE)
        opened = rss_mib(server.pid)
        began, used = time.perf_counter(), cpu_seconds(server.pid)
        time.sleep(WATCHED)
        used = (cpu_seconds(server.pid) - used) / (time.perf_counter() - began)
    return {
        "connections": count,
        "KiB/connection": (connected - before) * KIB / count,
        "KiB/session": (opened - connected) * KIB / SESSIONS,
        "cpu ms/s": used * 1e3,
    }


def _start_session(peer: Peer, link: Link) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    peer.open_session(link)
    return (time.perf_counter() - began) * 1e3


def _end_agents(peer: Peer) -> None:
    """Kill what the server started. Raises `BenchmarkError` when it does not end."""
    limit = time.monotonic() + GONE
    for pid in (pids := descendants(peer.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while set(pids) & set(descendants(peer.pid)):
        if time.monotonic() > limit:
            raise BenchmarkError("a killed agent stays")
        time.sleep(0.01)


def sessions(peer: Peer, sizes: Sizes) -> Figures:
    """``session/new`` when an agent must be started for it (cold), and when one runs (warm)."""
    cold: list[float] = []
    warm: list[float] = []
    if peer.name == "stdio":
        for _ in range(STARTS):
            began = time.perf_counter()
            with closing(peer.connect()) as link:
                peer.open_session(link)
                cold.append((time.perf_counter() - began) * 1e3)
                warm.append(_start_session(peer, link))
    elif peer.name == "gateway":
        with started(NoSpare) as server, closing(server.connect()) as link:
            cold += [_start_session(server, link) for _ in range(STARTS)]
        with started(AgentEach) as server, closing(server.connect()) as link:
            for _ in range(STARTS):
                time.sleep(SPARE)
                warm.append(_start_session(server, link))
    else:
        # Its sessions share one agent.
        with started(ROOMY[peer.name]) as server, closing(server.connect()) as link:
            for _ in range(STARTS):
                _end_agents(server)
                time.sleep(SPARE)
                cold.append(_start_session(server, link))
                warm.append(_start_session(server, link))
    return {"cold ms": median(cold), "warm ms": median(warm)}


def _stream(server: Peer, turns: Mapping[str, Sequence[Link]], chunks: int) -> tuple[float, float]:
    """One turn in each session at once: chunks a second, microseconds of CPU time a chunk.

    Raises `BenchmarkError` when chunks are lost.
    """
    used = cpu_seconds(server.pid)
    seen = run_fanouts(turns, chunks, CHUNK)
    used = cpu_seconds(server.pid) - used
    if seen.lost:
        raise BenchmarkError(f"{seen.lost} of {chunks * len(turns)} chunks are lost")
    return seen.delivered / seen.seconds, used / seen.delivered * 1e6


def _fresh(server: Peer, stack: ExitStack) -> dict[str, Sequence[Link]]:
    """A new session and its connection."""
    link = stack.enter_context(closing(server.connect()))
    return {server.open_session(link): [link]}


def _ratio(costs: Sequence[float], others: Sequence[float]) -> float:
    """Of figures that were taken in turn."""
    return median(a / b for a, b in zip(costs, others, strict=True))


def streaming(peer: Peer, sizes: Sizes) -> Figures:
    """1, 10 and 100 sessions of one agent, each with its own connection, streaming at once."""
    figures: Figures = {}
    with started(ROOMY[peer.name]) as server, ExitStack() as stack:
        turns: dict[str, Sequence[Link]] = {}
        for count in STREAMING:
            try:
                while len(turns) < count:
                    turns |= _fresh(server, stack)
            except BenchmarkError:  # qwen serve takes 64 connections
                break
            _stream(server, turns, 1)
            rate, used = _stream(server, turns, sizes.burst // count)
            figures |= {f"{count} chunks/s": rate, f"{count} cpu us/chunk": used}
    return figures


def event_cost(peer: Peer, sizes: Sizes) -> Figures:
    """CPU time of a chunk: alone, beside 100 idle sessions, and behind a million chunks.

    The first turn of a session fills its ring for a part of its length; the next one, which meets a
    full ring, tells what of the last figure is due to the many chunks.
    """
    alone: list[float] = []
    full: list[float] = []
    beside: list[float] = []
    behind: list[float] = []
    with ExitStack() as stack:
        quiet, crowded, old = (stack.enter_context(started(ROOMY["gateway"])) for _ in range(3))
        link = stack.enter_context(closing(crowded.connect()))
        for _ in range(SESSIONS):
            _stream(crowded, {crowded.open_session(link): [link]}, 10)
        past = _fresh(old, stack)
        for _ in range(sizes.past // AT_ONCE):
            _stream(old, past, AT_ONCE)
        rss = rss_mib(old.pid)
        for server in (quiet, crowded):
            _stream(server, _fresh(server, stack), sizes.burst)
        for _ in range(COMPARED):
            for server, costs, more in ((quiet, alone, full), (crowded, beside, [])):
                with closing(server.connect()) as link:
                    session_id = server.open_session(link)
                    costs.append(_stream(server, {session_id: [link]}, sizes.burst)[1])
                    more.append(_stream(server, {session_id: [link]}, sizes.burst)[1])
                    round_trip(link, "session/close", {"sessionId": session_id})
            behind.append(_stream(old, past, sizes.burst)[1])
    return {
        "alone cpu us/chunk": median(alone),
        "alone, ring full cpu us/chunk": median(full),
        "beside 100 sessions cpu us/chunk": median(beside),
        "behind 1,000,000 chunks cpu us/chunk": median(behind),
        "beside / alone": _ratio(beside, alone),
        "behind / alone": _ratio(behind, alone),
        "behind / ring full": _ratio(behind, full),
        "rss behind 1,000,000 chunks MiB": rss,
    }


def agents(peer: Peer, sizes: Sizes) -> Figures:
    """20 agents emitting together, and one: CPU time of a chunk."""
    one: list[float] = []
    all_of_them: list[float] = []
    rates: list[float] = []
    with started(AgentEach) as server, ExitStack() as stack:
        turns: dict[str, Sequence[Link]] = {}
        for _ in range(AGENTS):
            turns |= _fresh(server, stack)
        single = dict([next(iter(turns.items()))])
        _stream(server, turns, sizes.burst)
        for _ in range(COMPARED):
            one.append(_stream(server, single, sizes.burst)[1])
            rate, used = _stream(server, turns, sizes.burst // 4)
            rates.append(rate)
            all_of_them.append(used)
    return {
        "1 cpu us/chunk": median(one),
        "20 cpu us/chunk": median(all_of_them),
        "20 / 1": _ratio(all_of_them, one),
        "20 chunks/s": median(rates),
    }


MEASURES: Mapping[str, Measure] = {
    "connections": connections,
    "sessions": sessions,
    "streaming": streaming,
    "event_cost": event_cost,
    "agents": agents,
}
PEERS = {
    "connections": frozenset({"gateway", "qwen"}),
    "sessions": frozenset({"gateway", "qwen", "stdio"}),
    "streaming": frozenset({"gateway", "qwen"}),
    "event_cost": frozenset({"gateway"}),
    "agents": frozenset({"gateway"}),
}
"""Which peers take part in a measurement."""
RATES = frozenset({"20 chunks/s", *(f"{count} chunks/s" for count in STREAMING)})
"""Figures of which more is better."""
