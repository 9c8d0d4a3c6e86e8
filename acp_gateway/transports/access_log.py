"""The access log: a line for each HTTP request and each ``/acp`` connection, within a budget.

Requests that the guards let in and those that they refused have budgets of their own, so that
nobody outside can push the others out of the log. What does not fit is counted, and told in sums by
class of status. Probes of health and metrics that go well are told at level ``debug``.
"""

from __future__ import annotations

import time
from typing import Any, Final

import structlog
import trio

from acp_gateway.core.line_budget import LineBudget

log = structlog.get_logger("acp_gateway.access")

REQUESTS: Final = (60.0, 2.0)
"""Lines at once, and more for each second."""
REFUSALS: Final = (30.0, 1.0)
SUMMARY_INTERVAL: Final = 10.0
REFUSED: Final = frozenset({401, 403, 421, 429})
"""Statuses of the guards."""
QUIET: Final = frozenset({"/health", "/readyz", "/metrics", "/status"})


class AccessLog:
    def __init__(self) -> None:
        now = time.monotonic()
        self._requests = LineBudget(*REQUESTS, now)
        self._refusals = LineBudget(*REFUSALS, now)

    async def run(self) -> None:
        """Tell the sums, now and then."""
        while True:
            await trio.sleep(SUMMARY_INTERVAL)
            self.tell_suppressed()

    def request(
        self, method: str, route: str, status: int, seconds: float, told: dict[str, Any]
    ) -> None:
        """One request is answered (a stream: has ended). ``told``: more for its line."""
        failed = status >= 400
        if not failed and route in QUIET:
            log.debug("request", method=method, route=route, status=status)
            return
        budget = self._refusals if status in REFUSED else self._requests
        if budget.take(f"{status // 100}xx", time.monotonic()):
            (log.warning if failed else log.info)(
                "request",
                method=method,
                route=route,
                status=status,
                duration_ms=round(seconds * 1000, 1),
                **told,
            )

    def connection(self, event: str, **told: Any) -> None:
        """A connection began or ended."""
        if self._requests.take("connections", time.monotonic()):
            log.info(event, **told)

    def tell_suppressed(self) -> None:
        for budget, event in (
            (self._requests, "requests_not_logged"),
            (self._refusals, "refusals_not_logged"),
        ):
            told = budget.summary()
            if told is not None:
                log.info(event, **{f"n_{name}": count for name, count in told.items()})
