"""``/acp`` over WebSocket: one reader task, one writer task, one task for each request.

trio-websocket (its only server home) does the handshake, pings and closing on a stream that we give
it; text frames are written to that stream by the connection's pump, many in one write.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog
import trio
from structlog.contextvars import bind_contextvars
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    wrap_server_stream,
)

from acp_gateway.config_access import UNIX_PEER
from acp_gateway.core.identity import OPEN, Identity
from acp_gateway.core.outlet import Outlet
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.transports.acp_agent import AcpConnection, own_meta
from acp_gateway.transports.client_address import caller_key, client_of
from acp_gateway.transports.connection import Context
from acp_gateway.transports.guards import (
    Head,
    bad_head,
    decide,
    identity_of,
    renew_keys,
    subprotocol,
)
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.keep_alive import KeepAlive
from acp_gateway.transports.outlets import Pump, cursor_line, ws_outlet
from acp_gateway.transports.peer_stream import PeerStream
from acp_gateway.wire.frames import CLOSE_FRAME, ws_close
from acp_gateway.wire.json_codec import JsonError, dumps, loads
from acp_gateway.wire.jsonrpc import (
    InvalidMessage,
    Message,
    Request,
    classify,
    error_bytes,
)

log = structlog.get_logger("acp_gateway.ws")

RECEIVE_BYTES: Final = 64 * 1024
QUEUED_MESSAGES: Final = 8
PING_FRAME: Final = b"\x89\x00"
CLOSE_TIMEOUT: Final = 5.0
REVOKED_TIMEOUT: Final = 0.5
SHUTDOWN_TIMEOUT: Final = 1.0
GOING_AWAY: Final = 1001
_VIOLATIONS: Final = frozenset({1002, 1003, 1007, 1009})


Take = Callable[[str, Any, Callable[[Context], None]], None]


class WebSocketPeer(AcpConnection):
    """The connection of one WebSocket."""

    kind = "ws"

    def __init__(
        self,
        hub: Hub,
        profile: object,
        *,
        loopback: bool,
        identity: Identity = OPEN,
        framed: _ClosingStream | None = None,
        scope: trio.CancelScope | None = None,
    ) -> None:
        super().__init__(hub.agent, profile, loopback=loopback, identity=identity)
        self.framed = framed
        self._patience = hub.patience
        self.wakeup = Wakeup()
        self.outlet = ws_outlet(self.wakeup)
        self.kicked: tuple[int, str] | None = None
        self.scope = trio.CancelScope() if scope is None else scope
        """Around the reading; its deadline is that of whatever is awaited next."""

    def outlet_of(self, session_id: str | None) -> Outlet:
        if self.outlet.over:
            self.kick(1013, "Resource limit")
        return self.outlet

    @property
    def waiting_bytes(self) -> int:
        return self.outlet.waiting_bytes

    def drained(self) -> None:
        """A batch was collected: sessions that paused their agent may go on."""
        for session in self.attached:
            session.drained()

    def kick(self, code: int, reason: str) -> None:
        self.overflowed = self.overflowed or code == 1013
        if self.kicked is None:
            self.kicked = (code, reason)
            # What is queued (the answer that tells why) goes out first, if the peer takes it.
            self.scope.deadline = trio.current_time() + CLOSE_TIMEOUT
            self.wakeup.set()

    def revoke(self, reason: str, sentence: str) -> None:
        super().revoke(reason, sentence)
        self.kicked = (1008, sentence)
        if self.outlet.blocked and self.framed is not None:
            # In the middle of a frame that it does not take: there is no room for a goodbye.
            self.framed.give_up()
        self.scope.cancel()

    @property
    def patience(self) -> float:
        """Seconds that it gets to take the close frame and to answer it."""
        if self.revoked:
            return REVOKED_TIMEOUT
        # A second signal may have ended the library's reader: no answer would be seen.
        goes_away = self.kicked is not None and self.kicked[0] == GOING_AWAY
        return SHUTDOWN_TIMEOUT if goes_away else CLOSE_TIMEOUT

    def is_kicked(self) -> bool:
        return self.kicked is not None

    def await_initialize(self, hub: Hub) -> None:
        self._patience.wait_for(
            self.framed or self,
            hub.settings.initialize_timeout,
            partial(self.kick, 1002, "Initialize timeout"),
        )

    def greet(self) -> None:
        """The request that must be the first has come."""
        self.greeted = True
        self._patience.over(self.framed or self)

    def farewell(self) -> tuple[int, str]:
        """Code and reason of the close frame."""
        return self.kicked or (1000, "")


class _ClosingStream(trio.abc.Stream):
    """What trio-websocket is given: tells a peer that broke the protocol why the stream closes.

    The library closes the stream without a close frame then (RFC 6455 §7.1.7 wants one).
    """

    def __init__(self, stream: PeerStream) -> None:
        self.stream = stream
        self._told = False
        self.socket: WebSocketConnection | None = None
        self.keep_alive: KeepAlive | None = None

    async def ping(self) -> None:
        if not self.stream.free_of_writes:
            # It reads: a write that is stuck ends the connection by itself.
            if self.keep_alive is not None:
                self.keep_alive.heard(self)
            return
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.stream.send_at_once(PING_FRAME)

    def give_up(self) -> None:
        self.stream.give_up()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self.stream.receive_some(max_bytes)
        if self.keep_alive is not None:
            self.keep_alive.heard(self)
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        # The library's own lock was a checkpoint.
        if self.socket is not None and data and data[0] == CLOSE_FRAME:
            self._told = True
        await self.stream.send_at_once(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.tell_why()
        await self.stream.aclose()

    async def tell_why(self) -> None:
        """Both the library's reader and ours come here, in either order, and may be cancelled."""
        closed = None if self.socket is None else self.socket.closed
        if closed is None or closed.code not in _VIOLATIONS or self._told:
            return
        self._told = True
        with (
            trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_TIMEOUT),
            suppress(trio.BrokenResourceError, trio.ClosedResourceError, AttributeError),
        ):
            await self.stream.send_at_once(ws_close(closed.code, closed.reason or ""))
            await self.stream.send_eof()


async def serve_websocket(stream: PeerStream, hub: Hub) -> None:
    """Serve one WebSocket until it ends. Closes the stream."""
    framed = _ClosingStream(stream)
    scope = trio.CancelScope()
    hub.patience.wait_for(framed, hub.settings.header_timeout, scope.cancel)
    try:
        async with trio.open_nursery() as nursery:
            with scope:
                request = await wrap_server_stream(
                    nursery,
                    framed,
                    message_queue_size=QUEUED_MESSAGES,
                    max_message_size=hub.settings.max_message_bytes,
                    receive_buffer_size=RECEIVE_BYTES,
                )
                peer = await _peer_for(request, hub, framed, scope)
                if isinstance(peer, WebSocketPeer):
                    await _serve(request, peer, hub, nursery)
                else:
                    await _refuse(request, peer)
            nursery.cancel_scope.cancel()
    except* (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        hub.patience.over(framed)


async def _peer_for(
    request: WebSocketRequest, hub: Hub, framed: _ClosingStream, scope: trio.CancelScope
) -> WebSocketPeer | GatewayError:
    """The connection that this handshake opens, or why it must not."""
    headers = {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in request.headers
    }
    # The library takes these two out of the headers.
    headers.setdefault("sec-websocket-protocol", ",".join(request.proposed_subprotocols))
    headers.setdefault("host", request._event.host)
    path, _, query = request.path.partition("?")
    path = hub.policy.route(path)
    peer_host = framed.stream.peer_host
    client = client_of(peer_host, headers, request.headers, hub.proxies)
    unix = peer_host == UNIX_PEER
    head = Head("GET", path, query, headers, upgrade=True, site=client.site, unix=unix)
    limit = hub.settings.max_header_bytes
    refusal = bad_head(len(request.path), request.headers, limit)
    if refusal is None:
        await renew_keys(head, hub.policy)
        refusal = decide(head, hub.policy)
    if refusal is not None:
        hub.traffic.refuse(refusal)
        return refusal
    profile = hub.profile_at(path)
    if profile is None:
        return GatewayError(
            ErrorKind.RESOURCE_NOT_FOUND,
            f"There is no WebSocket at {path}",
            remedy="connect to /acp",
        )
    refusal = hub.admit()
    if refusal is not None:
        return refusal
    identity = identity_of(head, hub.policy)
    peer = WebSocketPeer(
        hub, profile, loopback=client.local, identity=identity, framed=framed, scope=scope
    )
    peer.caller = caller_key(client.address, identity.party)
    return peer


async def _refuse(request: WebSocketRequest, refusal: GatewayError) -> None:
    status, body = refusal.to_http()
    headers = [(b"Content-Type", b"application/json")]
    if status == 503:
        headers.append((b"Retry-After", b"5"))
    await request.reject(status, extra_headers=headers, body=dumps(body))


async def _serve(
    request: WebSocketRequest, peer: WebSocketPeer, hub: Hub, nursery: trio.Nursery
) -> None:
    framed = peer.framed
    assert framed is not None
    bind_contextvars(connection=peer.label)
    pump = Pump(
        peer.outlet,
        peer.wakeup,
        framed.stream.send_parts,
        peer.drained,
        stall=hub.settings.stall_timeout,
        finished=peer.is_kicked,
        direct=framed.stream,
        slow=hub.traffic.slow,
    )
    framed.stream.on_progress = pump.moved
    pumping = trio.CancelScope()
    handle: Take = handle_text
    if hub.wire is not None:
        from acp_gateway.transports.wire_tap import traced_socket

        handle = traced_socket(hub.wire, peer, request, handle_text)

    async def write() -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError), pumping:
            await pump.run()
        peer.scope.cancel()

    hub.add(peer)
    entry = hub.policy.keyring.hold(peer.identity, peer.revoke)
    try:
        framed.socket = socket = await request.accept(
            subprotocol=subprotocol(request.proposed_subprotocols),
            extra_headers=[(b"Acp-Connection-Id", peer.id.encode())],
        )
        framed.keep_alive = hub.keep_alive
        hub.keep_alive.heard(framed)
        peer.await_initialize(hub)
        nursery.start_soon(write)
        await _read(socket, peer, handle, lambda context: nursery.start_soon(peer.serve, context))
    finally:
        hub.policy.keyring.release(entry)
        framed.keep_alive = None
        hub.keep_alive.forget(framed)
        if framed.socket is None or framed.socket.closed is not None:
            await framed.tell_why()
        else:
            pumping.cancel()
            peer.drop_requests()
            with (
                trio.CancelScope(shield=True, deadline=trio.current_time() + peer.patience),
                suppress(ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError),
            ):
                await framed.socket.aclose(*peer.farewell())
        peer.release()
        hub.remove(peer)


async def _read(
    socket: WebSocketConnection,
    peer: WebSocketPeer,
    handle: Take,
    spawn: Callable[[Context], None],
) -> None:
    while True:
        try:
            data = await socket.get_message()
        except ConnectionClosed:
            return
        if isinstance(data, str):  # binary frames are ignored (remote transport RFD)
            handle(data, peer, spawn)


def handle_text(data: str, peer: WebSocketPeer, spawn: Callable[[Context], None]) -> None:
    """One text message of a client, in wire order."""
    message = _parse(data, peer)
    if message is None:
        return
    if not peer.greeted:
        if not (isinstance(message, Request) and message.method == "initialize"):
            error = GatewayError(
                ErrorKind.NOT_INITIALIZED,
                "First message must be initialize",
                remedy="send an initialize request first",
            )
            id = message.id if isinstance(message, Request) else None
            peer.outlet.send(error_bytes(id, error.to_jsonrpc()))
            peer.kick(1002, "Protocol error")
            return
        peer.greet()
        params = message.params if isinstance(message.params, dict) else {}
        if own_meta(params).get("cursor") is True:
            peer.outlet.tell_cursors(cursor_line)
    peer.receive(message, spawn)


def _parse(data: str, peer: WebSocketPeer) -> Message | None:
    try:
        value = loads(data)
    except JsonError as exc:
        error = GatewayError(ErrorKind.PARSE_ERROR, f"Invalid JSON: {exc}")
        peer.outlet.send(error_bytes(None, error.to_jsonrpc()))
        return None
    if isinstance(value, list):
        error = GatewayError(
            ErrorKind.BATCH_UNSUPPORTED,
            "JSON-RPC batches are not supported",
            remedy="send one message in each frame",
        )
        peer.outlet.send(error_bytes(None, error.to_jsonrpc()))
        return None
    try:
        return classify(value)
    except InvalidMessage as exc:
        error = GatewayError(ErrorKind.INVALID_REQUEST, f"Invalid request: {exc.reason}")
        peer.outlet.send(error_bytes(exc.id, error.to_jsonrpc()))
        return None
