"""The mutation gate and the scopes of tokens, the same for REST and JSON-RPC."""

from __future__ import annotations

from acp_gateway.core.identity import Identity, Kind, required
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.extensions import Access, Operation
from acp_gateway.transports.hub import Hub


def check_access(row: Operation, hub: Hub, identity: Identity, *, local: bool) -> None:
    """Raises ``token_required`` and ``insufficient_scope``. ``local``: the caller is of this
    machine."""
    strict = row.access is Access.STRICT
    trusted = hub.settings.trust_loopback and local
    if strict and identity.kind is Kind.OPEN and not trusted:
        raise GatewayError(
            ErrorKind.TOKEN_REQUIRED,
            "This route needs a token, and the gateway runs without one",
            remedy="serve with --token, or with --trust-loopback if everybody on this machine may",
        )
    identity.demand(required(row))
