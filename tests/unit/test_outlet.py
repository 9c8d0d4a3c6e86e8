"""One stream to a client: history, events, answers and messages in the promised order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from acp_gateway.core import outlet as module
from acp_gateway.core.event_ring import EventRing, Kind, Record
from acp_gateway.core.outlet import BATCH_BYTES, Outlet, Slot, Subscription

SESSIONS = ("s1", "s2", "s3")
ME = "me"


def framing(records: Sequence[Record]) -> list[bytes]:
    return [b"R:" + each.line + b"\n" for each in records]


def frame(payload: bytes) -> bytes:
    return payload + b"\n"


def new_outlet(**more: Any) -> Outlet:
    return Outlet(framing, frame, lambda: None, max_bytes=1000, **more)


def append(ring: EventRing, session_id: str, origin: str | None = None, pad: int = 0) -> Record:
    kind = Kind.ECHO if origin else Kind.UPDATE
    line = b"%b:%d:%b" % (session_id.encode(), ring.last_id + 1, b"." * pad)
    record = Record(kind, "k", line, 0.0, None, origin)
    ring.append(record)
    return record


class Followed:
    """The model of one subscription, kept up by what came out of the outlet."""

    def __init__(self, sub: Subscription, history: list[bytes]) -> None:
        self.sub = sub
        self.pos = sub.cursor
        """Every event up to here has come, or was this client's own, or was lost and said so."""
        self.told = sub.cursor
        self.own_from = sub.ring.last_id
        self.history = list(history)
        self.slots: list[Answer] = []
        """Fixed, in order."""


class Answer:
    def __init__(self, name: bytes, followed: Followed | None) -> None:
        self.name = name
        self.followed = followed
        self.watermark: int | None = None
        self.state = "open"
        self.slot = Slot(followed.sub) if followed else Slot(None)


class OutletMachine(RuleBasedStateMachine):
    answers = Bundle("answers")

    @initialize(batch=st.integers(1, 120))
    def start(self, batch: int) -> None:
        module.BATCH_BYTES = batch  # so that batches end everywhere
        self.batch = batch
        self.outlet = new_outlet(
            cursor_line=lambda sub: b"C:%b:%d" % (sub.session_id.encode(), sub.cursor),
            resync_line=lambda s: b"X:%b:%d" % (s.session_id.encode(), s.ring.first_id),
        )
        self.outlet.pumped = True
        self.rings = {each: EventRing(4, 10**6) for each in SESSIONS}
        self.records: dict[str, list[Record]] = {each: [] for each in SESSIONS}
        self.following: dict[str, Followed] = {}
        self.waiting: list[bytes] = []
        """Free messages and filled answers that have not come out."""
        self.number = 0
        self.all_answers: list[Answer] = []

    def teardown(self) -> None:
        try:
            if hasattr(self, "outlet"):
                self._finish()
        finally:
            module.BATCH_BYTES = BATCH_BYTES

    def _finish(self) -> None:
        """Nothing is lost: when all answers are known, everything comes out."""
        for answer in self.all_answers:
            if answer.state == "open":
                self._fill(answer)
        for _ in range(10_000):
            if not self._collect():
                break
        else:
            raise AssertionError("it never ends")
        assert self.waiting == []
        assert (self.outlet.waiting_bytes, self.outlet.waiting_messages) == (0, 0)
        for session_id, followed in self.following.items():
            assert followed.pos == self.rings[session_id].last_id
            assert not followed.history and not followed.slots
            assert followed.told == followed.pos  # a cursor stands behind the last event
            assert (session_id in self.outlet.subs) == (not followed.sub.ended)

    # ---- filling --------------------------------------------------------------------------------

    @rule(session_id=st.sampled_from(SESSIONS), back=st.integers(0, 6), history=st.integers(0, 3))
    def follow(self, session_id: str, back: int, history: int) -> None:
        """From somewhere in the ring, with or without history; another time as well."""
        ring = self.rings[session_id]
        cursor = max(ring.first_id - 1, ring.last_id - back)
        self.number += 1
        lines = [b"H:%b:%d.%d" % (session_id.encode(), self.number, n) for n in range(history)]
        if session_id in self.outlet.subs:
            self._left(session_id)
        sub = Subscription(session_id, ring, cursor, origin=ME, history=lines)
        self.following[session_id] = Followed(sub, lines)
        self.outlet.add(sub)

    @rule(session_id=st.sampled_from(SESSIONS))
    def leave(self, session_id: str) -> None:
        sub = self.outlet.remove(session_id)
        assert (sub is not None) == (session_id in self.following)
        if sub is not None:
            self._left(session_id)

    def _left(self, session_id: str) -> None:
        followed = self.following.pop(session_id)
        for answer in self.all_answers:
            if answer.followed is followed:
                answer.followed = None

    @rule(
        session_id=st.sampled_from(SESSIONS),
        origin=st.sampled_from([None, None, ME, "other"]),
        pad=st.sampled_from([0, 0, 50]),
    )
    def event(self, session_id: str, origin: str | None, pad: int) -> None:
        self.records[session_id].append(append(self.rings[session_id], session_id, origin, pad))

    @rule(session_id=st.sampled_from(SESSIONS))
    def evict(self, session_id: str) -> None:
        """As if this client were stalled: nobody waits for it."""
        ring = self.rings[session_id]
        ring.trim(ring.last_id)

    @rule(session_id=st.sampled_from(SESSIONS))
    def end(self, session_id: str) -> None:
        if session_id in self.following:
            self.following[session_id].sub.ended = True

    @rule(target=answers, session_id=st.sampled_from(SESSIONS), first=st.booleans())
    def ask(self, session_id: str, first: bool) -> Answer:
        self.number += 1
        answer = Answer(b"A:%d" % self.number, self.following.get(session_id))
        followed = answer.followed
        if first and followed is not None and not followed.sub.slots and not followed.sub.read:
            self._fix(answer, 0)  # the answer to session/new comes before all events
        self.all_answers.append(answer)
        return answer

    @rule(answer=answers)
    def fix(self, answer: Answer) -> None:
        if answer.followed is not None:
            self._fix(answer, answer.followed.sub.ring.last_id)
        else:
            answer.slot.fix(0)

    def _fix(self, answer: Answer, watermark: int) -> None:
        answer.slot.fix(watermark)
        if answer.watermark is None and answer.state == "open" and answer.followed is not None:
            answer.watermark = watermark
            answer.followed.slots.append(answer)

    @rule(answer=answers)
    def fill(self, answer: Answer) -> None:
        if answer.state == "open":
            self._fill(answer)

    def _fill(self, answer: Answer) -> None:
        if answer.followed is not None and answer.watermark is None:
            answer.watermark = answer.followed.sub.ring.last_id
            answer.followed.slots.append(answer)
        answer.state = "filled"
        self.waiting.append(answer.name)
        self.outlet.fill(answer.slot, answer.name)

    @rule(answer=answers)
    def abandon(self, answer: Answer) -> None:
        if answer.state == "open":
            self._gone(answer)
            self.outlet.abandon(answer.slot)

    @rule(answer=answers)
    def recall(self, answer: Answer) -> None:
        possible = answer.state == "filled" and answer.followed is not None
        assert self.outlet.recall(answer.slot) == possible
        if possible:
            self._gone(answer)
            self.waiting.remove(answer.name)

    def _gone(self, answer: Answer) -> None:
        answer.state = "gone"
        if answer.followed is not None and answer in answer.followed.slots:
            answer.followed.slots.remove(answer)

    @rule()
    def send(self) -> None:
        self.number += 1
        payload = b"F:%d" % self.number
        self.waiting.append(payload)
        self.outlet.send(payload)

    # ---- emptying -------------------------------------------------------------------------------

    @rule()
    def collect(self) -> None:
        self._collect()

    def _collect(self) -> bool:
        ended = [each for each in self.outlet.subs if self.outlet.subs[each].ended]
        parts = self.outlet.collect()
        assert all(parts)
        longest = max((len(part) for part in parts), default=0)
        # It closes once it has passed the size; a cursor or two may still follow.
        assert sum(map(len, parts)) < self.batch + longest + 40 * len(SESSIONS)
        for line in b"".join(parts).splitlines():
            kind, _, rest = line.partition(b":")
            getattr(self, f"_got_{kind.decode()}")(line, *rest.split(b":"))
        for session_id in ended:
            if session_id not in self.outlet.subs:
                followed = self.following.get(session_id)
                assert followed is not None and not followed.slots and not followed.history
                self._pass_own(session_id, followed, followed.sub.cursor)
                assert followed.pos == self.rings[session_id].last_id
                self._left(session_id)
        for session_id, followed in self.following.items():
            # Own events make no noise, but they are passed.
            self._pass_own(session_id, followed, followed.sub.cursor)
            assert followed.pos == followed.sub.cursor
        return bool(parts)

    def _pass_own(self, session_id: str, followed: Followed, until: int) -> None:
        while followed.pos < until:
            record = self.records[session_id][followed.pos]
            assert record.origin == ME and record.id > followed.own_from, "an event was left out"
            followed.pos += 1

    def _got_R(self, _: bytes, session: bytes, number: bytes, *__: bytes) -> None:
        session_id, id = session.decode(), int(number)
        followed = self.following[session_id]
        assert not followed.history, "an event overtook the history"
        self._pass_own(session_id, followed, id - 1)
        record = self.records[session_id][id - 1]
        assert record.origin != ME or id <= followed.own_from, "the client's own echo"
        assert followed.pos == id - 1, "an event came twice or out of order"
        followed.pos = id
        for answer in followed.slots:
            assert (answer.watermark or 0) >= id, "an event overtook an answer"

    def _got_H(self, line: bytes, session: bytes, *_: bytes) -> None:
        followed = self.following[session.decode()]
        assert followed.history.pop(0) == line

    def _got_X(self, _: bytes, session: bytes, first: bytes) -> None:
        followed = self.following[session.decode()]
        assert followed.pos + 1 < int(first), "a gap was told that is none"
        followed.pos = int(first) - 1

    def _got_C(self, _: bytes, session: bytes, cursor: bytes) -> None:
        followed = self.following[session.decode()]
        assert not followed.history
        self._pass_own(session.decode(), followed, int(cursor))
        assert followed.pos == int(cursor) >= followed.told
        followed.told = int(cursor)

    def _got_A(self, line: bytes, *_: bytes) -> None:
        self.waiting.remove(line)
        (answer,) = (each for each in self.all_answers if each.name == line)
        assert answer.state == "filled"
        answer.state = "sent"
        followed = answer.followed
        if followed is None:
            return
        assert not followed.history, "an answer overtook the history"
        assert followed.slots.pop(0) is answer, "answers changed places"
        watermark = answer.watermark or 0
        self._pass_own(followed.sub.session_id, followed, watermark)
        assert followed.pos >= watermark, "an answer overtook an event"
        assert followed.told == followed.pos  # a client knows its place before each answer

    def _got_F(self, line: bytes, *_: bytes) -> None:
        self.waiting.remove(line)

    @invariant()
    def what_waits_is_counted_to_the_byte(self) -> None:
        if hasattr(self, "outlet"):
            assert self.outlet.waiting_bytes == sum(map(len, self.waiting))
            assert self.outlet.waiting_messages == len(self.waiting)
            assert self.outlet.over == (self.outlet.waiting_bytes > self.outlet.max_bytes)


TestOutlet = OutletMachine.TestCase
TestOutlet.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def drain(outlet: Outlet) -> list[bytes]:
    lines: list[bytes] = []
    while parts := outlet.collect():
        lines += b"".join(parts).splitlines()
    return lines


def test_an_answer_stands_between_what_came_before_and_after() -> None:
    outlet, ring = new_outlet(), EventRing(100, 10**6)
    sub = Subscription("s", ring, 0, history=[b"H"])
    outlet.add(sub)
    append(ring, "s")
    slot = Slot(sub)
    slot.fix(ring.last_id)
    append(ring, "s")
    assert drain(outlet) == [b"H", b"R:s:1:"]  # held until the answer is known
    outlet.fill(slot, b"A")
    assert drain(outlet) == [b"A", b"R:s:2:"]


def test_an_answer_that_nobody_gives_holds_nothing_back() -> None:
    outlet, ring = new_outlet(), EventRing(100, 10**6)
    sub = Subscription("s", ring, 0)
    outlet.add(sub)
    slot = Slot(sub)
    slot.fix(0)
    append(ring, "s")
    assert drain(outlet) == []
    outlet.abandon(slot)
    assert drain(outlet) == [b"R:s:1:"]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_answer_survives_its_subscription(fixed: bool, when: str) -> None:
    outlet, ring = new_outlet(), EventRing(100, 10**6)
    sub = Subscription("s", ring, 0)
    outlet.add(sub)
    append(ring, "s")
    slot = Slot(sub)
    if fixed:
        slot.fix(1)
    if when == "before":
        outlet.fill(slot, b"A")
    # The session ended and is loaded again before the old stream was read.
    outlet.add(Subscription("s", ring, 1, history=[b"H"]))
    assert sub.outlet is None
    if when == "after":
        outlet.fill(slot, b"A")
    assert drain(outlet) == [b"A", b"H"]
    assert outlet.waiting_bytes == 0


def test_the_client_is_told_where_history_ends_and_where_it_stands_behind_a_gap() -> None:
    outlet = new_outlet(cursor_line=lambda sub: b"C:%d" % sub.cursor, resync_line=lambda sub: b"X")
    ring = EventRing(2, 10**6)
    for _ in range(5):
        append(ring, "s")
    ring.trim(5)
    outlet.add(Subscription("s", ring, 3, history=[b"H"]))
    assert drain(outlet) == [b"H", b"C:3", b"R:s:4:", b"R:s:5:", b"C:5"]
    for _ in range(3):
        append(ring, "s")
    ring.trim(8)
    assert drain(outlet) == [b"X", b"C:6", b"R:s:7:", b"R:s:8:", b"C:8"]


def test_cursors_are_told_once_they_are_asked_for() -> None:
    outlet, ring = new_outlet(), EventRing(100, 10**6)
    outlet.add(Subscription("s", ring, 0))
    append(ring, "s")
    assert drain(outlet) == [b"R:s:1:"]
    outlet.tell_cursors(lambda sub: b"C:%d" % sub.cursor)
    append(ring, "s")
    assert drain(outlet) == [b"R:s:2:", b"C:2"]
    assert drain(outlet) == []


def test_only_own_echoes_after_attaching_are_left_out_and_make_no_empty_batch() -> None:
    outlet, ring = new_outlet(), EventRing(100, 10**6)
    append(ring, "s", ME)
    sub = Subscription("s", ring, 0, origin=ME)
    outlet.add(sub)
    append(ring, "s", ME)
    assert drain(outlet) == [b"R:s:1:"]
    append(ring, "s", ME)
    assert outlet.collect() == [] and sub.cursor == 3 and sub.caught_up


def test_nobody_starves_behind_a_flood() -> None:
    outlet = new_outlet()
    names = ("flood1", "small", "flood2", *(f"idle{n}" for n in range(20)))
    rings = {name: EventRing(10**6, 10**9) for name in names}
    for name, ring in rings.items():
        outlet.add(Subscription(name, ring, 0))
        for _ in range(400 if "flood" in name else int(name == "small")):
            append(ring, name, pad=10_000)
    served: list[set[bytes]] = []
    while parts := outlet.collect():
        size = sum(map(len, parts))
        assert size <= BATCH_BYTES + 2 * 10_100
        served.append({line.split(b":")[1] for line in b"".join(parts).splitlines()})
    # Whoever has something is served within as many batches as there are others that have.
    assert any(b"small" in batch for batch in served[:2])
    both = 2 * (400 * 10_000 // BATCH_BYTES) - 3
    for start in range(both - 2):
        assert {b"flood1", b"flood2"} <= served[start] | served[start + 1]


def test_free_messages_do_not_make_a_batch_endless() -> None:
    outlet = new_outlet()
    for _ in range(5):
        outlet.send(b"x" * BATCH_BYTES)
    assert [len(outlet.collect()) for _ in range(6)] == [1, 1, 1, 1, 1, 0]


def test_an_ended_session_disappears_once_it_was_read() -> None:
    outlet, ring = new_outlet(), EventRing(100, 10**6)
    sub = Subscription("s", ring, 0)
    outlet.add(sub)
    append(ring, "s")
    slot = Slot(sub)
    slot.fix(1)
    sub.ended = True
    assert drain(outlet) == [b"R:s:1:"] and "s" in outlet.subs
    outlet.fill(slot, b"A")
    assert drain(outlet) == [b"A"] and outlet.subs == {}


def test_whatever_may_be_collected_wakes_the_writer() -> None:
    wakes: list[int] = []
    outlet = Outlet(framing, frame, lambda: wakes.append(1), max_bytes=10)
    sub = Subscription("s", EventRing(1, 1), 0)
    slots = [Slot(sub), Slot(sub)]
    for act in (
        lambda: outlet.add(sub),
        lambda: outlet.send(b"x"),
        lambda: outlet.fill(slots[0], b"y"),
        lambda: outlet.abandon(slots[1]),
        lambda: outlet.remove("s"),
    ):
        wakes.clear()
        act()
        assert wakes
    with suppress(KeyError):
        assert outlet.remove("s") is None


def test_only_a_reader_that_moves_holds_up_its_session() -> None:
    outlet = new_outlet()
    assert not outlet.progressing(0.0, 2.0)  # nobody reads it
    outlet.pumped = True
    assert outlet.progressing(1e9, 2.0)  # no write is blocked, whatever the lag
    outlet.write_began(10.0)
    assert outlet.progressing(11.9, 2.0) and not outlet.progressing(12.0, 2.0)
    outlet.write_moved(11.0)
    assert outlet.progressing(12.9, 2.0) and not outlet.progressing(13.0, 2.0)
    outlet.write_done()
    assert outlet.progressing(1e9, 2.0)
    outlet.pumped = False
    assert not outlet.progressing(0.0, 2.0)
