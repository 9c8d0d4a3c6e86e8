"""Device-flow sign-ins (RFC 8628) as one pure machine: time comes in, effects go out.

A flow is ``pending`` until it ends, once and for good, as ``authorized``, ``expired``, ``error`` or
``cancelled``. The machine never sees a device code or a token: whoever carries the effects out
keeps them, and drops them at `Forget`. Limits and wording of the errors: RFC 8628 §3.2 to §3.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from typing import Any, Final

import attrs

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
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.events import (
    AUTH_DEVICE_FLOW_AUTHORIZED,
    AUTH_DEVICE_FLOW_CANCELLED,
    AUTH_DEVICE_FLOW_FAILED,
    AUTH_DEVICE_FLOW_STARTED,
    AUTH_DEVICE_FLOW_THROTTLED,
)

START_LIMIT: Final = 30.0
POLL_LIMIT: Final = 30.0
PERSIST_LIMIT: Final = 30.0
DEFAULT_INTERVAL: Final = 5.0
LEAST_INTERVAL: Final = 1.0
MOST_INTERVAL: Final = 60.0
SLOWER: Final = 5.0
DEFAULT_LIFETIME: Final = 600.0
LEAST_LIFETIME: Final = 30.0
MOST_LIFETIME: Final = 3600.0
KEPT: Final = 300.0
"""Seconds that a flow can be read after its end."""
MOST_FLOWS: Final = 4
"""Pending flows and starts in flight together."""
MOST_MISSES: Final = 3
"""Polls in a row that may fail for want of an answer; one more ends the flow."""


class Status(Enum):
    PENDING = "pending"
    AUTHORIZED = "authorized"
    EXPIRED = "expired"
    ERROR = "error"
    CANCELLED = "cancelled"


class _Step(Enum):
    WAITING = "waiting"
    POLLING = "polling"
    PERSISTING = "persisting"


@attrs.define(eq=False)
class Flow:
    """One sign-in. Times are the machine's; `wall` of them is Unix time."""

    id: str
    provider: str
    owner: Owner
    codes: Codes | None
    """None once it has ended."""
    began: float
    began_wall: float
    expires: float
    interval: float
    status: Status = Status.PENDING
    failure: Failure | None = None
    ended: float | None = None
    polled_at: float | None = None
    _step: _Step = _Step.WAITING
    _due: float = math.inf
    """When the next poll is due, or the limit of what runs is reached."""
    _attempt: int = 0
    _misses: int = 0
    _granted: Granted | None = None
    _canceller: Owner | None = None
    """Asked for a cancel while the credentials were being written."""

    @property
    def pending(self) -> bool:
        return self.status is Status.PENDING

    def wall(self, at: float) -> int:
        """A time of the machine as Unix time in milliseconds."""
        return round((self.began_wall + at - self.began) * 1000)

    @property
    def expires_ms(self) -> int:
        return self.wall(self.expires)


@attrs.frozen
class _Starting:
    provider: str
    owner: Owner
    limit: float


@attrs.frozen
class Asked:
    """The answer to `DeviceFlows.ask`: the pending flow, or the start that will make it."""

    flow: Flow | None
    start_id: int | None
    attached: bool


def _clamped(value: float | None, default: float, least: float, most: float) -> float:
    if value is None or not math.isfinite(value) or value <= 0:
        return default
    return min(max(value, least), most)


class DeviceFlows:
    """All flows of the daemon. Every call returns the effects to carry out, in order."""

    def __init__(self) -> None:
        self._flows: dict[str, Flow] = {}
        self._starts: dict[int, _Starting] = {}
        self._started = 0

    # ---- reading --------------------------------------------------------------------------------

    def get(self, flow_id: str) -> Flow | None:
        return self._flows.get(flow_id)

    def pending(self) -> list[Flow]:
        return [flow for flow in self._flows.values() if flow.pending]

    def next_at(self) -> float:
        """When `tick` has something to do; infinite when nothing waits for time to pass."""
        return min(self._times(), default=math.inf)

    def _times(self) -> Iterator[float]:
        for start in self._starts.values():
            yield start.limit
        for flow in self._flows.values():
            if flow.ended is not None:
                yield flow.ended + KEPT
            elif flow._step is _Step.PERSISTING:
                yield flow._due
            else:
                yield min(flow._due, flow.expires)

    # ---- starting -------------------------------------------------------------------------------

    def ask(self, provider: str, owner: Owner, now: float) -> tuple[Asked, list[Effect]]:
        """Sign in at a provider: attach to its pending flow or start, or start.

        Raises ``too_many_active_flows``.
        """
        for flow in self._flows.values():
            if flow.provider == provider and flow.pending:
                effects: list[Effect] = []
                if owner != flow.owner:
                    effects.append(self._audit(flow, "attached", owner.client_id))
                return Asked(flow, None, attached=True), effects
        for start_id, starting in self._starts.items():
            if starting.provider == provider:
                return Asked(None, start_id, attached=True), []
        if len(self.pending()) + len(self._starts) >= MOST_FLOWS:
            raise GatewayError(
                ErrorKind.TOO_MANY_ACTIVE_FLOWS,
                f"Too many sign-ins are under way ({MOST_FLOWS})",
                remedy="finish or cancel one, or wait until it expires",
                limit=MOST_FLOWS,
            )
        self._started += 1
        self._starts[self._started] = _Starting(provider, owner, now + START_LIMIT)
        return Asked(None, self._started, attached=False), [Start(self._started, provider)]

    def started(
        self, start_id: int, flow_id: str, begun: Begun, now: float, wall: float
    ) -> list[Effect]:
        """The provider gave codes. ``wall`` is ``now`` as Unix time in seconds."""
        starting = self._starts.pop(start_id, None)
        if starting is None:
            return []  # it was given up
        interval = _clamped(begun.interval, DEFAULT_INTERVAL, LEAST_INTERVAL, MOST_INTERVAL)
        lifetime = _clamped(begun.lifetime, DEFAULT_LIFETIME, LEAST_LIFETIME, MOST_LIFETIME)
        flow = Flow(
            id=flow_id,
            provider=starting.provider,
            owner=starting.owner,
            codes=begun.codes,
            began=now,
            began_wall=wall,
            expires=now + lifetime,
            interval=interval,
            due=now + interval,
        )
        self._flows[flow_id] = flow
        data = {
            "deviceFlowId": flow_id,
            "providerId": flow.provider,
            "expiresAt": flow.expires_ms,
        }
        return [
            Publish(AUTH_DEVICE_FLOW_STARTED, data, flow.owner.client_id),
            self._audit(flow, "started", flow.owner.client_id),
        ]

    def start_failed(self, start_id: int, detail: str) -> list[Effect]:
        """The provider gave none."""
        starting = self._starts.pop(start_id, None)
        if starting is None:
            return []
        audit = Audit(
            flow_id="",
            provider=starting.provider,
            client=starting.owner.client_id,
            status="start_failed",
            failure=Failure.UPSTREAM_ERROR,
            detail=detail,
        )
        return [StartFailed(start_id), audit]

    # ---- time -----------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Effect]:
        """Everything that is due."""
        effects: list[Effect] = []
        for start_id, starting in tuple(self._starts.items()):
            if now >= starting.limit:
                effects += self.start_failed(start_id, "no answer within the limit")
        for flow in tuple(self._flows.values()):
            if flow.ended is not None:
                if now >= flow.ended + KEPT:
                    del self._flows[flow.id]
            elif flow._step is _Step.PERSISTING:
                if now >= flow._due:
                    effects += [AbortPersist(flow.id), Abort(flow.id, flow._attempt)]
                    effects += self._not_written(flow, "no end within the limit", now)
            elif now >= flow.expires:
                effects += self._abort(flow)
                effects += self._end(flow, Status.EXPIRED, now, failure=Failure.EXPIRED_TOKEN)
            elif now >= flow._due:
                effects += self._due(flow, now)
        return effects

    def _due(self, flow: Flow, now: float) -> list[Effect]:
        if flow._step is _Step.POLLING:
            effects = self._abort(flow)
            return effects + self._missed(flow, "no answer within the limit", now)
        flow._step = _Step.POLLING
        flow._attempt += 1
        flow._due = now + POLL_LIMIT
        flow.polled_at = now
        return [Poll(flow.id, flow._attempt)]

    @staticmethod
    def _abort(flow: Flow) -> list[Effect]:
        return [Abort(flow.id, flow._attempt)] if flow._step is _Step.POLLING else []

    # ---- polling --------------------------------------------------------------------------------

    def polled(self, flow_id: str, attempt: int, outcome: Outcome, now: float) -> list[Effect]:
        """The answer to a `Poll`. One that comes too late is only audited."""
        flow = self._flows.get(flow_id)
        if flow is None:
            return []
        if not flow.pending or flow._step is not _Step.POLLING or flow._attempt != attempt:
            word = type(outcome).__name__.lower()
            return [self._audit(flow, "late_answer", detail=f"{word}, after the call was given up")]
        match outcome:
            case Waiting():
                flow._misses = 0
                self._wait(flow, now, flow.interval)
                return []
            case SlowDown():
                flow._misses = 0
                flow.interval = min(flow.interval + SLOWER, MOST_INTERVAL)
                self._wait(flow, now, flow.interval)
                data = {"deviceFlowId": flow.id, "intervalMs": round(flow.interval * 1000)}
                return [Publish(AUTH_DEVICE_FLOW_THROTTLED, data, flow.owner.client_id)]
            case Granted():
                flow._granted = outcome
                flow._step = _Step.PERSISTING
                flow._due = now + PERSIST_LIMIT
                return [Persist(flow.id, attempt)]
            case Refused(failure, detail):
                return self._end(flow, Status.ERROR, now, failure=failure, detail=detail)
            case Unreachable(detail):
                return self._missed(flow, detail, now)

    @staticmethod
    def _wait(flow: Flow, now: float, seconds: float) -> None:
        flow._step = _Step.WAITING
        flow._due = now + seconds

    def _missed(self, flow: Flow, detail: str, now: float) -> list[Effect]:
        """No answer: ask again, each time later (RFC 8628 §3.5), but not for ever."""
        flow._misses += 1
        if flow._misses > MOST_MISSES:
            return self._end(flow, Status.ERROR, now, failure=Failure.UPSTREAM_ERROR, detail=detail)
        self._wait(flow, now, min(flow.interval * 2**flow._misses, MOST_INTERVAL))
        return [self._audit(flow, "no_answer", detail=detail)]

    # ---- credentials ----------------------------------------------------------------------------

    def persisted(
        self, flow_id: str, attempt: int, written: bool, detail: str, now: float
    ) -> list[Effect]:
        """The answer to a `Persist`: whether the credentials are where they belong."""
        flow = self._flows.get(flow_id)
        if flow is None:
            return []
        if not flow.pending or flow._step is not _Step.PERSISTING or flow._attempt != attempt:
            word = "written" if written else "not written"
            return [self._audit(flow, "late_answer", detail=f"{word}, after the limit")]
        if not written:
            return self._not_written(flow, detail, now)
        granted = flow._granted
        assert granted is not None
        data: dict[str, Any] = {"deviceFlowId": flow.id, "providerId": flow.provider}
        if granted.expires_at is not None:
            data["expiresAt"] = round(granted.expires_at * 1000)
        kept = "" if flow._canceller is None else "written before the cancel: kept"
        return [
            SignedIn(flow.provider),
            *self._end(
                flow,
                Status.AUTHORIZED,
                now,
                publish=Publish(AUTH_DEVICE_FLOW_AUTHORIZED, data, flow.owner.client_id),
                detail=kept,
            ),
        ]

    def _not_written(self, flow: Flow, detail: str, now: float) -> list[Effect]:
        if flow._canceller is not None:
            return self._cancelled(flow, flow._canceller, now)
        return self._end(flow, Status.ERROR, now, failure=Failure.PERSIST_FAILED, detail=detail)

    # ---- ending ---------------------------------------------------------------------------------

    def cancel(self, flow_id: str, owner: Owner, now: float) -> tuple[bool | None, list[Effect]]:
        """(had it ended already; None: no such flow, the effects)."""
        flow = self._flows.get(flow_id)
        if flow is None:
            return None, []
        if not flow.pending:
            return True, []
        if flow._step is _Step.PERSISTING:
            if flow._canceller is not None:
                return False, []
            flow._canceller = owner
            audit = self._audit(
                flow, "cancelling", owner.client_id, "the credentials are being written"
            )
            return False, [AbortPersist(flow.id), audit]
        return False, self._abort(flow) + self._cancelled(flow, owner, now)

    def _cancelled(self, flow: Flow, owner: Owner, now: float) -> list[Effect]:
        publish = Publish(AUTH_DEVICE_FLOW_CANCELLED, {"deviceFlowId": flow.id}, owner.client_id)
        return self._end(flow, Status.CANCELLED, now, publish=publish, client=owner.client_id)

    def _end(
        self,
        flow: Flow,
        status: Status,
        now: float,
        *,
        failure: Failure | None = None,
        publish: Publish | None = None,
        detail: str = "",
        client: str | None = None,
    ) -> list[Effect]:
        assert flow.pending
        flow.status = status
        flow.failure = failure
        flow.ended = now
        flow.codes = None
        flow._granted = None
        flow._due = math.inf
        if publish is None:
            assert failure is not None
            data = {"deviceFlowId": flow.id, "errorKind": failure.word, "hint": failure.hint}
            publish = Publish(AUTH_DEVICE_FLOW_FAILED, data, flow.owner.client_id)
        audit = self._audit(flow, status.value, client or flow.owner.client_id, detail)
        return [Forget(flow.id), publish, audit]

    @staticmethod
    def _audit(flow: Flow, status: str, client: str | None = None, detail: str = "") -> Audit:
        return Audit(
            flow_id=flow.id,
            provider=flow.provider,
            client=client,
            status=status,
            failure=flow.failure,
            detail=detail,
        )
