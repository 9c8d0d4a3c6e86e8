"""Bytes that the rings of all sessions keep together."""

from __future__ import annotations

from acp_gateway.core.event_ring import EventRing


class RingBudget:
    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.total = 0

    @property
    def over(self) -> bool:
        return self.total > self.max_bytes

    @property
    def excess(self) -> int:
        return max(0, self.total - self.max_bytes)

    def remove(self, ring: EventRing) -> None:
        """A session ended; its ring no longer counts."""
        self.total -= ring.kept_bytes
