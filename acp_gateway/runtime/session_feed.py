"""What a session tells, and to whom: its events, their history, the clients that follow it.

How far a slow client may hold up the agent is decided in `SessionFeed.flow`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from acp_gateway.config import Settings
from acp_gateway.core.event_ring import Kind, Record
from acp_gateway.core.identity import Identity
from acp_gateway.core.outlet import Subscription
from acp_gateway.core.trace_context import TRACEPARENT
from acp_gateway.core.transcript import Transcript
from acp_gateway.core.turn_queue import Turn, TurnQueue
from acp_gateway.core.usage import SessionUsage
from acp_gateway.runtime.feed import Feed
from acp_gateway.runtime.parties import Parties
from acp_gateway.runtime.ring_budget import RingBudget
from acp_gateway.runtime.session_state import SessionState, usage_in
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.wire.json_codec import dumps, loads, valid_utf8
from acp_gateway.wire.jsonrpc import notification_bytes
from acp_gateway.wire.large_line import SPLIT_BYTES, Pieces, split_update

if TYPE_CHECKING:
    from acp_gateway.core.mediator import Question
    from acp_gateway.runtime.session import Session

_NOTED: Final = frozenset(
    {
        "available_commands_update",
        "current_mode_update",
        "config_option_update",
        "session_info_update",
        "usage_update",
    }
)


USAGE: Final = b'"usage":'
_WORKSPACE_WIDE: Final = frozenset(
    {"session_closed", "session_died", "session_metadata_updated", "session_branched"}
)
"""Of interest also to who follows the workspace and not the session."""


def _nobody(kind: str, data: dict[str, Any], client: str | None, who: str | None) -> None:
    """Tell no one."""


def _clean(line: bytes) -> bytes:
    """UTF-8 without CR, which ends a line of SSE: between tokens any white space will do."""
    return valid_utf8(line).replace(b"\r", b" ")


class ClientGone(Exception):
    """The client left before it answered."""


class Client(Protocol):
    """A connection as a session sees it. All calls are synchronous."""

    @property
    def id(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def client_id(self) -> str: ...
    @property
    def loopback(self) -> bool: ...
    @property
    def identity(self) -> Identity: ...
    @property
    def present(self) -> bool: ...
    @property
    def reads_files(self) -> bool: ...
    @property
    def writes_files(self) -> bool: ...
    def ask(self, session: Session, question: Question) -> None: ...
    def question_over(self, session: Session, question: Question) -> None: ...
    def session_over(self, session: Session) -> None: ...
    async def forward(self, session: Session, method: str, params: Any) -> Any: ...


class SessionFeed(Feed):
    def __init__(self, session_id: str, settings: Settings, budget: RingBudget) -> None:
        self.transcript = Transcript(settings.transcript_bytes)
        # ``id`` is what clients call it; set before `run` reports ready.
        super().__init__(session_id, settings, budget, transcript=self.transcript)
        self.agent_id = session_id
        """What the agent calls it; differs only when two live sessions collide."""
        self.created_at = self.updated_at = time.time()
        self.last_used = trio.current_time()
        self.state = SessionState()
        self.queue = TurnQueue(settings.max_queued_prompts)
        self.clients: dict[str, Client] = {}
        """Connections that follow it."""
        self.parties = Parties()
        """Everybody who has a client id here, connected or not."""
        self.ended = trio.Event()
        self.tell_workspace: Callable[[str, dict[str, Any], str | None, str | None], None] = _nobody
        """Set by the manager."""
        self._muted = False
        """The agent replays what clients have: nothing of it is published."""
        self._drained = Wakeup()
        self._pausing = False
        self.pauses = 0
        """Times that its agent was not read because of a slow client."""
        self.usage = SessionUsage()
        self._usage_in_chunks = False
        """The agent tells what it used in message chunks."""

    # ---- events ---------------------------------------------------------------------------------

    def on_updates(self, lines: list[bytes], kind: str, now: float) -> None:
        """A run of ``session/update`` of the agent: into the ring, nothing awaited."""
        if kind in _NOTED:
            for line in lines:
                self.state.note(kind, line)
        if self._muted or self.sealed:
            return
        block = lines[0] if len(lines) == 1 else b"".join(lines)
        if self._usage_in_chunks and USAGE in block and self.queue.running is not None:
            # One look at a run, for the agents that need it. In a text the quotes are escaped.
            for line in lines:
                if USAGE in line:
                    self.usage.new.take(usage_in(line))
        if not block.isascii() or b"\r" in block:
            lines = [_clean(line) for line in lines]
        if self.agent_id != self.id:
            lines = [self._renamed(line) for line in lines]
        if len(block) > SPLIT_BYTES:
            lines = [part for line in lines for part in split_update(line)]
        self._publish(lines, kind, now)

    def on_large_update(self, line: bytes | Pieces, kind: str, now: float) -> None:
        """One that is clean and split already; see `wire.large_line`."""
        if kind in _NOTED:
            self.state.note(kind, line if isinstance(line, bytes) else line.join())
        if self._muted or self.sealed:
            return
        if self.agent_id != self.id:
            line = self._renamed(line if isinstance(line, bytes) else line.join())
        self._publish([line], kind, now)

    def _publish(self, lines: Sequence[bytes | Pieces], kind: str, now: float) -> None:
        running = self.queue.running
        if running is None:
            self._budget.total += self.ring.extend(lines, kind, now, None, None)
        else:
            self._budget.total += self.ring.extend(
                lines, kind, now, running.prompt_id, running.client, running.who
            )

    def _renamed(self, line: bytes) -> bytes:
        message = loads(line)
        message["params"]["sessionId"] = self.id
        return dumps(message)

    def echo(self, turn: Turn) -> None:
        """The user's message, as its turn starts; everybody gets it but who sent it."""
        now = time.time()
        blocks = turn.params.get("prompt")
        meta = {
            "serverTimestamp": int(now * 1000),
            "source": "bridge-echo",
            TRACEPARENT: turn.span.context.traceparent,
        }
        name = "user_message_chunk"
        for block in blocks if isinstance(blocks, list) else ():
            update = {"sessionUpdate": name, "content": block, "_meta": meta}
            line = notification_bytes("session/update", {"sessionId": self.id, "update": update})
            for part in split_update(line):
                self.append(
                    Record(
                        Kind.ECHO,
                        name,
                        part,
                        now,
                        turn.prompt_id,
                        turn.origin,
                        turn.client,
                        turn.who,
                    )
                )
        self.wake()

    def publish_update(self, update: dict[str, Any], client: str | None = None) -> None:
        """A ``session/update`` that the gateway itself has to tell."""
        name = str(update.get("sessionUpdate"))
        line = notification_bytes("session/update", {"sessionId": self.id, "update": update})
        self.state.note(name, line)
        who = self.parties.names.get(client or "")
        self.append(Record(Kind.UPDATE, name, line, time.time(), None, None, client, who))
        self.wake()

    def publish(
        self,
        kind: str,
        *,
        prompt_id: str | None = None,
        client: str | None = None,
        **data: Any,
    ) -> None:
        """Publish an event of the gateway's own; ``data`` gets the session's id."""
        told = {"sessionId": self.id, **data}
        who = self.parties.names.get(client or "")
        self.notice(kind, prompt_id=prompt_id, client=client, who=who, data=told)
        if kind in _WORKSPACE_WIDE:
            self.tell_workspace(kind, told, client, who)

    # ---- flow: one slow reader may hold up its agent, a stalled one may not ---------------------

    @property
    def over_flow(self) -> bool:
        """Is a progressing subscriber too far behind?"""
        limit = self._settings.flow_pause_bytes
        ring = self.ring
        if ring.kept_bytes <= limit:
            return False
        return any(sub.lag_bytes > limit for sub in self.subs) and self._blocker() is not None

    def _blocker(self) -> Subscription | None:
        if self.ended.is_set():
            return None  # its agent may serve others
        now = trio.current_time()
        limit, stall = self._settings.flow_pause_bytes, self._settings.stall_timeout
        for sub in self.subs:
            outlet = sub.outlet
            if outlet is not None and sub.lag_bytes > limit and outlet.progressing(now, stall):
                return sub
        return None

    async def flow(self) -> None:
        """Return when no progressing subscriber is too far behind. Called by the agent's reader."""
        self._pausing = True
        self.pauses += 1
        try:
            while self._blocker() is not None:
                with trio.move_on_after(self._settings.stall_timeout):
                    await self._drained.wait()
        finally:
            self._pausing = False

    def drained(self) -> None:
        """A writer has taken records from the ring."""
        if self._pausing:
            self._drained.set()

    def let_go(self) -> None:
        """It is over: what it told belongs to its last readers alone.

        An ended session is in reference cycles, and the collector comes by rarely: megabytes would
        wait for it.
        """
        self.subs.clear()  # each has been told of the end, and reads on from the ring that it has
        self.ring = self.ring.emptied()
        self.transcript = Transcript(0)

    # ---- clients --------------------------------------------------------------------------------

    def attach(
        self, client: Client, *, history: bool, last_event_id: int | None = None
    ) -> Subscription:
        """Let a client follow the session; the caller adds the subscription to an outlet.

        ``history``: from the beginning (transcript, then the ring). Else from the ring's end, or
        from behind ``last_event_id``. Raises ``subscriber_limit_exceeded``.
        """
        self.admit_reader()
        ring = self.ring
        lines: list[bytes] = []
        resumed = last_event_id is not None and ring.first_id - 1 <= last_event_id <= ring.last_id
        if resumed and last_event_id is not None:
            cursor = last_event_id
        elif history:
            cursor = ring.first_id - 1
            lines = self._history() if cursor > 0 else []
        else:
            cursor = ring.last_id
        sub = Subscription(self.id, ring, cursor, origin=client.origin, history=lines)
        if resumed:
            sub.own_from = cursor  # what it missed is no history: its own words it has
        self.subs.add(sub)
        self.clients[client.id] = client
        self.parties.join(client.client_id, client.origin, client.identity)
        self.touch()
        return sub

    def rebase(self, sub: Subscription) -> None:
        """Fix history and cursor again for a subscription of which nothing has been sent yet."""
        cursor = self.ring.first_id - 1
        sub.history.clear()
        if cursor > 0:
            sub.history.extend(self._history())
        sub.cursor = sub.announced = cursor
        sub.own_from = self.ring.last_id

    def _history(self) -> list[bytes]:
        lines = self.transcript.lines()
        if self.transcript.truncated:
            notice = {"kind": "history_truncated", "data": {"sessionId": self.id}}
            lines.insert(0, notification_bytes("_qwen/notify", notice))
        return lines

    def detach(self, client: Client, sub: Subscription) -> None:
        """The client leaves. Neither a turn nor an open question of the session notices."""
        self.subs.discard(sub)
        if self.clients.get(client.id) is client:
            del self.clients[client.id]
            self.parties.leave(client.client_id)
        self.touch()
        self.drained()

    def touch(self) -> None:
        self.last_used = trio.current_time()
        self.updated_at = time.time()
