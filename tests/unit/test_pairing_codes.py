"""Codes: good once, for two minutes, and hardly ever for who guesses."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from acp_gateway.core.identity import Scope
from acp_gateway.core.pairing import LIFETIME, PER_MINUTE, TRIES, Offer, Pairing, TooMany

OFFER = Offer(name="phone", scope=Scope.APPROVE, lifetime=None)


def test_good_once_and_not_for_ever() -> None:
    one = Pairing()
    assert one.redeem("000000", 0.0) is None, "there is none"
    one.offer("123456", OFFER, 0.0)
    assert one.redeem("123456", LIFETIME - 0.1) is OFFER
    assert one.redeem("123456", LIFETIME - 0.1) is None
    one.offer("123456", OFFER, 1000.0)
    assert one.redeem("123456", 1000.0 + LIFETIME) is None


def test_what_stands_for_no_code_is_no_code() -> None:
    one = Pairing()
    for guess in ("x" * 6, "", "xxxxxx\0", "\ud800"):
        assert one.redeem(guess, 0.0) is None
    one.offer("123456", OFFER, 100.0)
    assert one.redeem("xxxxxx", 100.0) is None


def test_wrong_ones_void_it() -> None:
    one = Pairing()
    one.offer("123456", OFFER, 0.0)
    for _ in range(TRIES - 1):
        assert one.redeem("000000", 1.0) is None
    assert one.redeem("123456", 1.0) is OFFER, "the last try"
    one.offer("123456", OFFER, 100.0)
    for _ in range(TRIES):
        assert one.redeem("000000", 101.0) is None
    assert one.redeem("123456", 101.0) is None


def test_a_minute_has_so_many_guesses() -> None:
    one = Pairing()
    for number in range(PER_MINUTE):
        assert one.redeem("000000", float(number)) is None
    one.offer("123456", OFFER, 30.0)
    found = one.redeem("123456", 30.0)
    assert isinstance(found, TooMany) and found.wait == 30.0
    assert one.redeem("123456", 60.0) is OFFER, "the code was not touched"


def test_right_ones_are_no_guesses() -> None:
    one = Pairing()
    for number in range(PER_MINUTE * 3):
        one.offer("123456", OFFER, number / 100)
        assert one.redeem("123456", number / 100) is OFFER


@settings(max_examples=200, deadline=None)
@given(st.integers(), st.lists(st.floats(0.01, 30), min_size=50, max_size=300))
def test_nobody_gets_more_tries_than_that(seed: int, waits: list[float]) -> None:
    """Whatever the rhythm, and with a new code whenever the old one is void."""
    dice, one, now = random.Random(seed), Pairing(), 0.0
    looked_at: list[float] = []
    of_code = 0
    for wait in waits:
        now += wait
        if dice.random() < 0.3:
            one.offer("123456", OFFER, now)
            of_code = 0
        found = one.redeem("000000", now)
        if not isinstance(found, TooMany):
            looked_at.append(now)
            of_code += 1
            assert found is None
        if of_code >= TRIES:
            assert one.redeem("123456", now) is not OFFER
            looked_at.append(now)
    for at in looked_at:
        # The asking of the right one above counts as well.
        assert sum(at - 60 < other <= at for other in looked_at) <= 2 * PER_MINUTE
