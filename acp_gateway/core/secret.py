"""A text that must not be shown: as text, in a log line or in JSON it reads ``[redacted]``."""

from __future__ import annotations

from typing import Any, Final, NoReturn

REDACTED: Final = "[redacted]"


class Secret(str):
    """Holds a text beside the one that everybody sees, until it is forgotten.

    Whatever formats, encodes or prints it gets the visible text. It equals only itself, and it
    cannot be pickled or copied.
    """

    __slots__ = ("_hidden",)
    _hidden: str | None

    def __new__(cls, text: str) -> Secret:
        self = super().__new__(cls, REDACTED)
        self._hidden = text
        return self

    def reveal(self) -> str:
        """The text. Raises `LookupError` once it is forgotten."""
        if self._hidden is None:
            raise LookupError("the secret was dropped")
        return self._hidden

    def forget(self) -> None:
        """Drop the text; doing so twice is no error."""
        self._hidden = None

    @property
    def forgotten(self) -> bool:
        return self._hidden is None

    def hide_in(self, text: str) -> str:
        """``text`` with this secret replaced wherever it stands, unless it is forgotten."""
        return text.replace(self._hidden, REDACTED) if self._hidden else text

    def __repr__(self) -> str:
        return REDACTED

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise TypeError("a secret cannot be copied or stored")
