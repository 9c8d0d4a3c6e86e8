"""The mutation gate, the same for REST and JSON-RPC."""

from __future__ import annotations

from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.extensions import Access, Operation
from acp_gateway.transports.hub import Hub


def check_access(row: Operation, hub: Hub) -> None:
    """The mutation gate. Raises ``token_required``."""
    if row.access is not Access.STRICT:
        return
    settings = hub.settings
    if settings.token is None and not settings.trust_loopback:
        raise GatewayError(
            ErrorKind.TOKEN_REQUIRED,
            "This route needs a token, and the gateway runs without one",
            remedy="serve with --token, or with --trust-loopback if everybody on this machine may",
        )
