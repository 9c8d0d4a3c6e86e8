"""Outlets for the transports: framings, and the pump that writes an outlet to a peer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from acp_gateway.config import MIB
from acp_gateway.core.envelope import NOTIFY
from acp_gateway.core.event_ring import Framing, Record
from acp_gateway.core.outlet import BATCH_BYTES, Outlet, Subscription
from acp_gateway.core.resume import resync
from acp_gateway.protocol.events import PERMISSION_REQUEST
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.transports.peer_stream import PeerStream
from acp_gateway.wire.frames import sse_message, ws_head, ws_text
from acp_gateway.wire.jsonrpc import notification_bytes

MAX_WAITING = 64 * MIB
"""Bytes that may wait for one stream outside the sessions' rings."""


REMEMBERED = MIB
"""Answers and questions that a stream sends again after its ``Last-Event-ID``."""


def ws_records(records: Sequence[Record]) -> list[bytes]:
    parts: list[bytes] = []
    for record in records:
        data = record.data
        if type(data) is bytes:
            parts += (ws_head(len(data)), data)
        else:
            parts += (ws_head(len(data)), *data)
    return parts


def sse_records(records: Sequence[Record]) -> list[bytes]:
    parts: list[bytes] = []
    for record in records:
        data = record.data
        if type(data) is bytes:
            parts.append(sse_message(data, record.id))
        else:
            parts += (b"id: %d\ndata: " % record.id, *data, b"\n\n")
    return parts


def sse_records_for_qwen(records: Sequence[Record]) -> list[bytes]:
    """Qwen's client takes the request to vote for this event, and would show it twice."""
    return sse_records([each for each in records if each.name != PERMISSION_REQUEST])


def bare_records(records: Sequence[Record]) -> list[bytes]:
    """Framed by somebody else, one message at a time."""
    return [record.line + b"\n" for record in records]


def cursor_line(sub: Subscription) -> bytes:
    """Tells a client that asked for it how far it has come, one for each batch."""
    return notification_bytes(
        "_acp_gateway/cursor", {"sessionId": sub.session_id, "lastEventId": sub.cursor}
    )


def resync_line(sub: Subscription) -> bytes:
    return resync_notice(sub.session_id, resync("ring_evicted", sub.cursor, sub.ring.first_id))


def resync_notice(session_id: str, data: dict[str, Any]) -> bytes:
    """``state_resync_required`` for one ACP client."""
    told = {"sessionId": session_id, **data}
    return notification_bytes(NOTIFY, {"kind": "state_resync_required", "data": told})


def ws_outlet(wakeup: Wakeup, *, cursor: bool = False) -> Outlet:
    return Outlet(
        ws_records,
        ws_text,
        wakeup.set,
        max_bytes=MAX_WAITING,
        cursor_line=cursor_line if cursor else None,
        resync_line=resync_line,
    )


def bare_outlet(wakeup: Wakeup) -> Outlet:
    """One message to a line; the server above frames each by itself."""
    return Outlet(
        bare_records,
        lambda payload: payload + b"\n",
        wakeup.set,
        max_bytes=MAX_WAITING,
        resync_line=resync_line,
    )


def sse_outlet(wakeup: Wakeup, framing: Framing = sse_records) -> Outlet:
    return Outlet(
        framing,
        sse_message,
        wakeup.set,
        max_bytes=MAX_WAITING,
        resync_line=resync_line,
        remember_bytes=REMEMBERED,
    )


class Pump:
    """Writes one outlet to one peer, a batch for each write, until cancelled or ``finished``.

    ``send`` writes its parts one behind the other and returns when the peer's socket took them;
    ``collected`` is told after every batch (sessions that paused their agent go on then). With
    ``direct``, the stream below ``send``, `flush` writes at once what the socket takes.
    """

    def __init__(
        self,
        outlet: Outlet,
        wakeup: Wakeup,
        send: Callable[[Sequence[bytes]], Awaitable[None]],
        collected: Callable[[], None],
        *,
        stall: float,
        finished: Callable[[], bool] = lambda: False,
        direct: PeerStream | None = None,
        slow: Callable[[], None] = lambda: None,
    ) -> None:
        self.outlet = outlet
        self._direct = direct
        self._idle = False
        self._wakeup = wakeup
        self._send = send
        self._collected = collected
        self._stall = stall
        self._finished = finished
        self._slow = slow

    def moved(self) -> None:
        """The peer took bytes."""
        if self.outlet.pump is self:
            self.outlet.write_moved(trio.current_time())

    def flush(self) -> None:
        """Write without a turn of the loop between. For who has just filled the outlet's rings."""
        direct = self._direct
        if direct is not None and self._idle and direct.free:
            parts = self.outlet.collect()
            if not parts:
                return
            self._collected()
            direct.write_now(parts)
            if direct.unsent:
                self.outlet.write_began(trio.current_time())
            elif sum(map(len, parts)) < BATCH_BYTES:
                return
        self._wakeup.set()

    def _unsent(self) -> bool:
        return self._direct is not None and self._direct.unsent

    async def run(self) -> None:
        outlet = self.outlet
        outlet.pumped = True
        outlet.pump = self
        if self._direct is not None:
            outlet.flush = self.flush
        try:
            while True:
                self._idle = True
                await self._wakeup.wait()
                self._idle = False
                while (parts := outlet.collect()) or self._unsent():
                    self._collected()
                    began = trio.current_time()
                    outlet.write_began(began)
                    await self._send(parts)
                    if outlet.pump is self:
                        outlet.write_done()
                    blocked = trio.current_time() - began
                    if blocked > self._stall:
                        self._warn(blocked)
                if outlet.pump is self:
                    outlet.write_done()  # somebody else may have sent what `flush` left
                if self._finished():
                    return
        finally:
            self._idle = False
            # Another pump may have taken over while this one was still stuck in a write.
            if outlet.pump is self:
                outlet.flush = outlet.wake
                outlet.pumped = False
                outlet.write_done()
            self._collected()

    def _warn(self, blocked: float) -> None:
        self._slow()
        data = {"reason": "slow_reader", "blockedMs": round(blocked * 1000)}
        self.outlet.send(notification_bytes(NOTIFY, {"kind": "slow_client_warning", "data": data}))
