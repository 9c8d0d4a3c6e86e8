"""``/acp`` over WebSocket: one reader task, one writer task, one task for each request.

trio-websocket (its only server home) does the handshake, pings and closing on a stream that we give
it; text frames are written to that stream by the connection's pump, many in one write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from acp_gateway.core.outlet import Outlet
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.transports.acp_agent import AcpConnection, own_meta
from acp_gateway.transports.connection import Context
from acp_gateway.transports.guards import Head, decide, subprotocol
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.outlets import Pump, cursor_line, ws_outlet
from acp_gateway.transports.peer_stream import PeerStream
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


class WebSocketPeer(AcpConnection):
    """The connection of one WebSocket."""

    kind = "ws"

    def __init__(self, hub: Hub, profile: object) -> None:
        super().__init__(hub.agent, profile)
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
            self.scope.cancel()


async def serve_websocket(stream: PeerStream, hub: Hub) -> None:
    """Serve one WebSocket until it ends. Closes the stream."""
    try:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(HANDSHAKE_TIMEOUT) as handshake:
                request = await wrap_server_stream(
                    nursery,
                    stream,
                    message_queue_size=QUEUED_MESSAGES,
                    max_message_size=hub.settings.max_message_bytes,
                    receive_buffer_size=RECEIVE_BYTES,
                )
                headers = {
                    name.decode("latin-1").lower(): value.decode("latin-1")
                    for name, value in request.headers
                }
                path, _, query = request.path.partition("?")
                offered = tuple(request.proposed_subprotocols)
                headers.setdefault("sec-websocket-protocol", ",".join(offered))
                headers.setdefault("host", request._event.host)
                head = Head("GET", path, query, headers, upgrade=True)
                refusal = decide(head, hub.policy)
                profile = hub.profile_at(path)
                if refusal is None and profile is None:
                    refusal = GatewayError(
                        ErrorKind.RESOURCE_NOT_FOUND,
                        f"There is no WebSocket at {path}",
                        remedy="connect to /acp",
                    )
                if refusal is None:
                    refusal = hub.admit()
                if refusal is not None:
                    status, body = refusal.to_http()
                    await request.reject(
                        status,
                        extra_headers=[
                            (b"Content-Type", b"application/json"),
                            *([(b"Retry-After", b"5")] if status == 503 else []),
                        ],
                        body=dumps(body),
                    )
                else:
                    assert profile is not None
                    peer = WebSocketPeer(hub, profile)
                    socket = await request.accept(
                        subprotocol=subprotocol(offered),
                        extra_headers=[(b"Acp-Connection-Id", peer.id.encode())],
                    )
            if refusal is None and not handshake.cancelled_caught:
                await _serve(stream, socket, peer, hub)
            nursery.cancel_scope.cancel()
    except* (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        await trio.aclose_forcefully(stream)


async def _serve(
    stream: PeerStream, socket: WebSocketConnection, peer: WebSocketPeer, hub: Hub
) -> None:
    pump = Pump(
        peer.outlet,
        peer.wakeup,
        stream.send_all,
        peer.drained,
        stall=hub.settings.stall_timeout,
    )
    stream.on_progress = pump.moved
    hub.add(peer)
    try:
        with peer.scope:
            async with trio.open_nursery() as nursery:

                async def pumping() -> None:
                    try:
                        await pump.run()
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        nursery.cancel_scope.cancel()

                nursery.start_soon(pumping)
                nursery.start_soon(_keep_alive, socket, nursery.cancel_scope)
                nursery.start_soon(await_initialize, peer, hub)
                await _read(socket, peer, lambda c: nursery.start_soon(peer.serve, c))
                nursery.cancel_scope.cancel()
    finally:
        hub.remove(peer)
        code, reason = peer.kicked or (1000, "")
        with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_TIMEOUT):
            try:
                # What is still queued (the answer that told why) goes out before the close frame.
                while parts := peer.outlet.collect():
                    await stream.send_all(b"".join(parts))
                await socket.aclose(code, reason)
            except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
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
