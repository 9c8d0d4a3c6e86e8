"""Counts and histograms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.tally import LONG, SHORT, Counts, Histogram, Histograms


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.cumulative() == [(1.0, 2), (2.0, 4), (float("inf"), 5)]
    assert (histogram.count, histogram.sum, histogram.mean) == (5, 7.5, 1.5)
    assert (histogram.last, histogram.largest) == (2.5, 2.5)


def test_a_clock_that_was_set_back_counts_as_nothing() -> None:
    histogram = Histogram((1.0,))
    histogram.observe(-3600.0)
    assert (histogram.sum, histogram.cumulative()[0]) == (0.0, (1.0, 1))


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_nothing_is_lost_between_the_buckets(values: list[float]) -> None:
    histogram = Histogram(SHORT)
    for value in values:
        histogram.observe(value)
    told = histogram.cumulative()
    assert told[-1] == (float("inf"), len(values))
    for bound, count in told:
        assert count == sum(value <= bound for value in values)
    assert [count for _, count in told] == sorted(count for _, count in told)


@pytest.mark.parametrize("bounds", [SHORT, LONG])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_quantiles_are_never_above_what_was_seen() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    assert histogram.quantile(0.99) == 0.0
    for value in (0.1, 0.1, 0.1, 3.0):
        histogram.observe(value)
    assert histogram.quantile(0.5) == 1.0
    assert histogram.quantile(1.0) == 3.0  # not 4: nothing was that large
    histogram.observe(100.0)
    assert histogram.quantile(1.0) == 100.0


def test_labels() -> None:
    counts = Counts()
    counts.add("a", "b")
    counts.add("a", "b", by=2)
    assert counts == {("a", "b"): 3}
    by_label = Histograms((1.0,))
    by_label.observe(0.5, "x")
    by_label.observe(0.5, "x")
    assert [(labels, each.count) for labels, each in by_label.items()] == [(("x",), 2)]
