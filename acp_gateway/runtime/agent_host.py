"""One running agent: a process and the JSON-RPC link over its pipes, from handshake to end.

The host's nursery holds the stdout reader, the stdin writer, the stderr tail and the exit watcher.
It ends when the child exits or `stop` is called; the reason is stored, every pending call fails
with it, and nothing of it is raised into the pool.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from structlog.contextvars import bind_contextvars

from acp_gateway import __version__
from acp_gateway.config import Settings
from acp_gateway.core.gait import Gait
from acp_gateway.protocol.errors import AgentError, ErrorKind, GatewayError
from acp_gateway.runtime.agent_process import AgentProcess
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.agent_rpc import AgentRpc
from acp_gateway.runtime.redact import redact
from acp_gateway.runtime.tracing import begin, begin_task, finish, place
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.runtime.watchdog import Watchdog
from acp_gateway.wire.large_line import LARGE
from acp_gateway.wire.ndjson import LineSplitter

log = structlog.get_logger("acp_gateway.agent")

READ_BYTES: Final = 64 * 1024
PAUSE: Final = 0.001
"""Seconds that a reader waits for more from an agent that writes many small pieces."""
STDIN_STALL: Final = 30.0
DRAIN_AFTER_EXIT: Final = 0.5
HANG_UP_GRACE: Final = 2.0


class AgentHost(AgentRpc):
    def __init__(
        self,
        profile: AgentProfile,
        settings: Settings,
        watchdog: Watchdog,
        cwd: Path,
        environ: Mapping[str, str],
    ) -> None:
        super().__init__(profile.name)
        self.profile = profile
        self.cwd = cwd
        self.process = AgentProcess(profile, cwd, environ, watchdog)
        self.initialize_result: dict[str, Any] = {}
        self.exited = trio.Event()
        """Set when the process is gone and every call has failed."""
        self.leases = 0
        self.outdated = False
        """It was started before the last sign-in."""
        self.began = trio.current_time()
        self.read_bytes = self.written_bytes = 0
        """Over its pipes."""
        self.stamp: Any = None
        """What its program was when it was started."""
        self._settings = settings
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._out_wakeup = Wakeup()
        self._stop = trio.Event()
        self._splitter = LineSplitter(settings.max_agent_line_bytes, LARGE)
        self._stdout_done = trio.Event()

    @property
    def pid(self) -> int | None:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    def stderr_tail(self) -> list[str]:
        """The last lines that the agent wrote to stderr, secrets redacted."""
        return self.process.stderr_tail()

    # ---- life -----------------------------------------------------------------------------------

    async def run(
        self, *, task_status: trio.TaskStatus[AgentHost] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Start, shake hands, report ready, serve until the end.

        Raises ``agent_start_failed`` only before it reported ready.
        """
        started = False
        asked_by = place()
        begin_task(agent=self.name)
        span = begin("acp_gateway.agent.initialize", asked_by, **{"acp_gateway.agent": self.name})
        try:
            await self.process.start()
            bind_contextvars(pid=self.pid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_stdout)
                nursery.start_soon(self._write_stdin)
                nursery.start_soon(self.process.tail_stderr)
                nursery.start_soon(self._watch_exit)
                try:
                    await self._handshake()
                except GatewayError as exc:
                    self.ending = exc
                else:
                    started = True
                    finish(span, None, **{"acp_gateway.agent_pid": self.pid})
                    task_status.started(self)
                    if self._can_ping():
                        nursery.start_soon(self._ping)
                    await self._stop.wait()
                await self.process.end()
                nursery.cancel_scope.cancel()
        finally:
            finish(span, "agent_start_failed")
            await self._finish()
        if not started and self.ending is not None:
            raise self.ending

    async def stop(self, reason: GatewayError | None = None) -> None:
        """End the agent by the ladder (stdin, TERM, KILL) and wait for it; bounded."""
        self.end(reason)
        await self.exited.wait()

    def end(self, reason: GatewayError | None = None) -> None:
        """Begin `stop` without waiting."""
        if self.ending is None:
            self.ending = reason or GatewayError(ErrorKind.AGENT_EXITED, "The agent was stopped")
        self._stop.set()

    @property
    def can_load(self) -> bool:
        """Does the agent advertise ``loadSession``?"""
        return self._capabilities.get("loadSession") is True

    def can(self, what: str) -> bool:
        """Does the agent advertise this session capability (``{}`` means yes)?"""
        sessions = self._capabilities.get("sessionCapabilities")
        return isinstance(sessions, dict) and isinstance(sessions.get(what), dict)

    @property
    def _capabilities(self) -> dict[str, Any]:
        found = self.initialize_result.get("agentCapabilities")
        return found if isinstance(found, dict) else {}

    @property
    def alive(self) -> bool:
        return self.ending is None and not self.exited.is_set()

    @property
    def end_word(self) -> str:
        """How it ended, in a word: ``crashed``, ``unresponsive`` or ``stopped``."""
        ending = self.ending
        if ending is None or ending.kind is ErrorKind.AGENT_EXITED:
            # What was asked for has nothing to tell.
            return "crashed" if ending is not None and ending.data else "stopped"
        return "unresponsive" if ending.kind is ErrorKind.AGENT_UNRESPONSIVE else "stopped"

    async def _handshake(self) -> None:
        timeout = self.profile.handshake_timeout or self._settings.handshake_timeout
        quirks = self.profile.quirks
        params: dict[str, Any] = {
            # The gateway speaks v1 to every agent; agents echo what they do not know.
            "protocolVersion": 1,
            "clientCapabilities": {
                "fs": {
                    "readTextFile": quirks.advertise_fs_read,
                    "writeTextFile": quirks.advertise_fs_write,
                },
                "terminal": False,
                "session": {"configOptions": {"boolean": {}}},
            },
            "clientInfo": {"name": "acp-gateway", "title": "ACP Gateway", "version": __version__},
        }
        if quirks.initialize_meta:
            params["_meta"] = dict(quirks.initialize_meta)
        try:
            result = await self.request("initialize", params, timeout=timeout)
        except GatewayError as exc:
            raise self._start_failure(exc, timeout) from None
        # The version is judged by the shape of the answer: goose echoes any number.
        if not isinstance(result, dict) or "protocolVersion" not in result:
            raise GatewayError(
                ErrorKind.AGENT_START_FAILED,
                f"The agent {self.name} did not answer initialize as an ACP v1 agent",
                remedy="check that the command starts an ACP agent on stdio",
                agent=self.name,
                stderr=self.stderr_tail(),
            )
        self.initialize_result = result
        self.last_used = trio.current_time()

    def _start_failure(self, exc: GatewayError, timeout: float) -> GatewayError:
        name = self.name
        if exc.kind is ErrorKind.AGENT_UNRESPONSIVE:
            text = f"The agent {name} did not answer initialize within {timeout:g} s"
        elif isinstance(exc, AgentError):
            text = f"The agent {name} refused initialize: {redact(exc.message)}"
        else:
            text = f"The agent {name} ended during its start ({self.process.exit_text()})"
        tail = self.stderr_tail()
        telling = self.process.telling_line()
        if telling is not None:
            text += f": {telling}"
        return GatewayError(
            ErrorKind.AGENT_START_FAILED,
            text,
            remedy=self.profile.install or "run the command by hand and look at its output",
            agent=name,
            stderr=tail,
        )

    async def _watch_exit(self) -> None:
        process = self.process
        await process.wait()
        # What it wrote before it ended is still in the pipe; a grandchild may hold it open.
        with trio.move_on_after(DRAIN_AFTER_EXIT):
            await self._stdout_done.wait()
        if self.ending is None:
            status = process.exit_text()
            self.ending = GatewayError(
                ErrorKind.AGENT_EXITED,
                f"The agent {self.name} ended unexpectedly ({status})",
                remedy="send the prompt again: the session is restored where the agent can load it",
                agent=self.name,
                exitCode=None if process.signal_name else process.returncode,
                signal=process.signal_name,
                stderr=self.stderr_tail(),
            )
            if self.initialize_result:
                log.warning("agent_exited", agent=self.name, pid=self.pid, status=status)
        self.fail_calls()
        self._stop.set()

    async def _finish(self) -> None:
        await self.process.kill()
        if self.ending is None:
            self.ending = GatewayError(ErrorKind.AGENT_EXITED, "The agent was stopped")
        self.fail_calls()
        self.exited.set()

    # ---- health ---------------------------------------------------------------------------------

    def _can_ping(self) -> bool:
        quirks = self.profile.quirks
        meta = self.initialize_result.get("_meta")
        return bool(
            quirks.ping_method
            and isinstance(meta, dict)
            and any(key in meta for key in quirks.initialize_meta)
        )

    async def _ping(self) -> None:
        """Two missed pings in a row end the agent."""
        method = self.profile.quirks.ping_method
        assert method is not None
        missed = nonce = 0
        while True:
            await trio.sleep(self._settings.health_interval)
            nonce += 1
            try:
                await self.request(
                    method, {"v": 1, "nonce": nonce}, timeout=self._settings.handshake_timeout
                )
                missed = 0
            except GatewayError:
                missed += 1
            if missed >= 2:
                self.end(
                    GatewayError(
                        ErrorKind.AGENT_UNRESPONSIVE,
                        f"The agent {self.name} no longer answers",
                        agent=self.name,
                    )
                )
                return

    # ---- pipes ----------------------------------------------------------------------------------

    def write(self, line: bytes) -> None:
        """Send a line, or queue what its pipe does not take; an agent that does not take it in
        time is ended."""
        data = line + b"\n"
        self.written_bytes += len(data)
        if not self._out_bytes:
            # Mostly the pipe is empty: a task less on the way of a prompt.
            with suppress(OSError, trio.ClosedResourceError):  # the writer will find out
                data = data[os.write(self.process.stdin.fileno(), data) :]
            if not data:
                return
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > self._settings.max_agent_line_bytes * 2:
            self.end(self._stalled())
        self._out_wakeup.set()

    def _stalled(self) -> GatewayError:
        return GatewayError(
            ErrorKind.AGENT_UNRESPONSIVE,
            f"The agent {self.name} does not read its input",
            agent=self.name,
        )

    async def _write_stdin(self) -> None:
        stdin = self.process.stdin
        try:
            while True:
                await self._out_wakeup.wait()
                while self._out:
                    data = memoryview(b"".join(self._out))
                    self._out.clear()
                    for start in range(0, len(data), READ_BYTES):
                        with trio.fail_after(STDIN_STALL):
                            await stdin.send_all(data[start : start + READ_BYTES])
                    self._out_bytes -= len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._hung_up("input")
        except trio.TooSlowError:
            self.end(self._stalled())

    async def _hung_up(self, pipe: str) -> None:
        """An agent that closed a pipe and lives on is of no use; the exit watcher tells else."""
        await trio.sleep(HANG_UP_GRACE)
        if self.returncode is None:
            self.end(
                GatewayError(
                    ErrorKind.AGENT_EXITED,
                    f"The agent {self.name} closed its {pipe} and went on running",
                    agent=self.name,
                    stderr=self.stderr_tail(),
                )
            )

    async def _read_stdout(self) -> None:
        fd = self.process.stdout.fileno()
        feed = self._splitter.feed
        gait = Gait()
        try:
            while True:
                began = time.perf_counter()
                await trio.lowlevel.wait_readable(fd)
                waited = time.perf_counter() - began
                try:
                    data = os.read(fd, READ_BYTES)
                except BlockingIOError:
                    continue
                if not data:
                    break
                self.read_bytes += len(data)
                lines = feed(data)
                if self._splitter.dropped:
                    self.log_garbage(b"(a line over the size limit)")
                    self._splitter.dropped = 0
                large = self._splitter.take_large()
                if large is not None:
                    await self._relay(large)
                links = self.handle(lines)
                for link in links:
                    link.flush()
                for link in links:
                    if link.over_flow:
                        await link.flow()
                if gait.is_hasty(len(data), waited):
                    await trio.sleep(PAUSE)
            rest = self._splitter.rest()
            if rest:
                for link in self.handle([rest]):
                    link.flush()
        except (OSError, trio.ClosedResourceError):
            pass
        finally:
            self._stdout_done.set()
        await self._hung_up("output")

    async def _relay(self, parts: list[bytes]) -> None:
        for link in self.handle_large(parts):
            if link is not None:
                link.flush()
                if link.over_flow:
                    await link.flow()
            await trio.lowlevel.checkpoint()
