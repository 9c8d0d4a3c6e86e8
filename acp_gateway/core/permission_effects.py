"""What the permission mediator answers: effects for the runtime, in order, and a vote's verdict."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeAlias

import attrs

from acp_gateway.core.question import Question


@attrs.frozen
class Publish:
    """An event of the session."""

    session_id: str
    kind: str
    data: dict[str, Any]
    originator: str | None
    """Client id for the envelope."""
    prompt_id: str | None


@attrs.frozen
class Answer:
    """The agent gets ``question.result``; the timer and copies that clients hold are void."""

    question: Question


@attrs.frozen
class Audit:
    entry: dict[str, Any]


@attrs.frozen
class Note:
    """One printable line for the operator."""

    text: str


Effect: TypeAlias = Publish | Answer | Audit | Note


class Verdict(Enum):
    """What became of a vote."""

    RESOLVED = "resolved"
    RECORDED = "recorded"
    """It counts, and more are needed (or the request ended as split)."""
    REPEATED = "repeated"
    """Not this client's first under consensus; the first stands."""
    FORBIDDEN = "forbidden"
    ALREADY_RESOLVED = "already_resolved"
    UNKNOWN = "unknown"
    """Neither open nor remembered, or of another session."""
    INVALID_OPTION = "invalid_option"
    INVALID_OUTCOME = "invalid_outcome"
    """The vote is malformed."""
    SENTINEL = "sentinel"
    """The option is the reserved one."""


@attrs.frozen(kw_only=True)
class Decision:
    verdict: Verdict
    effects: tuple[Effect, ...] = ()
    reason: str | None = None
    """`DESIGNATED_MISMATCH` or `REMOTE_NOT_ALLOWED` of a forbidden vote."""
    question: Question | None = None
    """The request that was open when the vote came."""
    outcome: dict[str, Any] | None = None
    """ACP outcome of a request that was already resolved."""
