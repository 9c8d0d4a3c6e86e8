"""How many lines a log gets: a token bucket, and a count of what it kept out.

Pure: the time comes in as a float of seconds, from any clock that does not go back.
"""

from __future__ import annotations

from collections import Counter


class LineBudget:
    """``burst`` lines at once, ``rate`` more for each second after."""

    __slots__ = ("_at", "_burst", "_left", "_rate", "suppressed")

    def __init__(self, burst: float, rate: float, now: float) -> None:
        self._burst = self._left = burst
        self._rate = rate
        self._at = now
        self.suppressed: Counter[str] = Counter()
        """Lines not written since `summary`, by their class (``2xx``)."""

    def take(self, kind: str, now: float) -> bool:
        """True: write the line. False: it was counted instead."""
        left = self._left + (now - self._at) * self._rate
        self._at = now
        if left > self._burst:
            left = self._burst
        if left < 1:
            self._left = left
            self.suppressed[kind] += 1
            return False
        self._left = left - 1
        return True

    def summary(self) -> dict[str, int] | None:
        """What was kept out since the last call, by class; None: nothing."""
        if not self.suppressed:
            return None
        told, self.suppressed = dict(sorted(self.suppressed.items())), Counter()
        return told
