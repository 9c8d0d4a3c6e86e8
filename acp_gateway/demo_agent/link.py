"""JSON-RPC 2.0 over stdin and stdout, one message per line (ACP v1, stdio transport).

Rule 1: one thread writes stdout; whoever calls `Link` only appends to its outbox, so a client
that stops reading never keeps us from reading a ``session/cancel``.
Rule 2: who produces much calls `Link.wait_room` first; that is the only place that waits for the
client to read.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import threading
import time

TYPE_CHECKING = False  # the typing module costs a tenth of the start-up
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
NOT_FOUND = -32002

ROOM_BYTES = 1 << 20
"""Bytes that may wait for the client to read before producers pause."""
_READ_BYTES = 1 << 16


class RpcError(Exception):
    """An error for the peer, or from it: ``code`` and one sentence."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(parse_constant=_no_constant).decode
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_encode_ascii = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def encode(message: dict[str, Any]) -> bytes:
    """One line of UTF-8 with its line end; lone surrogates stay ``\\u`` escapes."""
    try:
        return _encode(message).encode() + b"\n"
    except UnicodeEncodeError:
        return _encode_ascii(message).encode() + b"\n"


def decode(line: bytes) -> Any:
    """The JSON value of a line. Raises `RpcError` (-32700)."""
    try:
        return _decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise RpcError(PARSE_ERROR, f"this line is not valid JSON in UTF-8: {error}") from None


def log(text: str) -> None:
    """One short line on stderr; a closed stderr is no reason to stop."""
    with contextlib.suppress(OSError):
        os.write(2, f"acp-gateway-demo: {text}\n".encode(errors="replace"))


def read_lines(fd: int, wake_fd: int) -> Iterator[bytes]:
    """Lines of ``fd`` without their end, until it ends or ``wake_fd`` becomes readable.

    The pieces of a long line are joined once, so a line of 64 MiB costs linear time.
    """
    pieces: list[bytes] = []
    while True:
        ready = select.select([fd, wake_fd], [], [])[0]
        data = b"" if wake_fd in ready else os.read(fd, _READ_BYTES)
        if not data:
            break
        *ends, rest = data.split(b"\n")
        for end in ends:
            pieces.append(end)
            yield b"".join(pieces)
            pieces.clear()
        if rest:
            pieces.append(rest)


class Reply:
    """The answer to a request of ours; ``settled`` is set when it is there or not wanted."""

    def __init__(self, request_id: int) -> None:
        self.request_id = request_id
        self.settled = threading.Event()
        self.message: dict[str, Any] | None = None


class Link:
    """The peer: notifications, answers and requests to it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._changed = threading.Condition()
        self._parts: list[bytes] = []
        self._waiting = 0
        self._broken = False
        self._replies: dict[int, Reply] = {}
        self._next_id = 0
        threading.Thread(target=self._write_loop, name="stdout", daemon=True).start()

    def write(self, data: bytes) -> None:
        """Queues whole lines; never blocks."""
        with self._changed:
            if not self._broken:
                self._parts.append(data)
                self._waiting += len(data)
                self._changed.notify_all()

    def wait_room(self, give_up: threading.Event) -> None:
        """Returns when the client has read enough of what was written, or ``give_up`` is set."""
        with self._changed:
            while self._waiting > ROOM_BYTES and not give_up.is_set():
                self._changed.wait(0.05)

    def drain(self, seconds: float) -> None:
        """Waits until everything is written, at most so long."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._waiting and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _write_loop(self) -> None:
        while True:
            with self._changed:
                while not self._parts:
                    self._changed.wait()
                parts, self._parts = self._parts, []
            data = memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
            while data:
                try:
                    done = os.write(self._fd, data[: 1 << 20])
                except OSError as error:
                    log(f"stdout is closed: {error}")
                    with self._changed:
                        self._broken = True
                        self._parts, self._waiting = [], 0
                        self._changed.notify_all()
                    return
                data = data[done:]
                with self._changed:
                    self._waiting -= done
                    self._changed.notify_all()

    def notify(self, method: str, params: dict[str, Any]) -> None:
        self.write(encode({"jsonrpc": "2.0", "method": method, "params": params}))

    def answer(self, request_id: Any, result: Any) -> None:
        self.write(encode({"jsonrpc": "2.0", "id": request_id, "result": result}))

    def refuse(self, request_id: Any, error: RpcError) -> None:
        body = {"code": error.code, "message": error.message}
        self.write(encode({"jsonrpc": "2.0", "id": request_id, "error": body}))

    def ask(self, method: str, params: dict[str, Any]) -> Reply:
        """Sends a request; wait for ``settled`` of what comes back."""
        with self._changed:
            self._next_id += 1
            reply = self._replies[self._next_id] = Reply(self._next_id)
        self.write(
            encode({"jsonrpc": "2.0", "id": reply.request_id, "method": method, "params": params})
        )
        return reply

    def settle(self, message: dict[str, Any]) -> None:
        """Hands a response to the one who asked; an unknown id is ignored."""
        request_id = message.get("id")
        if type(request_id) is int and (reply := self._replies.pop(request_id, None)):
            reply.message = message
            reply.settled.set()

    def withdraw(self, reply: Reply) -> None:
        """Tells the client that an answer is no longer wanted; a late one is ignored."""
        if self._replies.pop(reply.request_id, None):
            self.notify("$/cancel_request", {"requestId": reply.request_id})


def interactive_hint() -> None:
    """A person who starts the agent by hand learns what it waits for."""
    if sys.stdin is not None and sys.stdin.isatty():
        log("waiting for ACP messages on stdin, one JSON object per line; end with Ctrl-D")
