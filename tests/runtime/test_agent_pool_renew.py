"""After a sign-in, new sessions get children that were started behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from support.runtime_rig import obedient, rig, until


async def test_the_spare_of_before_is_not_lent(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log"), spare_agents=1) as r:
        r.pool.client_seen(r.profile)
        spares = r.pool._spares["scripted"]
        with trio.fail_after(30):
            old = await until(lambda: spares.ready)
            r.pool.renew(r.profile)
            session = await r.create()
            assert (await session.agent()) is not old
            await old.exited.wait()


async def test_a_spare_that_is_starting_is_started_again(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log"), spare_agents=1) as r:
        spares = r.pool._spares["scripted"]
        with trio.fail_after(30):
            r.pool.client_seen(r.profile)
            assert spares.starting is not None and not r.pool.hosts
            r.pool.renew(r.profile)
            session = await r.create()  # waits for the spare
            host = await session.agent()
            assert not host.outdated and len(r.books.seen) >= 2
            assert host.pid != r.books.seen[0]


@pytest.mark.parametrize("busy", [True, False])
async def test_a_shared_child_of_before_serves_out_its_sessions(tmp_path: Path, busy: bool) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log), isolation="shared") as r:
        with trio.fail_after(30):
            first = await r.create()
            old = await first.agent()
            if not busy:
                await first.close("test")
            r.pool.renew(r.profile)
            second = await r.create()
            assert (await second.agent()) is not old
            if busy:
                assert old.alive
                await first.close("test")
                await old.exited.wait()
            third = await r.create()
            assert (await third.agent()) is (await second.agent())
