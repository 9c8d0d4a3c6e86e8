"""The order of the checks, on every way in: the first that fails answers.

``wrong`` lists what is wrong with a request; the answer must be that of the first in the order
Host, Origin, token, rate, route, body, gate.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from gateway_process import GatewayProcess
from support.acp_clients import rejection, ws_client
from support.processes import gateway, workspace_of

DEADLINE = 20.0
TOKEN = "order-token"
GOOD = {"Authorization": f"Bearer {TOKEN}"}
ALLOWED = "https://app.example"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    base = tmp_path_factory.mktemp("order").resolve()
    with gateway(base, "--token", TOKEN, "--allow-origin", ALLOWED) as made:
        yield made


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    base = tmp_path_factory.mktemp("limited").resolve()
    flags = ("--rate-limit", "--rate-limit-read", "1", "--rate-limit-mutation", "1")
    with gateway(base, "--token", TOKEN, "--rate-limit-window", "86400", *flags) as made:
        yield made


def port_of(site: GatewayProcess) -> int:
    return int(site.url.rpartition(":")[2])


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: Any) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def code(self) -> str:
        return str(self.body.get("code"))


def raw(site: GatewayProcess, text: str) -> Answer:
    """One request of bytes; the body of it that is announced may never come."""
    with socket.create_connection(("127.0.0.1", port_of(site)), timeout=DEADLINE) as peer:
        peer.sendall(text.encode())
        file = peer.makefile("rb")
        status = int(file.readline().split()[1])
        headers = {}
        while line := file.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = file.read(int(headers.get("content-length", 0)))
    return Answer(status, headers, json.loads(body or b"{}"))


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def h1(site: GatewayProcess, method: str, path: str, headers: dict[str, str]) -> Answer:
    headers = {"Host": f"127.0.0.1:{port_of(site)}", **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{n}: {v}" for n, v in headers.items())]
    return raw(site, "\r\n".join((*lines, "", "")))


def h2(site: GatewayProcess, method: str, path: str, headers: dict[str, str]) -> Answer:
    with httpx2.Client(http1=False, http2=True, trust_env=False, timeout=DEADLINE) as http:
        answer = http.request(method, site.url + path, headers=headers)
    assert answer.http_version == "HTTP/2"
    return Answer(answer.status_code, dict(answer.headers), answer.json() if answer.content else {})


def websocket(site: GatewayProcess, method: str, path: str, headers: dict[str, str]) -> Answer:
    return h1(site, "GET", path, {**UPGRADE, **headers})


def late(site: GatewayProcess, method: str, path: str, headers: dict[str, str]) -> Answer:
    """An upgrade on a connection that was used before: not on the fast path."""
    host = f"Host: 127.0.0.1:{port_of(site)}"
    with socket.create_connection(("127.0.0.1", port_of(site)), timeout=DEADLINE) as peer:
        file = peer.makefile("rb")

        def answer() -> Answer:
            status = int(file.readline().split()[1])
            found = {}
            while line := file.readline().strip():
                name, _, value = line.decode().partition(":")
                found[name.lower()] = value.strip()
            if found.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(file.readline(), 16):
                    body += file.read(size)
                    file.readline()
            else:
                body = file.read(int(found.get("content-length", 0)))
            return Answer(status, found, json.loads(body or b"{}") if status != 101 else {})

        peer.sendall(f"GET /health HTTP/1.1\r\n{host}\r\n\r\n".encode())
        assert answer().status == 200
        merged = {"Host": f"127.0.0.1:{port_of(site)}", **UPGRADE, **headers}
        lines = [f"GET {path} HTTP/1.1", *(f"{n}: {v}" for n, v in merged.items())]
        peer.sendall("\r\n".join((*lines, "", "")).encode())
        return answer()


WAYS: list[tuple[str, Callable[..., Answer], str, str]] = [
    ("rest get", h1, "GET", "/capabilities"),
    ("rest post", h1, "POST", "/session"),
    ("rest stream", h1, "GET", "/session/x/events"),
    ("acp post", h1, "POST", "/acp"),
    ("acp get", h1, "GET", "/acp"),
    ("acp delete", h1, "DELETE", "/acp"),
    ("unknown", h1, "GET", "/no/such/route"),
    ("h2 rest", h2, "GET", "/capabilities"),
    ("h2 acp", h2, "POST", "/acp"),
    ("websocket", websocket, "GET", "/acp"),
    ("websocket of an agent", websocket, "GET", "/agents/demo/acp"),
    ("websocket elsewhere", websocket, "GET", "/elsewhere"),
    ("websocket late", late, "GET", "/acp"),
]
WRONG: dict[str, dict[str, str]] = {
    "host": {"Host": "evil.example"},
    "origin": {"Origin": "https://evil.example"},
    "null": {"Origin": "null"},
    "token": {"Authorization": "Bearer wrong"},
    "no token": {"Authorization": ""},
}


@pytest.mark.parametrize(
    ("send", "method", "path"), [w[1:] for w in WAYS], ids=[w[0] for w in WAYS]
)
@pytest.mark.parametrize(
    ("wrong", "status", "says"),
    [
        (("host",), 403, "Invalid Host header"),
        (("host", "origin"), 403, "Invalid Host header"),
        (("host", "token"), 403, "Invalid Host header"),
        (("origin",), 403, "Request denied by CORS policy"),
        (("null",), 403, "Request denied by CORS policy"),
        (("origin", "token"), 403, "Request denied by CORS policy"),
        (("token",), 401, "Unauthorized"),
        (("no token",), 401, "Unauthorized"),
    ],
    ids=lambda each: " and ".join(each) if isinstance(each, tuple) else None,
)
def test_the_first_that_is_wrong_answers(
    site: GatewayProcess,
    send: Callable[..., Answer],
    method: str,
    path: str,
    wrong: tuple[str, ...],
    status: int,
    says: str,
) -> None:
    headers = dict(GOOD)
    for each in wrong:
        headers |= WRONG[each]
    answer = send(site, method, path, {n: v for n, v in headers.items() if v})
    assert (answer.status, answer.body.get("error")) == (status, says)
    if status == 403:
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", ["/file/write", "/session", "/acp", "/nothing"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_401_comes_before_a_large_body(
    site: GatewayProcess, path: str, headers: dict[str, str]
) -> None:
    size = 20 * 1024 * 1024
    answer = h1(site, "POST", path, {**headers, "Content-Length": str(size)})  # it never comes
    assert (answer.status, answer.code) == (401, "auth_required")
    assert answer.headers["connection"] == "close"


def test_with_the_token_come_the_others(site: GatewayProcess) -> None:
    size = {"Content-Length": str(20 * 1024 * 1024), "Content-Type": "application/json"}
    assert h1(site, "POST", "/session", {**GOOD, **size}).code == "payload_too_large"
    assert h1(site, "GET", "/nothing", GOOD).code == "route_not_found"
    assert h1(site, "PUT", "/session", GOOD).code == "method_not_allowed"
    assert websocket(site, "GET", "/elsewhere", GOOD).status == 404
    assert websocket(site, "GET", "/acp", {**GOOD, "Origin": ALLOWED}).status == 101
    assert late(site, "GET", "/acp", {**GOOD, "Origin": ALLOWED}).status == 101


@pytest.mark.parametrize("way", ["GET /capabilities", "POST /session", "websocket"])
@pytest.mark.parametrize("name", ["Host", "Origin", "Authorization"])
def test_what_decides_stands_once(site: GatewayProcess, way: str, name: str) -> None:
    """Of two values a proxy might have looked at the other."""
    host = f"127.0.0.1:{port_of(site)}"
    lines = {"Host": host, "Origin": ALLOWED, **GOOD}
    lines |= UPGRADE if way == "websocket" else {}
    text = "".join(f"{n}: {v}\r\n" for n, v in lines.items())
    line = "GET /acp" if way == "websocket" else way
    for twice in (lines[name], "evil.example"):
        answer = raw(site, f"{line} HTTP/1.1\r\n{text}{name}: {twice}\r\n\r\n")
        assert answer.status == 400, answer.body


def test_what_decides_stands_once_on_http2(site: GatewayProcess) -> None:
    twice = [("Origin", ALLOWED), ("Origin", "https://evil.example"), *GOOD.items()]
    with httpx2.Client(http1=False, http2=True, trust_env=False, timeout=DEADLINE) as http:
        assert http.get(f"{site.url}/capabilities", headers=twice).status_code == 400
        assert http.get(f"{site.url}/capabilities", headers=twice[1:]).status_code == 403


# ---- CORS ---------------------------------------------------------------------------------------

ASKED = {"Origin": ALLOWED, "Access-Control-Request-Method": "POST"}


@pytest.mark.parametrize("send", [h1, h2])
@pytest.mark.parametrize("path", ["/session", "/acp", "/no/such/route", "/file/write"])
def test_a_preflight_is_answered_before_the_token(
    site: GatewayProcess, send: Callable[..., Answer], path: str
) -> None:
    answer = send(site, "OPTIONS", path, ASKED)
    assert answer.status == 204 and answer.headers["access-control-allow-origin"] == ALLOWED
    refused = send(site, "OPTIONS", path, {**ASKED, "Origin": "https://evil.example"})
    assert refused.status == 403 and "access-control-allow-origin" not in refused.headers
    assert refused.headers["vary"] == "Origin"
    # It is no preflight without the question.
    assert send(site, "OPTIONS", path, {"Origin": ALLOWED}).status == 401


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/capabilities", GOOD, 200),
        ("GET", "/capabilities", {}, 401),
        ("GET", "/nothing", GOOD, 404),
        ("PUT", "/session", GOOD, 405),
        ("POST", "/acp", GOOD, 415),
        ("GET", "/health", {}, 200),
        ("GET", "/", {"Accept": "text/html"}, 200),
        ("POST", "/session", {**GOOD, "Content-Length": "20000000"}, 413),
    ],
)
def test_every_answer_to_an_allowed_origin_can_be_read(
    site: GatewayProcess, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = h1(site, method, path, {**headers, "Origin": ALLOWED}) if path != "/" else None
    if answer is None:
        with httpx2.Client(trust_env=False) as http:
            page = http.get(site.url, headers={**headers, "Origin": ALLOWED})
        answer = Answer(page.status_code, dict(page.headers), {})
    assert answer.status == status
    told = answer.headers
    assert told["access-control-allow-origin"] == ALLOWED
    assert told["vary"] == "Origin"
    assert told["access-control-allow-methods"] == "GET, POST, PATCH, DELETE, OPTIONS"
    assert told["access-control-max-age"] == "86400"
    for name in ("Authorization", "Content-Type", "X-Qwen-Client-Id", "Last-Event-ID"):
        assert name in told["access-control-allow-headers"].split(", ")
    for name in ("Retry-After", "X-Qwen-Event-Epoch", "X-Qwen-SSE-Stream-Id"):
        assert name in told["access-control-expose-headers"].split(", ")
    assert "access-control-allow-credentials" not in told


def test_our_own_page_needs_no_leave(site: GatewayProcess) -> None:
    answer = h1(site, "GET", "/capabilities", {**GOOD, "Origin": site.url})
    assert answer.status == 200 and "access-control-allow-origin" not in answer.headers
    # By another name of this machine it is another origin to the browser, and a good one.
    other = f"http://localhost:{port_of(site)}"
    answer = h1(site, "GET", "/capabilities", {**GOOD, "Origin": other})
    assert answer.headers["access-control-allow-origin"] == other
    # Caches must not give one origin's answer to another.
    assert h1(site, "GET", "/capabilities", GOOD).headers["vary"] == "Origin"


def test_any_origin_but_null(tmp_path: Path) -> None:
    with gateway(tmp_path, "--token", TOKEN, "--allow-origin", "*") as site:
        for origin in ("https://a.example", "http://b.example:81", "chrome-extension://abc"):
            answer = h1(site, "GET", "/capabilities", {**GOOD, "Origin": origin})
            assert answer.status == 200
            assert answer.headers["access-control-allow-origin"] == origin
            assert websocket(site, "GET", "/acp", {**GOOD, "Origin": origin}).status == 101
        for send in (h1, websocket, late):
            assert send(site, "GET", "/acp", {**GOOD, "Origin": "null"}).status == 403
        assert h1(site, "GET", "/capabilities", {"Origin": "https://a.example"}).status == 401


# ---- rate, gate ---------------------------------------------------------------------------------


def test_429_comes_after_401_and_before_all_else(limited: GatewayProcess) -> None:
    for _ in range(5):  # they do not count
        assert h1(limited, "GET", "/capabilities", {}).status == 401
        assert h1(limited, "POST", "/session", {"Authorization": "Bearer x"}).status == 401
        assert h1(limited, "GET", "/capabilities", {**GOOD, "Host": "evil"}).status == 403
    assert h1(limited, "GET", "/nothing", GOOD).status == 404
    for path in ("/capabilities", "/nothing", "/session/x/status"):
        assert h1(limited, "GET", path, GOOD).code == "rate_limit_exceeded"
    broken = {"Content-Length": "7", "Content-Type": "application/json", **GOOD}
    host = f"Host: 127.0.0.1:{port_of(limited)}\r\n"
    lines = "".join(f"{n}: {v}\r\n" for n, v in broken.items())
    assert raw(limited, f"POST /session HTTP/1.1\r\n{host}{lines}\r\n{{broken").status == 400
    huge = {**GOOD, "Content-Length": "20000000", "Content-Type": "application/json"}
    answer = h1(limited, "POST", "/file/write", huge)  # the body is not read
    assert (answer.status, answer.body["tier"]) == (429, "mutation")
    assert answer.headers["connection"] == "close"
    assert h1(limited, "GET", "/capabilities", {}).status == 401  # still first
    assert h1(limited, "GET", "/capabilities", {**GOOD, "Host": "evil"}).status == 403


async def test_the_gate_comes_last_and_guards_the_twins(tmp_path: Path) -> None:
    with gateway(tmp_path) as site:

        def post(path: str, body: bytes, size: int | None = None) -> Answer:
            head = (
                f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port_of(site)}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {size or len(body)}\r\n\r\n"
            )
            return raw(site, head + body.decode())

        assert post("/file/write", b"{broken").code == "parse_error"
        assert post("/file/write", b"", 20_000_000).code == "payload_too_large"
        assert post("/file/write", b'{"path":"x","content":"y"}').code == "token_required"
        async with ws_client(site.ws_url) as ws:
            session_id = await ws.new(workspace_of(tmp_path))
            for method in ("_qwen/file/write", "_qwen/file/edit", "_qwen/session/tasks/cancel"):
                id = await ws.start(method, {"sessionId": session_id, "path": "x", "content": "y"})
                message = await ws.until(
                    lambda id=id: next((m for m in ws.messages if m.get("id") == id), None)
                )
                assert message["error"]["data"]["errorKind"] == "token_required", method
        assert not (workspace_of(tmp_path) / "x").exists()


async def test_trust_loopback_is_for_this_machine(tmp_path: Path) -> None:
    with gateway(tmp_path, "--trust-loopback") as site:
        body = b'{"path":"x","content":"y","mode":"create"}'
        for extra, status in ((b"", 201), (b"X-Forwarded-For: 203.0.113.9\r\n", 401)):
            head = (
                f"POST /file/write HTTP/1.1\r\nHost: 127.0.0.1:{port_of(site)}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            ).encode()
            answer = raw(site, (head + extra + b"\r\n" + body).decode())
            assert answer.status == status, answer.body
        refused = await rejection(site.ws_url, headers=[(b"Host", b"evil.example")])
        assert refused.status_code == 403


def test_over_tls_too(tmp_path: Path) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    leaf.cert_chain_pems[0].write_to_path(cert)
    leaf.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    flags = ("--tls-cert", str(cert), "--tls-key", str(key), "--token", TOKEN)
    with (
        gateway(tmp_path, *flags) as site,
        httpx2.Client(verify=context, http2=True, trust_env=False) as http,
    ):
        for headers, status in (
            ({**GOOD, "Host": "evil.example"}, 403),
            ({**GOOD, "Origin": "https://evil.example"}, 403),
            ({"Origin": site.url}, 401),
            ({**GOOD, "Origin": site.url}, 200),
        ):
            answer = http.get(f"{site.url}/capabilities", headers=headers)
            assert (answer.status_code, answer.http_version) == (status, "HTTP/2")


def test_numbers_of_health_need_the_token_with_require_auth(tmp_path: Path) -> None:
    with (
        gateway(tmp_path.resolve(), "--token", TOKEN, "--require-auth") as strict,
        httpx2.Client(base_url=strict.url, trust_env=False, timeout=DEADLINE) as http,
    ):
        assert http.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = http.get("/health?deep=1", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "auth_required")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert http.get("/health?deep=1", headers=GOOD).json()["sessions"] == 0
