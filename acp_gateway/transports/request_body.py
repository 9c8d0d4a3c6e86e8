"""A request's body: reading it, and what is left of it when the answer begins.

An answer may not need the body: a refusal, an unknown path, a wrong method. On HTTP/1.1 the rest
must be taken off the wire all the same, or the next request of the connection cannot be read
(RFC 9112 §9.3): a small rest is waited for, else the answer says that the connection ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import trio
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from acp_gateway.transports.peer_stream import linger_at_close

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

PATIENCE: Final = 1.0
"""Seconds that an answer waits for the rest."""
WORTH_TAKING: Final = 1024 * 1024
"""Bytes; a longer body ends the connection instead."""
OPEN_LIMIT: Final = 4096
"""Bytes of the body of a request that needs no token: a code and a name."""
OPEN_TIMEOUT: Final = 5.0
"""Seconds that such a body may take: anybody can send as many of them as there are connections."""
WHEN_GONE: Final = "acp_gateway.when_gone"
"""Extension of the ASGI scope: takes a function that is called once the client has gone."""


class BodyTooLarge(RequestEntityTooLarge):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit


async def read_body(
    receive: Receive, headers: Mapping[str, str], limit: int, timeout: float
) -> bytes:
    """The whole body, within ``timeout`` seconds.

    Raises `BodyTooLarge` and werkzeug's `RequestTimeout`.
    """
    size = headers.get("content-length", "")
    if size.isdecimal() and int(size) > limit and "transfer-encoding" not in headers:
        raise BodyTooLarge(limit)
    pieces, total, more = [], 0, True
    with trio.move_on_after(timeout) as scope:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                # Whoever waits for the body is cancelled then.
                await trio.sleep_forever()
            piece = message.get("body", b"")
            more = message.get("more_body", False)
            pieces.append(piece)
            total += len(piece)
            if total > limit:
                raise BodyTooLarge(limit)
    if scope.cancelled_caught:
        raise RequestTimeout
    return b"".join(pieces)


def clipped(receive: Receive, limit: int) -> Receive:
    """``receive`` for an application that keeps what it receives, asked for or not: of a longer
    body it gets one byte more than ``limit``."""
    room = limit + 1

    async def receiving() -> dict[str, Any]:
        nonlocal room
        message = await receive()
        if message["type"] == "http.request":
            piece = message.get("body", b"")[:room]
            room -= len(piece)
            message = {**message, "body": piece}
        return message

    return receiving


def finishing(
    scope: dict[str, Any], headers: Mapping[str, str], receive: Receive, send: Send
) -> tuple[Receive, Send]:
    """``receive`` and ``send`` of a request, for an application that may not read the body."""
    size = headers.get("content-length", "0")
    chunked = "transfer-encoding" in headers
    if scope["http_version"] not in ("1.0", "1.1") or not (chunked or size.strip("0")):
        return receive, send
    small = chunked or (size.isdigit() and int(size) <= WORTH_TAKING)
    complete = trio.Event()

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
            if not complete.is_set():
                linger_at_close()
                if b"connection" not in {name.lower() for name, _ in message["headers"]}:
                    close = (b"connection", b"close")
                    message = {**message, "headers": [*message["headers"], close]}
        await send(message)

    return receiving, sending
