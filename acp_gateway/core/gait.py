"""When to wait a moment for more: an agent that writes a stream of small pieces.

To take each piece as it comes costs a turn of the loop and a write to every client, for a few
hundred bytes, and the processor is the one that the agent needs. A piece that comes after a rest
is never kept waiting, and neither is the first of a stream.
"""

from __future__ import annotations

from typing import Final

SMALL: Final = 16 * 1024
"""Bytes of a read for which it is worth to wait."""
HASTE: Final = 0.0003
"""Seconds that one waits at most for the next piece of a stream."""
STREAK: Final = 8


class Gait:
    def __init__(self) -> None:
        self._streak = 0

    def is_hasty(self, size: int, waited: float) -> bool:
        """Wait before the next read? This one brought ``size`` bytes after ``waited`` seconds."""
        self._streak = self._streak + 1 if waited < HASTE else 0
        return self._streak >= STREAK and size < SMALL
