"""What came in and how it went, counted where it happens: connections, streams, requests, refusals.

Facts of the transports alone; sessions, turns, permissions and agents count for themselves (see
`runtime.ledger`). Labels come from closed sets: a route is a template and never a path.
"""

from __future__ import annotations

from typing import Final

from acp_gateway.core.tally import LONG, SHORT, Counts, Histograms
from acp_gateway.protocol.errors import GatewayError

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Traffic:
    def __init__(self) -> None:
        self.connections = Counts()
        """(transport,): ``/acp`` connections that were opened."""
        self.sockets = 0
        """TCP connections that were accepted."""
        self.open_sockets = 0
        self.event_streams = 0
        """Event streams that were opened."""
        self.requests = Histograms(SHORT)
        """(method, route, status class): seconds until the answer was out, for a stream until it
        began."""
        self.acp_requests = Histograms((*SHORT, *LONG[6:11]))
        """(method,): seconds that requests on ``/acp`` took."""
        self.refused = Counts()
        """(reason,): who did not come in, by the word of the refusal."""
        self.slow_warnings = 0
        self.evictions = Counts()
        """(reason,): readers that were cut off."""
        self.replays = Counts()
        """(outcome,): ``complete``, ``cut`` (over its budget) or ``resync`` (something was
        missing), of readers that came back with their last event id."""
        self.resyncs = Counts()
        """(reason,): of ``state_resync_required``."""

    def request(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Status 0: the client went before there was an answer; no route: it is nowhere."""
        kind = f"{status // 100}xx" if status else "gone"
        name = method if method in METHODS else "other"
        self.requests.observe(seconds, name, route or "(other)", kind)

    def refuse(self, refusal: GatewayError | None) -> None:
        """A guard said no; None: it did not."""
        if refusal is not None:
            self.refused.add(str(refusal.to_http()[1].get("code")))

    def evict(self, reason: str) -> None:
        self.evictions.add(reason)

    def stalled(self) -> None:
        """A peer took nothing for ``evict_timeout``."""
        self.evict("writer_idle_timeout")

    def slow(self) -> None:
        self.slow_warnings += 1

    def replayed(self, resync: dict[str, object] | None, cut: dict[str, object] | None) -> None:
        """``resync`` and ``cut``: data of what the reader was told, see `core.resume`."""
        outcome = "resync" if resync is not None else "cut" if cut is not None else "complete"
        self.replays.add(outcome)
        for told in (resync, cut):
            if told is not None:
                self.resyncs.add(str(told["reason"]))
