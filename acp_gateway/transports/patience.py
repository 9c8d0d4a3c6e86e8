"""Waits that mostly end by themselves, watched by one task for all connections.

A deadline of trio's for each would cost a new connection more than the wait itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

TICK: Final = 1.0
"""How late a deadline may strike, in seconds."""


class Patience:
    def __init__(self) -> None:
        self._until: dict[object, tuple[float, Callable[[], None]]] = {}
        self._begun: trio.Event | None = None
        """What `run` waits for while there is nothing to watch."""

    def wait_for(self, what: object, seconds: float, strike: Callable[[], None]) -> None:
        """Call ``strike`` unless it was `over` by then. One wait for each ``what``."""
        self._until[what] = (trio.current_time() + seconds, strike)
        if self._begun is not None:
            self._begun.set()
            self._begun = None

    def over(self, what: object) -> None:
        self._until.pop(what, None)

    async def run(self) -> None:
        while True:
            if not self._until:
                self._begun = trio.Event()
                await self._begun.wait()
            await trio.sleep(TICK)
            self.strike(trio.current_time())

    def strike(self, now: float) -> None:
        """End what has waited for too long."""
        for what, (deadline, strike) in tuple(self._until.items()):
            if now >= deadline:
                del self._until[what]
                strike()
