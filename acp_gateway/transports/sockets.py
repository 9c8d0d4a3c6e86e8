"""What is ready before anything heavy is imported: listening sockets and the TLS context."""

from __future__ import annotations

import errno
import socket as stdlib_socket
import ssl
from pathlib import Path
from typing import Final

from acp_gateway.config import PortError

BACKLOG: Final = 1024
DEAD_PEER_TIMEOUT: Final = 120
"""Seconds until data that nobody acknowledges ends a connection."""


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
