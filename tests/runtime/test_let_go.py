"""An ended session holds nothing of what it told, and its last reader still gets all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from support.event_reader import Reader, hub_of
from support.fake_agent import fake_manager, start

LINE = b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":{"n":%d}}}'


@pytest.mark.lets_go
async def test_an_ended_session_holds_nothing(tmp_path: Path) -> None:
    async with fake_manager(tmp_path) as (manager, _):
        session = await start(manager, tmp_path)
        reader = Reader(hub_of(manager), session)
        for number in range(150):
            session.on_updates([LINE % number], "plan", 0.0)
        session.flush()
        ring, last = session.ring, session.ring.last_id
        await session.close("test")
        with trio.fail_after(5):
            await session.ended.wait()
            await trio.testing.wait_all_tasks_blocked()
        assert session.ring is not ring and not session.subs
        assert (len(session.ring), session.ring.kept_bytes, session.transcript.size) == (0, 0, 0)
        assert session.ring.last_id == ring.last_id > last
        got = b""
        while parts := reader.stream._outlet.collect():
            got += b"".join(parts)
        assert got.count(b"event: session_update") == 150 and b"event: session_closed" in got
