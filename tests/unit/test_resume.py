"""What a returning reader is sent first: every row of the table, and the budget."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.event_ring import EventRing, Kind, Record
from acp_gateway.core.resume import REPLAY_BYTES, Replay, plan_replay

EPOCH = "e-1"


def ring_of(last: int, first: int = 1, size: int = 10) -> EventRing:
    """A ring that was given ``last`` records and still has those from ``first`` on."""
    ring = EventRing(max_events=last - first + 1, max_bytes=1 << 40)
    for _ in range(last):
        ring.append(Record(Kind.NOTICE, "turn_complete", b"x" * size, 1.0))
    ring.trim(last)
    assert (ring.first_id, ring.last_id) == (first, last)
    return ring


def plan(ring: EventRing, last: int, epoch: str | None = None, **how: Any) -> Replay:
    return plan_replay(ring, last, epoch, EPOCH, **how)


def resync(reason: str, last: int, earliest: int, **more: Any) -> dict[str, Any]:
    return {"reason": reason, "lastDeliveredId": last, "earliestAvailableId": earliest, **more}


def complete(count: int, last: int | None = None) -> dict[str, Any]:
    if last is None:
        return {"replayedCount": count}
    return {"replayedCount": count, "lastReplayedEventId": last, "lastEventId": last}


MISMATCH = {"detail": "epoch_mismatch"}

# A ring of 12 with ids 16..27, and what the daemon was seen to answer.
CASES = (
    (27, None, None, (27, 27), complete(0)),
    (24, None, None, (24, 27), complete(3, 27)),
    (15, None, None, (15, 27), complete(12, 27)),
    (14, None, resync("ring_evicted", 14, 16), (15, 27), complete(12, 27)),
    (1, None, resync("ring_evicted", 1, 16), (15, 27), complete(12, 27)),
    (0, None, resync("ring_evicted", 0, 16), (15, 27), complete(12, 27)),
    (28, None, resync("epoch_reset", 28, 16), (15, 27), complete(12, 27)),
    (9999, None, resync("epoch_reset", 9999, 16), (15, 27), complete(12, 27)),
    (25, EPOCH, None, (25, 27), complete(2, 27)),
    (25, "dead", resync("epoch_reset", 25, 16, **MISMATCH), (15, 27), complete(12, 27)),
    (27, "dead", resync("epoch_reset", 27, 16, **MISMATCH), (15, 27), complete(12, 27)),
    # The epoch is looked at first.
    (9999, "dead", resync("epoch_reset", 9999, 16, **MISMATCH), (15, 27), complete(12, 27)),
    (1, "dead", resync("epoch_reset", 1, 16, **MISMATCH), (15, 27), complete(12, 27)),
)


@pytest.mark.parametrize(("last", "epoch", "told", "span", "done"), CASES)
def test_a_ring_of_twelve(
    last: int,
    epoch: str | None,
    told: dict[str, Any] | None,
    span: tuple[int, int],
    done: dict[str, Any],
) -> None:
    found = plan(ring_of(27, first=16), last, epoch)
    assert (found.resync, (found.start, found.stop), found.complete) == (told, span, done)
    assert found.cut is None


def test_a_whole_ring_and_zero() -> None:
    found = plan(ring_of(5), 0)
    assert found.resync is None and (found.start, found.stop) == (0, 5)


def emptied(last: int) -> EventRing:
    """As after a load: ids were given, none is kept."""
    ring = EventRing(max_events=0, max_bytes=0)
    for _ in range(last):
        ring.append(Record(Kind.NOTICE, "turn_complete", b"x", 1.0))
    ring.trim(last)
    assert len(ring) == 0
    return ring


@pytest.mark.parametrize(
    ("last", "epoch", "told"),
    [
        (0, None, resync("seeded_replay_not_in_ring", 0, 10)),
        (8, None, resync("seeded_replay_not_in_ring", 8, 10)),
        (9, None, None),
        (10, None, resync("epoch_reset", 10, 10)),
        (3, "dead", resync("epoch_reset", 3, 10, **MISMATCH)),
    ],
)
def test_an_empty_ring(last: int, epoch: str | None, told: dict[str, Any] | None) -> None:
    found = plan(emptied(9), last, epoch)
    assert found.resync == told and found.complete == complete(0)
    assert (found.start, found.stop, found.cut) == (9, 9, None)


def test_a_new_session() -> None:
    ring = EventRing(10, 100)
    assert plan(ring, 0).resync is None
    assert plan(ring, 0).complete == complete(0)
    assert plan(ring, 1).resync == resync("epoch_reset", 1, 1)


# ---- the budget ---------------------------------------------------------------------------------


def test_the_budget_is_eight_mebibytes() -> None:
    assert REPLAY_BYTES == 8 * 1024 * 1024
    found = plan(ring_of(10, size=1024 * 1024), 0)
    assert (found.start, found.stop) == (0, 8)
    assert found.cut == resync("replay_budget_exceeded", 8, 9)
    assert found.complete == complete(8, 8)


def test_what_just_fits_is_not_cut() -> None:
    assert plan(ring_of(8, size=1024 * 1024), 0).cut is None
    assert plan(ring_of(10, size=1024 * 1024), 2).cut is None


def test_one_record_over_the_budget_passes() -> None:
    found = plan(ring_of(3, size=100), 0, budget=99)
    assert (found.stop, found.complete) == (1, complete(1, 1))
    assert found.cut == resync("replay_budget_exceeded", 1, 2)
    assert plan(ring_of(1, size=100), 0, budget=99).cut is None


def test_a_gap_and_the_budget_at_once() -> None:
    found = plan(ring_of(27, first=16), 3, budget=50)
    assert found.resync == resync("ring_evicted", 3, 16)
    assert (found.start, found.stop) == (15, 20)
    assert found.cut == resync("replay_budget_exceeded", 20, 21)


@given(
    sizes=st.lists(st.integers(1, 50), max_size=30),
    evicted=st.integers(0, 30),
    last=st.integers(0, 40),
    epoch=st.sampled_from([None, EPOCH, "other"]),
    budget=st.integers(1, 300),
)
def test_nothing_is_missing_without_being_told(
    sizes: list[int], evicted: int, last: int, epoch: str | None, budget: int
) -> None:
    ring = EventRing(max(0, len(sizes) - evicted), 1 << 30)
    for size in sizes:
        ring.append(Record(Kind.NOTICE, "x", b"x" * size, 1.0))
    ring.trim(ring.last_id)
    found = plan(ring, last, epoch, budget=budget)
    sent = ring.read(found.start, found.stop)
    assert [each.id for each in sent] == list(range(found.start + 1, found.stop + 1))
    assert found.complete["replayedCount"] == len(sent)
    assert len(sent) <= 1 or sum(len(each.line) for each in sent) <= budget
    assert (found.cut is None) == (found.stop == ring.last_id)
    known = epoch in (None, EPOCH) and last <= ring.last_id
    # Told when, and only when, the reader has another numbering or a hole behind what it has.
    assert (found.resync is None) == (known and found.start == last)
