"""One running agent: its process, its pipes, its JSON-RPC link, its end.

The host's nursery holds the stdout reader, the stdin writer, the stderr tail and the exit watcher.
It ends when the child exits or `stop` is called; the reason is stored, every pending call fails
with it, and nothing of it is raised into the pool.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import structlog
import trio

from acp_gateway import __version__
from acp_gateway.config import Settings
from acp_gateway.protocol.errors import METHOD_NOT_FOUND, AgentError, ErrorKind, GatewayError
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.redact import redact
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.runtime.watchdog import Watchdog
from acp_gateway.wire.json_codec import dumps, loads
from acp_gateway.wire.jsonrpc import (
    InvalidMessage,
    Line,
    notification_bytes,
    open_line,
    peek_update,
    request_bytes,
)
from acp_gateway.wire.ndjson import LineSplitter

log = structlog.get_logger("acp_gateway.agent")

READ_BYTES: Final = 64 * 1024
STDERR_LINES: Final = 40
GARBAGE_LOGGED: Final = 20
_OPENING: Final = frozenset({"session/new", "session/fork"})
EARLY_SESSIONS: Final = 64
EARLY_BYTES: Final = 8 * 1024 * 1024
EOF_GRACE: Final = 2.0
TERM_GRACE: Final = 4.0
KILL_GRACE: Final = 4.0
STDIN_STALL: Final = 30.0
DRAIN_AFTER_EXIT: Final = 0.5
HANG_UP_GRACE: Final = 2.0


class AgentLink(Protocol):
    """What a host tells a session; all calls are synchronous and in wire order."""

    def on_update(self, line: bytes, kind: str, now: float) -> None: ...
    def on_agent_request(self, host: AgentHost, id: bytes, method: str, params: Any) -> None: ...
    def on_agent_notification(self, method: str, params: dict[str, Any], line: bytes) -> None: ...
    def wake(self) -> None: ...
    async def flow(self) -> None: ...
    @property
    def over_flow(self) -> bool: ...


class Call:
    """A request to the agent that awaits its answer. ``on_reply`` runs in wire order."""

    __slots__ = ("_done", "error", "id", "method", "on_reply", "result")

    def __init__(self, id: int, method: str, on_reply: Callable[[Call], None] | None) -> None:
        self.id = id
        self.method = method
        self.on_reply = on_reply
        self.result: msgspec.Raw | None = None
        self.error: GatewayError | None = None
        self._done = trio.Event()

    def settle(self, result: msgspec.Raw | None, error: GatewayError | None) -> None:
        self.result = result
        self.error = error
        if self.on_reply is not None:
            self.on_reply(self)
        self._done.set()

    @property
    def settled(self) -> bool:
        return self._done.is_set()

    async def wait(self) -> msgspec.Raw:
        """The raw result. Raises `AgentError` or the host's reason for its end."""
        await self._done.wait()
        if self.error is not None:
            # A fresh traceback for each waiter.
            raise self.error.with_traceback(None)
        assert self.result is not None
        return self.result


class AgentHost:
    def __init__(
        self,
        profile: AgentProfile,
        settings: Settings,
        watchdog: Watchdog,
        cwd: Path,
        environ: Mapping[str, str],
    ) -> None:
        self.profile = profile
        self.cwd = cwd
        self.initialize_result: dict[str, Any] = {}
        self.exited = trio.Event()
        """Set when the process is gone and every call has failed."""
        self.ending: GatewayError | None = None
        """Why the host ended or is about to."""
        self.sessions: dict[str, AgentLink] = {}
        self.last_used = 0.0
        self.pid: int | None = None
        self.returncode: int | None = None
        self.leases = 0
        self.stamp: Any = None
        """What its program was when it was started."""
        self._settings = settings
        self._watchdog = watchdog
        self._environ = environ
        self._process: trio.Process | None = None
        self._calls: dict[int, Call] = {}
        self._next_id = 0
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._out_wakeup = Wakeup()
        self._stop = trio.Event()
        self._splitter = LineSplitter(settings.max_agent_line_bytes)
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._early: dict[str, list[tuple[bytes, str]]] = {}
        self._early_bytes = 0
        self._garbage = 0
        self._stdout_done = trio.Event()

    # ---- life -----------------------------------------------------------------------------------

    async def run(
        self, *, task_status: trio.TaskStatus[AgentHost] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Start, shake hands, report ready, serve until the end.

        Raises ``agent_start_failed`` only before it reported ready.
        """
        started = False
        try:
            await self._spawn()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_stdout)
                nursery.start_soon(self._write_stdin)
                nursery.start_soon(self._tail_stderr)
                nursery.start_soon(self._watch_exit)
                try:
                    await self._handshake()
                except GatewayError as exc:
                    self.ending = exc
                else:
                    started = True
                    task_status.started(self)
                    if self._can_ping():
                        nursery.start_soon(self._ping)
                    await self._stop.wait()
                await self._end_process()
                nursery.cancel_scope.cancel()
        finally:
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

    async def _spawn(self) -> None:
        argv = self.profile.argv
        try:
            self._process = await trio.lowlevel.open_process(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self.profile.cwd or self.cwd,
                env=self.profile.environment(self._environ),
                start_new_session=True,
            )
        except OSError as exc:
            raise GatewayError(
                ErrorKind.AGENT_START_FAILED,
                f"The agent {self.profile.name} could not be started: {exc.strerror or exc}",
                remedy=self.profile.install or f"check the command {argv[0]!r}",
                agent=self.profile.name,
            ) from None
        self.pid = self._process.pid
        self._watchdog.add(self.pid)
        log.debug("agent_started", agent=self.profile.name, pid=self.pid)

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
                f"The agent {self.profile.name} did not answer initialize as an ACP v1 agent",
                remedy="check that the command starts an ACP agent on stdio",
                agent=self.profile.name,
                stderr=self.stderr_tail(),
            )
        self.initialize_result = result
        self.last_used = trio.current_time()

    def _start_failure(self, exc: GatewayError, timeout: float) -> GatewayError:
        name = self.profile.name
        if exc.kind is ErrorKind.AGENT_UNRESPONSIVE:
            text = f"The agent {name} did not answer initialize within {timeout:g} s"
        elif isinstance(exc, AgentError):
            text = f"The agent {name} refused initialize: {redact(exc.message)}"
        else:
            text = f"The agent {name} ended during its start ({self.exit_text()})"
        tail = self.stderr_tail()
        telling = self._telling_line()
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
        assert self._process is not None
        self.returncode = await self._process.wait()
        # What it wrote before it ended is still in the pipe; a grandchild may hold it open.
        with trio.move_on_after(DRAIN_AFTER_EXIT):
            await self._stdout_done.wait()
        if self.ending is None:
            self.ending = GatewayError(
                ErrorKind.AGENT_EXITED,
                f"The agent {self.profile.name} ended unexpectedly ({self.exit_text()})",
                remedy="send the prompt again: the session is restored where the agent can load it",
                agent=self.profile.name,
                exitCode=self.returncode if self.returncode >= 0 else None,
                signal=self._signal_name(),
                stderr=self.stderr_tail(),
            )
            if self.initialize_result:
                log.warning(
                    "agent_exited", agent=self.profile.name, pid=self.pid, status=self.exit_text()
                )
        self._fail_calls()
        self._stop.set()

    def _signal_name(self) -> str | None:
        if self.returncode is None or self.returncode >= 0:
            return None
        with suppress(ValueError):
            return signal.Signals(-self.returncode).name
        return str(-self.returncode)

    def exit_text(self) -> str:
        name = self._signal_name()
        if name is not None:
            return f"killed by {name}"
        return "still running" if self.returncode is None else f"exit status {self.returncode}"

    def _telling_line(self) -> str | None:
        """The line of stderr that likely says why: the last with an error in it, or the last."""
        lines = list(self._stderr)
        telling = [line for line in lines if "error" in line.lower()]
        chosen = (telling or lines)[-1:]
        return redact(chosen[0]) if chosen else None

    def stderr_tail(self) -> list[str]:
        """The last lines that the agent wrote to stderr, secrets redacted."""
        return [redact(line) for line in list(self._stderr)[-8:]]

    async def _end_process(self) -> None:
        """The ladder: close stdin, TERM the group, KILL the group. Every step has a deadline."""
        process = self._process
        assert process is not None
        if self.returncode is None and process.stdin is not None:
            await process.stdin.aclose()
            if not self.profile.quirks.ignores_eof:
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

    async def _finish(self) -> None:
        process = self._process
        if process is not None:
            self._signal_group(signal.SIGKILL)
            with trio.CancelScope(shield=True), trio.move_on_after(KILL_GRACE):
                await process.wait()
                self.returncode = process.returncode
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        await stream.aclose()
            if self.pid is not None:
                self._watchdog.remove(self.pid)
        if self.ending is None:
            self.ending = GatewayError(ErrorKind.AGENT_EXITED, "The agent was stopped")
        self._fail_calls()
        self.exited.set()

    def _fail_calls(self) -> None:
        assert self.ending is not None
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.settle(None, self.ending)

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
                        f"The agent {self.profile.name} no longer answers",
                        agent=self.profile.name,
                    )
                )
                return

    # ---- requests to the agent ------------------------------------------------------------------

    def call(
        self, method: str, params: Any, on_reply: Callable[[Call], None] | None = None
    ) -> Call:
        """Send a request. ``on_reply`` sees the answer (or the host's end) in wire order."""
        self._next_id += 1
        call = Call(self._next_id, method, on_reply)
        if not self.alive:
            call.settle(None, self.ending or self._gone())
            return call
        self._calls[call.id] = call
        self._write(request_bytes(call.id, method, params))
        self.last_used = trio.current_time()
        return call

    async def request(self, method: str, params: Any, *, timeout: float) -> Any:
        """Call and wait. Raises `AgentError`, ``agent_exited`` or ``agent_unresponsive``."""
        call = self.call(method, params)
        return loads(bytes(await self.wait(call, timeout)))

    async def wait(self, call: Call, timeout: float) -> msgspec.Raw:
        """The raw result of a call; a late answer is dropped."""
        with trio.move_on_after(timeout):
            return await call.wait()
        self._calls.pop(call.id, None)
        raise GatewayError(
            ErrorKind.AGENT_UNRESPONSIVE,
            f"The agent {self.profile.name} did not answer {call.method} within {timeout:g} s",
            remedy="try again; if it keeps happening, restart the agent",
            agent=self.profile.name,
        )

    def forget(self, call: Call) -> None:
        """Nobody waits for this answer any more."""
        self._calls.pop(call.id, None)

    def notify(self, method: str, params: Any) -> None:
        if self.alive:
            self._write(notification_bytes(method, params))

    def respond(self, id: bytes, result: Any) -> None:
        """Answer a request of the agent; ``id`` is the raw JSON it used."""
        self._write(b'{"jsonrpc":"2.0","id":' + id + b',"result":' + dumps(result) + b"}")

    def respond_error(self, id: bytes, error: dict[str, Any]) -> None:
        self._write(b'{"jsonrpc":"2.0","id":' + id + b',"error":' + dumps(error) + b"}")

    def _gone(self) -> GatewayError:
        return GatewayError(ErrorKind.AGENT_EXITED, f"The agent {self.profile.name} is gone")

    def _write(self, line: bytes) -> None:
        self._out.append(line)
        self._out_bytes += len(line)
        if self._out_bytes > self._settings.max_agent_line_bytes * 2:
            self.end(self._stalled())
        self._out_wakeup.set()

    def _stalled(self) -> GatewayError:
        return GatewayError(
            ErrorKind.AGENT_UNRESPONSIVE,
            f"The agent {self.profile.name} does not read its input",
            agent=self.profile.name,
        )

    async def _write_stdin(self) -> None:
        assert self._process is not None and self._process.stdin is not None
        stdin = self._process.stdin
        try:
            while True:
                await self._out_wakeup.wait()
                while self._out:
                    lines, self._out = self._out, []
                    lines.append(b"")
                    data = memoryview(b"\n".join(lines))
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
                    f"The agent {self.profile.name} closed its {pipe} and went on running",
                    agent=self.profile.name,
                    stderr=self.stderr_tail(),
                )
            )

    # ---- messages of the agent ------------------------------------------------------------------

    async def _read_stdout(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        stdout = self._process.stdout
        assert isinstance(stdout, trio.lowlevel.FdStream)
        fd = stdout.fileno()
        feed = self._splitter.feed
        try:
            while True:
                await trio.lowlevel.wait_readable(fd)
                try:
                    data = os.read(fd, READ_BYTES)
                except BlockingIOError:
                    continue
                if not data:
                    break
                lines = feed(data)
                if self._splitter.dropped:
                    self._log_garbage(b"(a line over the size limit)")
                    self._splitter.dropped = 0
                links = self._handle(lines)
                for link in links:
                    link.wake()
                for link in links:
                    if link.over_flow:
                        await link.flow()
            rest = self._splitter.rest()
            if rest:
                for link in self._handle([rest]):
                    link.wake()
        except (OSError, trio.ClosedResourceError):
            pass
        finally:
            self._stdout_done.set()
        await self._hung_up("output")

    def _handle(self, lines: list[bytes]) -> set[AgentLink]:
        now = time.time()
        touched: set[AgentLink] = set()
        sessions = self.sessions
        for line in lines:
            peeked = peek_update(line)
            if peeked is None:
                self._handle_other(line, now, touched)
                continue
            link = sessions.get(peeked[0])
            if link is None:
                self._keep_early(peeked[0], line, peeked[1])
            else:
                link.on_update(line, peeked[1], now)
                touched.add(link)
        return touched

    def _handle_other(self, line: bytes, now: float, touched: set[AgentLink]) -> None:
        if not line or line.isspace():
            return
        try:
            message = open_line(line)
        except InvalidMessage:
            self._log_garbage(line)
            return
        if not message.method:
            self._handle_response(message, line)
            return
        params = message.params_object()
        session_id = params.get("sessionId")
        link = self.sessions.get(session_id) if isinstance(session_id, str) else None
        if link is not None:
            touched.add(link)
        if message.id:
            if link is not None:
                link.on_agent_request(self, bytes(message.id), message.method, params)
            else:
                self.respond_error(
                    bytes(message.id),
                    {
                        "code": METHOD_NOT_FOUND,
                        "message": f"{message.method} needs a session that lives here",
                    },
                )
        elif message.method == "session/update":
            # Only the strict peek refused it (a lone surrogate, say).
            update = params.get("update")
            if link is not None and isinstance(update, dict):
                clean = dumps({"jsonrpc": "2.0", "method": "session/update", "params": params})
                link.on_update(clean, str(update.get("sessionUpdate", "")), now)
        elif message.method == "$/cancel_request":
            for each in set(self.sessions.values()):
                each.on_agent_notification(message.method, params, line)
        elif link is not None:
            link.on_agent_notification(message.method, params, line)
        elif session_id is None and len(self.sessions) == 1:
            only = next(iter(self.sessions.values()))
            only.on_agent_notification(message.method, params, line)
            touched.add(only)

    def _handle_response(self, message: Line, line: bytes) -> None:
        try:
            id = loads(bytes(message.id)) if message.id else None
        except ValueError:
            id = None
        call = self._calls.pop(id, None) if type(id) is int else None
        if call is None:
            if not message.id or id is None:
                self._log_garbage(line)
            return
        if message.error and bytes(message.error) != b"null":
            call.settle(None, AgentError(message.error_object()))
        elif message.result:
            call.settle(message.result, None)
        else:
            call.settle(
                None, AgentError({"code": -32603, "message": "the agent's answer is empty"})
            )

    def _keep_early(self, session_id: str, line: bytes, kind: str) -> None:
        # Updates of a session may come before the answer that names it. When none is awaited they
        # are of a session that has been closed.
        if not any(call.method in _OPENING for call in self._calls.values()):
            self._early.clear()
            self._early_bytes = 0
            return
        if len(self._early) >= EARLY_SESSIONS and session_id not in self._early:
            return
        if self._early_bytes + len(line) > EARLY_BYTES:
            return
        self._early_bytes += len(line)
        self._early.setdefault(session_id, []).append((line, kind))

    def adopt(self, session_id: str, link: AgentLink) -> None:
        """Route this session's messages to ``link``; what came before its answer is delivered."""
        self.sessions[session_id] = link
        now = time.time()
        for line, kind in self._early.pop(session_id, ()):
            self._early_bytes -= len(line)
            link.on_update(line, kind, now)

    def release(self, session_id: str, link: AgentLink) -> None:
        if self.sessions.get(session_id) is link:
            del self.sessions[session_id]

    def _log_garbage(self, line: bytes) -> None:
        self._garbage += 1
        if self._garbage <= GARBAGE_LOGGED:
            text = line[:200].decode(errors="replace")
            log.warning("agent_garbage", agent=self.profile.name, pid=self.pid, line=redact(text))

    async def _tail_stderr(self) -> None:
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
        text = line.decode(errors="replace").strip()
        if text:
            self._stderr.append(text[:1000])
            log.debug(
                "agent_stderr", agent=self.profile.name, pid=self.pid, line=redact(text[:1000])
            )
