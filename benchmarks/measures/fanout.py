"""One session's updates to many clients. Deliveries are counted over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial

from benchmarks.client import Link, run_fanouts
from benchmarks.measures.common import CHUNK, Figures, Measure, Sizes
from benchmarks.peers import Peer, Via
from benchmarks.processes import cpu_seconds

WARM = 500


def _fanout(peer: Peer, sizes: Sizes, via: Via, subscribers: int, sessions: int = 1) -> Figures:
    """A turn of each session at once, each watched by so many clients; a short one before."""
    with ExitStack() as stack:
        groups: dict[str, list[Link]] = {}
        for room in range(sessions):
            links = [
                stack.enter_context(closing(peer.connect(via, room))) for _ in range(subscribers)
            ]
            session_id = peer.open_session(links[0])
            for link in links[1:]:
                peer.join(link, session_id)
            groups[session_id] = links
        chunks = sizes.fanout if subscribers > 1 else sizes.burst
        run_fanouts(groups, min(chunks, WARM), CHUNK)
        used = cpu_seconds(peer.pid)
        seen = run_fanouts(groups, chunks, CHUNK)
        used = cpu_seconds(peer.pid) - used
        return {
            "deliveries/s": seen.delivered / seen.seconds,
            "cpu us/delivery": used / max(seen.delivered, 1) * 1e6,
            "lost": seen.lost,
        }


def _measure(via: Via, subscribers: int, sessions: int = 1) -> Measure:
    return partial(_fanout, via=via, subscribers=subscribers, sessions=sessions)


MEASURES: Mapping[str, Measure] = {
    **{f"fanout{n}": _measure("websocket", n) for n in (1, 10, 60, 100)},
    "fanout2x50": _measure("websocket", 50, 2),
    **{f"sse{n}": _measure("events", n) for n in (1, 10, 50)},
    "sse2x50": _measure("events", 50, 2),
}
