"""Cancel every operation at every step of the scheduler: nothing may be left behind.

One step is one time that any task of the run is resumed. An operation is run again and again, each
time cancelled one step later, until it gets through before its turn comes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing
from support.runtime_rig import (
    Rig,
    make_host,
    obedient,
    received,
    rig,
    running,
    scripted,
    until,
)

from acp_gateway.core.shell_run import ShellOutput, ShellRun
from acp_gateway.runtime import session_shell
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.session_shell import Running
from acp_gateway.runtime.shell_process import ShellProcess

MOST_STEPS = 400
DEADLINE = 100.0


class Guillotine(trio.abc.Instrument):
    """Cancels a scope at the n-th step since it was set up."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self.scope = scope
        self.left = steps
        self.fell = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.fell = True
            self.scope.cancel()

    @asynccontextmanager
    async def armed(self) -> AsyncIterator[None]:
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(self)


async def cut_short(steps: int, what: Callable[[], Awaitable[object]]) -> bool:
    """Run ``what``, cancelled at that step. True when it got through before."""
    done = False
    with trio.CancelScope() as scope:
        async with Guillotine(scope, steps).armed():
            await what()
            done = True
    assert done or scope.cancelled_caught, "Cancelled was swallowed"
    return done


def steps() -> range:
    return range(1, MOST_STEPS)


async def test_host_run(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        for step in steps():
            made, books = make_host(scripted("polite"), tmp_path)

            async def run(made: object = made) -> None:
                async with trio.open_nursery() as nursery:
                    await nursery.start(made.run)  # type: ignore[attr-defined]
                    nursery.cancel_scope.cancel()

            through = await cut_short(step, run)
            assert made.exited.is_set() and not made._calls
            assert not books.listed and not any(map(running, books.seen)), step
            if through:
                break
        else:
            pytest.fail("it never got through")


async def nothing_left(r: Rig, hosts: int = 0) -> None:
    """The pool settles to so many hosts, its books and ours agree."""
    await until(lambda: len(r.pool.hosts) == hosts)
    alive = {host.pid for host in r.pool.hosts}
    await until(lambda: set(r.children()) == alive)
    assert r.books.listed == alive
    assert r.pool._starting == 0 and r.manager.starting == 0
    assert not r.manager._loading
    await until(lambda: not any(host._calls for host in r.pool.hosts))
    for id, session in r.manager.sessions.items():
        assert session.id == id and session.over is None


@pytest.mark.parametrize("isolation", ["session", "shared"])
async def test_create(tmp_path: Path, isolation: str) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log), isolation=isolation) as r:
        with trio.fail_after(DEADLINE):
            shared = isolation == "shared"
            if shared:
                await (await r.create()).close("warm")
            for step in steps():
                through = await cut_short(step, r.create)
                for session in tuple(r.manager.sessions.values()):
                    assert through, "a session that nobody got"
                    await session.close("test")
                await nothing_left(r, hosts=1 if shared else 0)
                if through:
                    break
            else:
                pytest.fail("it never got through")
            if shared:
                # What the agent opened all the same was closed again.
                made = len(received(log, "session/new"))
                await until(lambda: len(received(log, "session/close")) == made)
                (host,) = r.pool.hosts
                assert not host.sessions and host.leases == 0


async def test_load(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log), isolation="shared") as r:
        with trio.fail_after(DEADLINE):
            await (await r.create()).close("warm")
            for step in steps():
                through = await cut_short(step, lambda: r.load("stored-1"))
                for session in tuple(r.manager.sessions.values()):
                    assert through
                    await session.close("test")
                (host,) = r.pool.hosts
                assert not host.sessions and host.leases == 0
                assert not r.manager._locks._held
                await nothing_left(r, hosts=1)
                if through:
                    break
            else:
                pytest.fail("it never got through")


async def test_prompt(tmp_path: Path) -> None:
    """Whoever waits for a turn does not own it: it ends all the same."""
    async with rig(tmp_path, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            for step in steps():
                turn = r.prompt(session, "x")
                through = await cut_short(step, lambda turn=turn: r.outcome(turn))
                assert await r.outcome(turn) == {"stopReason": "end_turn"}
                await nothing_left(r, hosts=1)
                if through:
                    break
            else:
                pytest.fail("it never got through")


async def test_request_in_a_session(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            params = {"sessionId": session.id, "modeId": "m"}
            for step in steps():
                through = await cut_short(step, lambda: session.request("session/set_mode", params))
                await nothing_left(r, hosts=1)
                if through:
                    break
            else:
                pytest.fail("it never got through")


async def test_close(tmp_path: Path) -> None:
    """A close goes on when its caller has gone."""
    async with rig(tmp_path, obedient(tmp_path / "log"), isolation="shared") as r:
        with trio.fail_after(DEADLINE):
            for step in steps():
                session = await r.create()
                turn = r.prompt(session, "wait")
                await until(lambda s=session: s.ring.last_id > 1)
                through = await cut_short(step, lambda s=session: s.close("test"))
                session.begin_close("test")  # the cancel may have come before its first step
                await session.ended.wait()
                assert turn.settled and not r.manager.sessions
                (host,) = r.pool.hosts
                assert not host.sessions
                await until(lambda h=host: not h._calls)
                await nothing_left(r, hosts=1)
                if through:
                    break
            else:
                pytest.fail("it never got through")


async def test_lease(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log"), spare_agents=1) as r:
        with trio.fail_after(DEADLINE):

            async def lend() -> None:
                async with r.pool.lease(r.profile, tmp_path):
                    await trio.lowlevel.checkpoint()

            for step in steps():
                through = await cut_short(step, lend)
                await until(lambda: not r.pool._starting)
                assert not any(host.leases for host in r.pool.hosts)
                spares = r.pool._spares["scripted"]
                assert not spares.claimed
                alive = {host for host in r.pool.hosts if host.alive}
                assert alive <= {spares.ready}, "a host that is neither lent nor spare"
                if through:
                    break
            else:
                pytest.fail("it never got through")


def shell_events(session: Session) -> tuple[int, int]:
    """How many commands were told, and how many ends."""
    names = [record.name for record in session.ring.records]
    return names.count("user_shell_command"), names.count("user_shell_result")


async def test_who_waits_for_a_command(tmp_path: Path) -> None:
    """It belongs to the session: it ends, and is told, whoever waits for it."""
    async with rig(tmp_path, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()

            async def run() -> None:
                made = await session.shells.start("echo x; exit 3", "client")
                await made.told.wait()
                assert made.answer()["exitCode"] == 3

            for step in steps():
                through = await cut_short(step, run)
                await until(lambda: not len(session.shells))
                begun, ended = shell_events(session)
                assert begun == ended
                await nothing_left(r, hosts=1)
                if through:
                    break
            else:
                pytest.fail("it never got through")


@pytest.mark.parametrize("command", ["echo x; sleep 0.05", "trap '' TERM; sleep 1000 & echo x"])
async def test_a_command_itself(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short anywhere it leaves no process, and its end is told once."""
    for name, seconds in {"DRAIN": 0.05, "REST_GRACE": 0.04, "TERM_GRACE": 0.1}.items():
        monkeypatch.setattr(session_shell, name, seconds)
    async with rig(tmp_path, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            seen = len(r.books.seen)
            for step in steps():
                process = ShellProcess(command, tmp_path, {"PATH": os.environ["PATH"]}, r.books)
                shell = ShellRun(
                    id=str(step), command=command, cwd="/", client="c", output=ShellOutput(1000)
                )
                made = Running(session, shell, process)
                if step % 3 == 0:
                    made.stop("at once")
                _, before = shell_events(session)
                through = await cut_short(step, lambda made=made: made.live(60.0))
                assert made.told.is_set() or shell.end is None, step
                assert (shell.end is None) == (shell_events(session)[1] == before)
                await until(lambda p=process: not p.has_members())
                if through and step % 3:
                    break
            else:
                pytest.fail("it never got through")
            await nothing_left(r, hosts=1)
            assert len(r.books.seen) > seen


async def test_a_session_that_closes_while_commands_run(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            for step in (1, 2, 3, 5, 8, 13, 21):
                session = await r.create()
                ring = session.ring

                async def run(session: Session = session) -> None:
                    made = await session.shells.start("sleep 1000", "client")
                    await made.told.wait()

                await cut_short(step, run)
                await session.close("test")
                names = [record.name for record in ring.records]
                assert names.count("user_shell_command") == names.count("user_shell_result")
                assert names[-1] == "session_closed"
                await nothing_left(r)
