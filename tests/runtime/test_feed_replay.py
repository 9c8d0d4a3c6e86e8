"""Event streams in this process: every prefix, gaps, crowds, readers that are slow or stalled."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.event_reader import Reader, hub_of, parse
from support.fake_agent import FakePool, fake_manager, make_manager, start
from trio.testing import MockClock

from acp_gateway.config import Settings
from acp_gateway.core.envelope import sse_envelopes
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.feed import Feed
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.sessions import SessionManager
from acp_gateway.transports import peer_stream
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.operations import sessions
from acp_gateway.transports.operations.call import Call, Caller
from acp_gateway.transports.rest import event_stream

EVENTS = 5000


@pytest.fixture
def clock(mock_clock: MockClock) -> MockClock:
    mock_clock.autojump_threshold = 0
    return mock_clock


def plain_feed(count: int, **changes: Any) -> tuple[Hub, Feed]:
    """The workspace's feed."""
    manager = make_manager(Path("/nowhere"), FakePool(), Settings(**changes))
    feed = manager.feed
    for number in range(1, count + 1):
        feed.notice("tick", data={"n": number})
    return hub_of(manager), feed


def drained(reader: Reader) -> bytes:
    """Everything that waits for it, without a task."""
    got = bytearray()
    while parts := reader.stream._outlet.collect():
        got += b"".join(parts)
    return bytes(got)


def close(reader: Reader) -> None:
    reader.stream._feed.subs.discard(reader.stream._sub)


# ---- every prefix -------------------------------------------------------------------------------


async def test_every_prefix_gets_exactly_its_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, feed = plain_feed(EVENTS)
    framed = {each.id: b"".join(sse_envelopes([each])) for each in feed.ring.read(0, EVENTS)}
    # Encoding each event for each of 5,001 readers would take minutes.
    monkeypatch.setattr(
        event_stream, "sse_envelopes", lambda records: [framed[each.id] for each in records]
    )
    whole = b"".join(framed.values())
    offset = 0
    for last in range(EVENTS + 1):
        offset += len(framed.get(last, b""))
        reader = Reader(hub, feed, last)
        got = drained(reader)
        close(reader)
        size = len(whole) - offset
        assert got[:size] == whole[offset:], last
        (complete,) = parse(got[size:])
        assert complete.id is None and complete.event == "replay_complete"
        count = EVENTS - last
        more = {"lastReplayedEventId": EVENTS, "lastEventId": EVENTS} if count else {}
        assert complete.told == {"replayedCount": count, **more}


async def test_every_prefix_of_what_is_kept_and_of_what_is_not() -> None:
    hub, feed = plain_feed(1000, event_ring_size=100)
    for last in range(1003):
        reader = Reader(hub, feed, last)
        frames = parse(drained(reader))
        close(reader)
        got = [each.id for each in frames if each.id]
        if last < 900 or last > 1000:
            assert frames[0].event == "state_resync_required"
            assert frames[0].told == {
                "reason": "ring_evicted" if last < 900 else "epoch_reset",
                "lastDeliveredId": last,
                "earliestAvailableId": 901,
            }
            assert got == list(range(901, 1001))
        else:
            assert got == list(range(last + 1, 1001))
            assert "state_resync_required" not in [each.event for each in frames]
        assert frames[-1].event == "replay_complete"


async def test_what_counts_as_no_position() -> None:
    hub, feed = plain_feed(3)
    for last in ("", "abc", "-1", "1.5", " 1", "9" * 17):
        reader = Reader(hub, feed, last)
        assert drained(reader) == b"", last
        feed.notice("tick", data={})
        assert [each.event for each in parse(drained(reader))] == ["tick"]
        close(reader)


async def test_replay_over_the_budget_goes_on_live_behind_a_notice() -> None:
    hub, feed = plain_feed(0)
    for _ in range(10):
        feed.notice("tick", data={"x": "x" * 1_000_000})
    reader = Reader(hub, feed, 0)
    frames = parse(drained(reader))
    assert [each.event for each in frames] == [
        *["tick"] * 8,
        "state_resync_required",
        "replay_complete",
    ]
    assert frames[8].told == {
        "reason": "replay_budget_exceeded",
        "lastDeliveredId": 8,
        "earliestAvailableId": 9,
    }
    assert frames[9].told["replayedCount"] == 8
    feed.notice("tick", data={})
    assert [each.id for each in parse(drained(reader))] == [11]


async def test_the_snapshot_stands_first_or_behind_the_replay(tmp_path: Path) -> None:
    async with fake_manager(tmp_path) as (manager, _):
        session = await start(manager, tmp_path)
        hub = hub_of(manager)
        session.publish("tick")
        live, back = Reader(hub, session, query="snapshot=1"), Reader(hub, session, 0)
        both = Reader(hub, session, 0, query="snapshot=1")
        session.publish("tick")
        order = [[each.event for each in parse(drained(each))] for each in (live, back, both)]
        assert order[0] == ["session_snapshot", "tick"]
        assert order[1] == ["tick", "replay_complete", "tick"]
        assert order[2] == ["tick", "replay_complete", "session_snapshot", "tick"]


@pytest.mark.parametrize("value", ["15", "2049", "x", "", "-20", "1e3", "20.0"])
async def test_a_bad_max_queued_is_refused(value: str) -> None:
    hub, feed = plain_feed(0)
    with pytest.raises(GatewayError) as caught:
        Reader(hub, feed, query=f"maxQueued={value}")
    assert caught.value.kind is ErrorKind.INVALID_MAX_QUEUED
    assert not feed.subs


# ---- a session whose ring is too small: the load has it all -------------------------------------


def say(session: Session, pool: FakePool, text: str) -> None:
    """The agent speaks, and is read at once."""
    host = pool.hosts[-1]
    host.say(session.agent_id, text)
    lines, host._lines = host._lines, []
    for link in host.handle(lines):
        link.wake()


@asynccontextmanager
async def session_of(
    root: Path, **settings: Any
) -> AsyncIterator[tuple[Session, FakePool, Hub, SessionManager]]:
    async with fake_manager(root, **settings) as (manager, pool):
        session = await start(manager, root)
        yield session, pool, hub_of(manager), manager


async def begun(session: Session, pool: FakePool, text: str = "go") -> Any:
    params = {"sessionId": session.id, "prompt": [{"type": "text", "text": text}]}
    turn = session.submit(params, origin=None)
    while session.agent_id not in pool.prompts:
        await trio.lowlevel.checkpoint()
    return turn


async def loaded(manager: Any, session: Session, root: Path) -> dict[str, Any]:
    call = Call(
        hub=hub_of(manager), caller=Caller(), params={"sessionId": session.id, "cwd": str(root)}
    )
    body: dict[str, Any] = await sessions.load(call)
    for name in ("compactedReplay", "liveJournal"):
        body[name] = [json.loads(bytes(each)) for each in body[name]]
    return body


def spoken(body: dict[str, Any]) -> str:
    updates = [
        each["data"]["update"]
        for each in [*body["compactedReplay"], *body["liveJournal"]]
        if each["type"] == "session_update"
    ]
    return "".join(
        each["content"]["text"]
        for each in updates
        if each["sessionUpdate"] == "agent_message_chunk"
    )


@pytest.mark.parametrize("size", [100, 8000])
async def test_a_load_has_everything_that_was_said(tmp_path: Path, size: int) -> None:
    with trio.fail_after(60):
        async with session_of(tmp_path, event_ring_size=size) as (session, pool, hub, manager):
            said = ""
            for turn_number in range(3):
                turn = await begun(session, pool)
                for number in range(1000):
                    text = f"{turn_number}.{number} "
                    said += text
                    say(session, pool, text)
                    if number == 500:
                        body = await loaded(manager, session, tmp_path)
                        assert spoken(body) == said
                        assert body["hasActivePrompt"] is True
                        # From here on a stream has the rest, without a gap or an overlap.
                        reader = Reader(hub, session, body["lastEventId"])
                        assert parse(drained(reader))[0].told == {"replayedCount": 0}
                        close(reader)
                pool.finish(pool.hosts[-1], session.agent_id)
                await session.settled(turn)
            body = await loaded(manager, session, tmp_path)
            assert spoken(body) == said and body["liveJournal"] == []
            assert body["lastEventId"] == session.ring.last_id
            assert [each["terminal"] for each in body["promptTerminals"]] == ["completed"] * 3
            if size == 100:
                gap = parse(drained(Reader(hub, session, 5)))[0]
                assert gap.event == "state_resync_required"
                assert gap.told["reason"] == "ring_evicted"


# ---- crowds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
async def test_a_crowd_that_comes_and_goes_sees_everything_once(
    tmp_path: Path, clock: MockClock, seed: int
) -> None:
    dice = random.Random(seed)
    seen: dict[int, list[int]] = {number: [] for number in range(50)}
    async with session_of(tmp_path) as (session, pool, hub, _):
        await begun(session, pool)
        done = trio.Event()

        async def visitor(number: int) -> None:
            own = random.Random(seed * 1000 + number)
            patience = own.choice((0.0, 0.001, 0.02, 0.5))

            async def take(data: bytes) -> None:
                # Always less than stall_timeout: slow, not stalled.
                await trio.sleep(own.random() * patience)

            while True:
                last = seen[number][-1] if seen[number] else 0
                finishing = done.is_set()
                reader = Reader(hub, session, last, take=take, query="maxQueued=16")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(reader.run)
                    if finishing:
                        await caught_up(session, reader, last)
                    else:
                        await trio.sleep(own.random() * 3)
                    reader.leave()
                # What it had read when it left, cut off anywhere.
                cut = len(reader.got) if finishing else own.randint(0, len(reader.got))
                frames = parse(bytes(reader.got[:cut]))
                seen[number] += [each.id for each in frames if each.id is not None]
                assert "state_resync_required" not in [each.event for each in frames]
                assert "client_evicted" not in [each.event for each in frames]
                if finishing:
                    return
                await trio.sleep(own.random())

        async with trio.open_nursery() as nursery:
            for number in seen:
                nursery.start_soon(visitor, number)
            for _ in range(300):
                for _ in range(dice.randint(0, 20)):
                    say(session, pool, "x")
                await trio.sleep(dice.random() * 0.05)
            done.set()
        last_id = session.ring.last_id
        assert last_id > 2000
        for got in seen.values():
            assert got == list(range(1, last_id + 1))
        assert not session.subs and session.streams == 0 == hub.event_streams


async def caught_up(session: Session, reader: Reader, last: int = 0) -> None:
    """``last``: what the reader had before."""
    await until(lambda: max(last, reader.last_id) == session.ring.last_id)


async def until(what: Callable[[], Any], rounds: int = 60_000) -> None:
    """In the clock of the test, which jumps."""
    for _ in range(rounds):
        if what():
            return
        await trio.sleep(0.01)
    raise AssertionError("it never came true")


# ---- slow and stalled readers -------------------------------------------------------------------


class Socket:
    """Takes bytes while it is open."""

    def __init__(self) -> None:
        self._open = trio.Event()

    async def take(self, data: bytes) -> None:
        await self._open.wait()

    def open(self) -> None:
        self._open.set()

    def shut(self) -> None:
        self._open = trio.Event()


@asynccontextmanager
async def stalled(
    session: Session, hub: Any, nursery: trio.Nursery
) -> AsyncIterator[tuple[Socket, Reader]]:
    """A reader that has taken event ``n`` and stands still in the write of ``n + 1``."""
    socket = Socket()
    socket.open()
    reader = Reader(hub, session, session.ring.last_id, take=socket.take, query="maxQueued=16")
    nursery.start_soon(reader.run)
    await until(lambda: "replay_complete" in reader.events)
    socket.shut()
    session.publish("tick")
    session.wake()
    await until(lambda: reader.stream._outlet.blocked)
    yield socket, reader
    reader.leave()


def tick(session: Session, count: int) -> None:
    for _ in range(count):
        session.publish("tick")
        session.wake()


async def test_a_reader_that_falls_behind_is_warned_once(tmp_path: Path, clock: MockClock) -> None:
    async with (
        session_of(tmp_path) as (session, _, hub, _),
        trio.open_nursery() as nursery,
        stalled(session, hub, nursery) as (socket, reader),
    ):
        tick(session, 16)
        socket.open()
        await caught_up(session, reader)
        (warning,) = reader.of("slow_client_warning")
        assert warning["queueSize"] == 12 and warning["maxQueued"] == 16
        assert warning["threshold"] == "frames"
        assert warning["maxQueuedBytes"] == 2 * 1024 * 1024
        # It has caught up: the next time is another episode.
        socket.shut()
        tick(session, 1)
        await until(lambda: reader.stream._outlet.blocked)
        tick(session, 12)
        socket.open()
        await caught_up(session, reader)
        assert len(reader.of("slow_client_warning")) == 2
        assert reader.ids == list(range(1, session.ring.last_id + 1))


async def test_a_burst_is_no_lag(tmp_path: Path, clock: MockClock) -> None:
    async with session_of(tmp_path) as (session, _, hub, _), trio.open_nursery() as nursery:
        reader = Reader(hub, session, 0, query="maxQueued=16")
        nursery.start_soon(reader.run)
        await until(lambda: reader.events)
        for _ in range(10):
            tick(session, 500)
            await caught_up(session, reader)
        assert "slow_client_warning" not in reader.events
        reader.leave()


async def test_a_reader_that_stands_still_is_evicted_alone_and_loses_nothing(
    tmp_path: Path, clock: MockClock
) -> None:
    async with session_of(tmp_path) as (session, _, hub, _), trio.open_nursery() as nursery:
        other = Reader(hub, session, 0)
        nursery.start_soon(other.run)
        async with stalled(session, hub, nursery) as (socket, reader):
            tick(session, 100)
            await trio.sleep(1.9)
            tick(session, 1)
            assert not reader.over.is_set(), "it may stand still for stall_timeout"
            await trio.sleep(0.2)
            socket.open()  # so that its last frame is seen
            tick(session, 1)
            await reader.over.wait()
            (evicted,) = reader.of("client_evicted")
            assert evicted == {
                "reason": "queue_overflow",
                "droppedAfter": session.ring.last_id,
                "queueSize": 102,
                "maxQueued": 16,
                "queuedBytes": evicted["queuedBytes"],
                "maxQueuedBytes": 2 * 1024 * 1024,
            }
            assert reader.ended and reader.frames[-1].event == "client_evicted"
            back = Reader(hub, session, reader.last_id)
            nursery.start_soon(back.run)
            tick(session, 5)
            last = session.ring.last_id
            await until(lambda: back.last_id == other.last_id == last)
            assert reader.ids + back.ids == other.ids == list(range(1, last + 1))
            assert not other.over.is_set()
            other.leave()
            back.leave()


async def test_within_its_limits_a_reader_that_stands_still_is_left_alone(
    tmp_path: Path, clock: MockClock
) -> None:
    async with (
        session_of(tmp_path) as (session, _, hub, _),
        trio.open_nursery() as nursery,
        stalled(session, hub, nursery) as (socket, reader),
    ):
        tick(session, 15)
        await trio.sleep(5)
        tick(session, 1)  # 16 wait
        assert not reader.over.is_set()
        tick(session, 1)  # 17
        socket.open()
        await reader.over.wait()
        assert reader.of("client_evicted")[0]["queueSize"] == 17


async def test_one_big_event_does_not_evict(tmp_path: Path, clock: MockClock) -> None:
    async with (
        session_of(tmp_path) as (session, _, hub, _),
        trio.open_nursery() as nursery,
        stalled(session, hub, nursery) as (socket, reader),
    ):
        await trio.sleep(3)
        session.publish("tick", x="x" * 3_000_000)
        session.wake()
        assert not reader.over.is_set()
        socket.open()
        await caught_up(session, reader)
        assert reader.of("slow_client_warning")[0]["threshold"] == "bytes"


async def test_an_eviction_ends_the_evicted_one_s_connection(
    tmp_path: Path, clock: MockClock
) -> None:
    """Whoever publishes, in whatever connection's name it was started."""

    class Peer:
        gone = False

        def give_up(self) -> None:
            self.gone = True

    async with session_of(tmp_path) as (session, _, hub, _), trio.open_nursery() as nursery:
        mine, publisher = Peer(), Peer()
        peer_stream._serving.set(mine)  # type: ignore[arg-type]
        async with stalled(session, hub, nursery) as (socket, reader):
            peer_stream._serving.set(publisher)  # type: ignore[arg-type]
            await trio.sleep(3)
            tick(session, 20)
            socket.open()
            await reader.over.wait()
        assert mine.gone and not publisher.gone


async def test_a_stalled_reader_behind_a_small_ring_is_told_of_the_gap(
    tmp_path: Path, clock: MockClock
) -> None:
    async with (
        session_of(tmp_path, event_ring_size=50) as (session, _, hub, _),
        trio.open_nursery() as nursery,
    ):
        socket = Socket()
        socket.open()
        reader = Reader(hub, session, 0, take=socket.take, query="maxQueued=2048")
        nursery.start_soon(reader.run)
        await until(lambda: "replay_complete" in reader.events)
        socket.shut()
        tick(session, 1)
        await until(lambda: reader.stream._outlet.blocked)
        tick(session, 200)  # progressing: nothing of it is dropped
        assert session.ring.first_id == 2
        await trio.sleep(3)
        tick(session, 1)  # stalled: it no longer counts
        assert session.ring.first_id == 153
        socket.open()
        await caught_up(session, reader)
        (gap,) = reader.of("state_resync_required")
        assert gap == {
            "reason": "ring_evicted",
            "lastDeliveredId": 1,
            "earliestAvailableId": 153,
        }
        assert reader.ids == [1, *range(153, 203)]
        reader.leave()


async def test_nothing_moves_for_evict_timeout(tmp_path: Path, clock: MockClock) -> None:
    async with (
        session_of(tmp_path, evict_timeout=10.0) as (session, _, hub, _),
        trio.open_nursery() as nursery,
        stalled(session, hub, nursery) as (socket, reader),
    ):
        began = trio.current_time()
        await trio.sleep(9.9)
        assert not reader.over.is_set()
        nursery.start_soon(lambda: _open_later(socket, 0.5))
        await reader.over.wait()
        assert trio.current_time() - began < 12
        assert reader.of("client_evicted") == [
            {
                "reason": "writer_idle_timeout",
                "errorKind": "writer_idle_timeout",
                "idleForMs": 10_000,
                "timeoutMs": 10_000,
            }
        ]
        assert reader.ended and not session.subs


async def _open_later(socket: Socket, seconds: float) -> None:
    await trio.sleep(seconds)
    socket.open()


async def test_a_quiet_stream_is_kept_alive(clock: MockClock) -> None:
    hub, feed = plain_feed(0)
    async with trio.open_nursery() as nursery:
        reader = Reader(hub, feed)
        nursery.start_soon(reader.run)
        await trio.sleep(14.9)
        assert bytes(reader.got) == b"retry: 3000\n\n"
        await trio.sleep(0.2)
        assert bytes(reader.got) == b"retry: 3000\n\n: heartbeat\n\n"
        await trio.sleep(30)
        assert reader.got.count(b": heartbeat\n\n") == 3
        reader.leave()
    assert feed.streams == 0 and not feed.subs


# ---- room, and the end --------------------------------------------------------------------------


async def test_there_is_room_for_64_and_again_when_one_leaves(clock: MockClock) -> None:
    hub, feed = plain_feed(3)
    async with trio.open_nursery() as nursery:
        readers = [Reader(hub, feed) for _ in range(64)]
        for reader in readers:
            nursery.start_soon(reader.run)
        with pytest.raises(GatewayError) as caught:
            Reader(hub, feed)
        status, body = caught.value.to_http()
        assert status == 429
        assert (body["code"], body["limit"]) == ("subscriber_limit_exceeded", 64)
        assert body["error"] == "EventBus subscriber limit reached (64)"
        await trio.sleep(1)
        readers[7].leave()
        await readers[7].over.wait()
        nursery.start_soon(Reader(hub, feed).run)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert feed.streams == 0 == hub.event_streams and not feed.subs


@pytest.mark.parametrize("how", ["close", "shutdown", "death", "lost", "bug"])
async def test_the_last_frame_is_the_last(tmp_path: Path, clock: MockClock, how: str) -> None:
    pool = FakePool(can_load=how == "death")
    pool.capabilities = ()
    async with fake_manager(tmp_path, pool) as (manager, _), trio.open_nursery() as nursery:
        session = await start(manager, tmp_path)
        hub = hub_of(manager)
        readers = [Reader(hub, session, last) for last in (None, 0)]
        for reader in readers:
            nursery.start_soon(reader.run)
        await begun(session, pool)
        if how == "close":
            session.begin_close("client_close", client="c")
            say(session, pool, "too late")
        elif how == "shutdown":
            await manager.close_all("daemon_shutdown", 10)
        elif how == "bug":

            async def broken() -> None:
                raise RuntimeError("a bug")

            assert session._nursery is not None
            session._nursery.start_soon(broken)
        else:
            pool.hosts[-1].die()
        for reader in readers:
            with trio.fail_after(10):
                await reader.over.wait()
            assert reader.ended, "the response ends"
            last = reader.frames[-1]
            assert last.event == ("session_closed" if how == "close" else "session_died")
            assert last.id == session.ring.last_id
            assert reader.events.count("session_died") + reader.events.count("session_closed") == 1
            ends = [name for name in reader.events if name in ("turn_complete", "turn_error")]
            assert len(ends) == 1
        reason = {
            "close": "client_close",
            "shutdown": "daemon_shutdown",
            "bug": "internal",
        }.get(how, "channel_closed")
        assert last.told["reason"] == reason
        if how in ("death", "lost"):
            assert last.told["recoverable"] is (how == "death")
            assert last.told["signalCode"] == "SIGKILL" and last.told["exitCode"] is None
        if how == "close":
            assert last.told["closedBy"] == last.data["originatorClientId"] == "c"
        assert not session.subs
