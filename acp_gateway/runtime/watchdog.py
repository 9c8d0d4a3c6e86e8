"""One small process per daemon that outlives even its ``kill -9`` and then ends the agents.

(Linux's parent-death signal is no substitute: it fires when the *thread* that forked exits, and
trio forks in worker threads that retire.)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import structlog

from acp_gateway.runtime.child_environment import own_helpers

_MAIN = Path(__file__).with_name("_watchdog_main.py")
log = structlog.get_logger("acp_gateway.watchdog")


class Watchdog:
    """Knows the process group of every agent. `start` before the first, `close` after the last.

    `close` ends what is still listed.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_MAIN)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            close_fds=True,
            env=own_helpers(os.environ),
        )
        if self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)
        for group in self._groups:
            self._tell(f"+{group}\n")

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def add(self, group: int) -> None:
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        self._groups.discard(group)
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        try:
            os.write(process.stdin.fileno(), line.encode())
        except BrokenPipeError:
            log.warning("watchdog_died", returncode=process.poll(), action="started again")
            process.stdin.close()
            self._process = None
            self.start()
        except BlockingIOError:
            log.warning("watchdog_stalled", pid=process.pid)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(1)
