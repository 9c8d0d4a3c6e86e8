"""How long to wait before the next try."""

from __future__ import annotations


class Backoff:
    """Doubling delays from ``first`` to ``most`` seconds; a success starts over."""

    def __init__(self, first: float, most: float) -> None:
        self.first = first
        self.most = most
        self.failures = 0

    def failed(self) -> float:
        """Count a failure; seconds to wait before the next try."""
        self.failures += 1
        return self.delay

    @property
    def delay(self) -> float:
        if self.failures == 0:
            return 0.0
        return float(min(self.most, self.first * 2 ** min(self.failures - 1, 30)))

    def succeeded(self) -> None:
        self.failures = 0
