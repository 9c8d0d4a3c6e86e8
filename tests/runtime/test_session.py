"""Turns, cancel, permissions, death and restore of one session, with a real agent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio
from support.runtime_rig import (
    Recorder,
    Rig,
    notices,
    obedient,
    received,
    records,
    rig,
    running,
    scripted,
    texts,
    until,
)

from acp_gateway.core.event_ring import Kind
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.session import Session

DEADLINE = 20.0
END_TURN = {"stopReason": "end_turn"}
CANCELLED = {"stopReason": "cancelled"}


def stop_reasons(session: Session) -> list[Any]:
    return [data["data"].get("stopReason") for data in _turn_ends(session)]


def _turn_ends(session: Session) -> list[dict[str, Any]]:
    return [
        {"kind": record.name, **json.loads(record.line)["params"]}
        for record in records(session)
        if record.name in ("turn_complete", "turn_error")
    ]


# ---- turns --------------------------------------------------------------------------------------


async def test_prompts_run_in_order_whoever_sends_them(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log"), max_queued_prompts=8) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            turns = [r.prompt(session, f"n{n}", origin=f"c{n % 3}") for n in range(8)]
            for turn in turns:
                assert await r.outcome(turn) == END_TURN
            assert texts(session) == [f"you said n{n}" for n in range(8)]
            # Each message stands before its answer and carries its prompt's id.
            names = [
                record.prompt_id for record in records(session) if record.kind is not Kind.NOTICE
            ]
            expected = [turn.prompt_id for turn in turns for _ in range(2)]
            assert names == expected
            assert stop_reasons(session) == ["end_turn"] * 8


async def test_the_queue_has_a_cap(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log"), max_queued_prompts=2) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            running_turn = r.prompt(session, "wait")
            waiting = r.prompt(session, "next")
            with pytest.raises(GatewayError) as caught:
                r.prompt(session, "too much")
            assert caught.value.kind is ErrorKind.PROMPT_QUEUE_FULL
            await until(lambda: texts(session))
            session.cancel_turn(running_turn)
            assert await r.outcome(running_turn) == CANCELLED
            assert await r.outcome(waiting) == END_TURN


async def test_a_repeated_key_joins_its_turn(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            first = r.prompt(session, "one", key="k")
            assert r.prompt(session, "one", key="k") is first
            await r.outcome(first)
            assert r.prompt(session, "one", key="k") is first
            assert texts(session) == ["you said one"]


# ---- cancel -------------------------------------------------------------------------------------


async def test_cancel_ends_the_running_turn_and_the_sender_s_own(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            turns = {name: r.prompt(session, f"wait {name}", origin=name[0]) for name in ("a1",)}
            turns |= {name: r.prompt(session, name, origin=name[0]) for name in ("a2", "b1")}
            await until(lambda: texts(session))
            session.cancel("a")
            # The agent said end_turn; to clients a cancelled turn is cancelled.
            assert await r.outcome(turns["a1"]) == CANCELLED
            assert await r.outcome(turns["a2"]) == CANCELLED
            assert await r.outcome(turns["b1"]) == END_TURN
            assert texts(session) == ["started", "you said b1"]


async def test_cancel_without_a_turn_is_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log)) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            session.cancel("a")
            assert await r.say(session, "x") == END_TURN
            assert not received(log, "session/cancel")


async def test_an_agent_that_ignores_cancel_is_stopped_and_restored(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log), cancel_timeout=0.3) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            first = (await session.agent()).pid
            turn = r.prompt(session, "hang")
            await until(lambda: texts(session))
            session.cancel(None)
            assert await r.outcome(turn) == CANCELLED
            # At once, while the old agent is still on its way out.
            assert await r.say(session, "back") == END_TURN
            second = (await session.agent()).pid
            assert first is not None and second != first
            await until(lambda: not running(first))
            assert len(received(log, "session/load")) == 1
            assert texts(session) == ["started", "you said back"], "history came twice"


async def test_a_shared_agent_that_ignores_cancel_costs_the_session_only(tmp_path: Path) -> None:
    async with rig(
        tmp_path, obedient(tmp_path / "log"), isolation="shared", cancel_timeout=0.3
    ) as r:
        with trio.fail_after(DEADLINE):
            session, sibling = await r.create(), await r.create()
            turn = r.prompt(session, "hang")
            await until(lambda: texts(session))
            session.cancel(None)
            assert await r.outcome(turn) == CANCELLED
            await session.ended.wait()
            assert session.over is not None
            assert session.over.kind is ErrorKind.AGENT_UNRESPONSIVE
            assert [d["reason"] for d in notices(session, "session_closed")] == [
                "agent_unresponsive"
            ]
            assert await r.say(sibling, "x") == END_TURN


# ---- permissions --------------------------------------------------------------------------------


def answers(log: Path) -> list[Any]:
    """The results that the agent got for its own requests."""
    return [
        line["message"].get("result") for line in received(log) if "method" not in line["message"]
    ]


def outcome_of(result: Any) -> str:
    word: str = result["outcome"]["outcome"]
    return word


async def asked(r: Rig, session: Session) -> Any:
    turn = r.prompt(session, "ask")
    await until(lambda: session.questions)
    return turn


async def test_first_vote_wins_and_the_others_are_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log)) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            one, two = Recorder("one"), Recorder("two")
            one.attach(session)
            two.attach(session)
            turn = await asked(r, session)
            (question,) = one.asked
            assert two.asked == [question]
            yes = {"outcome": {"outcome": "selected", "optionId": "yes"}, "answers": {"0": "A"}}
            assert not one.vote(session, question, {"outcome": {"outcome": "x"}})
            assert one.vote(session, question, {**yes, "extra": 1})
            no = {"outcome": {"outcome": "selected", "optionId": "no"}}
            assert not two.vote(session, question, no)
            assert await r.outcome(turn) == END_TURN
            assert answers(log) == [yes]
            assert one.settled == two.settled == [question]
            (told,) = notices(session, "permission_resolved")
            assert told["voterClientId"] == "one" and told["requestId"] == question.request_id


@pytest.mark.parametrize("how", ["timeout", "cancel", "close", "shutdown"])
async def test_the_gateway_answers_exactly_once(tmp_path: Path, how: str) -> None:
    log = tmp_path / "log"
    patience = 0.3 if how == "timeout" else 60.0
    async with rig(tmp_path, obedient(log), permission_timeout=patience) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            client = Recorder()
            client.attach(session)
            turn = await asked(r, session)
            if how == "cancel":
                session.cancel(None)
            elif how == "close":
                await session.close("client_close")
            elif how == "shutdown":
                await r.manager.close_all("daemon_shutdown", 10)
            outcome = await r.outcome(turn)
            assert outcome == (END_TURN if how == "timeout" else CANCELLED)
            assert len(client.settled) == 1 and not session.questions
            assert not client.vote(session, client.asked[0], {"outcome": {"outcome": "cancelled"}})
        # The rig has ended the agent by now, so that nothing can come late.
    got = [answer for answer in answers(log) if answer is not None]
    assert [outcome_of(answer) for answer in got] == ["cancelled"]


async def test_a_dropped_client_leaves_the_question_open(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log)) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            gone = Recorder("gone")
            sub = gone.attach(session)
            turn = await asked(r, session)
            session.detach(gone, sub)
            assert session.questions and not turn.settled and not answers(log)
            back = Recorder("back")
            back.attach(session)
            assert back.asked == gone.asked
            yes = {"outcome": {"outcome": "selected", "optionId": "yes"}}
            assert back.vote(session, back.asked[0], yes)
            assert await r.outcome(turn) == END_TURN
            late = Recorder("late")
            late.attach(session)
            assert not late.asked, "a settled question was asked again"


BAD_LINES = (
    '{"id":[1],"method":"session/request_permission","params":{"sessionId":"SESSION",'
    '"toolCall":{},"options":[{"optionId":"a"}]}}',
    '{"id":{"a":1},"method":"session/request_permission","params":{"sessionId":"SESSION"}}',
    '{"id":9,"method":"session/request_permission","params":{"sessionId":"SESSION",'
    '"_meta":{"qwen":3},"toolCall":{},"options":[{"optionId":"a"}]}}',
    '{"id":true,"result":{}}',
    '{"method":"$/cancel_request","params":{"requestId":[1]}}',
    '{"method":"$/cancel_request","params":[]}',
    '{"id":null,"method":"fs/read_text_file","params":{"sessionId":"SESSION"}}',
    '{"id":4,"method":"fs/read_text_file","params":{"sessionId":"SESSION","path":"a\\u0000b"}}',
    '{"method":"session/update","params":{"sessionId":"SESSION","update":{"sessionUpdate":'
    '"config_option_update"}}}',
    '{"method":"session/update","params":{"sessionId":"SESSION","update":{"sessionUpdate":'
    '"current_mode_update","currentModeId":[]}}}',
    '{"method":"session/update","params":{"sessionId":"SESSION","update":7}}',
    '{"method":"session/update","params":{"sessionId":7}}',
    '{"method":5}',
)


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
async def test_odd_messages_of_an_agent_break_nothing(tmp_path: Path, line: str) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log"), permission_timeout=0.1) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            full = '{"jsonrpc":"2.0",' + line[1:]
            assert await r.say(session, f"raw {full}") == END_TURN
            assert await r.say(session, "x") == END_TURN
            assert not notices(session, "session_died")


async def test_drain_is_answered(tmp_path: Path) -> None:
    async with rig(tmp_path, scripted("asks-drain")) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            assert await r.say(session, "x") == END_TURN
            (text,) = texts(session)
            assert json.loads(text)["result"]["hasQueuedPrompt"] is False


# ---- death and restore --------------------------------------------------------------------------


async def test_a_death_in_a_turn_is_told_and_mended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log)) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            epoch = session.epoch
            first = r.prompt(session, "crash")
            # One that waits behind it is not lost with it.
            second = r.prompt(session, "after")
            outcome = await r.outcome(first)
            assert isinstance(outcome, GatewayError) and outcome.kind is ErrorKind.AGENT_EXITED
            assert outcome.data["exitCode"] == 7
            assert await r.outcome(second) == END_TURN
            (died,) = notices(session, "session_died")
            assert died["reason"] == "channel_closed" and died["recoverable"] is True
            assert "exit status 7" in died["message"]
            assert texts(session) == ["started", "you said after"], "history came twice"
            assert [end["kind"] for end in _turn_ends(session)] == ["turn_error", "turn_complete"]
            assert session.id in r.manager.sessions and session.over is None
            loads = received(log, "session/load")
            assert [line["message"]["params"]["sessionId"] for line in loads] == [session.agent_id]
            assert session.epoch == epoch  # its ring lives on, so cursors stay good


async def test_a_killed_agent_ends_its_own_session_s_turn_only(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            one, two = await r.create(), await r.create()
            client = Recorder()
            client.attach(one)
            turn = r.prompt(one, "wait")
            other = r.prompt(two, "wait")
            await until(lambda: texts(one) and texts(two))
            pid = (await one.agent()).pid
            assert pid is not None
            os.kill(pid, 9)
            outcome = await r.outcome(turn)
            assert isinstance(outcome, GatewayError) and "SIGKILL" in outcome.message
            kinds = [m["params"].get("kind") for m in client.read() if "params" in m]
            assert "session_died" in kinds or await until(lambda: notices(one, "session_died"))
            assert not other.settled
            two.cancel(None)
            assert await r.outcome(other) == CANCELLED
            assert await r.say(one, "again") == END_TURN


async def test_without_load_a_death_ends_the_session(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log", "no-load")) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            client = Recorder()
            client.attach(session)
            outcome = await r.say(session, "crash")
            assert isinstance(outcome, GatewayError) and outcome.kind is ErrorKind.AGENT_EXITED
            await session.ended.wait()
            assert notices(session, "session_died")[0]["recoverable"] is False
            assert client.ended == [session] and session.id not in r.manager.sessions
            with pytest.raises(GatewayError):
                r.prompt(session, "x")
            assert (await r.create()).over is None


async def test_a_restore_that_is_refused_ends_the_session(tmp_path: Path) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log", "refuse-load")) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            await r.say(session, "crash")
            outcome = await r.say(session, "again")
            assert isinstance(outcome, GatewayError) and outcome.message == "the file is broken"
            await session.ended.wait()
            assert not r.manager.sessions


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_restore_that_hangs_holds_nobody(tmp_path: Path, how: str) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log, "hang-load"), agent_request_timeout=300) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            await r.say(session, "crash")
            turn = r.prompt(session, "again")
            await until(lambda: received(log, "session/load"))
            if how == "cancel":
                session.cancel_turn(turn)
            else:
                await session.close("client_close")
            assert await r.outcome(turn) == CANCELLED


async def test_close_ends_turns_as_cancelled_and_tells_why(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with rig(tmp_path, obedient(log)) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            client = Recorder()
            client.attach(session)
            one, two = r.prompt(session, "wait"), r.prompt(session, "x")
            await until(lambda: texts(session))
            await session.close("client_close")
            assert await r.outcome(one) == CANCELLED and await r.outcome(two) == CANCELLED
            assert notices(session, "session_closed")[0]["reason"] == "client_close"
            assert client.ended == [session] and not session.clients
            assert received(log, "session/cancel") and received(log, "session/close")
            assert r.manager._budget.total == r.manager.feed.ring.kept_bytes


async def test_a_bug_in_one_session_leaves_its_siblings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path, obedient(tmp_path / "log")) as r:
        with trio.fail_after(DEADLINE):
            one, two = await r.create(), await r.create()

            async def broken(turn: object) -> None:
                raise ZeroDivisionError("a bug")

            monkeypatch.setattr(one, "_run_turn", broken)
            outcome = await r.say(one, "x")
            assert isinstance(outcome, GatewayError) and outcome.kind is ErrorKind.INTERNAL
            assert "a bug" not in str(outcome.to_jsonrpc())
            assert notices(one, "session_died")[0]["reason"] == "internal"
            assert await r.say(two, "x") == END_TURN


@pytest.mark.parametrize("usable", [True, False])
async def test_the_audit_goes_to_a_file_that_may_fail(tmp_path: Path, usable: bool) -> None:
    log = tmp_path / "log"
    audit = tmp_path / ("audit.jsonl" if usable else "missing/audit.jsonl")
    async with rig(tmp_path, obedient(log), permission_audit=audit) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            client = Recorder("one")
            client.attach(session)
            turn = await asked(r, session)
            yes = {"outcome": {"outcome": "selected", "optionId": "yes"}}
            assert client.vote(session, client.asked[0], yes)
            assert await r.outcome(turn) == END_TURN
            kinds = ["permission.requested", "permission.voted", "permission.resolved"]
            told = r.manager.desk.audit.query(session_id=session.id)
            assert [entry["kind"] for entry in told] == kinds
    lines = audit.read_text().splitlines() if usable else []
    assert [json.loads(line)["kind"] for line in lines] == (kinds if usable else [])
