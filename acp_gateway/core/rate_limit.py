"""Token buckets: how many requests of each tier one caller may make.

A bucket starts full, holds as many requests as its tier allows in a window, and fills continuously
(capacity / window each second). Rule 1: time comes in as a float and may stand still, never count
backwards for a caller. Rule 2: the number of callers is bounded, and a full table forgets whoever
was idle the longest; it never lets everybody through.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from enum import Enum
from typing import Final

import attrs

MAX_KEYS: Final = 10_000
"""Callers that are remembered at once."""
_ALMOST: Final = 1 - 1e-9
"""Who waited for as long as was told is let in, whatever the rounding of the sum."""


class Tier(Enum):
    """What a request costs the daemon; each has a bucket of its own."""

    PROMPT = "prompt"
    MUTATION = "mutation"
    READ = "read"


@attrs.frozen
class Exceeded:
    """A request that has to wait."""

    tier: Tier
    limit: int
    """Requests in a window."""
    retry_after: float
    """Seconds until one is allowed again."""
    count: int
    """Refusals of this caller in this tier, this one included."""


@attrs.define
class _Bucket:
    tokens: float
    filled_at: float
    refused: int = 0


@attrs.define
class _Caller:
    last: float
    """When it last asked."""
    buckets: dict[Tier, _Bucket] = attrs.field(factory=dict)


class RateLimiter:
    """Buckets of every caller. ``limits`` are requests in ``window`` seconds, all more than 0."""

    def __init__(
        self, limits: Mapping[Tier, int], window: float, *, max_keys: int = MAX_KEYS
    ) -> None:
        if window <= 0 or min(limits.values()) <= 0 or max_keys <= 0:
            raise ValueError("limits, window and the number of keys must be more than 0")
        self._limits = dict(limits)
        self._window = window
        self._max_keys = max_keys
        self._callers: OrderedDict[str, _Caller] = OrderedDict()
        """In the order of their last request."""
        self.refused: dict[Tier, int] = dict.fromkeys(limits, 0)
        """Refusals since the start."""
        self.forgotten = 0
        """Callers whose buckets were dropped for want of room."""

    def __len__(self) -> int:
        """Callers that are remembered."""
        return len(self._callers)

    def take(self, key: str, tier: Tier, now: float) -> Exceeded | None:
        """One request of ``key`` at ``now``; None: go on."""
        self._sweep(now)
        caller = self._callers.get(key)
        if caller is None:
            if len(self._callers) >= self._max_keys:
                self._callers.popitem(last=False)
                self.forgotten += 1
            caller = self._callers[key] = _Caller(now)
        else:
            self._callers.move_to_end(key)
        caller.last = now
        limit = self._limits[tier]
        rate = limit / self._window
        bucket = caller.buckets.get(tier)
        if bucket is None:
            bucket = caller.buckets[tier] = _Bucket(limit, now)
        elif now > bucket.filled_at:
            bucket.tokens = min(limit, bucket.tokens + (now - bucket.filled_at) * rate)
            bucket.filled_at = now
        if bucket.tokens >= _ALMOST:
            bucket.tokens = max(0.0, bucket.tokens - 1)
            return None
        bucket.refused += 1
        self.refused[tier] += 1
        return Exceeded(tier, limit, (1 - bucket.tokens) / rate, bucket.refused)

    def _sweep(self, now: float) -> None:
        """Forget who has been idle for two windows: every bucket of theirs is full again.

        The oldest stand first, so that the work of a call is what earlier calls put in.
        """
        while self._callers and now - next(iter(self._callers.values())).last >= 2 * self._window:
            self._callers.popitem(last=False)
