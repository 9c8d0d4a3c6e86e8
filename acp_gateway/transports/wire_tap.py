"""Taps for `runtime.wire_trace` on the clients' side: HTTP requests and WebSockets.

They are put in place when the trace is on; what they stand around does not know of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Final

from acp_gateway.core.outlet import Outlet
from acp_gateway.runtime.redact import redact_header
from acp_gateway.runtime.wire_trace import FRAME_BYTES, WireTrace
from acp_gateway.transports.connection import connection_label

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

Take = Callable[[str, Any, Any], None]

BODY_BYTES: Final = FRAME_BYTES


class TracedHttp:
    """Around an ASGI application: heads, bodies, and each piece of a stream."""

    def __init__(self, asgi: Any, wire: WireTrace) -> None:
        self._asgi = asgi
        self._wire = wire
        self._numbers = itertools.count(1)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._asgi(scope, receive, send)
            return
        wire, kind = self._wire, scope["type"]
        peer = f"{kind} {next(self._numbers)}"
        method = scope.get("method", "GET")
        wire.note(
            "client",
            "in",
            peer,
            {"request": f"{method} {scope['path']}", "head": headers_of(scope["headers"])},
        )
        # At its end, for a proxy's base path is still before it.
        route = scope["path"].rstrip("/")
        body = _Body(wire, "in", peer, "code" if route.endswith("/pair") else None)
        answer = _Body(wire, "out", peer)

        async def receiving() -> dict[str, Any]:
            message = await receive()
            if message["type"] == "http.request":
                body.add(message.get("body", b""), ends=not message.get("more_body", False))
            elif message["type"] == "websocket.receive":
                _message(wire, "in", peer, message)
            elif message["type"].endswith(".disconnect"):
                wire.note("client", "in", peer, {"event": "disconnect"})
            return message

        async def sending(message: dict[str, Any]) -> None:
            kind = message["type"]
            if kind.endswith("response.start") or kind == "websocket.accept":
                status = message.get("status", 101)
                headers = headers_of(message.get("headers", ()))
                wire.note("client", "out", peer, {"status": status, "head": headers})
                if route.endswith("/pair/code") and status < 400:  # an error's code is a word
                    answer.hidden = "code"
                answer.streams = headers.get("content-type", "").startswith("text/event-stream")
            elif kind.endswith("response.body"):
                answer.add(message.get("body", b""), ends=not message.get("more_body", False))
            elif kind == "websocket.send":
                _message(wire, "out", peer, message)
            await send(message)

        await self._asgi(scope, receiving, sending)


def _message(wire: WireTrace, direction: str, peer: str, message: dict[str, Any]) -> None:
    text = message.get("text")
    data = message.get("bytes") or b"" if text is None else text.encode()
    wire.frame("client", direction, peer, data)


class _Body:
    """One body: whole when it has ended, a stream's piece by piece."""

    def __init__(
        self, wire: WireTrace, direction: str, peer: str, hidden: str | None = None
    ) -> None:
        self._wire = wire
        self.hidden = hidden
        """See `Frame.hidden`: the code of a pairing is worth a token, and has no look."""
        self._direction = direction
        self._peer = peer
        self._kept = bytearray()
        self._size = 0
        self._told = False
        self.streams = False

    def add(self, data: Any, *, ends: bool) -> None:
        if self.streams:
            for event in bytes(data).split(b"\n\n"):
                if event:
                    self._wire.frame("client", self._direction, self._peer, event)
            return
        room = BODY_BYTES - len(self._kept)
        if room > 0:
            self._kept += bytes(data[:room])
        self._size += len(data)
        if ends and self._size and not self._told:
            self._told = True
            kept = bytes(self._kept)
            self._wire.frame(
                "client", self._direction, self._peer, kept, self._size, hidden=self.hidden
            )


def headers_of(pairs: Any) -> dict[str, str]:
    """Header values for the trace: only those that say nothing about who asks."""
    told = {}
    for name, value in pairs:
        key = bytes(name).decode("latin-1").lower()
        text = bytes(value).decode("latin-1")
        if key == "acp-connection-id":
            told[key] = connection_label(text)
        else:
            told[key] = redact_header(key, text)
    return told


def trace_outlet(wire: WireTrace, outlet: Outlet, peer: str) -> None:
    """Trace what a WebSocket's outlet gives, in the order in which it is written."""
    collect = outlet.collect

    def collecting() -> list[bytes]:
        parts = collect()
        if parts:
            for payload in ws_payloads(b"".join(parts)):
                wire.frame("client", "out", peer, payload)
        return parts

    outlet.collect = collecting  # type: ignore[method-assign]


def traced_socket(wire: WireTrace, peer: Any, request: Any, handle: Take) -> Take:
    """Trace one WebSocket; gives what handles its messages instead of ``handle``."""
    name = f"websocket {peer.label}"
    told = {"request": f"GET {request.path.partition('?')[0]}", "head": headers_of(request.headers)}
    wire.note("client", "in", name, told)
    trace_outlet(wire, peer.outlet, name)

    def traced(data: str, peer: Any, spawn: Any) -> None:
        wire.frame("client", "in", name, data.encode(errors="replace"))
        handle(data, peer, spawn)

    return traced


def ws_payloads(data: bytes) -> list[bytes]:
    """The payloads of whole frames without masks (RFC 6455 §5.2), as a server sends them."""
    found = []
    at = 0
    while at + 2 <= len(data):
        size = data[at + 1] & 0x7F
        at += 2
        if size == 126:
            size = int.from_bytes(data[at : at + 2])
            at += 2
        elif size == 127:
            size = int.from_bytes(data[at : at + 8])
            at += 8
        found.append(data[at : at + size])
        at += size
    return found
