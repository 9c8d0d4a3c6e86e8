"""When a slow reader is warned, and when it is evicted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.lag import Lag

BYTES = 1000


def lag() -> Lag:
    return Lag(16, BYTES)


def test_the_warning_says_what_waits() -> None:
    assert lag().warning(12, 10, 99) == {
        "queueSize": 12,
        "maxQueued": 16,
        "queuedBytes": 10,
        "maxQueuedBytes": BYTES,
        "lastEventId": 99,
        "threshold": "frames",
    }


def test_it_comes_at_three_quarters_of_either() -> None:
    assert lag().warning(11, 749, 1) is None
    by_bytes = lag().warning(11, 750, 1)
    both = lag().warning(12, 750, 1)
    assert by_bytes is not None and by_bytes["threshold"] == "bytes"
    assert both is not None and both["threshold"] == "frames_and_bytes"


def test_once_in_an_episode() -> None:
    one = lag()
    assert one.warning(12, 0, 1)
    for frames in (13, 16, 12, 7, 12):  # 7 of 16 is more than 37.5 %
        assert one.warning(frames, 0, 1) is None
    assert one.warning(6, 0, 1) is None
    assert one.warning(12, 0, 1)


def test_both_must_be_low_to_begin_anew() -> None:
    one = lag()
    assert one.warning(12, 0, 1)
    assert one.warning(0, 376, 1) is None
    assert one.warning(12, 0, 1) is None
    assert one.warning(0, 375, 1) is None
    assert one.warning(12, 0, 1)


def test_for_the_standard_limits() -> None:
    one = Lag(256, 2 << 20)
    assert one.warning(191, 0, 1) is None
    assert one.warning(192, 0, 1)
    assert one.warning(97, 0, 1) is None and one.warning(192, 0, 1) is None
    assert one.warning(96, 0, 1) is None and one.warning(192, 0, 1)


def test_eviction_is_beyond_the_limits() -> None:
    assert lag().eviction(16, BYTES, 5) is None
    assert lag().eviction(17, 0, 5) == {
        "reason": "queue_overflow",
        "droppedAfter": 5,
        "queueSize": 17,
        "maxQueued": 16,
        "queuedBytes": 0,
        "maxQueuedBytes": BYTES,
    }
    heavy = lag().eviction(2, BYTES + 1, 5)
    assert heavy is not None and heavy["reason"] == "queue_bytes_overflow"
    both = lag().eviction(17, BYTES + 1, 5)
    assert both is not None and both["reason"] == "queue_overflow"


def test_one_event_that_is_too_big_alone_is_let_in() -> None:
    assert lag().eviction(1, 100 * BYTES, 5) is None
    assert lag().eviction(2, 100 * BYTES, 5) is not None


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1200))))
def test_between_two_warnings_it_was_low(steps: list[tuple[int, int]]) -> None:
    one, armed = lag(), True
    for frames, bytes in steps:
        high = frames >= 12 or bytes >= 750
        armed = armed or (frames <= 6 and bytes <= 375)
        assert (one.warning(frames, bytes, 1) is not None) == (armed and high)
        armed = armed and not high
