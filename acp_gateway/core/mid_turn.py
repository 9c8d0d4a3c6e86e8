"""Messages for a turn that is running: taken by its agent when it asks, or the next prompt.

What became of a message is remembered for a while, so that a client that missed it does not send
it again.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import attrs

from acp_gateway.protocol.errors import ErrorKind, GatewayError

MAX_MESSAGES: Final = 64
REMEMBERED: Final = 256


@attrs.frozen(kw_only=True)
class MidTurnMessage:
    message_id: str
    text: str
    content: tuple[dict[str, Any], ...]
    """Content blocks, the text among them."""
    client: str | None


class MidTurnQueue:
    def __init__(self) -> None:
        self._waiting: dict[str, MidTurnMessage] = {}
        self.settled: deque[str] = deque(maxlen=REMEMBERED)
        """Ids that the agent took, or that were removed."""
        self.promoted: deque[str] = deque(maxlen=REMEMBERED)
        """Ids that became prompts."""

    @property
    def waiting(self) -> tuple[MidTurnMessage, ...]:
        return tuple(self._waiting.values())

    def knows(self, message_id: str) -> bool:
        """It waits, or what became of it is remembered."""
        return (
            message_id in self._waiting or message_id in self.settled or message_id in self.promoted
        )

    def add(self, message: MidTurnMessage) -> None:
        """The same id again changes nothing. Raises ``prompt_queue_full``."""
        id = message.message_id
        if self.knows(id):
            return
        if len(self._waiting) >= MAX_MESSAGES:
            raise GatewayError(
                ErrorKind.PROMPT_QUEUE_FULL,
                f"{MAX_MESSAGES} messages wait for the running turn",
                remedy="wait until the agent has taken them",
                limit=MAX_MESSAGES,
            )
        self._waiting[id] = message

    def remove(self, message_id: str) -> bool:
        if self._waiting.pop(message_id, None) is None:
            return False
        self.settled.append(message_id)
        return True

    def take(self) -> tuple[MidTurnMessage, ...]:
        """All that wait, for the agent."""
        taken = self.waiting
        self.settled.extend(self._waiting)
        self._waiting.clear()
        return taken

    def promote(self, message: MidTurnMessage) -> None:
        """It has become a prompt."""
        del self._waiting[message.message_id]
        self.promoted.append(message.message_id)
