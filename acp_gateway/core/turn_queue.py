"""The prompts of one session: first in, first out, one running, each settled exactly once.

Pure: effects are return values, waiting is somebody else's. States of a turn: queued -> running ->
settled, or queued -> settled when it is withdrawn.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from acp_gateway.core.identity import OPEN, Identity
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.wire.json_codec import dumps

REMEMBERED: Final = 64
"""Settled turns kept for a repeated prompt with the same key."""


def _digest(prompt: Any) -> bytes:
    return hashlib.sha256(dumps(prompt)).digest()


class TurnState(Enum):
    QUEUED = "queued"
    RUNNING = "running"
    SETTLED = "settled"


class Turn:
    """One prompt. ``outcome`` is the prompt's result object or the error that ended it."""

    def __init__(
        self,
        prompt_id: str,
        params: dict[str, Any],
        *,
        origin: str | None,
        client: str | None = None,
        identity: Identity = OPEN,
        key: str | None = None,
        asked_at: float = 0.0,
        time_limit: float | None = None,
    ) -> None:
        self.prompt_id = prompt_id
        self.params = params
        self.origin = origin
        """The connection that asked; its own queued turns go with its cancel."""
        self.client = client
        """The client id that asked; None for an anonymous one."""
        self.who = identity.name
        self.party = identity.party
        self.asked_at = asked_at
        """Unix time, seconds."""
        self.began_at = 0.0
        """Unix time when it started; 0 before."""
        self.time_limit = time_limit
        """Seconds that it may run."""
        self.watermark = 0
        """Id of the last event before anything of this turn."""
        self.first_event = 0
        """Id of the last event before it started to run."""
        self.waited = False
        """It had to wait for others: the queue's events are published for it."""
        self.cancelled_at = 0.0
        self.span: Any = None
        """Its span (`runtime.tracing.Span`), from when it was admitted."""
        self.key = key
        """Idempotency key: a repeated prompt with this key joins this turn."""
        self.state = TurnState.QUEUED
        self.cancel_requested = False
        self.outcome: Any | GatewayError | None = None
        self._digest = b"" if key is None else _digest(params.get("prompt"))
        self._observers: list[Callable[[Turn], None]] = []

    @property
    def settled(self) -> bool:
        return self.state is TurnState.SETTLED

    @property
    def text(self) -> str:
        """What the user wrote: the text blocks, joined."""
        blocks = self.params.get("prompt")
        texts = (
            block.get("text")
            for block in (blocks if isinstance(blocks, list) else ())
            if isinstance(block, dict)
        )
        return "\n".join(text for text in texts if isinstance(text, str))

    def when_settled(self, observer: Callable[[Turn], None]) -> None:
        """Call ``observer`` in the moment of settling (at once when it has passed)."""
        if self.settled:
            observer(self)
        else:
            self._observers.append(observer)

    def forget_observer(self, observer: Callable[[Turn], None]) -> None:
        if observer in self._observers:
            self._observers.remove(observer)

    def asks(self, prompt: Any) -> bool:
        """Is this the prompt that it was made for?"""
        return self._digest == _digest(prompt)

    def _settle(self, outcome: Any | GatewayError) -> None:
        self.state = TurnState.SETTLED
        self.outcome = outcome
        observers, self._observers = self._observers, []
        for observer in observers:
            observer(self)


class TurnQueue:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Prompts that may run or wait at once."""
        self.running: Turn | None = None
        self._waiting: deque[Turn] = deque()
        self._by_key: OrderedDict[str, Turn] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting) + (self.running is not None)

    @property
    def waiting(self) -> tuple[Turn, ...]:
        return tuple(self._waiting)

    def find(self, key: str | None) -> Turn | None:
        """The turn that an earlier prompt with this key made, while it is remembered."""
        return self._by_key.get(key) if key is not None else None

    def turns(self) -> tuple[Turn, ...]:
        """The running turn, then the waiting ones."""
        return (*(() if self.running is None else (self.running,)), *self._waiting)

    def get(self, prompt_id: str) -> Turn | None:
        """A turn that runs or waits."""
        return next((turn for turn in self.turns() if turn.prompt_id == prompt_id), None)

    def submit(self, turn: Turn, session_id: str) -> None:
        """Admit a turn at the end. Raises ``prompt_queue_full``."""
        if 0 < self.limit <= len(self):
            raise GatewayError(
                ErrorKind.PROMPT_QUEUE_FULL,
                f'Prompt queue full for session "{session_id}" ({len(self)}/{self.limit} pending)',
                remedy="wait for a running prompt to end, or raise --max-queued-prompts",
                sessionId=session_id,
                limit=self.limit,
                pendingCount=len(self),
            )
        self._waiting.append(turn)
        if turn.key is not None:
            self._by_key[turn.key] = turn
            while len(self._by_key) > REMEMBERED + self.limit:
                oldest = next(iter(self._by_key.values()))
                if not oldest.settled:
                    break
                self._by_key.popitem(last=False)

    def start_next(self) -> Turn | None:
        """The next turn, now running; None while one runs or none waits."""
        if self.running is not None or not self._waiting:
            return None
        turn = self._waiting.popleft()
        turn.state = TurnState.RUNNING
        self.running = turn
        return turn

    def settle(self, turn: Turn, outcome: Any | GatewayError) -> bool:
        """End a turn. False when it had ended before: the first outcome stands."""
        if turn.settled:
            return False
        if self.running is turn:
            self.running = None
        elif turn in self._waiting:
            self._waiting.remove(turn)
        turn._settle(outcome)
        turn.params = {}  # a turn is remembered for its key; what was said is not needed
        return True

    def withdraw(self, mine: Callable[[Turn], bool], outcome: Any) -> list[Turn]:
        """Settle the waiting turns that ``mine`` picks."""
        gone = [turn for turn in self._waiting if mine(turn)]
        for turn in gone:
            self.settle(turn, outcome)
        return gone
