"""``acp-gateway connect``: stdio for an editor, WebSocket to a gateway (client home of
trio-websocket).

One line is one text frame. The connection may come and go: `core.bridge` remembers, this module
reconnects with back-off. Nothing but protocol is written to stdout; the process ends at EOF.
"""

from __future__ import annotations

import os
import random
import ssl
import sys
import uuid
from typing import Any, Final
from urllib.parse import urlsplit

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    connect_websocket,
    wrap_client_stream,
)

from acp_gateway.config import MIB, unix_path
from acp_gateway.core.backoff import Backoff
from acp_gateway.core.bridge import Bridge, Output
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.redact import clean
from acp_gateway.runtime.wakeup import Wakeup
from acp_gateway.wire.json_codec import JsonError, dumps, loads
from acp_gateway.wire.jsonrpc import error_bytes, peek_update
from acp_gateway.wire.ndjson import LineSplitter

MAX_LINE: Final = 64 * MIB
CONNECT_TIMEOUT: Final = 10.0
FIRST_PATIENCE: Final = 10.0
"""How long an editor waits for a gateway that was never reached."""
PING_INTERVAL: Final = 20.0
PONG_TIMEOUT: Final = 20.0
MAX_WAITING: Final = 1000
_FINAL: Final = frozenset({400, 401, 403, 404})


def run_bridge(url: str, token: str | None) -> int:
    """Bridge this process's stdio until EOF; the exit status."""
    return trio.run(StdioBridge(url, token).main)


class _Refused(Exception):
    """The gateway will not have us, now or later."""


class StdioBridge:
    def __init__(self, url: str, token: str | None, *, fds: tuple[int, int] = (0, 1)) -> None:
        self._url = url
        self._token = token
        self._in, self._out = fds
        self._bridge = Bridge(lambda: uuid.uuid4().hex)
        self._lines: list[bytes] = []
        self._lines_wakeup = Wakeup()
        self._frames: list[bytes] = []
        self._frames_wakeup = Wakeup()
        self._connected = False
        self._ever_connected = False
        self._room = trio.Event()
        self._written = trio.Event()
        self._written.set()
        self._status = 0

    async def main(self) -> int:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_editor)
            nursery.start_soon(self._stay_connected, nursery.cancel_scope)
            await self._read_editor()
            nursery.cancel_scope.cancel()
        return self._status

    # ---- the editor -----------------------------------------------------------------------------

    async def _read_editor(self) -> None:
        splitter = LineSplitter(MAX_LINE)
        while True:
            data = await trio.to_thread.run_sync(
                os.read, self._in, 256 * 1024, abandon_on_cancel=True
            )
            if not data:
                return
            for line in splitter.feed(data):
                if line.strip():
                    self._from_editor(line)
            while self._bridge.waiting > MAX_WAITING:
                self._room = trio.Event()
                await self._room.wait()

    def _from_editor(self, line: bytes) -> None:
        try:
            message = loads(line)
        except JsonError as exc:
            error = GatewayError(ErrorKind.PARSE_ERROR, f"Invalid JSON: {exc}")
            self._to_editor(error_bytes(None, error.to_jsonrpc()))
            return
        if isinstance(message, dict):
            self._do(self._bridge.from_editor(message))
        else:
            error = GatewayError(ErrorKind.INVALID_REQUEST, "A message is one JSON object")
            self._to_editor(error_bytes(None, error.to_jsonrpc()))

    def _do(self, output: Output) -> None:
        for message in output.to_editor:
            self._to_editor(message if isinstance(message, bytes) else dumps(message))
        if output.to_gateway and self._connected:
            self._frames += [dumps(message) for message in output.to_gateway]
            self._frames_wakeup.set()
        if self._bridge.waiting <= MAX_WAITING:
            self._room.set()

    def _to_editor(self, line: bytes) -> None:
        if self._written.is_set():
            self._written = trio.Event()
        self._lines.append(line)
        self._lines_wakeup.set()

    async def _write_editor(self) -> None:
        while True:
            await self._lines_wakeup.wait()
            while self._lines:
                lines, self._lines = self._lines, []
                lines.append(b"")
                await trio.to_thread.run_sync(_write_all, self._out, b"\n".join(lines))
            self._written.set()

    # ---- the gateway ----------------------------------------------------------------------------

    async def _stay_connected(self, scope: trio.CancelScope) -> None:
        backoff = Backoff(0.25, 15.0)
        deadline = trio.current_time() + FIRST_PATIENCE
        while True:
            try:
                await self._one_connection(backoff)
                problem = "the connection was lost"
            except _Refused as exc:
                await self._give_up(str(exc), scope)
                return
            except (HandshakeError, OSError, trio.TooSlowError) as exc:
                problem = str(exc) or type(exc).__name__
            self._do(self._bridge.disconnected())
            if not self._ever_connected and trio.current_time() > deadline:
                await self._give_up(problem, scope)
                return
            delay = backoff.failed() * random.uniform(0.7, 1.3)
            if self._ever_connected:
                print(
                    f"acp-gateway: {clean(problem)}; trying again in {delay:.1f} s", file=sys.stderr
                )
            await trio.sleep(delay)

    async def _give_up(self, problem: str, scope: trio.CancelScope) -> None:
        error = GatewayError(
            ErrorKind.INTERNAL,
            f"The gateway at {self._url} cannot be used: {problem}",
            remedy="start it with `acp-gateway serve`, or check the URL and the token",
        )
        print(f"acp-gateway: {clean(error.message)}\n  {error.remedy}", file=sys.stderr)
        self._do(self._bridge.give_up(error))
        self._status = 1
        # The editor gets its answers before the process goes.
        with trio.move_on_after(CONNECT_TIMEOUT):
            await self._written.wait()
        scope.cancel()

    async def _one_connection(self, backoff: Backoff) -> None:
        """From handshake to loss. Raises what the handshake raised."""
        try:
            async with trio.open_nursery() as nursery:
                try:
                    with trio.fail_after(CONNECT_TIMEOUT):
                        socket = await self._connect(nursery)
                except ConnectionRejected as exc:
                    if exc.status_code in _FINAL:
                        raise _Refused(_reason(exc)) from None
                    raise
                backoff.succeeded()
                await self._converse(socket, nursery)
                nursery.cancel_scope.cancel()
        except* ConnectionClosed:
            pass
        except* (_Refused, HandshakeError, OSError, trio.TooSlowError) as group:
            raise _first(group) from None

    async def _connect(self, nursery: trio.Nursery) -> WebSocketConnection:
        common: dict[str, Any] = {
            "extra_headers": [(b"Authorization", f"Bearer {self._token}".encode())]
            if self._token
            else [],
            "message_queue_size": 16,
            "max_message_size": MAX_LINE,
            "receive_buffer_size": 64 * 1024,
        }
        path = unix_path(self._url)
        if path is not None:
            stream = await trio.open_unix_socket("\0" + path[1:] if path[0] == "@" else path)
            return await wrap_client_stream(nursery, stream, "localhost", "/acp", **common)
        parts = urlsplit(self._url)
        secure = parts.scheme in ("wss", "https")
        host, port = parts.hostname or "127.0.0.1", parts.port or (443 if secure else 80)
        resource = (parts.path or "/acp") + (f"?{parts.query}" if parts.query else "")
        use_ssl = ssl.create_default_context() if secure else False
        return await connect_websocket(nursery, host, port, resource, use_ssl=use_ssl, **common)

    async def _converse(self, socket: WebSocketConnection, nursery: trio.Nursery) -> None:
        self._connected = self._ever_connected = True
        self._frames.clear()
        try:
            self._do(self._bridge.connected())
            nursery.start_soon(self._write_gateway, socket)
            nursery.start_soon(_keep_alive, socket, nursery.cancel_scope)
            while True:
                data = await socket.get_message()
                self._from_gateway(data.encode() if isinstance(data, str) else data)
        finally:
            self._connected = False

    async def _write_gateway(self, socket: WebSocketConnection) -> None:
        while True:
            await self._frames_wakeup.wait()
            while self._frames:
                frames, self._frames = self._frames, []
                for frame in frames:
                    await socket.send_message(frame.decode())

    def _from_gateway(self, data: bytes) -> None:
        peeked = peek_update(data)
        if peeked is not None:
            self._do(self._bridge.update(peeked[0], data))
            return
        try:
            message: Any = loads(data)
        except JsonError:
            return
        if isinstance(message, dict):
            self._do(self._bridge.from_gateway(message))


async def _keep_alive(socket: WebSocketConnection, scope: trio.CancelScope) -> None:
    """A network that is gone says nothing; a missing pong does."""
    try:
        while True:
            await trio.sleep(PING_INTERVAL)
            with trio.fail_after(PONG_TIMEOUT):
                await socket.ping()
    except (trio.TooSlowError, ConnectionClosed):
        scope.cancel()


def _reason(exc: ConnectionRejected) -> str:
    try:
        body = loads(exc.body or b"")
        text = body.get("error") if isinstance(body, dict) else None
    except JsonError:
        text = None
    return f"HTTP {exc.status_code}" + (f" {text}" if text else "")


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    exc: BaseException = group
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
