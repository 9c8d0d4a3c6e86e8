"""Open questions of an agent: asked of every client that may vote, settled exactly once.

First answer wins. An error or a malformed answer abstains: it never cancels for the others. The
gateway itself settles as ``cancelled`` on timeout, cancel, close and shutdown; a client that leaves
settles nothing (the question waits and is asked again of whoever attaches).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

CANCELLED: dict[str, Any] = {"outcome": {"outcome": "cancelled"}}


class Settled(Enum):
    """Why a question is over."""

    VOTE = "vote"
    TIMEOUT = "timeout"
    CANCEL = "cancel"
    CLOSED = "closed"
    WITHDRAWN = "withdrawn"
    """The agent took it back; it gets no answer."""


class Question:
    """One ``session/request_permission`` of the agent.

    ``answer`` is called exactly once with the result for the agent and the reason.
    """

    def __init__(
        self,
        request_id: str,
        params: dict[str, Any],
        option_ids: frozenset[str],
        answer: Callable[[Question], None],
    ) -> None:
        self.request_id = request_id
        self.params = params
        """As the agent sent them, with the session id that clients know."""
        self.option_ids = option_ids
        self.result: dict[str, Any] | None = None
        self.reason: Settled | None = None
        self.voter: str | None = None
        self._answer = answer

    @property
    def open(self) -> bool:
        return self.reason is None


class QuestionBoard:
    """The open questions of one session."""

    def __init__(self) -> None:
        self._open: dict[str, Question] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def open(self) -> tuple[Question, ...]:
        return tuple(self._open.values())

    def ask(self, question: Question) -> None:
        self._open[question.request_id] = question

    def vote(self, question: Question, result: Any, voter: str | None) -> bool:
        """A client's answer. False when it settles nothing: too late, or not a valid outcome."""
        outcome = result.get("outcome") if isinstance(result, dict) else None
        if not isinstance(outcome, dict) or not question.open:
            return False
        kind = outcome.get("outcome")
        if kind == "selected":
            chosen = outcome.get("optionId")
            if not isinstance(chosen, str) or chosen not in question.option_ids:
                return False
        elif kind != "cancelled":
            return False
        question.voter = voter
        # The whole result goes to the agent: real agents read members beside the outcome
        # (``answers`` of a user question).
        return self._settle(question, result, Settled.VOTE)

    def end(self, question: Question, reason: Settled) -> bool:
        """Settle as cancelled, for a reason of the gateway's own."""
        return self._settle(question, CANCELLED, reason)

    def end_all(self, reason: Settled) -> None:
        for question in self.open:
            self.end(question, reason)

    def _settle(self, question: Question, result: dict[str, Any], reason: Settled) -> bool:
        if not question.open:
            return False
        self._open.pop(question.request_id, None)
        question.reason = reason
        question.result = result
        question._answer(question)
        return True
