"""Requests per second over HTTP, and the life of short WebSocket connections.

The load comes from one loop over plain sockets in this process. Requests are encoded once, answers
are only cut at their length: that costs about 15 us a request, most of it system calls.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from statistics import median
from typing import Any, TypeAlias

from benchmarks.client import BenchmarkError
from benchmarks.measures.common import Figures, Measure, Sizes
from benchmarks.peers import Peer, started
from benchmarks.peers_real import ROOMY
from benchmarks.processes import cpu_seconds

WARM = 0.4
"""Seconds of each load before it counts: Node compiles what is hot."""
REST = 0.3
"""Seconds in which a server finishes what requests left behind; that counts as CPU time too."""
TIMEOUT = 30.0
TURNS_LIMIT = 60.0
LEVELS = (1, 16)
READ = 65536
END_OF_HEAD = b"\r\n\r\n"
LENGTH = b"content-length:"
LOADS = ("health", "status", "heartbeat", "vote", "events", "connect", "prompt")
RATES = frozenset(f"{name} x{clients} /s" for name in LOADS for clients in LEVELS)
"""Figures of which more is better."""

Wait: TypeAlias = Generator[None, None, None]
"""Code of a client, which yields where it waits for more bytes."""


class Loop:
    """Clients that take turns in this thread until the time is over."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.selector = selectors.DefaultSelector()
        self.running: Wait | None = None
        self.times: list[float] = []
        """Seconds of each exchange."""
        self.seconds = 0.0
        self._stop = 0.0

    def run(self, client: Client, clients: int, seconds: float) -> None:
        """Raises `BenchmarkError` when an answer is wrong or missing."""
        began = time.perf_counter()
        self._stop = began + seconds
        live = {client(self) for _ in range(clients)}
        try:
            ready = list(live)
            while live:
                for self.running in ready:
                    try:
                        next(self.running)
                    except StopIteration:
                        live.discard(self.running)
                ready = [key.data for key, _ in self.selector.select(TIMEOUT if live else 0)]
                if live and not ready:
                    raise BenchmarkError("the server does not answer")
        finally:
            for each in live:
                each.close()
            self.selector.close()
        self.seconds = time.perf_counter() - began

    def exchanges(self) -> Iterator[None]:
        """Each turn of a client's loop is one exchange."""
        while (began := time.perf_counter()) < self._stop:
            yield
            self.times.append(time.perf_counter() - began)


Client: TypeAlias = Callable[[Loop], Wait]


class Connection:
    """A client's socket in a `Loop`."""

    def __init__(self, loop: Loop) -> None:
        self._socket = socket.create_connection(("127.0.0.1", loop.port), TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""
        self._selector = loop.selector
        self._selector.register(self._socket, selectors.EVENT_READ, loop.running)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _more(self) -> Wait:
        yield
        data = self._socket.recv(READ)
        if not data:
            raise BenchmarkError(f"the server closed after {self._data[:300]!r}")
        self._data += data

    def until(self, mark: bytes) -> Generator[None, None, bytes]:
        """The bytes up to ``mark`` and with it. Raises `BenchmarkError` at the end."""
        while (at := self._data.find(mark)) < 0:
            yield from self._more()
        at += len(mark)
        found, self._data = self._data[:at], self._data[at:]
        return found

    def head(self, status: bytes) -> Generator[None, None, bytes]:
        """The head of an answer that has this status. Raises `BenchmarkError`."""
        head = yield from self.until(END_OF_HEAD)
        if head[9:12] != status:
            raise BenchmarkError(f"unexpected answer: {head!r} {self._data[:300]!r}")
        return head

    def answer(self, status: bytes) -> Wait:
        """One whole answer of this status, with a Content-Length. Raises `BenchmarkError`."""
        head = (yield from self.head(status)).lower()
        at = head.index(LENGTH) + len(LENGTH)
        size = int(head[at : head.index(b"\r\n", at)])
        while len(self._data) < size:
            yield from self._more()
        self._data = self._data[size:]

    def end(self) -> Wait:
        """Until the server closes."""
        data = b" "
        while data:
            yield
            data = self._socket.recv(READ)

    def close(self) -> None:
        self._selector.unregister(self._socket)
        self._socket.close()


def keep_alive(request: bytes, status: bytes) -> Client:
    """Requests on a connection that stays open."""

    def client(loop: Loop) -> Wait:
        with closing(Connection(loop)) as connection:
            for _ in loop.exchanges():
                connection.send(request)
                yield from connection.answer(status)

    return client


def event_stream(request: bytes) -> Client:
    """A new connection each, closed when the first bytes of its stream are there."""

    def client(loop: Loop) -> Wait:
        for _ in loop.exchanges():
            with closing(Connection(loop)) as connection:
                connection.send(request)
                yield from connection.head(b"200")
                yield from connection.until(b"retry:")

    return client


def websocket_life(port: int) -> Client:
    """Connect, ``initialize``, and close as the protocol says."""
    upgrade = (
        f"GET /acp HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    params = {"protocolVersion": 1, "clientCapabilities": {}}
    call = {"jsonrpc": "2.0", "id": "greeting", "method": "initialize", "params": params}
    text = json.dumps(call).encode().ljust(126)  # then its length takes two bytes
    # The mask of zeros leaves the payload as it is.
    initialize = b"\x81\xfe" + len(text).to_bytes(2, "big") + b"\0\0\0\0" + text
    close = b"\x88\x82\0\0\0\0\x03\xe8"

    def client(loop: Loop) -> Wait:
        for _ in loop.exchanges():
            with closing(Connection(loop)) as connection:
                connection.send(upgrade)
                yield from connection.head(b"101")
                connection.send(initialize)
                yield from connection.until(b'"greeting"')
                connection.send(close)
                yield from connection.end()

    return client


class Rest:
    """The REST side of a server, with one session on it."""

    def __init__(self, peer: Peer) -> None:
        self.base = f"http://127.0.0.1:{peer.port}"
        self._host = f"127.0.0.1:{peer.port}"
        made = self.ask("/session", {"cwd": str(peer.cwd)})
        self.session_id = str(made["sessionId"])
        self.client_id = str(made["clientId"])

    def ask(self, path: str, body: Any = None) -> Any:
        """GET, or POST of JSON; the JSON of the answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.base + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return json.load(answer)

    def encode(self, method: str, path: str, body: Any = None) -> bytes:
        """A whole request; ``{}`` in the path is the session."""
        path = path.format(f"/session/{self.session_id}")
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}"]
        data = b"" if body is None else json.dumps(body).encode()
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
            lines += [f"X-Qwen-Client-Id: {self.client_id}"]
        return "\r\n".join([*lines, "", ""]).encode() + data

    def settle(self) -> None:
        """Wait until no turn runs."""
        limit = time.monotonic() + TURNS_LIMIT
        while self.ask(f"/session/{self.session_id}/status")["hasActivePrompt"]:
            if time.monotonic() > limit:
                raise BenchmarkError("turns do not end")
            time.sleep(0.05)
        time.sleep(REST)


def loads(rest: Rest, port: int) -> dict[str, Client]:
    """What is asked of a server, by the names in `LOADS`."""
    vote = {"outcome": {"outcome": "cancelled"}}
    turn = {"prompt": [{"type": "text", "text": "stream 1 20"}]}
    return {
        "health": keep_alive(rest.encode("GET", "/health"), b"200"),
        "status": keep_alive(rest.encode("GET", "{}/status"), b"200"),
        "heartbeat": keep_alive(rest.encode("POST", "{}/heartbeat", {}), b"200"),
        "vote": keep_alive(rest.encode("POST", "{}/permission/none", vote), b"404"),
        "events": event_stream(rest.encode("GET", "{}/events")),
        "connect": websocket_life(port),
        "prompt": keep_alive(rest.encode("POST", "{}/prompt", turn), b"202"),
    }


def http(peer: Peer, sizes: Sizes) -> Figures:
    """Each request at 1 and 16 connections; every answer is checked for its status."""
    figures: Figures = {}
    with started(ROOMY[peer.name]) as server:
        rest = Rest(server)
        clients_of = loads(rest, server.port)
        Loop(server.port).run(clients_of["status"], max(LEVELS), 2 * WARM)
        for name, client in clients_of.items():
            for clients in LEVELS:
                Loop(server.port).run(client, clients, WARM)
                rest.settle()
                used = cpu_seconds(server.pid)
                loop = Loop(server.port)
                loop.run(client, clients, sizes.load)
                rest.settle()
                used = cpu_seconds(server.pid) - used
                done = len(loop.times)
                what = f"{name} x{clients}"
                figures[f"{what} /s"] = done / loop.seconds
                figures[f"{what} p50 ms"] = median(loop.times) * 1e3
                figures[f"{what} cpu us/request"] = used / done * 1e6
    return figures


MEASURES: Mapping[str, Measure] = {"http": http}
PEERS = {"http": frozenset(ROOMY)}
"""Which peers take part in a measurement."""
