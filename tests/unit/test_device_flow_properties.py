"""Whatever clients, providers, disks and the clock do: a flow ends once, and by its rule."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from acp_gateway.core.device_effects import (
    Abort,
    AbortPersist,
    Audit,
    Begun,
    Codes,
    Effect,
    Failure,
    Forget,
    Granted,
    Outcome,
    Owner,
    Persist,
    Poll,
    Publish,
    Refused,
    SignedIn,
    SlowDown,
    Start,
    StartFailed,
    Unreachable,
    Waiting,
)
from acp_gateway.core.device_flow import KEPT, MOST_FLOWS, DeviceFlows, Flow, Status
from acp_gateway.protocol.errors import GatewayError

PROVIDERS = tuple("abcdef")
TERMINAL = {"authorized", "failed", "cancelled"}
owners = st.sampled_from([Owner(), Owner("me"), Owner("other", "binding")])
numbers = st.one_of(st.none(), st.floats(), st.sampled_from([0, 1, 5, 29, 600, 7200]))
outcomes = st.sampled_from(
    [
        Waiting(),
        Waiting(),
        SlowDown(),
        Granted(),
        Granted(1.0),
        Unreachable("x"),
        Refused(Failure.ACCESS_DENIED, "x"),
        Refused(Failure.UPSTREAM_ERROR, "x"),
    ]
)


class SignInMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.flows = DeviceFlows()
        self.now = 0.0
        self.known: dict[str, Flow] = {}
        self.ends: Counter[str] = Counter()
        """Terminal events by flow."""
        self.forgotten: Counter[str] = Counter()
        self.starts: list[int] = []
        self.polls: list[Poll] = []
        """Calls that were not given up; some of them have been answered."""
        self.persists: list[Persist] = []
        self.given_up: list[Poll] = []
        self.granted: set[str] = set()
        self.intervals: dict[str, float] = {}

    # ---- the runtime's part ---------------------------------------------------------------------

    def did(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Start(start_id):
                    self.starts.append(start_id)
                case StartFailed(start_id):
                    assert self.starts.count(start_id) == 1
                    self.starts.remove(start_id)
                case Poll():
                    assert self.known[effect.flow_id].pending
                    assert all(each.flow_id != effect.flow_id for each in self.polls)
                    assert all(each.flow_id != effect.flow_id for each in self.persists)
                    self.polls.append(effect)
                case Persist():
                    assert effect.flow_id not in self.granted, "written twice"
                    self.granted.add(effect.flow_id)
                    self.persists.append(effect)
                case Abort(flow_id, attempt):
                    for each in [*self.polls]:
                        if each == Poll(flow_id, attempt):
                            self.polls.remove(each)
                            self.given_up.append(each)
                    if Persist(flow_id, attempt) in self.persists:
                        self.persists.remove(Persist(flow_id, attempt))
                case AbortPersist(flow_id):
                    assert flow_id in self.granted
                case Forget(flow_id):
                    self.forgotten[flow_id] += 1
                case Publish(kind, data):
                    if kind.removeprefix("auth_device_flow_") in TERMINAL:
                        self.ends[data["deviceFlowId"]] += 1
                    assert "detail" not in data
                case SignedIn() | Audit():
                    pass

    @rule(provider=st.sampled_from(PROVIDERS), owner=owners)
    def ask(self, provider: str, owner: Owner) -> None:
        pending = [each for each in self.flows.pending() if each.provider == provider]
        full = len(self.flows.pending()) + len(self.starts) >= MOST_FLOWS
        try:
            asked, effects = self.flows.ask(provider, owner, self.now)
        except GatewayError:
            assert full and not pending
            return
        self.did(effects)
        assert len(pending) <= 1 and (asked.flow is not None) == bool(pending)
        assert asked.flow is None or asked.flow is pending[0]

    @precondition(lambda self: self.starts)
    @rule(data=st.data(), lifetime=numbers, interval=numbers)
    def started(self, data: st.DataObject, lifetime: float | None, interval: float | None) -> None:
        start_id = data.draw(st.sampled_from(self.starts))
        flow_id = f"f{len(self.known)}"
        codes = Codes(user_code="c", verification_uri="https://x")
        begun = Begun(codes=codes, lifetime=lifetime, interval=interval)
        effects = self.flows.started(start_id, flow_id, begun, self.now, 1e9)
        self.starts.remove(start_id)
        flow = self.flows.get(flow_id)
        assert flow is not None
        self.known[flow_id] = flow
        self.intervals[flow_id] = flow.interval
        assert 1 <= flow.interval <= 60
        assert 30 - 1e-6 <= flow.expires - flow.began <= 3600 + 1e-6
        self.did(effects)

    @precondition(lambda self: self.starts)
    @rule(data=st.data())
    def start_failed(self, data: st.DataObject) -> None:
        self.did(self.flows.start_failed(data.draw(st.sampled_from(self.starts)), "x"))

    @precondition(lambda self: self.polls)
    @rule(data=st.data(), outcome=outcomes)
    def polled(self, data: st.DataObject, outcome: Outcome) -> None:
        poll = data.draw(st.sampled_from(self.polls))
        self.polls.remove(poll)
        self.given_up.append(poll)  # from now on a second answer is one too many
        self.did(self.flows.polled(poll.flow_id, poll.attempt, outcome, self.now))

    @precondition(lambda self: self.given_up)
    @rule(data=st.data(), outcome=outcomes)
    def polled_too_late(self, data: st.DataObject, outcome: Outcome) -> None:
        poll = data.draw(st.sampled_from(self.given_up))
        flow = self.known[poll.flow_id]
        before = (flow.status, flow.interval, self.flows.next_at())
        effects = self.flows.polled(poll.flow_id, poll.attempt, outcome, self.now)
        assert all(isinstance(each, Audit) for each in effects)
        assert before == (flow.status, flow.interval, self.flows.next_at())

    @precondition(lambda self: self.persists)
    @rule(data=st.data(), written=st.booleans())
    def persisted(self, data: st.DataObject, written: bool) -> None:
        persist = data.draw(st.sampled_from(self.persists))
        self.persists.remove(persist)
        flow = self.known[persist.flow_id]
        effects = self.flows.persisted(flow.id, persist.attempt, written, "x", self.now)
        self.did(effects)
        assert not flow.pending
        assert (flow.status is Status.AUTHORIZED) == written
        assert any(isinstance(each, SignedIn) for each in effects) == written

    @precondition(lambda self: self.known)
    @rule(data=st.data(), owner=owners)
    def cancel(self, data: st.DataObject, owner: Owner) -> None:
        flow = self.known[data.draw(st.sampled_from(sorted(self.known)))]
        writing = any(each.flow_id == flow.id for each in self.persists)
        was = flow.pending
        ended, effects = self.flows.cancel(flow.id, owner, self.now)
        self.did(effects)
        assert ended in ((False,) if was else (True, None))
        assert flow.pending == (was and writing)

    @rule(seconds=st.one_of(st.floats(0, 10), st.sampled_from([30.0, 60.0, 300.0, 3600.0])))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.did(self.flows.tick(self.now))
        assert self.flows.next_at() > self.now, "a tick left something undone"
        assert self.flows.tick(self.now) == []

    @rule()
    def wait_for_the_next(self) -> None:
        at = self.flows.next_at()
        if at < math.inf:
            self.now = max(self.now, at)
            self.did(self.flows.tick(self.now))

    # ---- what always holds ----------------------------------------------------------------------

    @invariant()
    def ends_are_final_and_told_once(self) -> None:
        for id, flow in self.known.items():
            ended = not flow.pending
            assert self.ends[id] == self.forgotten[id] == ended, (id, flow.status)
            assert (flow.codes is None) == ended
            assert (flow.failure is not None) == (flow.status in (Status.ERROR, Status.EXPIRED))
            if flow.status is Status.AUTHORIZED:
                assert id in self.granted

    @invariant()
    def one_pending_flow_for_a_provider_and_not_too_many(self) -> None:
        pending = [each.provider for each in self.flows.pending()]
        assert len(set(pending)) == len(pending)
        assert len(pending) + len(self.starts) <= MOST_FLOWS

    @invariant()
    def intervals_only_grow(self) -> None:
        for id, flow in self.known.items():
            assert self.intervals[id] <= flow.interval <= 60
            self.intervals[id] = flow.interval

    @invariant()
    def nothing_stays_for_ever(self) -> None:
        for id, flow in self.known.items():
            held = self.flows.get(id) is not None
            if flow.pending:
                assert held
            elif not held:
                assert flow.ended is not None and self.now >= flow.ended + KEPT

    def teardown(self) -> None:
        """Whatever is under way comes to an end by itself, whoever keeps silent."""
        for _ in range(10_000):
            at = self.flows.next_at()
            if at == math.inf:
                break
            self.now = max(self.now, at)
            self.did(self.flows.tick(self.now))
        assert self.flows.next_at() == math.inf
        self.ends_are_final_and_told_once()
        assert not self.flows.pending() and not self.starts
        assert all(self.flows.get(id) is None for id in self.known)


SignInMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSignIns = SignInMachine.TestCase
