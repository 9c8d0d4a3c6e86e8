"""Permission requests of agents: who may decide them, and that each is decided exactly once.

One mediator for the daemon. Pure: time comes in as Unix seconds, and what is to be done comes out
as effects, which the runtime carries out in their order and without a pause between the call and
the last of them. So a request is never published without being open, nor open without being
published. The order of a settling is a contract with clients: the event, the audit entry, then the
answer to the agent; by the first of them a late vote already finds the request settled.

Nothing that a client sends raises: a vote is answered by a `Decision`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from acp_gateway.core import permission_audit as audit
from acp_gateway.core.permission_effects import (
    Answer,
    Audit,
    Decision,
    Effect,
    Note,
    Publish,
    Verdict,
)
from acp_gateway.core.question import (
    CANCEL_REASON_META,
    CANCEL_SENTINEL,
    Ballot,
    Policy,
    Question,
    Rule,
    Settled,
    Voter,
    elector_of,
)

__all__ = [
    "Answer",
    "Audit",
    "CancelSentinelCollision",
    "Decision",
    "Effect",
    "Mediator",
    "Note",
    "Policy",
    "Publish",
    "Question",
    "Rule",
    "Settled",
    "Verdict",
    "Voter",
]

_WORDS: Final = {
    # What the agent reads as the reason.
    Settled.TIMEOUT: "timeout",
    Settled.CLOSED: "session_closed",
    Settled.NO_VOTER: "session_closed",
}
NO_ONE: Final = Voter()
"""Stands for the voter of what ended without a vote."""
_ABORTED: Final = "agent_cancelled"
"""For every other end."""


class CancelSentinelCollision(ValueError):
    """The agent offers an option with the reserved id."""

    def __init__(self) -> None:
        super().__init__(f"the option id {CANCEL_SENTINEL} is reserved; rename the option")


@attrs.frozen
class _Past:
    session_id: str
    prompt_id: str | None
    outcome: dict[str, Any]


class Mediator:
    def __init__(self, *, remembered: int = 512, per_session: int = 64) -> None:
        self._limit = remembered
        self._per_session = per_session
        self._pending: dict[str, Question] = {}
        self._past: dict[str, _Past] = {}
        """Settled requests by id, oldest first."""
        self._unanimity_told = False

    def pending(self, session_id: str | None = None) -> tuple[Question, ...]:
        """Open requests, oldest first."""
        return tuple(q for q in self._pending.values() if session_id in (None, q.session_id))

    def session_of(self, request_id: str) -> str | None:
        """The session of a request that is open or remembered."""
        known = self._pending.get(request_id) or self._past.get(request_id)
        return None if known is None else known.session_id

    def may_vote(self, question: Question, voter: Voter) -> bool:
        """Whether to ask ``voter``: the rule lets it choose an option, and it has not yet.

        Anybody may still cancel.
        """
        return (
            question.open
            and voter.elector not in question.votes
            and question.refusal(voter) is None
        )

    # ---- asking ---------------------------------------------------------------------------------

    def ask(
        self,
        session_id: str,
        request_id: str,
        params: dict[str, Any],
        *,
        rule: Rule,
        originator: str | None,
        prompt_id: str | None,
        voters: Iterable[str],
        now: float,
        timeout: float,
        originator_party: str | None = None,
        originator_name: str | None = None,
    ) -> tuple[Question, list[Effect]]:
        """Open a request; ``request_id`` was never used before. ``voters``: the ids of clients, or
        a mapping of them to who each counts as.

        It is settled at once (as `Settled.REFUSED`) when there is nothing to choose or the session
        has too many open. Raises `CancelSentinelCollision`.
        """
        electors = voters if isinstance(voters, Mapping) else {each: each for each in voters}
        question = Question(
            request_id=request_id,
            session_id=session_id,
            params=params,
            option_ids=_option_ids(params),
            rule=rule,
            originator=originator,
            originator_party=originator_party,
            originator_name=originator_name,
            prompt_id=prompt_id,
            electors=dict(electors),
            issued_at=now,
            timeout=timeout,
            quorum=rule.quorum_of(len(frozenset(electors.values()))),
        )
        problem = None
        if len(self.pending(session_id)) >= self._per_session:
            problem = f"the session has {self._per_session} open already"
        elif CANCEL_SENTINEL in question.option_ids:
            raise CancelSentinelCollision
        elif not question.option_ids:
            problem = "it offers no option"
        requested = Audit(audit.requested(question))
        if problem is not None:
            note = _note(question, f"cancelled unasked: {problem}")
            return question, [note, requested, *self.end(question, Settled.REFUSED, now=now)]
        self._pending[request_id] = question
        data = {"requestId": request_id, "sessionId": session_id}
        data |= {name: params[name] for name in ("toolCall", "options") if name in params}
        return question, [
            self._publish(question, "permission_request", data),
            requested,
            *self._warnings(question),
        ]

    def _warnings(self, question: Question) -> Iterable[Note]:
        rule, electorate = question.rule, len(question.present)
        if rule.policy is Policy.DESIGNATED:
            known = {None, *question.electors, *question.electors.values()}
            elector = elector_of(question.originator, question.originator_party)
            if question.originator not in known and elector not in known:
                yield _note(question, "the client that may decide has left")
        elif rule.policy is Policy.CONSENSUS:
            if not electorate:
                yield _note(question, "consensus without a voter; only a cancel or its timeout")
            if rule.quorum is not None and rule.quorum > question.quorum:
                yield _note(question, f"quorum {rule.quorum} capped to {question.quorum}")
            unanimous = rule.quorum is None and 2 <= electorate == question.quorum
            if unanimous and not self._unanimity_told:
                self._unanimity_told = True
                yield _note(question, f"{electorate} voters must agree; told once")

    # ---- votes ----------------------------------------------------------------------------------

    def vote(
        self, session_id: str | None, request_id: str, body: Any, voter: Voter, *, now: float
    ) -> Decision:
        """A vote: ``{outcome, answers?, expectedPlanExecutionMode?, _meta?}``.

        ``session_id`` None: of whatever session the request is. The order of the checks is the
        daemon's contract.
        """
        ballot = Ballot.read(body)
        if ballot is None:
            return Decision(verdict=Verdict.INVALID_OUTCOME)
        owner = self.session_of(request_id)
        if owner is None or session_id not in (None, owner):
            note = Note(f"vote for unknown permission request {_printable(request_id)}")
            return Decision(verdict=Verdict.UNKNOWN, effects=(note,))
        question, option = self._pending.get(request_id), ballot.option
        if option == CANCEL_SENTINEL:
            return Decision(verdict=Verdict.SENTINEL, question=question)
        if question is None:
            return self._too_late(request_id, self._past[request_id])
        if option is None:
            return self._abort(question, ballot, voter, now)
        if option not in question.option_ids:
            return Decision(verdict=Verdict.INVALID_OPTION, question=question)
        first = question.votes.get(voter.elector or "")
        if first is not None:
            entry = audit.voted(question, voter, first, _recorded(question), now)
            return Decision(verdict=Verdict.REPEATED, effects=(Audit(entry),), question=question)
        refusal = question.refusal(voter)
        if refusal is not None:
            return self._forbid(question, voter, option, refusal, now)
        if question.rule.policy is Policy.CONSENSUS and voter.elector is not None:
            question.votes[voter.elector] = option
            if question.missing > 0:
                return self._record(question, voter, option, now)
        return self._choose(question, ballot, voter, option, now)

    def _too_late(self, request_id: str, past: _Past) -> Decision:
        data = {"requestId": request_id, "sessionId": past.session_id, "outcome": past.outcome}
        event = Publish(past.session_id, "permission_already_resolved", data, None, past.prompt_id)
        return Decision(verdict=Verdict.ALREADY_RESOLVED, effects=(event,), outcome=past.outcome)

    def _abort(self, question: Question, ballot: Ballot, voter: Voter, now: float) -> Decision:
        voted = Audit(
            audit.voted(question, voter, CANCEL_SENTINEL, _resolved(CANCEL_SENTINEL), now)
        )
        result = _cancelled(_ABORTED, ballot.extras.get("_meta"))
        settled = self._settle(question, result, Settled.VOTE, now, voter)
        return Decision(verdict=Verdict.RESOLVED, effects=(voted, *settled), question=question)

    def _forbid(
        self, question: Question, voter: Voter, option: str, reason: str, now: float
    ) -> Decision:
        data = {"requestId": question.request_id, "sessionId": question.session_id}
        if voter.client_id is not None:
            data["clientId"] = voter.client_id
        if voter.name is not None:
            data["name"] = voter.name
        data["reason"] = reason
        effects = (
            Audit(audit.forbidden(question, voter, option, reason, now)),
            self._publish(question, "permission_forbidden", data),
            _note(question, f"vote of {voter.client_id or 'an anonymous client'}: {reason}"),
        )
        return Decision(
            verdict=Verdict.FORBIDDEN, effects=effects, reason=reason, question=question
        )

    def _record(self, question: Question, voter: Voter, option: str, now: float) -> Decision:
        data = {
            "requestId": question.request_id,
            "sessionId": question.session_id,
            "votesReceived": len(question.votes),
            "votesNeeded": question.missing,
            "quorum": question.quorum,
            "optionTallies": dict(question.tallies),
        }
        effects = (
            Audit(audit.voted(question, voter, option, _recorded(question), now)),
            self._publish(question, "permission_partial_vote", data),
            *self._end_if_hopeless(question, now),
        )
        return Decision(verdict=Verdict.RECORDED, effects=effects, question=question)

    def _choose(
        self, question: Question, ballot: Ballot, voter: Voter, option: str, now: float
    ) -> Decision:
        voted = Audit(audit.voted(question, voter, option, _resolved(option), now))
        result = {"outcome": {"outcome": "selected", "optionId": option}, **ballot.extras}
        settled = self._settle(question, result, Settled.VOTE, now, voter)
        return Decision(verdict=Verdict.RESOLVED, effects=(voted, *settled), question=question)

    # ---- other ends -----------------------------------------------------------------------------

    def expire(self, question: Question, *, now: float) -> list[Effect]:
        """Its timer has fired."""
        if not question.open:
            return []
        return [
            _note(question, f"timed out after {question.timeout:g} s"),
            Audit(audit.timed_out(question, now)),
            *self.end(question, Settled.TIMEOUT, now=now),
        ]

    def end(self, question: Question, reason: Settled, *, now: float) -> list[Effect]:
        """Settle as cancelled. Nothing when it is settled already."""
        return self._settle(question, _cancelled(_WORDS.get(reason, _ABORTED)), reason, now)

    def end_session(self, session_id: str, reason: Settled, *, now: float) -> list[Effect]:
        """End all that is open in a session.

        `Settled.CLOSED` is said before the session's last event; after it nothing is published for
        the session, so its settled requests are forgotten too.
        """
        # By the daemon's contract a cancel of all that is open reads as a close to the agent.
        word = _WORDS.get(Settled.CLOSED if reason is Settled.CANCEL else reason, _ABORTED)
        effects = [
            effect
            for question in self.pending(session_id)
            for effect in self._settle(question, _cancelled(word), reason, now)
        ]
        if reason is Settled.CLOSED:
            self._past = {
                key: past for key, past in self._past.items() if past.session_id != session_id
            }
        return effects

    def end_prompt(
        self, session_id: str, prompt_id: str, reason: Settled, *, now: float
    ) -> list[Effect]:
        """End what is open of one prompt."""
        return [
            effect
            for question in self.pending(session_id)
            if question.prompt_id == prompt_id
            for effect in self.end(question, reason, now=now)
        ]

    def leave(self, session_id: str, client_id: str, *, now: float) -> list[Effect]:
        """A client detached for good: ends what nobody else can decide.

        Its vote counts on; its right to vote does not come back with a later attach.
        """
        effects: list[Effect] = []
        for question in self.pending(session_id):
            policy = question.rule.policy
            if policy is Policy.DESIGNATED and question.originator == client_id:
                effects += self.end(question, Settled.NO_VOTER, now=now)
            elif policy is Policy.CONSENSUS and client_id in question.voters:
                question.left.add(client_id)
                effects += self._end_if_hopeless(question, now)
        return effects

    def _end_if_hopeless(self, question: Question, now: float) -> list[Effect]:
        if question.missing <= len(question.undecided):
            return []
        deserted = not question.votes and not question.undecided
        return self.end(question, Settled.NO_VOTER if deserted else Settled.SPLIT, now=now)

    # ---- settling -------------------------------------------------------------------------------

    def _settle(
        self,
        question: Question,
        result: dict[str, Any],
        reason: Settled,
        now: float,
        voter: Voter = NO_ONE,
    ) -> list[Effect]:
        if not question.open:
            return []
        question.result, question.reason = result, reason
        effects: list[Effect] = [
            Audit(audit.resolved(question, result, voter, now)),
            Answer(question),
        ]
        if self._pending.pop(question.request_id, None) is None:
            return effects  # refused: it was never opened, so clients know nothing of it
        outcome = result["outcome"]
        self._past[question.request_id] = _Past(question.session_id, question.prompt_id, outcome)
        while len(self._past) > self._limit:
            del self._past[next(iter(self._past))]
        data = {"requestId": question.request_id, "outcome": outcome, "reason": reason.value}
        client = voter.client_id
        if client is not None:
            data["voterClientId"] = client
        if voter.name is not None:
            data["voterName"] = voter.name
        event = Publish(
            question.session_id, "permission_resolved", data, client, question.prompt_id
        )
        return [event, *effects]

    @staticmethod
    def _publish(question: Question, kind: str, data: dict[str, Any]) -> Publish:
        return Publish(question.session_id, kind, data, question.originator, question.prompt_id)


def _option_ids(params: dict[str, Any]) -> frozenset[str]:
    options = params.get("options")
    ids = (
        option.get("optionId")
        for option in (options if isinstance(options, list) else ())
        if isinstance(option, dict)
    )
    return frozenset(each for each in ids if isinstance(each, str) and each)


def _recorded(question: Question) -> dict[str, Any]:
    return {"kind": "recorded", "votesNeeded": question.missing}


def _resolved(option: str) -> dict[str, Any]:
    return {"kind": "resolved", "resolvedOptionId": option}


def _cancelled(word: str, meta: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "outcome": {"outcome": "cancelled"},
        "_meta": {**(meta or {}), CANCEL_REASON_META: word},
    }


def _note(question: Question, text: str) -> Note:
    return Note(
        f"permission {_printable(question.request_id)} of session "
        f"{_printable(question.session_id)}: {_printable(text)}"
    )


def _printable(text: str) -> str:
    """One short line without control or bidirectional characters."""
    return "".join(each if each.isprintable() else "?" for each in text[:256])
