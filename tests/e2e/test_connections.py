"""What a connection costs, and how it is told apart at the front door."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path

import trio
from agent_env import base_environment
from gateway_process import GatewayProcess
from support.acp_clients import ws_client
from support.processes import eventually, gateway

DEADLINE = 30.0
TASKS_OF_A_CONNECTION = 3
"""Its own, the library's reader, and the writer."""


def tasks(site: GatewayProcess) -> int:
    with urllib.request.urlopen(f"{site.url}/daemon/status", timeout=DEADLINE) as answer:
        count = json.load(answer)["runtime"]["process"]["tasks"]
        assert isinstance(count, int)
        return count


async def test_an_idle_connection_has_few_tasks_and_leaves_none(tmp_path: Path) -> None:
    with gateway(tmp_path) as site, trio.fail_after(DEADLINE):
        async with ws_client(site.ws_url):
            pass
        before = await trio.to_thread.run_sync(tasks, site)
        async with AsyncExitStack() as stack:
            for _ in range(10):
                await stack.enter_async_context(ws_client(site.ws_url))
            more = before + 10 * TASKS_OF_A_CONNECTION
            assert await trio.to_thread.run_sync(eventually, lambda: tasks(site) == more, 10)
        assert await trio.to_thread.run_sync(eventually, lambda: tasks(site) == before, 10)


UPGRADE = (
    b"GET /acp HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%b: %b\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def first_line(port: int, *pieces: bytes) -> bytes:
    """The status line of the answer to a request that comes in ``pieces``."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for piece in pieces:
            await stream.send_all(piece)
            await trio.sleep(0.02)  # so that each is read by itself
        data = b""
        while b"\r\n" not in data:
            data += (await stream.receive_some()) or b"\r\n"
        return data.partition(b"\r\n")[0]


async def test_an_upgrade_is_found_however_it_is_written(tmp_path: Path) -> None:
    with gateway(tmp_path) as site, trio.fail_after(DEADLINE):
        port = int(site.url.rpartition(":")[2])
        for name, value in (
            (b"Upgrade", b"websocket"),
            (b"uPGRADE", b"WebSocket"),
            (b"Upgrade", b"  websocket"),
        ):
            head = UPGRADE % (port, name, value)
            for pieces in ([head], [head[:9], head[9:60], head[60:-2], head[-2:]]):
                status = await first_line(port, *pieces)
                assert status.split()[1] == b"101", (status, pieces)
        host = b"Host: 127.0.0.1:%d\r\n" % port
        for head, wanted in (
            (b"GET /health HTTP/1.1\r\n" + host + b"X-Upgrade: websocket\r\n\r\n", b"200"),
            (b"GET /health HTTP/1.1\r\n" + host + b"User-Agent: websocket\r\n\r\n", b"200"),
            (b"POST /acp HTTP/1.1\r\n" + host + b"Upgrade: websocket\r\n\r\n", b"415"),
        ):
            status = await first_line(port, head)
            assert status.split()[1] == wanted, (head, status)


def test_requests_that_come_before_everything_is_loaded_wait(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    argv = [sys.executable, "-m", "acp_gateway", "serve", "--port", str(port), "--agent", "demo"]
    process = subprocess.Popen(
        argv, cwd=tmp_path, env=base_environment(tmp_path / "home"), stderr=subprocess.DEVNULL
    )
    try:
        limit = time.monotonic() + DEADLINE
        while True:
            assert time.monotonic() < limit and process.poll() is None
            try:
                connection = socket.create_connection(("127.0.0.1", port), DEADLINE)
                break
            except ConnectionRefusedError:
                time.sleep(0.002)
        with connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    finally:
        process.terminate()
        process.wait(DEADLINE)
