"""A private file that lines are appended to, and that makes room for itself.

``NAME`` is the present one; ``NAME.1`` the one before, up to ``NAME.<archives>``. Files have mode
0600, directories that are made 0700. A failure is remembered and told (`problem`), never raised
after the start: a full disk must not stop a daemon. Each batch is tried anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_FLAGS: Final = (
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
)


class RotatingFile:
    """Raises `OSError` when the file cannot be opened now, or another process has it."""

    def __init__(self, path: Path, *, max_bytes: int, archives: int) -> None:
        self.path = path
        self.problem: str | None = None
        """``write_failed`` or ``rotation_failed``, with the reason; None while all is well."""
        self.lost = 0
        """Lines that could not be written."""
        self._max_bytes = max_bytes
        self._archives = archives
        self._torn = False
        """The last write was cut in a line."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock(path)
        try:
            self._open()
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self) -> None:
        fd = os.open(self.path, _FLAGS, 0o600)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise OSError(f"{self.path} is not a regular file")
        if status.st_mode & 0o077 and status.st_uid == os.geteuid():
            os.fchmod(fd, 0o600)
        self._fd = fd
        self._size = status.st_size
        self._id = (status.st_dev, status.st_ino)

    # ---- the writer's thread --------------------------------------------------------------------

    def write(self, lines: Sequence[bytes]) -> None:
        """Append lines, each with its end."""
        try:
            self._follow_name()
        except OSError as exc:
            self._failed("write_failed", exc, len(lines))
            return
        first = 0
        size = self._size
        for index, line in enumerate(lines):
            if size + len(line) > self._max_bytes and size:
                self._append(lines[first:index])
                self._rotate()
                first, size = index, self._size
            size += len(line)
        self._append(lines[first:])

    def _append(self, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        data = (b"\n" if self._torn else b"") + b"".join(lines)
        sent = 0
        try:
            while sent < len(data):
                sent += os.write(self._fd, data[sent:] if sent else data)
        except OSError as exc:
            self._torn = (self._torn if sent == 0 else data[sent - 1 : sent] != b"\n") or False
            self._size += sent
            self._failed("write_failed", exc, len(lines) - data[:sent].count(b"\n"))
            return
        self._torn = False
        self._size += sent
        if self.problem is not None and self.problem.startswith("write_failed"):
            self.problem = None

    def _follow_name(self) -> None:
        """Somebody else may have moved the file away, or removed it."""
        try:
            status = os.stat(self.path, follow_symlinks=False)
            if (status.st_dev, status.st_ino) == self._id:
                return
        except FileNotFoundError:
            pass
        os.close(self._fd)
        self._torn = False
        try:
            self._open()
        except BaseException:
            self._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            self._id = (-1, -1)
            raise

    def _rotate(self) -> None:
        try:
            move_aside(self.path, self._archives)
            self._follow_name()
        except OSError as exc:
            # It grows no further than this: what it has is worth less than a disk.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
                self._size = 0
            self._failed("rotation_failed", exc, 0)
        else:
            if self.problem is not None and self.problem.startswith("rotation_failed"):
                self.problem = None

    def _failed(self, what: str, exc: OSError, lines: int) -> None:
        self.problem = f"{what}: {exc.strerror or exc}"
        self.lost += lines

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)
        with contextlib.suppress(OSError):
            os.close(self._lock)


def move_aside(path: Path, archives: int) -> None:
    """Make room for a new file of that name; so many older ones are kept. Raises `OSError`."""
    for number in range(archives - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{path}.{number}", f"{path}.{number + 1}")
    if archives:
        os.replace(path, f"{path}.1")
    else:
        os.unlink(path)


def _lock(path: Path) -> int:
    """Held while the file is open: two processes that rotate one file lose lines."""
    fd = os.open(path.with_name(f".{path.name}.lock"), _FLAGS & ~os.O_APPEND, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise BlockingIOError(f"another process writes to {path}") from None
    return fd
