"""One ACP session: its ring, its turns, its open questions, the clients that follow it.

The session's nursery owns the turn loop, the permission timers and the file requests of its agent.
Losing the agent ends the open turn and not the session: the next request leases a new child and
restores the session there with ``session/load``, out of the clients' sight.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Literal

import attrs
import structlog
import trio

from acp_gateway.config import Settings
from acp_gateway.core.event_ring import Kind, Record
from acp_gateway.core.permissions import QuestionBoard, Settled
from acp_gateway.core.turn_queue import Turn
from acp_gateway.protocol.errors import AgentError, ErrorKind, GatewayError, unsupported
from acp_gateway.runtime.agent_host import AgentHost
from acp_gateway.runtime.agent_pool import AgentPool
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.agent_rpc import AgentRpc, Call
from acp_gateway.runtime.callbacks import AgentCallbacks
from acp_gateway.runtime.ring_budget import RingBudget
from acp_gateway.runtime.session_feed import SessionFeed
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.runtime.workspace import Workspace
from acp_gateway.wire.json_codec import dumps, loads, valid_utf8

log = structlog.get_logger("acp_gateway.session")

CANCELLED_RESULT: Final[dict[str, Any]] = {"stopReason": "cancelled"}
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


def _session_id_in(call: Call) -> str | None:
    result = None if call.result is None else loads(bytes(call.result))
    session_id = result.get("sessionId") if isinstance(result, dict) else None
    return session_id if isinstance(session_id, str) else None


class Session(SessionFeed):
    def __init__(
        self,
        opening: Opening,
        profile: AgentProfile,
        pool: AgentPool,
        settings: Settings,
        budget: RingBudget,
        workspace: Workspace,
    ) -> None:
        super().__init__(opening.session_id or "", settings, budget)
        self.profile = profile
        self.opening = opening
        self.cwd = opening.cwd
        self.prompted = opening.how != "new"
        self.board = QuestionBoard()
        self._pool = pool
        self._callbacks = AgentCallbacks(self, workspace, settings)
        self._host: AgentHost | None = None
        self._restore_error: GatewayError | None = None
        self._changed = trio.Event()
        self._wanted = trio.Event()
        self._closing = trio.Event()
        self._opening_scope = trio.CancelScope()
        self._turn_wakeup = Wakeup()
        self._turn_scope: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None
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
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    await self._live(nursery, task_status, ready)
                except GatewayError as exc:
                    self.over = self.over or exc
                nursery.cancel_scope.cancel()
        except Exception:
            # A bug: this session ends with a reason, its siblings live on.
            log.exception("session_failed", session_id=self.id)
            self.over = GatewayError(ErrorKind.INTERNAL, "The session failed inside the gateway")
            self.notice("session_died", reason="internal", recoverable=False)
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
                        lease = self._pool.lease(self.profile, self.opening.root)
                        host = await stack.enter_async_context(lease)
                        await self._open_on(host, restoring=bool(ready))
                    if self._opening_scope.cancelled_caught:
                        return
                    self._host = host
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
                    self.notice("session_closed", reason="not_restored", message=exc.message)
                    self.over = exc
            if self.over is not None:
                raise self.over
            self._wanted = trio.Event()
            async with trio.open_nursery() as waiting:
                waiting.start_soon(self._cancel_when, self._closing, waiting.cancel_scope)
                await self._wanted.wait()
                waiting.cancel_scope.cancel()
            if self._closing.is_set():
                return

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

    def _lost(self, host: AgentHost) -> None:
        """The agent is gone while the session lives."""
        self.board.end_all(Settled.WITHDRAWN)
        reason = host.ending or GatewayError(ErrorKind.AGENT_EXITED, "The agent is gone")
        can_load = host.can_load
        data = {key: value for key, value in reason.data.items() if key != "stderr"}
        self.notice(
            "session_died",
            reason=reason.kind.word,
            message=reason.message,
            recoverable=can_load,
            **data,
        )
        self.wake()
        # What had been sent to it was settled by the host; a turn that still waits for an agent
        # gets the next one.
        if not can_load:
            self.over = reason
        self._signal()

    def _finish(self) -> None:
        error = self.over or GatewayError(
            ErrorKind.SESSION_CLOSED, "The session was closed", sessionId=self.id
        )
        self.over = error
        for turn in (self.queue.running, *self.queue.waiting):
            if turn is not None:
                self._settle(turn, error)
        self.board.end_all(Settled.CLOSED)
        if self._host is not None:
            self._host.release(self.agent_id, self)
            if self._host.can("close"):
                # Cut short (a bug, a cancelled start): a shared agent would keep the session.
                self._host.call("session/close", {"sessionId": self.agent_id})
            self._host = None
        self._budget.remove(self.ring)
        for client in tuple(self.clients.values()):
            client.session_over(self)
        self.clients.clear()
        for sub in self.subs:
            sub.ended = True
        self.wake()
        self._signal()
        self.ended.set()
        self.drained()

    async def close(self, reason: str, error: GatewayError | None = None) -> None:
        """Close for everybody: the running turn ends ``cancelled``, clients are told ``reason``."""
        self.begin_close(reason, error)
        await self.ended.wait()

    def begin_close(self, reason: str, error: GatewayError | None = None) -> None:
        if self.over is not None:
            return
        self.over = error or GatewayError(
            ErrorKind.SESSION_CLOSED,
            f'The session "{self.id}" was closed ({reason})',
            remedy="load it again, or start a new session",
            sessionId=self.id,
        )
        self.board.end_all(Settled.CLOSED)
        running = self.queue.running
        if running is not None and self._host is not None:
            self._host.notify("session/cancel", {"sessionId": self.agent_id})
        for turn in (running, *self.queue.waiting):
            if turn is not None:
                self._settle(turn, CANCELLED_RESULT if error is None else error)
        self.notice("session_closed", reason=reason)
        self.wake()
        self._closing.set()
        self._opening_scope.cancel()  # a close does not wait for a restore

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

    def _for_agent(self, params: dict[str, Any]) -> dict[str, Any]:
        if self.agent_id != self.id:
            return {**params, "sessionId": self.agent_id}
        return params

    # ---- turns ----------------------------------------------------------------------------------

    def submit(self, params: dict[str, Any], *, origin: str | None, key: str | None = None) -> Turn:
        """Admit a prompt, or find the turn that the same key made. Raises ``prompt_queue_full``."""
        known = self.queue.find(key)
        if known is not None:
            return known
        if self.over is not None:
            raise self.over
        turn = Turn(uuid.uuid4().hex, params, origin=origin, key=key)
        self.queue.submit(turn, self.id)
        self.prompted = True
        self.touch()
        self._turn_wakeup.set()
        return turn

    def cancel(self, origin: str | None) -> None:
        """End the running turn and the waiting ones of ``origin``. Nothing running: nothing."""
        self.queue.withdraw(lambda turn: turn.origin == origin, CANCELLED_RESULT)
        if self.queue.running is not None:
            self._cancel_running(self.queue.running)

    def cancel_turn(self, turn: Turn) -> None:
        """End one turn, running or waiting."""
        if turn is self.queue.running:
            self._cancel_running(turn)
        elif not turn.settled:
            self._settle(turn, CANCELLED_RESULT)

    def _cancel_running(self, turn: Turn) -> None:
        self.board.end_all(Settled.CANCEL)
        if turn.cancel_requested:
            return
        turn.cancel_requested = True
        if self._host is not None:
            self._host.notify("session/cancel", {"sessionId": self.agent_id})
        if self._turn_scope is not None:
            self._turn_scope.deadline = trio.current_time() + self._settings.cancel_timeout

    async def _turns(self) -> None:
        while True:
            await self._turn_wakeup.wait()
            while (turn := self.queue.start_next()) is not None:
                await self._run_turn(turn)

    async def _run_turn(self, turn: Turn) -> None:
        with trio.CancelScope() as scope:
            self._turn_scope = scope  # a cancel has its deadline here too
            try:
                host = await self.agent()
            except GatewayError as exc:
                self._settle(turn, exc)
                return
            finally:
                self._turn_scope = None
        if scope.cancelled_caught or turn.cancel_requested or turn.settled:
            self._settle(turn, CANCELLED_RESULT)
            return
        if not self.profile.quirks.echoes_prompt:
            self.echo(turn)
        over = trio.Event()
        turn.when_settled(lambda _: over.set())
        call = host.call(
            "session/prompt",
            self._for_agent(turn.params),
            lambda call: self._prompt_replied(turn, call),
        )
        with trio.CancelScope() as scope:
            self._turn_scope = scope
            try:
                await over.wait()
            finally:
                self._turn_scope = None
        if not turn.settled:
            host.forget(call)
            self._unresponsive(turn, host)

    def _prompt_replied(self, turn: Turn, call: Call) -> None:
        outcome: Any
        if turn.cancel_requested and (
            call.result is not None or isinstance(call.error, AgentError)
        ):
            # Whatever word the agent has for it, the turn was cancelled (goose says end_turn).
            result = loads(bytes(call.result)) if call.result is not None else {}
            outcome = {**(result if isinstance(result, dict) else {}), **CANCELLED_RESULT}
        elif call.result is not None:
            outcome = call.result
        else:
            outcome = call.error
        self._settle(turn, outcome)

    def _settle(self, turn: Turn, outcome: Any) -> None:
        # Observers first: they tie the answer to this place in the ring, before turn_complete.
        running = turn is self.queue.running
        if not self.queue.settle(turn, outcome):
            return
        self.touch()
        if running:
            # Nothing of this turn may be asked any more.
            self.board.end_all(Settled.CANCEL)
        if isinstance(outcome, GatewayError):
            self.notice(
                "turn_error",
                promptId=turn.prompt_id,
                message=outcome.message,
                code=outcome.kind.word,
            )
        else:
            result = outcome if isinstance(outcome, dict) else loads(bytes(outcome))
            stop = result.get("stopReason") if isinstance(result, dict) else None
            self.notice("turn_complete", promptId=turn.prompt_id, stopReason=stop)
        self.wake()
        self._turn_wakeup.set()

    def _unresponsive(self, turn: Turn, host: AgentHost) -> None:
        error = GatewayError(
            ErrorKind.AGENT_UNRESPONSIVE,
            f"The agent {self.profile.name} did not end a cancelled turn within "
            f"{self._settings.cancel_timeout:g} s",
            agent=self.profile.name,
        )
        self._settle(turn, CANCELLED_RESULT)
        if self._settings.isolation == "session":
            host.end(error)
        else:
            self.begin_close("agent_unresponsive", error)

    # ---- events ---------------------------------------------------------------------------------

    def on_agent_request(self, host: AgentRpc, id: bytes, method: str, params: Any) -> None:
        assert self._nursery is not None
        self._callbacks.serve(host, id, method, params, self._nursery)

    def on_agent_notification(self, method: str, params: dict[str, Any], line: bytes) -> None:
        if method == "$/cancel_request":
            self._callbacks.withdraw(params.get("requestId"))
        elif method.startswith("_") and not self._muted:
            # An extension of the agent: clients that know it get it as it came.
            if params.get("sessionId") == self.agent_id != self.id:
                line = dumps(
                    {"jsonrpc": "2.0", "method": method, "params": {**params, "sessionId": self.id}}
                )
            # White space between tokens may be a CR, at which SSE would end the line.
            line = valid_utf8(line).replace(b"\r", b" ")
            self._append(Record(Kind.NOTICE, method, line, time.time()))

    @property
    def restorable(self) -> bool:
        """Can its agent load it again later?"""
        host = self._host
        return not self.prompted or (host is not None and host.can_load)

    @property
    def idle(self) -> bool:
        return not len(self.queue) and not any(each.present for each in self.clients.values())
