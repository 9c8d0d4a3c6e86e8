"""``GET /session/{id}/events`` and ``GET /workspace/events``: numbered events over SSE, bare ASGI.

Frame: ``id:`` (numbered events only), ``event:``, one ``data:`` line with the envelope. First comes
``retry: 3000``, and a comment every 15 s. Replay and live events are the same read of the same
ring; `core.resume` decides where it begins.

A reader that is slow is warned at three quarters of its limits. It is evicted when it is over them
and its socket has taken nothing for ``stall_timeout`` as well: it comes back with its last id and
misses nothing that the ring holds. One that still reads holds up the agent instead.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextvars import copy_context
from typing import Any, Final
from urllib.parse import parse_qs

import structlog
import trio

from acp_gateway.core.envelope import sse_envelopes, synthetic
from acp_gateway.core.identity import OPEN, Identity
from acp_gateway.core.lag import Lag
from acp_gateway.core.outlet import Outlet, Slot, Subscription
from acp_gateway.core.resume import Replay, plan_replay, resync
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.feed import Feed
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.outlets import MAX_WAITING, Pump
from acp_gateway.transports.peer_stream import give_up_peer
from acp_gateway.transports.sse_writer import Send, SseWriter
from acp_gateway.wire.frames import parse_last_event_id, sse_event

log = structlog.get_logger("acp_gateway.events")

HEARTBEAT: Final = 15.0
HEARTBEAT_FRAME: Final = b": heartbeat\n\n"
RETRY_FRAME: Final = b"retry: 3000\n\n"
DEFAULT_QUEUED: Final = 256
FEWEST_QUEUED, MOST_QUEUED = 16, 2048
MAX_QUEUED_BYTES: Final = 2 * 1024 * 1024


def _frame(kind: str, data: dict[str, Any]) -> bytes:
    return sse_event(synthetic(kind, data, time.time()), kind)


def _max_queued(values: list[str] | None) -> int:
    if values is None:
        return DEFAULT_QUEUED
    text = values[-1]
    if text.isascii() and text.isdigit() and len(text) <= 5:
        wanted = int(text)
        if FEWEST_QUEUED <= wanted <= MOST_QUEUED:
            return wanted
    raise GatewayError(
        ErrorKind.INVALID_MAX_QUEUED,
        f"`maxQueued` must be a number from {FEWEST_QUEUED} to {MOST_QUEUED}",
    )


class EventStream:
    """One reader of one feed.

    Raises ``invalid_max_queued``, ``subscriber_limit_exceeded``, or why the session is over.
    """

    def __init__(
        self,
        hub: Hub,
        feed: Feed,
        headers: Mapping[str, str],
        query: str,
        identity: Identity = OPEN,
    ) -> None:
        self._identity = identity
        self.id = str(uuid.uuid4())
        options = parse_qs(query, keep_blank_values=True)
        self._lag = Lag(_max_queued(options.get("maxQueued")), MAX_QUEUED_BYTES)
        feed.admit_reader()
        self._hub = hub
        self._feed = feed
        self._wakeup = Wakeup()
        self._scope = trio.CancelScope()
        self._context = copy_context()
        self._eviction: bytes | None = None
        self._outlet = Outlet(
            sse_envelopes,
            lambda frame: frame,
            self._woken,
            max_bytes=MAX_WAITING,
            resync_line=self._fell_behind,
        )
        ring = feed.ring
        last = parse_last_event_id(headers.get("last-event-id"))
        plan = None
        if last is not None:
            plan = plan_replay(ring, last, headers.get("x-qwen-event-epoch") or None, feed.epoch)
        self._live_from = ring.last_id
        """Replay does not count as lag."""
        self._sub = Subscription(feed.id, ring, ring.last_id if plan is None else plan.start)
        feed.subs.add(self._sub)
        self._outlet.add(self._sub)
        if plan is not None:
            self._replay(plan)
        if options.get("snapshot", [""])[-1] in ("1", "true") and isinstance(feed, Session):
            self._put(_frame("session_snapshot", _snapshot(feed)), self._live_from)

    # ---- what comes before the live events ------------------------------------------------------

    def _put(self, frame: bytes, watermark: int, jump: int | None = None) -> None:
        slot = Slot(self._sub)
        slot.jump = jump
        slot.fix(watermark)
        self._outlet.fill(slot, frame)

    def _replay(self, plan: Replay) -> None:
        if plan.resync is not None:
            self._put(_frame("state_resync_required", plan.resync), plan.start)
        if plan.cut is not None:
            self._put(_frame("state_resync_required", plan.cut), plan.stop, self._live_from)
        self._put(_frame("replay_complete", plan.complete), self._live_from)
        self._hub.traffic.replayed(plan.resync, plan.cut)

    def _fell_behind(self, sub: Subscription) -> bytes:
        data = resync("ring_evicted", sub.cursor, sub.ring.first_id)
        return _frame("state_resync_required", data)

    # ---- live -----------------------------------------------------------------------------------

    def _woken(self) -> None:
        """The feed has grown, or has something to say. Synchronous: the publisher calls it."""
        outlet, sub = self._outlet, self._sub
        frames = bytes = 0
        if outlet.blocked:
            behind = max(sub.cursor, self._live_from)
            frames, bytes = sub.ring.last_id - behind, sub.ring.lag_bytes(behind)
            now = trio.current_time()
            if not outlet.progressing(now, self._hub.settings.stall_timeout):
                eviction = self._lag.eviction(frames, bytes, sub.ring.last_id)
                if eviction is not None and self._eviction is None:
                    self._evict(eviction)
                    return
        warning = self._lag.warning(frames, bytes, sub.ring.last_id)
        if warning is not None:
            self._hub.traffic.slow()
            outlet.send(_frame("slow_client_warning", warning))
        self._wakeup.set()

    def _evict(self, data: dict[str, Any]) -> None:
        self._hub.traffic.evict(data["reason"])
        log.info("stream_evicted", feed=self._feed.id, stream=self.id, reason=data["reason"])
        self._eviction = _frame("client_evicted", data)
        self._scope.cancel()
        self._context.run(give_up_peer)  # the publisher's own peer is somebody else

    def _let_go(self, reason: str, sentence: str) -> None:
        """Its token has ended: nothing more of the feed goes out."""
        if self._eviction is None:
            data = {"error": sentence, "errorKind": reason}
            self._eviction = _frame("stream_error", data)
        self._scope.cancel()
        if self._outlet.blocked:
            # A write that is stuck would hold up the end.
            self._context.run(give_up_peer)

    async def run(self, send: Send) -> None:
        """Serve until the client, its token or the session goes."""
        with self._hub.policy.keyring.holding(self._identity, self._let_go):
            await self._run(send)

    async def _run(self, send: Send) -> None:
        feed, settings = self._feed, self._hub.settings
        feed.streams += 1
        self._hub.stream_began()
        writer = SseWriter(send, settings.evict_timeout)

        def finished() -> bool:
            return feed.halted and self._sub.caught_up and not self._sub.slots

        pump = Pump(
            self._outlet,
            self._wakeup,
            writer.write,
            feed.drained,
            stall=float("inf"),
            finished=finished,
        )
        writer.moved = pump.moved

        async def pumping() -> None:
            await pump.run()
            self._scope.cancel()

        async def heartbeat() -> None:
            while True:
                await trio.sleep(HEARTBEAT)
                await writer.write((HEARTBEAT_FRAME,))

        try:
            with self._scope:
                await send(self._head())
                async with trio.open_nursery() as nursery:
                    await writer.write((RETRY_FRAME,))
                    nursery.start_soon(pumping)
                    nursery.start_soon(heartbeat)
                    self._wakeup.set()
        except* trio.TooSlowError:
            idle = round(settings.evict_timeout * 1000)
            word = "writer_idle_timeout"
            self._hub.traffic.stalled()
            data = {"reason": word, "errorKind": word, "idleForMs": idle, "timeoutMs": idle}
            self._eviction = _frame("client_evicted", data)
        finally:
            feed.streams -= 1
            feed.subs.discard(self._sub)
            self._outlet.remove(self._feed.id)
            feed.drained()
            if isinstance(feed, Session):
                feed.touch()
            try:
                await self._finish(send)
            finally:
                self._hub.stream_ended()

    async def _finish(self, send: Send) -> None:
        """The end of the response, if the client still takes it."""
        with trio.move_on_after(1):
            if self._eviction is not None:
                body = {"type": "http.response.body", "body": self._eviction, "more_body": True}
                await send(body)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _head(self) -> dict[str, Any]:
        return {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"text/event-stream"),
                (b"cache-control", b"no-cache, no-transform"),
                (b"connection", b"keep-alive"),
                (b"x-accel-buffering", b"no"),
                (b"x-qwen-event-epoch", self._feed.epoch.encode()),
                (b"x-qwen-sse-stream-id", self.id.encode()),
            ],
        }


def _snapshot(session: Session) -> dict[str, Any]:
    return {
        "sessionId": session.id,
        "currentModelId": session.state.model,
        "currentApprovalMode": session.state.mode,
        "recordingDegraded": False,
    }
