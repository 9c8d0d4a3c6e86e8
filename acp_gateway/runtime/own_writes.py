"""What the gateway itself wrote lately: so that a change of a file can be told with its writer.

A note is believed only while the file is the very one that was written (inode, time, size). It is
made before the file gets its name: whoever looks then finds it.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Final

import attrs

from acp_gateway.core.file_audit import Who

REMEMBERED: Final = 1024

Stamp = tuple[int, int, int]

NOTED: Final[ContextVar[Callable[[Path, bool, Stamp], None] | None]] = ContextVar(
    "NOTED", default=None
)
"""What a writer calls with the path, whether the file is new, and its stamp."""


def stamp_of(status: os.stat_result) -> Stamp:
    return (status.st_ino, status.st_mtime_ns, status.st_size)


@attrs.frozen
class Note:
    who: Who
    created: bool
    """There was no such file before."""


class OwnWrites:
    """Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notes: OrderedDict[tuple[Path, Stamp], Note] = OrderedDict()

    def add(self, path: Path, stamp: Stamp, note: Note) -> None:
        """``path`` has no links."""
        with self._lock:
            self._notes[path, stamp] = note
            if len(self._notes) > REMEMBERED:
                self._notes.popitem(last=False)

    def of(self, path: Path, status: os.stat_result) -> Note | None:
        """Who wrote the file that is there now; None when it was somebody else."""
        with self._lock:
            return self._notes.get((path, stamp_of(status)))
