"""A file of JSON lines that says who did what: for audits, of every kind.

Rule 1: one entry is one line, in one write, and has ASCII characters only: whatever an agent or a
client puts into it, it forges no other line and moves no terminal's cursor. Rule 2: what looks like
a secret is replaced. Rule 3: the file is bounded (`MAX_BYTES`, and `KEPT` older ones as
``FILE.1`` …), and only its owner may read it. Rule 4: whoever is audited is not held up by a file
that cannot be written; the log says so once, and how many entries were lost when it can be again.

Several daemons may share a file: what is written and when the file is moved aside is settled by a
lock on it. Blocking, for a few dozen microseconds; safe in threads.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog

from acp_gateway.config import MIB
from acp_gateway.runtime.redact import redact
from acp_gateway.runtime.rotating_file import move_aside

log = structlog.get_logger("acp_gateway.audit")

MAX_BYTES: Final = 10 * MIB
KEPT: Final = 4
MAX_TEXT: Final = 4096
"""Characters of one string of an entry."""
MAX_DEPTH: Final = 6
LOCK_TRIES: Final = 20
LOCK_PAUSE: Final = 0.0005
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class AuditLog:
    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES, kept: int = KEPT) -> None:
        self.path = path
        self.lost = 0
        """Entries that could not be written since the last one that could."""
        self._max_bytes = max_bytes
        self._kept = kept
        self._lock = threading.Lock()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one entry. Never raises for a file that cannot be written."""
        line = audit_line(entry)
        with self._lock:
            try:
                self._append(line)
            except OSError as exc:
                if not self.lost:
                    log.error("audit_not_written", path=str(self.path), error=exc.strerror)
                self.lost += 1
                return
            if self.lost:
                log.warning("audit_written_again", path=str(self.path), lost=self.lost)
                self.lost = 0

    def _append(self, line: bytes) -> None:
        for _ in range(3):
            fd = os.open(self.path, _APPEND, 0o600)
            try:
                if self._is_current(fd):
                    self._write_to(fd, line)
                    return
            finally:
                os.close(fd)  # and with it the lock
        raise OSError(errno.EAGAIN, "the file was moved aside again and again")

    def _is_current(self, fd: int) -> bool:
        """Locked, and still the file of that name."""
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return True  # a terminal, a pipe: nothing is moved aside
        _lock(fd)
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _write_to(self, fd: int, line: bytes) -> None:
        before = os.fstat(fd)
        written = os.write(fd, line)
        regular = stat.S_ISREG(before.st_mode)
        if written < len(line):
            if regular:
                # A torn line would swallow the next one.
                with suppress(OSError):
                    os.ftruncate(fd, before.st_size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if regular and before.st_size + written >= self._max_bytes:
            move_aside(self.path, self._kept)


def _lock(fd: int) -> None:
    """Nobody holds it for longer than a line takes. Whoever does, and a file system that knows no
    locks, is not waited for."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE)
        except OSError:
            return
        else:
            return


def audit_line(entry: Mapping[str, Any]) -> bytes:
    """An entry as one line of ASCII, with its end."""
    text = json.dumps(_clean(entry, MAX_DEPTH), separators=(",", ":"), default=str)
    # The one control character that JSON leaves as it is.
    return text.replace("\x7f", "\\u007f").encode("ascii") + b"\n"


def _clean(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return redact(value[:MAX_TEXT])
    if depth and isinstance(value, Mapping):
        return {str(_clean(str(key), 1)): _clean(each, depth - 1) for key, each in value.items()}
    if depth and isinstance(value, list | tuple):
        return [_clean(each, depth - 1) for each in value]
    return value if value is None or isinstance(value, bool | int | float) else "[…]"
