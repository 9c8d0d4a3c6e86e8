"""A numbered stream of events with its readers: what a session and the workspace have in common.

Publishing is synchronous: a record goes into the ring and nobody is awaited.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import trio

from acp_gateway.config import Settings
from acp_gateway.core.envelope import NOTIFY
from acp_gateway.core.event_ring import EventRing, Kind, Record
from acp_gateway.core.outlet import Subscription
from acp_gateway.core.transcript import Transcript
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.ring_budget import RingBudget
from acp_gateway.wire.jsonrpc import notification_bytes


class Feed:
    def __init__(
        self,
        id: str,
        settings: Settings,
        budget: RingBudget,
        *,
        transcript: Transcript | None = None,
    ) -> None:
        self.id = id
        self.epoch = str(uuid.uuid4())
        """Names this numbering; a client's cursor is of use only with it."""
        self.ring = EventRing(
            settings.event_ring_size,
            settings.event_ring_bytes,
            None if transcript is None else transcript.add,
        )
        self.subs: set[Subscription] = set()
        self.streams = 0
        """Open event streams; they keep what they follow alive."""
        self.on_reader: Callable[[], None] | None = None
        """Called when a reader is let in."""
        self.over: GatewayError | None = None
        """Why it is closed or closing; None while it lives."""
        self.halted = False
        """A terminal event was the last one: event streams end behind it."""
        self.sealed = False
        """It was the last one for good: nothing is published any more."""
        self._settings = settings
        self._budget = budget

    def notice(
        self,
        kind: str,
        *,
        prompt_id: str | None = None,
        client: str | None = None,
        who: str | None = None,
        data: dict[str, Any],
    ) -> None:
        """Publish an event of the gateway's own. ``who``: the name of the client's identity."""
        if not self.id:
            return
        now = time.time()
        params: dict[str, Any] = {"kind": kind, "data": data}
        if prompt_id is not None:
            params["promptId"] = prompt_id
        if client is not None:
            params["originatorClientId"] = client
        if who is not None:
            params["originatorName"] = who
        params["_meta"] = {"serverTimestamp": int(now * 1000)}
        line = notification_bytes(NOTIFY, params)
        self.append(Record(Kind.NOTICE, kind, line, now, prompt_id, None, client, who))

    def append(self, record: Record) -> None:
        if self.sealed:
            return
        self.ring.append(record)
        self._budget.total += len(record.data)
        self._make_room()

    def _trim(self) -> None:
        ring = self.ring
        now = trio.current_time()
        stall = self._settings.stall_timeout
        floor = ring.last_id
        for sub in self.subs:
            outlet = sub.outlet
            if sub.cursor < floor and outlet is not None and outlet.progressing(now, stall):
                floor = sub.cursor
        before = ring.kept_bytes
        cap = ring.max_bytes
        if self._budget.over:
            # Over the daemon's cap every busy session gives from its own, down to a small rest.
            cap = min(cap, max(before - self._budget.excess, 256 * 1024))
        ring.trim(floor, cap)
        self._budget.total -= before - ring.kept_bytes

    def wake(self) -> None:
        """Tell the writers that the ring has grown."""
        self._make_room()
        for sub in tuple(self.subs):
            if sub.outlet is not None:
                sub.outlet.wake()

    def flush(self) -> None:
        """`wake` for the agent's reader, once for a batch of updates: what sockets take at once is
        written at once."""
        self._make_room()
        for sub in tuple(self.subs):
            if sub.outlet is not None:
                sub.outlet.flush()

    def _make_room(self) -> None:
        if self.ring.full or self._budget.over:
            self._trim()

    def seal(self) -> None:
        """What was published last is the last event: an agent that still closes is not heard."""
        self.halted = self.sealed = True
        self.wake()

    def end(self) -> None:
        """Nothing more will be published: readers end once they have read everything."""
        self.halted = self.sealed = True
        self._budget.remove(self.ring)
        for sub in self.subs:
            sub.ended = True
        self.wake()

    def admit_reader(self) -> None:
        """Room for one more reader? Raises ``subscriber_limit_exceeded``."""
        if self.over is not None:
            raise self.over
        limit = self._settings.max_subscribers
        if len(self.subs) >= limit:
            raise GatewayError(
                ErrorKind.SUBSCRIBER_LIMIT,
                f"EventBus subscriber limit reached ({limit})",
                remedy="close another stream, or raise max_subscribers",
                limit=limit,
            )
        if self.on_reader is not None:
            self.on_reader()

    def drained(self) -> None:
        """A reader has taken records from the ring."""
