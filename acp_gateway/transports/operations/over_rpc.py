"""The operations as JSON-RPC methods: the same handlers, the connection as the caller."""

from __future__ import annotations

from typing import Any

from acp_gateway.protocol.extensions import OPERATIONS, Access
from acp_gateway.transports.connection import Context
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.operations.access import check_access
from acp_gateway.transports.operations.call import Call, Caller, Reply
from acp_gateway.transports.operations.table import HANDLERS


def serve_over_rpc(hub: Hub) -> None:
    """Let the ``/acp`` connections of this hub call the operations."""

    async def run(name: str, context: Context, params: dict[str, Any]) -> Any:
        connection = context.connection
        row = OPERATIONS[name]
        check_access(row, hub, connection.identity, local=connection.loopback)
        caller = Caller(
            claimed=connection.client_id,
            binding=connection.origin,
            loopback=connection.loopback,
            identity=connection.identity,
            profile=connection.profile,
            leave=connection.leave,
            wants_no_more=lambda: context.taken_back,
        )
        answer = await HANDLERS[name](
            Call(hub=hub, caller=caller, params=params, reads=row.access is Access.READ)
        )
        body = answer.body if isinstance(answer, Reply) else answer
        return {"ok": True} if body is None else body

    hub.agent.operations = run
