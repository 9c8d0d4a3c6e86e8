"""One writer of a stored session: a lock file for each (agent, session id) in the state directory.

The lock belongs to the open file, so it goes with its daemon, however that ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path

from acp_gateway.protocol.errors import ErrorKind, GatewayError


class WriterLocks:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: dict[tuple[str, str], tuple[int, int]] = {}
        """(file, times acquired)"""

    def acquire(self, agent: str, session_id: str) -> None:
        """Raises ``session_writer_conflict`` while another daemon has the session open."""
        key = (agent, session_id)
        if key in self._held:
            fd, times = self._held[key]
            self._held[key] = (fd, times + 1)
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = hashlib.sha256(f"{agent}\0{session_id}".encode()).hexdigest()[:32]
        while True:
            fd = os.open(self._directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(fd)
                raise GatewayError(
                    ErrorKind.SESSION_WRITER_CONFLICT,
                    f'The session "{session_id}" is open in another gateway',
                    remedy="attach to it there, or close it there first",
                    sessionId=session_id,
                ) from None
            if self._is_current(fd, name):
                break
            os.close(fd)  # its holder unlinked it between our open and our lock
        self._held[key] = (fd, 1)

    def _is_current(self, fd: int, name: str) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._directory / name))
        except FileNotFoundError:
            return False

    def release(self, agent: str, session_id: str) -> None:
        """Once for each `acquire`."""
        key = (agent, session_id)
        fd, times = self._held.get(key, (-1, 0))
        if times > 1:
            self._held[key] = (fd, times - 1)
        if times != 1:
            return
        del self._held[key]
        name = hashlib.sha256(f"{agent}\0{session_id}".encode()).hexdigest()[:32]
        with suppress(OSError):
            os.unlink(self._directory / name)
        os.close(fd)
