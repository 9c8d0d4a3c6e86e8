"""Updates on their way from the agent to clients."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from statistics import median

from benchmarks.client import SILENCE, Link, prompt, round_trip, run_fanout, run_turn
from benchmarks.measures.common import CHUNK, FLOOD, Figures, Measure, Sizes, percentile, pid_of
from benchmarks.peers import Peer
from benchmarks.processes import cpu_seconds, rss_mib


def burst(peer: Peer, sizes: Sizes) -> Figures:
    """Chunks of 200 B as fast as they come, one subscriber; the same turn once before, to warm."""
    with closing(peer.connect()) as link:
        session_id = peer.open_session(link)
        run_turn(link, session_id, sizes.burst, CHUNK)
        pid = pid_of(peer, link)
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
        pid = pid_of(peer, link)
        used = cpu_seconds(pid)
        turn = run_turn(link, session_id, sizes.paced, CHUNK, 1600)
        return {"cpu us/chunk": (cpu_seconds(pid) - used) / turn.chunks * 1e6}


def turn(peer: Peer, sizes: Sizes) -> Figures:
    """Turns of one chunk, one after the other."""
    with closing(peer.connect()) as link:
        session_id = peer.open_session(link)
        for _ in range(20):
            run_turn(link, session_id, 1, CHUNK)
        pid = pid_of(peer, link)
        used = cpu_seconds(pid)
        turns = [run_turn(link, session_id, 1, CHUNK) for _ in range(sizes.turns)]
        used = cpu_seconds(pid) - used
        firsts = [each.first * 1e3 for each in turns]
        return {
            "first chunk p50 ms": median(firsts),
            "first chunk p99 ms": percentile(firsts, 0.99),
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
            "request p99 ms": percentile(beside, 0.99),
            "turn p50 ms": median(ends),
            "turn p99 ms": percentile(ends, 0.99),
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


MEASURES: Mapping[str, Measure] = {
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
