"""Client ids: who minted them for whom, and who may use them.

An id is bound to the ACP connection that it was minted for (a client that names itself keeps it
over its connections); ids of REST clients are bound to none. Both are bound to the identity that
they were minted for. Using another's is refused with the same error as using an unknown one: ids
are visible in events, and knowing one is no proof.
"""

from __future__ import annotations

import re
import time
import uuid
from collections import OrderedDict
from typing import Final

import attrs

from acp_gateway.core.identity import OPEN, Identity, Scope
from acp_gateway.core.question import elector_of
from acp_gateway.protocol.errors import ErrorKind, GatewayError

_SYNTAX: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
REMEMBERED: Final = 4096
MOST: Final = 512
"""Client ids of one session."""


def mint() -> str:
    return f"client_{uuid.uuid4()}"


def checked_syntax(value: str | None) -> str | None:
    """A client id as a header carries it; empty counts as absent. Raises ``invalid_client_id``."""
    if not value:
        return None
    if not _SYNTAX.fullmatch(value):
        raise GatewayError(
            ErrorKind.INVALID_CLIENT_ID,
            "`X-Qwen-Client-Id` must be a non-empty token of 128 characters or fewer",
            remedy="send the clientId that creating or attaching answered with",
        )
    return value


@attrs.define
class Party:
    client_id: str
    binding: str | None
    """The ACP client that it belongs to; None for clients over REST."""
    identity: Identity = OPEN
    references: int = 1
    last_seen: float = attrs.field(factory=time.time)
    """Unix time, seconds."""


class Parties:
    """The client ids of one session."""

    def __init__(self) -> None:
        self._by_id: dict[str, Party] = {}
        self.names: dict[str, str] = {}
        """Of clients whose identity has one, also of some that have left: client id -> name."""

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def ids(self) -> frozenset[str]:
        return frozenset(self._by_id)

    @property
    def electorate(self) -> dict[str, str]:
        """The clients that may answer permission requests: client id -> who it counts as. All of
        one identity are one party."""
        return {
            each.client_id: elector_of(each.client_id, each.identity.party) or each.client_id
            for each in self._by_id.values()
            if each.identity.may(Scope.APPROVE)
        }

    def join(self, client_id: str | None, binding: str | None, identity: Identity = OPEN) -> str:
        """Count one more use of an id that is registered here, or mint one."""
        known = self.find(client_id, binding, identity)
        if known is not None and known.client_id in self._by_id:
            known.references += 1
            known.last_seen = time.time()
            return known.client_id
        if client_id is None or binding is None:
            client_id = mint()
        self._by_id[client_id] = Party(client_id, binding, identity)
        self._note(client_id, identity)
        if len(self._by_id) > MOST:
            self._forget_one(client_id)
        return client_id

    def _forget_one(self, newest: str) -> None:
        """Of clients over REST nobody knows whether they are still there; the one that was not
        seen for longest makes room, and attaches anew when it comes back."""
        free = [
            each
            for each in self._by_id.values()
            if each.binding is None and each.client_id != newest
        ]
        if free:
            del self._by_id[min(free, key=lambda each: each.last_seen).client_id]

    def _note(self, client_id: str, identity: Identity) -> None:
        if identity.name is None:
            return
        self.names.pop(client_id, None)
        self.names[client_id] = identity.name
        while len(self.names) > 2 * MOST:
            del self.names[next(iter(self.names))]

    def has(self, client_id: str | None, identity: Identity = OPEN) -> bool:
        """Is it registered, over whatever transport, for this identity?"""
        party = self._by_id.get(client_id or "")
        return party is not None and party.identity.party == identity.party

    def find(
        self, client_id: str | None, binding: str | None, identity: Identity = OPEN
    ) -> Party | None:
        """What is registered under the id for just this one. An identity's own name is its own
        without being registered."""
        if client_id is not None and client_id == identity.party:
            self._note(client_id, identity)
            return Party(client_id, binding, identity)
        party = self._by_id.get(client_id or "")
        if party is None or party.binding != binding:
            return None
        return party if party.identity.party == identity.party else None

    def check(
        self,
        client_id: str | None,
        binding: str | None,
        session_id: str,
        identity: Identity = OPEN,
    ) -> Party | None:
        """Who that is; None for an anonymous one. Raises ``invalid_client_id``."""
        if client_id is None:
            return None
        party = self.find(client_id, binding, identity)
        if party is None:
            raise GatewayError(
                ErrorKind.INVALID_CLIENT_ID,
                f'Client id "{client_id}" is not registered for session {session_id}',
                remedy="attach to the session (load or resume) and use the clientId of its answer",
                sessionId=session_id,
                clientId=client_id,
            )
        party.last_seen = time.time()
        return party

    def expire(self, before: float) -> list[str]:
        """Forget the clients over REST that were last seen before this Unix time; their ids."""
        gone = [
            each.client_id
            for each in self._by_id.values()
            if each.binding is None and each.last_seen < before
        ]
        for client_id in gone:
            del self._by_id[client_id]
        return gone

    def leave(self, client_id: str) -> bool:
        """One use less. True when the id is gone from the session."""
        party = self._by_id.get(client_id)
        if party is None:
            return False
        party.references -= 1
        if party.references > 0:
            return False
        del self._by_id[client_id]
        return True


class ClientIds:
    """The id of each ACP client, kept over its reconnects while it is remembered."""

    def __init__(self) -> None:
        self._by_origin: OrderedDict[str, str] = OrderedDict()

    def of(self, origin: str) -> str:
        client_id = self._by_origin.setdefault(origin, mint())
        self._by_origin.move_to_end(origin)
        while len(self._by_origin) > REMEMBERED:
            self._by_origin.popitem(last=False)
        return client_id
