"""The life of sessions and prompts: what must hold whichever way they end (T1 to T11).

An agent in memory behind the real manager; the operations are called as the transports call them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from support.event_reader import Reader, hub_of
from support.fake_agent import PROFILE, FakeHost, FakePool, fake_manager, settle, start
from support.runtime_rig import Recorder, notices, obedient, records, rig, texts, until
from trio.testing import MockClock

from acp_gateway.core.turn_queue import Turn
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.extensions import OPERATIONS
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.sessions import SessionManager
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.operations import sessions, turns
from acp_gateway.transports.operations.call import Call, Caller
from acp_gateway.transports.operations.table import HANDLERS

TERMINAL = ("turn_complete", "turn_error")
LAST = ("session_closed", "session_died")
DEADLINE = 30.0


@pytest.fixture
def clock(mock_clock: MockClock) -> MockClock:
    mock_clock.autojump_threshold = 0
    return mock_clock


@attrs.define
class Site:
    manager: SessionManager
    pool: FakePool
    hub: Hub
    root: Path

    async def session(self) -> Session:
        return await start(self.manager, self.root)

    def call(self, session_id: str, client: str | None = None, **params: Any) -> Call:
        key = params.pop("key", None)
        params = {"sessionId": session_id, "cwd": str(self.root), **params}
        caller = Caller(claimed=client, loopback=True)
        return Call(hub=self.hub, caller=caller, params=params, idempotency_key=key)

    async def prompt(
        self, session: Session, text: str = "go", client: str | None = None, **more: Any
    ) -> dict[str, Any]:
        blocks = [{"type": "text", "text": text}]
        answer: dict[str, Any] = await turns.prompt(
            self.call(session.id, client, prompt=blocks, **more)
        )
        return answer

    @property
    def host(self) -> FakeHost:
        return self.pool.hosts[-1]

    def finish(self, session: Session, stop: str = "end_turn") -> None:
        self.pool.finish(self.host, session.agent_id, stop)

    async def running(self, session: Session) -> Turn:
        """Once the agent has the prompt."""
        await settle(lambda: session.agent_id in self.pool.prompts)
        turn = session.queue.running
        assert turn is not None
        return turn


@asynccontextmanager
async def site(root: Path, pool: FakePool | None = None, **settings: Any) -> AsyncIterator[Site]:
    async with fake_manager(root, pool, **settings) as (manager, made):
        yield Site(manager, made, hub_of(manager), root)


class Deaf(FakePool):
    """A cancel changes nothing."""

    def on_cancel(self, host: FakeHost, message: dict[str, Any]) -> None:
        pass


class Hangs(FakePool):
    """Never answers ``session/close``."""

    def on_close(self, host: FakeHost, message: dict[str, Any]) -> None:
        pass


def story(session: Session, names: Iterable[str] = ()) -> list[tuple[str, str | None]]:
    """(event, prompt id), without the chunks; only ``names`` when given."""
    return [
        (each.name, each.prompt_id)
        for each in records(session)
        if (each.name in names if names else True)
    ]


def ends(session: Session, prompt_id: str) -> list[str]:
    return [name for name, of in story(session, TERMINAL) if of == prompt_id]


def data(session: Session, kind: str) -> dict[str, Any]:
    (only,) = notices(session, kind)
    return only


# ---- T1, T2: one end for each session and each prompt -------------------------------------------

ERROR = {"code": -32603, "message": "Internal error", "data": {"details": "400 fake failure"}}
WAYS = {
    # How the running prompt ends: its event, and the code of an error.
    "result": ("turn_complete", None),
    "error": ("turn_error", "-32603"),
    "cancel": ("turn_complete", None),
    "remove": ("turn_complete", None),
    "deadline": ("turn_error", "prompt_deadline_exceeded"),
    "deaf": ("turn_complete", None),
    "deaf after its deadline": ("turn_error", "prompt_deadline_exceeded"),
    "cancel before the deadline": ("turn_complete", None),
    "close": ("turn_error", "session_closed"),
    "shutdown": ("turn_error", "daemon_shutdown"),
    "death": ("turn_error", "channel_closed"),
    "death for good": ("turn_error", "channel_closed"),
    "bug": ("turn_error", None),
}


@pytest.mark.parametrize("way", WAYS)
async def test_each_prompt_ends_once_whichever_way(
    tmp_path: Path, clock: MockClock, way: str
) -> None:
    pool = Deaf() if "deaf" in way or "before" in way else FakePool()
    pool.can_load = way != "death for good"
    async with site(tmp_path, pool) as s:
        session = await s.session()
        limit = 2000 if "deadline" in way else None
        first = (await s.prompt(session, deadlineMs=limit))["promptId"]
        queued = (await s.prompt(session))["promptId"]
        turn = await s.running(session)
        if way == "result":
            s.finish(session)
        elif way == "error":
            s.host.send(id=s.pool.prompts.pop(session.agent_id)["id"], error=ERROR)
        elif way in ("cancel", "deaf", "cancel before the deadline"):
            await turns.cancel(s.call(session.id))
        elif way == "remove":
            await turns.pending_remove(s.call(session.id, promptId=first))
        elif way == "close":
            await sessions.close(s.call(session.id))
        elif way == "shutdown":
            await s.manager.close_all("daemon_shutdown", 5)
        elif "death" in way:
            s.host.die()
        elif way == "bug":

            async def broken() -> None:
                raise RuntimeError("a bug")

            assert session._nursery is not None
            session._nursery.start_soon(broken)
        await trio.sleep(60)
        name, code = WAYS[way]
        assert ends(session, first) == [name]
        assert turn.settled
        if code is not None:
            told = [d for d in notices(session, "turn_error") if d["promptId"] == first]
            assert told[0]["code"] == code
        if way == "error":
            assert told[0]["message"] == "400 fake failure"
        if name == "turn_complete":
            told = [d for d in notices(session, name) if d["promptId"] == first]
            assert told[0]["stopReason"] == ("end_turn" if way == "result" else "cancelled")
        assert notices(session, "prompt_cancelled")[1:] == [], "told once at most"
        # The one behind it runs, or ends with the session.
        if session.over is None:
            await s.running(session)
            s.finish(session)
            await trio.sleep(1)
        assert len(ends(session, queued)) == 1
        await session.close("client_close")
        assert len(ends(session, first)) == len(ends(session, queued)) == 1
        last = [name for name, _ in story(session, LAST)]
        expected = {"close": 1, "shutdown": 1, "bug": 1, "death for good": 1}
        # A session whose agent died lives on; that is the end of one life, not of all.
        lives = 2 if way in ("death", "deaf", "deaf after its deadline") or "before" in way else 1
        assert len(last) == expected.get(way, lives)
        assert story(session)[-1][0] == last[-1]
        assert [t["promptId"] for t in session.terminals].count(first) == 1


async def test_what_an_agent_says_behind_the_end_is_not_told(tmp_path: Path) -> None:
    async with site(tmp_path, Hangs()) as s:
        session = await s.session()
        await s.prompt(session)
        await s.running(session)
        session.begin_close("client_close")
        last = session.ring.last_id
        host = s.host
        host.say(session.agent_id, "still here")
        host.send(method="_qwen/x", params={"sessionId": session.agent_id})
        host.ask(session.agent_id)
        host.ask(session.agent_id, "craft/drainMidTurnQueue")
        await settle(lambda: len(host.answers) == 2)
        session.rename("late", source="manual")
        assert session.ring.last_id == last
        assert host.answers["q1"][0]["result"]["outcome"] == {"outcome": "cancelled"}
        assert story(session)[-1][0] == "session_closed"


async def test_a_session_that_cannot_be_restored_ends_behind_its_prompts(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        session = await s.session()
        s.host.die()
        await settle(lambda: session.halted)
        s.pool.refusal = GatewayError(ErrorKind.UNSUPPORTED_BY_AGENT, "gone for good")
        prompts = [(await s.prompt(session))["promptId"] for _ in range(3)]
        await session.ended.wait()
        assert [len(ends(session, each)) for each in prompts] == [1, 1, 1]
        assert [name for name, _ in story(session, LAST)] == ["session_died", "session_closed"]
        assert story(session)[-1][0] == "session_closed"


async def test_an_agent_that_does_not_start_fails_the_prompt_and_not_the_session(
    tmp_path: Path,
) -> None:
    async with site(tmp_path) as s:
        session = await s.session()
        s.host.die()
        await settle(lambda: session.halted)
        s.pool.refusal = GatewayError(ErrorKind.AGENT_START_FAILED, "no such program")
        prompt = (await s.prompt(session))["promptId"]
        await settle(lambda: ends(session, prompt) == ["turn_error"])
        assert data(session, "turn_error")["code"] == "agent_start_failed"
        s.pool.refusal = None
        again = (await s.prompt(session))["promptId"]
        await s.running(session)
        s.finish(session)
        await settle(lambda: ends(session, again) == ["turn_complete"])


# ---- T3, T4, and the order of a queue's events --------------------------------------------------


async def test_never_more_than_the_limit_and_in_the_order_of_acceptance(tmp_path: Path) -> None:
    async with site(tmp_path, max_queued_prompts=5) as s:
        session = await s.session()
        accepted: list[str] = []
        refused = 0
        for round in range(40):
            try:
                await s.prompt(session, str(round))
                accepted.append(str(round))
            except GatewayError as exc:
                status, body = exc.to_http()
                assert (status, body["code"]) == (503, "prompt_queue_full")
                assert (body["limit"], body["pendingCount"]) == (5, 5)
                assert body["sessionId"] == session.id
                refused += 1
            assert len(session.queue) <= 5
            assert sum("id" in m for m in s.pool.prompts.values()) <= 1
            if round % 3 == 0:
                await s.running(session)
                s.finish(session)
                await trio.testing.wait_all_tasks_blocked()
        while session.agent_id in s.pool.prompts:
            s.finish(session)
            await trio.testing.wait_all_tasks_blocked()
        sent = [
            message["params"]["prompt"][0]["text"]
            for message in s.host.received
            if message.get("method") == "session/prompt"
        ]
        assert sent == accepted and refused > 5


async def test_the_events_of_a_queue(tmp_path: Path) -> None:
    """Alice runs, Bob queues, Alice queues and removes, Bob cancels."""
    async with site(tmp_path) as s:
        session = await s.session()
        alice, bob = (session.parties.join(None, None) for _ in range(2))
        one = await s.prompt(session, "long", alice)
        await s.running(session)
        two = await s.prompt(session, "second", bob)
        three = await s.prompt(session, "third", alice)
        listed = (await turns.pending(s.call(session.id)))["pendingPrompts"]
        assert [(each["text"], each["state"]) for each in listed] == [
            ("long", "running"),
            ("second", "queued"),
            ("third", "queued"),
        ]
        removed = await turns.pending_remove(s.call(session.id, alice, promptId=three["promptId"]))
        again = await turns.pending_remove(s.call(session.id, promptId=three["promptId"]))
        assert (removed, again) == ({"removed": True}, {"removed": False})
        await turns.cancel(s.call(session.id, bob))
        await s.running(session)
        s.finish(session)
        p1, p2, p3 = (each["promptId"] for each in (one, two, three))
        expected = [
            ("user_message_chunk", p1),
            ("pending_prompt_added", p2),
            ("pending_prompt_added", p3),
            ("pending_prompt_completed", p3),
            ("turn_complete", p3),
            ("prompt_cancelled", p1),
            ("turn_complete", p1),
            ("pending_prompt_started", p2),
            ("user_message_chunk", p2),
            ("turn_complete", p2),
            ("pending_prompt_completed", p2),
        ]
        await settle(lambda: len(story(session)) == len(expected))
        assert story(session) == expected
        whose = {(each.name, each.prompt_id): each.client for each in records(session)}
        assert whose["prompt_cancelled", p1] == bob, "who cancelled"
        assert whose["turn_complete", p1] == alice
        states = [each["state"] for each in notices(session, "pending_prompt_completed")]
        assert states == ["removed", "completed"]
        added = notices(session, "pending_prompt_added")[0]
        assert added["text"] == "second" and isinstance(added["queuedAt"], int)
        done = next(d for d in notices(session, "turn_complete") if d["promptId"] == p1)
        assert done["promptCancelled"]["elapsedMs"] >= 0
        sent = [m for m in s.host.received if m.get("method") == "session/prompt"]
        assert len(sent) == 2, "a removed prompt is never sent"


async def test_an_idle_cancel_is_told_without_a_prompt(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        session = await s.session()
        assert await turns.cancel(s.call(session.id)) is None
        assert story(session) == [("prompt_cancelled", None)]
        assert not [m for m in s.host.received if m.get("method") == "session/cancel"]


# ---- T5: a session that closes is gone ----------------------------------------------------------


async def test_a_closing_session_is_found_by_no_operation(tmp_path: Path) -> None:
    rows = [row for row in OPERATIONS.values() if "{sessionId}" in row.path and not row.stream]
    assert len(rows) > 20
    bodies: dict[str, Any] = {
        "prompt": [{"type": "text", "text": "x"}],
        "outcome": {"outcome": "cancelled"},
        "requestId": "r",
        "message": "m",
    }
    async with site(tmp_path, Hangs()) as s:
        session = await s.session()
        session.begin_close("client_close")
        for row in rows:
            if row.name in ("session_load", "session_resume"):
                continue  # they wait for the end, and open it anew
            with pytest.raises(GatewayError) as caught:
                await HANDLERS[row.name](s.call(session.id, **bodies))
            assert caught.value.kind is ErrorKind.SESSION_NOT_FOUND, row.name
            assert caught.value.to_http()[0] == 404
        with pytest.raises(GatewayError):
            s.manager.get(session.id)
        with pytest.raises(GatewayError):
            session.submit({}, origin=None)
        with pytest.raises(GatewayError):
            Recorder().attach(session)
        assert session.id in s.manager.sessions, "it was still closing"


# ---- T6, T7: one session for many, and nobody left behind ---------------------------------------


async def create(s: Site, client: str | None = None, **params: Any) -> dict[str, Any]:
    call = Call(hub=s.hub, caller=Caller(claimed=client), params={"cwd": str(s.root), **params})
    body: dict[str, Any] = await sessions.create(call)
    return body


async def test_concurrent_creates_are_one_session(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with site(tmp_path) as s:
            s.pool.gate = trio.Event()
            bodies: list[dict[str, Any]] = []

            async def one() -> None:
                bodies.append(await create(s))

            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(one)
                await until(lambda: s.manager.starting)
                s.pool.gate.set()
            assert len({body["sessionId"] for body in bodies}) == 1
            assert [body["attached"] for body in bodies].count(False) == 1
            assert len({body["clientId"] for body in bodies}) == 8
            assert len(s.pool.hosts) == 1
            new = [m for m in s.host.received if m["method"] == "session/new"]
            assert len(new) == 1
            other = await create(s, sessionScope="thread")
            assert other["attached"] is False and other["sessionId"] != bodies[0]["sessionId"]
            assert (await create(s))["sessionId"] == bodies[0]["sessionId"]
            # The default session is gone: the next call makes another.
            await sessions.close(s.call(bodies[0]["sessionId"]))
            fresh = await create(s)
            assert fresh["attached"] is False and fresh["sessionId"] != bodies[0]["sessionId"]


async def test_when_the_one_who_starts_it_hangs_up_another_does(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with site(tmp_path) as s:
            s.pool.gate = trio.Event()
            bodies: list[dict[str, Any]] = []
            scope = trio.CancelScope()

            async def hangs_up() -> None:
                with scope:
                    bodies.append(await create(s))

            async def stays() -> None:
                bodies.append(await create(s))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(hangs_up)
                await until(lambda: s.manager.starting)
                nursery.start_soon(stays)
                scope.cancel()
                await until(lambda: s.manager.starting == 1 and scope.cancelled_caught)
                s.pool.gate.set()
            (body,) = bodies
            session = s.manager.get(body["sessionId"])
            assert body["attached"] is False
            assert list(s.manager.sessions) == [session.id] and len(session.parties) == 1
            assert s.manager.starting == 0 and not s.manager._default_starting


async def test_references_are_counted_down_to_nothing(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with site(tmp_path) as s:
            first = await create(s)
            id, me = first["sessionId"], first["clientId"]
            session = s.manager.get(id)
            other = (await create(s))["clientId"]
            assert (await create(s, me))["clientId"] == me, "one more reference"
            acp = Recorder("acp")
            sub = acp.attach(session)
            assert session.parties.ids == {me, other, "acp"}
            await sessions.detach(s.call(id, me))
            assert me in session.parties.ids
            await sessions.detach(s.call(id, me))
            assert me not in session.parties.ids
            # Leaving twice, or as nobody, is no error and takes nothing from others.
            for client in (me, None, "client_unknown"):
                assert await sessions.detach(s.call(id, client)) is None
            session.detach(acp, sub)
            session.detach(acp, sub)
            assert session.parties.ids == {other} and session.over is None
            await sessions.detach(s.call(id, other))
            assert len(session.parties) == 0
            await session.ended.wait()
            assert data(session, "session_closed")["reason"] == "last_client_detached"
            assert data(session, "session_closed")["closedBy"] == other


async def test_what_holds_a_session_that_everybody_left(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with site(tmp_path) as s:
            session = await s.session()
            me = session.parties.join(None, None)
            await s.prompt(session, client=me)
            await s.running(session)
            await sessions.detach(s.call(session.id, me))
            assert session.over is None, "a running prompt holds it"
            s.finish(session)
            await settle(lambda: not len(session.queue))
            me = session.parties.join(None, None)
            async with trio.open_nursery() as nursery:
                reader = Reader(s.hub, session)
                nursery.start_soon(reader.run)
                await settle(lambda: session.streams)
                await sessions.detach(s.call(session.id, me))
                assert session.over is None, "an open stream holds it"
                reader.leave()
            me = session.parties.join(None, None)
            await sessions.detach(s.call(session.id, me))
            assert session.over is not None


# ---- the reaper ---------------------------------------------------------------------------------


async def test_the_reaper_takes_what_nobody_holds(tmp_path: Path, clock: MockClock) -> None:
    async with site(tmp_path, linger=100.0, linger_unprompted=60.0) as s:
        bare, known, beating, read, busy = [await s.session() for _ in range(5)]
        known.parties.join(None, None)
        heart = beating.parties.join(None, None)
        await s.prompt(busy)
        await settle(lambda: busy.agent_id in s.pool.prompts)
        reader = Reader(s.hub, read)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run)
            gone: dict[str, float] = {}
            for _ in range(100):
                await trio.sleep(5)
                told = await sessions.heartbeat(s.call(beating.id, heart))
                assert told["clientId"] == heart and told["sessionId"] == beating.id
                for session in (bare, known, beating, read, busy):
                    if session.over is not None:
                        gone.setdefault(session.id, trio.current_time())
            assert set(gone) == {bare.id, known.id}
            assert 60 <= gone[bare.id] <= 75 and 100 <= gone[known.id] <= 115
            for session in (bare, known):
                assert data(session, "session_closed")["reason"] == "idle_timeout"
            reader.leave()
        s.pool.finish(s.pool.hosts[4], busy.agent_id)
        await trio.sleep(50)
        assert busy.over is None and read.over is None
        await trio.sleep(70)
        assert {each.over is None for each in (busy, read, beating)} == {False}
        assert not s.manager.sessions


# ---- T8: no process is left ---------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "crash", "manager"])
async def test_no_process_is_left(tmp_path: Path, way: str) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            r.prompt(session, "crash" if way == "crash" else "wait")
            assert len(r.books.seen) == 1
            if way == "close":
                await session.close("client_close")
            elif way == "crash":
                await until(lambda: session.halted)
            else:
                await r.manager.close_all("daemon_shutdown", 5)
            await until(lambda: not r.children())
            await until(lambda: not r.books.listed)
    # With a session at work the rig itself looks for what is left.


# ---- T9: numbers --------------------------------------------------------------------------------


async def test_ids_have_no_gap_and_a_202_is_before_its_prompt(tmp_path: Path) -> None:
    async with site(tmp_path, max_queued_prompts=0) as s:
        session = await s.session()
        answers: list[dict[str, Any]] = []
        for number in range(30):
            answers.append(await s.prompt(session))
            if number % 4 == 1:
                s.host.say(session.agent_id, "x")
            if number % 3 == 0:
                await s.running(session)
                s.finish(session)
                await trio.testing.wait_all_tasks_blocked()
            if number % 7 == 0:
                await turns.cancel(s.call(session.id))
        await session.close("client_close")
        got = records(session)
        assert [each.id for each in got] == list(range(1, session.ring.last_id + 1))
        assert {each["eventEpoch"] for each in answers} == {session.epoch}
        for answer in answers:
            own = [each.id for each in got if each.prompt_id == answer["promptId"]]
            assert own and answer["lastEventId"] < own[0]


# ---- T10, T11: what was said is kept, and by one -------------------------------------------------


async def test_a_load_after_a_crash_has_every_finished_turn(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with site(tmp_path, event_ring_size=10) as s:
            session = await s.session()
            for number in range(8):
                prompt = await s.prompt(session)
                await s.running(session)
                s.host.say(session.agent_id, f"answer {number}. ")
                s.finish(session)
                await settle(lambda prompt=prompt: ends(session, prompt["promptId"]))
            await s.prompt(session)
            await s.running(session)
            s.host.die()
            await settle(lambda: session.halted)
            epoch = session.epoch
            body = await sessions.load(s.call(session.id))
            assert body["attached"] is False and body["hasActivePrompt"] is False
            told = [
                json.loads(bytes(each)) for each in [*body["compactedReplay"], *body["liveJournal"]]
            ]
            updates = [each["data"].get("update", {}) for each in told]
            said = [
                each["content"]["text"]
                for each in updates
                if each.get("sessionUpdate") == "agent_message_chunk"
            ]
            assert "".join(said) == "".join(f"answer {number}. " for number in range(8))
            assert len(s.pool.hosts) == 2 and not session.halted
            assert (body["lastEventId"], body["eventEpoch"]) == (session.ring.last_id, epoch)
            assert [each["terminal"] for each in body["promptTerminals"]] == [
                *["completed"] * 8,
                "error",
            ]
            await s.prompt(session)
            await s.running(session)


async def test_two_daemons_do_not_open_one_session(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with site(tmp_path) as one, site(tmp_path) as two:
            session = await one.session()
            params = {"sessionId": session.id, "cwd": str(tmp_path), "mcpServers": []}
            with pytest.raises(GatewayError) as caught:
                await two.manager.open("load", params, PROFILE)
            assert caught.value.kind is ErrorKind.SESSION_WRITER_CONFLICT
            assert not two.pool.hosts and not two.manager.sessions
            await session.close("client_close")
            again = await two.manager.open("load", params, PROFILE)
            assert again.id == session.id
            with pytest.raises(GatewayError):
                await one.manager.open("load", params, PROFILE)


# ---- deadlines ----------------------------------------------------------------------------------


async def test_a_deadline_ends_the_turn_before_the_agent_does(
    tmp_path: Path, clock: MockClock
) -> None:
    async with site(tmp_path, Deaf(), prompt_deadline=5.0, cancel_timeout=10.0) as s:
        session = await s.session()
        late = await s.prompt(session, deadlineMs=1500)
        turn = await s.running(session)
        behind = await s.prompt(session)
        began = trio.current_time()
        await session.settled(turn)
        assert trio.current_time() - began == pytest.approx(1.5)
        told = data(session, "turn_error")
        assert told["code"] == "prompt_deadline_exceeded"
        assert told["message"] == "prompt exceeded the 1500ms deadline"
        assert told["promptId"] == late["promptId"]
        await trio.testing.wait_all_tasks_blocked()
        names = [name for name, _ in story(session)]
        assert names[-2:] == ["turn_error", "prompt_cancelled"]
        cancels = [m for m in s.host.received if m.get("method") == "session/cancel"]
        assert len(cancels) == 1
        # It works on until it obeys; what it says is told, what it answers is not.
        s.host.say(session.agent_id, "not yet")
        await trio.sleep(5)
        assert texts(session) == ["not yet"]
        assert len([m for m in s.host.received if m.get("method") == "session/prompt"]) == 1
        s.finish(session)
        await s.running(session)
        assert len(s.pool.hosts) == 1, "it obeyed in time"
        assert ends(session, late["promptId"]) == ["turn_error"]
        await trio.sleep(4.9)
        assert not ends(session, behind["promptId"])
        await trio.sleep(0.2)
        assert notices(session, "turn_error")[1]["message"] == "prompt exceeded the 5000ms deadline"


async def test_the_daemon_s_deadline_is_not_made_longer(tmp_path: Path, clock: MockClock) -> None:
    async with site(tmp_path, prompt_deadline=2.0) as s:
        session = await s.session()
        await s.prompt(session, deadlineMs=60_000)
        turn = await s.running(session)
        began = trio.current_time()
        await session.settled(turn)
        assert trio.current_time() - began == pytest.approx(2.0)
    for bad in (0, -1, True, 1.5, "5", 2**31):
        async with site(tmp_path) as s:
            session = await s.session()
            with pytest.raises(GatewayError) as caught:
                await s.prompt(session, deadlineMs=bad)
            assert caught.value.kind is ErrorKind.INVALID_DEADLINE


async def test_a_cancel_ends_the_wait_for_an_agent_at_once(
    tmp_path: Path, clock: MockClock
) -> None:
    async with site(tmp_path) as s:
        session = await s.session()
        s.host.die()
        await settle(lambda: session.halted)
        s.pool.gate = trio.Event()
        prompt = await s.prompt(session)
        await trio.sleep(1)
        began = trio.current_time()
        await turns.cancel(s.call(session.id))
        assert trio.current_time() - began < 0.1
        assert ends(session, prompt["promptId"]) == ["turn_complete"]
        s.pool.gate.set()
        await trio.sleep(1)
        sent = [m["method"] for m in s.host.received]
        assert "session/prompt" not in sent and "session/cancel" not in sent


# ---- idempotency --------------------------------------------------------------------------------


async def test_a_repeated_prompt_runs_once(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        session = await s.session()
        me, other = (session.parties.join(None, None) for _ in range(2))
        first = await s.prompt(session, "a", me, key="k")
        assert await s.prompt(session, "a", me, key="k") == first
        await s.running(session)
        assert await s.prompt(session, "a", me, key="k") == first
        s.finish(session)
        await settle(lambda: ends(session, first["promptId"]))
        assert await s.prompt(session, "a", me, key="k") == first, "also when it is over"
        with pytest.raises(GatewayError) as caught:
            await s.prompt(session, "b", me, key="k")
        assert caught.value.kind is ErrorKind.IDEMPOTENCY_KEY_REUSED
        theirs = await s.prompt(session, "b", other, key="k")
        assert theirs["promptId"] != first["promptId"], "a key is its client's own"
        await s.running(session)
        s.finish(session)
        assert len(ends(session, first["promptId"])) == 1
        for bad in ("", "x" * 257):
            with pytest.raises(GatewayError):
                await s.prompt(session, "c", me, key=bad)


# ---- messages for the running turn --------------------------------------------------------------


async def test_the_agent_takes_messages_while_it_works(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        session = await s.session()
        me = session.parties.join(None, None)
        idle = await turns.mid_turn(s.call(session.id, me, message="hello"))
        assert idle == {"accepted": False, "reason": "session_idle"}
        prompt = await s.prompt(session, client=me)
        await s.running(session)
        taken = await turns.mid_turn(s.call(session.id, me, message="also this", messageId="m1"))
        assert taken == {"accepted": True, "messageId": "m1"}
        again = await turns.mid_turn(s.call(session.id, me, message="also this", messageId="m1"))
        assert again == taken
        gone = (await turns.mid_turn(s.call(session.id, me, message="no")))["messageId"]
        assert await turns.mid_turn_remove(s.call(session.id, messageId=gone)) == {"removed": True}
        question = s.host.ask(session.agent_id, "craft/drainMidTurnQueue")
        await settle(lambda: question in s.host.answers)
        result = s.host.answers[question][0]["result"]
        assert result["messages"] == ["also this"] and result["hasQueuedPrompt"] is False
        assert [each["messageId"] for each in result["items"]] == ["m1"]
        told = data(session, "mid_turn_message_injected")
        assert told["messageIds"] == ["m1"] and told["messages"] == ["also this"]
        (record,) = [r for r in records(session) if r.name == "mid_turn_message_injected"]
        assert (record.prompt_id, record.client) == (prompt["promptId"], me)
        listed = await turns.mid_turn_list(s.call(session.id))
        assert listed == {
            "messages": [],
            "settledMessageIds": [gone, "m1"],
            "promotedMessageIds": [],
        }
        s.finish(session)
        await settle(lambda: not len(session.queue))
        assert len([m for m in s.host.received if m.get("method") == "session/prompt"]) == 1
        # What became of it is remembered: it is not sent again.
        late = await turns.mid_turn(s.call(session.id, me, message="also this", messageId="m1"))
        assert late == taken and not len(session.queue)


async def test_messages_that_were_not_taken_are_the_next_prompts(tmp_path: Path) -> None:
    async with site(tmp_path, max_queued_prompts=2) as s:
        session = await s.session()
        me = session.parties.join(None, None)
        await s.prompt(session, "one", me)
        await s.running(session)
        for number in range(4):
            call = s.call(session.id, me, message=f"m{number}", messageId=f"m{number}")
            await turns.mid_turn(call)
        texts_sent: list[str] = []
        for _ in range(5):
            await s.running(session)
            texts_sent.append(s.pool.prompts[session.agent_id]["params"]["prompt"][0]["text"])
            s.finish(session)
            await trio.testing.wait_all_tasks_blocked()
        assert texts_sent == ["one", "m0", "m1", "m2", "m3"]
        listed = await turns.mid_turn_list(s.call(session.id))
        assert listed["promotedMessageIds"] == ["m0", "m1", "m2", "m3"]
        assert not listed["messages"] and not listed["settledMessageIds"]
        mine = [each for each in records(session) if each.name == "user_message_chunk"]
        assert [each.client for each in mine] == [me] * 5
