"""The least that an ACP client needs: questions over a WebSocket, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from websockets.sync.connection import Connection

Ask = Callable[[int, str, dict[str, Any]], dict[str, Any]]


def asker(
    socket: Connection, heard: list[dict[str, Any]] | None = None, seconds: float = 20.0
) -> Ask:
    """``ask(id, method, params)`` gives the response; what came before it is put into ``heard``."""

    def ask(id: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
        socket.send(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
        while True:
            message = json.loads(socket.recv(seconds))
            if message.get("id") == id and "method" not in message:
                return dict(message)
            if heard is not None:
                heard.append(message)

    return ask
