"""A listening Unix socket in the file system.

Whoever can open the file may talk to the gateway, so it is private (mode 0600) unless the operator
says otherwise, and lies in a directory where nobody else can put another in its place. What a dead
daemon left is removed; a live one is never pushed aside.
"""

from __future__ import annotations

import errno
import os
import socket as stdlib_socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from acp_gateway.config import PortError
from acp_gateway.private_file import lock

BACKLOG: Final = 1024
LONGEST: Final = 103
"""Bytes of a path that every system takes (``sun_path``: 104 on macOS, 108 on Linux)."""
LOCK_DEADLINE: Final = 2.0
_PIN: Final = os.O_PATH | os.O_NOFOLLOW if hasattr(os, "O_PATH") else 0
_SOL_LOCAL: Final = 0
_LOCAL_PEERPID: Final = 2


class UnixSocketInUse(PortError):
    """Somebody answers at the path. ``pid``: who, where the system tells it."""

    def __init__(self, path: Path, pid: int | None) -> None:
        owner = "another process" if pid is None else f"process {pid}"
        super().__init__(
            f"The Unix socket {path} is in use by {owner}",
            remedy="stop that process, or use another --unix-socket",
        )
        self.path = path
        self.pid = pid


class UnixSocket:
    """One that `open_unix_socket` made."""

    def __init__(self, socket: stdlib_socket.socket, path: Path) -> None:
        self.socket = socket
        self.path = path
        # Held until `remove`: the number of a file that is gone may be a successor's.
        self._file = os.open(path, _PIN | os.O_CLOEXEC) if _PIN else None
        found = os.lstat(path)
        self._identity = (found.st_dev, found.st_ino)

    def remove(self) -> None:
        """Remove the file, if it is still this socket's: a successor may have put its own there."""
        with suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path)
        self._identity = (-1, -1)
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def open_unix_socket(path: Path, mode: int) -> UnixSocket:
    """Listen at ``path``, which is absolute. Raises `PortError`."""
    if len(os.fsencode(path)) > LONGEST:
        raise PortError(
            f"The path of the Unix socket is longer than {LONGEST} bytes: {path}",
            remedy="use a shorter path, such as one below /run or $XDG_RUNTIME_DIR",
        )
    _check_directory(path.parent)
    sock = stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_STREAM)
    try:
        with _alone_in(path.parent):
            _make_way(path)
            # Never open to others, not even between these two calls.
            before = os.umask(0o177)
            try:
                sock.bind(os.fspath(path))
            finally:
                os.umask(before)
            os.chmod(path, mode)
            sock.listen(BACKLOG)
        sock.setblocking(False)
        return UnixSocket(sock, path)
    except PortError:
        sock.close()
        raise
    except OSError as exc:
        sock.close()
        raise PortError(
            f"Cannot listen on the Unix socket {path}: {exc.strerror}",
            remedy="use another --unix-socket",
        ) from None


def _check_directory(directory: Path) -> None:
    try:
        found = os.stat(directory)
    except OSError as exc:
        raise PortError(
            f"The directory {directory} of the Unix socket cannot be used: {exc.strerror}",
            remedy="create it first, with mode 0700",
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        raise PortError(
            f"{directory}, where the Unix socket should be, is not a directory",
            remedy="use a path in a directory of yours",
        )
    # Who may rename in it may put a socket of his own there, and be told the token.
    others = stat.S_IWOTH if found.st_gid == os.getegid() else stat.S_IWOTH | stat.S_IWGRP
    loose = found.st_mode & others and not found.st_mode & stat.S_ISVTX
    if loose or found.st_uid not in (0, os.geteuid()):
        raise PortError(
            f"Others can replace files in {directory}, where the Unix socket should be",
            remedy=f"use a directory of yours, or: chmod go-w '{directory}'",
        )


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """No other starting gateway looks at the directory meanwhile: two that find the same dead
    socket would remove each other's new one."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        locked = True
        with suppress(OSError):  # a file system without locks
            locked = lock(fd, LOCK_DEADLINE)
        if not locked:
            raise PortError(
                f"The directory {directory} is locked by another program",
                remedy="try again, or use a Unix socket in a directory of its own",
            )
        yield
    finally:
        os.close(fd)


def _make_way(path: Path) -> None:
    """Remove the socket of a dead daemon; refuse everything else that is there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise PortError(
            f"{path} exists and is not a socket",
            remedy="use another --unix-socket, or remove it",
        )
    with stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            raise UnixSocketInUse(path, None) from None  # it has a full backlog
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                return
            raise
        raise UnixSocketInUse(path, peer_pid(probe))


def peer_pid(sock: stdlib_socket.socket) -> int | None:
    """The process at the other end of a connected Unix socket (unix(7), unix(4) of macOS)."""
    with suppress(OSError, struct.error):
        if hasattr(stdlib_socket, "SO_PEERCRED"):
            size = struct.calcsize("3i")
            told = sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_PEERCRED, size)
            pid = struct.unpack("3i", told)[0]
        else:
            told = sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID, struct.calcsize("i"))
            pid = struct.unpack("i", told)[0]
        return int(pid) or None
    return None
