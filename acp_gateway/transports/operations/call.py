"""One call of an operation: who calls, with what, and what it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import attrs

from acp_gateway.core.identity import OPEN, Identity
from acp_gateway.core.mediator import Voter
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.parties import checked_syntax
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.sessions import SessionManager

if TYPE_CHECKING:
    from acp_gateway.transports.hub import Hub

NO_STORE: Final[Mapping[str, str]] = MappingProxyType({"cache-control": "no-store"})
"""Headers of an answer that is nobody else's."""


@attrs.frozen(kw_only=True)
class Caller:
    """Who calls. ``binding`` is the ACP client that speaks; None over REST."""

    claimed: str | None = None
    """The client id that it says it has, unread."""
    binding: str | None = None
    loopback: bool = False
    identity: Identity = OPEN
    """Whose token came with the call."""
    profile: AgentProfile | None = None
    """The agent of the endpoint that it speaks to; None: the daemon's first."""
    leave: Callable[[str], None] | None = None
    """Ends what an ACP connection follows of a session."""
    wants_no_more: Callable[[], bool] = lambda: True
    """Asked when the call is cancelled: did the caller take it back? Else its connection broke."""

    @property
    def client_id(self) -> str | None:
        """Raises ``invalid_client_id`` for what cannot be one. Who names none goes by the name of
        its token, where that is its alone."""
        return checked_syntax(self.claimed) or self.identity.party

    @property
    def voter(self) -> Voter:
        return Voter(
            client_id=self.client_id,
            loopback=self.loopback,
            name=self.identity.name,
            party=self.identity.party,
        )


@attrs.frozen(kw_only=True)
class Reply:
    """An answer that is not just a body with the row's status."""

    body: Any = None
    raw: bytes | None = None
    """The body as it is, instead of JSON; the headers have its type."""
    status: int | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Call:
    hub: Hub
    caller: Caller
    params: Mapping[str, Any]
    """Members of the body, the query's (as strings), and the path's, the later ones winning."""
    idempotency_key: str | None = None
    accept: str = ""
    """The ``Accept`` header."""
    reads: bool = False
    """The operation changes nothing."""

    @property
    def manager(self) -> SessionManager:
        return self.hub.manager

    def text(self, name: str) -> str | None:
        """A string parameter; anything else counts as absent."""
        value = self.params.get(name)
        return value if isinstance(value, str) else None

    def flag(self, name: str) -> bool:
        """True for true, ``true`` and ``1``."""
        return self.params.get(name) in (True, "true", "1")

    def session(self, *, anybody: bool = False) -> Session:
        """The live session of the path. Raises ``session_not_found`` and ``invalid_client_id``.

        To read, or where it does not matter who asks (``anybody``), any id of the session will do:
        Qwen's client reads and rewinds over REST with the id of its ACP connection.
        """
        session = self.manager.get(self.text("sessionId") or "")
        caller = self.caller
        if not ((self.reads or anybody) and session.parties.has(caller.client_id, caller.identity)):
            self.check_client(session)
        return session

    def check_client(self, session: Session) -> None:
        """Raises ``invalid_client_id``."""
        caller = self.caller
        session.parties.check(caller.client_id, caller.binding, session.id, caller.identity)


Handler: TypeAlias = Callable[[Call], Awaitable[Any]]


def bad_request(message: str, *, remedy: str | None = None, **data: Any) -> GatewayError:
    """A member of the body is missing or wrong."""
    return GatewayError(ErrorKind.INVALID_REQUEST, message, remedy=remedy, **data)
