"""Commands that users run in a session's directory, beside its turns.

A command belongs to the session, not to the request that asked for it. Its output goes to everybody
as events and its end is told once, whatever happens: the shell ends, the user stops it, its time is
over, the session closes. What a command leaves behind in its process group ends with it; what left
the group (``setsid``) is on its own, and holds nobody up.
"""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from acp_gateway.config import Settings
from acp_gateway.core.shell_run import ShellOutput, ShellRun, for_history
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.events import USER_SHELL_COMMAND, USER_SHELL_RESULT
from acp_gateway.runtime.child_environment import shell_environment
from acp_gateway.runtime.shell_process import ShellProcess
from acp_gateway.runtime.watchdog import Watchdog
from acp_gateway.runtime.workspace import Workspace

if TYPE_CHECKING:
    from acp_gateway.runtime.session import Session

log = structlog.get_logger("acp_gateway.shell")

MAX_COMMAND: Final = 64 * 1024
"""Bytes of a command: Linux takes 128 KiB for one argument."""
TERM_GRACE: Final = 2.0
"""Seconds from SIGTERM to SIGKILL."""
DRAIN: Final = 1.0
"""Seconds that what the shell left running may still write."""
REST_GRACE: Final = 0.5
"""Seconds from SIGTERM to SIGKILL for what the shell left running."""
REST_STEP: Final = 0.02
INJECT_TIMEOUT: Final = 5.0
SHELL_OUTPUT: Final = "shell_output"
"""The update of a session that carries output."""
_READ: Final = 64 * 1024
_PACE: Final = 0.001
"""Seconds of rest behind a full read: a flood leaves the loop to others."""
_PACE_DROPPING: Final = 0.004


class SessionShells:
    """The commands of one session."""

    def __init__(
        self,
        session: Session,
        settings: Settings,
        workspace: Workspace,
        watchdog: Watchdog,
        environ: Mapping[str, str],
    ) -> None:
        self._session = session
        self._settings = settings
        self._workspace = workspace
        self._watchdog = watchdog
        self._environ = environ
        self._running: dict[str, Running] = {}

    def __len__(self) -> int:
        return len(self._running)

    async def start(self, command: Any, client: str) -> Running:
        """Check a command and begin it. Raises `GatewayError`."""
        session, settings = self._session, self._settings
        text = checked_command(command)
        cwd, _ = await self._workspace.resolve_directory(str(session.cwd), "cwd")
        if session.over is not None:
            raise session.over
        if len(self._running) >= settings.max_shell_commands:
            raise GatewayError(
                ErrorKind.REQUEST_LIMIT,
                f"{settings.max_shell_commands} commands run in this session already",
                remedy="wait for one to end, or stop it",
                limit=settings.max_shell_commands,
            )
        run = ShellRun(
            id=str(uuid.uuid4()),
            command=text,
            cwd=str(cwd),
            client=client,
            output=ShellOutput(settings.shell_output_bytes),
        )
        environ = shell_environment(self._environ, settings.shell_env)
        running = Running(session, run, ShellProcess(text, cwd, environ, self._watchdog))
        self._running[run.id] = running
        session.publish(
            USER_SHELL_COMMAND, client=client, command=text, cwd=run.cwd, shellId=run.id
        )
        session.wake()
        session.touch()
        log.info("shell_started", session_id=session.id, shell_id=run.id, client=client)
        session.start_task(self._live, running)
        return running

    async def _live(self, running: Running) -> None:
        try:
            await running.live(self._settings.shell_timeout)
        finally:
            del self._running[running.run.id]
            running.over.set()
            self._session.touch()

    def stop(self, shell_id: str, why: str) -> bool:
        """Ask for the end of one. False: no such command runs."""
        running = self._running.get(shell_id)
        return running is not None and running.stop(why)

    def close(self) -> None:
        """The session closes: what runs is told as ended now, and is ended behind it."""
        for running in tuple(self._running.values()):
            running.stop("The session was closed")
            running.settle()

    async def ended(self) -> None:
        """Return when no process is left; bounded by the ladder."""
        for running in tuple(self._running.values()):
            await running.over.wait()


class Running:
    """A command while it runs, with its process."""

    def __init__(self, session: Session, run: ShellRun, process: ShellProcess) -> None:
        self.run = run
        self.told = trio.Event()
        """Its end is known to everybody, the agent included where it wants to know."""
        self.over = trio.Event()
        """Nothing of it runs any more."""
        self.injected = False
        """The agent has it in its history."""
        self._session = session
        self._process = process
        self._stopping = trio.Event()
        self._drained = trio.Event()

    def stop(self, why: str) -> bool:
        """Ask for its end. True the first time."""
        if not self.run.stop(why):
            return False
        self._stopping.set()
        return True

    def settle(self, error: str | None = None) -> None:
        """Tell its end, once."""
        process, run = self._process, self.run
        if run.end is None:
            run.output.finish()
            self._publish()
        end = run.settle(process.exit_code, process.signal_number, error)
        if end is not None:
            self._session.publish(
                USER_SHELL_RESULT, client=run.client, **end.as_event(), shellId=run.id
            )
            self._session.wake()
            log.info(
                "shell_ended",
                session_id=self._session.id,
                shell_id=run.id,
                exit_code=end.exit_code,
                signal=end.signal,
                aborted=end.aborted,
                bytes=run.output.total,
            )

    def answer(self) -> dict[str, Any]:
        """What the caller gets."""
        run = self.run
        assert run.end is not None
        return {
            "exitCode": run.end.exit_code,
            "output": run.output.text,
            "aborted": run.end.aborted,
            "signal": run.end.signal,
            "truncated": run.output.truncated,
            "injected": self.injected,
            "shellId": run.id,
            **({} if run.end.error is None else {"error": run.end.error}),
        }

    async def live(self, timeout: float) -> None:
        """Run it to its end."""
        process = self._process
        try:
            try:
                await process.start()
            except OSError as exc:
                self.settle(f"The shell could not be started: {exc.strerror or exc}")
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._stop_when_wanted, timeout)
                await process.wait()
                # What it left behind may hold its pipe.
                with trio.move_on_after(DRAIN):
                    await self._drained.wait()
                await self._end_rest()
                nursery.cancel_scope.cancel()
            self.settle()
            await self._inject()
        finally:
            await process.kill()
            self.run.stop("The session ended")  # cut short, or a bug
            self.settle()
            self.told.set()

    async def _stop_when_wanted(self, timeout: float) -> None:
        with trio.move_on_after(timeout):
            await self._stopping.wait()
        self.stop(f"It ran for more than {timeout:g} s")
        self._process.send(signal.SIGTERM)
        await trio.sleep(TERM_GRACE)
        self._process.send(signal.SIGKILL)

    async def _end_rest(self) -> None:
        """The shell has ended: what is left of its group goes too."""
        process = self._process
        if not process.has_members():
            return
        process.send(signal.SIGTERM)
        for _ in range(round(REST_GRACE / REST_STEP)):
            await trio.sleep(REST_STEP)  # nobody tells of the end of what is no child of ours
            if not process.has_members():
                return
        process.send(signal.SIGKILL)
        with trio.move_on_after(0.2):
            await self._drained.wait()

    # ---- output ---------------------------------------------------------------------------------

    async def _read(self) -> None:
        output, stream = self.run.output, self._process.output
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                due = output.due(trio.current_time())
                data = None
                with trio.move_on_at(float("inf") if due is None else due):
                    data = await stream.receive_some(_READ)
                if data is None:
                    self._publish()
                    continue
                if not data:
                    break
                output.feed(bytes(data))
                due = output.due(trio.current_time())
                if due is not None and due <= trio.current_time():
                    self._publish()
                if len(data) > _READ // 2:
                    await trio.sleep(_PACE_DROPPING if output.full else _PACE)
        self._drained.set()

    def _publish(self) -> None:
        run, session = self.run, self._session
        if run.end is not None:
            return
        for text in run.output.take(trio.current_time()):
            meta = {
                "serverTimestamp": int(time.time() * 1000),
                "source": "user-shell",
                "shellId": run.id,
            }
            update = {"sessionUpdate": SHELL_OUTPUT, "output": text, "_meta": meta}
            session.publish_update(update, run.client)

    async def _inject(self) -> None:
        """Into the agent's history, where it takes it; what fails there is no failure here."""
        session, run = self._session, self.run
        if session.over is not None or not session.has_agent:
            return
        if not session.profile.quirks.private_meta:
            return
        assert run.end is not None
        params = {
            "sessionId": session.id,
            "command": run.command,
            "output": for_history(run.output.text),
            "exitCode": run.end.exit_code,
        }
        with trio.move_on_after(INJECT_TIMEOUT):
            try:
                told = await session.request("qwen/control/session/shell_history", params)
            except GatewayError as exc:
                log.info("shell_not_injected", session_id=session.id, error=exc.message)
                return
            self.injected = isinstance(told, dict) and told.get("injected") is not False


def checked_command(value: Any) -> str:
    """A command that can be given to a shell. Raises ``invalid_request``."""
    if not isinstance(value, str) or not value.strip():
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            "`command` is required and must be a non-empty string",
            field="command",
        )
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = -1
    if "\0" in value or not 0 <= size <= MAX_COMMAND:
        raise GatewayError(
            ErrorKind.INVALID_REQUEST,
            f"`command` must be text of at most {MAX_COMMAND} bytes without NUL",
            remedy="put a longer script into a file",
            field="command",
        )
    return value
