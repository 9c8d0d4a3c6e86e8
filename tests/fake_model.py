"""A fake model with an OpenAI-compatible API on loopback, so that real agents run offline.

One line of the last user message, standing alone, decides what the model does. There is no state
between requests:

- ``WRITE path``: calls the write tool (else the shell tool) that the request offers, so that the
  agent asks for permission; after the tool's result it answers with one short sentence.
- ``SLOW``: one word every 0.1 s for up to 30 s, to be cancelled.
- ``CHUNKS n``: ``n`` chunks of text, ``000000 `` to ``n - 1``.
- ``BIG n``: ``n`` bytes of text in chunks of 64 KiB.
- anything else: ``echo N: ``, N the characters of the text, and the first `ECHO_LIMIT` of them.

Agents also ask the model on their own account (a title, a memory note). Such a request offers no
tools, or holds no line like the above, so it gets a short harmless answer.

``python tests/fake_model.py --port 0`` prints the port and serves until it is told to end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

ECHO_LIMIT = 200
SLOW_WORDS = 300
SLOW_PAUSE = 0.1
BIG_CHUNK = 64 * 1024
WRITTEN = "written by the fake model\n"

WRITE_TOOLS = ("write_file", "write")
SHELL_TOOLS = ("run_shell_command", "shell", "exec_command", "bash")

DIRECTIVE = re.compile(r"^(?:(WRITE) (.+)|(SLOW)|(CHUNKS|BIG) (\d+))$", re.MULTILINE)
# What agents add to the user's own words; it must neither be echoed nor read as a directive.
ADDED = re.compile(r"<(turn-context|system-reminder|info-msg)>.*?</\1>", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """The one tool call of a reply."""

    name: str
    arguments: dict[str, Any]


Piece = str | ToolCall


def text_of(content: Any) -> str:
    """The user's words in a message content (a string, or a list of parts with ``text``)."""
    if isinstance(content, list):
        content = "\n".join(str(p.get("text") or "") for p in content if isinstance(p, dict))
    return ADDED.sub("", content).strip() if isinstance(content, str) else ""


def write_call(tools: list[Any], path: str) -> ToolCall | None:
    """The call that writes ``path`` with the tools on offer; None when none can."""
    offered = {}
    for tool in tools:
        # Chat completions wrap a tool in "function", the responses API does not.
        spec = tool.get("function", tool) if isinstance(tool, dict) else {}
        if isinstance(spec.get("name"), str):
            offered[spec["name"].rsplit("__", 1)[-1]] = spec
    for short in WRITE_TOOLS:
        if spec := offered.get(short):
            properties = (spec.get("parameters") or {}).get("properties") or {}
            key = next((k for k in ("file_path", "path") if k in properties), "path")
            return ToolCall(spec["name"], {key: path, "content": WRITTEN})
    for short in SHELL_TOOLS:
        if spec := offered.get(short):
            properties = (spec.get("parameters") or {}).get("properties") or {}
            key = next((k for k in ("command", "cmd") if k in properties), "command")
            line = f"printf %s {shlex.quote(WRITTEN)} > {shlex.quote(path)}"
            return ToolCall(spec["name"], {key: line})
    return None


def last_word(messages: list[Any]) -> str | None:
    """The text that decides, or None when the last word is a tool's result."""
    for message in reversed(messages):
        if not isinstance(message, dict):
            continue
        if message.get("role") == "tool" or message.get("type") == "function_call_output":
            return None
        if message.get("role") == "user" and (text := text_of(message.get("content"))):
            return text
    return ""


def reply(messages: list[Any], tools: list[Any], stop: threading.Event) -> Iterator[Piece]:
    """The pieces that answer one request."""
    text = last_word(messages)
    if text is None:
        yield "The tool has answered."
        return
    if not tools:
        yield "fake answer"
        return
    found = list(DIRECTIVE.finditer(text))
    if not found:
        yield f"echo {len(text)}: {text[:ECHO_LIMIT]}"
        return
    word = found[-1]
    if word[1]:
        call = write_call(tools, word[2].strip())
        yield call or "The request offers no tool that writes."
    elif word[3]:
        for n in range(SLOW_WORDS):
            yield f"word{n} "
            if stop.wait(SLOW_PAUSE):
                return
    elif word[4] == "CHUNKS":
        for n in range(int(word[5])):
            yield f"{n:06d} "
    else:
        size = int(word[5])
        for start in range(0, size, BIG_CHUNK):
            # Each differs from the last: qwen drops a chunk that equals the one before.
            mark = f"part {start // BIG_CHUNK} "
            yield mark.ljust(BIG_CHUNK, "z")[: size - start]


class _Handler(BaseHTTPRequestHandler):
    # The length of a stream is not known: the end of the connection is its end.
    protocol_version = "HTTP/1.0"
    server: FakeModel

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.rstrip("/").endswith("/models"):
            model = {"id": "fake", "object": "model", "created": 0, "owned_by": "test"}
            self._json(200, {"object": "list", "data": [model]})
        else:
            self._json(404, {"error": {"message": f"no route {self.path}"}})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(raw)
        except ValueError:
            self._json(400, {"error": {"message": "the body is not JSON"}})
            return
        self.server.record(self.path, body)
        path = self.path.split("?")[0].rstrip("/")
        # A client that cancels closes the connection in the middle of a stream.
        with contextlib.suppress(ConnectionError):
            if path.endswith("/chat/completions"):
                self._chat(body)
            elif path.endswith("/responses"):
                self._responses(body)
            else:
                self._json(404, {"error": {"message": f"no route {self.path}"}})

    def _json(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _start_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()

    def _data(self, value: dict[str, Any], event: str | None = None) -> None:
        head = f"event: {event}\n" if event else ""
        self.wfile.write(f"{head}data: {json.dumps(value)}\n\n".encode())

    def _chat(self, body: dict[str, Any]) -> None:
        pieces = reply(body.get("messages") or [], body.get("tools") or [], self.server.stopping)
        # Agents make their message ids and tool call ids from these, so they must differ.
        turn = next(self.server.turns)
        head = {"id": f"chat-{turn}", "created": 0, "model": body.get("model") or "fake"}

        def call_of(piece: ToolCall) -> dict[str, Any]:
            arguments = json.dumps(piece.arguments)
            function = {"name": piece.name, "arguments": arguments}
            return {"index": 0, "id": f"call_{turn}", "type": "function", "function": function}

        if not body.get("stream"):
            all_pieces = list(pieces)
            calls = [call_of(p) for p in all_pieces if isinstance(p, ToolCall)]
            message: dict[str, Any] = {
                "role": "assistant",
                "content": "".join(p for p in all_pieces if isinstance(p, str)) or None,
            }
            if calls:
                message["tool_calls"] = calls
            choice = {
                "index": 0,
                "message": message,
                "finish_reason": "tool_calls" if calls else "stop",
            }
            self._json(
                200,
                {**head, "object": "chat.completion", "choices": [choice], "usage": USAGE_CHAT},
            )
            return

        def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return {**head, "object": "chat.completion.chunk", "choices": [choice]}

        self._start_stream()
        reason = "stop"
        for piece in pieces:
            if isinstance(piece, ToolCall):
                reason = "tool_calls"
                self._data(chunk({"role": "assistant", "tool_calls": [call_of(piece)]}))
            else:
                self._data(chunk({"role": "assistant", "content": piece}))
        self._data(chunk({}, reason))
        self._data({**chunk({}), "choices": [], "usage": USAGE_CHAT})
        self.wfile.write(b"data: [DONE]\n\n")

    def _responses(self, body: dict[str, Any]) -> None:
        turn = next(self.server.turns)
        given = body.get("input") or []
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
        pieces = reply(messages, body.get("tools") or [], self.server.stopping)
        model = body.get("model") or "fake"
        response = {"id": f"resp_{turn}", "object": "response", "created_at": 0, "model": model}
        if stream := bool(body.get("stream")):
            self._start_stream()
            begun: dict[str, Any] = {**response, "status": "in_progress", "output": []}
            self._data({"type": "response.created", "response": begun}, "response.created")
        output: list[dict[str, Any]] = []
        text = ""
        for piece in pieces:
            if isinstance(piece, ToolCall):
                item = {"type": "function_call", "id": f"fc_{turn}", "call_id": f"call_{turn}"}
                arguments = json.dumps(piece.arguments)
                output.append({**item, "name": piece.name, "arguments": arguments})
                continue
            if stream and not text:
                started = {
                    "type": "message",
                    "id": f"msg_{turn}",
                    "role": "assistant",
                    "content": [],
                }
                kind = "response.output_item.added"
                self._data({"type": kind, "output_index": 0, "item": started}, kind)
            text += piece
            if stream:
                kind = "response.output_text.delta"
                self._data({"type": kind, "item_id": f"msg_{turn}", "delta": piece}, kind)
        if text:
            content = [{"type": "output_text", "text": text, "annotations": []}]
            item = {"type": "message", "id": f"msg_{turn}", "role": "assistant"}
            output.append({**item, "status": "completed", "content": content})
        done = {**response, "status": "completed", "output": output, "usage": USAGE_RESPONSES}
        if not stream:
            self._json(200, done)
            return
        kind = "response.output_item.done"
        for index, item in enumerate(output):
            self._data({"type": kind, "output_index": index, "item": item}, kind)
        self._data({"type": "response.completed", "response": done}, "response.completed")


USAGE_CHAT = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
USAGE_RESPONSES = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


class FakeModel(ThreadingHTTPServer):
    """The server; as a context manager it serves in a thread of its own.

    ``url`` is the base without ``/v1``. With ``log_path`` set, every request is appended there.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.port = int(self.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.stopping = threading.Event()
        self.turns = itertools.count(1)
        self.log_path: str | None = None
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def record(self, path: str, body: dict[str, Any]) -> None:
        if self.log_path:
            with open(self.log_path, "a", encoding="utf-8") as log:
                log.write(json.dumps({"path": path, "body": body}) + "\n")

    def handle_error(self, request: Any, client_address: Any) -> None:
        # An agent that is stopped leaves half a request behind; that is not worth a traceback.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def __enter__(self) -> FakeModel:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self.shutdown()
        self._thread.join(5)
        self.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A fake OpenAI-compatible model on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument("--log", help="append every request to this file, one JSON line each")
    options = parser.parse_args()
    with FakeModel(options.port) as model, contextlib.suppress(KeyboardInterrupt):
        model.log_path = options.log
        print(model.port, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
