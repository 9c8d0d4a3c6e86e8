"""Limits of the door: heads, deadlines, connections of one peer, requests in flight."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
import trio
from gateway_process import GatewayProcess
from support.acp_clients import RpcError, ws_client
from support.processes import gateway, workspace_of

DEADLINE = 20.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    base = tmp_path_factory.mktemp("limits").resolve()
    with gateway(base, max_header_bytes=4096, header_timeout=1, body_timeout=1) as made:
        yield made


class Peer:
    def __init__(self, site: GatewayProcess) -> None:
        self.port = int(site.url.rpartition(":")[2])
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, text: str) -> None:
        self.socket.sendall(text.encode())

    def rest(self) -> bytes:
        """Everything until the other side ends the connection."""
        data = b""
        try:
            while piece := self.socket.recv(65536):
                data += piece
        except ConnectionError:
            pass
        return data


def status_and_body(data: bytes) -> tuple[int, dict[str, object]]:
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("size", [5_000, 60_000, 400_000])
@pytest.mark.parametrize("upgrade", [False, True])
def test_a_head_that_is_too_large(site: GatewayProcess, size: int, upgrade: bool) -> None:
    with Peer(site) as peer:
        kind = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        extra = kind + key if upgrade else "Connection: close\r\n"
        head = f"GET /acp HTTP/1.1\r\nHost: 127.0.0.1:{peer.port}\r\n{extra}X: {'a' * size}\r\n\r\n"
        with suppress(ConnectionError):  # it may have enough before all is sent
            peer.send(head)
        data = peer.rest()
    if data:
        status, body = status_and_body(data)
        assert (status, body["code"]) == (431, "headers_too_large")
    else:
        assert size > 100_000  # the answer was lost with what nobody read


def test_a_head_that_is_too_large_on_http2(site: GatewayProcess) -> None:
    with httpx2.Client(http1=False, http2=True, trust_env=False, timeout=DEADLINE) as http:
        try:
            answer = http.get(f"{site.url}/health", headers={"x": "a" * 5000})
        except httpx2.RemoteProtocolError:
            pass  # a stream error
        else:
            assert answer.status_code == 431
        assert http.get(f"{site.url}/health").status_code == 200
        assert http.get(f"{site.url}/health", headers={"x": "a" * 3000}).status_code == 200


def test_what_is_no_http(site: GatewayProcess) -> None:
    with Peer(site) as peer:
        peer.send("HELO there\r\n\r\n")
        status, body = status_and_body(peer.rest())
    assert (status, body["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("start", ["", "GET /health HTT", "GET /health HTTP/1.1\r\nHost: x"])
def test_a_slow_head_is_not_waited_for(site: GatewayProcess, start: str) -> None:
    with Peer(site) as peer:
        began = time.monotonic()
        if start:
            peer.send(start)
        assert b"200 " not in peer.rest()
        assert 0.5 < time.monotonic() - began < 10


def test_a_slow_head_byte_by_byte(site: GatewayProcess) -> None:
    with Peer(site) as peer:
        peer.socket.settimeout(0.2)
        began = time.monotonic()
        with suppress(ConnectionError):
            for letter in "GET /health HTTP/1.1\r\nX: " + "a" * 1000:
                peer.send(letter)
                with suppress(TimeoutError):
                    assert peer.socket.recv(1) == b""
                    break
        assert time.monotonic() - began < 10


def test_a_slow_body_is_not_waited_for(site: GatewayProcess) -> None:
    with Peer(site) as peer:
        host = f"Host: 127.0.0.1:{peer.port}\r\n"
        kind = "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        peer.send(f"POST /session HTTP/1.1\r\n{host}{kind}")
        status, body = status_and_body(peer.rest())
    assert (status, body["code"]) == (408, "request_timeout")


def test_an_idle_connection_ends(tmp_path: Path) -> None:
    with gateway(tmp_path, http_idle_timeout=1) as site, Peer(site) as peer:
        peer.send(f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{peer.port}\r\n\r\n")
        began = time.monotonic()
        # The next head begins and never ends: the idle time is its deadline.
        peer.send("GET /health HTTP/1.1\r\n")
        assert peer.rest().count(b"200 ") == 1
        assert time.monotonic() - began < 10


async def test_requests_in_flight(tmp_path: Path) -> None:
    with gateway(tmp_path, max_requests_in_flight=2) as site, trio.fail_after(DEADLINE):
        async with ws_client(site.ws_url) as ws:
            session_id = await ws.new(workspace_of(tmp_path))
            turns = [await ws.begin(session_id, "/sleep 60") for _ in range(2)]
            with pytest.raises(RpcError) as caught:
                await ws.request("session/list", {})
            assert caught.value.error["data"]["errorKind"] == "request_limit_exceeded"
            await ws.notify("session/cancel", {"sessionId": session_id})
            for turn in turns:
                assert (await ws.answer(turn))["stopReason"] == "cancelled"
            assert await ws.request("session/list", {})
