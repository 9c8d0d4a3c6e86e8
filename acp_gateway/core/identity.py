"""Who a request comes from, and what that one may do.

Four scopes, each of which includes the ones before it: read < prompt < approve < admin. They are a
ladder because a set would promise more than it keeps: who may approve a shell command decides what
runs, so withholding ``prompt`` from it would protect nothing.

What a request needs is decided by `required` (a row of the operation table) and `required_by_acp`
(an ACP method) and nowhere else, so REST, WebSocket and Streamable HTTP cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, IntEnum
from typing import Final

import attrs

from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.extensions import RPC, Access, Operation


class Scope(IntEnum):
    """What a token is good for; a higher one includes the lower ones."""

    READ = 1
    """See: all reads, event streams, and to attach to a session."""
    PROMPT = 2
    """Work: create sessions, send prompts, cancel, change what belongs to a session."""
    APPROVE = 3
    """Answer permission requests, and choose the mode, which decides what is asked at all."""
    ADMIN = 4
    """Change the workspace and the daemon itself, sign agents in, read the audit."""

    @property
    def word(self) -> str:
        return self.name.lower()


WORDS: Final = {scope.word: scope for scope in Scope}


class Kind(Enum):
    """How an identity came in."""

    OPEN = "open"
    """Without a token, where none is asked for."""
    DAEMON = "daemon"
    """With the daemon's own token."""
    NAMED = "named"
    """With a token of the tokens file."""
    PAIRED = "paired"
    """The same, made by pairing."""
    JWT = "jwt"
    """With a token of an outside issuer."""
    NOBODY = "anonymous"
    """Without a valid token, on one of the few paths that ask for none."""


@attrs.frozen(kw_only=True)
class Identity:
    """Whose a request is. Two requests of one token are of equal identities."""

    kind: Kind
    token_id: str = ""
    """Names the credential, not a secret: what is revoked and expires. Empty for those that do
    neither."""
    name: str | None = None
    """For events, votes and the audit."""
    scope: Scope | None = None
    """The highest; None for none."""
    party: str | None = None
    """Who it is among the parties of a session, over all its connections and renewed tokens; also
    its client id where it names none. None: all who come in like this share one secret, and only
    their client ids tell them apart."""
    expires_at: float | None = None
    """Unix time, seconds."""

    @property
    def scopes(self) -> tuple[str, ...]:
        """All that it has, the lowest first."""
        return () if self.scope is None else tuple(s.word for s in Scope if s <= self.scope)

    def to_dict(self) -> dict[str, object]:
        """What a client may know of what it came in as: {kind, scopes, name?}."""
        named = {} if self.name is None else {"name": self.name}
        return {"kind": self.kind.value, "scopes": list(self.scopes), **named}

    def may(self, scope: Scope | None) -> bool:
        """Does it have ``scope``? None asks for nothing."""
        return scope is None or (self.scope is not None and self.scope >= scope)

    def demand(self, scope: Scope | None) -> None:
        """Raises ``insufficient_scope``."""
        if scope is None or self.may(scope):
            return
        raise GatewayError(
            ErrorKind.INSUFFICIENT_SCOPE,
            f'This needs the scope "{scope.word}"',
            remedy=f"use a token with the scope {scope.word}",
            required=scope.word,
            scopes=list(self.scopes),
        )


OPEN: Final = Identity(kind=Kind.OPEN, scope=Scope.ADMIN)
DAEMON: Final = Identity(kind=Kind.DAEMON, scope=Scope.ADMIN)
NOBODY: Final = Identity(kind=Kind.NOBODY)


def highest(words: Iterable[str]) -> Scope | None:
    """The scope that a list of words amounts to; unknown words count for nothing."""
    return max((WORDS[word] for word in words if word in WORDS), default=None)


# ---- what a request needs ------------------------------------------------------------------------

_NOTHING: Final = frozenset({"health", "readyz", "pair"})
"""Rows that ask for no token at all."""
_ATTACHING: Final = frozenset(
    {"session_load", "session_resume", "session_heartbeat", "session_detach"}
)
"""Rows that are no GET, but do no more than to come, to stay and to go."""
_VOTES: Final = frozenset({"session_permission_vote", "permission_vote"})
CHANGES_MODE: Final = Scope.APPROVE
"""There is a mode in which an agent asks nobody: to choose one answers all questions to come."""
_MODES: Final = frozenset({"session_approval_mode"})
_CONFIDENTIAL: Final = frozenset({"permission_audit"})
"""Reads that tell of everybody."""

_BY_ACCESS: Final = {
    Access.READ: Scope.READ,
    Access.MUTATE: Scope.PROMPT,
    Access.STRICT: Scope.ADMIN,
}
_ACP: Final = {
    "initialize": Scope.READ,
    "session/load": Scope.READ,
    "session/resume": Scope.READ,
    "session/list": Scope.READ,
    "$/cancel_request": Scope.READ,
    "session/permission": Scope.APPROVE,
    "session/request_permission": Scope.APPROVE,
    "session/set_mode": CHANGES_MODE,
    # Agents have their modes among these options, each under an id of its own.
    "session/set_config_option": CHANGES_MODE,
    "authenticate": Scope.ADMIN,
    "logout": Scope.ADMIN,
}


def required(row: Operation) -> Scope | None:
    """What a row of the operation table needs; None: not even a token."""
    if row.name in _NOTHING:
        return None
    if row.name in _VOTES:
        return Scope.APPROVE
    if row.name in _MODES:
        return CHANGES_MODE
    if row.name in _CONFIDENTIAL:
        return Scope.ADMIN
    if row.name in _ATTACHING:
        return Scope.READ
    return _BY_ACCESS[row.access]


def required_by_acp(method: str) -> Scope | None:
    """What a request or notification on ``/acp`` needs. The answer to
    ``session/request_permission`` goes by that name.

    Whatever is not known here changes something: it needs ``prompt``.
    """
    row = RPC.get(method)
    if row is None and method.startswith("_qwen/"):
        return Scope.ADMIN  # an agent may know it, and what it does there is unknown here
    return _ACP.get(method, Scope.PROMPT) if row is None else required(row)
