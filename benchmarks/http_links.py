"""Links over HTTP/1.1: the event stream of a session with REST beside it, and Streamable HTTP.

A stream is not parsed while it is measured: its bytes are searched for the same marks as those of
WebSocket frames, once HTTP's own framing is off.
"""

from __future__ import annotations

import json
import selectors
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.client import MARK, SILENCE, BenchmarkError, Link, open_socket, read_some

END_OF_TURN = b"turn_complete\n"
"""The end of the event line, as long as the mark like every answer that a `Tally` looks for."""
assert len(END_OF_TURN) == len(MARK)

Headers = dict[str, str]


class Chunked:
    """Takes the framing of HTTP chunks off a body, wherever the pieces are cut."""

    def __init__(self) -> None:
        self._left = 0
        """Bytes of the open chunk that are still to come, with the line end behind it."""
        self._size = b""
        """The part of a line with a size that has come."""

    def feed(self, data: bytes) -> bytes:
        if self._size:
            data, self._size = self._size + data, b""
        parts = []
        at, end = 0, len(data)
        while at < end:
            if self._left:
                parts.append(data[at : at + max(0, self._left - 2)])
                took = min(self._left, end - at)
                at += took
                self._left -= took
                continue
            line = data.find(b"\r\n", at)
            if line < 0:
                self._size = data[at:]
                break
            self._left = int(data[at:line], 16) + 2
            at = line + 2
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Http:
    """One kept-alive connection. `send` does not wait for the answer; the next call takes it."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self.socket = open_socket(url, tls)
        self._host, self._base = parts.netloc, parts.path.rstrip("/")
        self._data = b""
        self._owed = 0
        self._chunked = Chunked()

    def send(
        self, method: str, path: str, headers: Mapping[str, str] = {}, body: bytes = b""
    ) -> None:
        """Raises `BenchmarkError` when an earlier request was refused."""
        while self._owed:
            self.answer()
        lines = [f"{method} {self._base}{path} HTTP/1.1", f"Host: {self._host}"]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        self._owed += 1

    def _until(self, enough: int, mark: bytes = b"") -> None:
        while len(self._data) < enough or mark not in self._data:
            data = read_some(self.socket, SILENCE)
            if not data:
                raise BenchmarkError("the server does not answer")
            self._data += data

    def head(self) -> Headers:
        """The head of the next answer, names in small letters. Raises for a refusal."""
        self._until(0, b"\r\n\r\n")
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self._owed -= 1
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if first.split()[1][0] != "2":
            self._until(int(headers.get("content-length", "0")))
            raise BenchmarkError(f"{first}: {self._data[:300]!r}")
        return headers

    def answer(self) -> tuple[Headers, bytes]:
        """One whole answer; the body as it came. Raises `BenchmarkError` for a refusal."""
        headers = self.head()
        if "transfer-encoding" in headers:
            self._until(0, b"0\r\n\r\n")
            body, _, self._data = self._data.partition(b"0\r\n\r\n")
            return headers, body
        size = int(headers.get("content-length", "0"))
        self._until(size)
        body, self._data = self._data[:size], self._data[size:]
        return headers, body

    def read(self, timeout: float) -> bytes:
        """Content of the open stream; empty when none came in time."""
        data, self._data = self._data, b""
        while data := data or read_some(self.socket, timeout):
            if content := self._chunked.feed(data):
                return content
            data = b""
        return b""

    def read_raw(self, timeout: float) -> bytes:
        """Content and framing of the open stream. Not to be mixed with `read`."""
        data, self._data = self._data, b""
        return data or read_some(self.socket, timeout)

    @property
    def has_more(self) -> bool:
        """Something came together with the head."""
        return bool(self._data)

    def close(self) -> None:
        self.socket.close()


class _HttpLink(Link):
    raw_mark = MARK[-1:]
    """One byte, which the framing of chunks cannot cut, and which is nowhere else in an event."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        self._url, self._tls = url, tls
        self._control = Http(url, tls)
        self._stream: Http | None = None

    def _open_stream(self, path: str, headers: Mapping[str, str] = {}) -> Http:
        stream = Http(self._url, self._tls)
        stream.send("GET", path, {"Accept": "text/event-stream", **headers})
        stream.head()
        return stream

    @property
    def _open(self) -> Http:
        if self._stream is None:
            raise BenchmarkError("no stream is open; create or join a session first")
        return self._stream

    def read(self, timeout: float) -> bytes:
        return self._open.read(timeout)

    def read_raw(self, timeout: float) -> bytes:
        return self._open.read_raw(timeout)

    def fileno(self) -> int:
        return self._open.socket.fileno()

    def close(self) -> None:
        self._control.close()
        if self._stream is not None:
            self._stream.close()


class EventsLink(_HttpLink):
    """``GET /session/:id/events``, and prompts by ``POST /session/:id/prompt``.

    A turn's answer is its event ``turn_complete``: late is what comes behind that.
    """

    def greet(self) -> None:
        """The REST routes need none."""

    def new_session(self, cwd: Path) -> str:
        body = json.dumps({"cwd": str(cwd), "sessionScope": "thread"}).encode()
        self._control.send("POST", "/session", body=body)
        session_id = json.loads(self._control.answer()[1])["sessionId"]
        assert isinstance(session_id, str)
        self.follow(session_id)
        return session_id

    def follow(self, session_id: str) -> None:
        self._stream = self._open_stream(f"/session/{session_id}/events")

    def request(self, method: str, params: Any) -> bytes:
        """Only ``session/prompt``; gives what ends its turn."""
        assert method == "session/prompt"
        body = json.dumps({"prompt": params["prompt"]}).encode()
        self._control.send("POST", f"/session/{params['sessionId']}/prompt", body=body)
        return END_OF_TURN

    def send(self, payload: bytes) -> None:
        raise BenchmarkError("REST carries no JSON-RPC")

    def receive(self) -> bytes:
        raise BenchmarkError("REST carries no JSON-RPC")


class StreamableLink(_HttpLink):
    """Streamable HTTP at ``/acp``: one stream for the connection, one for its only session."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(url, tls)
        self._names: Headers = {}
        self._connection: Http | None = None
        self._waiting = b""

    def greet(self) -> None:
        params = {"protocolVersion": 1, "clientCapabilities": {}}
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
        accept = {"Accept": "application/json, text/event-stream"}
        self._control.send("POST", "", accept, json.dumps(hello).encode())
        headers, _ = self._control.answer()
        self._names["Acp-Connection-Id"] = headers["acp-connection-id"]
        self._connection = self._open_stream("", self._names)

    def new_session(self, cwd: Path) -> str:
        session_id = super().new_session(cwd)
        self._names["Acp-Session-Id"] = session_id
        self._stream = self._open_stream("", self._names)
        return session_id

    def send(self, payload: bytes) -> None:
        self._control.send("POST", "", self._names, payload)

    def receive(self) -> bytes:
        """The next message of either stream. Nobody else may have read from them."""
        with selectors.DefaultSelector() as selector:
            for stream in (self._connection, self._stream):
                if stream is not None:
                    selector.register(stream.socket, selectors.EVENT_READ, stream)
                    if stream.has_more:
                        self._waiting += stream.read(0)
            while True:
                event, found, rest = self._waiting.partition(b"\n\n")
                if found:
                    self._waiting = rest
                    for line in event.split(b"\n"):
                        if line.startswith(b"data:"):
                            return line[5:]
                    continue
                ready = selector.select(SILENCE)
                if not ready:
                    raise BenchmarkError("the server does not answer")
                for key, _ in ready:
                    self._waiting += key.data.read(SILENCE)

    def close(self) -> None:
        super().close()
        if self._connection is not None:
            self._connection.close()
