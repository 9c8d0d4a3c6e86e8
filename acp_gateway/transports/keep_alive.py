"""Pings for peers that are silent, by one task for all connections.

Proxies end connections that carry nothing for a minute, and a peer that is gone may never say so.
A task for each connection would cost more than all else that an idle one holds; a look at every
connection now and then more than the pings.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Protocol

import trio

PING_INTERVAL: Final = 50.0
"""Seconds without a byte from the peer."""
PONG_TIMEOUT: Final = 30.0
TICK: Final = 2.0
LONGEST_SLEEP: Final = 10.0
BATCH: Final = 25
"""Pings at a time: those that came together shall not hold up the others together."""
BATCH_PAUSE: Final = 0.05


class Peer(Protocol):
    async def ping(self) -> None:
        """Send something that must be answered; must not raise or block for long."""

    def give_up(self) -> None:
        """It did not answer."""


class KeepAlive:
    def __init__(self) -> None:
        self._silent: OrderedDict[Peer, float] = OrderedDict()
        """Since when; the longest first."""
        self._asked: OrderedDict[Peer, float] = OrderedDict()
        """Since when a pong is awaited; the longest first."""

    def heard(self, peer: Peer) -> None:
        """The peer sent something; from the first call on it is watched."""
        self.forget(peer)
        self._silent[peer] = trio.current_time()

    def forget(self, peer: Peer) -> None:
        """It is gone."""
        if self._silent.pop(peer, None) is None:
            self._asked.pop(peer, None)

    async def run(self) -> None:
        while True:
            await trio.sleep(self._rest(trio.current_time()))
            now = trio.current_time()
            while self._asked and now - next(iter(self._asked.values())) > PONG_TIMEOUT:
                self._asked.popitem(last=False)[0].give_up()
            for _ in range(BATCH):
                now = trio.current_time()
                if not self._silent or now - next(iter(self._silent.values())) < PING_INTERVAL:
                    break
                peer, _ = self._silent.popitem(last=False)
                self._asked[peer] = now
                await peer.ping()

    def _rest(self, now: float) -> float:
        if not self._silent:
            return LONGEST_SLEEP if not self._asked else TICK
        due = next(iter(self._silent.values())) + PING_INTERVAL - now
        if due <= 0:
            return BATCH_PAUSE
        return min(max(due, TICK), TICK if self._asked else LONGEST_SLEEP)
