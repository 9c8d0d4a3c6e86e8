"""What is measured, each on one started server; a measurement gives figures by name.

Names end with the unit. For names in `MORE_IS_BETTER` a ratio above 1 is good, else below 1.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

from benchmarks.client import (
    SILENCE,
    Link,
    StdioLink,
    prompt,
    round_trip,
    run_fanout,
    run_turn,
)
from benchmarks.peers import ROOT, Peer
from benchmarks.processes import cpu_seconds, descendants, rss_mib

Figures: TypeAlias = dict[str, float]

CHUNK = 200
SETTLE = 3.0
"""Seconds after which a started server counts as idle."""
FLOOD = 50_000_000
"""Chunks of a flood that is cancelled before it ends."""
HEAVY_IMPORTS = ("trio", "quart", "quart_trio", "hypercorn", "trio_websocket")


@dataclass(frozen=True)
class Sizes:
    """How much each measurement does."""

    burst: int = 20_000
    turns: int = 200
    samples: int = 500
    paced: int = 1600
    fanout: int = 5000
    big: int = 300
    huge: int = 30
    order: tuple[int, ...] = (1, 10, 50, 100, 500, 1000, 2000, 5000)


FULL = Sizes()
QUICK = Sizes(turns=60, samples=200, paced=800, fanout=2000, big=100, huge=10, order=(1, 100, 2000))


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _pid(peer: Peer, link: Link) -> int:
    """Whose CPU time counts: the server's, else the agent's own."""
    return link.process.pid if isinstance(link, StdioLink) else peer.pid


def start(peer: Peer, sizes: Sizes) -> Figures:
    """Times that `Peer.start` took."""
    return {
        "listening ms": peer.listening * 1e3,
        "health 200 ms": peer.healthy * 1e3,
        "initialize answered ms": peer.greeted * 1e3,
    }


def idle(peer: Peer, sizes: Sizes) -> Figures:
    """A server at rest after its start, its agents apart; and the CPU time that rest costs."""
    time.sleep(SETTLE)
    began, used = time.perf_counter(), cpu_seconds(peer.pid)
    time.sleep(1)
    used = (cpu_seconds(peer.pid) - used) / (time.perf_counter() - began)
    return {
        "rss MiB": rss_mib(peer.pid),
        "rss of children MiB": sum(map(rss_mib, descendants(peer.pid))),
        "cpu ms/s": used * 1e3,
    }


def burst(peer: Peer, sizes: Sizes) -> Figures:
    """Chunks of 200 B as fast as they come, one subscriber; the same turn once before, to warm."""
    with closing(peer.connect()) as link:
        session_id = peer.open_session(link)
        run_turn(link, session_id, sizes.burst, CHUNK)
        pid = _pid(peer, link)
        used = cpu_seconds(pid)
        turn = run_turn(link, session_id, sizes.burst, CHUNK)
        used = cpu_seconds(pid) - used
        arrived = turn.chunks - turn.lost
        return {
            "chunks/s": arrived / turn.all,
            "cpu us/chunk": used / max(arrived, 1) * 1e6,
            "first chunk ms": turn.first * 1e3,
            "late": turn.late,
            "lost": turn.lost,
        }


def paced(peer: Peer, sizes: Sizes) -> Figures:
    """1,600 chunks a second, each written by itself: nothing to join."""
    with closing(peer.connect()) as link:
        session_id = peer.open_session(link)
        run_turn(link, session_id, 200, CHUNK)
        pid = _pid(peer, link)
        used = cpu_seconds(pid)
        turn = run_turn(link, session_id, sizes.paced, CHUNK, 1600)
        return {"cpu us/chunk": (cpu_seconds(pid) - used) / turn.chunks * 1e6}


def turn(peer: Peer, sizes: Sizes) -> Figures:
    """Turns of one chunk, one after the other."""
    with closing(peer.connect()) as link:
        session_id = peer.open_session(link)
        for _ in range(20):
            run_turn(link, session_id, 1, CHUNK)
        pid = _pid(peer, link)
        used = cpu_seconds(pid)
        turns = [run_turn(link, session_id, 1, CHUNK) for _ in range(sizes.turns)]
        used = cpu_seconds(pid) - used
        firsts = [each.first * 1e3 for each in turns]
        return {
            "first chunk p50 ms": median(firsts),
            "first chunk p99 ms": _percentile(firsts, 0.99),
            "end p50 ms": median(each.end * 1e3 for each in turns),
            "cpu us/turn": used / len(turns) * 1e6,
        }


def _drain(link: Link) -> None:
    while link.read(SILENCE):
        pass


def flood(peer: Peer, sizes: Sizes) -> Figures:
    """Small requests, and turns of one chunk in another session, beside a flood.

    The small request is one that the server itself refuses (no such method).
    """
    with ExitStack() as stack:
        small, other, flooded = (stack.enter_context(closing(peer.connect())) for _ in range(3))
        session_id, flooding = peer.open_session(other), peer.open_session(flooded)
        run_turn(other, session_id, 1, CHUNK)
        run_turn(flooded, flooding, 2000, CHUNK)

        def sample(count: int) -> list[float]:
            times = []
            for _ in range(count):
                times.append(round_trip(small, "no/such/method", {}) * 1e3)
                time.sleep(0.001)  # else the flood gets what the scheduler leaves
            return times

        idle_times = sample(sizes.samples // 2)
        # In a process of its own: the reader of a flood must not slow the samples.
        reader = multiprocessing.get_context("fork").Process(target=_drain, args=(flooded,))
        flooded.request("session/prompt", prompt(flooding, f"stream {FLOOD} {CHUNK}"))
        reader.start()
        try:
            time.sleep(0.3)
            beside = sample(sizes.samples)
            turns = [run_turn(other, session_id, 1, CHUNK) for _ in range(sizes.turns // 2)]
        finally:
            flooded.notify("session/cancel", {"sessionId": flooding})
            reader.terminate()
            reader.join()
        ends = [each.end * 1e3 for each in turns]
        return {
            "request idle p50 ms": median(idle_times),
            "request p50 ms": median(beside),
            "request p99 ms": _percentile(beside, 0.99),
            "turn p50 ms": median(ends),
            "turn p99 ms": _percentile(ends, 0.99),
        }


def _fanout(peer: Peer, sizes: Sizes, subscribers: int) -> Figures:
    with ExitStack() as stack:
        links = [stack.enter_context(closing(peer.connect())) for _ in range(subscribers)]
        session_id = peer.open_session(links[0])
        for link in links[1:]:
            peer.join(link, session_id)
        run_fanout(links, session_id, min(sizes.fanout, 500), CHUNK)
        used = cpu_seconds(peer.pid)
        seen = run_fanout(links, session_id, sizes.fanout, CHUNK)
        used = cpu_seconds(peer.pid) - used
        return {
            "deliveries/s": seen.delivered / seen.seconds,
            "cpu us/delivery": used / max(seen.delivered, 1) * 1e6,
            "lost": seen.lost,
        }


def fanout10(peer: Peer, sizes: Sizes) -> Figures:
    """A turn of one session, watched by 10 WebSockets."""
    return _fanout(peer, sizes, 10)


def fanout60(peer: Peer, sizes: Sizes) -> Figures:
    """A turn of one session, watched by 60 WebSockets."""
    return _fanout(peer, sizes, 60)


def _large(peer: Peer, chunks: int, size: int) -> Figures:
    with closing(peer.connect()) as link:
        session_id = peer.open_session(link)
        run_turn(link, session_id, 3, size)
        turn = run_turn(link, session_id, chunks, size)
        figures: Figures = {"messages/s": (chunks - turn.lost) / turn.all, "lost": turn.lost}
    if peer.pid:
        figures["rss after MiB"] = rss_mib(peer.pid)
    return figures


def large64k(peer: Peer, sizes: Sizes) -> Figures:
    """Chunks of 64 KiB."""
    return _large(peer, sizes.big, 64 * 1024)


def large1m(peer: Peer, sizes: Sizes) -> Figures:
    """Chunks of 1 MiB."""
    return _large(peer, sizes.huge, 1024 * 1024)


def order(peer: Peer, sizes: Sizes) -> Figures:
    """Turns of 1 to 5,000 chunks: what came behind the answer, and what never came."""
    late = lost = 0
    with closing(peer.connect()) as link:
        session_id = peer.open_session(link)
        for count in sizes.order:
            turn = run_turn(link, session_id, count, CHUNK)
            late += turn.late
            lost += turn.lost
    return {"late": late, "lost": lost, "sent": sum(sizes.order)}


def help_imports() -> Figures:
    """``acp-gateway --help``: its time, and how many of the heavy libraries it imports."""
    code = (
        "import sys, atexit\n"
        f"heavy = {HEAVY_IMPORTS!r}\n"
        "atexit.register(lambda: print(*[n for n in heavy if n in sys.modules], file=sys.stderr))\n"
        "sys.argv[1:] = ['--help']\n"
        "from acp_gateway.cli import main\n"
        "main()\n"
    )
    argv = [sys.executable, "-m", "acp_gateway", "--help"]
    began = time.perf_counter()
    subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - began
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, check=True, text=True, capture_output=True)
    return {"ms": took * 1e3, "heavy imports": len(done.stderr.split())}


Measure: TypeAlias = Callable[[Peer, Sizes], Figures]

# In the order in which they run on a server that has just been started.
MEASURES: Mapping[str, Measure] = {
    "start": start,
    "idle": idle,
    "burst": burst,
    "paced": paced,
    "turn": turn,
    "flood": flood,
    "fanout10": fanout10,
    "fanout60": fanout60,
    "large64k": large64k,
    "large1m": large1m,
    "order": order,
}
MORE_IS_BETTER = frozenset({"chunks/s", "deliveries/s", "messages/s"})
