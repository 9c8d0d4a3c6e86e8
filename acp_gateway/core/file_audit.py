"""Who touched which file, and who was refused: the members of an audit entry.

``fs.access`` and ``fs.denied``; members that are not known are absent. A file is named by the first
16 hex digits of the SHA-256 of its absolute path, unless raw paths are wanted: then ``relPath``,
``pattern`` and ``message`` are there too.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import attrs

from acp_gateway.core.permission_audit import milliseconds
from acp_gateway.protocol.errors import GatewayError

Entry = dict[str, Any]

HASH_DIGITS: Final = 16
CHANGES: Final = ("write", "edit")
"""Intents that change a file."""


@attrs.frozen(kw_only=True)
class Who:
    """Who touches a file: a client, or the agent of a session."""

    client: str | None = None
    """Its client id; None for an anonymous one."""
    session: str | None = None
    """Whose agent it is; None for a client."""
    actor: str | None = None
    """The name that the client was let in by."""


NOBODY: Final = Who()


def path_hash(path: bytes) -> str:
    """Stands for an absolute path."""
    return hashlib.sha256(path).hexdigest()[:HASH_DIGITS]


def _entry(kind: str, now: float, intent: str, route: str, who: Who, **members: Any) -> Entry:
    return {
        "kind": f"fs.{kind}",
        "recordedAtMs": milliseconds(now),
        "intent": intent,
        "route": route,
        **{
            name: value
            for name, value in {
                "sessionId": who.session,
                "originatorClientId": who.client,
                "actor": who.actor,
                **members,
            }.items()
            if value is not None
        },
    }


def access(
    now: float,
    intent: str,
    route: str,
    who: Who,
    path: bytes,
    took: float,
    *,
    size: int | None = None,
    truncated: bool | None = None,
    hidden: str | None = None,
    operation: str | None = None,
    raw: dict[str, str] | None = None,
) -> Entry:
    """``took``: seconds. ``size``: bytes of the file. ``operation``: what a write did (create,
    replace, edit). ``raw``: what is told only where raw paths are wanted."""
    return _entry(
        "access",
        now,
        intent,
        route,
        who,
        pathHash=path_hash(path),
        durationMs=milliseconds(took),
        sizeBytes=size,
        truncated=truncated,
        matchedIgnore=hidden,
        operation=operation,
        **(raw or {}),
    )


def denied(
    now: float,
    intent: str,
    route: str,
    who: Who,
    path: bytes | None,
    error: GatewayError,
    *,
    raw: dict[str, str] | None = None,
) -> Entry:
    """``path`` is None for what cannot be one."""
    if raw is not None:
        raw = {**raw, "message": error.message}
    return _entry(
        "denied",
        now,
        intent,
        route,
        who,
        pathHash=None if path is None else path_hash(path),
        errorKind=error.kind.word,
        hint=error.remedy,
        **(raw or {}),
    )
