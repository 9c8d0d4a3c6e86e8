"""A question of an agent is settled once, by the first good vote or by the gateway."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.permissions import CANCELLED, Question, QuestionBoard, Settled

ALLOW = {"outcome": {"outcome": "selected", "optionId": "allow"}}


class Asked:
    """A board with one question, and what its agent was told."""

    def __init__(self) -> None:
        self.answers: list[tuple[Any, Settled | None, bool]] = []
        self.board = QuestionBoard()
        self.question = Question("q", {}, frozenset({"allow", "reject"}), self._answer)
        self.board.ask(self.question)

    def _answer(self, question: Question) -> None:
        # By then it is over: nobody that is told now can settle it again.
        self.answers.append((question.result, question.reason, question.open))
        assert question not in self.board.open
        assert not self.board.end(question, Settled.CLOSED)
        assert not self.board.vote(question, ALLOW, "late")


def test_the_first_good_vote_wins_and_goes_to_the_agent_whole() -> None:
    asked = Asked()
    result = {**ALLOW, "answers": {"a": 1}}
    assert asked.board.vote(asked.question, result, "client-1")
    assert not asked.board.vote(asked.question, CANCELLED, "client-2")
    assert asked.answers == [(result, Settled.VOTE, False)]
    assert (asked.question.voter, len(asked.board)) == ("client-1", 0)


def test_a_client_may_vote_to_cancel() -> None:
    asked = Asked()
    assert asked.board.vote(asked.question, {"outcome": {"outcome": "cancelled"}}, "c")
    assert asked.answers == [(CANCELLED, Settled.VOTE, False)]


@pytest.mark.parametrize(
    "result",
    [
        *(None, {}, [], "allow", {"outcome": None}, {"outcome": "cancelled"}, {"outcome": {}}),
        {"outcome": {"outcome": "selected"}},
        {"outcome": {"outcome": "selected", "optionId": "other"}},
        {"outcome": {"outcome": "selected", "optionId": None}},
        {"outcome": {"outcome": "selected", "optionId": ["allow"]}},
        {"outcome": {"outcome": "selected", "optionId": {"allow": 1}}},
        {"outcome": {"outcome": ["selected"], "optionId": "allow"}},
        {"outcome": {"outcome": "allow"}},
    ],
)
def test_a_malformed_vote_abstains(result: Any) -> None:
    asked = Asked()
    assert not asked.board.vote(asked.question, result, "c")
    assert asked.question.open and asked.question.voter is None and not asked.answers
    assert asked.board.vote(asked.question, ALLOW, "d")


@pytest.mark.parametrize("reason", [each for each in Settled if each is not Settled.VOTE])
def test_the_gateway_settles_as_cancelled_and_says_why(reason: Settled) -> None:
    asked = Asked()
    assert asked.board.end(asked.question, reason)
    assert asked.answers == [(CANCELLED, reason, False)]
    assert not asked.board.vote(asked.question, ALLOW, "late")


@given(st.lists(st.sampled_from(["good", "bad", "end", "end_all"]), max_size=8))
def test_the_agent_is_answered_at_most_once(actions: list[str]) -> None:
    asked = Asked()
    won = []
    for action in actions:
        if action == "good":
            won.append(asked.board.vote(asked.question, ALLOW, "c"))
        elif action == "bad":
            assert not asked.board.vote(asked.question, {"outcome": 1}, "c")
        elif action == "end":
            won.append(asked.board.end(asked.question, Settled.TIMEOUT))
        else:
            asked.board.end_all(Settled.CLOSED)
    assert len(asked.answers) == any(action != "bad" for action in actions)
    assert won.count(True) <= 1


def test_end_all_ends_what_is_asked_then_and_nothing_else() -> None:
    board, told = QuestionBoard(), []
    for name in "abc":
        board.ask(Question(name, {}, frozenset(), lambda q: told.append(q.request_id)))
    first = board.open[0]
    board.end(first, Settled.CANCEL)
    board.end_all(Settled.CLOSED)
    assert told == ["a", "b", "c"] and board.open == ()
