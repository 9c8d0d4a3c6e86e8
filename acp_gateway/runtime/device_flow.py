"""Carries out the device-flow machine: calls to providers, timers, credentials, events.

`SignIns.run` owns every call; who asks only waits. The machine decides, here things are done and
secrets kept: they are dropped when their flow ends, whatever ends it.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import attrs
import structlog
import trio

from acp_gateway.core.device_effects import (
    Abort,
    AbortPersist,
    Audit,
    Begun,
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
    Start,
    StartFailed,
    Unreachable,
)
from acp_gateway.core.device_flow import DeviceFlows, Flow
from acp_gateway.core.secret import Secret
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.credentials import write_credentials
from acp_gateway.runtime.redact import clean
from acp_gateway.runtime.sign_in_providers import Provider
from acp_gateway.runtime.wakeup import Wakeup

log = structlog.get_logger("acp_gateway.sign_in")

# A disk that hangs must not hold up the daemon's end. What an abandoned thread may still do is
# stopped by `_Kept.aborted`.
in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
MOST_DETAIL: Final = 1000
"""Characters; how many are missing comes on top."""
SHOWN_ID: Final = 8
"""Characters of a flow's id that a log line has."""


class ProviderError(Exception):
    """A provider could not be asked, or its answer is of no use. ``detail`` is for the log.

    ``final``: asking again would not help.
    """

    def __init__(self, detail: str, *, final: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.final = final


@attrs.frozen(kw_only=True)
class Grant:
    """What the calls for one flow need."""

    device_code: Secret
    verifier: Secret | None
    token_endpoint: str

    def secrets(self) -> Iterator[Secret]:
        yield self.device_code
        if self.verifier is not None:
            yield self.verifier


class ProviderCalls(Protocol):
    """Speaks to providers; its home knows HTTP. Every method gives up when it is cancelled."""

    async def begin(self, provider: Provider) -> tuple[Begun, Grant]:
        """Codes for a person. Raises `ProviderError`."""

    async def poll(self, provider: Provider, grant: Grant) -> tuple[Outcome, Secret | None]:
        """Is there a token? With ``Granted`` comes the content of the file for it."""


@attrs.define(eq=False)
class _Pending:
    """A start that somebody waits for."""

    done: trio.Event = attrs.field(factory=trio.Event)
    flow: Flow | None = None
    """None at the end: it failed."""


@attrs.define(eq=False)
class _Kept:
    """The secret part of a flow."""

    provider: Provider
    grant: Grant
    user_code: Secret
    credentials: Secret | None = None
    aborted: threading.Event = attrs.field(factory=threading.Event)

    def forget(self) -> None:
        for secret in self.secrets():
            secret.forget()

    def secrets(self) -> Iterator[Secret]:
        yield from self.grant.secrets()
        yield self.user_code
        if self.credentials is not None:
            yield self.credentials


Announce: TypeAlias = Callable[[str, dict[str, Any], str | None], None]


class SignIns:
    """All sign-ins of the daemon."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        calls: ProviderCalls,
        announce: Announce,
        signed_in: Callable[[Provider], None],
    ) -> None:
        """``announce(kind, data, client)`` publishes an event; ``signed_in`` is told when there are
        new credentials."""
        self.providers = providers
        self._calls = calls
        self._announce = announce
        self._signed_in = signed_in
        self._flows = DeviceFlows()
        self._starts: dict[int, _Pending] = {}
        self._kept: dict[str, _Kept] = {}
        self._scopes: dict[tuple[str | int, int], trio.CancelScope] = {}
        self._changed = Wakeup()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the flows until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    self._tick()
                    with trio.move_on_at(self._flows.next_at()):
                        await self._changed.wait()
        finally:
            self._nursery = None
            for kept in self._kept.values():
                kept.aborted.set()
                kept.forget()
            self._kept.clear()
            for pending in self._starts.values():
                pending.done.set()
            self._starts.clear()

    # ---- for clients ----------------------------------------------------------------------------

    async def start(self, provider: str, owner: Owner) -> tuple[Flow, bool]:
        """A flow at a provider, and whether it was there already.

        Raises ``unsupported_provider``, ``too_many_active_flows``, ``upstream_error``,
        ``shutting_down``.
        """
        if provider not in self.providers:
            raise GatewayError(
                ErrorKind.UNSUPPORTED_PROVIDER,
                f"Unsupported device-flow provider: {provider[:80]}",
                remedy="use one of supportedProviders"
                if self.providers
                else "none is configured: add an [auth.NAME] table to the configuration file",
                supportedProviders=list(self.providers),
            )
        if self._nursery is None:
            raise GatewayError(ErrorKind.SHUTTING_DOWN, "The gateway is shutting down")
        self._tick()
        asked, effects = self._flows.ask(provider, owner, trio.current_time())
        self._carry_out(effects)
        if asked.flow is not None:
            return asked.flow, asked.attached
        assert asked.start_id is not None
        pending = self._starts[asked.start_id]
        await pending.done.wait()
        if pending.flow is None:
            raise GatewayError(
                ErrorKind.UPSTREAM_ERROR,
                f"The provider {provider} gave no code to sign in with",
                remedy="try again later; the gateway's log says more",
                providerId=provider,
            )
        return pending.flow, asked.attached

    def get(self, flow_id: str) -> Flow:
        """Raises ``device_flow_not_found``."""
        self._tick()
        flow = self._flows.get(flow_id)
        if flow is None:
            raise self._not_found(flow_id)
        return flow

    def cancel(self, flow_id: str, owner: Owner) -> bool:
        """Give a flow up; True when it had ended already. Raises ``device_flow_not_found``."""
        self._tick()
        ended, effects = self._flows.cancel(flow_id, owner, trio.current_time())
        if ended is None:
            raise self._not_found(flow_id)
        self._carry_out(effects)
        return ended

    def pending(self) -> Sequence[Flow]:
        self._tick()
        return self._flows.pending()

    def summary(self) -> dict[str, Any]:
        """For the daemon's status."""
        return {
            "supportedDeviceFlowProviders": list(self.providers),
            "pendingDeviceFlowCount": len(self.pending()),
        }

    @staticmethod
    def _not_found(flow_id: str) -> GatewayError:
        return GatewayError(
            ErrorKind.DEVICE_FLOW_NOT_FOUND,
            f"Device-flow {flow_id[:80]} not found",
            remedy="start another one",
        )

    # ---- effects --------------------------------------------------------------------------------

    def _tick(self) -> None:
        effects = self._flows.tick(trio.current_time())
        if effects:  # else `run`, which ticks itself, would wake itself again and again
            self._carry_out(effects)

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        # Last words are cleaned of what the flow is about to forget.
        lines = [self._line(effect) for effect in effects if isinstance(effect, Audit)]
        for effect in effects:
            match effect:
                case Start(start_id, provider):
                    self._starts[start_id] = _Pending()
                    self._spawn(self._start, start_id, self.providers[provider])
                case StartFailed(start_id):
                    self._stop((start_id, 0))
                    self._starts.pop(start_id).done.set()
                case Poll(flow_id, attempt):
                    self._spawn(self._poll, flow_id, attempt)
                case Persist(flow_id, attempt):
                    self._spawn(self._persist, flow_id, attempt)
                case Abort(flow_id, attempt):
                    self._stop((flow_id, attempt))
                case AbortPersist(flow_id):
                    self._kept[flow_id].aborted.set()
                case Forget(flow_id):
                    self._kept.pop(flow_id).forget()
                case Publish(kind, data, client):
                    self._announce(kind, data, client)
                case SignedIn(provider):
                    self._signed_in(self.providers[provider])
                case Audit():
                    log.info("device_flow", **lines.pop(0))
        self._changed.set()

    def _line(self, audit: Audit) -> dict[str, str]:
        line = {
            "flow": audit.flow_id[:SHOWN_ID],
            "provider": audit.provider,
            "client": audit.client or "",
            "status": audit.status,
            "error_kind": "" if audit.failure is None else audit.failure.word,
        }
        if audit.detail:
            kept = self._kept.get(audit.flow_id)
            line["detail"] = clean_detail(audit.detail, kept.secrets() if kept is not None else ())
        return {key: value for key, value in line.items() if value}

    def _stop(self, key: tuple[str | int, int]) -> None:
        scope = self._scopes.get(key)
        if scope is not None:
            scope.cancel()

    # ---- calls ----------------------------------------------------------------------------------

    def _spawn(self, call: Callable[..., Any], *args: Any) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(call, *args)

    @contextlib.contextmanager
    def _scope(self, key: tuple[str | int, int]) -> Iterator[trio.CancelScope]:
        """A call that can be given up by its key."""
        with trio.CancelScope() as scope:
            self._scopes[key] = scope
            try:
                yield scope
            finally:
                del self._scopes[key]

    async def _start(self, start_id: int, provider: Provider) -> None:
        begun = grant = None
        detail = ""
        with self._scope((start_id, 0)):
            try:
                begun, grant = await self._calls.begin(provider)
            except ProviderError as exc:
                detail = exc.detail
            except Exception as exc:
                detail = _bug(exc)
        if begun is None or grant is None:
            # Given up or failed; the machine knows which.
            self._carry_out(self._flows.start_failed(start_id, clean_detail(detail)))
            return
        if start_id not in self._starts:
            for secret in grant.secrets():
                secret.forget()
            return
        flow_id = uuid.uuid4().hex
        self._kept[flow_id] = _Kept(provider, grant, Secret(begun.codes.user_code))
        effects = self._flows.started(start_id, flow_id, begun, trio.current_time(), time.time())
        pending = self._starts.pop(start_id)
        pending.flow = self._flows.get(flow_id)
        pending.done.set()
        self._carry_out(effects)

    async def _poll(self, flow_id: str, attempt: int) -> None:
        kept = self._kept.get(flow_id)
        outcome: Outcome | None = None
        credentials = None
        if kept is not None:
            with self._scope((flow_id, attempt)):
                try:
                    outcome, credentials = await self._calls.poll(kept.provider, kept.grant)
                except ProviderError as exc:
                    outcome = (
                        Refused(Failure.UPSTREAM_ERROR, exc.detail)
                        if exc.final
                        else Unreachable(exc.detail)
                    )
                except Exception as exc:
                    outcome = Refused(Failure.UPSTREAM_ERROR, _bug(exc))
        if outcome is None or kept is None:
            return  # given up
        if isinstance(outcome, Granted):
            kept.credentials = credentials
        self._carry_out(self._flows.polled(flow_id, attempt, outcome, trio.current_time()))
        if flow_id not in self._kept and credentials is not None:
            credentials.forget()

    async def _persist(self, flow_id: str, attempt: int) -> None:
        kept = self._kept.get(flow_id)
        if kept is None or kept.credentials is None:
            return
        written: bool | None = None
        detail = ""
        write = partial(
            write_credentials, kept.provider.credentials, kept.credentials, kept.aborted
        )
        try:
            with self._scope((flow_id, attempt)):
                try:
                    written = await in_thread(write)
                except Exception as exc:
                    written, detail = False, f"{type(exc).__name__}: {exc}"
        finally:
            kept.aborted.set()
        if written is not None:
            now = trio.current_time()
            self._carry_out(self._flows.persisted(flow_id, attempt, written, detail, now))


def _bug(exc: Exception) -> str:
    """A foreign exception's text may hold anything; its place in our code is what helps."""
    place = exc.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = "" if place is None else f" in {place.tb_frame.f_code.co_qualname}:{place.tb_lineno}"
    return f"unexpected {type(exc).__name__}{where}"


def clean_detail(text: str, secrets: Iterable[Secret] = ()) -> str:
    """A detail as a log line may have it: no secret, one line, not too long."""
    for secret in secrets:
        text = secret.hide_in(text)
    return clean(text, MOST_DETAIL)
