"""Numbers that only grow: counts by label and histograms, as plain integers in their owners.

Nobody is told of a change. Who wants a number reads it, so keeping them costs an addition.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final

SHORT: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds, for what a program does."""
LONG: Final = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Seconds, for what a model or a person does."""


class Histogram:
    """Observations in buckets with fixed upper bounds, and how many and how much in all."""

    __slots__ = ("bounds", "buckets", "count", "largest", "last", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        """Upper bounds, inclusive, ascending; one more bucket takes what is above the last."""
        self.buckets = [0] * (len(self.bounds) + 1)
        self.count = 0
        self.sum = 0.0
        self.largest = 0.0
        self.last = 0.0

    def observe(self, value: float) -> None:
        """A negative value (a clock that was set back) counts as 0."""
        value = max(value, 0.0)
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.count += 1
        self.sum += value
        self.last = value
        self.largest = max(self.largest, value)

    def cumulative(self) -> list[tuple[float, int]]:
        """(upper bound, observations up to it) of each bucket; the last bound is infinite."""
        told, total = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self.buckets, strict=True):
            total += count
            told.append((bound, total))
        return told

    def quantile(self, share: float) -> float:
        """The upper bound of the bucket that holds this share (0 to 1) of the observations; of the
        last bucket the largest one seen. 0 when there are none."""
        wanted, total = share * self.count, 0
        for bound, count in zip(self.bounds, self.buckets, strict=False):
            total += count
            if count and total >= wanted:
                return min(bound, self.largest)
        return self.largest

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else 0.0


Labels = tuple[str, ...]


class Counts(Counter[Labels]):
    """Counts by the values of some labels. The values must come from a closed set."""

    def add(self, *labels: str, by: int = 1) -> None:
        self[labels] += by


class Histograms(dict[Labels, Histogram]):
    """Histograms by the values of some labels."""

    def __init__(self, bounds: Sequence[float]) -> None:
        super().__init__()
        self.bounds = tuple(bounds)

    def __missing__(self, labels: Labels) -> Histogram:
        self[labels] = made = Histogram(self.bounds)
        return made

    def observe(self, value: float, *labels: str) -> None:
        self[labels].observe(value)
