"""Two small ACP clients on trio, over WebSocket and over Streamable HTTP, with one face.

A client keeps every message in order and answers nothing by itself.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    connect_websocket_url,
)

DEADLINE = 30.0

Message = dict[str, Any]


class RpcError(Exception):
    """An error response; ``error`` is its object."""

    def __init__(self, error: Message) -> None:
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.error = error


class Gone(Exception):
    """The connection ended before the answer."""


async def rejection(
    url: str,
    *,
    headers: list[tuple[bytes, bytes]] | None = None,
    subprotocols: list[str] | None = None,
) -> httpx2.Response:
    """The answer to a WebSocket upgrade that must be refused."""
    sent = [
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Version", b"13"),
        (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
        *(headers or ()),
    ]
    if subprotocols:
        sent.append((b"Sec-WebSocket-Protocol", ", ".join(subprotocols).encode()))
    async with httpx2.AsyncClient(trust_env=False, timeout=DEADLINE) as http:
        answer = await http.get(url.replace("ws", "http", 1), headers=sent)
    assert answer.status_code != 101, "it was let in"
    return answer


class AcpClient:
    """What both transports share."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.closed: tuple[int, str | None] | None = None
        """Close code and reason of a WebSocket; (0, None) when the transport just ended."""
        self.connection_id = ""
        self._answers: dict[int, Message] = {}
        self._next_id = 0
        self._changed = trio.Event()

    async def post(self, message: Message) -> None:
        raise NotImplementedError

    def _incoming(self, message: Message) -> None:
        if "method" not in message and isinstance(message.get("id"), int):
            self._answers[message["id"]] = message
        self.messages.append(message)
        self._signal()

    def _signal(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _ended(self, code: int, reason: str | None) -> None:
        self.closed = self.closed or (code, reason)
        self._signal()

    async def until(self, what: Callable[[], Any], seconds: float = DEADLINE) -> Any:
        """The first true value of ``what``, looked at after every message."""
        with trio.fail_after(seconds):
            while not (value := what()):
                await self._changed.wait()
            return value

    async def start(self, method: str, params: Any = None) -> int:
        """Send a request; its id."""
        self._next_id += 1
        id = self._next_id
        await self.post({"jsonrpc": "2.0", "id": id, "method": method, "params": params or {}})
        return id

    async def answer(self, id: int, seconds: float = DEADLINE) -> Any:
        """The result. Raises `RpcError`, or `Gone` when the connection ended."""
        await self.until(lambda: id in self._answers or self.closed, seconds)
        if id not in self._answers:
            raise Gone(str(self.closed))
        message = self._answers[id]
        if "error" in message:
            raise RpcError(message["error"])
        return message["result"]

    async def request(self, method: str, params: Any = None, seconds: float = DEADLINE) -> Any:
        with trio.fail_after(seconds):
            return await self.answer(await self.start(method, params), seconds)

    async def notify(self, method: str, params: Any) -> None:
        await self.post({"jsonrpc": "2.0", "method": method, "params": params})

    async def respond(self, id: Any, result: Any) -> None:
        await self.post({"jsonrpc": "2.0", "id": id, "result": result})

    # ---- ACP ------------------------------------------------------------------------------------

    async def new(self, cwd: Any) -> str:
        result = await self.request("session/new", {"cwd": str(cwd), "mcpServers": []})
        await self.follow(result["sessionId"])
        session_id: str = result["sessionId"]
        return session_id

    async def load(self, cwd: Any, session_id: str, **meta: Any) -> Any:
        await self.follow(session_id)
        params = {"cwd": str(cwd), "mcpServers": [], "sessionId": session_id}
        return await self.request("session/load", params | meta)

    async def follow(self, session_id: str) -> None:
        """Open what the transport needs to hear of the session."""

    async def begin(self, session_id: str, text: str) -> int:
        """Start a prompt; its request's id."""
        prompt = [{"type": "text", "text": text}]
        return await self.start("session/prompt", {"sessionId": session_id, "prompt": prompt})

    async def say(self, session_id: str, text: str, seconds: float = DEADLINE) -> Any:
        return await self.answer(await self.begin(session_id, text), seconds)

    def of(self, session_id: str, method: str = "session/update") -> list[Message]:
        """The params of what came of a session, in order."""
        found = []
        for message in self.messages:
            params = message.get("params") or {}
            data = params.get("data") if isinstance(params.get("data"), dict) else {}
            if message.get("method") == method and session_id in (
                params.get("sessionId"),
                data.get("sessionId"),
            ):
                found.append(params)
        return found

    def text(self, session_id: str, kind: str = "agent_message_chunk") -> str:
        return "".join(
            params["update"]["content"].get("text", "")
            for params in self.of(session_id)
            if params["update"]["sessionUpdate"] == kind
        )

    def notices(self, session_id: str, kind: str) -> list[Message]:
        return [
            params["data"]
            for params in self.of(session_id, "_qwen/notify")
            if params["kind"] == kind
        ]

    def questions(self) -> list[Message]:
        """Requests for permission that came, settled or not."""
        return [m for m in self.messages if m.get("method") == "session/request_permission"]

    async def permit(self, number: int = 0, option: str = "allow-once") -> None:
        await self.until(lambda: len(self.questions()) > number)
        outcome = {"outcome": "selected", "optionId": option}
        await self.respond(self.questions()[number]["id"], {"outcome": outcome})


INITIALIZE: Message = {
    "protocolVersion": 1,
    "clientCapabilities": {},
    "clientInfo": {"name": "test-client", "version": "1"},
}


class WsClient(AcpClient):
    def __init__(self, socket: WebSocketConnection) -> None:
        super().__init__()
        self.socket = socket
        self.reading = trio.Event()
        self.reading.set()

    async def post(self, message: Message) -> None:
        await self.socket.send_message(json.dumps(message))

    async def run(self) -> None:
        try:
            while True:
                await self.reading.wait()
                self._incoming(json.loads(await self.socket.get_message()))
        except ConnectionClosed as exc:
            reason = exc.reason
            self._ended(*((reason.code, reason.reason) if reason is not None else (0, None)))

    def cut(self) -> None:
        """End the TCP connection without a goodbye."""
        stream = self.socket._stream
        tcp = getattr(stream, "transport_stream", stream).socket
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        tcp.close()


@asynccontextmanager
async def ws_client(
    url: str,
    *,
    headers: list[tuple[bytes, bytes]] | None = None,
    subprotocols: list[str] | None = None,
    tls: ssl.SSLContext | None = None,
    initialize: bool = True,
    meta: Message | None = None,
) -> AsyncIterator[WsClient]:
    """A connected and initialized WebSocket client."""
    async with trio.open_nursery() as nursery:
        with trio.fail_after(DEADLINE):
            socket = await connect_websocket_url(
                nursery,
                url,
                ssl_context=tls,
                subprotocols=subprotocols,
                extra_headers=headers,
                max_message_size=64 << 20,
            )
        client = WsClient(socket)
        for name, value in socket.handshake_headers:
            if name.lower() == b"acp-connection-id":
                client.connection_id = value.decode()
        nursery.start_soon(client.run)
        try:
            if initialize:
                await client.request("initialize", INITIALIZE | ({"_meta": meta} if meta else {}))
            yield client
        finally:
            with (
                suppress(ConnectionClosed, trio.ClosedResourceError, trio.BrokenResourceError),
                trio.CancelScope(shield=True),
                trio.move_on_after(2),
            ):
                await socket.aclose()
            await trio.aclose_forcefully(socket._stream)  # also after the peer's own close
            nursery.cancel_scope.cancel()


class HttpClient(AcpClient):
    def __init__(self, url: str, http: httpx2.AsyncClient, nursery: trio.Nursery) -> None:
        super().__init__()
        self.url = url
        self.http = http
        self._nursery = nursery
        self._scopes: dict[str | None, trio.CancelScope] = {}
        self.last_ids: dict[str | None, int] = {}
        self.headers_of: dict[str | None, httpx2.Headers] = {}

    def _headers(self, session_id: str | None = None) -> dict[str, str]:
        headers = {"Acp-Connection-Id": self.connection_id}
        return headers | ({"Acp-Session-Id": session_id} if session_id else {})

    async def initialize(self) -> Message:
        body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": INITIALIZE}
        answer = await self.http.post(self.url, json=body)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        self.connection_id = answer.headers["acp-connection-id"]
        result: Message = answer.json()["result"]
        await self.follow(None)
        return result

    async def post(self, message: Message) -> None:
        params = message.get("params")
        named = params.get("sessionId") if isinstance(params, dict) else None
        answer = await self.http.post(self.url, json=message, headers=self._headers(named))
        assert answer.status_code == 202, (answer.status_code, answer.text)

    async def follow(self, session_id: str | None, last_event_id: int | None = None) -> None:
        if session_id not in self._scopes:
            await self._nursery.start(self._stream, session_id, last_event_id)

    async def _stream(
        self, session_id: str | None, last: int | None, *, task_status: trio.TaskStatus[None]
    ) -> None:
        headers = self._headers(session_id) | {"Accept": "text/event-stream"}
        if last is not None:
            headers["Last-Event-ID"] = str(last)
        with trio.CancelScope() as self._scopes[session_id]:
            try:
                async with self.http.stream("GET", self.url, headers=headers) as answer:
                    assert answer.status_code == 200, answer.status_code
                    self.headers_of[session_id] = answer.headers
                    task_status.started()
                    await self._read(session_id, answer)
            except httpx2.TransportError:
                pass
        del self._scopes[session_id]
        self._ended(0, None)

    async def _read(self, session_id: str | None, answer: httpx2.Response) -> None:
        async for line in answer.aiter_lines():
            if line.startswith("id: "):
                self.last_ids[session_id] = int(line[4:])
            elif line.startswith("data: "):
                self._incoming(json.loads(line[6:]))

    def cut(self) -> None:
        """Drop every stream."""
        for scope in self._scopes.values():
            scope.cancel()


@asynccontextmanager
async def http_client(
    url: str,
    *,
    headers: dict[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    http1: bool = True,
    http2: bool = False,
) -> AsyncIterator[HttpClient]:
    """A connected and initialized Streamable HTTP client."""
    async with (
        httpx2.AsyncClient(
            headers=headers,
            verify=tls or True,
            http1=http1,
            http2=http2,
            trust_env=False,
            timeout=httpx2.Timeout(DEADLINE, read=None),
        ) as http,
        trio.open_nursery() as nursery,
    ):
        client = HttpClient(url, http, nursery)
        with trio.fail_after(DEADLINE):
            await client.initialize()
        yield client
        nursery.cancel_scope.cancel()
