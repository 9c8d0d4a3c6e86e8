"""The permission mediator by example: every row of the voting contract, every end, the audit."""

from __future__ import annotations

from typing import Any

import pytest

from acp_gateway.core.mediator import (
    Answer,
    Audit,
    CancelSentinelCollision,
    Decision,
    Effect,
    Mediator,
    Note,
    Policy,
    Publish,
    Question,
    Rule,
    Settled,
    Verdict,
    Voter,
)
from acp_gateway.core.permission_audit import KEPT, AuditRing

WORD = "qwen.daemon.permissionCancelReason"
CANCEL = {"outcome": {"outcome": "cancelled"}}
OPTIONS = [
    {"optionId": "allow", "name": "Allow", "kind": "allow_once"},
    {"optionId": "reject", "name": "Reject", "kind": "reject_once"},
]
PARAMS = {"sessionId": "s", "toolCall": {"toolCallId": "t"}, "options": OPTIONS, "_meta": {"x": 1}}
ANYBODY = Voter()
A, B, C, D = (Voter(client_id=name) for name in "abcd")


def choose(option: Any) -> dict[str, Any]:
    return {"outcome": {"outcome": "selected", "optionId": option}}


def of(kind: type, effects: Any) -> list[Any]:
    return [each for each in effects if isinstance(each, kind)]


def events(effects: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(each.kind, each.data) for each in of(Publish, effects)]


def shape(effects: Any) -> list[str]:
    """The effects in order, each by what it is."""
    names = {Answer: "answer", Note: "note"}
    return [
        each.kind
        if isinstance(each, Publish)
        else each.entry["kind"]
        if isinstance(each, Audit)
        else names[type(each)]
        for each in effects
    ]


class Desk:
    """A mediator with one open request, ``q`` of session ``s``."""

    def __init__(
        self,
        policy: Policy = Policy.FIRST_RESPONDER,
        *,
        quorum: int | None = None,
        voters: str = "abc",
        originator: str | None = "a",
        **limits: int,
    ) -> None:
        self.mediator = Mediator(**limits)
        self.rule = Rule(policy=policy, quorum=quorum)
        self.originator = originator
        self.voters = frozenset(voters)
        self.question, self.asked = self.ask("q")

    def ask(
        self, request_id: str, params: dict[str, Any] = PARAMS, session: str = "s"
    ) -> tuple[Question, list[Effect]]:
        return self.mediator.ask(
            session,
            request_id,
            params,
            rule=self.rule,
            originator=self.originator,
            prompt_id="p",
            voters=self.voters,
            now=1000.0,
            timeout=300.0,
        )

    def vote(
        self, body: Any, voter: Voter = A, request_id: str = "q", session: str | None = "s"
    ) -> Decision:
        return self.mediator.vote(session, request_id, body, voter, now=1001.5)


# ---- asking -------------------------------------------------------------------------------------


def test_a_request_is_published_and_open_at_once() -> None:
    desk = Desk()
    event, entry = desk.asked
    data = {"requestId": "q", "sessionId": "s", "toolCall": PARAMS["toolCall"], "options": OPTIONS}
    assert event == Publish("s", "permission_request", data, "a", "p")
    assert isinstance(entry, Audit)
    assert entry.entry == {
        "kind": "permission.requested",
        "recordedAtMs": 1_000_000,
        "requestId": "q",
        "sessionId": "s",
        "originatorClientId": "a",
        "policy": "first-responder",
        "votersAtIssue": ["a", "b", "c"],
        "issuedAtMs": 1_000_000,
        "allowedOptionIds": ["allow", "reject"],
    }
    assert desk.mediator.pending() == desk.mediator.pending("s") == (desk.question,)
    assert desk.mediator.pending("other") == ()
    assert desk.mediator.session_of("q") == "s" and desk.mediator.session_of("r") is None
    assert (desk.question.open, desk.question.timeout) == (True, 300.0)


def test_a_session_may_have_so_many_open_and_no_more() -> None:
    desk = Desk(per_session=2)
    desk.ask("q2")
    refused, effects = desk.ask("q3")
    assert shape(effects) == ["note", "permission.requested", "permission.resolved", "answer"]
    assert (refused.reason, refused.open) == (Settled.REFUSED, False)
    assert refused.result == {**CANCEL, "_meta": {WORD: "agent_cancelled"}}
    assert desk.vote(choose("allow"), request_id="q3").verdict is Verdict.UNKNOWN
    assert desk.ask("r", session="other")[0].open
    desk.vote(choose("allow"))
    assert desk.ask("q4")[0].open


@pytest.mark.parametrize(
    "options", [None, [], {}, [{}], [{"optionId": ""}], [{"optionId": 1}], [1]]
)
def test_nothing_to_choose_is_cancelled_unasked(options: Any) -> None:
    desk = Desk()
    question, effects = desk.ask("empty", {"toolCall": {}, "options": options})
    assert question.reason is Settled.REFUSED and of(Answer, effects) == [Answer(question)]
    assert not of(Publish, effects) and desk.mediator.pending() == (desk.question,)


def test_the_reserved_option_id_is_refused_before_anything_happens() -> None:
    desk = Desk()
    with pytest.raises(CancelSentinelCollision, match="__cancelled__"):
        desk.ask("bad", {"options": [*OPTIONS, {"optionId": "__cancelled__"}]})
    assert desk.mediator.session_of("bad") is None and len(desk.mediator.pending()) == 1


@pytest.mark.parametrize(
    ("rule", "voters", "quorum"),
    [
        *((Rule(policy=Policy.CONSENSUS), m, q) for m, q in enumerate((1, 1, 2, 2, 3, 3))),
        *((Rule(policy=Policy.CONSENSUS, quorum=2), m, q) for m, q in enumerate((1, 1, 2, 2))),
        (Rule(policy=Policy.CONSENSUS, quorum=0), 3, 1),
        (Rule(), 5, 1),
    ],
)
def test_the_quorum(rule: Rule, voters: int, quorum: int) -> None:
    assert rule.quorum_of(voters) == quorum


@pytest.mark.parametrize(
    ("desk", "notes"),
    [
        (Desk(Policy.CONSENSUS, voters=""), ["without a voter"]),
        (Desk(Policy.CONSENSUS, voters="ab"), ["2 voters must agree"]),
        (Desk(Policy.CONSENSUS, voters="ab", quorum=2), []),
        (Desk(Policy.CONSENSUS, voters="ab", quorum=3), ["quorum 3 capped to 2"]),
        (Desk(Policy.CONSENSUS, voters="abc"), []),
        (Desk(Policy.DESIGNATED, voters="bc"), ["has left"]),
        (Desk(Policy.DESIGNATED, voters="", originator=None), []),
        (Desk(voters=""), []),
    ],
)
def test_the_operator_is_told_of_a_rule_that_may_decide_nothing(
    desk: Desk, notes: list[str]
) -> None:
    told = [note.text for note in of(Note, desk.asked)]
    assert len(told) == len(notes) and all(
        part in text for part, text in zip(notes, told, strict=True)
    )
    assert desk.question.open


def test_unanimity_is_told_once() -> None:
    desk = Desk(Policy.CONSENSUS, voters="ab")
    assert of(Note, desk.asked) and not of(Note, desk.ask("q2")[1])


# ---- votes: the order of the checks -------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        *(None, [], "allow", 1, {}, {"outcome": None}, {"outcome": "cancelled"}, {"outcome": {}}),
        {"outcome": {"outcome": "selected"}},
        *(choose(each) for each in ("", None, 1, ["allow"], {"allow": 1})),
        {"outcome": {"outcome": ["selected"], "optionId": "allow"}},
        {"outcome": {"outcome": "allow"}},
        {"outcome": {"optionId": "allow"}},
    ],
)
def test_a_malformed_vote_changes_nothing(body: Any) -> None:
    desk = Desk()
    for request_id in ("q", "unknown"):
        decision = desk.vote(body, request_id=request_id)
        assert (decision.verdict, decision.effects) == (Verdict.INVALID_OUTCOME, ())
    assert desk.question.open


@pytest.mark.parametrize("body", [choose("allow"), choose("__cancelled__"), choose("x"), CANCEL])
def test_another_sessions_request_is_unknown(body: Any) -> None:
    desk = Desk()
    for _ in ("open", "settled"):
        decision = desk.vote(body, session="other")
        assert decision.verdict is Verdict.UNKNOWN and shape(decision.effects) == ["note"]
        assert decision.question is None and decision.outcome is None
        assert desk.vote(body, request_id="never").verdict is Verdict.UNKNOWN
        desk.mediator.end(desk.question, Settled.CANCEL, now=1.0)


def test_the_reserved_option_is_refused_open_or_settled() -> None:
    desk = Desk()
    for _ in ("open", "settled"):
        decision = desk.vote(choose("__cancelled__"))
        assert (decision.verdict, decision.effects) == (Verdict.SENTINEL, ())
        desk.vote(choose("allow"))


@pytest.mark.parametrize("late", [choose("reject"), choose("not offered"), CANCEL])
def test_a_late_vote_is_told_the_outcome(late: Any) -> None:
    desk = Desk(Policy.DESIGNATED)
    desk.vote(choose("allow"))
    outcome = {"outcome": "selected", "optionId": "allow"}
    decision = desk.vote(late, B, session=None)
    assert (decision.verdict, decision.outcome) == (Verdict.ALREADY_RESOLVED, outcome)
    data = {"requestId": "q", "sessionId": "s", "outcome": outcome}
    assert decision.effects == (Publish("s", "permission_already_resolved", data, None, "p"),)


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("voter", [ANYBODY, B, D])
def test_anybody_may_cancel_under_every_policy(policy: Policy, voter: Voter) -> None:
    desk = Desk(policy)
    decision = desk.vote({**CANCEL, "answers": {"0": "x"}, "_meta": {"why": "no"}}, voter)
    assert (decision.verdict, decision.question) == (Verdict.RESOLVED, desk.question)
    assert shape(decision.effects) == [
        "permission.voted",
        "permission_resolved",
        "permission.resolved",
        "answer",
    ]
    assert desk.question.reason is Settled.VOTE
    assert desk.question.result == {**CANCEL, "_meta": {"why": "no", WORD: "agent_cancelled"}}
    voted, resolved = (each.entry for each in of(Audit, decision.effects))
    assert voted["optionId"] == "__cancelled__"
    assert resolved["resolution"] == {"kind": "cancelled", "reason": "agent_cancelled"}
    assert resolved["decisionReason"]["type"] == "voter-cancelled"


def test_a_cancel_cannot_forge_its_reason() -> None:
    desk = Desk()
    desk.vote({**CANCEL, "_meta": {WORD: "timeout"}})
    assert desk.question.result == {**CANCEL, "_meta": {WORD: "agent_cancelled"}}


@pytest.mark.parametrize("policy", Policy)
def test_an_option_that_was_not_offered_is_refused_before_the_policy(policy: Policy) -> None:
    desk = Desk(policy)
    decision = desk.vote(choose("nope"), D)
    assert (decision.verdict, decision.effects) == (Verdict.INVALID_OPTION, ())


@pytest.mark.parametrize(
    ("policy", "voter", "reason"),
    [
        (Policy.DESIGNATED, B, "designated_mismatch"),
        (Policy.DESIGNATED, ANYBODY, "designated_mismatch"),
        (Policy.CONSENSUS, D, "designated_mismatch"),
        (Policy.CONSENSUS, ANYBODY, "designated_mismatch"),
        (Policy.LOCAL_ONLY, A, "remote_not_allowed"),
        (Policy.LOCAL_ONLY, ANYBODY, "remote_not_allowed"),
    ],
)
def test_a_policy_refuses(policy: Policy, voter: Voter, reason: str) -> None:
    desk = Desk(policy)
    assert not desk.mediator.may_vote(desk.question, voter)
    decision = desk.vote(choose("allow"), voter)
    assert (decision.verdict, decision.reason) == (Verdict.FORBIDDEN, reason)
    client = {} if voter.client_id is None else {"clientId": voter.client_id}
    data = {"requestId": "q", "sessionId": "s", **client, "reason": reason}
    assert of(Publish, decision.effects) == [Publish("s", "permission_forbidden", data, "a", "p")]
    assert shape(decision.effects) == ["permission.forbidden", "permission_forbidden", "note"]
    assert desk.question.open


# ---- votes: what decides ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("desk", "voter", "decision"),
    [
        (Desk(), ANYBODY, {"type": "first-responder"}),
        (Desk(), B, {"type": "first-responder", "resolverClientId": "b"}),
        (
            Desk(Policy.DESIGNATED),
            A,
            {"type": "designated-originator", "originatorClientId": "a"},
        ),
        (
            Desk(Policy.DESIGNATED, originator=None),
            B,
            {"type": "first-responder", "resolverClientId": "b"},
        ),
        (Desk(Policy.LOCAL_ONLY), Voter(loopback=True), {"type": "local-only-loopback"}),
        (
            Desk(Policy.CONSENSUS, voters="a"),
            A,
            {"type": "consensus-quorum", "resolvedOptionId": "allow", "quorum": 1, "tally": 1},
        ),
    ],
)
def test_a_vote_that_decides(desk: Desk, voter: Voter, decision: dict[str, Any]) -> None:
    assert desk.mediator.may_vote(desk.question, voter)
    extras = {"answers": {"0": "A"}, "expectedPlanExecutionMode": "auto", "_meta": {"k": 1}}
    taken = desk.vote({**choose("allow"), **extras, "other": 1}, voter)
    assert (taken.verdict, taken.question) == (Verdict.RESOLVED, desk.question)
    voted, event, resolved, answer = taken.effects
    outcome = {"outcome": "selected", "optionId": "allow"}
    client = {} if voter.client_id is None else {"voterClientId": voter.client_id}
    data = {"requestId": "q", "outcome": outcome, "reason": "vote", **client}
    assert event == Publish("s", "permission_resolved", data, voter.client_id, "p")
    assert isinstance(voted, Audit) and isinstance(resolved, Audit)
    assert voted.entry["outcome"] == {"kind": "resolved", "resolvedOptionId": "allow"}
    assert voted.entry["receivedAtMs"] == 1_001_500
    assert resolved.entry["resolution"] == {"kind": "option", "optionId": "allow"}
    assert resolved.entry["decisionReason"] == decision
    assert answer == Answer(desk.question)
    assert (desk.question.reason, desk.question.result) == (
        Settled.VOTE,
        {"outcome": outcome, **extras},
    )
    assert desk.mediator.pending() == () and not desk.mediator.may_vote(desk.question, voter)


@pytest.mark.parametrize(
    "extras",
    [{"answers": {"0": 1}}, {"answers": ["A"]}, {"expectedPlanExecutionMode": 1}, {"_meta": []}],
)
def test_what_does_not_fit_stays_behind(extras: dict[str, Any]) -> None:
    desk = Desk()
    body = {"outcome": {"outcome": "selected", "optionId": "allow", "extra": 1}, **extras}
    desk.vote(body)
    assert desk.question.result == choose("allow")


def test_the_audit_knows_the_voter() -> None:
    voter = Voter(client_id="b", loopback=True, name="laptop")
    entry = of(Audit, Desk().vote(choose("allow"), voter).effects)[0].entry
    assert (entry["clientId"], entry["tokenName"], entry["fromLoopback"]) == ("b", "laptop", True)


# ---- consensus ----------------------------------------------------------------------------------


def test_consensus_needs_its_quorum() -> None:
    desk = Desk(Policy.CONSENSUS)
    first = desk.vote(choose("allow"), B)
    assert first.verdict is Verdict.RECORDED
    data = {
        "requestId": "q",
        "sessionId": "s",
        "votesReceived": 1,
        "votesNeeded": 1,
        "quorum": 2,
        "optionTallies": {"allow": 1},
    }
    assert of(Publish, first.effects) == [
        Publish("s", "permission_partial_vote", data, "a", "p"),
    ]
    assert not desk.mediator.may_vote(desk.question, B)
    assert desk.mediator.may_vote(desk.question, C)
    again = desk.vote(choose("reject"), B)
    assert (again.verdict, shape(again.effects)) == (Verdict.REPEATED, ["permission.voted"])
    assert of(Audit, again.effects)[0].entry["optionId"] == "allow"
    last = desk.vote(choose("allow"), C)
    assert last.verdict is Verdict.RESOLVED
    assert of(Audit, last.effects)[1].entry["decisionReason"]["tally"] == 2
    assert (desk.question.result, desk.question.votes) == (
        choose("allow"),
        {"b": "allow", "c": "allow"},
    )


def test_a_split_that_cannot_reach_its_quorum_ends_at_once() -> None:
    desk = Desk(Policy.CONSENSUS, voters="ab")
    desk.vote(choose("allow"), A)
    last = desk.vote(choose("reject"), B)
    assert last.verdict is Verdict.RECORDED and desk.question.reason is Settled.SPLIT
    assert shape(last.effects) == [
        "permission.voted",
        "permission_partial_vote",
        "permission_resolved",
        "permission.resolved",
        "answer",
    ]
    resolved = of(Publish, last.effects)[1]
    assert resolved.data == {"requestId": "q", "outcome": CANCEL["outcome"], "reason": "split"}
    assert resolved.originator is None
    assert of(Audit, last.effects)[1].entry["decisionReason"] == {
        "type": "consensus-split",
        "quorum": 2,
        "optionTallies": {"allow": 1, "reject": 1},
    }


def test_a_vote_outlives_its_voter_and_a_right_to_vote_does_not() -> None:
    desk = Desk(Policy.CONSENSUS)
    desk.vote(choose("allow"), A)
    assert desk.mediator.leave("s", "a", now=2.0) == []
    assert desk.mediator.leave("s", "b", now=2.0) == []
    assert desk.vote(choose("allow"), B).verdict is Verdict.FORBIDDEN
    assert desk.vote(choose("allow"), C).verdict is Verdict.RESOLVED


@pytest.mark.parametrize(
    ("voted", "leaving", "reason"),
    [("", "abc", Settled.NO_VOTER), ("", "ab", Settled.SPLIT), ("a", "bc", Settled.SPLIT)],
)
def test_leaving_ends_what_can_no_longer_be_decided(
    voted: str, leaving: str, reason: Settled
) -> None:
    desk = Desk(Policy.CONSENSUS, quorum=2 if leaving != "abc" else 1)
    for name in voted:
        desk.vote(choose("allow"), Voter(client_id=name))
    effects: list[Effect] = []
    for name in leaving:
        assert not effects and desk.question.open
        effects = desk.mediator.leave("s", name, now=2.0)
    assert desk.question.reason is reason and of(Answer, effects) == [Answer(desk.question)]


def test_only_the_one_who_may_decide_takes_the_decision_along() -> None:
    desk = Desk(Policy.DESIGNATED)
    assert desk.mediator.leave("s", "b", now=2.0) == []
    assert desk.mediator.leave("other", "a", now=2.0) == []
    effects = desk.mediator.leave("s", "a", now=2.0)
    assert (
        desk.question.reason is Settled.NO_VOTER and events(effects)[0][1]["reason"] == "no_voter"
    )
    for policy in (Policy.FIRST_RESPONDER, Policy.LOCAL_ONLY):
        desk = Desk(policy)
        assert [desk.mediator.leave("s", name, now=2.0) for name in "abc"] == [[], [], []]


# ---- other ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "word", "decision"),
    [
        (Settled.TIMEOUT, "timeout", "timeout"),
        (Settled.CANCEL, "agent_cancelled", "agent-cancelled"),
        (Settled.CLOSED, "session_closed", "session-closed"),
        (Settled.WITHDRAWN, "agent_cancelled", "agent-withdrawn"),
    ],
)
def test_an_end_without_a_vote_says_why(reason: Settled, word: str, decision: str) -> None:
    desk = Desk()
    effects = desk.mediator.end(desk.question, reason, now=1300.0)
    assert shape(effects) == ["permission_resolved", "permission.resolved", "answer"]
    data = {"requestId": "q", "outcome": CANCEL["outcome"], "reason": reason.value}
    assert effects[0] == Publish("s", "permission_resolved", data, None, "p")
    entry = of(Audit, effects)[0].entry
    assert entry["resolution"] == {"kind": "cancelled", "reason": word}
    assert entry["decisionReason"]["type"] == decision
    assert desk.question.result == {**CANCEL, "_meta": {WORD: word}}
    assert desk.mediator.end(desk.question, reason, now=1.0) == []


def test_a_timeout_and_a_vote_at_the_same_moment() -> None:
    desk = Desk()
    effects = desk.mediator.expire(desk.question, now=1300.0)
    assert shape(effects) == [
        "note",
        "permission.timeout",
        "permission_resolved",
        "permission.resolved",
        "answer",
    ]
    timeout, resolved = (each.entry for each in of(Audit, effects))
    assert timeout["issuedAtMs"] == 1_000_000
    assert resolved["decisionReason"] == {
        "type": "timeout",
        "issuedAtMs": 1_000_000,
        "timeoutMs": 300_000,
        "firedAtMs": 1_300_000,
    }
    assert desk.vote(choose("allow")).verdict is Verdict.ALREADY_RESOLVED
    desk = Desk()
    desk.vote(choose("allow"))
    assert desk.mediator.expire(desk.question, now=1300.0) == []
    assert desk.question.result == choose("allow")


def test_the_end_of_a_prompt_ends_its_own_requests() -> None:
    desk = Desk()
    other, _ = desk.mediator.ask(
        *("s", "q2", PARAMS),
        rule=Rule(),
        originator=None,
        prompt_id="p2",
        voters=(),
        now=1.0,
        timeout=0.0,
    )
    effects = desk.mediator.end_prompt("s", "p", Settled.CANCEL, now=2.0)
    assert of(Answer, effects) == [Answer(desk.question)] and other.open
    assert desk.mediator.end_prompt("other", "p2", Settled.CANCEL, now=2.0) == []


def test_a_cancelled_session_remembers_and_a_closed_one_does_not() -> None:
    desk = Desk()
    elsewhere, _ = desk.ask("r", session="other")
    cancelled = desk.mediator.end_session("s", Settled.CANCEL, now=2.0)
    assert [kind for kind, _ in events(cancelled)] == ["permission_resolved"]
    assert desk.question.reason is Settled.CANCEL
    assert desk.question.result == {**CANCEL, "_meta": {WORD: "session_closed"}}
    assert desk.vote(choose("allow")).verdict is Verdict.ALREADY_RESOLVED
    late, _ = desk.ask("q2")
    closed = desk.mediator.end_session("s", Settled.CLOSED, now=3.0)
    assert of(Answer, closed) == [Answer(late)]
    for request_id in ("q", "q2"):
        decision = desk.vote(choose("allow"), request_id=request_id, session=None)
        assert decision.verdict is Verdict.UNKNOWN and not of(Publish, decision.effects)
    assert desk.mediator.pending() == (elsewhere,)


def test_only_the_newest_settled_requests_are_remembered() -> None:
    desk = Desk(remembered=2)
    for name in ("q", "q2", "q3"):
        if name != "q":
            desk.ask(name)
        desk.vote(choose("allow"), request_id=name)
    verdicts = [desk.vote(CANCEL, request_id=name).verdict for name in ("q", "q2", "q3")]
    assert verdicts == [Verdict.UNKNOWN, Verdict.ALREADY_RESOLVED, Verdict.ALREADY_RESOLVED]
    assert desk.mediator.session_of("q3") == "s"


def test_a_note_is_one_short_printable_line() -> None:
    decision = Desk().vote(CANCEL, request_id="x\n\x1b[2J\u202e\x85" + "y" * 9999)
    (note,) = of(Note, decision.effects)
    assert note.text.isprintable() and len(note.text) < 400


# ---- the ring -----------------------------------------------------------------------------------


def test_the_ring_keeps_the_newest() -> None:
    ring = AuditRing()
    for number in range(KEPT + 10):
        ring.append({"n": number, "sessionId": "ab"[number % 2]})
    assert len(ring) == KEPT == 512
    assert [entry["n"] for entry in ring.query()] == list(range(10, KEPT + 10))
    assert [entry["n"] for entry in ring.query("a", 2)] == [KEPT + 6, KEPT + 8]
    assert ring.query(limit=0) == [] == ring.query("c") and len(ring.query(limit=9999)) == KEPT


@pytest.mark.parametrize("limit", [-1, 1.0, "1", True])
def test_a_limit_is_a_whole_number(limit: Any) -> None:
    with pytest.raises(ValueError, match="whole number"):
        AuditRing().query(limit=limit)


def test_which_rule_is_as_strict_as_another() -> None:
    first, designated, local = (
        Rule(policy=policy)
        for policy in (Policy.FIRST_RESPONDER, Policy.DESIGNATED, Policy.LOCAL_ONLY)
    )
    half, two, three = (Rule(policy=Policy.CONSENSUS, quorum=n) for n in (None, 2, 3))
    every = (first, designated, half, two, three, local)
    stricter = {
        first: every,
        designated: (designated, local),
        half: (half, local),  # a number may be less than half of those who are there
        two: (two, three, local),
        three: (three, local),
        local: (local,),
    }
    for rule, enough in stricter.items():
        assert tuple(each for each in every if each.at_least(rule)) == enough, rule
