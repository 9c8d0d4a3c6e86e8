"""The machine of device-flow sign-ins: every way to an end, and every number of RFC 8628."""

from __future__ import annotations

import math
from typing import Any

import pytest

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
from acp_gateway.core.device_flow import DeviceFlows, Flow, Status
from acp_gateway.protocol.errors import ErrorKind, GatewayError

ME, OTHER = Owner("me"), Owner("other")
CODES = Codes(user_code="AB-CD", verification_uri="https://example.org/device")
WALL = 1_700_000_000.0


class Rig:
    """A machine with a clock that is moved by hand."""

    def __init__(self) -> None:
        self.flows = DeviceFlows()
        self.now = 100.0
        self.effects: list[Effect] = []
        self._count = 0

    def did(self, effects: list[Effect]) -> list[Effect]:
        self.effects += effects
        return effects

    def flow(self, provider: str = "p", owner: Owner = ME, **begun: Any) -> Flow:
        asked, effects = self.flows.ask(provider, owner, self.now)
        self.did(effects)
        assert asked.start_id is not None
        self._count += 1
        id = f"f{self._count}"
        given = Begun(codes=CODES, **begun)
        self.did(self.flows.started(asked.start_id, id, given, self.now, WALL + self.now))
        flow = self.flows.get(id)
        assert flow is not None
        return flow

    def after(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.did(self.flows.tick(self.now))

    def poll(self, flow: Flow, outcome: Outcome) -> list[Effect]:
        """Wait for the next poll, and answer it."""
        self.now = max(self.now, self.flows.next_at())
        (poll,) = [each for each in self.did(self.flows.tick(self.now)) if isinstance(each, Poll)]
        assert poll.flow_id == flow.id
        return self.did(self.flows.polled(flow.id, poll.attempt, outcome, self.now))

    def written(self, flow: Flow, written: bool) -> list[Effect]:
        persist = [each for each in self.effects if isinstance(each, Persist)][-1]
        return self.did(self.flows.persisted(flow.id, persist.attempt, written, "", self.now))

    def cancel(self, flow: Flow, owner: Owner = ME) -> list[Effect]:
        return self.did(self.flows.cancel(flow.id, owner, self.now)[1])

    def published(self) -> list[tuple[str, dict[str, Any], str | None]]:
        return [
            (each.kind.removeprefix("auth_device_flow_"), each.data, each.client)
            for each in self.effects
            if isinstance(each, Publish)
        ]


def of(kind: type, effects: list[Effect]) -> list[Any]:
    return [each for each in effects if isinstance(each, kind)]


def test_a_sign_in() -> None:
    rig = Rig()
    flow = rig.flow(lifetime=600.0, interval=5.0)
    assert flow.pending and flow.codes is CODES and rig.flows.next_at() == 105.0
    assert rig.after(4.9) == []
    assert rig.poll(flow, Waiting()) == []
    assert rig.flows.next_at() == 110.0
    assert rig.poll(flow, Granted(expires_at=WALL + 3600.5)) == [Persist(flow.id, 2)]
    assert flow.pending
    effects = rig.written(flow, True)
    assert of(SignedIn, effects) == [SignedIn("p")] and of(Forget, effects) == [Forget(flow.id)]
    assert flow.status is Status.AUTHORIZED and flow.codes is None
    ms = round((WALL + 3600.5) * 1000)
    assert rig.published() == [
        (
            "started",
            {"deviceFlowId": "f1", "providerId": "p", "expiresAt": round((WALL + 700) * 1000)},
            "me",
        ),
        ("authorized", {"deviceFlowId": "f1", "providerId": "p", "expiresAt": ms}, "me"),
    ]


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (None, 5.0),
        (0, 5.0),
        (-3, 5.0),
        (math.nan, 5.0),
        (math.inf, 5.0),
        (0.1, 1.0),
        (1, 1.0),
        (7, 7.0),
        (60, 60.0),
        (61, 60.0),
        (1e300, 60.0),
    ],
)
def test_the_interval(told: float | None, kept: float) -> None:
    assert Rig().flow(interval=told).interval == kept


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (None, 600.0),
        (0, 600.0),
        (-1, 600.0),
        (math.nan, 600.0),
        (5, 30.0),
        (30, 30.0),
        (1800, 1800.0),
        (3601, 3600.0),
    ],
)
def test_the_lifetime(told: float | None, kept: float) -> None:
    flow = Rig().flow(lifetime=told)
    assert flow.expires - flow.began == kept


def test_slow_down() -> None:
    rig = Rig()
    flow = rig.flow(interval=50.0, lifetime=3600.0)
    rig.poll(flow, SlowDown())
    assert flow.interval == 55.0 and rig.flows.next_at() == rig.now + 55.0
    rig.poll(flow, SlowDown())
    rig.poll(flow, SlowDown())
    assert flow.interval == 60.0
    told = [data for kind, data, _ in rig.published() if kind == "throttled"]
    assert [each["intervalMs"] for each in told] == [55_000, 60_000, 60_000]


@pytest.mark.parametrize("failure", list(Failure)[:4])
def test_a_refusal_ends_it(failure: Failure) -> None:
    rig = Rig()
    flow = rig.flow()
    effects = rig.poll(flow, Refused(failure, "raw text of the provider"))
    assert flow.status is Status.ERROR and flow.failure is failure
    (_, data, client) = rig.published()[-1]
    assert data == {"deviceFlowId": "f1", "errorKind": failure.word, "hint": failure.hint}
    assert client == "me" and "raw" not in str(data)
    (audit,) = of(Audit, effects)
    assert audit.detail == "raw text of the provider" and "raw" not in repr(audit)


def test_expiry_while_waiting_and_while_polling() -> None:
    rig = Rig()
    one, two = rig.flow("a", lifetime=30.0, interval=60.0), rig.flow("b", lifetime=30, interval=29)
    (poll,) = of(Poll, rig.after(29))
    assert poll.flow_id == two.id
    effects = rig.after(1)
    assert of(Abort, effects) == [Abort(two.id, 1)]
    assert {one.status, two.status} == {Status.EXPIRED}
    assert one.failure is Failure.EXPIRED_TOKEN
    assert [kind for kind, *_ in rig.published()] == ["started", "started", "failed", "failed"]
    assert rig.published()[-1][1]["errorKind"] == "expired_token"


def test_no_expiry_while_the_credentials_are_written() -> None:
    rig = Rig()
    flow = rig.flow(lifetime=30.0, interval=29.0)
    rig.poll(flow, Granted())
    assert rig.after(20) == [] and flow.pending
    rig.written(flow, True)
    assert flow.status is Status.AUTHORIZED


def test_a_failed_write() -> None:
    rig = Rig()
    flow = rig.flow()
    rig.poll(flow, Granted())
    effects = rig.written(flow, False)
    assert flow.failure is Failure.PERSIST_FAILED and not of(SignedIn, effects)
    assert rig.published()[-1][1]["errorKind"] == "persist_failed"


def test_a_write_that_hangs_and_ends_too_late() -> None:
    rig = Rig()
    flow = rig.flow()
    rig.poll(flow, Granted())
    assert rig.after(29.9) == []
    effects = rig.after(0.2)
    assert of(AbortPersist, effects) and of(Abort, effects) == [Abort(flow.id, 1)]
    assert flow.failure is Failure.PERSIST_FAILED
    late = rig.written(flow, True)
    assert [type(each) for each in late] == [Audit] and late[0].status == "late_answer"  # type: ignore[union-attr]


# ---- no answer -----------------------------------------------------------------------------------


def test_polls_without_an_answer_come_later_and_later_and_end() -> None:
    rig = Rig()
    flow = rig.flow(interval=5.0)
    for wait in (10.0, 20.0, 40.0):
        rig.poll(flow, Unreachable("reset"))
        assert flow.pending and rig.flows.next_at() == rig.now + wait
        assert flow.interval == 5.0
    rig.poll(flow, Unreachable("reset"))
    assert flow.status is Status.ERROR and flow.failure is Failure.UPSTREAM_ERROR


def test_an_answer_makes_good_for_those_that_did_not_come() -> None:
    rig = Rig()
    flow = rig.flow(interval=1.0)
    for _ in range(5):
        rig.poll(flow, Unreachable())
        rig.poll(flow, Unreachable())
        rig.poll(flow, Waiting())
        assert rig.flows.next_at() == rig.now + 1.0
    assert flow.pending


def test_a_poll_over_the_limit_is_given_up_and_its_late_answer_only_audited() -> None:
    rig = Rig()
    flow = rig.flow(interval=5.0)
    (poll,) = of(Poll, rig.after(5))
    assert rig.after(29.9) == []
    effects = rig.after(0.1)
    assert of(Abort, effects) == [Abort(flow.id, poll.attempt)] and flow.pending
    for outcome in (Granted(), Refused(Failure.ACCESS_DENIED), SlowDown()):
        effects = rig.flows.polled(flow.id, poll.attempt, outcome, rig.now)
        assert [type(each) for each in effects] == [Audit]
    assert flow.pending and flow.interval == 5.0
    rig.poll(flow, Granted())
    rig.written(flow, True)
    assert flow.status is Status.AUTHORIZED


# ---- cancel --------------------------------------------------------------------------------------


def test_cancel_while_waiting_names_the_canceller() -> None:
    rig = Rig()
    flow = rig.flow()
    rig.cancel(flow, OTHER)
    assert flow.status is Status.CANCELLED and flow.failure is None
    assert rig.published()[-1] == ("cancelled", {"deviceFlowId": "f1"}, "other")


def test_cancel_while_polling_gives_the_call_up() -> None:
    rig = Rig()
    flow = rig.flow()
    rig.after(5)
    effects = rig.cancel(flow)
    assert of(Abort, effects) == [Abort(flow.id, 1)] and flow.status is Status.CANCELLED
    late = rig.flows.polled(flow.id, 1, Granted(), rig.now)
    assert [type(each) for each in late] == [Audit] and flow.status is Status.CANCELLED


@pytest.mark.parametrize("written", [True, False])
def test_cancel_while_writing(written: bool) -> None:
    rig = Rig()
    flow = rig.flow()
    rig.poll(flow, Granted())
    effects = rig.cancel(flow, OTHER)
    assert of(AbortPersist, effects) == [AbortPersist(flow.id)] and flow.pending
    assert rig.flows.cancel(flow.id, ME, rig.now) == (False, [])
    rig.written(flow, written)
    kind, _, client = rig.published()[-1]
    if written:
        assert flow.status is Status.AUTHORIZED and (kind, client) == ("authorized", "me")
    else:
        assert flow.status is Status.CANCELLED and (kind, client) == ("cancelled", "other")


def test_cancel_while_writing_and_the_write_hangs() -> None:
    rig = Rig()
    flow = rig.flow()
    rig.poll(flow, Granted())
    rig.cancel(flow)
    rig.after(30)
    assert flow.status is Status.CANCELLED


def test_cancel_of_what_has_ended_or_never_was() -> None:
    rig = Rig()
    flow = rig.flow()
    rig.cancel(flow)
    assert rig.flows.cancel(flow.id, ME, rig.now) == (True, [])
    assert rig.flows.cancel("f9", ME, rig.now) == (None, [])


# ---- many ----------------------------------------------------------------------------------------


def test_a_second_ask_attaches() -> None:
    rig = Rig()
    flow = rig.flow()
    asked, effects = rig.flows.ask("p", OTHER, rig.now)
    assert asked.flow is flow and asked.attached
    assert [each.status for each in of(Audit, effects)] == ["attached"]
    assert not of(Start, effects)
    assert rig.flows.ask("p", ME, rig.now)[1] == []


def test_asks_at_once_share_one_start() -> None:
    rig = Rig()
    first, effects = rig.flows.ask("p", ME, rig.now)
    second, more = rig.flows.ask("p", OTHER, rig.now)
    assert len(of(Start, effects)) == 1 and more == []
    assert first.start_id == second.start_id and (first.attached, second.attached) == (False, True)


def test_the_cap_counts_flows_and_starts() -> None:
    rig = Rig()
    flow = rig.flow("a")
    rig.flow("b")
    for provider in ("c", "d"):
        rig.flows.ask(provider, ME, rig.now)
    for _ in range(2):
        with pytest.raises(GatewayError) as refusal:
            rig.flows.ask("e", ME, rig.now)
        assert refusal.value.kind is ErrorKind.TOO_MANY_ACTIVE_FLOWS
    rig.flows.ask("a", OTHER, rig.now)  # attaching costs nothing
    rig.cancel(flow)
    rig.flows.ask("e", ME, rig.now)
    with pytest.raises(GatewayError):
        rig.flows.ask("f", ME, rig.now)


def test_a_start_over_the_limit() -> None:
    rig = Rig()
    asked, _ = rig.flows.ask("p", ME, rig.now)
    assert asked.start_id is not None and rig.flows.next_at() == 130.0
    effects = rig.after(30)
    assert of(StartFailed, effects) == [StartFailed(asked.start_id)]
    begun = Begun(codes=CODES)
    assert rig.flows.started(asked.start_id, "late", begun, rig.now, WALL) == []
    assert rig.flows.get("late") is None
    assert rig.flows.start_failed(asked.start_id, "x") == []


def test_an_ended_flow_is_readable_for_five_minutes_and_a_new_one_may_begin() -> None:
    rig = Rig()
    flow = rig.flow()
    rig.cancel(flow)
    again = rig.flow()
    assert again is not flow
    rig.cancel(again)
    rig.after(299.9)
    assert rig.flows.get(flow.id) is flow
    rig.after(0.1)
    assert rig.flows.get(flow.id) is None and rig.flows.next_at() == math.inf
