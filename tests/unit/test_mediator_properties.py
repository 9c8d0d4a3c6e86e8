"""Whatever clients, timers and sessions do: each request is answered once, and by its rule."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from acp_gateway.core.mediator import (
    Answer,
    Audit,
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
from acp_gateway.core.permission_audit import AuditRing

REMEMBERED, PER_SESSION = 4, 3
"""Small, so that a run reaches them. The sizes of the daemon are counted below."""
SESSIONS = ("s1", "s2")
CLIENTS = ("a", "b", "c")
OPTIONS = ("yes", "no", "maybe")
PARAMS = {"toolCall": {}, "options": [{"optionId": option} for option in OPTIONS]}
CANCELLED = {"outcome": "cancelled"}

sessions = st.sampled_from(SESSIONS)
voters = st.builds(
    Voter, client_id=st.sampled_from([None, *CLIENTS, "late"]), loopback=st.booleans()
)
rules = st.builds(
    Rule,
    policy=st.sampled_from([*Policy, Policy.CONSENSUS]),
    quorum=st.sampled_from([None, None, 1, 2, 9]),
)
BY_VOTE = ("first-responder", "designated-originator", "consensus-quorum", "local-only-loopback")
choices = st.sampled_from(OPTIONS).map(lambda each: {"outcome": "selected", "optionId": each})
odd = st.sampled_from(
    [
        CANCELLED,
        {"outcome": "selected", "optionId": "other"},
        {"outcome": "selected", "optionId": "__cancelled__"},
        {"outcome": "selected", "optionId": ""},
        None,
    ]
)
bodies = st.one_of(choices, choices, choices, odd).map(lambda each: {"outcome": each})
NOW = 1.0


class Model:
    """What must be true of one request, kept without the mediator's help."""

    def __init__(self, question: Question, rule: Rule, originator: str | None) -> None:
        self.question = question
        self.rule = rule
        self.originator = originator
        self.electorate = set(question.voters)
        self.votes: dict[str, str] = {}
        self.answers: list[tuple[Any, Settled | None]] = []

    @property
    def quorum(self) -> int:
        size = len(self.electorate)
        if self.rule.quorum is None:
            return size // 2 + 1
        return min(self.rule.quorum, max(size, 1))

    def refusal(self, voter: Voter, left: set[str]) -> str | None:
        """The policy in other words than the mediator's."""
        policy = self.rule.policy
        if policy is Policy.LOCAL_ONLY:
            return None if voter.loopback else "remote_not_allowed"
        if policy is Policy.DESIGNATED:
            fits = self.originator is None or self.originator == voter.client_id
        elif policy is Policy.CONSENSUS:
            fits = voter.client_id in self.electorate and voter.client_id not in left
        else:
            fits = True
        return None if fits else "designated_mismatch"


class MediatorMachine(RuleBasedStateMachine):
    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.mediator = Mediator(remembered=REMEMBERED, per_session=PER_SESSION)
        self.ring = AuditRing()
        self.models: dict[str, Model] = {}
        self.left: dict[str, set[str]] = {}
        """By request: who left after it was asked."""
        self.settled: list[str] = []
        """Requests that are remembered, oldest first."""

    # ---- the runtime's part ---------------------------------------------------------------------

    def carry_out(self, effects: list[Effect] | tuple[Effect, ...]) -> None:
        published: Counter[str] = Counter()
        voted: set[str] = set()
        for effect in effects:
            if isinstance(effect, Answer):
                question = effect.question
                model = self.models[question.request_id]
                model.answers.append((question.result, question.reason))
                assert len(model.answers) == 1
                # The contract's order: the event and the audit have gone before.
                assert published["permission_resolved"] > 0
                assert self.ring.query(limit=1)[0]["kind"] == "permission.resolved"
                published["permission_resolved"] -= 1
                self.settled.append(question.request_id)
                del self.settled[:-REMEMBERED]
            elif isinstance(effect, Publish):
                published[effect.kind] += 1
                assert effect.data["requestId"] in self.models
                model = self.models[effect.data["requestId"]]
                assert effect.session_id == model.question.session_id
                assert not model.answers or effect.kind == "permission_already_resolved"
            elif isinstance(effect, Audit):
                entry = effect.entry
                if entry["kind"] == "permission.voted":
                    voted.add(entry["requestId"])
                if entry["kind"] == "permission.resolved":
                    how = entry["decisionReason"]["type"]
                    assert entry["requestId"] in voted or how not in (*BY_VOTE, "voter-cancelled")
                    assert (entry["resolution"]["kind"] == "option") == (how in BY_VOTE)
                self.ring.append(entry)
            else:
                assert isinstance(effect, Note) and effect.text.isprintable()
        assert published["permission_resolved"] == 0

    def open_in(self, session: str) -> list[Model]:
        return [
            model
            for model in self.models.values()
            if model.question.session_id == session and not model.answers
        ]

    # ---- what may happen ------------------------------------------------------------------------

    @rule(
        target=requests,
        session=sessions,
        how=rules,
        originator=st.sampled_from([None, *CLIENTS]),
        here=st.sampled_from([set(), {"a"}, {"a", "b"}, set(CLIENTS), set(CLIENTS)]),
        prompt=st.sampled_from([None, "p1", "p2"]),
    )
    def ask(
        self, session: str, how: Rule, originator: str | None, here: set[str], prompt: str | None
    ) -> str:
        request_id = f"r{len(self.models)}"
        full = len(self.open_in(session)) >= PER_SESSION
        question, effects = self.mediator.ask(
            session,
            request_id,
            PARAMS,
            rule=how,
            originator=originator,
            prompt_id=prompt,
            voters=here,
            now=NOW,
            timeout=0.0,
        )
        model = self.models[request_id] = Model(question, how, originator)
        self.left[request_id] = set()
        if full:
            assert [type(each) for each in effects] == [Note, Audit, Audit, Answer]
            model.answers.append((question.result, question.reason))
            assert question.reason is Settled.REFUSED
        else:
            # Published and open in one step.
            assert isinstance(effects[0], Publish) and effects[0].kind == "permission_request"
            assert question in self.mediator.pending(session)
            self.carry_out(effects)
        return request_id

    @rule(request_id=requests, at=st.sampled_from([None, *SESSIONS]), body=bodies, voter=voters)
    def vote(self, request_id: str, at: str | None, body: Any, voter: Voter) -> None:
        model = self.models[request_id]
        question, outcome = model.question, body["outcome"]
        was_open, own = question.open, at in (None, question.session_id)
        before = self.snapshot()
        decision = self.mediator.vote(at, request_id, body, voter, now=NOW)
        if outcome is None or outcome.get("optionId") == "":
            assert decision == Decision(verdict=Verdict.INVALID_OUTCOME)
        elif not own or not (was_open or request_id in self.settled):
            assert decision.verdict is Verdict.UNKNOWN and decision.question is None
            assert all(isinstance(each, Note) for each in decision.effects)
        elif outcome.get("optionId") == "__cancelled__":
            assert decision.verdict is Verdict.SENTINEL and not decision.effects
        elif not was_open:
            assert decision.verdict is Verdict.ALREADY_RESOLVED
            assert decision.outcome == model.answers[0][0]["outcome"]
        elif outcome == CANCELLED:
            assert decision.verdict is Verdict.RESOLVED
            assert question.result is not None and question.result["outcome"] == CANCELLED
        elif outcome["optionId"] not in OPTIONS:
            assert decision.verdict is Verdict.INVALID_OPTION and not decision.effects
        else:
            self.check_choice(model, voter, outcome, decision)
        if decision.verdict not in (Verdict.RESOLVED, Verdict.RECORDED):
            assert self.snapshot() == before
        self.carry_out(decision.effects)

    @precondition(lambda self: self.mediator.pending())
    @rule(data=st.data(), outcome=choices)
    def vote_where_it_may_count(self, data: st.DataObject, outcome: dict[str, Any]) -> None:
        question = data.draw(st.sampled_from(self.mediator.pending()))
        client = data.draw(st.sampled_from(sorted(question.voters) or ["late"]))
        self.vote(question.request_id, None, {"outcome": outcome}, Voter(client_id=client))

    def check_choice(
        self, model: Model, voter: Voter, outcome: dict[str, Any], decision: Decision
    ) -> None:
        refusal = model.refusal(voter, self.left[model.question.request_id])
        if voter.client_id in model.votes:
            assert decision.verdict is Verdict.REPEATED
            assert all(isinstance(each, Audit) for each in decision.effects)
            return
        if refusal is not None:
            assert (decision.verdict, decision.reason) == (Verdict.FORBIDDEN, refusal)
            return
        if model.rule.policy is Policy.CONSENSUS:
            assert voter.client_id is not None
            model.votes[voter.client_id] = outcome["optionId"]
            reached = Counter(model.votes.values())[outcome["optionId"]] >= model.quorum
            assert decision.verdict is (Verdict.RESOLVED if reached else Verdict.RECORDED)
        else:
            assert decision.verdict is Verdict.RESOLVED
        if decision.verdict is Verdict.RESOLVED:
            assert model.question.result == {"outcome": outcome}

    @rule(request_id=requests)
    def expire(self, request_id: str) -> None:
        question = self.models[request_id].question
        was_open = question.open
        effects = self.mediator.expire(question, now=NOW)
        assert bool(effects) is was_open and not question.open
        self.carry_out(effects)

    @rule(
        request_id=requests,
        reason=st.sampled_from([Settled.CANCEL, Settled.CLOSED, Settled.WITHDRAWN]),
    )
    def end(self, request_id: str, reason: Settled) -> None:
        question = self.models[request_id].question
        was_open = question.open
        effects = self.mediator.end(question, reason, now=NOW)
        assert bool(effects) is was_open and (question.reason is reason or not was_open)
        self.carry_out(effects)

    @rule(session=sessions, prompt=st.sampled_from(["p1", "p2"]))
    def end_prompt(self, session: str, prompt: str) -> None:
        others = [each for each in self.open_in(session) if each.question.prompt_id != prompt]
        self.carry_out(self.mediator.end_prompt(session, prompt, Settled.CANCEL, now=NOW))
        assert self.open_in(session) == others

    @rule(
        session=sessions,
        reason=st.sampled_from([Settled.CANCEL, Settled.CLOSED, Settled.WITHDRAWN]),
    )
    def end_session(self, session: str, reason: Settled) -> None:
        elsewhere = {each: self.open_in(each) for each in SESSIONS if each != session}
        self.carry_out(self.mediator.end_session(session, reason, now=NOW))
        assert self.open_in(session) == [] == list(self.mediator.pending(session))
        assert {each: self.open_in(each) for each in elsewhere} == elsewhere
        if reason is Settled.CLOSED:
            self.settled = [
                each for each in self.settled if self.models[each].question.session_id != session
            ]

    @rule(request_id=consumes(requests), session=sessions, voter=voters)
    def nothing_after_the_close(self, request_id: str, session: str, voter: Voter) -> None:
        self.end_session(session, Settled.CLOSED)
        question = self.models[request_id].question
        if question.session_id == session:
            late: list[Effect] = [*self.mediator.expire(question, now=NOW)]
            late += self.mediator.end(question, Settled.CANCEL, now=NOW)
            late += self.mediator.end_session(session, Settled.CLOSED, now=NOW)
            body = {"outcome": CANCELLED}
            late += self.mediator.vote(None, request_id, body, voter, now=NOW).effects
            assert all(isinstance(each, Note) for each in late)

    @rule(session=sessions, client=st.sampled_from(CLIENTS))
    def leave(self, session: str, client: str) -> None:
        for model in self.open_in(session):
            self.left[model.question.request_id].add(client)
        self.carry_out(self.mediator.leave(session, client, now=NOW))

    # ---- what is always true --------------------------------------------------------------------

    def snapshot(self) -> Any:
        return (
            [(each.request_id, dict(each.votes)) for each in self.mediator.pending()],
            [self.mediator.session_of(each) for each in self.models],
        )

    @invariant()
    def each_is_open_or_answered_once(self) -> None:
        pending = self.mediator.pending()
        for model in self.models.values():
            question = model.question
            assert question.open is (question in pending) is (not model.answers)
            assert len(model.answers) == (not question.open)
            if model.answers:
                assert model.answers == [(question.result, question.reason)]

    @invariant()
    def the_outcome_is_an_offered_option_or_a_cancel(self) -> None:
        for model in self.models.values():
            for result, reason in model.answers:
                option = result["outcome"].get("optionId")
                if option is None:
                    assert result["outcome"] == CANCELLED
                    assert result["_meta"]["qwen.daemon.permissionCancelReason"] in (
                        *("timeout", "session_closed", "agent_cancelled"),
                    )
                else:
                    assert option in model.question.option_ids and reason is Settled.VOTE
                    if model.rule.policy is Policy.CONSENSUS:
                        assert Counter(model.votes.values())[option] >= model.quorum

    @invariant()
    def what_is_open_can_still_be_decided(self) -> None:
        for model in self.models.values():
            if model.answers or model.rule.policy is not Policy.CONSENSUS:
                continue
            rest = model.electorate - self.left[model.question.request_id] - set(model.votes)
            best = max(Counter(model.votes.values()).values(), default=0)
            assert best + len(rest) >= model.quorum or not model.electorate

    @invariant()
    def the_rule_is_the_one_it_was_asked_under(self) -> None:
        for model in self.models.values():
            assert model.question.rule is model.rule
            assert model.question.quorum == (
                model.quorum if model.rule.policy is Policy.CONSENSUS else 1
            )

    @invariant()
    def the_bounds_hold(self) -> None:
        for session in SESSIONS:
            assert len(self.mediator.pending(session)) <= PER_SESSION
        open_now = {each.request_id for each in self.mediator.pending()}
        known = {each for each in self.models if self.mediator.session_of(each) is not None}
        assert known - open_now == set(self.settled) and len(self.settled) <= REMEMBERED


TestMediator = MediatorMachine.TestCase
TestMediator.settings = settings(max_examples=500, stateful_step_count=40, deadline=None)


def ask(mediator: Mediator, number: int) -> Question:
    return mediator.ask(
        "s",
        f"r{number}",
        PARAMS,
        rule=Rule(),
        originator=None,
        prompt_id=None,
        voters=(),
        now=NOW,
        timeout=0.0,
    )[0]


def test_the_daemon_remembers_512_and_a_session_has_64_open() -> None:
    mediator = Mediator()
    questions = [ask(mediator, number) for number in range(65)]
    assert [each.open for each in questions] == [True] * 64 + [False]
    mediator.end_session("s", Settled.CANCEL, now=NOW)
    for number in range(100, 700):
        mediator.end(ask(mediator, number), Settled.CANCEL, now=NOW)
    assert mediator.pending() == ()
    known = [number for number in range(700) if mediator.session_of(f"r{number}") is not None]
    assert known == list(range(700 - 512, 700))


json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda each: (
        st.lists(each, max_size=2) | st.dictionaries(st.text(max_size=3), each, max_size=2)
    ),
    max_leaves=4,
)
likely = st.fixed_dictionaries(
    {"outcome": json | st.fixed_dictionaries({"outcome": json | st.just("selected")})},
    optional={"answers": json, "expectedPlanExecutionMode": json, "_meta": json},
)


@given(body=json | likely, request_id=st.text() | st.just("r0"), voter=voters)
def test_no_vote_raises(body: Any, request_id: str, voter: Voter) -> None:
    mediator = Mediator()
    question = ask(mediator, 0)
    decision = mediator.vote(None, request_id, body, voter, now=NOW)
    # No random text is an offered option or a cancel.
    assert question.open and decision.verdict in (Verdict.INVALID_OUTCOME, Verdict.UNKNOWN)
