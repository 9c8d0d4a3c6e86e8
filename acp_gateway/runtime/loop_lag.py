"""How late the event loop is: what everybody waits when one step of somebody takes too long."""

from __future__ import annotations

from typing import Final

import trio

from acp_gateway.core.tally import SHORT, Histogram

OFTEN: Final = 1.0
SELDOM: Final = 10.0
"""Seconds between two looks, while somebody asks for the figures and while nobody does: each look
wakes a daemon that has nothing else to do."""
ASKED_FOR: Final = 300.0
"""Seconds that a question counts."""


class LoopLag:
    def __init__(self) -> None:
        self.seconds = Histogram(SHORT)
        """How much later than asked for a sleeper was woken."""
        self._asked = -ASKED_FOR

    def ask(self) -> None:
        """Somebody wants to know."""
        self._asked = trio.current_time()

    async def run(self) -> None:
        while True:
            now = trio.current_time()
            due = now + (OFTEN if now - self._asked < ASKED_FOR else SELDOM)
            await trio.sleep_until(due)
            self.seconds.observe(trio.current_time() - due)
