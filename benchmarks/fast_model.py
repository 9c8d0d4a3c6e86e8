"""A model with an OpenAI-compatible API that answers faster than any agent reads.

``python -m benchmarks.fast_model`` prints its port and serves on loopback until it is ended. The
prompt "stream N SIZE" gets N chunks of SIZE bytes, which end with the mark that the client counts
and differ from each other (an agent may drop a repeated one); anything else gets a short answer.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

from benchmarks.client import MARK

ASKED = re.compile(r"stream (\d+) (\d+)")
_turns = count(1)


def _pieces(body: dict[str, Any]) -> list[str]:
    # Agents ask on their own account too (for a title); those requests offer no tools.
    users = [m for m in body.get("messages", []) if m.get("role") == "user"]
    found = ASKED.findall(json.dumps(users[-1])) if users and body.get("tools") else []
    if not found:
        return ["A short answer."]
    chunks, size = map(int, found[-1])
    mark = MARK.decode()
    return [f"{number:06d} ".ljust(size - len(mark), "x") + mark for number in range(chunks)]


def _stream(body: dict[str, Any]) -> bytes:
    """All events of a streamed answer."""
    head = {"id": f"chat-{next(_turns)}", "object": "chat.completion.chunk", "created": 0}
    head["model"] = body.get("model") or "fast"
    deltas = [({"role": "assistant", "content": piece}, None) for piece in _pieces(body)]
    events: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        for delta, reason in [*deltas, ({}, "stop")]
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    events.append({**head, "choices": [], "usage": usage})
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


class _Handler(BaseHTTPRequestHandler):
    # The end of the connection is the end of a stream.
    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        model = {"id": "fast", "object": "model", "created": 0, "owned_by": "benchmark"}
        self._send("application/json", json.dumps({"object": "list", "data": [model]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("stream"):
            self._send("text/event-stream", _stream(body))
            return
        message = {"role": "assistant", "content": "".join(_pieces(body))}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": f"chat-{next(_turns)}", "object": "chat.completion", "choices": [choice]}
        self._send("application/json", json.dumps(answer).encode())

    def _send(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        with suppress(ConnectionError):  # an agent that has ended in the middle
            self.end_headers()
            self.wfile.write(data)


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    sys.stdout.close()
    server.serve_forever()


if __name__ == "__main__":
    main()
