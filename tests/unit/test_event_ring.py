"""The ring: numbered without gaps, kept as far as the floor and the caps say, read by cursor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from acp_gateway.core.event_ring import BLOCK, EventRing, Framing, Kind, Record

READERS = ("a", "b", "c")


def frame(records: Sequence[Record]) -> list[bytes]:
    return [b"<%d:%b>" % (each.id, each.line) for each in records]


def other_frame(records: Sequence[Record]) -> list[bytes]:
    return [b"(%d)" % each.id for each in records]


def read(ring: EventRing, *args: Any) -> tuple[bytes, int]:
    parts, cursor = ring.read_framed(*args)
    return b"".join(parts), cursor


def record(line: bytes = b"x", origin: str | None = None) -> Record:
    return Record(Kind.ECHO if origin else Kind.UPDATE, "k", line, 0.0, None, origin)


class RingMachine(RuleBasedStateMachine):
    """Readers at different places, each skipping its own echoes, over a ring that is trimmed."""

    @initialize(max_events=st.integers(0, 90), max_bytes=st.integers(0, 400))
    def start(self, max_events: int, max_bytes: int) -> None:
        self.evicted: list[Record] = []
        self.ring = EventRing(max_events, max_bytes, self.evicted.extend)
        self.all: list[Record] = []
        self.cursors = dict.fromkeys(READERS, 0)
        self.got: dict[str, bytes] = dict.fromkeys(READERS, b"")
        self.due: dict[str, bytes] = dict.fromkeys(READERS, b"")

    def _append(self, line: bytes, origin: str | None) -> None:
        each = record(line, origin)
        assert self.ring.append(each) == len(self.all) + 1
        self.all.append(each)
        for reader in READERS:
            if origin != reader:
                self.due[reader] += frame([each])[0]

    @rule(size=st.integers(0, 12), origin=st.sampled_from([None, None, None, "a", "b", "z"]))
    def append(self, size: int, origin: str | None) -> None:
        self._append(b"x" * size, origin)

    @rule(count=st.integers(BLOCK - 2, 3 * BLOCK))
    def append_many(self, count: int) -> None:
        for _ in range(count):
            self._append(b"y", None)

    @rule(extra=st.none() | st.integers(0, 300), readers=st.sets(st.sampled_from(READERS)))
    def trim(self, extra: int | None, readers: set[str]) -> None:
        """Some readers make progress and are waited for; the others may fall behind."""
        floor = min((self.cursors[each] for each in readers), default=self.ring.last_id)
        before = len(self.ring)
        self.ring.trim(floor, extra)
        cap = self.ring.max_bytes if extra is None else extra
        if self.ring.first_id <= floor:  # it stopped for no other reason than the caps
            assert len(self.ring) <= self.ring.max_events and self.ring.kept_bytes <= cap
        if len(self.ring) < before:  # and took no more than it had to
            last_out = self.evicted[-1]
            was, size = len(self.ring) + 1, self.ring.kept_bytes + len(last_out.line)
            assert was > self.ring.max_events or size > cap
            assert last_out.id <= floor

    @rule(
        reader=st.sampled_from(READERS),
        budget=st.integers(1, 900),
        ahead=st.integers(0, 2 * BLOCK),
        framing=st.sampled_from([frame, frame, other_frame]),
    )
    def read(self, reader: str, budget: int, ahead: int, framing: Framing) -> None:
        ring, cursor = self.ring, self.cursors[reader]
        stop = cursor + ahead
        if cursor + 1 < ring.first_id:
            # Fell out of the ring: it goes on from the oldest kept record.
            cursor = self.cursors[reader] = ring.first_id - 1
            self.due[reader] = b"".join(frame([r for r in self.all[cursor:] if r.origin != reader]))
            self.got[reader] = b""
            stop = cursor + ahead
        data, after = read(ring, cursor, stop, framing, budget, reader)
        assert cursor <= after <= max(cursor, min(stop, ring.last_id))
        taken = self.all[cursor:after]
        assert data == b"".join(framing([r for r in taken if r.origin != reader]))
        if ahead and cursor < ring.last_id:
            assert after > cursor  # a read makes progress
        # Only one record by itself may be more than the budget.
        assert len(taken) <= 1 or sum(len(r.line) for r in taken) <= budget
        if framing is frame:
            self.cursors[reader] = after
            self.got[reader] += data

    @invariant()
    def ids_and_bytes_are_exact(self) -> None:
        if not hasattr(self, "ring"):
            return
        ring = self.ring
        assert [r.id for r in self.all] == list(range(1, len(self.all) + 1))
        assert [r.id for r in self.evicted] == list(range(1, ring.first_id))
        kept = self.all[len(self.evicted) :]
        assert len(ring) == len(kept) == ring.last_id - ring.first_id + 1
        assert ring.kept_bytes == sum(len(r.line) for r in kept)
        assert ring.total_bytes == sum(len(r.line) for r in self.all)
        assert ring.read(0, ring.last_id) == kept
        for cursor in (
            0,
            ring.first_id - 1,
            *self.cursors.values(),
            ring.last_id,
            ring.last_id + 5,
        ):
            assert ring.lag_bytes(cursor) == sum(len(r.line) for r in kept if r.id > cursor)

    @invariant()
    def readers_have_exactly_what_was_appended(self) -> None:
        for reader, got in getattr(self, "got", {}).items():
            assert self.due[reader].startswith(got)
            if self.cursors[reader] == self.ring.last_id:
                assert got == self.due[reader]

    @precondition(lambda self: hasattr(self, "ring"))
    @rule(cursor=st.integers(0, 300), stop=st.integers(0, 300))
    def a_read_of_any_part_is_that_part(self, cursor: int, stop: int) -> None:
        kept = self.all[len(self.evicted) :]
        assert self.ring.read(cursor, stop) == [r for r in kept if cursor < r.id <= stop]


TestRing = RingMachine.TestCase
TestRing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def filled(count: int, **caps: int) -> EventRing:
    ring = EventRing(caps.get("max_events", 10_000), caps.get("max_bytes", 10**9))
    for _ in range(count):
        ring.append(record())
    return ring


def test_nothing_above_the_floor_goes_whatever_the_caps() -> None:
    ring = filled(100, max_events=10, max_bytes=10)
    ring.trim(30)
    assert (ring.first_id, ring.full) == (31, True)
    ring.trim(100)
    assert (ring.first_id, len(ring), ring.full) == (91, 10, False)
    ring.trim(100, 3)
    assert (len(ring), ring.kept_bytes) == (3, 3)


def test_a_batch_is_joined_once_for_all_readers_of_one_framing() -> None:
    calls: list[int] = []

    def counting(records: Sequence[Record]) -> list[bytes]:
        calls.extend(each.id for each in records)
        return frame(records)

    ring = filled(2 * BLOCK)
    (first,), after = ring.read_framed(0, ring.last_id, counting, 10**6, "a")
    (second,), _ = ring.read_framed(0, ring.last_id, counting, 10**6, "b")
    assert second is first and calls == list(range(1, BLOCK + 1)) and after == BLOCK
    # A reader that started elsewhere comes to the same boundary, and shares from there on.
    _, meets = ring.read_framed(5, ring.last_id, counting, 10**6, "c")
    assert meets == BLOCK


def test_shared_bytes_never_hold_somebodys_own_echo() -> None:
    ring = filled(3)
    ring.append(record(b"mine", "a"))
    for order in (("a", "b", "a"), ("b", "a", "b")):
        for reader in order:
            data, after = read(ring, 0, 4, frame, 10**6, reader)
            assert (b"mine" in data) == (reader != "a") and after == 4


def test_a_batch_cut_short_by_one_budget_is_not_taken_for_the_whole() -> None:
    ring = filled(BLOCK)
    cut, after = read(ring, 0, BLOCK, frame, 10)
    whole, end = read(ring, 0, BLOCK, frame, 10**6)
    assert after < end == BLOCK and whole.startswith(cut) and b"<%d:" % BLOCK in whole


def test_a_shared_batch_does_not_break_a_small_budget() -> None:
    ring = filled(BLOCK)
    whole, _ = read(ring, 0, BLOCK, frame, 10**6)
    data, after = read(ring, 0, BLOCK, frame, 10)
    assert len(whole) > 300 and len(data) < 60 and 0 < after < BLOCK


class Weighed(bytes):
    """Bytes that tell when they are gone."""

    alive = 0

    def __new__(cls, data: bytes) -> Weighed:
        cls.alive += len(data)
        return super().__new__(cls, data)

    def __del__(self) -> None:
        Weighed.alive -= len(self)


@pytest.mark.parametrize("count", [10, 900, 5000])
def test_evicted_bytes_are_free_at_once(count: int) -> None:
    Weighed.alive = 0
    ring = EventRing(10_000, 5_000)
    for _ in range(count):
        ring.append(record(Weighed(b"z" * 1000)))
        ring.trim(ring.last_id)
    assert Weighed.alive == ring.kept_bytes <= 5_000


def test_shared_batches_are_bounded() -> None:
    Weighed.alive = 0
    ring = EventRing(10**6, 10**9)
    for _ in range(100 * BLOCK):
        ring.append(record(b"z" * 1000))
    cursor = 0
    while cursor < ring.last_id:
        (data,), cursor = ring.read_framed(
            cursor, ring.last_id, lambda rs: [Weighed(b"".join(r.line for r in rs))], 10**6
        )
    keep_alive = len(data)
    assert sum(map(len, ring._joined.values())) <= 8 * 256 * 1024 + keep_alive


def test_a_read_of_what_is_long_gone_is_empty() -> None:
    ring = filled(3000, max_events=10)
    ring.trim(3000)
    assert all(ring.read(0, stop) == [] for stop in (0, 5, 2980, 2985, 2990))
    assert [r.id for r in ring.read(0, 2992)] == [2991, 2992]
