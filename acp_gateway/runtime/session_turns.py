"""The turns of a session: one prompt at a time to its agent, each ended exactly once.

What clients see of a turn, in order: ``pending_prompt_added`` and ``pending_prompt_started`` (only
when it had to wait), the user's message, the agent's updates, one of ``turn_complete`` and
``turn_error``, ``pending_prompt_completed`` (only when it had waited).
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from typing import Any, Final

import trio
from structlog.contextvars import bound_contextvars

from acp_gateway.config import Settings
from acp_gateway.core.identity import OPEN, Identity
from acp_gateway.core.mediator import Settled
from acp_gateway.core.mid_turn import MidTurnQueue
from acp_gateway.core.turn_queue import Turn
from acp_gateway.protocol.errors import AgentError, ErrorKind, GatewayError
from acp_gateway.runtime.agent_host import AgentHost
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.agent_rpc import Call
from acp_gateway.runtime.ledger import Ledger
from acp_gateway.runtime.permission_desk import PermissionDesk
from acp_gateway.runtime.ring_budget import RingBudget
from acp_gateway.runtime.session_feed import SessionFeed
from acp_gateway.runtime.turn_trace import prompt_span, turn_ended, turn_ids, with_trace
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.wire.json_codec import loads

CANCELLED_RESULT: Final[dict[str, Any]] = {"stopReason": "cancelled"}
CHANNEL_CLOSED: Final = "channel_closed"
"""The daemon's word for the loss of an agent."""
FIRST_WORDS: Final = 80
TERMINALS: Final = 64
"""Ends of turns that a load tells."""


class SessionTurns(SessionFeed):
    def __init__(
        self,
        session_id: str,
        profile: AgentProfile,
        settings: Settings,
        budget: RingBudget,
        desk: PermissionDesk,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(session_id, settings, budget)
        self.profile = profile
        self.ledger = ledger or Ledger()
        self._usage_in_chunks = profile.quirks.usage_in_chunks
        self.desk = desk
        self.prompted = False
        self.prompts = 0
        """Prompts accepted."""
        self.first_words: str | None = None
        """The beginning of the first one, on one line."""
        self.turn_failed = False
        """The last turn ended with an error."""
        self.terminals: deque[dict[str, Any]] = deque(maxlen=TERMINALS)
        self.mid_turn = MidTurnQueue()
        self._host: AgentHost | None = None
        self._turn_wakeup = Wakeup()
        self._turn_scope: trio.CancelScope | None = None
        self._forwarded = False
        """The agent has the running turn's prompt."""

    async def agent(self) -> AgentHost:
        raise NotImplementedError

    def begin_close(self, reason: str, error: GatewayError | None = None) -> None:
        raise NotImplementedError

    def _for_agent(self, params: dict[str, Any]) -> dict[str, Any]:
        if self.agent_id != self.id:
            return {**params, "sessionId": self.agent_id}
        return params

    # ---- in -------------------------------------------------------------------------------------

    def submit(
        self,
        params: dict[str, Any],
        *,
        origin: str | None,
        client: str | None = None,
        identity: Identity = OPEN,
        key: str | None = None,
        time_limit: float | None = None,
    ) -> Turn:
        """Admit a prompt, or find the turn that the same key made. Raises ``prompt_queue_full``."""
        known = self.queue.find(key)
        if known is not None:
            if not known.asks(params.get("prompt")):
                raise GatewayError(
                    ErrorKind.IDEMPOTENCY_KEY_REUSED,
                    "Another prompt was sent with this idempotency key",
                    remedy="use a new key for each prompt, and the same one only to repeat it",
                )
            return known
        if self.over is not None:
            raise self.over
        limits = [each for each in (time_limit, self._settings.prompt_deadline or None) if each]
        turn = Turn(
            str(uuid.uuid4()),
            params,
            origin=origin,
            client=client,
            identity=identity,
            key=key,
            asked_at=time.time(),
            time_limit=min(limits, default=None),
        )
        turn.waited = len(self.queue) > 0
        turn.watermark = self.ring.last_id
        self.queue.submit(turn, self.id)
        turn.span = prompt_span(self, turn)
        self.prompted = True
        self.prompts += 1
        if self.first_words is None:
            self.first_words = " ".join(turn.text[:400].split())[:FIRST_WORDS] or None
        self.touch()
        if turn.waited:
            self._queue_event(
                "pending_prompt_added", turn, text=turn.text, queuedAt=int(turn.asked_at * 1000)
            )
            self.wake()
        self._turn_wakeup.set()
        return turn

    @staticmethod
    async def settled(turn: Turn) -> None:
        """Return once the turn has ended."""
        over = trio.Event()

        def observer(_: Turn) -> None:
            over.set()

        turn.when_settled(observer)
        try:
            await over.wait()
        finally:
            turn.forget_observer(observer)

    def _queue_event(self, kind: str, turn: Turn, **data: Any) -> None:
        self.publish(
            kind, prompt_id=turn.prompt_id, client=turn.client, promptId=turn.prompt_id, **data
        )

    def cancel(self, origin: str | None, client: str | None = None) -> None:
        """End the running turn and the waiting ones of ``origin``. Nothing running: nothing."""
        for turn in self.queue.waiting:
            if turn.origin == origin:
                self._settle(turn, CANCELLED_RESULT)
        self.cancel_running(client)

    def cancel_running(self, client: str | None = None) -> bool:
        """End the running turn. False when none runs."""
        running = self.queue.running
        if running is None:
            return False
        self._cancel_running(running, client)
        return True

    def cancel_turn(self, turn: Turn, client: str | None = None) -> None:
        """End one turn, running or waiting."""
        if turn is self.queue.running:
            self._cancel_running(turn, client)
        elif not turn.settled:
            self._settle(turn, CANCELLED_RESULT)

    def _cancel_running(self, turn: Turn, client: str | None) -> None:
        if not turn.cancel_requested:
            turn.cancelled_at = time.time()
            self.publish("prompt_cancelled", prompt_id=turn.prompt_id, client=client)
        self.desk.end_session(self.id, Settled.CANCEL)
        self.wake()
        if turn.cancel_requested:
            return
        turn.cancel_requested = True
        if self._host is not None:
            self._host.notify("session/cancel", {"sessionId": self.agent_id})
        if self._turn_scope is not None:
            # One that still waits for an agent has nobody to wait for.
            patience = self._settings.cancel_timeout if self._forwarded else 0.0
            self._turn_scope.deadline = trio.current_time() + patience

    # ---- the loop -------------------------------------------------------------------------------

    async def _turns(self) -> None:
        while True:
            await self._turn_wakeup.wait()
            while (turn := self.queue.start_next()) is not None:
                with bound_contextvars(**turn_ids(turn)):
                    await self._run_turn(turn)
                self._requeue_mid_turn()

    def _requeue_mid_turn(self) -> None:
        """Messages that the agent did not take while it worked become the next prompt."""
        for message in self.mid_turn.waiting if self.over is None else ():
            try:
                self.submit(
                    {"sessionId": self.id, "prompt": list(message.content)},
                    origin=None,
                    client=message.client,
                )
            except GatewayError:
                return  # the queue is full: they wait for the next turn
            self.mid_turn.promote(message)

    async def _run_turn(self, turn: Turn) -> None:
        turn.began_at = time.time()
        self.ledger.turn_began(turn.began_at - turn.asked_at)
        turn.first_event = self.ring.last_id
        if turn.waited:
            self._queue_event("pending_prompt_started", turn, text=turn.text)
            self.wake()
        self._forwarded = False
        with trio.CancelScope() as scope:
            self._turn_scope = scope  # a cancel ends the wait
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
        replied = trio.Event()

        def reply(call: Call) -> None:
            self._prompt_replied(turn, call)
            replied.set()

        self._forwarded = True
        params = with_trace(turn, qwen=self.profile.quirks.private_meta)
        call = host.call("session/prompt", self._for_agent(params), reply)
        with trio.CancelScope() as scope:
            self._turn_scope = scope
            try:
                limit = turn.time_limit or float("inf")
                with trio.move_on_after(limit) as timer:
                    await over.wait()
                if timer.cancelled_caught and not turn.cancel_requested:
                    self._deadline(turn, limit)
                if self.over is None:
                    # One that its deadline ended keeps the agent until it obeys.
                    await replied.wait()
            finally:
                self._turn_scope = None
        if scope.cancelled_caught:
            host.forget(call)
            self._unresponsive(turn, host)

    def _deadline(self, turn: Turn, limit: float) -> None:
        error = GatewayError(
            ErrorKind.PROMPT_DEADLINE,
            f"prompt exceeded the {round(limit * 1000)}ms deadline",
            remedy="send it with a longer deadlineMs",
        )
        scope, self._turn_scope = self._turn_scope, None  # not yet: the cancel sets its deadline
        self._settle(turn, error)
        self.publish("prompt_cancelled", prompt_id=turn.prompt_id, client=turn.client)
        self.wake()
        if self._host is not None:
            self._host.notify("session/cancel", {"sessionId": self.agent_id})
        if scope is not None:
            scope.deadline = trio.current_time() + self._settings.cancel_timeout
        self._turn_scope = scope

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

    # ---- out ------------------------------------------------------------------------------------

    def _settle(self, turn: Turn, outcome: Any, *, flushed: str | None = None) -> None:
        """End a turn and tell it. ``flushed``: the session ends, and why; the turn's events say so
        whatever its own answer is."""
        running = turn is self.queue.running
        queued = not running and not turn.settled
        if queued and flushed is None and turn.waited:
            self._queue_event("pending_prompt_completed", turn, state="removed")
        # Observers first: they tie the answer to this place in the ring, before turn_complete.
        if not self.queue.settle(turn, outcome):
            return
        turn_ended(self, turn, outcome, flushed)
        self.touch()
        if running:
            # Nothing of this turn may be asked any more.
            self.desk.end_prompt(self.id, turn.prompt_id, Settled.CANCEL)
        if flushed is not None:
            error = outcome if isinstance(outcome, GatewayError) else self.over
            message = error.message if error is not None else "the session ended"
            self._turn_error(turn, message, flushed)
        elif isinstance(outcome, GatewayError):
            deadline = outcome.kind is ErrorKind.PROMPT_DEADLINE
            if running and not deadline and not turn.cancel_requested:
                self.publish(
                    "prompt_cancelled",
                    prompt_id=turn.prompt_id,
                    client=turn.client,
                    reason="forward_failed",
                )
            self._turn_error(turn, *_told(outcome), kind=outcome.kind.word)
        else:
            self._turn_complete(turn, outcome)
        if turn.waited and not queued:
            self._queue_event("pending_prompt_completed", turn, state="completed")
        self.wake()
        self._turn_wakeup.set()

    def _turn_error(self, turn: Turn, message: str, code: str, kind: str | None = None) -> None:
        self.turn_failed = True
        self._count(turn, None, error=kind or code)
        self._queue_event("turn_error", turn, message=message, code=code, errorKind=kind or code)
        self._terminal(turn, "error")

    def _turn_complete(self, turn: Turn, outcome: Any) -> None:
        self.turn_failed = False
        result = outcome if isinstance(outcome, dict) else loads(bytes(outcome))
        result = result if isinstance(result, dict) else {}
        stop = result.get("stopReason")
        stop = stop if isinstance(stop, str) and stop else "end_turn"
        self._count(turn, result, stop_reason=stop)
        extra: dict[str, Any] = {}
        meta = result.get("_meta")
        branch = meta.get("qwen.branchPoint") if isinstance(meta, dict) else None
        if isinstance(branch, dict):
            extra["branchPoint"] = branch
        if stop == "cancelled" and turn.cancelled_at:
            elapsed = time.time() - (turn.began_at or turn.asked_at)
            extra["promptCancelled"] = {
                "cancelledAt": int(turn.cancelled_at * 1000),
                "elapsedMs": max(0, int(elapsed * 1000)),
            }
        self._queue_event("turn_complete", turn, stopReason=stop, **extra)
        self._terminal(turn, "cancelled" if stop == "cancelled" else "completed", stop)

    def _count(self, turn: Turn, result: Any, **how: str) -> None:
        ran = bool(turn.began_at)
        seconds = time.time() - turn.began_at if ran else None
        self.ledger.turn_ended(self.profile.name, seconds=seconds, **how)
        if ran:
            self.usage.cost_told(self.state.cost)
            self.ledger.used(self.profile.name, self.usage.fold(result))

    def _terminal(self, turn: Turn, word: str, stop: str | None = None) -> None:
        self.terminals.append(
            {
                "v": 1,
                "promptId": turn.prompt_id,
                "terminal": word,
                **({"stopReason": stop} if stop is not None else {}),
                "at": int(time.time() * 1000),
            }
        )

    def _flush_turns(self, outcome: Any, code: str) -> None:
        for turn in self.queue.turns():
            self._settle(turn, outcome, flushed=code)

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


def _told(error: GatewayError) -> tuple[str, str]:
    """Message and code of ``turn_error``: an agent's own error keeps its number, as text."""
    if error.kind is ErrorKind.AGENT_EXITED:
        return error.message, CHANNEL_CLOSED
    if not isinstance(error, AgentError):
        return error.message, error.kind.word
    data = error.error.get("data")
    details = data.get("details") if isinstance(data, dict) else data
    message = error.message
    if message == "Internal error" and isinstance(details, str) and details:
        message = details
    return message, str(error.error.get("code", ErrorKind.INTERNAL.code))
