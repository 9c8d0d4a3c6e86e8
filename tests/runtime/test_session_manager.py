"""Limits, the reaper, joins, lists, locks: all sessions of a daemon."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from support.runtime_rig import (
    Recorder,
    make_rig,
    obedient,
    received,
    rig,
    settings,
    texts,
    until,
)

from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.writer_lock import WriterLocks

DEADLINE = 20.0


async def test_the_session_limit(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log"), max_sessions=2) as r:
        with trio.fail_after(DEADLINE):
            one, two = await r.create(), await r.create()
            clients = [Recorder("one"), Recorder("two")]
            subs = [clients[0].attach(one), clients[1].attach(two)]
            with pytest.raises(GatewayError) as caught:
                await r.create()
            assert caught.value.kind is ErrorKind.SESSION_LIMIT and caught.value.data["limit"] == 2
            # One that nobody follows gives way, unless it has something to do.
            two.detach(clients[1], subs[1])
            turn = r.prompt(two, "wait")
            await until(lambda: texts(two))
            with pytest.raises(GatewayError):
                await r.create()
            two.cancel_turn(turn)
            await r.outcome(turn)
            three = await r.create()
            await two.ended.wait()
            assert one.over is None and set(r.manager.sessions) == {one.id, three.id}


async def test_what_cannot_be_loaded_again_does_not_give_way(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log", "no-load"), max_sessions=1) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            await r.say(session, "x")
            with pytest.raises(GatewayError) as caught:
                await r.create()
            assert caught.value.kind is ErrorKind.SESSION_LIMIT and session.over is None


async def test_an_idle_session_makes_room_for_its_agent(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log"), max_agents=1) as r:
        with trio.fail_after(DEADLINE):
            old = await r.create()
            await r.say(old, "x")
            new = await r.create()
            assert set(r.manager.sessions) == {new.id} and old.over is not None


async def test_the_reaper(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with rig(
        tmp_path, obedient(tmp_path / "log"), linger=1000.0, linger_unprompted=60.0
    ) as r:
        fresh, used, followed = await r.create(), await r.create(), await r.create()
        turn = r.prompt(used, "x")
        await until(lambda: turn.settled)
        client = Recorder()
        sub = client.attach(followed)

        async def pass_time(seconds: float) -> None:
            # Not over the deadlines of an agent that is being stopped.
            await until(lambda: all(host.alive for host in r.pool.hosts))
            mock_clock.jump(seconds)
            await trio.testing.wait_all_tasks_blocked()

        await pass_time(55)
        assert fresh.over is None
        await pass_time(10)
        assert fresh.over is not None and used.over is None and followed.over is None
        await until(lambda: fresh.id not in r.manager.sessions)
        await pass_time(930)
        assert used.over is None
        await pass_time(20)
        assert used.over is not None and followed.over is None
        followed.detach(client, sub)
        await pass_time(50)
        assert followed.over is None, "its time starts when the last one leaves"
        await pass_time(15)
        assert followed.over is not None


async def test_a_running_turn_is_no_idleness(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log"), linger=10.0) as r:
        session = await r.create()
        r.prompt(session, "wait")
        await until(lambda: texts(session))
        mock_clock.jump(500)
        await trio.testing.wait_all_tasks_blocked()
        assert session.over is None


async def test_concurrent_loads_join(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log)) as r:
        with trio.fail_after(DEADLINE):
            found = []

            async def load() -> None:
                found.append(await r.load("stored-1"))

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(load)
            assert len(set(map(id, found))) == 1 and len(received(log, "session/load")) == 1
            assert texts(found[0]) == ["replayed"]
            assert await r.load("stored-1", "resume") is found[0]


async def test_a_failed_load_holds_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log", "refuse-load")) as r:
        with trio.fail_after(DEADLINE):
            for _ in range(2):
                with pytest.raises(GatewayError) as caught:
                    await r.load("stored-1")
                assert "the file is broken" in caught.value.message
            assert not r.manager._loading and not r.manager._locks._held and not r.manager.sessions


async def test_load_while_it_closes_waits_for_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log)) as r:
        with trio.fail_after(DEADLINE):
            old = await r.create()
            old.begin_close("test")
            new = await r.load(old.id)
            assert new is not old and new.id == old.id and old.ended.is_set()
            assert new.epoch != old.epoch


async def test_a_key_finds_what_it_made(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            params = {"cwd": str(tmp_path)}
            one = await r.manager.create(params, r.profile, "key")
            assert await r.manager.create(params, r.profile, "key") is one
            assert await r.manager.create(params, r.profile, "other") is not one


async def test_directories_outside_are_refused(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    async with rig(inside, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            for params in ({"cwd": "/"}, {"cwd": str(tmp_path)}, {"additionalDirectories": ["/"]}):
                with pytest.raises(GatewayError) as caught:
                    await r.create(**params)
                assert caught.value.kind is ErrorKind.WORKSPACE_MISMATCH
            assert not r.pool.hosts


async def test_the_list_joins_live_and_stored(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            # Without an agent there is nothing to ask, and none is started.
            assert (await r.manager.catalog.page({}, r.profile))[
                "sessions"
            ] == [] and not r.pool.hosts
            live = await r.create()
            await r.load("stored-1")
            listed = (await r.manager.catalog.page({}, r.profile))["sessions"]
            ids = [info["sessionId"] for info in listed]
            assert sorted(ids) == sorted([live.id, "stored-1"])
            assert all(info["_meta"]["acp_gateway"]["live"] for info in listed)
            await r.manager.sessions["stored-1"].close("test")
            listed = (await r.manager.catalog.page({}, r.profile))["sessions"]
            assert [info["sessionId"] for info in listed] == [live.id, "stored-1"]
            assert "acp_gateway" not in listed[1].get("_meta", {})
            none = await r.manager.catalog.page({"cwd": "/elsewhere"}, r.profile)
            assert live.id not in [info["sessionId"] for info in none["sessions"]]


async def test_delete_closes_and_forgets(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log)) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            await r.manager.delete(session.id, {}, r.profile)
            assert session.over is not None and not r.manager.sessions
            (told,) = received(log, "session/delete")
            assert told["message"]["params"]["sessionId"] == session.id


async def test_fork_lives_in_a_child_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log)) as r:
        with trio.fail_after(DEADLINE):
            source = await r.create()
            params = {"cwd": str(tmp_path), "sessionId": source.id}
            fork = await r.manager.fork(params, r.profile)
            assert fork.id == f"{source.id}-fork" and len(r.pool.hosts) == 2
            assert (await source.agent()) is not (await fork.agent())
            assert (await r.say(fork, "x"))["stopReason"] == "end_turn"


async def test_two_daemons_do_not_write_one_session(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log")) as one:
        other = make_rig(tmp_path, [one.profile], settings())
        with trio.fail_after(DEADLINE):
            session = await one.load("stored-1")
            async with trio.open_nursery() as nursery:
                await nursery.start(other.pool.run)
                await nursery.start(other.manager.run)
                with pytest.raises(GatewayError) as caught:
                    await other.load("stored-1")
                assert caught.value.kind is ErrorKind.SESSION_WRITER_CONFLICT
                assert not other.pool.hosts, "an agent was started for nothing"
                await session.close("test")
                assert (await other.load("stored-1")).over is None
                nursery.cancel_scope.cancel()
        assert not other.children()


def test_a_lock_on_a_file_that_was_unlinked_is_no_lock(tmp_path: Path) -> None:
    first, second, third = (WriterLocks(tmp_path) for _ in range(3))
    first.acquire("a", "s")
    (file,) = tmp_path.iterdir()
    second_fd = file.open("r+b")  # opened before the holder lets go …
    first.release("a", "s")
    second.acquire("a", "s")
    second_fd.close()
    with pytest.raises(GatewayError):
        third.acquire("a", "s")
    second.release("a", "s")
    third.acquire("a", "s")
    third.release("a", "s")
    assert not list(tmp_path.iterdir())


async def test_draining_takes_nothing_new(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            await r.manager.close_all("daemon_shutdown", 10)
            assert session.ended.is_set() and not r.manager.sessions
            with pytest.raises(GatewayError) as caught:
                await r.create()
            assert caught.value.kind is ErrorKind.SHUTTING_DOWN
