"""HTTP connections, served by hypercorn (its home), at the cost that a small request deserves.

hypercorn's way costs a task for each wait between two requests, a memory channel for each request,
and three writes for each response. Here `patience` looks after the waits, a request's messages lie
in an `_Inbox`, and the parts of a response that are there together are one write. The HTTP itself
is hypercorn's, h11's and h2's. What is overridden is not a public interface: the version is pinned
and a test fails when it changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from time import time
from typing import Any, Final

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.events import Request, StreamClosed
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr, suppress_body

from acp_gateway.config_access import UNIX_PEER
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.patience import Patience
from acp_gateway.transports.peer_stream import PeerStream, TlsPeerStream
from acp_gateway.transports.request_body import WHEN_GONE
from acp_gateway.wire.frames import Bytes
from acp_gateway.wire.json_codec import dumps

Message = dict[str, Any]
_UNREADABLE: Final = {
    400: ("invalid_request", "This is no HTTP request"),
    431: ("headers_too_large", "The head of the request is too large"),
}


class HttpServer:
    """Serves an ASGI application on connections that somebody else accepted."""

    def __init__(self, asgi: Any, hub: Hub, head_bytes: int) -> None:
        settings = hub.settings
        config = _Config()
        config.accesslog = None
        config.errorlog = None
        config.include_server_header = False
        config.keep_alive_max_requests = 1_000_000
        config.h11_max_incomplete_size = head_bytes
        config.h2_max_concurrent_streams = 256
        config.h2_max_header_list_size = head_bytes
        config.websocket_max_message_size = settings.max_message_bytes
        config.max_app_queue_size = 16
        self._config = config
        self._app = ASGIWrapper(asgi)
        self._context = WorkerContext(None)
        self._patience = hub.patience
        self._idle_timeout = settings.http_idle_timeout
        self._connections: set[_Connection] = set()

    async def serve(self, peer: PeerStream) -> None:
        """Serve one connection until it ends. Closes the stream."""
        connection = _Connection(
            self._app, self._config, self._context, peer, self._patience, self._idle_timeout
        )
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._patience.over(connection)

    async def drain(self) -> None:
        """Idle connections close; the others do after what they are at."""
        await self._context.terminated.set()
        for connection in self._connections:
            connection.retire()


class _Config(Config):
    """Makes the headers that every response has (``Date``) once a second."""

    _second = 0
    _headers: list[tuple[bytes, bytes]]

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        second = int(time())
        if second != self._second:
            self._headers = super().response_headers(protocol)
            self._second = second
        return self._headers


class _Connection(TCPServer):
    """One connection. Its reader ends when the client goes, or has nothing to ask for too long."""

    def __init__(
        self,
        app: ASGIWrapper,
        config: Config,
        context: WorkerContext,
        peer: PeerStream,
        patience: Patience,
        may_idle: float,
    ) -> None:
        super().__init__(app, config, context, {}, peer)  # type: ignore[arg-type]
        self._peer = peer
        self._reading = trio.CancelScope()
        self._patience = patience
        self._idle = True
        self._may_idle = may_idle

    async def run(self) -> None:
        peer = self._peer
        secure = isinstance(peer, TlsPeerStream)
        alpn = peer.selected_alpn_protocol() if isinstance(peer, TlsPeerStream) else None
        try:
            socket = peer.socket
            client = parse_socket_addr(socket.family, socket.getpeername())
            server = parse_socket_addr(socket.family, socket.getsockname())
            if socket.family == trio.socket.AF_UNIX:
                client = (UNIX_PEER, 0)
            async with _Tasks() as tasks:
                state = ConnectionState(self.state)
                common = (self.app, self.config, self.context, tasks, state, secure)
                send = self.protocol_send
                self.protocol = ProtocolWrapper(*common, client, server, send, alpn)
                if isinstance(self.protocol.protocol, H11Protocol):
                    http1 = _Http1(*common, client, server, send)
                    http1.write = self._write
                    self.protocol.protocol = http1
                await self.protocol.initiate()
                self._now_idle(True)
                await self._read_data()
        except OSError:
            pass  # gone before it was served
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Updated):
            self._now_idle(event.idle)
        else:
            await super().protocol_send(event)

    async def _write(self, *parts: Bytes) -> None:
        try:
            await self._peer.send_at_once(*parts)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        with self._reading:
            data = b"?"
            while data:
                try:
                    data = await self._peer.receive_some(MAX_RECV)
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
                await self.protocol.handle(RawData(data))
        await self.protocol.handle(Closed())

    def _now_idle(self, idle: bool) -> None:
        self._idle = idle
        if not idle:
            self._patience.over(self)
        elif self.context.terminated.is_set():
            self._reading.cancel()
        else:
            self._patience.wait_for(self, self._may_idle, self._reading.cancel)

    def retire(self) -> None:
        if self._idle:
            self._reading.cancel()


class _Tasks(TaskGroup):
    """Starts a request's task, with an `_Inbox` for what it receives."""

    async def spawn_app(
        self, app: Any, config: Config, scope: Any, send: Any
    ) -> Callable[[Any], Awaitable[None]]:
        inbox = _Inbox(config.max_app_queue_size)
        scope["extensions"][WHEN_GONE] = inbox.when_gone
        assert self._nursery is not None
        self._nursery.start_soon(_serve, app, config, scope, inbox, send)
        return inbox.put


async def _serve(app: Any, config: Config, scope: Any, inbox: _Inbox, send: Any) -> None:
    receive: Any = inbox.receive
    threads: Any = (trio.to_thread.run_sync, trio.from_thread.run)
    try:
        await _handle(app, config, scope, receive, send, *threads)
    finally:
        inbox.close()


class _Inbox:
    """What one request's application is to receive.

    Bounded: a body that nobody reads holds up its sender. That the client has gone is the last
    message, may be received any number of times, and never waits.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._messages: deque[Message] = deque()
        self._changed = trio.lowlevel.ParkingLot()
        self._over: Message | None = None
        self._tell: Callable[[], None] | None = None

    def when_gone(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        if self._over is not None:
            tell()

    async def put(self, message: Message) -> None:
        if message["type"].endswith(".disconnect"):
            self._over = message
            if self._tell is not None:
                self._tell()
        else:
            while len(self._messages) >= self._limit and self._over is None:
                await self._changed.park()
            if self._over is None:
                self._messages.append(message)
        self._changed.unpark_all()

    def close(self) -> None:
        """Nobody receives any more: what still comes is thrown away."""
        self._over = self._over or {}
        self._changed.unpark_all()

    async def receive(self) -> Message:
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._messages:
            if self._over is not None:
                return self._over
            await self._changed.park()
        if len(self._messages) == self._limit:
            self._changed.unpark_all()
        return self._messages.popleft()


class _Http1(H11Protocol):
    """Looks at a request's headers once, and gives it an `_Exchange`."""

    write: Callable[..., Awaitable[None]]
    _headers: list[tuple[bytes, bytes]]
    _upgrades: bool

    async def _check_protocol(self, event: h11.Request) -> None:
        self._headers = [(name.lower(), value) for name, value in event.headers.raw_items()]
        self._upgrades = any(name == b"upgrade" for name, _ in self._headers)
        # No switch to HTTP/2 by Upgrade, which RFC 9113 §3.1 has done away with: a proxy that lets
        # the header through would pass on, unseen, whatever comes behind it.
        if event.method == b"PRI":
            await super()._check_protocol(event)

    async def _create_stream(self, request: h11.Request) -> None:
        if self._upgrades:
            await super()._create_stream(request)
            return
        self.stream = _Exchange(self)
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=self._headers,
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )

    async def _send_error_response(self, status_code: int) -> None:
        # What h11 could not read; it says no more than 400, 431, 413 or 501.
        code, words = _UNREADABLE.get(status_code, _UNREADABLE[400])
        body = dumps({"error": words, "code": code})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        head = h11.Response(status_code=status_code, headers=headers)
        await self.respond([head, h11.Data(data=body), h11.EndOfMessage()])

    async def respond(self, events: list[Any]) -> None:
        """Write these parts of a response, all at once."""
        parts: list[Bytes] = []
        assert isinstance(self.connection, h11.Connection)
        try:
            for event in events:
                parts += self.connection.send_with_data_passthrough(event) or ()
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if parts:
            await self.write(*parts)


class _Exchange(HTTPStream):
    """A request and its response on HTTP/1.1. The head of a response waits for its first piece."""

    def __init__(self, protocol: _Http1) -> None:
        one = protocol
        common = (one.app, one.config, one.context, one.task_group, one.ssl, one.client, one.server)
        super().__init__(*common, one.stream_send, STREAM_ID)
        self._protocol = protocol
        self._parts: list[Any] = []
        """Of the response, not yet written."""

    async def handle(self, event: Any) -> None:
        if isinstance(event, StreamClosed) and self.state is ASGIHTTPState.CLOSED:
            # The application itself ended the response: to tell it now that its client has gone
            # would cancel it within its last send.
            self.closed = True
        else:
            await super().handle(event)

    async def app_send(self, message: Any) -> None:
        kind = None if message is None else message["type"]
        if kind == "http.response.start" and self.state is ASGIHTTPState.REQUEST:
            self.state = ASGIHTTPState.RESPONSE
            self.response = message
            headers = [*message["headers"], *self.config.response_headers("h11")]
            self._parts.append(h11.Response(status_code=message["status"], headers=headers))
        elif kind == "http.response.body" and self.state is ASGIHTTPState.RESPONSE:
            body = message.get("body", b"")
            if body and not suppress_body(self.scope["method"], self.response["status"]):
                self._parts.append(h11.Data(data=body))
            ends = not message.get("more_body", False)
            if ends:
                self._parts.append(h11.EndOfMessage())
                self.state = ASGIHTTPState.CLOSED
            await self._write()
            if ends:
                await self._protocol.stream_send(StreamClosed(stream_id=STREAM_ID))
        else:
            await self._write()  # the head of an application that failed behind it
            await super().app_send(message)

    async def _write(self) -> None:
        parts, self._parts = self._parts, []
        await self._protocol.respond(parts)
