"""Listening sockets that a service manager opened (socket activation).

Source: sd_listen_fds(3). The descriptors are 3, 4, … ; LISTEN_FDS says how many, LISTEN_PID for
which process they are, LISTEN_FDNAMES what they are called.
"""

from __future__ import annotations

import os
import socket as stdlib_socket
from collections.abc import MutableMapping
from typing import Final

import attrs

from acp_gateway.config import ConfigError

FIRST: Final = 3
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_FAMILIES: Final = (stdlib_socket.AF_INET, stdlib_socket.AF_INET6, stdlib_socket.AF_UNIX)


@attrs.frozen
class Passed:
    """One inherited socket."""

    socket: stdlib_socket.socket
    name: str
    """Its ``FileDescriptorName=``, or ``fd 3``."""

    @property
    def source(self) -> str:
        """For errors."""
        return f"socket activation ({self.name})"


def take_passed(environ: MutableMapping[str, str] = os.environ) -> list[Passed]:
    """The sockets that this process was given; none when it was started in another way.

    The variables are removed: they are not for children. Raises `ConfigError` for a descriptor that
    is no listening stream socket.
    """
    told = {name: environ.pop(name, "") for name in _VARIABLES}
    if told["LISTEN_PID"] != str(os.getpid()):
        return []
    count = int(told["LISTEN_FDS"]) if told["LISTEN_FDS"].isdecimal() else 0
    names = told["LISTEN_FDNAMES"].split(":") if told["LISTEN_FDNAMES"] else []
    return [
        _taken(fd, names[fd - FIRST] if fd - FIRST < len(names) and names[fd - FIRST] else "")
        for fd in range(FIRST, FIRST + count)
    ]


def _taken(fd: int, name: str) -> Passed:
    name = f"{name}, fd {fd}" if name else f"fd {fd}"
    try:
        os.set_inheritable(fd, False)
        sock = stdlib_socket.socket(fileno=fd)
    except OSError as exc:
        raise _unusable(name, exc.strerror or str(exc)) from None
    if sock.family not in _FAMILIES or sock.type != stdlib_socket.SOCK_STREAM:
        raise _unusable(name, "it is not a stream socket of TCP or Unix")
    if not sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ACCEPTCONN):
        raise _unusable(name, "it does not listen (Accept=yes makes such sockets)")
    sock.setblocking(False)
    return Passed(sock, name)


def _unusable(name: str, why: str) -> ConfigError:
    return ConfigError(
        f"A socket that the service manager passed cannot be used: {why}.",
        remedy="Use ListenStream= with Accept=no in the socket unit.",
        source=f"socket activation ({name})",
    )
