"""Sessions without processes: an agent in memory behind the real session, desk and callbacks.

What the agent sends is read by a task of its own, as the lines of a real one are.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from acp_gateway.config import Settings
from acp_gateway.core.mediator import Policy, Rule
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.agent_profile import AgentProfile, Quirks
from acp_gateway.runtime.agent_rpc import AgentRpc
from acp_gateway.runtime.session import How, Opening, Session
from acp_gateway.runtime.sessions import SessionManager
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.runtime.watchdog import Watchdog
from acp_gateway.runtime.workspace import Workspace
from acp_gateway.runtime.writer_lock import WriterLocks

PROFILE = AgentProfile(
    name="fake",
    title="Fake",
    expected_memory_mb=1,
    argv=("none",),
    quirks=Quirks(),
)
OPTIONS = [
    {"optionId": "yes", "name": "Yes", "kind": "allow_once"},
    {"optionId": "no", "name": "No", "kind": "reject_once"},
]


class FakeHost(AgentRpc):
    """`runtime.agent_host.AgentHost` as a session sees it."""

    def __init__(self, pool: FakePool) -> None:
        super().__init__("fake")
        self.profile = PROFILE
        self.exited = trio.Event()
        self.leases = 0
        self.can_load = pool.can_load
        self._pool = pool
        self._lines: list[bytes] = []
        self._death: GatewayError | None = None
        self._wakeup = Wakeup()
        self.received: list[dict[str, Any]] = []
        self.answers: dict[Any, list[dict[str, Any]]] = {}
        """Answers to the agent's own requests, by their ids."""
        self._asked = 0

    def can(self, what: str) -> bool:
        return what in self._pool.capabilities

    def write(self, line: bytes) -> None:
        message = json.loads(line)
        self.received.append(message)
        if "method" in message:
            self._pool.serve(self, message)
        else:
            self.answers.setdefault(message["id"], []).append(message)
            self._pool.answered(self, message)

    async def run(self) -> None:
        """Its stdout reader and its exit watcher."""
        try:
            while not self.exited.is_set():
                await self._wakeup.wait()
                lines, self._lines = self._lines, []
                for link in self.handle(lines):
                    link.flush()
                self.ending = self.ending or self._death
                if self.ending is not None:
                    break
        finally:
            self.ending = self.ending or self._gone()
            self.fail_calls()
            for session_id in self.sessions:
                self._pool.prompts.pop(session_id, None)
            self.exited.set()

    def send(self, **message: Any) -> None:
        """A message of the agent."""
        self._lines.append(json.dumps({"jsonrpc": "2.0", **message}).encode())
        self._wakeup.set()

    def reply(self, request: dict[str, Any], result: Any) -> None:
        self.send(id=request["id"], result=result)

    def say(self, session_id: str, text: str) -> None:
        content = {"type": "text", "text": text}
        update = {"sessionUpdate": "agent_message_chunk", "content": content}
        self.send(method="session/update", params={"sessionId": session_id, "update": update})

    def ask(self, session_id: str, method: str = "session/request_permission", **more: Any) -> str:
        """A request of the agent; its id."""
        self._asked += 1
        id = f"q{self._asked}"
        if method == "session/request_permission":
            more = {"toolCall": {"toolCallId": "t"}, "options": OPTIONS, **more}
        self.send(id=id, method=method, params={"sessionId": session_id, **more})
        return id

    def end(self, reason: GatewayError | None = None) -> None:
        """The gateway ends it."""
        self.ending = self.ending or reason or self._gone()
        self._wakeup.set()

    def die(self) -> None:
        """It ends by itself."""
        self._death = GatewayError(
            ErrorKind.AGENT_EXITED, "The agent fake ended", exitCode=None, signal="SIGKILL"
        )
        self._wakeup.set()


class FakePool:
    """`runtime.agent_pool.AgentPool` for `FakeHost`s; the agent's behaviour is here."""

    capabilities: tuple[str, ...] = ("close",)

    def __init__(self, *, can_load: bool = True) -> None:
        self.can_load = can_load
        self.nursery: trio.Nursery | None = None
        self.hosts: list[FakeHost] = []
        self.prompts: dict[str, dict[str, Any]] = {}
        """The running ``session/prompt`` of each session."""
        self.gate: trio.Event | None = None
        """A lease waits for it."""
        self.refusal: GatewayError | None = None
        """Why no agent is to be had."""
        self.watchdog = Watchdog()
        self.environ: dict[str, str] = {}
        self._sessions = 0

    @asynccontextmanager
    async def lease(self, profile: AgentProfile, cwd: Path) -> AsyncIterator[FakeHost]:
        if self.gate is not None:
            await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        host = FakeHost(self)
        self.hosts.append(host)
        host.leases += 1
        assert self.nursery is not None
        self.nursery.start_soon(host.run)
        try:
            yield host
        finally:
            host.leases -= 1
            host.end()

    def any_host(self, profile: AgentProfile) -> FakeHost | None:
        return next((host for host in self.hosts if host.alive), None)

    # ---- the agent ------------------------------------------------------------------------------

    def serve(self, host: FakeHost, message: dict[str, Any]) -> None:
        method = message["method"].partition("/")[2]
        handler = getattr(self, f"on_{method}", None)
        if handler is not None:
            handler(host, message)
        elif "id" in message:
            host.reply(message, {})

    def on_new(self, host: FakeHost, message: dict[str, Any]) -> None:
        self._sessions += 1
        host.reply(message, {"sessionId": f"s{self._sessions}"})

    def on_prompt(self, host: FakeHost, message: dict[str, Any]) -> None:
        """Runs until `finish` or a cancel."""
        self.prompts[message["params"]["sessionId"]] = message

    def on_cancel(self, host: FakeHost, message: dict[str, Any]) -> None:
        self.finish(host, message["params"]["sessionId"], "cancelled")

    def finish(self, host: FakeHost, session_id: str, stop: str = "end_turn") -> None:
        request = self.prompts.pop(session_id, None)
        if request is not None:
            host.reply(request, {"stopReason": stop})

    def answered(self, host: FakeHost, message: dict[str, Any]) -> None:
        """The gateway has answered a request of the agent."""


def make_manager(root: Path, pool: Any, settings: Settings) -> SessionManager:
    workspace = Workspace((root,))
    return SessionManager(
        settings, pool, workspace, {PROFILE.name: PROFILE}, WriterLocks(root / ".locks")
    )


async def start(
    manager: SessionManager,
    root: Path,
    *,
    rule: Rule | None = None,
    how: How = "new",
    session_id: str | None = None,
) -> Session:
    """A session of the manager, without a look at the disk (which takes real time)."""
    opening = Opening(
        how=how,
        params={"cwd": str(root), "mcpServers": []},
        session_id=session_id,
        cwd=root,
        root=root,
        roots=(root,),
        rule=rule,
    )
    session = manager._new(opening, PROFILE)
    assert manager._nursery is not None
    await manager._nursery.start(manager._run, session)
    return session


@asynccontextmanager
async def fake_manager(
    root: Path, pool: FakePool | None = None, **settings: Any
) -> AsyncIterator[tuple[SessionManager, FakePool]]:
    pool = pool or FakePool()
    manager = make_manager(root, pool, Settings(**settings))
    async with trio.open_nursery() as nursery:
        pool.nursery = nursery
        await nursery.start(manager.run)
        yield manager, pool
        nursery.cancel_scope.cancel()


def rule(policy: str, quorum: int | None = None) -> Rule:
    return Rule(policy=Policy(policy), quorum=quorum)


async def settle(what: Callable[[], Any], rounds: int = 200) -> Any:
    """Let other tasks run until ``what`` is true; no time passes."""
    for _ in range(rounds):
        value = what()
        if value:
            return value
        await trio.lowlevel.checkpoint()
    raise AssertionError("it never came true")
