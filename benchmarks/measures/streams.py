"""One session's updates on their way from the agent to one client."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from statistics import median

from benchmarks.client import round_trip, run_turn
from benchmarks.measures.common import CHUNK, Figures, Measure, Sizes, percentile, pid_of
from benchmarks.peers import Peer, Via, started
from benchmarks.peers_tls import ENCRYPTED
from benchmarks.processes import cpu_seconds, rss_mib


def _burst(peer: Peer, sizes: Sizes, via: Via = "websocket", how: str = "stream") -> Figures:
    with closing(peer.connect(via)) as link:
        session_id = peer.open_session(link)
        run_turn(link, session_id, sizes.burst, CHUNK, how=how)
        pid = pid_of(peer, link)
        used = cpu_seconds(pid)
        turn = run_turn(link, session_id, sizes.burst, CHUNK, how=how)
        used = cpu_seconds(pid) - used
        arrived = turn.chunks - turn.lost
        return {
            "chunks/s": arrived / turn.all,
            "cpu us/chunk": used / max(arrived, 1) * 1e6,
            "first chunk ms": turn.first * 1e3,
            "late": turn.late,
            "lost": turn.lost,
        }


def burst(peer: Peer, sizes: Sizes) -> Figures:
    """Chunks of 200 B as fast as they come, one subscriber; the same turn once before, to warm."""
    return _burst(peer, sizes)


def burst1(peer: Peer, sizes: Sizes) -> Figures:
    """The same, each chunk written by itself, as most agents do."""
    return _burst(peer, sizes, how="lines")


def burst_http(peer: Peer, sizes: Sizes) -> Figures:
    """The burst over Streamable HTTP."""
    return _burst(peer, sizes, "http")


def burst_sse(peer: Peer, sizes: Sizes) -> Figures:
    """The burst over REST and the event stream of the session."""
    return _burst(peer, sizes, "events")


def burst_tls(peer: Peer, sizes: Sizes) -> Figures:
    """The burst over WebSocket and TLS, on a server started for it."""
    with started(ENCRYPTED[peer.name]) as encrypted:
        return _burst(encrypted, sizes)


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
    """Turns of one chunk, one after the other; and requests that the agent answers by itself."""
    with closing(peer.connect()) as link:
        session_id = peer.open_session(link)
        for _ in range(20):
            run_turn(link, session_id, 1, CHUNK)
        pid = pid_of(peer, link)
        used = cpu_seconds(pid)
        turns = [run_turn(link, session_id, 1, CHUNK) for _ in range(sizes.turns)]
        used = cpu_seconds(pid) - used
        mode = {"sessionId": session_id, "modeId": "default"}
        trips = [round_trip(link, "session/set_mode", mode) * 1e3 for _ in range(sizes.turns)]
        firsts = [each.first * 1e3 for each in turns]
        return {
            "first chunk p50 ms": median(firsts),
            "first chunk p99 ms": percentile(firsts, 0.99),
            "end p50 ms": median(each.end * 1e3 for each in turns),
            "cpu us/turn": used / len(turns) * 1e6,
            "round trip p50 ms": median(trips),
            "round trip p99 ms": percentile(trips, 0.99),
        }


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


def _order(peer: Peer, sizes: Sizes, via: Via) -> Figures:
    late = lost = 0
    with closing(peer.connect(via)) as link:
        session_id = peer.open_session(link)
        for count in sizes.order:
            turn = run_turn(link, session_id, count, CHUNK)
            late += turn.late
            lost += turn.lost
    return {"late": late, "lost": lost, "late or lost": late + lost, "sent": sum(sizes.order)}


def order(peer: Peer, sizes: Sizes) -> Figures:
    """Turns of 1 to 5,000 chunks: what came behind the answer, and what never came."""
    return _order(peer, sizes, "websocket")


def order_http(peer: Peer, sizes: Sizes) -> Figures:
    """The same over Streamable HTTP: behind the answer on the session's stream."""
    return _order(peer, sizes, "http")


def order_sse(peer: Peer, sizes: Sizes) -> Figures:
    """The same over REST and events: behind ``turn_complete``."""
    return _order(peer, sizes, "events")


MEASURES: Mapping[str, Measure] = {
    "burst": burst,
    "burst1": burst1,
    "burst_tls": burst_tls,
    "burst_http": burst_http,
    "burst_sse": burst_sse,
    "paced": paced,
    "turn": turn,
    "large64k": large64k,
    "large1m": large1m,
    "order": order,
    "order_http": order_http,
    "order_sse": order_sse,
}
