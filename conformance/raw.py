"""Bytes on a socket: HTTP requests and WebSocket frames that no decent client would send."""

from __future__ import annotations

import base64
import json
import os
import struct
from typing import Any

import trio

from conformance.outcome import Failure, check
from conformance.target import Target

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class RawHead:
    """Status and headers (names in lower case) of an HTTP/1.1 answer."""

    def __init__(self, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        parts = lines[0].split(" ", 2)
        check(len(parts) >= 2 and parts[1].isdigit(), f"no HTTP status line: {lines[0]!r}")
        self.status = int(parts[1])
        self.headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()


class RawConnection:
    """A TCP (or TLS) connection with a read buffer."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._buffer = b""

    @classmethod
    async def open(cls, target: Target) -> RawConnection:
        return cls(await target.connect())

    async def send(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError:
            raise Failure("the server closed the connection while it was written to") from None

    async def _more(self) -> None:
        try:
            chunk = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            chunk = b""
        if not chunk:
            raise EOFError
        self._buffer += chunk

    async def exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            await self._more()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    async def head(self) -> RawHead | None:
        """The next answer's head, None when the connection ends first."""
        try:
            while b"\r\n\r\n" not in self._buffer:
                await self._more()
        except EOFError:
            return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return RawHead(head)

    async def request(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes = b"",
    ) -> RawHead | None:
        """Send a request with exactly these headers and read the answer's head and body."""
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        await self.send("\r\n".join(lines).encode("latin-1") + body)
        head = await self.head()
        if head is not None and head.status != 101 and "content-length" in head.headers:
            await self.exactly(int(head.headers["content-length"]))
        return head

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


def upgrade_headers(target: Target, **changes: str | None) -> dict[str, str]:
    """Headers of a correct WebSocket upgrade; ``changes`` replace (or with None remove) some,
    with ``_`` in a name for ``-``."""
    headers: dict[str, str] = {
        "Host": target.authority,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        **target.auth_headers,
    }
    for name, value in changes.items():
        key = name.replace("_", "-")
        known = next((have for have in headers if have.lower() == key.lower()), key)
        if value is None:
            headers.pop(known, None)
        else:
            headers[known] = value
    return headers


class RawWebSocket:
    """WebSocket frames by hand: no checks, no automatic answers."""

    def __init__(self, connection: RawConnection, head: RawHead) -> None:
        self.connection = connection
        self.headers = head.headers

    async def frame(
        self, opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True, rsv: int = 0
    ) -> None:
        first = (0x80 if fin else 0) | rsv << 4 | opcode
        mask_bit = 0x80 if masked else 0
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", first, mask_bit | size)
        elif size < 65536:
            head = struct.pack("!BBH", first, mask_bit | 126, size)
        else:
            head = struct.pack("!BBQ", first, mask_bit | 127, size)
        # The zero mask is a legal one and leaves the payload as it is.
        await self.connection.send(head + (b"\0\0\0\0" if masked else b"") + payload)

    async def message(self, message: Any) -> None:
        await self.frame(TEXT, json.dumps(message).encode())

    async def next_frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame; EOFError at the end."""
        first, second = await self.connection.exactly(2)
        check(not second & 0x80, "the server masks its frames")
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await self.connection.exactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.connection.exactly(8))
        return first & 0x0F, await self.connection.exactly(size)

    async def next_json(self) -> dict[str, Any]:
        """The next text message, over pings; `Failure` when the server closes instead."""
        while True:
            try:
                opcode, payload = await self.next_frame()
            except EOFError:
                raise Failure("the server closed the connection without an answer") from None
            if opcode == TEXT:
                message = json.loads(payload)
                check(isinstance(message, dict), f"no JSON object: {payload[:200]!r}")
                return dict(message)
            check(opcode in (PING, PONG), f"opcode {opcode} instead of text: {payload[:100]!r}")

    async def answer_to(self, request_id: Any) -> dict[str, Any]:
        """The next response with this id."""
        while True:
            message = await self.next_json()
            if "method" not in message and message.get("id") == request_id:
                return message

    async def close_code(self) -> int | None:
        """Read on until the server closes; its code, None without a close frame."""
        try:
            while True:
                opcode, payload = await self.next_frame()
                if opcode == CLOSE:
                    return int(struct.unpack("!H", payload[:2])[0]) if payload else 1005
        except EOFError:
            return None

    async def initialize(self, request_id: Any = "init") -> dict[str, Any]:
        params = {"protocolVersion": 1, "clientCapabilities": {}}
        await self.message(
            {"jsonrpc": "2.0", "id": request_id, "method": "initialize", "params": params}
        )
        return await self.answer_to(request_id)

    async def fence(self, request_id: Any = "fence") -> dict[str, Any]:
        """A round trip with an unknown method; its answer."""
        await self.message({"jsonrpc": "2.0", "id": request_id, "method": "conformance/fence"})
        return await self.answer_to(request_id)
