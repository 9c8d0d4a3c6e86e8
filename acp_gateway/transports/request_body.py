"""What is left of a request's body when the answer begins.

An answer may not need the body: a refusal, an unknown path, a wrong method. On HTTP/1.1 the rest
must be taken off the wire all the same, or the next request of the connection cannot be read
(RFC 9112 §9.3): a small rest is waited for, else the answer says that the connection ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

PATIENCE: Final = 1.0
"""Seconds that an answer waits for the rest."""
WORTH_TAKING: Final = 1024 * 1024
"""Bytes; a longer body ends the connection instead."""


def finishing(scope: dict[str, Any], receive: Receive, send: Send) -> tuple[Receive, Send]:
    """``receive`` and ``send`` of a request, for an application that may not read the body."""
    headers = {name.lower(): value for name, value in scope["headers"]}
    size = headers.get(b"content-length", b"0")
    chunked = b"transfer-encoding" in headers
    if scope["http_version"] not in ("1.0", "1.1"):
        return receive, send
    small = chunked or (size.isdigit() and int(size) <= WORTH_TAKING)
    complete = trio.Event()
    if not chunked and not size.strip(b"0"):
        complete.set()

    async def receiving() -> dict[str, Any]:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            complete.set()
        return message

    async def take_rest() -> None:
        # The application may wait for the same messages. Whoever gets them: they are gone.
        while not complete.is_set():
            await receiving()

    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and not complete.is_set():
            if small:
                with trio.move_on_after(PATIENCE):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(take_rest)
                        await complete.wait()
                        nursery.cancel_scope.cancel()
            named = {name.lower() for name, _ in message["headers"]}
            if not complete.is_set() and b"connection" not in named:
                close = (b"connection", b"close")
                message = {**message, "headers": [*message["headers"], close]}
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        # Within the last send the server tells the application that its client has gone, and only
        # then ends the connection or makes it ready for the next request: cancelled by the first,
        # it would do neither. Each write has a deadline of its own.
        with trio.CancelScope(shield=last):
            await send(message)

    return receiving, sending
