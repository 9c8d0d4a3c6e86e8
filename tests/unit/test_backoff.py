"""Delays double from the first to the most, and start over after a success."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.backoff import Backoff


def test_delays_double_up_to_the_most() -> None:
    backoff = Backoff(0.25, 3.0)
    assert backoff.delay == 0.0
    assert [backoff.failed() for _ in range(6)] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.delay == 3.0
    backoff.succeeded()
    assert (backoff.delay, backoff.failed()) == (0.0, 0.25)


@given(st.floats(0.001, 10), st.floats(0.001, 1000), st.integers(1, 10_000))
def test_never_less_than_before_nor_over_the_most(first: float, most: float, count: int) -> None:
    backoff = Backoff(first, most)
    backoff.failures = count
    assert backoff.delay <= backoff.failed() <= most
    assert backoff.delay == pytest.approx(min(most, first * 2 ** min(count, 30)))
