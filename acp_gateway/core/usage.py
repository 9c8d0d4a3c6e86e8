"""Tokens and money that an agent says it has used.

Agents tell it in three ways: ``usage`` of a prompt's result (unstable ACP: token usage of the
turn), ``_meta.usage`` of an empty message chunk (qwen, after each call of the model), and ``cost``
of ``usage_update`` (ACP v1: what the session has cost so far). An absent number counts as 0, and
``told`` says whether any came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_MEMBERS: Final = {
    "inputTokens": "input",
    "outputTokens": "output",
    "thoughtTokens": "thought",
    "cachedReadTokens": "cached_read",
    "cachedWriteTokens": "cached_write",
}
KINDS: Final = tuple(_MEMBERS.values())
MAX_CURRENCIES: Final = 8
"""Units that one agent may name; a further one is not counted."""


class Usage:
    def __init__(self) -> None:
        self.tokens: dict[str, int] = dict.fromkeys(KINDS, 0)
        """By kind. As agents tell them: input may or may not contain what was read from a cache."""
        self.total = 0
        """As the agent adds them up; the sum of input and output where it does not."""
        self.cost: dict[str, float] = {}
        """By currency (ISO 4217) or another unit."""
        self.turns = 0
        """Turns that told tokens."""

    @property
    def told(self) -> bool:
        return bool(self.turns or self.total or self.cost)

    def take(self, told: Any) -> bool:
        """Add what one turn or one call of a model used; False when it is no usage object."""
        if not isinstance(told, Mapping):
            return False
        numbers = {kind: _count(told.get(member)) for member, kind in _MEMBERS.items()}
        found = any(number is not None for number in numbers.values())
        total = _count(told.get("totalTokens"))
        if not found and total is None:
            return False
        for kind, number in numbers.items():
            self.tokens[kind] += number or 0
        self.total += (numbers["input"] or 0) + (numbers["output"] or 0) if total is None else total
        return True

    def add(self, other: Usage) -> None:
        for kind, number in other.tokens.items():
            self.tokens[kind] += number
        self.total += other.total
        self.turns += other.turns
        for currency, amount in other.cost.items():
            self.spend(currency, amount)

    def spend(self, currency: str, amount: float) -> None:
        if currency in self.cost or len(self.cost) < MAX_CURRENCIES:
            self.cost[currency] = self.cost.get(currency, 0.0) + amount

    def as_json(self) -> dict[str, Any]:
        """``{turns, inputTokens, …, totalTokens, cost: [{amount, currency}]}``."""
        return {
            "turns": self.turns,
            **{member: self.tokens[kind] for member, kind in _MEMBERS.items()},
            "totalTokens": self.total,
            "cost": [
                {"amount": round(amount, 6), "currency": currency}
                for currency, amount in self.cost.items()
            ],
        }


class SessionUsage:
    """What one session used, and what of it is new since it was last folded."""

    def __init__(self, *, from_start: bool = True) -> None:
        """``from_start``: the agent counts from the session's beginning, and that is now. Else the
        first cost that it tells is what earlier lives of the session had cost."""
        self.all = Usage()
        self.new = Usage()
        self._from_start = from_start
        self._last: dict[str, float] = {}

    def cost_told(self, cost: Any) -> None:
        """The ``cost`` of a ``usage_update``: what the session has cost so far."""
        if not isinstance(cost, Mapping):
            return
        amount, currency = cost.get("amount"), cost.get("currency")
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            return
        if not isinstance(currency, str) or not 0 < len(currency) <= 16 or not 0 <= amount < 1e12:
            return
        last = self._last.get(currency)
        if last is None and len(self._last) >= MAX_CURRENCIES:
            return
        self._last[currency] = amount
        if last is None and not self._from_start:
            self.all.spend(currency, amount)
            return
        # An agent that was started anew begins at 0 again.
        spent = amount if last is None or amount < last else amount - last
        self.new.spend(currency, spent)

    def fold(self, result: Any) -> Usage:
        """A turn has ended, with this result (None: an error): what it used."""
        used, self.new = self.new, Usage()
        if isinstance(result, Mapping) and not used.take(result.get("usage")):
            meta = result.get("_meta")
            used.take(meta.get("usage") if isinstance(meta, Mapping) else None)
        used.turns = 1 if used.total or any(used.tokens.values()) else 0
        self.all.add(used)
        return used


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < 1e15 else None
