"""Votes, cancels, timeouts, leaving, death, closing at the same tick: one answer to each request.

The real desk, callbacks and turns, with an agent in memory and a clock that jumps.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import structlog
import support.transport_imports  # noqa: F401
import trio
from support.fake_agent import FakeHost, FakePool, fake_manager, rule, settle, start
from support.runtime_rig import Recorder, records
from trio.testing import MockClock

from acp_gateway.protocol.errors import GatewayError
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.sessions import SessionManager
from acp_gateway.transports.operations import permissions, sessions, turns
from acp_gateway.transports.operations.call import Call, Caller

SCHEDULES = 10_000
TIMEOUT = 5.0
POLICIES = ("first-responder", "designated", "consensus", "local-only")
YES = {"outcome": {"outcome": "selected", "optionId": "yes"}}
NO = {"outcome": {"outcome": "selected", "optionId": "no"}}
ABORT = {"outcome": {"outcome": "cancelled"}}
REFUSALS = {
    "permission_not_found",
    "permission_already_resolved",
    "permission_forbidden",
    "session_not_found",
    "invalid_client_id",
}
RUNS = ("vote", "vote", "vote", "abort", "cancel", "leave", "drop", "finish", "death", "close")


class Asking(FakePool):
    """Asks as often as the prompt says, and ends the turn when it has all answers."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[FakeHost, str]] = []
        self._open: Counter[FakeHost] = Counter()

    def on_prompt(self, host: FakeHost, message: dict[str, Any]) -> None:
        super().on_prompt(host, message)
        count = int(message["params"]["prompt"][0]["text"])
        session_id = message["params"]["sessionId"]
        for _ in range(count):
            self.asked.append((host, host.ask(session_id)))
        self._open[host] += count
        if not count:
            self.finish(host, session_id)

    def answered(self, host: FakeHost, message: dict[str, Any]) -> None:
        self._open[host] -= 1
        for session_id in tuple(host.sessions):
            host.say(session_id, "it goes on")
        if not self._open[host]:
            for session_id in tuple(host.sessions):
                self.finish(host, session_id)


@attrs.define
class Stage:
    """One session with three clients: ``a`` and ``b`` over REST, ``c`` over ACP. ``d`` is an
    anonymous caller."""

    manager: SessionManager
    pool: Asking
    session: Session
    recorder: Recorder
    sub: Any
    local: dict[str, bool]
    ids: dict[str, str]
    results: list[tuple[str, Any]] = attrs.field(factory=list)

    def call(self, who: str, **params: Any) -> Call:
        rest = who != "c"
        caller = Caller(
            claimed=self.ids.get(who),
            binding=None if rest else self.recorder.origin,
            loopback=self.local[who],
        )
        hub: Any = SimpleNamespace(manager=self.manager)
        return Call(hub=hub, caller=caller, params={"sessionId": self.session.id, **params})

    async def perform(
        self, name: str, handler: Callable[[Call], Awaitable[Any]], call: Call
    ) -> Any:
        try:
            result = await handler(call)
        except GatewayError as exc:
            result = exc.kind.word
        self.results.append((name, result))
        return result

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [
            json.loads(each.line)["params"]["data"]
            for each in records(self.session)
            if each.name == kind
        ]


async def stage(
    manager: SessionManager, pool: Asking, root: Path, policy: str, dice: random.Random
) -> Stage:
    session = await start(manager, root, rule=rule(policy))
    recorder = Recorder("c")
    recorder.loopback = dice.random() < 0.7
    sub = session.attach(recorder, history=True)
    recorder.outlet.add(sub)
    ids = {name: session.parties.join(None, None) for name in "ab"}
    local = {name: dice.random() < 0.7 for name in "abd"} | {"c": recorder.loopback}
    return Stage(manager, pool, session, recorder, sub, local, ids | {"c": "c"})


def prompt(session: Session, count: int, client: str | None) -> Any:
    params = {"sessionId": session.id, "prompt": [{"type": "text", "text": str(count)}]}
    return session.submit(params, origin=None, client=client)


def act(each: Stage, word: str, who: str, request: str, dice: random.Random, host: FakeHost) -> Any:
    """The action as something to start in a task."""
    session = each.session
    if word in ("vote", "abort"):
        body = ABORT if word == "abort" else dice.choice((YES, NO))
        if who == "c":

            async def vote_over_acp() -> None:
                question = next((q for q in each.recorder.asked if q.request_id == request), None)
                if question is not None:
                    each.recorder.vote(session, question, body)

            return vote_over_acp
        call = each.call(who, requestId=request, **body)
        return lambda: each.perform(word, permissions.vote, call)
    if word == "cancel":
        return lambda: each.perform(word, turns.cancel, each.call(who))
    if word == "leave":
        return lambda: each.perform(word, sessions.detach, each.call(who))
    if word == "close":
        return lambda: each.perform(word, sessions.close, each.call(who))

    async def now() -> None:
        if word == "drop":
            session.detach(each.recorder, each.sub)
        elif word == "finish":
            # The turn ends although the agent still asks.
            each.pool.finish(host, session.agent_id)
        else:
            host.die()

    return now


async def play(
    manager: SessionManager, pool: Asking, root: Path, policy: str, seed: int
) -> Counter[str]:
    """One schedule; what happened, in words."""
    dice = random.Random(seed)
    pool.can_load = dice.random() < 0.5
    each = await stage(manager, pool, root, policy, dice)
    session = each.session
    count = dice.choice((1, 1, 1, 2))
    before = len(pool.asked)
    originator = dice.choice((each.ids["a"], each.ids["a"], "c", None))
    first = prompt(session, count, originator)
    queued = [prompt(session, 0, each.ids["b"])] if dice.random() < 0.2 else []
    await settle(lambda: len(each.recorder.asked) == count)
    asked = pool.asked[before:]
    host = asked[0][0]
    requests = [question.request_id for question in each.recorder.asked]
    if dice.random() < 0.4:
        # The timer fires in the tick in which everything else happens.
        await trio.sleep_until(trio.current_time() + TIMEOUT)
    words = [dice.choice(RUNS) for _ in range(dice.randint(1, 6))]
    async with trio.open_nursery() as nursery:
        for word in words:
            who, request = dice.choice("aabbccd"), dice.choice(requests)
            nursery.start_soon(act(each, word, who, request, dice, host))
            if dice.random() < 0.2:
                await trio.lowlevel.checkpoint()
    await trio.sleep(2 * TIMEOUT)  # whatever nobody decided has timed out; nothing comes late
    await check(each, words, asked, requests, [first, *queued])
    happened = Counter(f"{name} {result}" for name, result in each.results)
    happened.update(words)
    happened.update(data["reason"] for data in each.events("permission_resolved"))
    await session.close("client_close")
    await check(each, words, asked, requests, [first, *queued])
    assert session.ring.last_id == 0 or ends(session)[-1].endswith(("closed", "died"))
    assert session.id not in manager.sessions and not len(session.clients)
    return happened


def ends(session: Session) -> list[str]:
    return [each.name for each in records(session)]


async def check(
    each: Stage,
    words: list[str],
    asked: list[tuple[FakeHost, str]],
    requests: list[str],
    prompts: list[Any],
) -> None:
    session = each.session
    for host, question in asked:
        answers = len(host.answers.get(question, ()))
        assert answers == 1 or (answers == 0 and "death" in words)
    resolved = {data["requestId"]: data for data in each.events("permission_resolved")}
    assert sorted(resolved) == sorted(requests)
    assert len(each.events("permission_resolved")) == len(requests), "resolved twice"
    assert not session.questions
    settled = Counter(q.request_id for q in each.recorder.settled)
    assert all(settled[id] <= 1 for id in requests)
    if not {"drop", "close", "death"} & set(words):
        assert set(settled) == set(requests)
    for host, question in asked:
        for answer in host.answers.get(question, ()):
            outcomes = [data["outcome"] for data in resolved.values()]
            assert answer["result"]["outcome"] in outcomes
    entries = each.manager.desk.audit.query(session_id=session.id, limit=None)
    kinds = Counter((entry["requestId"], entry["kind"]) for entry in entries)
    for id in requests:
        assert kinds[id, "permission.requested"] == kinds[id, "permission.resolved"] == 1
    # Late votes are told behind the decision, and never behind the session's last event.
    names = ends(session)
    for turn in prompts:
        told = [
            record
            for record in records(session)
            if record.name in ("turn_complete", "turn_error") and record.prompt_id == turn.prompt_id
        ]
        assert len(told) == 1, f"{len(told)} ends of a prompt"
    last = [at for at, name in enumerate(names) if name in ("session_closed", "session_died")]
    if last and session.sealed:
        assert last[-1] == len(names) - 1, f"behind the last event: {names[last[-1] + 1 :]}"
    if last:
        late = [name for name in names[last[0] + 1 :] if name.startswith("permission_")]
        assert not late, f"behind {names[last[0]]}: {late}"
    for name, result in each.results:
        if name in ("vote", "abort"):
            assert result == {} or result in REFUSALS, result


@pytest.fixture
def _quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("policy", POLICIES)
def test_each_request_is_answered_once_in_every_schedule(tmp_path: Path, policy: str) -> None:
    count = SCHEDULES // len(POLICIES)
    first = POLICIES.index(policy) * count
    happened: Counter[str] = Counter()

    async def main() -> None:
        async with fake_manager(tmp_path, Asking(), permission_timeout=TIMEOUT) as (manager, pool):
            assert isinstance(pool, Asking)
            for seed in range(first, first + count):
                # trio shuffles what is ready: with this it does so the same way each time.
                trio._core._run._r.seed(seed)  # type: ignore[attr-defined]
                try:
                    happened.update(await play(manager, pool, tmp_path, policy, seed))
                except BaseException as exc:
                    exc.add_note(f"policy {policy}, seed {seed}")
                    raise

    trio.run(main, clock=MockClock(autojump_threshold=0))
    wanted = {"vote {}", "abort {}", "vote permission_already_resolved", "timeout", "closed"}
    wanted |= {"cancel", "leave", "drop", "finish", "death", "close"}
    wanted |= {"vote permission_forbidden"} if policy != "first-responder" else set()
    assert wanted <= set(happened), f"never happened: {wanted - set(happened)}"


# ---- single races, told by their outcome ---------------------------------------------------------


async def asking(
    manager: SessionManager, pool: Asking, root: Path, policy: str = "first-responder"
) -> tuple[Stage, FakeHost, str, str]:
    """A stage with one open question: its agent, the agent's id for it, and ours."""
    each = await stage(manager, pool, root, policy, random.Random(1))
    prompt(each.session, 1, each.ids["a"])
    await settle(lambda: each.recorder.asked)
    host, question = pool.asked[-1]
    return each, host, question, each.recorder.asked[-1].request_id


@pytest.mark.usefixtures("_quiet")
def test_a_vote_at_the_tick_of_the_timeout(tmp_path: Path) -> None:
    won: Counter[str] = Counter()

    async def main() -> None:
        async with fake_manager(tmp_path, Asking(), permission_timeout=TIMEOUT) as (manager, pool):
            assert isinstance(pool, Asking)
            for seed in range(100):
                trio._core._run._r.seed(seed)  # type: ignore[attr-defined]
                each, host, question, request = await asking(manager, pool, tmp_path)
                call = each.call("a", requestId=request, **YES)
                await trio.sleep_until(trio.current_time() + TIMEOUT)
                result = await each.perform("vote", permissions.vote, call)
                await trio.sleep(1)
                (told,) = each.events("permission_resolved")
                (answer,) = host.answers[question]
                if result == {}:
                    assert told["reason"] == "vote" and told["voterClientId"] == each.ids["a"]
                    assert answer["result"] == YES
                    assert not each.events("permission_already_resolved")
                else:
                    assert result == "permission_already_resolved"
                    assert told["reason"] == "timeout" and "voterClientId" not in told
                    meta = {"qwen.daemon.permissionCancelReason": "timeout"}
                    assert answer["result"] == {**ABORT, "_meta": meta}
                    (late,) = each.events("permission_already_resolved")
                    assert late["outcome"] == ABORT["outcome"]
                won[told["reason"]] += 1
                await each.session.close("client_close")

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert won["vote"] and won["timeout"] and won.total() == 100


async def test_the_timer_of_an_answered_question_never_fires(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with fake_manager(tmp_path, Asking(), permission_timeout=TIMEOUT) as (manager, pool):
        assert isinstance(pool, Asking)
        each, host, question, request = await asking(manager, pool, tmp_path)
        await trio.sleep(TIMEOUT - 0.001)
        await each.perform("vote", permissions.vote, each.call("b", requestId=request, **NO))
        await trio.testing.wait_all_tasks_blocked()
        last = each.session.ring.last_id
        await trio.sleep(10 * TIMEOUT)
        assert each.session.ring.last_id == last and len(host.answers[question]) == 1
        kinds = [entry["kind"] for entry in manager.desk.audit.query(session_id=each.session.id)]
        assert kinds == ["permission.requested", "permission.voted", "permission.resolved"]


async def test_a_turn_that_ends_takes_its_questions_along(tmp_path: Path) -> None:
    async with fake_manager(tmp_path, Asking()) as (manager, pool):
        assert isinstance(pool, Asking)
        each, host, question, request = await asking(manager, pool, tmp_path)
        session = each.session
        pool.finish(host, session.agent_id)
        await settle(lambda: each.events("turn_complete"))
        assert not session.questions and each.recorder.settled
        names = [name for name in ends(session) if not name.endswith("chunk")]
        assert names == ["permission_request", "permission_resolved", "turn_complete"]
        reason = "qwen.daemon.permissionCancelReason"
        assert host.answers[question][0]["result"]["_meta"][reason] == "agent_cancelled"
        result = await each.perform(
            "vote", permissions.vote, each.call("a", requestId=request, **YES)
        )
        assert result == "permission_already_resolved"


async def test_the_order_of_a_cancel(tmp_path: Path) -> None:
    async with fake_manager(tmp_path, Asking()) as (manager, pool):
        assert isinstance(pool, Asking)
        each, host, question, _ = await asking(manager, pool, tmp_path)
        await turns.cancel(each.call("b"))
        names = ends(each.session)
        order = ["prompt_cancelled", "permission_resolved", "turn_complete"]
        assert [name for name in names if name in order] == order
        assert host.answers[question][0]["result"]["outcome"] == ABORT["outcome"]


async def test_a_vote_through_another_session_s_url_changes_nothing(tmp_path: Path) -> None:
    async with fake_manager(tmp_path, Asking()) as (manager, pool):
        assert isinstance(pool, Asking)
        one, host, _, request = await asking(manager, pool, tmp_path)
        other = await stage(manager, pool, tmp_path, "first-responder", random.Random(1))
        last = one.session.ring.last_id, other.session.ring.last_id
        for body in (YES, ABORT):
            call = other.call("a", requestId=request, **body)
            assert await other.perform("vote", permissions.vote, call) == "permission_not_found"
        assert (one.session.ring.last_id, other.session.ring.last_id) == last
        assert not host.answers and one.session.questions
        # The older URL finds the session by itself.
        call = one.call("a", requestId=request, **YES)
        assert await one.perform("vote", permissions.vote_anywhere, call) == {}
        await settle(lambda: host.answers)


@pytest.mark.parametrize("policy", POLICIES)
async def test_nothing_is_open_behind_a_close(tmp_path: Path, policy: str) -> None:
    async with fake_manager(tmp_path, Asking()) as (manager, pool):
        assert isinstance(pool, Asking)
        each, host, question, request = await asking(manager, pool, tmp_path, policy)
        await each.session.close("client_close", client=each.ids["a"])
        assert not manager.desk.pending() and len(host.answers[question]) == 1
        names = ends(each.session)
        assert names.index("permission_resolved") < names.index("turn_error") < len(names) - 1
        assert names[-1] == "session_closed"
        for who in "abcd":
            call = each.call(who, requestId=request, **YES)
            if who != "c":
                result = await each.perform("vote", permissions.vote, call)
                assert result == "session_not_found"
        assert ends(each.session) == names
