"""Pools, sessions and clients in the test's own process, with real agents behind them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from acp_gateway.config import Settings
from acp_gateway.core.event_ring import Record
from acp_gateway.core.identity import OPEN
from acp_gateway.core.mediator import Question, Verdict, Voter
from acp_gateway.core.outlet import Outlet, Subscription
from acp_gateway.runtime.agent_host import AgentHost
from acp_gateway.runtime.agent_pool import AgentPool
from acp_gateway.runtime.agent_profile import AgentProfile, Quirks
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.sessions import SessionManager
from acp_gateway.runtime.watchdog import Watchdog
from acp_gateway.runtime.workspace import Workspace
from acp_gateway.runtime.writer_lock import WriterLocks
from acp_gateway.transports.outlets import resync_line

TESTS = Path(__file__).resolve().parent.parent
# Without site-packages an interpreter starts in a third of the time.
PYTHON = (sys.executable, "-S", "-E")


def scripted(mode: str, *arguments: str, **fields: Any) -> AgentProfile:
    """A bad agent of tests/agents/scripted.py."""
    argv = (*PYTHON, str(TESTS / "agents" / "scripted.py"), mode, *arguments)
    return _profile(argv, fields)


def obedient(log: Path, *flags: str, **fields: Any) -> AgentProfile:
    """The agent of tests/support/obedient_agent.py."""
    argv = (*PYTHON, str(TESTS / "support" / "obedient_agent.py"), *flags)
    return _profile(argv, {"env_set": {"AGENT_LOG": str(log)}} | fields)


def _profile(argv: tuple[str, ...], fields: dict[str, Any]) -> AgentProfile:
    base: dict[str, Any] = {"name": "scripted", "title": "Scripted", "expected_memory_mb": 1}
    return AgentProfile(**(base | {"argv": argv, "quirks": Quirks()} | fields))


def settings(**changes: Any) -> Settings:
    """No spare and short deadlines; ``changes`` win."""
    base: dict[str, Any] = {
        "spare_agents": 0,
        "handshake_timeout": 20.0,
        "agent_request_timeout": 20.0,
        "cancel_timeout": 0.5,
        "max_agents": 32,
    }
    return Settings(**(base | changes))


class Books(Watchdog):
    """A watchdog that only keeps the books."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def add(self, group: int) -> None:
        super().add(group)
        self.seen.append(group)

    @property
    def listed(self) -> set[int]:
        return self._groups


def running(pid: int) -> bool:
    """Is there such a process, other than as a zombie?"""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return sys.platform != "linux"
    return stat.rpartition(")")[2].split()[0] != "Z"


async def until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true value of ``what``; in real time, whatever clock trio has."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"never true within {seconds} s"
        await trio.to_thread.run_sync(time.sleep, 0.005)
    return value


def received(log: Path, method: str | None = None) -> list[dict[str, Any]]:
    """What the obedient agents received, in order; only requests of ``method`` when given."""
    try:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    except OSError:
        return []
    if method is None:
        return lines
    return [line for line in lines if line["message"].get("method") == method]


class Recorder:
    """A client of a session (`runtime.session.Client`) with an outlet that nobody pumps."""

    def __init__(self, name: str = "client") -> None:
        self.id = self.origin = self.client_id = name
        self.loopback = True
        self.identity = OPEN
        self.reads_files = self.writes_files = False
        self.present = True
        self.asked: list[Question] = []
        self.settled: list[Question] = []
        self.ended: list[Session] = []
        self.files: dict[str, Any] = {}
        self.outlet = Outlet(
            lambda records: [each.line + b"\n" for each in records],
            lambda payload: payload + b"\n",
            lambda: None,
            max_bytes=1 << 30,
            resync_line=resync_line,
        )

    def ask(self, session: Session, question: Question) -> None:
        self.asked.append(question)

    def question_over(self, session: Session, question: Question) -> None:
        self.settled.append(question)

    def session_over(self, session: Session) -> None:
        self.ended.append(session)

    async def forward(self, session: Session, method: str, params: Any) -> Any:
        return self.files[method]

    def attach(self, session: Session, **how: Any) -> Subscription:
        sub = session.attach(self, **({"history": True} | how))
        self.outlet.add(sub)
        for question in session.questions:
            self.ask(session, question)
        return sub

    def vote(self, session: Session, question: Question, result: Any) -> bool:
        """Did this answer settle the question?"""
        voter = Voter(client_id=self.client_id, loopback=self.loopback)
        decision = session.desk.vote(session.id, question.request_id, result, voter)
        return decision.verdict is Verdict.RESOLVED

    def read(self) -> list[dict[str, Any]]:
        """Everything that waits."""
        lines: list[dict[str, Any]] = []
        while parts := self.outlet.collect():
            lines += [json.loads(line) for line in b"".join(parts).splitlines()]
        return lines


def records(session: Session) -> list[Record]:
    return session.ring.read(0, session.ring.last_id)


def texts(session: Session) -> list[str]:
    """The texts of all agent chunks in the ring."""
    return [
        json.loads(record.line)["params"]["update"]["content"]["text"]
        for record in records(session)
        if record.name == "agent_message_chunk"
    ]


def notices(session: Session, kind: str) -> list[dict[str, Any]]:
    return [
        json.loads(record.line)["params"]["data"]
        for record in records(session)
        if record.name == kind
    ]


@attrs.define
class Rig:
    """A pool, a manager on it, and the books of its processes."""

    root: Path
    settings: Settings
    books: Books
    pool: AgentPool
    manager: SessionManager

    @property
    def profile(self) -> AgentProfile:
        return next(iter(self.pool.profiles.values()))

    async def create(self, **params: Any) -> Session:
        return await self.manager.create({"cwd": str(self.root)} | params, self.profile)

    async def load(self, session_id: str, how: Any = "load") -> Session:
        params = {"cwd": str(self.root), "sessionId": session_id}
        return await self.manager.open(how, params, self.profile)

    def prompt(self, session: Session, text: str, origin: str | None = None, **how: Any) -> Any:
        params = {"sessionId": session.id, "prompt": [{"type": "text", "text": text}]}
        return session.submit(params, origin=origin, **how)

    async def say(self, session: Session, text: str, origin: str | None = None) -> Any:
        """Prompt and wait for the outcome."""
        return await self.outcome(self.prompt(session, text, origin))

    async def outcome(self, turn: Any) -> Any:
        over = trio.Event()
        turn.when_settled(lambda _: over.set())
        await over.wait()
        result = turn.outcome
        return result if isinstance(result, dict | Exception) else json.loads(bytes(result))

    def children(self) -> list[int]:
        return [pid for pid in self.books.seen if running(pid)]


def make_rig(root: Path, profiles: Sequence[AgentProfile], chosen: Settings) -> Rig:
    books = Books()
    table = {profile.name: profile for profile in profiles}
    environ = {"PATH": os.environ["PATH"], "HOME": str(root)}
    pool = AgentPool(table, chosen, books, root, environ)
    locks = WriterLocks(root / ".locks")
    manager = SessionManager(chosen, pool, Workspace((root,)), table, locks)
    return Rig(root, chosen, books, pool, manager)


@asynccontextmanager
async def rig(
    root: Path, profile: AgentProfile | Iterable[AgentProfile], **changes: Any
) -> AsyncIterator[Rig]:
    """A running `Rig`; at its end no process is left, or the test fails."""
    profiles = [profile] if isinstance(profile, AgentProfile) else list(profile)
    made = make_rig(root, profiles, settings(**changes))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(made.pool.run)
            await nursery.start(made.manager.run)
            yield made
            nursery.cancel_scope.cancel()
    finally:
        left = made.children()
        for pid in left:
            with suppress(ProcessLookupError):
                os.killpg(pid, 9)
    assert not left, f"processes left: {left}"
    assert not made.books.listed, "the watchdog still lists groups"


def make_host(profile: AgentProfile, root: Path, **changes: Any) -> tuple[AgentHost, Books]:
    books = Books()
    environ = {"PATH": os.environ["PATH"], "HOME": str(root)}
    return AgentHost(profile, settings(**changes), books, root, environ), books


@asynccontextmanager
async def host(profile: AgentProfile, root: Path, **changes: Any) -> AsyncIterator[AgentHost]:
    """A host that has shaken hands; stopped at the end, with no process left."""
    made, books = make_host(profile, root, **changes)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made
        made.end()
        await made.exited.wait()
    left = [pid for pid in books.seen if running(pid)]
    assert not left, f"processes left: {left}"
