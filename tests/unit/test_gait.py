"""A stream of small pieces is waited for; what comes alone, at first or in full reads is not."""

from __future__ import annotations

from acp_gateway.core.gait import HASTE, SMALL, STREAK, Gait

QUICK, SLOW = HASTE / 2, HASTE * 2


def streaming() -> Gait:
    gait = Gait()
    assert not any(gait.is_hasty(100, QUICK) for _ in range(STREAK - 1))
    return gait


def test_only_what_lasts_is_a_stream() -> None:
    gait = streaming()
    assert all(gait.is_hasty(100, QUICK) for _ in range(100))
    assert not gait.is_hasty(100, SLOW)
    assert not any(gait.is_hasty(100, QUICK) for _ in range(STREAK - 1))


def test_full_reads_are_not_waited_for() -> None:
    gait = streaming()
    assert not gait.is_hasty(SMALL, QUICK)
    assert gait.is_hasty(SMALL - 1, QUICK)
