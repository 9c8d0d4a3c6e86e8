"""Real agents on a model that costs nothing: by themselves, behind the gateway, as servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from statistics import median

from benchmarks.client import run_turn
from benchmarks.measures.common import Figures, Measure, Sizes, pid_of
from benchmarks.peers import Peer, started
from benchmarks.peers_real import (
    GOOSE,
    QWEN,
    RealAgent,
    RealGateway,
    RealServer,
    RealStdio,
    running_model,
)
from benchmarks.processes import cpu_seconds

CHUNK = 40
WARM = (100, 2000)
"""Chunks of the turns before those that count."""
TURNS = 5


def _real(agent: RealAgent, peer: Peer, sizes: Sizes) -> Figures:
    kinds: dict[str, Callable[..., Peer]]
    kinds = {"stdio": RealStdio, "gateway": RealGateway, agent.name: RealServer}
    with (
        running_model() as model,
        started(partial(kinds[peer.name], agent=agent, model=model)) as server,
        closing(server.connect()) as link,
    ):
        session_id = server.open_session(link)
        for chunks in WARM:
            run_turn(link, session_id, chunks, CHUNK)
        pid = pid_of(server, link)
        used = cpu_seconds(pid)
        turns = [run_turn(link, session_id, sizes.real, CHUNK) for _ in range(TURNS)]
        used = cpu_seconds(pid) - used
    arrived = sum(turn.chunks - turn.lost for turn in turns)
    figures: Figures = {
        "chunks/s": median((turn.chunks - turn.lost) / turn.all for turn in turns),
        "first chunk ms": median(turn.first for turn in turns) * 1e3,
        "late": sum(turn.late for turn in turns),
        "lost": sum(turn.lost for turn in turns),
    }
    if server.pid:
        figures["cpu us/chunk"] = used / max(arrived, 1) * 1e6
    return figures


def real_qwen(peer: Peer, sizes: Sizes) -> Figures:
    """``qwen --acp``, read directly, behind the gateway, and ``qwen serve``."""
    return _real(QWEN, peer, sizes)


def real_goose(peer: Peer, sizes: Sizes) -> Figures:
    """``goose acp``, read directly, behind the gateway, and ``goose serve``."""
    return _real(GOOSE, peer, sizes)


MEASURES: Mapping[str, Measure] = {"real_qwen": real_qwen, "real_goose": real_goose}
PEERS = {
    f"real_{agent.name}": frozenset({"stdio", "gateway", agent.name}) for agent in (QWEN, GOOSE)
}
"""Which peers take part in a measurement."""
