"""One call of an operation: who calls, with what, and what it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from acp_gateway.core.mediator import Voter
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.parties import checked_syntax
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.sessions import SessionManager

if TYPE_CHECKING:
    from acp_gateway.transports.hub import Hub


@attrs.frozen(kw_only=True)
class Caller:
    """Who calls. ``binding`` is the ACP client that speaks; None over REST."""

    claimed: str | None = None
    """The client id that it says it has, unread."""
    binding: str | None = None
    loopback: bool = False
    profile: AgentProfile | None = None
    """The agent of the endpoint that it speaks to; None: the daemon's first."""
    leave: Callable[[str], None] | None = None
    """Ends what an ACP connection follows of a session."""

    @property
    def client_id(self) -> str | None:
        """Raises ``invalid_client_id`` for what cannot be one."""
        return checked_syntax(self.claimed)

    @property
    def voter(self) -> Voter:
        return Voter(client_id=self.client_id, loopback=self.loopback)


@attrs.frozen(kw_only=True)
class Reply:
    """An answer that is not just a body with the row's status."""

    body: Any = None
    status: int | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Call:
    hub: Hub
    caller: Caller
    params: Mapping[str, Any]
    """Members of the body, the query's (as strings), and the path's, the later ones winning."""
    idempotency_key: str | None = None
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
        if not ((self.reads or anybody) and session.parties.has(self.caller.client_id)):
            session.parties.check(self.caller.client_id, self.caller.binding, session.id)
        return session


Handler: TypeAlias = Callable[[Call], Awaitable[Any]]


def bad_request(message: str, *, remedy: str | None = None, **data: Any) -> GatewayError:
    """A member of the body is missing or wrong."""
    return GatewayError(ErrorKind.INVALID_REQUEST, message, remedy=remedy, **data)
