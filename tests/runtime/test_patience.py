"""Waits that one task watches, and the pings of silent WebSockets."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import trio

from acp_gateway.transports.keep_alive import BATCH, PING_INTERVAL, KeepAlive
from acp_gateway.transports.patience import TICK, Patience


async def test_a_wait_strikes_once_unless_it_was_over(autojump_clock: Any) -> None:
    struck: list[str] = []
    patience = Patience()
    patience.wait_for("late", 5, lambda: struck.append("late"))
    patience.wait_for("in time", 5, lambda: struck.append("in time"))
    patience.over("in time")
    patience.over("never begun")
    patience.strike(trio.current_time() + 4.9)
    assert struck == []
    for _ in range(2):
        patience.strike(trio.current_time() + 5)
    assert struck == ["late"]


async def test_a_strike_may_begin_another_wait(autojump_clock: Any) -> None:
    struck: list[int] = []
    patience = Patience()

    def again() -> None:
        struck.append(1)
        patience.wait_for("it", 5, again)

    patience.wait_for("it", 5, again)
    patience.strike(trio.current_time() + 5)
    assert struck == [1]


async def test_the_watch_wakes_when_there_is_something_to_watch(autojump_clock: Any) -> None:
    struck: list[float] = []
    patience = Patience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(patience.run)
        for _ in range(2):
            await trio.sleep(100)
            patience.wait_for("it", 5, lambda: struck.append(trio.current_time()))
            began = trio.current_time()
            await trio.sleep(10)
            assert began + 5 <= struck.pop() <= began + 5 + TICK and not struck
        nursery.cancel_scope.cancel()


class _Peer:
    def __init__(self) -> None:
        self.pings: list[float] = []
        self.ended = 0

    async def ping(self) -> None:
        self.pings.append(trio.current_time())

    def give_up(self) -> None:
        self.ended += 1


async def test_silent_peers_are_pinged_and_dead_ones_ended(autojump_clock: Any) -> None:
    peers = {name: _Peer() for name in ("answers", "talks", "dead", "gone", "gone late")}
    alive = KeepAlive()
    began = trio.current_time()
    for peer in peers.values():
        alive.heard(peer)
    alive.forget(peers["gone"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alive.run)
        while trio.current_time() < began + 4 * PING_INTERVAL:
            await trio.sleep(1)
            alive.heard(peers["talks"])
            answering = peers["answers"]
            if answering.pings and trio.current_time() - answering.pings[-1] < 1.5:
                alive.heard(answering)
            if peers["gone late"].pings:
                alive.forget(peers["gone late"])
        nursery.cancel_scope.cancel()
    assert {name: peer.ended for name, peer in peers.items() if peer.ended} == {"dead": 1}
    assert {name: len(peer.pings) for name, peer in peers.items()} == {
        "answers": 3,
        "talks": 0,
        "dead": 1,
        "gone": 0,
        "gone late": 1,
    }
    gaps = [b - a for a, b in pairwise([began, *peers["answers"].pings])]
    assert all(PING_INTERVAL <= gap <= PING_INTERVAL + 5 for gap in gaps), gaps


async def test_many_that_came_together_are_pinged_in_batches(autojump_clock: Any) -> None:
    peers = [_Peer() for _ in range(4 * BATCH)]
    alive = KeepAlive()
    for peer in peers:
        alive.heard(peer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alive.run)
        await trio.sleep(PING_INTERVAL + 5)
        nursery.cancel_scope.cancel()
    moments = Counter(time for peer in peers for time in peer.pings)
    assert sum(moments.values()) == len(peers) and max(moments.values()) <= BATCH
