"""nginx and HAProxy with the files of deploy/, before a gateway: WebSocket, events, bodies."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import httpx2
import pytest
import trustme
from gateway_process import ROOT, GatewayProcess
from support.loopback import serving
from support.plain_acp import asker
from support.processes import eventually, gateway, workspace_of
from support.tools import need
from websockets.sync.client import connect

DEADLINE = 20.0
DEPLOY = ROOT / "deploy"
TOKEN = "sesame"
KINDS = ("nginx", "haproxy")


@attrs.frozen
class Proxy:
    url: str
    host: str
    context: ssl.SSLContext

    def client(self) -> httpx2.Client:
        return httpx2.Client(
            base_url=self.url,
            verify=self.context,
            timeout=DEADLINE,
            headers={"Authorization": f"Bearer {TOKEN}", "Host": self.host},
            trust_env=False,
        )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def replaced(text: str, **changes: str) -> str:
    """``text`` with what the machine decides; each must be in it."""
    for old, new in changes.items():
        pattern = {
            "upstream": r"127\.0\.0\.1:4170",
            "listen": r"(?<=listen )443(?= ssl)|(?<=bind ):443(?= ssl)",
            "cert": r"/etc/ssl/acp-gateway/fullchain\.pem|/etc/haproxy/acp-gateway\.pem",
            "key": r"/etc/ssl/acp-gateway/privkey\.pem",
        }[old]
        text, count = re.subn(pattern, new, text)
        assert count, old
    return text


def nginx_command(base: Path, upstream: int, port: int) -> tuple[list[str], list[str]]:
    """(to check, to run)"""
    program = need("nginx", "nginx-light")
    site = replaced(
        (DEPLOY / "nginx" / "acp-gateway.conf").read_text(encoding="utf-8"),
        upstream=f"127.0.0.1:{upstream}",
        listen=f"127.0.0.1:{port}",
        cert=str(base / "both.pem"),
        key=str(base / "both.pem"),
    )
    (base / "site.conf").write_text(site)
    temporary = "".join(
        f"{name}_temp_path {base / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    (base / "nginx.conf").write_text(
        f"{user}daemon off;\nworker_processes 1;\npid {base / 'pid'};\nerror_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}include {base / 'site.conf'};\n}}\n"
    )
    run = [program, "-e", "stderr", "-p", str(base), "-c", str(base / "nginx.conf")]
    return [*run, "-t"], run


def haproxy_command(base: Path, upstream: int, port: int) -> tuple[list[str], list[str]]:
    program = need("haproxy", "haproxy")
    text = replaced(
        (DEPLOY / "haproxy" / "haproxy.cfg").read_text(encoding="utf-8"),
        upstream=f"127.0.0.1:{upstream}",
        listen=f"127.0.0.1:{port}",
        cert=str(base / "both.pem"),
    )
    (base / "haproxy.cfg").write_text(text)
    run = [program, "-f", str(base / "haproxy.cfg")]
    return [*run, "-c"], [*run, "-db"]


@contextlib.contextmanager
def proxied(kind: str, base: Path, upstream: int, host: str) -> Iterator[Proxy]:
    base.mkdir(exist_ok=True)
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    leaf.private_key_and_cert_chain_pem.write_to_path(str(base / "both.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    port = free_port()
    make = nginx_command if kind == "nginx" else haproxy_command
    check, run = make(base, upstream, port)
    checked = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr and "WARNING" not in checked.stderr, checked.stderr
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(run, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:

        def there() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        assert eventually(there, DEADLINE), (base / "log").read_text()
        yield Proxy(f"https://localhost:{port}", host, context)
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proxied").resolve()


@pytest.fixture(scope="module")
def site(base: Path) -> Iterator[GatewayProcess]:
    named = ("--public-url", "https://gateway.example", "--trusted-proxy", "127.0.0.1")
    with gateway(base, "--token", TOKEN, *named) as made:
        yield made


@pytest.fixture(scope="module", params=KINDS)
def proxy(request: pytest.FixtureRequest, base: Path, site: GatewayProcess) -> Iterator[Proxy]:
    port = urlsplit(site.url).port or 0
    place = base / request.param
    with proxied(request.param, place, port, "gateway.example") as made, made.client() as http:
        # HAProxy has to have checked that the gateway is there.
        assert eventually(lambda: http.get("/health").status_code == 200, DEADLINE)
        yield made


def test_rest_and_refusals(proxy: Proxy, base: Path) -> None:
    with proxy.client() as http:
        assert http.get("/capabilities").status_code == 200
        refused = http.get("/capabilities", headers={"Authorization": "Bearer wrong"})
        assert refused.status_code == 401
        foreign = {"Origin": "https://evil.example"}
        assert http.get("/capabilities", headers=foreign).status_code == 403
        other = http.get("/capabilities", headers={"Host": "evil.example"})
        assert other.status_code == 403
        made = http.post("/session", json={"cwd": str(workspace_of(base))}).json()
        text = {"prompt": [{"type": "text", "text": "x" * 3_000_000}]}
        assert http.post(f"/session/{made['sessionId']}/prompt", json=text).status_code == 202
        assert http.post(f"/session/{made['sessionId']}/cancel").status_code == 204
        big = http.post("/session", content=b" " * (11 * 1024 * 1024))
        assert (big.status_code, big.json()["code"]) == (413, "payload_too_large")


def test_events_come_at_once(proxy: Proxy, base: Path) -> None:
    with proxy.client() as http, http.stream("GET", "/workspace/events") as stream:
        pieces = stream.iter_bytes()
        began = time.monotonic()
        assert next(pieces)
        assert time.monotonic() - began < 2
        with proxy.client() as other:
            body = {"cwd": str(workspace_of(base)), "sessionScope": "thread"}
            session = other.post("/session", json=body).json()["sessionId"]
        began, seen = time.monotonic(), b""
        while session.encode() not in seen:
            seen += next(pieces)
        assert b"session_created" in seen
        assert time.monotonic() - began < 2, "held back by a buffer"


def test_a_websocket(proxy: Proxy, base: Path) -> None:
    port = urlsplit(proxy.url).port or 0
    with connect(
        f"wss://{proxy.host}/acp",
        sock=socket.create_connection(("127.0.0.1", port), DEADLINE),
        ssl=proxy.context,
        server_hostname="localhost",
        additional_headers={"Authorization": f"Bearer {TOKEN}"},
        max_size=None,
    ) as client:
        heard: list[dict[str, Any]] = []
        ask = asker(client, heard)
        ask(1, "initialize", {"protocolVersion": 1})
        made = ask(2, "session/new", {"cwd": str(workspace_of(base)), "mcpServers": []})["result"]
        prompt = [{"type": "text", "text": "/chunks 2000 100"}]
        ended = ask(3, "session/prompt", {"sessionId": made["sessionId"], "prompt": prompt})
        assert ended["result"]["stopReason"] == "end_turn"
        assert sum(each["method"] == "session/update" for each in heard) >= 2000


@pytest.mark.parametrize("kind", KINDS)
def test_forwarded_headers_cannot_be_forged(kind: str, tmp_path: Path) -> None:
    seen: list[dict[str, list[str]]] = []

    class Upstream(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/headers":
                names = {name.lower() for name in self.headers}
                seen.append({name: self.headers.get_all(name) or [] for name in names})
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with (
        serving(Upstream) as port,
        proxied(kind, tmp_path / "p", port, "gateway.example") as proxy,
        proxy.client() as http,
    ):
        assert eventually(lambda: http.get("/").status_code == 200, DEADLINE)
        forged = {
            "X-Forwarded-For": "6.6.6.6",
            "X-Forwarded-Proto": "gopher",
            "X-Forwarded-Host": "evil.example",
            "Forwarded": "for=6.6.6.6",
        }
        assert http.get("/headers", headers=forged).status_code == 200
    told = seen[-1]
    assert told["host"] == ["gateway.example"]
    assert told["x-forwarded-for"] == ["127.0.0.1"]
    assert told["x-forwarded-proto"] == ["https"]
    assert told["x-forwarded-host"] == ["gateway.example"]
    assert "forwarded" not in told
