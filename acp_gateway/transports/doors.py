"""All sockets that a daemon listens on, and who can reach them.

They are those that a service manager passed, else what ``host``, ``port`` and ``unix_socket`` ask
for. Both are refused alike where strangers could come in without a token.
"""

from __future__ import annotations

import os
import socket as stdlib_socket
import stat
from collections.abc import Sequence

import attrs

from acp_gateway.config import ConfigError, PortError, Settings, is_loopback
from acp_gateway.transports.activation import Passed
from acp_gateway.transports.sockets import open_sockets
from acp_gateway.transports.unix_socket import UnixSocket, open_unix_socket


@attrs.frozen
class Address:
    url: str
    """``unix:PATH`` where that is the only way in."""
    ws_url: str
    http_url: str


@attrs.frozen(kw_only=True)
class Doors:
    sockets: list[stdlib_socket.socket]
    host: str
    """Where TCP listens, as it was asked for; empty without TCP."""
    ports: tuple[int, ...] = ()
    """Of TCP, the first being the one to tell clients."""
    loopback: bool = True
    """Only this machine can reach the TCP sockets, if there are any."""
    unix: tuple[str, ...] = ()
    """Paths of the Unix sockets; an abstract one begins with ``@``."""
    own: UnixSocket | None = None
    passed: bool = False
    """A service manager opened them."""

    @property
    def port(self) -> int:
        """The first TCP port; 0 without one."""
        return self.ports[0] if self.ports else 0

    def address(self, *, secure: bool) -> Address:
        """What to tell clients."""
        if not self.ports:
            url = f"unix:{self.unix[0]}"
            return Address(url, url, url)
        host = self.host
        if host in ("0.0.0.0", "::", ""):
            host = "127.0.0.1" if host != "::" else "::1"
        if ":" in host:
            host = f"[{host}]"
        scheme = "s" if secure else ""
        url = f"http{scheme}://{host}:{self.port}"
        return Address(url, f"ws{scheme}://{host}:{self.port}/acp", f"{url}/acp")

    def remove(self) -> None:
        """Remove the Unix socket's file, if this daemon made it."""
        if self.own is not None:
            self.own.remove()


def open_doors(settings: Settings, passed: Sequence[Passed], *, asks_for_token: bool) -> Doors:
    """``asks_for_token``: nobody comes in without one.

    Raises `PortError` when an address cannot be had, `ConfigError` when it must not."""
    if passed:
        return _passed_doors(passed, token=asks_for_token)
    if not settings.tcp and settings.unix_socket is None:
        raise ConfigError(
            "There is nothing to listen on.",
            remedy="Leave --no-tcp out, or add --unix-socket PATH.",
            source="flag --no-tcp",
        )
    sockets: list[stdlib_socket.socket] = []
    ports: tuple[int, ...] = ()
    own = None
    if settings.tcp:
        sockets = open_sockets(settings.host, settings.port)
        ports = (sockets[0].getsockname()[1],)
    if settings.unix_socket is not None:
        try:
            own = open_unix_socket(settings.unix_socket, int(settings.unix_socket_mode, 8))
        except PortError:
            for each in sockets:
                each.close()
            raise
        sockets.append(own.socket)
    return Doors(
        sockets=sockets,
        host=settings.host if settings.tcp else "",
        ports=ports,
        loopback=not settings.tcp or is_loopback(settings.host),
        unix=(str(own.path),) if own else (),
        own=own,
    )


def _passed_doors(passed: Sequence[Passed], *, token: bool) -> Doors:
    hosts, ports, unix = [], [], []
    for each in passed:
        name = each.socket.getsockname()
        if each.socket.family == stdlib_socket.AF_UNIX:
            path = _path(name)
            if not token and not _is_private(path):
                raise ConfigError(
                    f"Other users can connect to the Unix socket {path}, and run commands as you.",
                    remedy="Set SocketMode=0600, or add a token (--token-file FILE).",
                    source=each.source,
                )
            unix.append(path)
        else:
            host, port = name[0], name[1]
            if not token and not is_loopback(host):
                raise ConfigError(
                    f"Listening on {host} port {port} without a token would let anybody on the "
                    "network run commands as you.",
                    remedy="Add --token-file FILE (or --token), or listen on 127.0.0.1.",
                    source=each.source,
                )
            hosts.append(host)
            ports.append(port)
    return Doors(
        sockets=[each.socket for each in passed],
        host=hosts[0] if hosts else "",
        ports=tuple(ports),
        loopback=all(is_loopback(host) for host in hosts),
        unix=tuple(unix),
        passed=True,
    )


def _path(name: str | bytes) -> str:
    """Linux has sockets without a file, whose name begins with NUL: written with ``@``."""
    if isinstance(name, bytes):
        return "@" + os.fsdecode(name.lstrip(b"\0"))
    return name


def _is_private(path: str) -> bool:
    """Can only this user and root connect, which takes the right to write (unix(7))?

    An abstract socket is everybody's.
    """
    if not path.startswith("/"):
        return False
    try:
        found = os.stat(path)
    except OSError:
        return False
    # systemd makes it as root and gives it away (SocketUser=).
    return not stat.S_IMODE(found.st_mode) & 0o022 and found.st_uid in (0, os.geteuid())
