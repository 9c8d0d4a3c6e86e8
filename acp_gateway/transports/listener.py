"""One port for everything: the accept loop and the front door.

TLS with ALPN comes first. A request head with ``Upgrade: websocket`` goes to trio-websocket, all
else (HTTP/1.1, h2c, HTTP/2) to hypercorn (`http_server`). h11 reads the head for this routing only:
who may come in is decided later, on what the server itself parsed.
"""

from __future__ import annotations

import errno
import re
import socket as stdlib_socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import h11
import structlog
import trio

from acp_gateway.config import Settings
from acp_gateway.transports.acp_ws import serve_websocket
from acp_gateway.transports.crowd import Crowd, peer_of
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.peer_stream import PeerStream, TlsPeerStream

if TYPE_CHECKING:
    from acp_gateway.transports.certificates import Certificates
    from acp_gateway.transports.http_server import HttpServer

log = structlog.get_logger("acp_gateway.listener")

EXHAUSTED_PAUSE: Final = 0.1
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_FULL_BODY: Final = b'{"error":"Too many connections","code":"connection_limit_exceeded"}'
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(_FULL_BODY), _FULL_BODY)
)
_UPGRADE: Final = re.compile(rb"GET .*?\n(?i:upgrade)[ \t]*:[^\n]*(?i:websocket)", re.DOTALL)


class Listener:
    def __init__(
        self,
        sockets: list[stdlib_socket.socket],
        hub: Hub,
        settings: Settings,
        certificates: Certificates | None,
    ) -> None:
        """``certificates``: TLS on the TCP sockets. Unix sockets speak without."""
        self._sockets = sockets
        self._hub = hub
        self._settings = settings
        self._certificates = certificates
        self._open = 0
        self._crowd = Crowd(settings.max_peer_connections, hub.proxies)
        self._accepting = trio.CancelScope()
        self._http: HttpServer | None = None
        self._http_is_there = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept until drained, serve until cancelled."""
        listeners = [
            trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in self._sockets
        ]
        async with trio.open_nursery() as nursery:
            task_status.started()
            nursery.start_soon(self._hub.patience.run)
            nursery.start_soon(self._hub.keep_alive.run)
            with self._accepting:
                async with trio.open_nursery() as accepting:
                    for each in listeners:
                        accepting.start_soon(self._accept, each, nursery)
            await trio.sleep_forever()

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as exc:
                    if exc.errno not in _EXHAUSTED:
                        raise
                    log.error("accept_failed", error=str(exc))
                    await trio.sleep(EXHAUSTED_PAUSE)
                else:
                    nursery.start_soon(self._serve, stream)

    def serve_http(self, asgi: Any) -> None:
        """The application for all that is no WebSocket; until it is there such requests wait."""
        from acp_gateway.transports.http_server import HttpServer

        self._http = HttpServer(asgi, self._hub, self._settings.max_header_bytes)
        self._http_is_there.set()

    async def drain(self) -> None:
        """No new connections; idle ones close."""
        self._accepting.cancel()
        if self._http is not None:
            await self._http.drain()

    async def _serve(self, stream: trio.SocketStream) -> None:
        self._open += 1
        counted = self._crowd.enter(peer_of(stream))
        traffic = self._hub.traffic
        traffic.sockets += 1
        traffic.open_sockets += 1
        try:
            if self._open > self._settings.max_tcp_connections or counted.too_many:
                traffic.refused.add("socket_limit_exceeded")
                with trio.move_on_after(1):
                    await stream.send_all(_FULL)
                return
            await self._route(stream)
        except Exception as exc:
            # One connection's failure is its own.
            log.warning("connection_failed", error=repr(exc), exc_info=exc)
        finally:
            self._open -= 1
            counted.leave()
            traffic.open_sockets -= 1
            stream.socket.close()

    async def _route(self, stream: trio.SocketStream) -> None:
        evict = self._settings.evict_timeout
        tls = None if self._certificates is None else self._certificates.context
        if tls is None or stream.socket.family == trio.socket.AF_UNIX:
            tls = None
            head, upgrade = await self._read_head(stream, stream)
            peer = PeerStream(stream, head, evict)
        else:
            secure = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
            try:
                with trio.fail_after(self._settings.header_timeout):
                    await secure.do_handshake()
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                return
            if secure.selected_alpn_protocol() == "h2":
                head, upgrade = b"", False
            else:
                head, upgrade = await self._read_head(stream, secure)
                if not head:
                    return
            peer = TlsPeerStream(secure, head, evict)
        peer.on_stalled = self._hub.traffic.stalled
        if upgrade:
            await serve_websocket(peer, self._hub)
        elif head or tls is not None:
            if head and not head.startswith(b"PRI "):  # one stream must not end all of HTTP/2
                peer.serve_here()
            while self._http is None:
                await self._http_is_there.wait()
            await self._http.serve(peer)

    async def _read_head(
        self, stream: trio.SocketStream, readable: trio.abc.ReceiveStream
    ) -> tuple[bytes, bool]:
        patience = self._hub.patience
        patience.wait_for(stream, self._settings.header_timeout, partial(_shut, stream))
        try:
            return await _read_head(readable, self._settings.max_header_bytes)
        finally:
            patience.over(stream)


def _shut(stream: trio.SocketStream) -> None:
    with suppress(OSError):
        stream.socket.shutdown(trio.socket.SHUT_RDWR)


async def _read_head(stream: trio.abc.ReceiveStream, limit: int) -> tuple[bytes, bool]:
    """(the bytes read so far, is it a WebSocket upgrade); no bytes: nothing usable came.

    A head that came in one piece, as they do, is only searched for the upgrade; h11 reads others.
    """
    received = await _receive(stream)
    if (end := received.find(b"\r\n\r\n")) > 0:
        return received, _UPGRADE.match(received, 0, end) is not None
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=limit)
    data = bytearray()
    while received:
        data += received
        parser.receive_data(received)
        try:
            event = parser.next_event()
        except h11.RemoteProtocolError:
            return bytes(data), False  # HTTP/2 prior knowledge, or nonsense: hypercorn answers
        if isinstance(event, h11.Request):
            return bytes(data), _is_websocket(event)
        if event is not h11.NEED_DATA:
            return bytes(data), False
        received = await _receive(stream)
    return b"", False


async def _receive(stream: trio.abc.ReceiveStream) -> bytes:
    try:
        return bytes(await stream.receive_some(16 * 1024))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return b""


def _is_websocket(request: h11.Request) -> bool:
    if request.method != b"GET":
        return False
    return any(
        name == b"upgrade" and b"websocket" in value.lower() for name, value in request.headers
    )
