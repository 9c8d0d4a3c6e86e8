"""An answer that needs no body leaves the connection usable, or says that it ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway_process import GatewayProcess
from support.processes import gateway

DEADLINE = 20.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway(tmp_path_factory.mktemp("unread").resolve()) as made:
        yield made


class Peer:
    """One HTTP/1.1 connection, by hand: the body goes when the test says so."""

    def __init__(self, site: GatewayProcess) -> None:
        host, _, port = site.url.removeprefix("http://").partition(":")
        self.host = f"{host}:{port}"
        self.socket = socket.create_connection((host, int(port)), timeout=DEADLINE)
        self.file = self.socket.makefile("rb")

    def send_head(self, line: str, *headers: str) -> None:
        head = "\r\n".join((f"{line} HTTP/1.1", f"host: {self.host}", *headers, "", ""))
        self.socket.sendall(head.encode())

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self.file.readline().split()[1])
        headers: dict[str, str] = {}
        while (line := self.file.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, self.file.read(int(headers.get("content-length", 0)))

    def is_usable(self) -> bool:
        self.send_head("GET /health")
        return self.answer()[0] == 200

    def ends(self) -> bool:
        try:
            return self.file.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def peer(site: GatewayProcess) -> Iterator[Peer]:
    made = Peer(site)
    yield made
    made.close()


REQUESTS = [
    ("PUT /session", 405),  # no such method
    ("POST /no/such/route", 404),
    ("POST /session/unknown/cancel", 404),  # read, then refused
    ("GET /capabilities", 200),
    ("DELETE /session/unknown", 404),
]


@pytest.mark.parametrize(("line", "status"), REQUESTS)
def test_a_body_behind_its_head(peer: Peer, line: str, status: int) -> None:
    peer.send_head(line, "content-type: application/json", "content-length: 2")
    time.sleep(0.05)  # the answer is on its way before the body is
    peer.socket.sendall(b"{}")
    answer, headers, _ = peer.answer()
    assert answer == status
    assert "connection" not in headers
    assert peer.is_usable()


def test_a_refusal_of_the_guards(peer: Peer) -> None:
    peer.send_head("POST /session", "origin: http://elsewhere", "content-length: 2")
    time.sleep(0.05)
    peer.socket.sendall(b"{}")
    assert peer.answer()[0] == 403
    assert peer.is_usable()


@pytest.mark.parametrize("size", ["2", "10000000"])
def test_a_body_that_does_not_come_ends_the_connection(peer: Peer, size: str) -> None:
    peer.send_head("PUT /session", f"content-length: {size}")
    status, headers, _ = peer.answer()
    assert (status, headers["connection"]) == (405, "close")
    assert peer.ends()


def open_files(site: GatewayProcess) -> int:
    return len(list(Path(f"/proc/{site.process.pid}/fd").iterdir()))


def test_a_connection_goes_with_its_client(site: GatewayProcess) -> None:
    """Not when its idle time is over: a few hundred refused requests would shut the door."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("counts the files in /proc")
    before = open_files(site)
    asks: list[Callable[[Peer], None]] = [
        lambda peer: peer.send_head("GET /health"),
        lambda peer: peer.send_head("GET /health", "origin: http://elsewhere"),
        lambda peer: peer.send_head("GET /", "accept: text/html"),
        lambda peer: peer.send_head("OPTIONS /session"),
    ]
    for ask in asks * 5:
        peer = Peer(site)
        ask(peer)
        peer.answer()
        peer.close()
    until = time.monotonic() + DEADLINE
    while open_files(site) > before and time.monotonic() < until:
        time.sleep(0.05)
    assert open_files(site) <= before
