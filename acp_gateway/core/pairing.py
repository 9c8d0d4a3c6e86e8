"""A code that is worth a token, once: for a phone that cannot be handed a long one.

Six digits are a million, so what protects them is that they are of no use for long: one code at a
time, for `LIFETIME` seconds, void after `TRIES` wrong ones; and all guesses together, whether there
is a code or not, are limited to `PER_MINUTE` in any minute. That leaves a guesser 5 chances in a
million for each code that somebody asks for. Every refusal of a guess is the same, whether there is
a code or not.

Pure: the caller brings the time (any monotonic seconds) and the code.
"""

from __future__ import annotations

import hmac
from collections import deque
from typing import Final

import attrs

from acp_gateway.core.identity import Scope

LIFETIME: Final = 120.0
TRIES: Final = 5
PER_MINUTE: Final = 10
DIGITS: Final = 6
_MINUTE: Final = 60.0
_NO_CODE: Final = "x" * DIGITS
"""Compared with while there is none: no guess is equal to it."""


@attrs.frozen(kw_only=True)
class Offer:
    """What the code is worth."""

    name: str | None
    """Of the token; None: as the device calls itself."""
    scope: Scope
    lifetime: float | None
    """Seconds that the token will be good for; None: for ever."""


@attrs.frozen(kw_only=True)
class TooMany:
    """Guesses in this minute."""

    wait: float
    """Seconds until the next one is looked at."""


@attrs.define
class _Open:
    code: str = attrs.field(repr=False)
    offer: Offer
    until: float
    wrong: int = 0


class Pairing:
    def __init__(self) -> None:
        self._open: _Open | None = None
        self._guesses: deque[float] = deque()

    def offer(self, code: str, offer: Offer, now: float) -> None:
        """Make a code good; the one before it is void."""
        self._open = _Open(code, offer, now + LIFETIME)

    def wait(self, now: float) -> TooMany | None:
        """Is a guess not even looked at now?"""
        while self._guesses and now - self._guesses[0] >= _MINUTE:
            self._guesses.popleft()
        if len(self._guesses) < PER_MINUTE:
            return None
        return TooMany(wait=_MINUTE - (now - self._guesses[0]))

    def redeem(self, guess: str, now: float) -> Offer | TooMany | None:
        """What a guess is worth; None: nothing. A right one is never right again."""
        if (wait := self.wait(now)) is not None:
            return wait
        self._guesses.append(now)
        if self._open is not None and now >= self._open.until:
            self._open = None
        known = _NO_CODE if self._open is None else self._open.code
        right = hmac.compare_digest(guess.encode(errors="replace"), known.encode())
        if self._open is None:
            return None
        if right:
            offer = self._open.offer
            self._open = None
            self._guesses.pop()  # it was none
            return offer
        self._open.wrong += 1
        if self._open.wrong >= TRIES:
            self._open = None
        return None
