"""One client for every server, fast enough not to be what is measured.

A turn is not parsed: the bytes that arrive are searched for the mark at the end of each chunk and
for the id of the answer, in C. That works for WebSocket frames (small, unmasked, uncompressed) and
for the lines of an agent's stdout alike, and finds late and lost chunks.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import socket
import ssl
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MARK = b"<end-of-chunk>"
READ = 256 * 1024
SILENCE = 60.0
"""Nothing for so long while an answer is awaited: the server is broken."""
QUIET = 1.0
"""Chunks that have not come so long after the answer and the last byte are lost."""

_ids = count(1)


class BenchmarkError(Exception):
    """A server did not do what a measurement needs. The message says what."""


def _new_id() -> bytes:
    # As long as the mark, so that one tail serves the search for both.
    return b"answer-%0*d" % (len(MARK) - 7, next(_ids))


def open_socket(url: str, tls: ssl.SSLContext | None = None) -> socket.socket:
    """A TCP connection to the host and port of an address, encrypted when ``tls`` is given."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    plain = socket.create_connection((parts.hostname, parts.port), SILENCE)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tls.wrap_socket(plain, server_hostname=parts.hostname) if tls else plain


def read_some(connection: socket.socket, timeout: float) -> bytes:
    """What came; empty when nothing came in time. Raises `BenchmarkError` at the end."""
    connection.settimeout(timeout)
    try:
        data = connection.recv(READ)
    except TimeoutError:
        return b""
    if not data:
        raise BenchmarkError("the server closed the connection")
    return data


class Link(ABC):
    """A connection that carries JSON-RPC messages and shows its raw bytes."""

    raw_mark = MARK
    """What `read_raw` shows once for each chunk."""

    @abstractmethod
    def send(self, payload: bytes) -> None: ...

    @abstractmethod
    def read(self, timeout: float) -> bytes:
        """Raw bytes; empty when none came in time. Raises `BenchmarkError` at the end."""

    def read_raw(self, timeout: float) -> bytes:
        """As `read`, for who only counts chunks, and at the least cost."""
        return self.read(timeout)

    @abstractmethod
    def receive(self) -> bytes:
        """One whole message. Not to be used after a turn: that leaves parts of messages behind."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def fileno(self) -> int: ...

    def request(self, method: str, params: Any) -> bytes:
        """Send a request; gives its id."""
        id = _new_id()
        message = {"jsonrpc": "2.0", "id": id.decode(), "method": method, "params": params}
        self.send(json.dumps(message).encode())
        return id

    def notify(self, method: str, params: Any) -> None:
        self.send(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode())

    def ask(self, method: str, params: Any) -> Any:
        """A request and its result. Raises `BenchmarkError` with the server's error."""
        id = self.request(method, params).decode()
        while True:
            message = json.loads(self.receive())
            if message.get("id") != id:
                continue
            if "error" in message:
                raise BenchmarkError(f"{method}: {message['error']}")
            return message["result"]

    def greet(self) -> None:
        self.ask("initialize", {"protocolVersion": 1, "clientCapabilities": {}})

    def new_session(self, cwd: Path) -> str:
        session_id = self.ask("session/new", {"cwd": str(cwd), "mcpServers": []})["sessionId"]
        assert isinstance(session_id, str)
        return session_id


class WebSocketLink(Link):
    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self._socket = open_socket(url, tls)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._buffer = bytearray()
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += self.read(SILENCE)
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise BenchmarkError(f"no WebSocket at {url}: {head[:200]!r} {rest[:200]!r}")
        self._buffer = bytearray(rest)

    def send(self, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = bytes((0x81, 0x80 | size))
        elif size < 65536:
            head = b"\x81\xfe" + size.to_bytes(2, "big")
        else:
            head = b"\x81\xff" + size.to_bytes(8, "big")
        # The mask of zeros is a mask, and leaves the payload as it is.
        self._socket.sendall(head + b"\0\0\0\0" + payload)

    def read(self, timeout: float) -> bytes:
        return read_some(self._socket, timeout)

    def receive(self) -> bytes:
        while True:
            opcode, payload = self._frame()
            if opcode == 8:
                raise BenchmarkError(f"the server closed the WebSocket: {payload!r}")
            if opcode in (1, 2):
                return payload

    def _frame(self) -> tuple[int, bytes]:
        first, size = self._take(2)
        if size == 126:
            size = int.from_bytes(self._take(2), "big")
        elif size == 127:
            size = int.from_bytes(self._take(8), "big")
        return first & 15, self._take(size)

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self.read(SILENCE)
            if not data:
                raise BenchmarkError("the server does not answer")
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()


class StdioLink(Link):
    """The agent itself: the limit."""

    def __init__(self, argv: Sequence[str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            argv, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._stdin = self.process.stdin
        self._fd = self.process.stdout.fileno()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._fd, selectors.EVENT_READ)

    def send(self, payload: bytes) -> None:
        self._stdin.write(payload + b"\n")

    def read(self, timeout: float) -> bytes:
        if not self._selector.select(timeout):
            return b""
        data = os.read(self._fd, READ)
        if not data:
            raise BenchmarkError("the agent ended")
        return data

    def receive(self) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n"):
            line += os.read(self._fd, 1) or b"\n"
        return bytes(line)

    def close(self) -> None:
        self._stdin.close()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def fileno(self) -> int:
        return self._fd


class Marks:
    """Counts chunks in a byte stream, wherever the pieces are cut."""

    def __init__(self, mark: bytes = MARK) -> None:
        self.chunks = 0
        self._mark = mark
        self._tail = b""

    def feed(self, data: bytes) -> None:
        # What is cut in two is looked for apart, which saves a copy of everything.
        cut = len(self._mark) - 1
        seam = self._tail + data[:cut]
        if cut:
            self._tail = (seam if len(data) < cut else data)[-cut:]
        self._count(seam)
        self._count(data)

    def _count(self, data: bytes) -> None:
        self.chunks += data.count(self._mark)


class Tally(Marks):
    """Counts chunks, and notices the answer."""

    def __init__(self, answer: bytes) -> None:
        assert len(answer) <= len(MARK), "one seam serves the search for both"
        super().__init__()
        self.answered = False
        self.late = 0
        """Chunks behind the answer."""
        self._answer = answer

    def _count(self, data: bytes) -> None:
        found = data.count(MARK)
        self.chunks += found
        if self.answered:
            self.late += found
        elif (at := data.find(self._answer)) >= 0:
            self.answered = True
            self.late += data.count(MARK, at)


@dataclass
class Turn:
    """What a client saw of a turn. Times are seconds since the prompt was sent."""

    chunks: int
    first: float = 0.0
    """Until the first chunk."""
    end: float = 0.0
    """Until the answer."""
    all: float = 0.0
    """Until the answer and the last chunk."""
    late: int = 0
    lost: int = 0


def prompt(session_id: str, text: str) -> dict[str, Any]:
    return {"sessionId": session_id, "prompt": [{"type": "text", "text": text}]}


def run_turn(
    link: Link, session_id: str, chunks: int, size: int, rate: int = 0, how: str = "stream"
) -> Turn:
    """One turn that streams ``chunks`` chunks of ``size`` bytes; ``how``: see stub_agent.mjs."""
    turn = Turn(chunks)
    clock = time.perf_counter
    began = clock()
    text = f"{how} {chunks} {size} {rate or ''}"
    tally = Tally(link.request("session/prompt", prompt(session_id, text)))
    while not (tally.answered and tally.chunks >= chunks):
        data = link.read(QUIET if tally.answered else SILENCE)
        if not data:
            if tally.answered:
                break
            raise BenchmarkError(f"no answer after {tally.chunks} of {chunks} chunks")
        tally.feed(data)
        now = clock() - began
        if tally.chunks and not turn.first:
            turn.first = now
        if tally.answered and not turn.end:
            turn.end = now
        turn.all = now
    turn.late, turn.lost = tally.late, max(0, chunks - tally.chunks)
    return turn


def round_trip(link: Link, method: str, params: Any) -> float:
    """Seconds until the answer, or refusal, of one request."""
    began = time.perf_counter()
    tally = Tally(link.request(method, params))
    while not tally.answered:
        data = link.read(SILENCE)
        if not data:
            raise BenchmarkError(f"{method} was not answered")
        tally.feed(data)
    return time.perf_counter() - began


@dataclass
class Fanout:
    """What all subscribers of a session together saw."""

    delivered: int = 0
    seconds: float = 0.0
    lost: int = 0


def run_fanout(links: Sequence[Link], session_id: str, chunks: int, size: int) -> Fanout:
    """One turn of the first link's, watched by all of them."""
    return run_fanouts({session_id: links}, chunks, size)


def run_fanouts(groups: Mapping[str, Sequence[Link]], chunks: int, size: int) -> Fanout:
    """One turn in each session at once; each by its first link and watched by all of its links."""
    links = [link for group in groups.values() for link in group]
    followers = {link: Marks(link.raw_mark) for group in groups.values() for link in group[1:]}
    began = last = time.perf_counter()
    askers: dict[Link, Tally] = {}
    for session_id, group in groups.items():
        text = f"stream {chunks} {size}"
        askers[group[0]] = Tally(group[0].request("session/prompt", prompt(session_id, text)))
    waiting = set(links)
    with selectors.DefaultSelector() as selector:
        for each in links:
            selector.register(each, selectors.EVENT_READ, each)
        while waiting:
            answered = all(tally.answered for tally in askers.values())
            ready = selector.select(QUIET if answered else SILENCE)
            if not ready:
                break
            for key, _ in ready:
                link: Link = key.data
                tally = askers.get(link)
                try:
                    if tally is not None:
                        tally.feed(link.read(SILENCE))
                        done = tally.answered and tally.chunks >= chunks
                    else:
                        followers[link].feed(link.read_raw(SILENCE))
                        done = followers[link].chunks >= chunks
                except BenchmarkError:  # cut loose; what it misses counts as lost
                    selector.unregister(link)
                    done = True
                if done:
                    waiting.discard(link)
            last = time.perf_counter()
    counted = [marks.chunks for marks in (*askers.values(), *followers.values())]
    if max(counted) > chunks:
        raise BenchmarkError(f"{max(counted)} chunks came of {chunks}: the mark is not unique")
    return Fanout(sum(counted), last - began, chunks * len(links) - sum(counted))
