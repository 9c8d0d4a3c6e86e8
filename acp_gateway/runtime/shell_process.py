"""The process of one command of a user: in a process group of its own, known to the watchdog.

Its stdin is empty; stdout and stderr are one pipe, so that they keep their order.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from acp_gateway.runtime.watchdog import Watchdog

KILL_GRACE: Final = 2.0
_GATE: Final = 'read -r _ && exec "$@" </dev/null'
"""The command begins when it is known to the watchdog: without the line there is none."""
_NO_SHELLS: Final = ("nologin", "false", "true", "git-shell")


def user_shell(environ: Mapping[str, str]) -> str:
    """The user's shell: ``$SHELL``, else the account's, else ``/bin/sh``."""
    account = ""
    with suppress(KeyError):
        account = pwd.getpwuid(os.getuid()).pw_shell
    for path in (environ.get("SHELL", ""), account):
        usable = os.path.isabs(path) and os.path.basename(path) not in _NO_SHELLS
        if usable and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return "/bin/sh"


class ShellProcess:
    def __init__(
        self, command: str, cwd: Path, environ: Mapping[str, str], watchdog: Watchdog
    ) -> None:
        self._command = command
        self._cwd = cwd
        self._environ = environ
        self._watchdog = watchdog
        self._process: trio.Process | None = None
        self._empty = False
        """The shell was waited for and nobody is left: its number may be another's by now."""

    async def start(self) -> None:
        """Raises `OSError`."""
        shell = user_shell(self._environ)
        self._process = process = await trio.lowlevel.open_process(
            ["/bin/sh", "-c", _GATE, "sh", shell, "-c", self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._cwd,
            env=self._environ,
            start_new_session=True,
        )
        self._watchdog.add(process.pid)
        assert process.stdin is not None
        with suppress(trio.BrokenResourceError):
            await process.stdin.send_all(b"\n")
        await process.stdin.aclose()

    @property
    def output(self) -> trio.abc.ReceiveStream:
        assert self._process is not None and self._process.stdout is not None
        return self._process.stdout

    @property
    def exit_code(self) -> int | None:
        code = None if self._process is None else self._process.returncode
        return code if code is not None and code >= 0 else None

    @property
    def signal_number(self) -> int | None:
        """Number of the signal that ended it."""
        code = None if self._process is None else self._process.returncode
        return -code if code is not None and code < 0 else None

    async def wait(self) -> None:
        """Until the shell itself has ended; what it started may live on."""
        assert self._process is not None
        await self._process.wait()

    def send(self, number: int) -> bool:
        """Signal the whole group. False: nothing of it is left."""
        process = self._process
        if process is None or self._empty:
            return False
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            self._empty = process.returncode is not None
            return False
        except PermissionError:
            pass  # something in there runs as somebody else (sudo); macOS says so of zombies too
        return True

    def has_members(self) -> bool:
        """Is something of the group left?"""
        return self.send(0)

    async def kill(self) -> None:
        """Nothing of its group remains. For the end of its owner: shielded and bounded."""
        process = self._process
        if process is None:
            return
        self.send(signal.SIGKILL)
        with trio.CancelScope(shield=True), trio.move_on_after(KILL_GRACE):
            await process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()
        self._watchdog.remove(process.pid)
