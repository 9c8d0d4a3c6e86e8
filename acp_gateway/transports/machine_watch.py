"""Facts of processes and disks, looked up in a thread and kept for a second."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import attrs
import trio

from acp_gateway.runtime.machine import (
    Disk,
    ProcessFacts,
    disk,
    max_fds,
    own_facts,
    process_facts,
)

KEPT: Final = 1.0
"""Seconds: many may ask at once, and none needs it fresher."""


@attrs.frozen(kw_only=True)
class Machine:
    own: ProcessFacts
    max_fds: int | None
    agents: dict[int, ProcessFacts]
    disks: dict[str, Disk]


def existing(path: Path) -> Path:
    """The directory, or the nearest above it that is there: it is made when first needed."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


class MachineWatch:
    def __init__(self) -> None:
        self._known: Machine | None = None
        self._until = 0.0
        self._lock = trio.Lock()

    async def look(self, pids: set[int], places: dict[str, Path]) -> Machine:
        """``pids``: the agents' processes; ``places``: directories by what they are for."""
        async with self._lock:  # who asks meanwhile gets what the first one finds
            known = self._known
            if known is None or trio.current_time() >= self._until:
                known = await trio.to_thread.run_sync(_look, frozenset(pids), dict(places))
                self._known, self._until = known, trio.current_time() + KEPT
            return known


def _look(pids: frozenset[int], places: dict[str, Path]) -> Machine:
    return Machine(
        own=own_facts(),
        max_fds=max_fds(),
        agents=process_facts(pids - {os.getpid()}),
        disks={name: disk(existing(path)) for name, path in places.items()},
    )
