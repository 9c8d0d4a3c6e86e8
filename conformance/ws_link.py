"""The WebSocket link: one text frame is one message."""

from __future__ import annotations

import json

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    connect_websocket_url,
)

from conformance.links import Handler, Link, Message, allow
from conformance.outcome import Failure, LinkClosed
from conformance.target import Target

MAX_MESSAGE = 64 * 1024 * 1024


class WsLink(Link):
    transport = "ws"

    def __init__(
        self,
        nursery: trio.Nursery,
        target: Target,
        handler: Handler = allow,
        *,
        subprotocols: tuple[str, ...] = (),
        query: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(nursery, handler)
        self._target = target
        self._subprotocols = subprotocols
        self._query = query
        self._headers = target.auth_headers if headers is None else headers
        self.socket: WebSocketConnection

    async def open(self) -> None:
        """Raises `Failure` with the status when the upgrade is refused."""
        try:
            self.socket = await connect_websocket_url(
                self.nursery,
                self._target.ws_url + self._query,
                subprotocols=list(self._subprotocols) or None,
                extra_headers=[(k.encode(), v.encode()) for k, v in self._headers.items()],
                message_queue_size=64,
                max_message_size=MAX_MESSAGE,
                receive_buffer_size=65536,
            )
        except ConnectionRejected as refusal:
            raise Failure(f"the upgrade was answered {refusal.status_code}") from None
        except HandshakeError as error:
            raise Failure(f"the upgrade failed: {error!r}") from None
        names = {k.decode().lower(): v.decode() for k, v in self.socket.handshake_headers}
        self.connection_id = names.get("acp-connection-id")
        self.nursery.start_soon(self._read)

    async def _read(self) -> None:
        try:
            while True:
                frame = await self.socket.get_message()
                try:
                    self.received(json.loads(frame), "ws")
                except ValueError:
                    self.received({"not JSON": str(frame[:200])}, "ws")
        except ConnectionClosed as closed:
            reason = closed.reason
            code = f"{reason.code} {reason.reason or ''}".strip() if reason else "no close frame"
            self.ended(f"close {code}")

    async def send(self, message: Message) -> None:
        await self.send_text(json.dumps(message, ensure_ascii=False))

    async def send_text(self, text: str | bytes) -> None:
        """Send a text frame, or a binary one for bytes."""
        try:
            await self.socket.send_message(text)
        except ConnectionClosed as closed:
            raise LinkClosed(f"the connection is closed: {closed.reason}") from None

    async def attached(self, session_id: str) -> None:
        """Nothing to do: a WebSocket carries every session from the answer on."""

    async def drop(self) -> None:
        # The stream is closed under the protocol: no close frame goes out.
        await trio.aclose_forcefully(self.socket._stream)
        self.ended("dropped by the case")

    async def close(self) -> None:
        self.ended("closed by the case")
        await self.socket.aclose()
