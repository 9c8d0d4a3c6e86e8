"""What all measurements share. Names of figures end with the unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.client import Link, StdioLink
from benchmarks.peers import Peer

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
    load: float = 1.0
    """Seconds of each load of HTTP requests."""
    connections: int = 500
    past: int = 1_000_000
    """Events that a session has seen before."""
    real: int = 2000
    """Chunks of a turn of a real agent."""
    soak: float = 600.0
    """Seconds."""


FULL = Sizes()
QUICK = Sizes(
    turns=60, samples=200, paced=800, fanout=2000, big=100, huge=10, order=(1, 100, 2000), load=0.3
)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def pid_of(peer: Peer, link: Link) -> int:
    """Whose CPU time counts: the server's, else the agent's own."""
    return link.process.pid if isinstance(link, StdioLink) else peer.pid


Measure: TypeAlias = Callable[[Peer, Sizes], Figures]
