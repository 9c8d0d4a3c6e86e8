"""Token buckets: the arithmetic against a model, what is forgotten and when."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acp_gateway.core.rate_limit import RateLimiter, Tier

LIMITS = {Tier.PROMPT: 2, Tier.MUTATION: 3, Tier.READ: 5}


def limiter(**changes: object) -> RateLimiter:
    return RateLimiter(LIMITS, 60.0, **changes)  # type: ignore[arg-type]


def taken(made: RateLimiter, key: str, tier: Tier, now: float, times: int) -> int:
    return sum(made.take(key, tier, now) is None for _ in range(times))


def test_a_bucket_starts_full_and_fills_continuously() -> None:
    made = limiter()
    assert taken(made, "a", Tier.PROMPT, 0, 5) == 2
    # One more each 30 s, and no sooner.
    assert made.take("a", Tier.PROMPT, 29.9) is not None
    assert taken(made, "a", Tier.PROMPT, 30.0, 3) == 1
    assert taken(made, "a", Tier.PROMPT, 60.0, 3) == 1
    # Never more than it holds.
    assert taken(made, "a", Tier.PROMPT, 1000.0, 9) == 2


def test_tiers_and_callers_do_not_share() -> None:
    made = limiter()
    assert taken(made, "a", Tier.PROMPT, 0, 9) == 2
    assert taken(made, "a", Tier.MUTATION, 0, 9) == 3
    assert taken(made, "a", Tier.READ, 0, 9) == 5
    assert taken(made, "b", Tier.PROMPT, 0, 9) == 2
    assert made.refused == {Tier.PROMPT: 14, Tier.MUTATION: 6, Tier.READ: 4}


def test_a_refusal_tells_what_was_exceeded_and_for_how_long() -> None:
    made = limiter()
    taken(made, "a", Tier.PROMPT, 100.0, 2)
    first = made.take("a", Tier.PROMPT, 107.0)
    assert first is not None
    assert (first.tier, first.limit, first.count) == (Tier.PROMPT, 2, 1)
    assert first.retry_after == pytest.approx(23.0)
    second = made.take("a", Tier.PROMPT, 110.0)
    assert second is not None and second.count == 2
    assert second.retry_after == pytest.approx(20.0)  # to ask costs nothing
    assert made.take("a", Tier.PROMPT, 110.0 + second.retry_after) is None


def test_a_clock_that_goes_back_gives_nothing() -> None:
    made = limiter()
    assert taken(made, "a", Tier.PROMPT, 100.0, 2) == 2
    assert made.take("a", Tier.PROMPT, 10.0) is not None
    assert made.take("a", Tier.PROMPT, 100.0) is not None


@given(
    st.integers(1, 50),
    st.floats(1, 3600),
    st.lists(st.floats(0, 100), max_size=80),
)
def test_never_more_than_the_limit_and_the_refill(
    limit: int, window: float, gaps: list[float]
) -> None:
    made = RateLimiter({Tier.READ: limit}, window)
    now, allowed = 1e6, 0
    for gap in gaps:
        now += gap
        exceeded = made.take("a", Tier.READ, now)
        if exceeded is None:
            allowed += 1
        else:
            assert 0 < exceeded.retry_after <= window / limit * (1 + 1e-6)
            # Whoever waits as long as was told, rounded up to milliseconds, is let in.
            now += math.ceil(exceeded.retry_after * 1000) / 1000
            assert made.take("a", Tier.READ, now) is None
            allowed += 1
        assert allowed <= limit + (now - 1e6) / window * limit + 1e-3


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 40)), max_size=100))
def test_the_table_is_bounded_and_the_longest_idle_goes(asks: list[tuple[str, float]]) -> None:
    made = limiter(max_keys=3)
    now, order = 0.0, []
    for key, gap in asks:
        now += gap
        made.take(key, Tier.READ, now)
        order = [each for each in order if each != key] + [key]
        assert len(made) <= 3
        assert set(made._callers) <= set(order[-3:])


def test_a_full_table_limits_all_the_same() -> None:
    made = limiter(max_keys=2)
    assert taken(made, "a", Tier.PROMPT, 0, 3) == 2
    made.take("b", Tier.READ, 1)
    made.take("c", Tier.READ, 2)  # "a" goes
    assert made.forgotten == 1
    assert taken(made, "c", Tier.PROMPT, 3, 9) == 2
    assert len(made) == 2


def test_idle_callers_are_forgotten() -> None:
    made = limiter()
    for number in range(1000):
        made.take(str(number), Tier.READ, number / 1000)
    assert len(made) == 1000
    made.take("late", Tier.READ, 119.9)
    assert len(made) == 1001
    made.take("later", Tier.READ, 121.0)
    assert len(made) == 2 and made.forgotten == 0


@pytest.mark.parametrize(
    ("limit", "window", "keys"), [(0, 60, 1), (1, 0, 1), (-1, 60, 1), (1, 60, 0)]
)
def test_limits_must_be_positive(limit: int, window: float, keys: int) -> None:
    with pytest.raises(ValueError):
        RateLimiter({Tier.READ: limit}, window, max_keys=keys)
