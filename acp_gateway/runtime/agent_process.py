"""The process of one agent: its start, its pipes, its stderr, its end.

It runs in a process group of its own and waits, before it becomes the agent, until the watchdog
knows it: a gateway that is killed in between leaves nothing behind.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.redact import REDACTED, clean, without_colours
from acp_gateway.runtime.watchdog import Watchdog
from acp_gateway.wire.ndjson import LineSplitter

log = structlog.get_logger("acp_gateway.agent")

STDERR_LINES: Final = 40
KEPT_BYTES: Final = 4096
"""Of a line; less of it is shown, so that no secret is cut before it is looked for."""
KEY_LINES: Final = 100
EOF_GRACE: Final = 2.0
TERM_GRACE: Final = 4.0
KILL_GRACE: Final = 4.0
_GATE: Final = 'read -r _ && exec "$@"'
"""The line that opens the gate is taken from the agent's stdin; without it there is no agent."""


class AgentProcess:
    def __init__(
        self, profile: AgentProfile, cwd: Path, environ: Mapping[str, str], watchdog: Watchdog
    ) -> None:
        self.pid: int | None = None
        self.returncode: int | None = None
        self._profile = profile
        self._cwd = profile.cwd or cwd
        self._environ = profile.environment(environ)
        self._watchdog = watchdog
        self._process: trio.Process | None = None
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._key_lines = 0
        """Lines of a private key that may still come."""

    async def start(self) -> None:
        """Raises ``agent_start_failed``."""
        argv = self._profile.argv
        try:
            if shutil.which(argv[0], path=self._environ.get("PATH")) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._process = await trio.lowlevel.open_process(
                ["/bin/sh", "-c", _GATE, argv[0], *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._cwd,
                env=self._environ,
                start_new_session=True,
            )
        except OSError as exc:
            raise GatewayError(
                ErrorKind.AGENT_START_FAILED,
                f"The agent {self._profile.name} could not be started: {exc.strerror or exc}",
                remedy=self._profile.install or f"check the command {argv[0]!r}",
                agent=self._profile.name,
            ) from None
        self.pid = self._process.pid
        self._watchdog.add(self.pid)
        with suppress(trio.BrokenResourceError):
            await self.stdin.send_all(b"\n")
        log.debug("agent_started", agent=self._profile.name, pid=self.pid)

    @property
    def stdin(self) -> trio.lowlevel.FdStream:
        assert self._process is not None
        stdin = self._process.stdin
        assert isinstance(stdin, trio.lowlevel.FdStream)
        return stdin

    @property
    def stdout(self) -> trio.lowlevel.FdStream:
        assert self._process is not None
        stdout = self._process.stdout
        assert isinstance(stdout, trio.lowlevel.FdStream)
        return stdout

    async def wait(self) -> None:
        """Until it has ended; `returncode` tells how."""
        assert self._process is not None
        self.returncode = await self._process.wait()

    @property
    def signal_name(self) -> str | None:
        """The signal that ended it."""
        if self.returncode is None or self.returncode >= 0:
            return None
        with suppress(ValueError):
            return signal.Signals(-self.returncode).name
        return str(-self.returncode)

    def exit_text(self) -> str:
        name = self.signal_name
        if name is not None:
            return f"killed by {name}"
        return "still running" if self.returncode is None else f"exit status {self.returncode}"

    def telling_line(self) -> str | None:
        """The line of stderr that likely says why: the last with an error in it, or the last."""
        lines = list(self._stderr)
        telling = [line for line in lines if "error" in line.lower()]
        chosen = (telling or lines)[-1:]
        return clean(chosen[0]) if chosen else None

    def stderr_tail(self) -> list[str]:
        """The last lines that the agent wrote to stderr, secrets redacted."""
        return [clean(line) for line in list(self._stderr)[-8:]]

    async def end(self) -> None:
        """The ladder: close stdin, TERM the group, KILL the group. Every step has a deadline."""
        process = self._process
        assert process is not None
        if self.returncode is None and process.stdin is not None:
            await process.stdin.aclose()
            if not self._profile.quirks.ignores_eof:
                with trio.move_on_after(EOF_GRACE):
                    await process.wait()
        if process.returncode is None:
            self._signal_group(signal.SIGTERM)
            with trio.move_on_after(TERM_GRACE):
                await process.wait()
        # What the agent started and left behind goes with it.
        self._signal_group(signal.SIGKILL)
        with trio.move_on_after(KILL_GRACE):
            await process.wait()

    def _signal_group(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def kill(self) -> None:
        """Nothing of it remains. For the end of its owner: shielded and bounded."""
        process = self._process
        if process is None:
            return
        self._signal_group(signal.SIGKILL)
        with trio.CancelScope(shield=True), trio.move_on_after(KILL_GRACE):
            await self.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()
        if self.pid is not None:
            self._watchdog.remove(self.pid)

    async def tail_stderr(self) -> None:
        """Keep the last lines until it closes the pipe."""
        assert self._process is not None and self._process.stderr is not None
        splitter = LineSplitter(64 * 1024)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in self._process.stderr:
                for line in splitter.feed(bytes(data)):
                    self._keep_stderr(line)
            rest = splitter.rest()
            if rest:
                self._keep_stderr(rest)

    def _keep_stderr(self, line: bytes) -> None:
        text = without_colours(line[:KEPT_BYTES].decode(errors="replace")).strip()
        if "-----BEGIN" in text and "PRIVATE KEY" in text:
            self._key_lines = KEY_LINES
        if self._key_lines:
            # A private key is many lines, of which each looks like nothing.
            self._key_lines = 0 if "-----END" in text else self._key_lines - 1
            text = REDACTED
        if text:
            self._stderr.append(text)
            log.debug("agent_stderr", agent=self._profile.name, pid=self.pid, line=text)
