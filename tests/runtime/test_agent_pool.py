"""Spares, admission, shared agents, sign-in: what the pool lends and when."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trio.testing
from support.runtime_rig import obedient, received, rig, running, scripted, until

from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime import agent_pool

DEADLINE = 20.0


async def test_the_spare_is_taken_and_replaced(tmp_path: Path) -> None:
    async with rig(tmp_path, scripted("polite"), spare_agents=1) as r:
        with trio.fail_after(DEADLINE):
            assert not r.pool.hosts, "a spare without a client"
            assert await r.pool.handshake(r.profile) is not None
            (spare,) = r.pool.hosts
            async with r.pool.lease(r.profile, tmp_path) as host:
                assert host is spare
                await until(lambda: len(r.pool.hosts) == 2)
                (other,) = r.pool.hosts - {spare}
                assert other.alive and other.leases == 0
            await until(lambda: r.pool.hosts == {other})
            assert host.pid is not None and not running(host.pid)


async def test_another_directory_gets_an_agent_of_its_own(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    async with rig(tmp_path, scripted("polite"), spare_agents=1) as r:
        with trio.fail_after(DEADLINE):
            await r.pool.handshake(r.profile)
            (spare,) = r.pool.hosts
            async with r.pool.lease(r.profile, other) as host:
                assert host is not spare and host.cwd == other


async def test_an_unused_spare_makes_room_for_another_directory(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    async with rig(tmp_path, scripted("polite"), spare_agents=1, max_agents=1) as r:
        with trio.fail_after(DEADLINE):
            await r.pool.handshake(r.profile)
            (spare,) = r.pool.hosts
            async with r.pool.lease(r.profile, other) as host:
                assert host.cwd == other and not spare.alive


async def test_many_at_once_do_not_queue_for_one_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each start takes half a second; one after the other would take three.
    code = (
        "import sys, time; sys.stdin.readline(); time.sleep(0.5);"
        'print(\'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":1}}\', flush=True);'
        "sys.stdin.read()"
    )
    profile = scripted("x", argv=(*scripted("polite").argv[:3], "-c", code))
    async with rig(tmp_path, profile, spare_agents=1) as r:
        with trio.fail_after(DEADLINE):
            r.pool.client_seen(profile)
            most = 0

            async def lend() -> None:
                nonlocal most
                async with r.pool.lease(profile, tmp_path):
                    pass

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, r.pool._starting)
                    await trio.sleep(0.02)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                async with trio.open_nursery() as lenders:
                    for _ in range(6):
                        lenders.start_soon(lend)
                nursery.cancel_scope.cancel()
            assert most >= 5


async def test_an_idle_spare_is_retired_and_comes_back(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with rig(tmp_path, scripted("polite"), spare_agents=1, spare_idle=60.0) as r:
        r.pool.client_seen(r.profile)
        (spare,) = await until(lambda: set(r.pool.hosts))
        mock_clock.jump(50)
        await trio.testing.wait_all_tasks_blocked()
        assert spare.alive
        mock_clock.jump(15)
        await until(lambda: not spare.alive)
        for _ in range(4):  # the ladder's own deadlines
            mock_clock.jump(5)
            await trio.testing.wait_all_tasks_blocked()
        await until(lambda: not r.pool.hosts)
        r.pool.client_seen(r.profile)
        await until(lambda: r.pool.hosts)


def copy_agent(path: Path) -> None:
    """A polite agent in a file that a test may change."""
    source = Path(scripted("polite").argv[3])
    text = source.read_text().replace("from __future__ import annotations", "")
    path.write_text(f"import sys; sys.path.insert(0, {str(source.parent)!r})\n{text}")


async def test_a_spare_of_an_older_binary_is_never_lent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = tmp_path / "agent.py"
    copy_agent(agent)
    profile = scripted("x", argv=(*scripted("x").argv[:3], str(agent), "polite"))
    other = tmp_path / "other"
    other.mkdir()
    async with rig(tmp_path, profile, spare_agents=1) as r:
        with trio.fail_after(DEADLINE):
            await r.pool.handshake(profile)
            (spare,) = r.pool.hosts
            os.utime(agent, ns=(1, 1))
            # This start saw the new program; the spare is of the old one all the same.
            async with r.pool.lease(profile, other), r.pool.lease(profile, tmp_path) as host:
                assert host is not spare and not spare.alive


async def test_a_changed_binary_retires_the_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_pool, "TICK", 0.05)
    agent = tmp_path / "agent.py"
    copy_agent(agent)
    profile = scripted("x", argv=(*scripted("x").argv[:3], str(agent), "polite"))
    async with rig(tmp_path, profile, spare_agents=1) as r:
        with trio.fail_after(DEADLINE):
            await r.pool.handshake(profile)
            (spare,) = r.pool.hosts
            await trio.sleep(0.3)
            assert spare.alive
            os.utime(agent, ns=(1, 1))
            await until(lambda: not spare.alive)
            await until(lambda: any(each.alive for each in r.pool.hosts))


# ---- failures -----------------------------------------------------------------------------------


async def test_failing_starts_back_off(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    starts = tmp_path / "log"
    async with rig(tmp_path, obedient(starts, "fail-start"), spare_agents=1) as r:

        async def pass_time(seconds: int) -> None:
            for _ in range(seconds):
                mock_clock.jump(1)
                await trio.testing.wait_all_tasks_blocked()
                await until(lambda: not r.pool._starting)

        def tries() -> int:
            return len(received(starts, "initialize"))

        r.pool.client_seen(r.profile)
        await until(lambda: r.pool.failures)
        assert r.pool.failures["scripted"].kind is ErrorKind.AGENT_START_FAILED
        await pass_time(120)
        # 1, 2, 4, 8, 16, 32, 60 s between them, and looked at every 5 s: about seven, not 24.
        assert 5 <= tries() <= 8
        assert not r.pool.hosts


async def test_a_lease_tells_why_the_start_failed(tmp_path: Path) -> None:
    async with rig(tmp_path, scripted("exit-initialize"), spare_agents=1) as r:
        with trio.fail_after(DEADLINE):
            assert await r.pool.handshake(r.profile) is None
            with pytest.raises(GatewayError) as caught:
                async with r.pool.lease(r.profile, tmp_path):
                    raise AssertionError("it was lent")
            assert caught.value.kind is ErrorKind.AGENT_START_FAILED
            with pytest.raises(GatewayError) as caught:
                async with r.pool.borrow(r.profile):
                    raise AssertionError("it was lent")
            assert caught.value.kind is ErrorKind.AGENT_START_FAILED


async def test_a_failing_host_never_crashes_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the reason is a bug of our own."""

    async def broken(self: object) -> None:
        raise ZeroDivisionError("a bug")

    async with rig(tmp_path, scripted("polite"), spare_agents=1) as r:
        with trio.fail_after(DEADLINE):
            with monkeypatch.context() as patch:
                patch.setattr(agent_pool.AgentHost, "_handshake", broken)
                assert await r.pool.handshake(r.profile) is None  # the spare failed
                with pytest.raises(GatewayError) as caught:
                    async with r.pool.lease(r.profile, tmp_path):
                        raise AssertionError("it was lent")
                assert caught.value.kind is ErrorKind.AGENT_START_FAILED
                assert "a bug" not in str(caught.value.to_jsonrpc())
            async with r.pool.lease(r.profile, tmp_path) as host:
                assert host.alive


# ---- admission ----------------------------------------------------------------------------------


async def test_no_more_agents_than_allowed(tmp_path: Path) -> None:
    async with rig(tmp_path, scripted("polite"), max_agents=2) as r:
        with trio.fail_after(DEADLINE):
            async with AsyncExitStack() as stack:
                for _ in range(2):
                    await stack.enter_async_context(r.pool.lease(r.profile, tmp_path))
                with pytest.raises(GatewayError) as caught:
                    await stack.enter_async_context(r.pool.lease(r.profile, tmp_path))
            assert caught.value.kind is ErrorKind.AGENT_LIMIT
            assert caught.value.remedy is not None and "--isolation shared" in caught.value.remedy
            await r.pool.room()
            async with r.pool.lease(r.profile, tmp_path):
                pass


async def test_no_more_agents_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = scripted("polite", expected_memory_mb=200)
    monkeypatch.setattr(agent_pool, "available_memory", lambda: 1000 << 20)
    async with rig(tmp_path, profile, max_agents=0) as r:
        assert r.pool.max_agents == 4  # 80 % of 1,000 MB
        monkeypatch.setattr(agent_pool, "available_memory", lambda: 100 << 20)
        with trio.fail_after(DEADLINE), pytest.raises(GatewayError) as caught:
            async with r.pool.lease(profile, tmp_path):
                raise AssertionError("it was lent")
        assert caught.value.kind is ErrorKind.AGENT_LIMIT
        assert "memory" in caught.value.message


# ---- shared isolation ---------------------------------------------------------------------------


async def test_sessions_share_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_pool, "TICK", 0.02)
    async with rig(
        tmp_path, scripted("polite"), isolation="shared", spare_agents=1, sessions_per_agent=3
    ) as r:
        with trio.fail_after(DEADLINE):
            r.pool.client_seen(r.profile)
            async with AsyncExitStack() as stack:
                lent = []
                for _ in range(3):
                    lent.append(await stack.enter_async_context(r.pool.lease(r.profile, tmp_path)))
                    await trio.sleep(0.1)  # several ticks: none may start another one
                assert len({host.pid for host in lent}) == 1 and len(r.pool.hosts) == 1
                fourth = await stack.enter_async_context(r.pool.lease(r.profile, tmp_path))
                assert fourth is not lent[0]
            assert lent[0].alive, "giving it back must not stop a shared agent"


async def test_concurrent_sessions_share_the_first_start(tmp_path: Path) -> None:
    async with rig(tmp_path, scripted("polite"), isolation="shared") as r:
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(r.create)
            assert len(r.pool.hosts) == 1 and len(r.manager.sessions) == 5


async def test_an_idle_shared_agent_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_pool, "TICK", 0.02)
    async with rig(tmp_path, scripted("polite"), isolation="shared", agent_idle=0.3) as r:
        with trio.fail_after(DEADLINE):
            async with r.pool.lease(r.profile, tmp_path) as host:
                await trio.sleep(0.6)
                assert host.alive
            await host.exited.wait()
            await until(lambda: not r.pool.hosts)


# ---- sign-in ------------------------------------------------------------------------------------


async def test_authenticate_is_repeated_on_every_new_agent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log)) as r:
        with trio.fail_after(DEADLINE):
            await r.pool.authenticate(r.profile, {"methodId": "key"})
            first = {line["pid"] for line in received(log, "authenticate")}
            assert len(first) == 1
            (helper,) = r.pool.hosts
            await helper.stop()
            async with r.pool.lease(r.profile, tmp_path) as host:
                lines = received(log, "authenticate")
                assert lines[-1]["pid"] == host.pid
                assert lines[-1]["message"]["params"] == {"methodId": "key"}
            r.pool.retire_spares(r.profile)
            async with r.pool.lease(r.profile, tmp_path):
                assert len(received(log, "authenticate")) == len(lines), "signed in after logout"


async def test_a_start_cancelled_in_its_sign_in_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log, "hang-authenticate")) as r:
        with trio.fail_after(DEADLINE):
            r.pool._auth["scripted"] = {"methodId": "key"}
            async with trio.open_nursery() as nursery:

                async def lend() -> None:
                    async with r.pool.lease(r.profile, tmp_path):
                        raise AssertionError("it was lent")

                nursery.start_soon(lend)
                await until(lambda: received(log, "authenticate"))
                nursery.cancel_scope.cancel()
            await until(lambda: not r.pool.hosts)


async def test_close_ends_all_at_once(tmp_path: Path) -> None:
    async with rig(tmp_path, scripted("ignores-term")) as r:
        with trio.fail_after(DEADLINE):
            async with AsyncExitStack() as stack:
                for _ in range(4):
                    await stack.enter_async_context(r.pool.lease(r.profile, tmp_path))
                began = trio.current_time()
                await r.pool.close()
                # Each ladder takes a second; side by side they take one, not four.
                assert trio.current_time() - began < 3
                assert not r.pool.hosts
                with pytest.raises(GatewayError) as caught:
                    await stack.enter_async_context(r.pool.lease(r.profile, tmp_path))
                assert caught.value.kind is ErrorKind.SHUTTING_DOWN
