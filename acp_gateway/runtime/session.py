"""One ACP session: its ring, its turns, its open questions, the clients that follow it.

The session's nursery owns the turn loop, the permission timers and the file requests of its agent.
Losing the agent ends the open turn and not the session: the next request leases a new child and
restores the session there with ``session/load``, out of the clients' sight.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import attrs
import structlog
import trio
from structlog.contextvars import bind_contextvars

from acp_gateway.config import Settings
from acp_gateway.core.event_ring import Kind, Record
from acp_gateway.core.mediator import Question, Rule, Settled
from acp_gateway.core.trace_context import TraceContext
from acp_gateway.core.usage import SessionUsage
from acp_gateway.protocol.errors import AgentError, ErrorKind, GatewayError, unsupported
from acp_gateway.runtime import qwen_notices
from acp_gateway.runtime.agent_host import AgentHost
from acp_gateway.runtime.agent_pool import AgentPool
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.agent_rpc import AgentRpc, Call
from acp_gateway.runtime.callbacks import AgentCallbacks
from acp_gateway.runtime.ledger import Ledger
from acp_gateway.runtime.permission_desk import PermissionDesk
from acp_gateway.runtime.ring_budget import RingBudget
from acp_gateway.runtime.session_shell import SessionShells
from acp_gateway.runtime.session_turns import CANCELLED_RESULT, CHANNEL_CLOSED, SessionTurns
from acp_gateway.runtime.tracing import Span, begin, begin_task, current, finish, place
from acp_gateway.runtime.workspace import Workspace
from acp_gateway.wire.json_codec import dumps, loads, valid_utf8

log = structlog.get_logger("acp_gateway.session")

CLOSE_TIMEOUT: Final = 5.0
How = Literal["new", "load", "resume"]


@attrs.frozen(kw_only=True)
class Opening:
    """How a session comes to its agent."""

    how: How
    params: dict[str, Any]
    """Params for the agent, as the client sent them."""
    session_id: str | None = None
    """Of a stored session."""
    cwd: Path
    root: Path
    """The workspace root that ``cwd`` lies in; the child's working directory."""
    roots: tuple[Path, ...]
    """Everything that the session may touch."""
    rule: Rule | None = None
    """Its own permission policy; the daemon's when absent."""


def _session_id_in(call: Call) -> str | None:
    result = None if call.result is None else loads(bytes(call.result))
    session_id = result.get("sessionId") if isinstance(result, dict) else None
    return session_id if isinstance(session_id, str) else None


class Session(SessionTurns):
    def __init__(
        self,
        opening: Opening,
        profile: AgentProfile,
        pool: AgentPool,
        settings: Settings,
        budget: RingBudget,
        workspace: Workspace,
        desk: PermissionDesk,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(opening.session_id or "", profile, settings, budget, desk, ledger)
        self.usage = SessionUsage(from_start=opening.how == "new")
        self.opening = opening
        self.cwd = opening.cwd
        self.prompted = opening.how != "new"
        self.rule = opening.rule or desk.rule
        """Who may answer its permission requests."""
        self._pool = pool
        self._callbacks = AgentCallbacks(self, workspace, settings)
        self.shells = SessionShells(self, settings, workspace, pool.watchdog, pool.environ)
        self.display_name: str | None = None
        """What a client named it; else it has the agent's title."""
        self.title_source: str | None = None
        self.restores = 0
        """Times that it went on with a new process of its agent."""
        self.end_reason: str | None = None
        """Why it ended, in one word of the daemon's."""
        self.stored = False
        """Its agent can load it again."""
        self.switching = 0
        """Changes of mode or model by clients that are under way."""
        self.labels: dict[str, str] = {}
        """What made it, as its creator said: ``sourceType``, ``sourceId``."""
        self._restore_error: GatewayError | None = None
        self._changed = trio.Event()
        self._wanted = trio.Event()
        self._closing = trio.Event()
        self._opening_scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._asked_by: TraceContext | None = None
        """Whose trace its opening belongs to."""
        self.name_for: Callable[[str], str] = str
        """Set by the manager: the north id for an agent's id (an alias on a collision)."""

    # ---- life -----------------------------------------------------------------------------------

    async def run(
        self, *, task_status: trio.TaskStatus[Session] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Open on an agent, report ready, live until closed.

        Raises `GatewayError` only before it reported ready.
        """
        ready: list[bool] = []
        self._asked_by = place()
        begin_task(agent=self.profile.name)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    await self._live(nursery, task_status, ready)
                except GatewayError as exc:
                    self.over = self.over or exc
                self.shells.close()
                await self.shells.ended()
                nursery.cancel_scope.cancel()
        except Exception:
            # A bug: this session ends with a reason, its siblings live on.
            log.exception("session_failed", session_id=self.id)
            self.over = GatewayError(ErrorKind.INTERNAL, "The session failed inside the gateway")
            self.end_reason = "internal"
            self.desk.end_session(self.id, Settled.CLOSED)
            self._flush_turns(self.over, "session_closed")
            self._died("internal", self.over, recoverable=False)
        finally:
            self._finish()
        if not ready and self.over is not None:
            raise self.over

    async def _live(
        self, nursery: trio.Nursery, task_status: trio.TaskStatus[Session], ready: list[bool]
    ) -> None:
        while True:
            try:
                async with AsyncExitStack() as stack:
                    with trio.CancelScope() as self._opening_scope:
                        if self._closing.is_set():
                            return
                        with self._opening_span(restoring=bool(ready)) as span:
                            lease = self._pool.lease(self.profile, self.opening.root)
                            host = await stack.enter_async_context(lease)
                            if span is not None:
                                span.attributes["acp_gateway.agent_pid"] = host.pid
                            await self._open_on(host, restoring=bool(ready))
                    if self._opening_scope.cancelled_caught:
                        return
                    bind_contextvars(session_id=self.id)
                    self._host = host
                    if ready:
                        self.restores += 1
                        self.ledger.restored.add(self.profile.name)
                    self.stored = host.can_load
                    self.halted = False
                    self._restore_error = None
                    self._signal()
                    if not ready:
                        ready.append(True)
                        nursery.start_soon(self._turns)
                        task_status.started(self)
                    await self._until_closing_or_gone(host)
                    self._host = None
                    host.release(self.agent_id, self)
                    if self._closing.is_set():
                        await self._close_on(host)
                        return
                    self._lost(host)
            except GatewayError as exc:
                if not ready:
                    raise
                # Restoring failed: whoever waited is told, and the next request tries again.
                self._restore_error = exc
                self._signal()
                if isinstance(exc, AgentError) or exc.kind is ErrorKind.UNSUPPORTED_BY_AGENT:
                    self.over = exc
                    self.end_reason = self.end_reason or "not_restored"
                    self._flush_turns(exc, CHANNEL_CLOSED)
                    self.publish("session_closed", reason="not_restored", message=exc.message)
                    self.seal()
            if self.over is not None:
                raise self.over
            self._wanted = trio.Event()
            async with trio.open_nursery() as waiting:
                waiting.start_soon(self._cancel_when, self._closing, waiting.cancel_scope)
                await self._wanted.wait()
                waiting.cancel_scope.cancel()
            if self._closing.is_set():
                return

    @contextmanager
    def _opening_span(self, *, restoring: bool) -> Iterator[Span | None]:
        running = self.queue.running
        asked_by = self._asked_by if running is None else running.span.context
        self._asked_by = None
        word = "restore" if restoring else self.opening.how
        span = begin(f"acp_gateway.session.{word}", asked_by, **{"session.id": self.id or None})
        error: str | None = "cancelled"
        # The agent that is started for it is part of it.
        before = current.set(span)
        try:
            yield span
            error = None
        except GatewayError as exc:
            error = exc.kind.word
            raise
        finally:
            current.reset(before)
            finish(span, error, **{"session.id": self.id or None})

    async def _until_closing_or_gone(self, host: AgentHost) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when, self._closing, nursery.cancel_scope)
            await host.exited.wait()
            nursery.cancel_scope.cancel()

    @staticmethod
    async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    async def _open_on(self, host: AgentHost, *, restoring: bool) -> None:
        opening = self.opening
        if restoring or opening.how == "load":
            if not host.can_load:
                raise GatewayError(
                    ErrorKind.UNSUPPORTED_BY_AGENT,
                    f"The agent {self.profile.name} cannot load stored sessions",
                    remedy="start a new session",
                    sessionId=self.id,
                )
            await self._call_open(host, "session/load", muted=restoring)
        elif opening.how == "resume":
            can = host.can("resume")
            # Without resume the agent loads, and its replay is kept from the client.
            await self._call_open(host, "session/resume" if can else "session/load", muted=not can)
        else:
            await self._call_open(host, "session/new", muted=False)

    async def _call_open(self, host: AgentHost, method: str, *, muted: bool) -> None:
        params = self.opening.params
        known = method != "session/new"
        if known:
            params = {**params, "sessionId": self.agent_id}
            self._muted = muted
            host.adopt(self.agent_id, self)

        def opened(call: Call) -> None:
            # In wire order, so that an update right behind the answer finds its session.
            session_id = None if known else _session_id_in(call)
            if session_id is not None:
                self.agent_id = session_id
                self.id = self.name_for(session_id)
                host.adopt(session_id, self)
            self._muted = False

        def unwanted(call: Call) -> None:
            # Nobody waits for the new session any more; a shared agent would keep it.
            session_id = _session_id_in(call)
            if session_id is not None and host.can("close"):
                host.call("session/close", {"sessionId": session_id})

        call = host.call(method, params, opened)
        try:
            result = loads(bytes(await host.wait(call, self._settings.agent_request_timeout)))
            if not known and not self.agent_id:
                raise GatewayError(
                    ErrorKind.AGENT_ERROR, "The agent's answer to session/new has no sessionId"
                )
        except GatewayError:
            self._muted = False
            host.release(self.agent_id, self)
            raise
        except BaseException:
            host.release(self.agent_id, self)
            if known:
                host.forget(call)
            elif call.settled:
                unwanted(call)
            else:
                call.on_reply = unwanted
            raise
        if isinstance(result, dict):
            self.state.opened(result)

    async def _close_on(self, host: AgentHost) -> None:
        if host.can("close") and host.alive:
            with trio.move_on_after(CLOSE_TIMEOUT):
                try:
                    await host.request(
                        "session/close", {"sessionId": self.agent_id}, timeout=CLOSE_TIMEOUT
                    )
                except GatewayError as exc:
                    log.info("session_close_refused", session_id=self.id, error=exc.message)
        elif self._settings.isolation == "session":
            # It writes down what is left as it ends; whoever loads the session next must find it.
            with trio.move_on_after(CLOSE_TIMEOUT):
                await host.stop()

    def _lost(self, host: AgentHost) -> None:
        """The agent is gone while the session lives."""
        self.desk.end_session(self.id, Settled.WITHDRAWN)
        reason = host.ending or GatewayError(ErrorKind.AGENT_EXITED, "The agent is gone")
        can_load = host.can_load
        # What had been sent to it was settled by the host; a turn that still waits for an agent
        # gets the next one.
        if not can_load:
            self.over = reason
            self.end_reason = self.end_reason or "agent_exited"
            self._flush_turns(reason, CHANNEL_CLOSED)
        self._died(CHANNEL_CLOSED, reason, recoverable=can_load)
        self._signal()

    def _died(self, word: str, reason: GatewayError, *, recoverable: bool) -> None:
        data = reason.data
        self.ledger.died.add(self.profile.name, word, "true" if recoverable else "false")
        self.publish(
            "session_died",
            reason=word,
            message=reason.message,
            errorKind=reason.kind.word,
            exitCode=data.get("exitCode"),
            signalCode=data.get("signal"),
            recoverable=recoverable,
        )
        self.halted, self.sealed = True, self.sealed or not recoverable
        self.wake()

    def _finish(self) -> None:
        error = self.over or GatewayError(
            ErrorKind.SESSION_CLOSED, "The session was closed", sessionId=self.id
        )
        self.over = error
        self.desk.end_session(self.id, Settled.CLOSED)
        self._flush_turns(error, "session_closed")
        self.desk.forget(self)
        if self._host is not None:
            self._host.release(self.agent_id, self)
            if self._host.can("close"):
                # Cut short (a bug, a cancelled start): a shared agent would keep the session.
                self._host.call("session/close", {"sessionId": self.agent_id})
            self._host = None
        for client in tuple(self.clients.values()):
            client.session_over(self)
        self.clients.clear()
        self.end()
        self._signal()
        self.ended.set()
        self.drained()

    async def close(
        self, reason: str, error: GatewayError | None = None, *, client: str | None = None
    ) -> None:
        """Close for everybody: the running turn ends ``cancelled``, clients are told ``reason``.

        ``client``: who closed it.
        """
        self.begin_close(reason, error, client=client)
        await self.ended.wait()

    def begin_close(
        self, reason: str, error: GatewayError | None = None, *, client: str | None = None
    ) -> None:
        if self.over is not None:
            return
        self.over = error or GatewayError(
            ErrorKind.SESSION_CLOSED,
            f'The session "{self.id}" was closed ({reason})',
            remedy="load it again, or start a new session",
            sessionId=self.id,
        )
        self.end_reason = self.end_reason or reason
        self.desk.end_session(self.id, Settled.CLOSED)
        self.shells.close()
        if self.queue.running is not None and self._host is not None:
            self._host.notify("session/cancel", {"sessionId": self.agent_id})
        stopping = reason == "daemon_shutdown"
        outcome = CANCELLED_RESULT if error is None else error
        self._flush_turns(outcome, reason if stopping else "session_closed")
        if stopping:
            self.publish("session_died", reason=reason, exitCode=None, signalCode=None)
        else:
            by = {} if client is None else {"closedBy": client}
            self.publish("session_closed", client=client, reason=reason, **by)
        self.seal()
        self._closing.set()
        self._opening_scope.cancel()  # a close does not wait for a restore

    def start_task(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """A task that the session owns; it must not raise."""
        assert self._nursery is not None
        self._nursery.start_soon(task, *args)

    def _signal(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # ---- the agent ------------------------------------------------------------------------------

    async def agent(self) -> AgentHost:
        """The living agent of this session; a lost one is replaced and the session restored."""
        tried = False
        while True:
            if self.over is not None:
                raise self.over
            if self._host is not None and self._host.alive:
                return self._host
            if tried and self._restore_error is not None:
                raise self._restore_error
            if self._host is None:
                self._restore_error = None
                self._wanted.set()
                tried = True
            changed = self._changed
            with trio.move_on_after(self._settings.agent_request_timeout + 30):
                await changed.wait()
                continue
            raise GatewayError(
                ErrorKind.AGENT_UNRESPONSIVE, "The session could not be restored in time"
            )

    async def request(
        self,
        method: str,
        params: dict[str, Any],
        placed: Callable[[int], None] = lambda _: None,
    ) -> Any:
        """A session-scoped request to the agent; its answer takes its place among the events."""
        host = await self.agent()
        self.touch()

        def replied(_: Call) -> None:
            placed(self.ring.last_id)

        call = host.call(method, self._for_agent(params), replied)
        try:
            raw = await host.wait(call, self._settings.agent_request_timeout)
        except AgentError as exc:
            raise unsupported(exc, self.profile.name, method) from None
        except trio.Cancelled:
            host.notify("$/cancel_request", {"requestId": call.id})
            host.forget(call)
            raise
        result = loads(bytes(raw))
        # A null result is accepted for every all-optional one (ACP v1, lenient decoding).
        return {} if result is None else result

    def notify_agent(self, method: str, params: dict[str, Any]) -> None:
        if self._host is not None:
            self._host.notify(method, self._for_agent(params))

    # ---- events ---------------------------------------------------------------------------------

    def on_agent_request(self, host: AgentRpc, id: bytes, method: str, params: Any) -> None:
        assert self._nursery is not None
        self._callbacks.serve(host, id, method, params, self._nursery)

    def on_agent_notification(self, method: str, params: dict[str, Any], line: bytes) -> None:
        if method == "$/cancel_request":
            self._callbacks.withdraw(params.get("requestId"))
        elif method.startswith(qwen_notices.PREFIX):
            qwen_notices.publish(self, method[len(qwen_notices.PREFIX) :], params)
        elif method.startswith("_") and not self._muted:
            # An extension of the agent: clients that know it get it as it came.
            if params.get("sessionId") == self.agent_id != self.id:
                line = dumps(
                    {"jsonrpc": "2.0", "method": method, "params": {**params, "sessionId": self.id}}
                )
            # White space between tokens may be a CR, at which SSE would end the line.
            line = valid_utf8(line).replace(b"\r", b" ")
            self.append(Record(Kind.NOTICE, method, line, time.time()))

    @property
    def title(self) -> str | None:
        """What a client named it, else the agent, else what was said first."""
        return self.display_name or self.state.title or self.first_words

    def rename(self, name: str, *, source: str, client: str | None = None) -> None:
        """Give it a title, and tell everybody."""
        self.display_name, self.title_source = name, source
        self.publish_update({"sessionUpdate": "session_info_update", "title": name}, client)
        self.publish(
            "session_metadata_updated", client=client, displayName=name, titleSource=source
        )
        self.wake()

    @property
    def has_agent(self) -> bool:
        """Its agent lives; else the next request restores it on another."""
        return self._host is not None and self._host.alive

    @property
    def restorable(self) -> bool:
        """Can its agent load it again later?"""
        host = self._host
        return not self.prompted or (host is not None and host.can_load)

    @property
    def idle(self) -> bool:
        return (
            not len(self.queue)
            and not len(self.shells)
            and not self.streams
            and not any(each.present for each in self.clients.values())
        )

    @property
    def linger(self) -> float:
        """Seconds that it is kept while idle."""
        used = self.prompted or bool(self.parties)
        return self._settings.linger if used else self._settings.linger_unprompted

    @property
    def questions(self) -> tuple[Question, ...]:
        """The open permission requests."""
        return self.desk.pending(self.id)
