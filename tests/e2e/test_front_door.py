"""The ways in: HTTP/1.1, h2c, TLS with ALPN, upgrades, tokens, Host and Origin."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import trio
import trustme
from agent_env import base_environment
from gateway_process import GatewayProcess, running_gateway
from support.acp_clients import INITIALIZE, http_client, rejection, ws_client
from support.processes import eventually, gateway, workspace_of

DEADLINE = 30.0
TOKEN = "tok-~/+=?&%1"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("door").resolve()


@pytest.fixture(scope="module")
def site(base: Path) -> Iterator[GatewayProcess]:
    with gateway(base) as made:
        yield made


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    home = tmp_path_factory.mktemp("guarded").resolve()
    file = home / "token"
    file.write_text(TOKEN + "\n", encoding="utf-8")
    file.chmod(0o600)
    with gateway(home, "--token-file", str(file)) as made:
        yield made


@pytest.mark.parametrize("how", ["http/1.1", "h2c"])
async def test_streamable_http(site: GatewayProcess, base: Path, how: str) -> None:
    h2 = how == "h2c"
    with trio.fail_after(DEADLINE):
        async with http_client(site.http_url, http1=not h2, http2=h2) as http:
            session_id = await http.new(workspace_of(base))
            assert (await http.say(session_id, "/chunks 2000 100"))["stopReason"] == "end_turn"
            assert http.text(session_id).count("\n") >= 0 and "001999" in http.text(session_id)
            headers = {"Acp-Connection-Id": http.connection_id}
            gone = await http.http.delete(site.http_url, headers=headers)
            assert gone.status_code == 202
            assert gone.http_version == ("HTTP/2" if h2 else "HTTP/1.1")


async def test_tls_speaks_h2_and_wss(tmp_path: Path) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    leaf.cert_chain_pems[0].write_to_path(cert)
    leaf.private_key_pem.write_to_path(key)
    # One for each client: what it offers by ALPN is set on its context.
    contexts = [ssl.create_default_context() for _ in range(2)]
    for context in contexts:
        authority.configure_trust(context)
    with (
        gateway(tmp_path, "--tls-cert", str(cert), "--tls-key", str(key)) as site,
        trio.fail_after(DEADLINE),
    ):
        assert site.url.startswith("https://") and site.ws_url.startswith("wss://")
        cwd = workspace_of(tmp_path)
        async with (
            http_client(site.http_url, tls=contexts[0], http2=True) as http,
            ws_client(site.ws_url, tls=contexts[1]) as ws,
        ):
            session_id = await ws.new(cwd)
            await http.load(cwd, session_id)
            await ws.say(session_id, "/chunks 2000 100")
            await http.until(lambda: http.notices(session_id, "turn_complete"))
            assert http.text(session_id) == ws.text(session_id)
            answer = await http.http.get(f"{site.url}/health")
            assert answer.http_version == "HTTP/2" and answer.json()["status"] == "ok"
        plain = ssl.create_default_context()
        with pytest.raises(httpx2.ConnectError):
            async with httpx2.AsyncClient(verify=plain, trust_env=False) as stranger:
                await stranger.get(f"{site.url}/health")


async def _frame(stream: trio.SocketStream, data: bytearray) -> bytes:
    """The payload of the next text frame; ``data`` is what came and was not used yet."""
    while True:
        if len(data) >= 2:
            size, start = data[1] & 0x7F, 2
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            if len(data) >= start + size:
                payload = bytes(data[start : start + size])
                del data[: start + size]
                return payload
        piece = await stream.receive_some(65536)
        assert piece, "closed"
        data += piece


async def test_upgrade_on_a_connection_already_used(site: GatewayProcess, base: Path) -> None:
    port = int(site.url.rpartition(":")[2])
    with trio.fail_after(DEADLINE):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            host = b"Host: localhost:%d\r\n" % port
            await stream.send_all(b"GET /health HTTP/1.1\r\n" + host + b"\r\n")
            data = bytearray()
            while b'"ok"' not in data or not data.endswith(b"}"):
                piece = await stream.receive_some(65536)
                assert piece
                data += piece
            await stream.send_all(
                b"GET /acp HTTP/1.1\r\n" + host + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            data = bytearray()
            while b"\r\n\r\n" not in data:
                piece = await stream.receive_some(65536)
                assert piece, data
                data += piece
            head, _, rest = bytes(data).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101"), head
            assert b"acp-connection-id:" in head.lower()
            data = bytearray(rest)

            async def call(id: int, method: str, params: object) -> dict[str, object]:
                message = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
                body = json.dumps(message).encode().ljust(200)
                size = len(body).to_bytes(2, "big")
                await stream.send_all(b"\x81\xfe" + size + bytes(4) + body)
                while True:
                    answer = json.loads(await _frame(stream, data))
                    if answer.get("id") == id:
                        assert "result" in answer, answer
                        result: dict[str, object] = answer["result"]
                        return result

            await call(1, "initialize", INITIALIZE)
            new = await call(2, "session/new", {"cwd": str(workspace_of(base)), "mcpServers": []})
            prompt = [{"type": "text", "text": "/chunks 100 50"}]
            params = {"sessionId": new["sessionId"], "prompt": prompt}
            assert (await call(3, "session/prompt", params))["stopReason"] == "end_turn"


# ---- tokens -------------------------------------------------------------------------------------


async def test_a_websocket_needs_the_token(guarded: GatewayProcess) -> None:
    encoded = base64.urlsafe_b64encode(TOKEN.encode()).rstrip(b"=").decode()
    query = str(httpx2.QueryParams({"token": TOKEN}))
    bearer = [(b"Authorization", b"Bearer " + TOKEN.encode())]
    wrong = [(b"Authorization", b"Bearer nope")]
    with trio.fail_after(DEADLINE):
        for refused in (
            await rejection(guarded.ws_url),
            await rejection(guarded.ws_url, headers=wrong),
            await rejection(guarded.ws_url, subprotocols=["qwen-bearer.bm9wZQ"]),
            await rejection(f"{guarded.ws_url}?token=nope"),
            # A wrong header is not mended by a good query.
            await rejection(f"{guarded.ws_url}?{query}", headers=wrong),
        ):
            assert refused.status_code == 401
            assert refused.json()["code"] == "auth_required"
        async with ws_client(f"{guarded.ws_url}?{query}") as ws:
            assert await ws.request("session/list", {})
        async with ws_client(guarded.ws_url, subprotocols=["acp", f"qwen-bearer.{encoded}"]) as ws:
            assert ws.socket.subprotocol == "acp", "the credential must not come back"
        async with ws_client(guarded.ws_url, headers=bearer) as ws:
            assert await ws.request("session/list", {})


async def test_http_takes_the_token_in_the_header_only(guarded: GatewayProcess) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE}
    good = {"Authorization": "Bearer " + TOKEN}
    async with httpx2.AsyncClient(trust_env=False, timeout=DEADLINE) as http:
        url = guarded.http_url
        for how in ({}, {"params": {"token": TOKEN}}, {"headers": {"Authorization": "Bearer x"}}):
            answer = await http.post(url, json=body, **how)
            assert answer.status_code == 401, answer.text
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["code"] == "auth_required"
        raw = {name: value.encode() for name, value in good.items()}
        assert (await http.post(url, json=body, headers=raw)).status_code == 200
        assert (await http.get(f"{guarded.url}/status")).status_code == 401
        assert (await http.get(f"{guarded.url}/health")).status_code == 200


# ---- Host and Origin ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=lambda headers: "-".join(headers.values()),
)
async def test_strange_hosts_and_origins(site: GatewayProcess, headers: dict[str, str]) -> None:
    port = site.url.rpartition(":")[2]
    sent = {name: value.format(port=port) for name, value in headers.items()}
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INITIALIZE}
    with trio.fail_after(DEADLINE):
        async with httpx2.AsyncClient(trust_env=False) as http:
            answer = await http.post(site.http_url, json=body, headers=sent)
            assert answer.status_code == 403
            assert answer.json()["code"] == "forbidden"
        if "Origin" in sent:
            pairs = [(name.encode(), value.encode()) for name, value in sent.items()]
            refused = await rejection(site.ws_url, headers=pairs)
            assert refused.status_code == 403


async def test_own_origins_are_welcome(site: GatewayProcess) -> None:
    port = site.url.rpartition(":")[2]
    with trio.fail_after(DEADLINE):
        for origin in (f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
            async with ws_client(site.ws_url, headers=[(b"Origin", origin.encode())]) as ws:
                assert await ws.request("session/list", {})


async def test_an_allowed_origin(tmp_path: Path) -> None:
    with (
        gateway(tmp_path, allow_origin="http://localhost:3000") as site,
        trio.fail_after(DEADLINE),
    ):
        headers = [(b"Origin", b"http://localhost:3000")]
        async with ws_client(site.ws_url, headers=headers) as ws:
            assert await ws.request("session/list", {})


def test_open_shows_the_token_in_no_command_line(tmp_path: Path) -> None:
    """A browser sees it in a file that is its user's alone and goes with the daemon."""
    browser, seen = tmp_path / "browser", tmp_path / "seen"
    browser.write_text(
        '#!/bin/sh\nfile="${1#file://}"\n'
        f'{{ echo "$1"; stat -c %a "$file"; cat "$file"; }} > {seen}.part\nmv {seen}.part {seen}\n'
    )
    browser.chmod(0o755)
    run, work = tmp_path / "run", tmp_path / "work"
    run.mkdir(mode=0o700)
    work.mkdir()
    token = "the-very-own-token"
    env = base_environment(tmp_path / "home") | {"ACP_GATEWAY_TOKEN": token}
    env |= {"XDG_RUNTIME_DIR": str(run), "BROWSER": f"{browser} %s"}
    with running_gateway(work, env, ["--agent", "demo", "--open"]) as made:
        assert eventually(seen.exists, 10), made.stderr_tail()
        url, mode, page = seen.read_text().split("\n", 2)
        assert url.startswith("file:///") and token not in url and mode == "600"
        assert f"{made.url}/#token={token}" in page
        made.stop()
    assert not list(run.rglob("*.html"))
