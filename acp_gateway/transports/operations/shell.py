"""Commands of a user in a session's directory."""

from __future__ import annotations

from typing import Any

import trio

from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.transports.operations.call import Call


def _check_on(call: Call) -> None:
    if not call.manager.shell_is_on:
        kind = ErrorKind.SESSION_SHELL_DISABLED
        raise GatewayError(
            kind,
            "Direct session shell is disabled",
            remedy="serve with --enable-session-shell and a token",
            errorKind=kind.word,
        )


def _client_of(call: Call) -> str:
    client = call.caller.client_id
    if client is None:
        kind = ErrorKind.CLIENT_ID_REQUIRED
        raise GatewayError(
            kind,
            "Direct session shell requires a session-bound client id",
            remedy="send the clientId of creating or attaching as X-Qwen-Client-Id",
            errorKind=kind.word,
        )
    return client


async def run(call: Call) -> Any:
    """Run a command; the answer comes with its end.

    A client that takes its request back, or hangs up on it over HTTP, stops the command. It goes on
    when an ACP connection ends: the client comes back for the events.
    """
    session = call.session()
    _check_on(call)
    call.manager.workspace.check_trusted()
    running = await session.shells.start(call.params.get("command"), _client_of(call))
    try:
        await running.told.wait()
    except trio.Cancelled:
        if call.caller.wants_no_more():
            running.stop("The client that asked for it has gone")
        raise
    return running.answer()


async def cancel(call: Call) -> Any:
    """Stop a command, whoever runs it."""
    session = call.session()
    _check_on(call)
    client = _client_of(call)
    if session.shells.stop(call.text("shellId") or "", f"Stopped by {client}"):
        return {"cancelled": True}
    return {"cancelled": False, "reason": "not_found"}
