"""``/acp`` over WebSocket: one reader task, one writer task, one task for each request.

trio-websocket (its only server home) does the handshake, pings and closing on a stream that we give
it; text frames are written to that stream by the connection's pump, many in one write.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog
import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    wrap_server_stream,
)

from acp_gateway.core.outlet import Outlet
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.transports.acp_agent import AcpConnection, own_meta
from acp_gateway.transports.connection import Context
from acp_gateway.transports.guards import Head, decide, is_loopback_address, subprotocol
from acp_gateway.transports.hub import Hub
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
PING_INTERVAL: Final = 30.0
PONG_TIMEOUT: Final = 30.0
HANDSHAKE_TIMEOUT: Final = 10.0
CLOSE_TIMEOUT: Final = 5.0
_VIOLATIONS: Final = frozenset({1002, 1003, 1007, 1009})


class WebSocketPeer(AcpConnection):
    """The connection of one WebSocket."""

    kind = "ws"

    def __init__(self, hub: Hub, profile: object, *, loopback: bool) -> None:
        super().__init__(hub.agent, profile, loopback=loopback)
        self.wakeup = Wakeup()
        self.outlet = ws_outlet(self.wakeup)
        self.kicked: tuple[int, str] | None = None
        self.scope = trio.CancelScope()

    def outlet_of(self, session_id: str | None) -> Outlet:
        if self.outlet.over:
            self.kick(1013, "Resource limit")
        return self.outlet

    def drained(self) -> None:
        """A batch was collected: sessions that paused their agent may go on."""
        for session in self.attached:
            session.drained()

    def kick(self, code: int, reason: str) -> None:
        if self.kicked is None:
            self.kicked = (code, reason)
            # What is queued (the answer that tells why) goes out first, if the peer takes it.
            self.scope.deadline = trio.current_time() + CLOSE_TIMEOUT
            self.wakeup.set()


class _ClosingStream(trio.abc.Stream):
    """What trio-websocket is given: tells a peer that broke the protocol why the stream closes.

    The library closes the stream without a close frame then (RFC 6455 §7.1.7 wants one).
    """

    def __init__(self, stream: PeerStream) -> None:
        self._stream = stream
        self._told = False
        self.socket: WebSocketConnection | None = None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.socket is not None and data and data[0] == CLOSE_FRAME:
            self._told = True
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        closed = None if self.socket is None else self.socket.closed
        if closed is not None and closed.code in _VIOLATIONS and not self._told:
            self._told = True
            with (
                trio.CancelScope(shield=True),  # our reader ends in this very moment
                trio.move_on_after(CLOSE_TIMEOUT),
                suppress(trio.BrokenResourceError, trio.ClosedResourceError, AttributeError),
            ):
                await self._stream.send_all(ws_close(closed.code, closed.reason or ""))
                await self._stream.send_eof()
        await self._stream.aclose()


async def serve_websocket(stream: PeerStream, hub: Hub) -> None:
    """Serve one WebSocket until it ends. Closes the stream."""
    peer: WebSocketPeer | GatewayError | None = None
    try:
        async with trio.open_nursery() as nursery:
            framed = _ClosingStream(stream)
            with trio.move_on_after(HANDSHAKE_TIMEOUT):
                request = await wrap_server_stream(
                    nursery,
                    framed,
                    message_queue_size=QUEUED_MESSAGES,
                    max_message_size=hub.settings.max_message_bytes,
                    receive_buffer_size=RECEIVE_BYTES,
                )
                peer = _peer_for(request, hub, is_loopback_address(stream.peer_host))
                if isinstance(peer, WebSocketPeer):
                    hub.add(peer)
                    framed.socket = await request.accept(
                        subprotocol=subprotocol(request.proposed_subprotocols),
                        extra_headers=[(b"Acp-Connection-Id", peer.id.encode())],
                    )
                else:
                    await _refuse(request, peer)
            if isinstance(peer, WebSocketPeer) and framed.socket is not None:
                await _serve(stream, framed.socket, peer, hub)
            nursery.cancel_scope.cancel()
    except* (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        if isinstance(peer, WebSocketPeer):
            hub.remove(peer)
        await trio.aclose_forcefully(stream)


def _peer_for(request: WebSocketRequest, hub: Hub, loopback: bool) -> WebSocketPeer | GatewayError:
    """The connection that this handshake opens, or why it must not."""
    headers = {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in request.headers
    }
    # The library takes these two out of the headers.
    headers.setdefault("sec-websocket-protocol", ",".join(request.proposed_subprotocols))
    headers.setdefault("host", request._event.host)
    path, _, query = request.path.partition("?")
    refusal = decide(Head("GET", path, query, headers, upgrade=True), hub.policy)
    if refusal is not None:
        return refusal
    profile = hub.profile_at(path)
    if profile is None:
        return GatewayError(
            ErrorKind.RESOURCE_NOT_FOUND,
            f"There is no WebSocket at {path}",
            remedy="connect to /acp",
        )
    return hub.admit() or WebSocketPeer(hub, profile, loopback=loopback)


async def _refuse(request: WebSocketRequest, refusal: GatewayError) -> None:
    status, body = refusal.to_http()
    headers = [(b"Content-Type", b"application/json")]
    if status == 503:
        headers.append((b"Retry-After", b"5"))
    await request.reject(status, extra_headers=headers, body=dumps(body))


async def _serve(
    stream: PeerStream, socket: WebSocketConnection, peer: WebSocketPeer, hub: Hub
) -> None:
    pump = Pump(
        peer.outlet,
        peer.wakeup,
        stream.send_all,
        peer.drained,
        stall=hub.settings.stall_timeout,
        finished=lambda: peer.kicked is not None,
    )
    stream.on_progress = pump.moved
    try:
        with peer.scope:
            async with trio.open_nursery() as nursery:

                async def pumping() -> None:
                    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        await pump.run()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(pumping)
                nursery.start_soon(_keep_alive, socket, nursery.cancel_scope)
                nursery.start_soon(await_initialize, peer, hub)
                await _read(socket, peer, lambda c: nursery.start_soon(peer.serve, c))
                nursery.cancel_scope.cancel()
    finally:
        code, reason = peer.kicked or (1000, "")
        with (
            trio.CancelScope(shield=True),
            trio.move_on_after(CLOSE_TIMEOUT),
            suppress(ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            await socket.aclose(code, reason)
        peer.release()


async def _read(
    socket: WebSocketConnection, peer: WebSocketPeer, spawn: Callable[[Context], None]
) -> None:
    while True:
        try:
            data = await socket.get_message()
        except ConnectionClosed:
            return
        if isinstance(data, str):  # binary frames are ignored (remote transport RFD)
            handle_text(data, peer, spawn)


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
        peer.greeted = True
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


async def _keep_alive(socket: WebSocketConnection, scope: trio.CancelScope) -> None:
    try:
        while True:
            await trio.sleep(PING_INTERVAL)
            with trio.fail_after(PONG_TIMEOUT):
                await socket.ping()
    except (trio.TooSlowError, ConnectionClosed):
        scope.cancel()


async def await_initialize(peer: WebSocketPeer, hub: Hub) -> None:
    await trio.sleep(hub.settings.initialize_timeout)
    if not peer.greeted:
        peer.kick(1002, "Initialize timeout")
