"""Prompts of one session: one runs, the others wait in order, each ends exactly once."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from acp_gateway.core.turn_queue import REMEMBERED, Turn, TurnQueue, TurnState
from acp_gateway.protocol.errors import ErrorKind, GatewayError

CANCELLED = {"stopReason": "cancelled"}


class QueueMachine(RuleBasedStateMachine):
    @initialize(limit=st.integers(1, 4))
    def start(self, limit: int) -> None:
        self.queue = TurnQueue(limit)
        self.waiting: list[Turn] = []
        self.running: Turn | None = None
        self.settled: list[tuple[Turn, object]] = []
        self.expected: list[tuple[Turn, object]] = []
        self.number = 0

    @rule(origin=st.sampled_from(["a", "b", None]))
    def submit(self, origin: str | None) -> None:
        self.number += 1
        turn = Turn(str(self.number), {}, origin=origin)
        turn.when_settled(lambda t: self.settled.append((t, t.outcome)))
        pending = len(self.waiting) + (self.running is not None)
        if pending >= self.queue.limit:
            with pytest.raises(GatewayError) as caught:
                self.queue.submit(turn, "s")
            assert caught.value.kind is ErrorKind.PROMPT_QUEUE_FULL
            assert caught.value.data["pendingCount"] == caught.value.data["limit"] == pending
            assert not turn.settled
        else:
            self.queue.submit(turn, "s")
            self.waiting.append(turn)

    @rule()
    def start_next(self) -> None:
        started = self.queue.start_next()
        if self.running is not None or not self.waiting:
            assert started is None
        else:
            assert started is self.waiting.pop(0)  # first in, first out
            assert started.state is TurnState.RUNNING
            self.running = started

    @precondition(lambda self: self.number)
    @rule(data=st.data(), outcome=st.sampled_from([CANCELLED, {"stopReason": "end_turn"}]))
    def settle(self, data: st.DataObject, outcome: object) -> None:
        turns = [*self.waiting, *([self.running] if self.running else [])]
        turns += [turn for turn, _ in self.expected]
        if not turns:
            return
        turn = data.draw(st.sampled_from(turns))
        ended = turn.settled
        assert self.queue.settle(turn, outcome) == (not ended)
        if not ended:
            self._end(turn, outcome)

    def _end(self, turn: Turn, outcome: object) -> None:
        self.expected.append((turn, outcome))
        if turn is self.running:
            self.running = None
        else:
            self.waiting.remove(turn)

    @rule(origin=st.sampled_from(["a", "b"]))
    def withdraw(self, origin: str) -> None:
        mine = [turn for turn in self.waiting if turn.origin == origin]
        assert self.queue.withdraw(lambda turn: turn.origin == origin, CANCELLED) == mine
        for turn in mine:
            self._end(turn, CANCELLED)

    @invariant()
    def each_ends_once_and_the_rest_keeps_its_order(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert self.settled == self.expected
        assert list(self.queue.waiting) == self.waiting
        assert self.queue.running is self.running
        assert len(self.queue) == len(self.waiting) + (self.running is not None)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, deadline=None)


def test_an_observer_may_come_late_and_may_go() -> None:
    queue, told = TurnQueue(1), []
    turn = Turn("1", {}, origin=None)
    queue.submit(turn, "s")
    gone = told.append
    turn.when_settled(gone)
    turn.forget_observer(gone)
    turn.forget_observer(gone)
    turn.when_settled(lambda t: told.append(("early", t)))
    assert queue.settle(turn, CANCELLED)
    turn.when_settled(lambda t: told.append(("late", t)))
    assert told == [("early", turn), ("late", turn)]


def test_an_observer_sees_the_queue_free_for_the_next() -> None:
    queue = TurnQueue(2)
    first, second = (Turn(n, {}, origin=None) for n in "12")
    queue.submit(first, "s")
    queue.submit(second, "s")
    assert queue.start_next() is first and queue.start_next() is None
    first.when_settled(lambda _: started.append(queue.start_next()))
    started: list[Turn | None] = []
    queue.settle(first, CANCELLED)
    assert started == [second]


def test_a_key_is_found_while_its_turn_lives_and_for_some_time_after() -> None:
    queue = TurnQueue(3)
    assert queue.find(None) is None and queue.find("k0") is None
    for number in range(REMEMBERED + 20):
        turn = Turn(str(number), {}, origin=None, key=f"k{number}")
        queue.submit(turn, "s")
        assert queue.find(turn.key) is turn
        queue.settle(turn, CANCELLED)
        assert queue.find(turn.key) is turn
    assert queue.find("k0") is None
    assert queue.find("k83") is not None and queue.find("k20") is not None


def test_a_turn_that_has_not_ended_is_never_forgotten() -> None:
    queue = TurnQueue(2)
    old = Turn("old", {}, origin=None, key="old")
    queue.submit(old, "s")
    queue.start_next()
    for number in range(3 * REMEMBERED):
        turn = Turn(str(number), {}, origin=None, key=str(number))
        queue.submit(turn, "s")
        queue.settle(turn, CANCELLED)
    assert queue.find("old") is old
