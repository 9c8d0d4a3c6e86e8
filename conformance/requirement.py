"""The form of a requirement; the rows are in `conformance.manifest` and the manifest of REST."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TRANSPORTS = ("ws", "http", "rest")
ACP_TRANSPORTS = ("ws", "http")
Level = Literal["must", "should", "gateway"]


@dataclass(frozen=True)
class Requirement:
    id: str
    source: str
    transports: tuple[str, ...]
    level: Level
    text: str


def rows(source: str, transports: str, *rows: tuple[str, Level, str]) -> tuple[Requirement, ...]:
    """Requirements of one source; ``transports`` is one of them, or ``both`` for those of ACP."""
    over = ACP_TRANSPORTS if transports == "both" else (transports,)
    return tuple(Requirement(id, source, over, level, text) for id, level, text in rows)
