"""The gateway that is attacked, as an attacker and as its user see it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import httpx2
from gateway_process import GatewayProcess
from support.processes import workspace_of
from websockets.sync.client import ClientConnection, connect

TOKEN = "the-token-of-the-attacked-gateway"
SECRET = "nobody outside may read this"
DEADLINE = 20.0
MOST_MEMORY = 300 * 1024 * 1024
CHUNKS = 30
UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@attrs.define
class Site:
    """The gateway, as an attacker and as its user see it."""

    gateway: GatewayProcess
    base: Path
    http: httpx2.Client
    """The user's: has the token."""
    session: str = ""
    turns: int = 0

    @property
    def port(self) -> int:
        return int(self.gateway.url.rpartition(":")[2])

    @property
    def workspace(self) -> Path:
        return workspace_of(self.base)

    @property
    def outside(self) -> Path:
        return self.base / "outside"

    def head(self, line: str, *more: str, token: str | None = TOKEN) -> bytes:
        """A request's head; ``more`` are lines that may replace Host."""
        lines = [line, *more]
        if not any(each.lower().startswith("host") for each in more):
            lines.insert(1, f"Host: 127.0.0.1:{self.port}")
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def raw(self, *pieces: bytes, end: bool = True, seconds: float = DEADLINE) -> bytes:
        """What comes back for these bytes until the gateway closes, or is silent for long."""
        with closing(socket.create_connection(("127.0.0.1", self.port), seconds)) as stream:
            answer = b""
            with suppress(OSError):  # it may be refused before all was said
                for piece in pieces:
                    stream.sendall(piece)
                if end:
                    stream.shutdown(socket.SHUT_WR)
            with suppress(OSError):
                while piece := stream.recv(65536):
                    answer += piece
            return answer

    def statuses(self, answer: bytes) -> list[int]:
        """Of each response in it."""
        return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:] if part[:3].isdigit()]

    @contextmanager
    def websocket(
        self, *, headers: dict[str, str] | None = None, **more: Any
    ) -> Iterator[ClientConnection]:
        """The user's WebSocket, unless ``headers`` say another."""
        given = {"Authorization": f"Bearer {TOKEN}"} if headers is None else headers
        url = more.pop("url", self.gateway.ws_url)
        more |= {"proxy": None, "max_size": 64 << 20, "open_timeout": DEADLINE}
        with connect(url, additional_headers=given, **more) as ws:
            yield ws

    @contextmanager
    def greeted(self) -> Iterator[ClientConnection]:
        """A WebSocket behind `initialize`."""
        with self.websocket() as ws:
            ask(ws, 0, "initialize", {"protocolVersion": 1, "clientCapabilities": {}})
            yield ws

    def turn(self) -> None:
        """The user's work: one turn in a session that lives through all attacks."""
        with self.greeted() as ws:
            cwd = str(self.workspace)
            if not self.session:
                told = ask(ws, 1, "session/new", {"cwd": cwd, "mcpServers": []})
                self.session = told["sessionId"]
            else:
                params = {"cwd": cwd, "mcpServers": [], "sessionId": self.session}
                ask(ws, 1, "session/resume", params)
            text = [{"type": "text", "text": f"/chunks {CHUNKS} 20"}]
            told = ask(ws, 2, "session/prompt", {"sessionId": self.session, "prompt": text})
            assert told["stopReason"] == "end_turn"
            self.turns += 1

    def chunks_of_all_turns(self) -> int:
        """As many as somebody gets who loads the session now."""
        text = ""
        with self.greeted() as ws:
            params = {"cwd": str(self.workspace), "mcpServers": [], "sessionId": self.session}
            load = {"jsonrpc": "2.0", "id": 1, "method": "session/load", "params": params}
            ws.send(json.dumps(load))
            while (message := json.loads(ws.recv(DEADLINE))).get("id") != 1:
                update = message.get("params", {}).get("update", {})
                if update.get("sessionUpdate") == "agent_message_chunk":
                    text += update["content"]["text"]
        return sum(text.count(f"{number:06}") for number in range(CHUNKS))

    def log(self) -> str:
        return self.gateway.stderr_tail()


def ask(ws: ClientConnection, id: int, method: str, params: Any) -> Any:
    """The result. Raises `RuntimeError` with the error's JSON."""
    ws.send(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
    while True:
        message = json.loads(ws.recv(DEADLINE))
        if message.get("id") == id and "method" not in message:
            if "error" in message:
                raise RuntimeError(json.dumps(message["error"]))
            return message["result"]


def os_listing(directory: Path) -> dict[str, str]:
    return {each.name: each.read_text() for each in directory.iterdir()}
