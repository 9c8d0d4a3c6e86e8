"""A stream that was lost goes on behind ``Last-Event-ID``, with the answers among the events."""

from __future__ import annotations

from acp_gateway.core.event_ring import EventRing, Kind, Record
from acp_gateway.core.outlet import Outlet, Slot, Subscription


def outlet_with(sub: Subscription, remember_bytes: int) -> Outlet:
    outlet = Outlet(
        lambda records: [each.line + b" " for each in records],
        lambda payload: payload + b" ",
        lambda: None,
        max_bytes=1000,
        remember_bytes=remember_bytes,
    )
    outlet.add(sub)
    return outlet


def answer(outlet: Outlet, sub: Subscription, payload: bytes) -> None:
    slot = Slot(sub)
    slot.fix(sub.ring.last_id)
    outlet.fill(slot, payload)


def sent(outlet: Outlet) -> list[bytes]:
    found = b""
    while parts := outlet.collect():
        found += b"".join(parts)
    return found.split()


def test_events_and_answers_come_again_in_their_order() -> None:
    ring = EventRing(100, 10**6)
    sub = Subscription("s", ring, 0)
    outlet = outlet_with(sub, 1000)
    for number in range(1, 7):
        ring.append(Record(Kind.UPDATE, "x", b"%d" % number, 0.0))
        if number % 2 == 0:
            answer(outlet, sub, b"a%d" % number)
    whole = [b"1", b"2", b"a2", b"3", b"4", b"a4", b"5", b"6", b"a6"]
    assert sent(outlet) == whole
    outlet.rewind(sub, 3)
    answer(outlet, sub, b"new")
    assert sent(outlet) == [*whole[4:], b"new"]
    assert (outlet.waiting_bytes, outlet.waiting_messages) == (0, 0)
    outlet.rewind(sub, 0)
    assert sent(outlet) == [*whole, b"new"]


def test_what_is_remembered_is_bounded() -> None:
    ring = EventRing(100, 10**6)
    sub = Subscription("s", ring, 0)
    outlet = outlet_with(sub, 10)
    for number in range(5):
        answer(outlet, sub, b"%d-----" % number)
    assert len(sent(outlet)) == 5
    outlet.rewind(sub, 0)
    assert sent(outlet) == [b"4-----"]
