"""``/acp`` over Streamable HTTP: POST a message, GET a stream, DELETE the connection.

Remote transport RFD with the leniency that real clients need: a missing ``Acp-Session-Id`` is
forgiven (RFD-strict with ``strict_acp``), the session stream may be opened before the session is
attached, a second GET of a stream takes it over. Each connection's nursery belongs to this service,
not to a request: hypercorn cancels a request when its client goes.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import copy_context
from typing import Any, Final

import attrs
import structlog
import trio

from acp_gateway.core.envelope import NOTIFY
from acp_gateway.core.event_ring import Framing
from acp_gateway.core.identity import OPEN, Identity, required_by_acp
from acp_gateway.core.outlet import Outlet, Slot, Subscription
from acp_gateway.core.resume import plan_replay
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.methods import METHODS
from acp_gateway.runtime.keyring import Entry
from acp_gateway.runtime.tracing import begin_task
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.transports.acp_agent import AcpConnection
from acp_gateway.transports.connection import Context
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.outlets import Pump, sse_outlet, sse_records, sse_records_for_qwen
from acp_gateway.transports.peer_stream import give_up_peer
from acp_gateway.transports.sse_writer import Send, SseWriter
from acp_gateway.wire.frames import SSE_KEEPALIVE, parse_last_event_id
from acp_gateway.wire.json_codec import JsonError, dumps, loads
from acp_gateway.wire.jsonrpc import (
    InvalidMessage,
    Message,
    Request,
    classify,
    error_bytes,
    notification_bytes,
)

log = structlog.get_logger("acp_gateway.http")

KEEPALIVE: Final = 15.0
ABSENT_AFTER: Final = 20.0
"""A connection without an open stream that sent nothing for this long attends to nothing."""
FLUSH: Final = 1.0
"""Time that the streams of an ending connection get for what is waiting."""
UNATTACHED_STREAM: Final = 30.0
"""How long a session stream may wait, silent, for its session to be attached."""


@attrs.frozen
class Answer:
    """A plain HTTP response."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def error_answer(error: GatewayError, id: Any = None, status: int | None = None) -> Answer:
    """A JSON-RPC error as the body, the kind's status (or another)."""
    body = error_bytes(id, error.to_jsonrpc())
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    code = error.kind.http_status if status is None else status
    if code == 503:
        headers += (("retry-after", "5"),)
    return Answer(code, body, headers)


def plain_error(status: int, code: str, message: str, remedy: str | None = None) -> Answer:
    """An error of the transport itself: JSON, but no JSON-RPC."""
    body = {"error": message, "code": code, **({"remedy": remedy} if remedy else {})}
    return Answer(status, dumps(body), (("content-type", "application/json"),))


class _Stream:
    """One outlet with at most one GET that reads it."""

    def __init__(self, framing: Framing = sse_records) -> None:
        self.wakeup = Wakeup()
        self.outlet = sse_outlet(self.wakeup, framing)
        self.reader: trio.CancelScope | None = None
        self.context = copy_context()
        """Of the reader's request."""
        self.unread_since = trio.current_time()


_QWEN_ON_SESSION: Final = frozenset(
    {
        "session/prompt",
        "session/cancel",
        "session/set_config_option",
        "session/set_mode",
        "session/set_model",
    }
)


class HttpPeer(AcpConnection):
    """The connection of one ``Acp-Connection-Id``."""

    kind = "http"

    def __init__(
        self, hub: Hub, profile: Any, *, loopback: bool, identity: Identity = OPEN
    ) -> None:
        super().__init__(hub.agent, profile, loopback=loopback, identity=identity)
        self.streams: dict[str | None, _Stream] = {None: _Stream()}
        self.ended = trio.Event()
        self.stream_ended = trio.Event()
        """Set and renewed whenever a stream has ended."""
        self.nursery: trio.Nursery | None = None
        self.entry: Entry | None = None
        self.last_used = trio.current_time()

    def stream_of(self, session_id: str | None) -> _Stream:
        stream = self.streams.get(session_id)
        if stream is None:
            stream = _Stream(sse_records_for_qwen if self.is_qwen_sdk else sse_records)
            self.streams[session_id] = stream
        return stream

    def outlet_of(self, session_id: str | None) -> Outlet:
        outlet = self.stream_of(session_id).outlet
        if outlet.over:
            self.kick(1013, "Resource limit")
        return outlet

    def answers_follow_load(self) -> bool:
        # The answer is on the connection's stream; two clients open the session's only then.
        return False

    def answers_on_session(self, method: str) -> bool:
        # Qwen's client reads these answers on the session's stream, and all others nowhere else
        # than on the connection's.
        return not self.is_qwen_sdk or method in _QWEN_ON_SESSION

    def kick(self, code: int, reason: str) -> None:
        self.overflowed = self.overflowed or code == 1013
        self.ended.set()

    def revoke(self, reason: str, sentence: str) -> None:
        super().revoke(reason, sentence)
        self.ended.set()
        for stream in self.streams.values():
            if stream.reader is not None:
                stream.reader.cancel()
                if stream.outlet.blocked:
                    # A write that is stuck would hold up the end.
                    stream.context.run(give_up_peer)

    def belongs_to(self, identity: Identity) -> bool:
        """Is it the one who opened the connection? Its id alone opens nothing."""
        mine = self.identity
        return (mine.kind, mine.party, mine.scope) == (
            identity.kind,
            identity.party,
            identity.scope,
        )

    def spawn(self, context: Context) -> None:
        if self.nursery is not None:
            self.nursery.start_soon(self.serve, context)

    @property
    def waiting_bytes(self) -> int:
        return sum(stream.outlet.waiting_bytes for stream in self.streams.values())

    @property
    def streaming(self) -> bool:
        return any(stream.reader is not None for stream in self.streams.values())

    async def flush(self) -> None:
        """Let the open streams carry what is waiting, and end them; bounded."""
        for stream in self.streams.values():
            stream.wakeup.set()
        with trio.move_on_after(FLUSH):
            while self.streaming:
                await self.stream_ended.wait()

    @property
    def present(self) -> bool:
        # A client that vanished without DELETE leaves no open stream behind.
        return self.streaming or trio.current_time() - self.last_used < ABSENT_AFTER

    def give_way(self) -> bool:
        # A client that vanished without DELETE leaves no open stream behind.
        if self.present or self.ended.is_set():
            return False
        self.ended.set()
        return True

    def forget_streams(self) -> None:
        """Drop the streams of sessions that are over and read."""
        now = trio.current_time()
        for session_id, stream in tuple(self.streams.items()):
            if stream.reader is None and now - stream.unread_since > UNATTACHED_STREAM:
                for name, sub in tuple(stream.outlet.subs.items()):
                    if sub.ended:
                        stream.outlet.remove(name)
            if session_id is not None and stream.reader is None and session_id not in self.subs:
                outlet = stream.outlet
                if not outlet.waiting_messages and not outlet.subs:
                    del self.streams[session_id]


class AcpHttp:
    """The service behind the routes; `run` owns every connection's tasks."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._keyring = hub.policy.keyring
        self._peers: dict[str, HttpPeer] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def _own(self, peer: HttpPeer, *, task_status: trio.TaskStatus[None]) -> None:
        """The life of one connection."""
        self._peers[peer.id] = peer
        entry = peer.entry = self._keyring.hold(peer.identity, peer.revoke)
        begin_task(connection=peer.label)
        try:
            async with trio.open_nursery() as nursery:
                peer.nursery = nursery
                nursery.start_soon(self._expire, peer)
                task_status.started()
                await peer.ended.wait()
                del self._peers[peer.id]  # nothing new is taken in
                if not peer.revoked:
                    await peer.flush()
                nursery.cancel_scope.cancel()
        finally:
            self._keyring.release(entry)
            peer.nursery = None
            self._peers.pop(peer.id, None)
            self._hub.remove(peer)
            for stream in peer.streams.values():
                if stream.reader is not None:
                    stream.reader.cancel()
            peer.release()

    async def _expire(self, peer: HttpPeer) -> None:
        while True:
            await trio.sleep(5)
            peer.forget_streams()
            idle = trio.current_time() - peer.last_used
            if not peer.streaming and idle > self._hub.settings.http_connection_idle:
                log.info("connection_expired", connection=peer.label)
                peer.ended.set()

    # ---- POST -----------------------------------------------------------------------------------

    async def post(
        self,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        loopback: bool,
        caller: str,
        identity: Identity = OPEN,
    ) -> Answer:
        """One message of a client. Header names are in lower case; ``caller``: see `Connection`.

        Raises ``auth_required``.
        """
        # The body may have taken its time.
        self._keyring.check(identity)
        profile = self._hub.profile_at(path)
        if profile is None:
            return plain_error(404, "not_found", f"There is no agent at {path}")
        media = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            return plain_error(
                415, "unsupported_media_type", "Content-Type must be application/json"
            )
        parsed = _parse(body)
        if isinstance(parsed, Answer):
            return parsed
        message = parsed
        if isinstance(message, Request) and message.method == "initialize":
            return await self._initialize(profile, message, loopback, caller, identity)
        id = message.id if isinstance(message, Request) else None
        connection_id = headers.get("acp-connection-id")
        if not connection_id:
            error = GatewayError(
                ErrorKind.INVALID_REQUEST,
                "Missing Acp-Connection-Id",
                remedy="initialize first and send the Acp-Connection-Id of its answer",
            )
            return error_answer(error, id)
        peer = self._peer(connection_id, identity)
        if peer is None:
            return error_answer(_unknown_connection(), id)
        peer.last_used = trio.current_time()
        peer.loopback, peer.caller = loopback, caller
        mismatch = self._session_header(message, headers.get("acp-session-id"))
        if mismatch is not None:
            return error_answer(mismatch, id)
        if not peer.is_qwen_sdk:
            peer.receive(message, peer.spawn)
            return Answer(202)
        return await self._answer_qwen(peer, message)

    async def _answer_qwen(self, peer: HttpPeer, message: Message) -> Answer:
        """Qwen's client waits for an answer on a stream only once it has the 202, and so misses one
        that comes at the same time; it takes the answer as the POST's body as well. Prompts take
        long enough, and their answers have a place among the events.
        """
        contexts: list[Context] = []

        def spawn(context: Context) -> None:
            context.direct = context.turn is None
            contexts.append(context)
            peer.spawn(context)

        peer.receive(message, spawn)
        context = contexts[0] if contexts else None
        if context is None or not context.direct or peer.nursery is None:
            return Answer(202)
        await context.over.wait()
        if context.payload is None:
            return Answer(202)
        return Answer(200, context.payload, (("content-type", "application/json"),))

    def _session_header(self, message: Message, header: str | None) -> GatewayError | None:
        """RFD: header and params name the same session; the header may miss unless strict."""
        params = getattr(message, "params", None)
        named = params.get("sessionId") if isinstance(params, dict) else None
        method = getattr(message, "method", None)
        if header and isinstance(named, str) and named != header:
            return GatewayError(
                ErrorKind.INVALID_REQUEST, "Acp-Session-Id differs from params.sessionId"
            )
        row = METHODS.get(method) if isinstance(method, str) else None
        scoped = row is not None and row.scope == "session"
        if self._hub.settings.strict_acp and scoped and not header:
            return GatewayError(
                ErrorKind.INVALID_REQUEST,
                "Missing Acp-Session-Id",
                remedy="send the session's id in the header as well (--strict-acp)",
            )
        return None

    def _peer(self, connection_id: str, identity: Identity) -> HttpPeer | None:
        """The connection, if it is this one's; a newer token of its party keeps it open."""
        peer = self._peers.get(connection_id)
        if peer is None or not peer.belongs_to(identity):
            return None
        before, after = peer.identity.expires_at, identity.expires_at
        if before is not None and after is not None and before < after and peer.entry is not None:
            peer.identity = identity
            self._keyring.renewed(peer.entry, identity)
        return peer

    async def _initialize(
        self, profile: Any, request: Request, loopback: bool, caller: str, identity: Identity
    ) -> Answer:
        # Before a connection is made, which `Connection.receive` would ask: whose token may nothing
        # shall hold none.
        try:
            identity.demand(required_by_acp(request.method))
        except GatewayError as exc:
            return error_answer(exc, request.id)
        refusal = self._hub.admit()
        if refusal is not None:
            return error_answer(refusal, request.id)
        assert self._nursery is not None
        peer = HttpPeer(self._hub, profile, loopback=loopback, identity=identity)
        peer.caller = caller
        peer.greeted = True
        self._hub.add(peer)  # counted before anything is awaited
        await self._nursery.start(self._own, peer)
        context = Context(peer, request)
        payload = None
        try:
            payload = await peer.answer_to(context)
        finally:
            if payload is None or not peer.initialized:
                peer.ended.set()
        headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
        if peer.initialized:
            headers += (("acp-connection-id", peer.id),)
        # An error of initialize is a JSON-RPC error with status 200, as other servers have it.
        return Answer(200, payload, headers)

    # ---- DELETE ---------------------------------------------------------------------------------

    def delete(self, path: str, headers: Mapping[str, str], identity: Identity = OPEN) -> Answer:
        """End the connection; its sessions linger and can be loaded again."""
        connection_id = headers.get("acp-connection-id")
        if not connection_id:
            error = GatewayError(ErrorKind.INVALID_REQUEST, "Missing Acp-Connection-Id")
            return error_answer(error)
        peer = self._peer(connection_id, identity)
        if peer is None:
            return error_answer(_unknown_connection())
        peer.ended.set()
        return Answer(202)

    # ---- GET ------------------------------------------------------------------------------------

    async def stream(
        self, headers: Mapping[str, str], send: Send, identity: Identity = OPEN
    ) -> Answer | None:
        """Serve a stream until it ends, or the refusal to send instead."""
        accept = headers.get("accept", "")
        if "text/event-stream" not in accept.lower():
            return plain_error(406, "not_acceptable", "Accept must include text/event-stream")
        connection_id = headers.get("acp-connection-id")
        if not connection_id:
            return plain_error(
                400,
                "invalid_request",
                "Missing Acp-Connection-Id",
                "POST an initialize request first; for a WebSocket send an Upgrade",
            )
        peer = self._peer(connection_id, identity)
        if peer is None:
            return error_answer(_unknown_connection())
        session_id = headers.get("acp-session-id") or None
        if session_id is not None and session_id not in peer.subs and self._hub.settings.strict_acp:
            return error_answer(self._hub.manager.not_found(session_id))
        await self._run_stream(peer, session_id, headers, send)
        return None

    async def _run_stream(
        self, peer: HttpPeer, session_id: str | None, headers: Mapping[str, str], send: Send
    ) -> None:
        stream = peer.stream_of(session_id)
        if stream.reader is not None:
            stream.reader.cancel()  # the newest reader wins: it is a reconnect
        scope = stream.reader = trio.CancelScope()
        stream.context = copy_context()
        if session_id is not None:
            self._first_reading(peer, session_id)
        # From here on the ring waits for this reader.
        stream.outlet.pumped = True
        peer.last_used = trio.current_time()
        self._rewind(peer, session_id, headers)
        writer = SseWriter(send, self._hub.settings.evict_timeout)
        pump = Pump(
            stream.outlet,
            stream.wakeup,
            writer.write,
            lambda: self._drained(peer, session_id),
            stall=self._hub.settings.stall_timeout,
            finished=peer.ended.is_set,
            slow=self._hub.traffic.slow,
        )
        writer.moved = pump.moved

        async def pumping() -> None:
            await pump.run()
            scope.cancel()

        try:
            with scope:
                await send(self._head(peer, session_id))
                async with trio.open_nursery() as nursery:
                    await writer.write((SSE_KEEPALIVE,))
                    nursery.start_soon(pumping)
                    nursery.start_soon(self._keep_alive, writer.write)
                    if session_id is not None:
                        nursery.start_soon(self._await_attach, peer, session_id, scope)
                    stream.wakeup.set()
                    await trio.sleep_forever()
        except* trio.TooSlowError:
            self._hub.traffic.stalled()
            log.info("stream_evicted", connection=peer.label, session_id=session_id)
        finally:
            if stream.reader is scope:
                stream.reader = None
                stream.outlet.pumped = False
                stream.unread_since = trio.current_time()
            peer.stream_ended.set()
            peer.stream_ended = trio.Event()
            peer.last_used = trio.current_time()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _head(self, peer: HttpPeer, session_id: str | None) -> dict[str, Any]:
        session = self._hub.manager.sessions.get(session_id or "")
        epoch = (
            []
            if session is None
            else [
                (b"acp-event-epoch", session.epoch.encode()),
                (b"x-qwen-event-epoch", session.epoch.encode()),
            ]
        )
        return {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"text/event-stream"),
                (b"cache-control", b"no-cache, no-transform"),
                (b"x-accel-buffering", b"no"),
                (b"acp-connection-id", peer.id.encode()),
                *epoch,
            ],
        }

    def _first_reading(self, peer: HttpPeer, session_id: str) -> None:
        """History stood still while the stream was not open; the ring may have gone on."""
        sub, session = peer.subs.get(session_id), peer.session(session_id)
        if sub is None or session is None or sub.read or not sub.from_start:
            return
        if sub.cursor + 1 < sub.ring.first_id:
            session.rebase(sub)

    def _rewind(self, peer: HttpPeer, session_id: str | None, headers: Mapping[str, str]) -> None:
        """``Last-Event-ID``: go on behind it, and say what is missing and where the replay ends.

        0 on a stream that was never read is a client's way to say that it has nothing: then the
        whole history comes, as it would without.
        """
        sub, session = peer.subs.get(session_id or ""), peer.session(session_id or "")
        last = parse_last_event_id(headers.get("last-event-id"))
        if sub is None or session is None or last is None:
            return
        epoch = headers.get("x-qwen-event-epoch") or None
        plan = plan_replay(sub.ring, last, epoch, session.epoch, budget=sys.maxsize)
        outlet = peer.stream_of(session_id).outlet
        if last == 0 and not sub.read:
            _tell(outlet, sub, "replay_complete", plan.complete, plan.stop)
            return
        outlet.rewind(sub, plan.start)
        self._hub.traffic.replayed(plan.resync, plan.cut)
        if plan.resync is not None:
            _tell(outlet, sub, "state_resync_required", plan.resync, plan.start)
        _tell(outlet, sub, "replay_complete", plan.complete, plan.stop)

    def _drained(self, peer: HttpPeer, session_id: str | None) -> None:
        session = peer.session(session_id) if session_id is not None else None
        if session is not None:
            session.drained()

    async def _keep_alive(self, write: Callable[[Sequence[bytes]], Awaitable[None]]) -> None:
        while True:
            await trio.sleep(KEEPALIVE)
            await write((SSE_KEEPALIVE,))

    async def _await_attach(self, peer: HttpPeer, session_id: str, scope: trio.CancelScope) -> None:
        while True:
            await trio.sleep(UNATTACHED_STREAM)
            if session_id in peer.subs:
                return
            if not peer.loading(session_id):
                scope.cancel()


def _tell(
    outlet: Outlet, sub: Subscription, kind: str, data: dict[str, Any], watermark: int
) -> None:
    """An event of this stream alone, behind the event ``watermark``."""
    slot = Slot(sub)
    slot.once = True
    slot.fix(watermark)
    params = {"kind": kind, "data": {"sessionId": sub.session_id, **data}}
    outlet.fill(slot, notification_bytes(NOTIFY, params))


def _unknown_connection() -> GatewayError:
    return GatewayError(
        ErrorKind.CONNECTION_NOT_FOUND,
        "Unknown Acp-Connection-Id",
        remedy="the connection has ended: initialize again and load the session",
    )


def _parse(body: bytes) -> Message | Answer:
    try:
        value = loads(body)
    except JsonError as exc:
        error = GatewayError(ErrorKind.PARSE_ERROR, f"Invalid JSON: {exc}")
        return error_answer(error)
    if isinstance(value, list):
        error = GatewayError(
            ErrorKind.BATCH_UNSUPPORTED,
            "JSON-RPC batches are not supported",
            remedy="POST one message at a time",
        )
        return error_answer(error)
    try:
        return classify(value)
    except InvalidMessage as exc:
        error = GatewayError(ErrorKind.INVALID_REQUEST, f"Invalid request: {exc.reason}")
        return error_answer(error, exc.id)
