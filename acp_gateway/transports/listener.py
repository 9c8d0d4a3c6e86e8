"""One port for everything: the accept loop and the front door (home of hypercorn).

TLS with ALPN comes first. A request head with ``Upgrade: websocket`` goes to trio-websocket, all
else (HTTP/1.1, h2c, HTTP/2) to hypercorn. h11 reads the head for this routing only: who may come in
is decided later, on what the server itself parsed. hypercorn's `TCPServer` is not a public
interface; the version is pinned and a test fails when it changes.
"""

from __future__ import annotations

import errno
import socket as stdlib_socket
import ssl
from pathlib import Path
from typing import Any, Final

import h11
import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Event, Updated
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

from acp_gateway.config import PortError, Settings
from acp_gateway.transports.acp_ws import serve_websocket
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.peer_stream import PeerStream, TlsPeerStream

log = structlog.get_logger("acp_gateway.listener")

BACKLOG: Final = 1024
HEAD_BYTES: Final = 64 * 1024
HEAD_TIMEOUT: Final = 10.0
TLS_TIMEOUT: Final = 10.0
DEAD_PEER_TIMEOUT: Final = 120
"""Seconds until data that nobody acknowledges ends a connection."""
_FULL_BODY: Final = b'{"error":"Too many connections","code":"connection_limit_exceeded"}'
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 5\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(_FULL_BODY), _FULL_BODY)
)


def open_sockets(host: str, port: int) -> list[stdlib_socket.socket]:
    """Listening TCP sockets for every address of ``host``. Raises `PortError`."""
    try:
        found = stdlib_socket.getaddrinfo(
            host, port, type=stdlib_socket.SOCK_STREAM, flags=stdlib_socket.AI_PASSIVE
        )
    except OSError as exc:
        raise PortError(
            f"The host {host} cannot be resolved: {exc.strerror or exc}",
            remedy="use an address of this machine, such as --host 127.0.0.1",
        ) from None
    sockets: list[stdlib_socket.socket] = []
    for family, _, _, _, address in dict.fromkeys(found):
        if port == 0 and sockets:
            break  # one port for all is what callers print
        sock = stdlib_socket.socket(family, stdlib_socket.SOCK_STREAM)
        try:
            sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
            _find_dead_peers(sock)
            if family == stdlib_socket.AF_INET6:
                sock.setsockopt(stdlib_socket.IPPROTO_IPV6, stdlib_socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as exc:
            sock.close()
            for each in sockets:
                each.close()
            if exc.errno == errno.EADDRINUSE:
                raise PortError(
                    f"Port {port} on {host} is in use",
                    remedy="use another --port (0 takes any free one)",
                ) from None
            raise PortError(
                f"Cannot listen on {host} port {port}: {exc.strerror}",
                remedy="use another --host or --port",
            ) from None
        sockets.append(sock)
    return sockets


def _find_dead_peers(sock: stdlib_socket.socket) -> None:
    """Accepted sockets inherit this: a peer that is gone without a word is noticed by TCP."""
    sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 60),
        ("TCP_KEEPINTVL", 15),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", DEAD_PEER_TIMEOUT * 1000),
    ):
        option = getattr(stdlib_socket, name, None)  # not every system has every one
        if option is not None:
            sock.setsockopt(stdlib_socket.IPPROTO_TCP, option, value)


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """A server context that offers HTTP/2 and HTTP/1.1 (ALPN). Raises `PortError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as exc:
        raise PortError(
            f"The TLS certificate cannot be used: {exc}",
            remedy="check that --tls-cert and --tls-key are a PEM pair",
        ) from None
    return context


class _Server(TCPServer):
    """hypercorn's, but gone as soon as its client is: it would first wait out its idle time."""

    _over = False

    async def protocol_send(self, event: Event) -> None:
        if not (self._over and isinstance(event, Updated)):
            await super().protocol_send(event)

    async def _read_data(self) -> None:
        await super()._read_data()
        self._over = True
        await self.idle_task.stop()


class Listener:
    def __init__(
        self,
        sockets: list[stdlib_socket.socket],
        hub: Hub,
        asgi: Any,
        settings: Settings,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._sockets = sockets
        self._hub = hub
        self._settings = settings
        self._tls = tls
        self._open = 0
        self._accepting = trio.CancelScope()
        config = Config()
        config.accesslog = None
        config.errorlog = None
        config.include_server_header = False
        config.keep_alive_timeout = 75
        config.keep_alive_max_requests = 1_000_000
        config.h11_max_incomplete_size = HEAD_BYTES
        config.h2_max_concurrent_streams = 256
        config.websocket_max_message_size = settings.max_message_bytes
        config.max_app_queue_size = 16
        self._config = config
        self._app = ASGIWrapper(asgi)
        self._context = WorkerContext(None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept until drained, serve until cancelled."""
        listeners = [
            trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in self._sockets
        ]
        async with trio.open_nursery() as nursery:
            task_status.started()
            with self._accepting:
                await trio.serve_listeners(self._serve, listeners, handler_nursery=nursery)
            await trio.sleep_forever()

    async def drain(self) -> None:
        """No new connections; idle ones close."""
        self._accepting.cancel()
        await self._context.terminated.set()

    async def _serve(self, stream: trio.SocketStream) -> None:
        self._open += 1
        try:
            if self._open > self._settings.max_tcp_connections:
                with trio.move_on_after(1):
                    await stream.send_all(_FULL)
                return
            await self._route(stream)
        except Exception as exc:
            # One connection's failure is its own.
            log.warning("connection_failed", error=repr(exc), exc_info=exc)
        finally:
            self._open -= 1
            await trio.aclose_forcefully(stream)

    async def _route(self, stream: trio.SocketStream) -> None:
        evict = self._settings.evict_timeout
        if self._tls is None:
            head, upgrade = await _read_head(stream)
            peer = PeerStream(stream, head, evict)
        else:
            secure = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
            try:
                with trio.fail_after(TLS_TIMEOUT):
                    await secure.do_handshake()
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                return
            if secure.selected_alpn_protocol() == "h2":
                head, upgrade = b"", False
            else:
                head, upgrade = await _read_head(secure)
                if not head:
                    return
            peer = TlsPeerStream(secure, head, evict)
        if upgrade:
            await serve_websocket(peer, self._hub)
        elif head or self._tls is not None:
            if head and not head.startswith(b"PRI "):  # one stream must not end all of HTTP/2
                peer.serve_here()
            await _Server(self._app, self._config, self._context, {}, peer)  # type: ignore[arg-type]


async def _read_head(stream: trio.abc.Stream) -> tuple[bytes, bool]:
    """(the bytes read so far, is it a WebSocket upgrade); no bytes: nothing usable came."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
    data = bytearray()
    with trio.move_on_after(HEAD_TIMEOUT):
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError:
                return bytes(data), False  # HTTP/2 prior knowledge, or nonsense: hypercorn answers
            if isinstance(event, h11.Request):
                return bytes(data), _is_websocket(event)
            if event is not h11.NEED_DATA:
                return bytes(data), False
            try:
                received = await stream.receive_some(16 * 1024)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return b"", False
            if not received:
                return b"", False
            data += received
            parser.receive_data(bytes(received))
    return b"", False


def _is_websocket(request: h11.Request) -> bool:
    if request.method != b"GET":
        return False
    return any(
        name == b"upgrade" and b"websocket" in value.lower() for name, value in request.headers
    )
