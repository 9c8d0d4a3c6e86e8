"""How a case says that the server is wrong, or that it cannot be judged."""

from __future__ import annotations

import json
from typing import Any


class Failure(Exception):
    """The server broke the requirement; the text says what was seen."""


class Skip(Exception):
    """The case does not apply here; the text says why."""


class LinkClosed(Failure):
    """The server ended the connection while an answer was due."""


def check(condition: object, seen: str) -> None:
    """Raise `Failure` with ``seen`` unless ``condition`` holds."""
    if not condition:
        raise Failure(seen)


def brief(value: Any, limit: int = 300) -> str:
    """``value`` as JSON, cut to ``limit`` characters, for a failure text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
