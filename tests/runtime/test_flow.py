"""The flow rule: who may hold up an agent, and what the ring must keep meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio
import trio.lowlevel
import trio.testing
from support.runtime_rig import Recorder, make_rig, obedient, rig, settings, texts, until

from acp_gateway.core.outlet import Subscription
from acp_gateway.runtime.session import Opening, Session

LIMIT = 100_000
STALL = 2.0


def lone_session(tmp_path: Path, **changes: Any) -> Session:
    """A session whose updates the test makes itself."""
    base = {"flow_pause_bytes": LIMIT, "stall_timeout": STALL, "event_ring_bytes": 50_000}
    chosen = settings(**(base | changes))
    made = make_rig(tmp_path, [obedient(tmp_path / "log")], chosen)
    opening = Opening(how="new", params={}, cwd=tmp_path, root=tmp_path, roots=(tmp_path,))
    manager = made.manager
    session = manager._new(opening, made.profile)
    session.id = session.agent_id = "s"
    return session


def follower(session: Session, name: str) -> tuple[Recorder, Subscription]:
    client = Recorder(name)
    sub = client.attach(session)
    client.outlet.pumped = True
    return client, sub


def emit(session: Session, count: int, first: int = 0, size: int = 1000) -> None:
    for number in range(first, first + count):
        update = {
            "sessionUpdate": "agent_message_chunk",
            "content": {"type": "text", "text": f"{number:06d}".ljust(size, ".")},
        }
        message = {
            "jsonrpc": "2.0",
            "method": "session/update",
            "params": {"sessionId": "s", "update": update},
        }
        session.on_updates([json.dumps(message).encode()], "agent_message_chunk", 0.0)
    session.wake()


def numbers(messages: list[dict[str, Any]]) -> list[int]:
    return [int(each["params"]["update"]["content"]["text"][:6]) for each in messages]


async def test_a_progressing_reader_holds_up_the_agent(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    session = lone_session(tmp_path)
    client, _ = follower(session, "slow")
    emit(session, 80)
    assert not session.over_flow
    emit(session, 40, 80)
    assert session.over_flow
    client.outlet.write_began(trio.current_time())
    async with trio.open_nursery() as nursery:
        over = trio.Event()

        async def flow() -> None:
            await session.flow()
            over.set()

        nursery.start_soon(flow)
        for _ in range(5):  # ten seconds, some bytes taken in each stretch
            mock_clock.jump(STALL * 0.9)
            client.outlet.write_moved(trio.current_time())
            await trio.testing.wait_all_tasks_blocked()
            assert not over.is_set(), "a reader that makes progress was left behind"
        assert numbers(client.read()) == list(range(120)), "the ring dropped what it had not read"
        session.drained()
        await trio.testing.wait_all_tasks_blocked()
        assert over.is_set()


async def test_a_stalled_reader_holds_up_nobody(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    session = lone_session(tmp_path)
    stalled, lost = follower(session, "stalled")
    quick, _ = follower(session, "quick")
    emit(session, 120)
    assert numbers(quick.read()) == list(range(120))
    stalled.outlet.write_began(trio.current_time())
    assert session.over_flow
    async with trio.open_nursery() as nursery:
        over = trio.Event()

        async def flow() -> None:
            await session.flow()
            over.set()

        nursery.start_soon(flow)
        await trio.testing.wait_all_tasks_blocked()
        assert not over.is_set()
        mock_clock.jump(STALL + 0.1)
        await trio.testing.wait_all_tasks_blocked()
        assert over.is_set()
    assert not session.over_flow
    got: list[int] = []
    for first in range(120, 320, 20):
        emit(session, 20, first)
        got += numbers(quick.read())
    assert got == list(range(120, 320))
    assert lost.cursor < session.ring.first_id - 1, "the ring kept what a stalled reader lacks"
    assert session.ring.kept_bytes < 50_000 + 20 * 1200
    # When it comes back it is told of the gap.
    first = stalled.read()[0]
    assert first["params"]["kind"] == "state_resync_required"


async def test_a_burst_is_no_lag(tmp_path: Path) -> None:
    """Nothing is blocked: the writer just has not had its turn."""
    session = lone_session(tmp_path)
    client, _ = follower(session, "quick")
    emit(session, 500)
    assert numbers(client.read()) == list(range(500))
    session.drained()
    assert not session.over_flow


async def test_a_reader_that_left_holds_up_nobody(tmp_path: Path) -> None:
    session = lone_session(tmp_path)
    client, sub = follower(session, "gone")
    emit(session, 120)
    assert session.over_flow
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.flow)
        await trio.testing.wait_all_tasks_blocked()
        session.detach(client, sub)
        with trio.fail_after(5):
            await trio.testing.wait_all_tasks_blocked()
            assert not nursery.child_tasks


async def test_a_session_over_holds_up_nobody(tmp_path: Path) -> None:
    """Its shared agent works for others too."""
    session = lone_session(tmp_path)
    follower(session, "slow")
    emit(session, 120)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.flow)
        await trio.testing.wait_all_tasks_blocked()
        session.begin_close("client_close")
        session._finish()
        with trio.fail_after(1):
            await trio.testing.wait_all_tasks_blocked()
            assert not nursery.child_tasks


async def test_the_daemon_s_budget_is_shared(tmp_path: Path) -> None:
    session = lone_session(tmp_path, event_ring_bytes=10_000_000, total_ring_bytes=1_000_000)
    emit(session, 3000)
    assert session.ring.kept_bytes <= 1_000_000
    history = session.transcript.size + session.ring.kept_bytes
    assert history > 2_900_000, "what left the ring was not kept compacted"


async def test_history_is_whole_after_the_ring_moved_on(tmp_path: Path) -> None:
    session = lone_session(tmp_path)
    emit(session, 300)
    late = Recorder("late")
    late.attach(session)
    text = "".join(each["params"]["update"]["content"]["text"] for each in late.read())
    assert [int(text[n : n + 6]) for n in range(0, len(text), 1000)] == list(range(300))


async def test_the_agent_really_waits(tmp_path: Path) -> None:
    """End to end: an agent that floods is read no further than the slow reader allows."""
    profile = obedient(tmp_path / "log")
    async with rig(
        tmp_path, profile, flow_pause_bytes=LIMIT, stall_timeout=60.0, event_ring_bytes=50_000
    ) as r:
        with trio.fail_after(30):
            session = await r.create()
            client, sub = follower(session, "slow")
            client.outlet.write_began(trio.current_time())
            turn = r.prompt(session, "chunks 5000 1000")
            await until(lambda: session._pausing)
            stopped = session.ring.last_id
            await trio.sleep(0.3)
            assert session.ring.last_id == stopped, "the reader went on"
            assert session.ring.lag_bytes(sub.cursor) < LIMIT + 2 * 65536
            got: list[int] = []

            def take() -> None:
                updates = [message["params"].get("update", {}) for message in client.read()]
                got.extend(
                    int(update["content"]["text"][:6])
                    for update in updates
                    if update.get("sessionUpdate") == "agent_message_chunk"
                )
                session.drained()

            while not turn.settled:  # as a slow reader would
                take()
                await trio.sleep(0.005)
            take()
            assert got == list(range(5000))
            assert len(texts(session)) < 5000
