"""From what a file watcher saw to what is told: one change for each path, bounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

Kind = Literal["created", "modified", "deleted"]

ADDED, MODIFIED, DELETED = 1, 2, 3
"""What watchers call a sighting."""
MAX_CHANGES: Final = 500
"""Of one event."""
MAX_PATH_BYTES: Final = 64 * 1024
"""Of all paths of one event."""


def by_path(sightings: Iterable[tuple[int, str]]) -> dict[str, frozenset[int]]:
    """What was seen of each path, in the order of the paths."""
    seen: dict[str, set[int]] = {}
    for kind, path in sightings:
        seen.setdefault(path, set()).add(kind)
    return {path: frozenset(seen[path]) for path in sorted(seen)}


def settled(seen: frozenset[int], *, there: bool, directory: bool) -> Kind | None:
    """What has become of a path, by what was seen and whether it is there now; None: nothing.

    A file that took the place of another by a rename cannot be told from a new one.
    """
    if not there:
        return "deleted"
    if directory:
        return "created" if ADDED in seen else None
    if ADDED in seen and DELETED not in seen:
        return "created"
    return "modified"


class Bounds:
    """How much one event takes."""

    def __init__(self) -> None:
        self._changes = self._bytes = 0

    def take(self, path: str) -> bool:
        """Room for one more?"""
        self._changes += 1
        self._bytes += len(path.encode(errors="replace"))
        return self._changes <= MAX_CHANGES and self._bytes <= MAX_PATH_BYTES
