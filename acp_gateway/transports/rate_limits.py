"""Rate limits of the daemon: which request costs what, whose it is, and what a refusal says.

REST and the JSON-RPC methods of ``/acp`` take from the same buckets: a row of the operations' table
and its ``_qwen/*`` twin have one tier. Only what the guards let in is counted, and nothing while
the daemon drains.
"""

from __future__ import annotations

import math
import re
import time
from functools import lru_cache
from typing import Any, Final

import structlog
import trio

from acp_gateway.config import Settings
from acp_gateway.core.rate_limit import Exceeded, RateLimiter, Tier
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.extensions import RPC, Operation

log = structlog.get_logger("acp_gateway.rate_limit")

RATE_SETTINGS: Final = (
    *("rate_limit", "rate_limit_prompt", "rate_limit_mutation"),
    *("rate_limit_read", "rate_limit_window"),
)
LOG_EVERY: Final = 100
"""Of the refusals of one caller in one tier, the first and every such one is logged."""
_EXEMPT_PATHS: Final = frozenset({"/health", "/readyz", "/demo"})
_READ_POSTS: Final = frozenset({"/sessions/catalog"})
_PROMPT: Final = re.compile(r"/session/[^/]+/prompt")
_HEARTBEAT: Final = re.compile(r"/session/[^/]+/heartbeat")
_EVENTS: Final = re.compile(r"/session/[^/]+/events|/workspace/events")
_ACP: Final = re.compile(r"/acp|/agents/[^/]+/acp")
_EXEMPT_METHODS: Final = frozenset({"initialize", "session/cancel", "$/cancel_request"})
"""To begin is limited by the number of connections; to stop something must always be possible."""


@lru_cache(1024)
def tier_of_request(method: str, path: str) -> Tier | None:
    """What a request costs; None: nothing. ``path`` is without the base path of a proxy."""
    if method == "OPTIONS" or _ACP.fullmatch(path):
        return None
    if method in ("GET", "HEAD"):
        if path in _EXEMPT_PATHS or (method == "GET" and _EVENTS.fullmatch(path)):
            return None
        return Tier.READ
    if method == "POST":
        if _HEARTBEAT.fullmatch(path):
            return None
        if _PROMPT.fullmatch(path):
            return Tier.PROMPT
        if path in _READ_POSTS:
            return Tier.READ
    return Tier.MUTATION


@lru_cache(1024)
def tier_of_method(method: str) -> Tier | None:
    """The same for a JSON-RPC method of ``/acp``."""
    if method in _EXEMPT_METHODS:
        return None
    if method == "session/prompt":
        return Tier.PROMPT
    if method == "session/list":
        return Tier.READ
    row = RPC.get(method)
    return Tier.MUTATION if row is None else _tier_of_row(row)


def _tier_of_row(row: Operation) -> Tier | None:
    return tier_of_request(row.method, re.sub(r"{\w+}", "x", row.path))


class RateLimitExceeded(GatewayError):
    """429; over JSON-RPC the same members stand in ``data``."""

    def __init__(self, exceeded: Exceeded) -> None:
        self.limit = exceeded.limit
        self.wait_ms = math.ceil(exceeded.retry_after * 1000)
        super().__init__(
            ErrorKind.RATE_LIMITED,
            "Rate limit exceeded",
            tier=exceeded.tier.value,
            retryAfterMs=self.wait_ms,
        )

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """When to try again, as seconds from now and as Unix time."""
        seconds = self.wait_ms / 1000
        return (
            ("retry-after", str(math.ceil(seconds))),
            ("x-ratelimit-limit", str(self.limit)),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", str(math.ceil(time.time() + seconds))),
        )


class RateLimits:
    """The buckets of one daemon."""

    def __init__(self, settings: Settings) -> None:
        self._limiter = RateLimiter(
            {
                Tier.PROMPT: settings.rate_limit_prompt,
                Tier.MUTATION: settings.rate_limit_mutation,
                Tier.READ: settings.rate_limit_read,
            },
            settings.rate_limit_window,
        )
        self.draining = False
        """Set when the daemon stops: whoever ends its work then is not held up."""

    def refuse_request(self, method: str, path: str, key: str) -> RateLimitExceeded | None:
        """Count a request of the caller ``key``; the refusal when it has to wait."""
        return self._take(tier_of_request(method, path), key)

    def refuse_method(self, method: str, key: str) -> RateLimitExceeded | None:
        """Count a JSON-RPC request."""
        return self._take(tier_of_method(method), key)

    def _take(self, tier: Tier | None, key: str) -> RateLimitExceeded | None:
        if tier is None or self.draining:
            return None
        exceeded = self._limiter.take(key, tier, trio.current_time())
        if exceeded is None:
            return None
        if exceeded.count == 1 or exceeded.count % LOG_EVERY == 0:
            suppressed = 0 if exceeded.count == 1 else min(exceeded.count - 2, LOG_EVERY - 1)
            log.warning("rate_limited", tier=tier.value, caller=key, suppressed=suppressed)
        return RateLimitExceeded(exceeded)

    def snapshot(self) -> dict[str, Any]:
        """For the daemon's status and its metrics."""
        return {
            "enabled": True,
            "callers": len(self._limiter),
            "forgotten": self._limiter.forgotten,
            "rejectedSinceStart": self.hits,
        }

    @property
    def hits(self) -> dict[str, int]:
        """Refusals since the start, by tier."""
        return {tier.value: count for tier, count in self._limiter.refused.items()}
