"""Tokens and money as agents tell them."""

from __future__ import annotations

from typing import Any

import pytest

from acp_gateway.core.usage import MAX_CURRENCIES, SessionUsage, Usage

# As goose 1.52 answers a prompt, and as qwen 0.24.4 tells a call of its model.
GOOSE = {
    "stopReason": "end_turn",
    "usage": {"totalTokens": 15, "inputTokens": 10, "outputTokens": 5},
}
QWEN = {
    "inputTokens": 100,
    "outputTokens": 10,
    "totalTokens": 110,
    "thoughtTokens": 3,
    "cachedReadTokens": 7,
}


def test_a_result_tells_its_turn() -> None:
    usage = SessionUsage()
    for turns in (1, 2):
        used = usage.fold(GOOSE)
        assert (used.total, used.tokens["input"], used.turns) == (15, 10, 1)
        assert (usage.all.total, usage.all.turns) == (15 * turns, turns)


def test_calls_of_the_model_add_up_to_a_turn() -> None:
    usage = SessionUsage()
    assert usage.new.take(QWEN) and usage.new.take(QWEN)
    used = usage.fold({"stopReason": "end_turn"})
    assert used.as_json() == {
        "turns": 1,
        "inputTokens": 200,
        "outputTokens": 20,
        "thoughtTokens": 6,
        "cachedReadTokens": 14,
        "cachedWriteTokens": 0,
        "totalTokens": 220,
        "cost": [],
    }
    assert usage.fold(None).told is False  # the next turn, with an error, used nothing
    assert usage.all.turns == 1


def test_what_was_used_before_an_error_counts() -> None:
    usage = SessionUsage()
    usage.new.take(QWEN)
    assert usage.fold(None).total == 110


def test_a_total_is_made_where_none_is_told() -> None:
    usage = Usage()
    assert usage.take({"inputTokens": 2, "outputTokens": 3})
    assert usage.total == 5


@pytest.mark.parametrize(
    "odd",
    [
        None,
        [],
        "usage",
        {},
        {"inputTokens": "10"},
        {"inputTokens": -1},
        {"inputTokens": True},
        {"inputTokens": 1e300},
        {"inputTokens": None, "totalTokens": None},
        {"inputTokens": float("nan")},
    ],
)
def test_what_is_no_number_of_tokens_is_nothing(odd: Any) -> None:
    usage = Usage()
    assert usage.take(odd) is False
    assert not usage.told
    assert SessionUsage().fold({"usage": odd, "_meta": odd}).told is False


def test_usage_in_meta_is_read_where_there_is_no_other() -> None:
    usage = SessionUsage()
    assert usage.fold({"_meta": {"usage": {"outputTokens": 4}}}).total == 4
    both = {"usage": {"outputTokens": 1}, "_meta": {"usage": {"outputTokens": 4}}}
    assert usage.fold(both).total == 1


def cost(amount: Any, currency: Any = "USD") -> dict[str, Any]:
    return {"amount": amount, "currency": currency}


def test_a_cost_is_what_all_of_the_session_cost_so_far() -> None:
    usage = SessionUsage()
    for amount, new in ((0.5, 0.5), (0.5, 0.0), (0.75, 0.25)):
        usage.cost_told(cost(amount))
        assert usage.fold(None).cost.get("USD", 0.0) == pytest.approx(new)
    assert usage.all.cost["USD"] == pytest.approx(0.75)


def test_an_agent_that_was_started_anew_counts_from_0_again() -> None:
    usage = SessionUsage()
    usage.cost_told(cost(2.0))
    usage.cost_told(cost(0.5))
    assert usage.fold(None).cost == {"USD": 2.5}


def test_what_earlier_lives_had_cost_is_told_and_not_counted_again() -> None:
    usage = SessionUsage(from_start=False)
    usage.cost_told(cost(3.0))
    assert usage.fold(None).cost == {}
    assert usage.all.cost == {"USD": 3.0}
    usage.cost_told(cost(3.5))
    assert usage.fold(None).cost == {"USD": 0.5}
    assert usage.all.cost == {"USD": 3.5}


@pytest.mark.parametrize(
    "odd",
    [
        *(None, 1, [], {}, cost("1"), cost(-1), cost(True), cost(1, None), cost(1, "")),
        *(cost(1, "x" * 17), cost(float("nan")), cost(float("inf"))),
    ],
)
def test_what_is_no_cost_is_nothing(odd: Any) -> None:
    usage = SessionUsage()
    usage.cost_told(odd)
    assert usage.fold(None).cost == {}


def test_an_agent_cannot_make_labels_without_end() -> None:
    usage = SessionUsage()
    for number in range(100):
        usage.cost_told(cost(1, f"unit{number}"))
    assert len(usage.fold(None).cost) == MAX_CURRENCIES
