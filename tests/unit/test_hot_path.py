"""What one streaming update costs, counted in calls and not in time.

The way of an update is: the agent's line -> one peek -> one record in the ring -> one frame for
each framing -> one joined batch for each subscriber. A parse more, a task, a copy or an encoding
for each event or each subscriber shows here as calls.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import pytest
import trio

from acp_gateway.config import Settings
from acp_gateway.core.outlet import Outlet, Subscription
from acp_gateway.core.turn_queue import Turn
from acp_gateway.runtime.agent_rpc import AgentLink, AgentRpc
from acp_gateway.runtime.ring_budget import RingBudget
from acp_gateway.runtime.session_feed import SessionFeed
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.transports.outlets import sse_outlet, ws_outlet
from acp_gateway.wire.frames import sse_message, ws_text
from acp_gateway.wire.json_codec import dumps
from acp_gateway.wire.ndjson import LineSplitter

UPDATES = 1_000
PER_READ = 100
"""Lines that one read of the agent's pipe brings."""
TEXT = "word " * 20


class Rig:
    """An agent's link and a session without process, pool and task; readers that never block."""

    def __init__(self, outlets: list[Callable[[Wakeup], Outlet]], text: str = TEXT) -> None:
        settings = Settings()
        self.host = AgentRpc("agent")
        self.session = SessionFeed("s", settings, RingBudget(settings.total_ring_bytes))
        self.host.adopt("s", cast(AgentLink, self.session))
        turn = Turn("p", {}, origin="c0")
        self.session.queue.submit(turn, "s")
        self.session.queue.start_next()
        self.outlets: list[Outlet] = []
        for number, make in enumerate(outlets):
            outlet = make(Wakeup())
            outlet.pumped = True
            sub = Subscription("s", self.session.ring, 0, origin=f"c{number}")
            self.session.subs.add(sub)
            outlet.add(sub)
            self.outlets.append(outlet)
        update = {
            "sessionUpdate": "agent_message_chunk",
            "content": {"type": "text", "text": text},
        }
        params = {"sessionId": "s", "update": update}
        self.line = dumps({"jsonrpc": "2.0", "method": "session/update", "params": params})
        self.splitter = LineSplitter(settings.max_agent_line_bytes)
        self.got: list[list[bytes]] = [[] for _ in outlets]

    def run(self, updates: int) -> None:
        """What the reader of the pipe and the writers of the clients do."""
        data = (self.line + b"\n") * PER_READ
        for _ in range(updates // PER_READ):
            for link in self.host.handle(self.splitter.feed(data)):
                link.flush()
                assert not link.over_flow
            for outlet, got in zip(self.outlets, self.got, strict=True):
                while parts := outlet.collect():
                    got.append(b"".join(parts))


def counted(run: Callable[[], None]) -> tuple[Counter[str], Counter[str]]:
    """(calls of Python functions by name, calls of built-in functions by name)"""
    python: Counter[str] = Counter()
    built_in: Counter[str] = Counter()

    def on_event(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            python[frame.f_code.co_qualname] += 1
        elif event == "c_call":
            built_in[arg.__name__] += 1

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        run()
    finally:
        sys.setprofile(before)
    return python, built_in


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio, "current_time", lambda: 0.0)


def two_sockets_and_a_stream() -> list[Callable[[Wakeup], Outlet]]:
    return [ws_outlet, lambda wakeup: ws_outlet(wakeup, cursor=True), sse_outlet]


def test_everything_arrives_as_the_agent_wrote_it() -> None:
    """Else the counts below would count nothing."""
    rig = Rig(two_sockets_and_a_stream())
    rig.run(UPDATES)
    plain, told, stream = (b"".join(got) for got in rig.got)
    assert plain == ws_text(rig.line) * UPDATES
    assert (
        told.count(rig.line) == UPDATES
        and told.count(b"_acp_gateway/cursor") >= UPDATES // PER_READ
    )
    assert stream == b"".join(sse_message(rig.line, id) for id in range(1, UPDATES + 1))


def test_one_update_is_so_many_calls() -> None:
    rig = Rig(two_sockets_and_a_stream())
    python, built_in = counted(lambda: rig.run(UPDATES))
    # One parse, no encoding (but of a cursor for each batch).
    assert built_in["decode"] == UPDATES
    assert built_in["encode"] <= 3 * UPDATES // PER_READ + 20
    # No function of ours runs for each update but what makes its frame: a header for each of the
    # two WebSocket framings (which share), a whole event for the stream. The rest is what a batch
    # costs, over all; one call more for each update fails.
    per_update = {name: count for name, count in python.items() if count >= UPDATES}
    assert set(per_update) == {"ws_head", "sse_message"}
    assert python.total() / UPDATES <= 3.6, python.most_common(12)
    assert built_in.total() / UPDATES <= 8.5, built_in.most_common(12)


def test_another_subscriber_costs_no_work_for_each_update() -> None:
    def calls(subscribers: int) -> int:
        rig = Rig([ws_outlet] * subscribers)
        return sum(map(Counter.total, counted(lambda: rig.run(UPDATES))))

    # The frames are joined once; a subscriber costs a few calls for each batch of a hundred.
    assert (calls(21) - calls(1)) / 20 / UPDATES <= 0.6


def test_bytes_are_not_copied_on_their_way_into_the_ring() -> None:
    rig = Rig([ws_outlet])
    lines = rig.splitter.feed((rig.line + b"\n") * 3)
    rig.host.handle(lines)
    assert all(a.line is b for a, b in zip(rig.session.ring.read(0, 3), lines, strict=True))
