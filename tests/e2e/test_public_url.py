"""A gateway that a proxy serves at another address, below a path."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from gateway_process import GatewayProcess
from support.acp_clients import http_client, rejection, ws_client
from support.processes import gateway, workspace_of

DEADLINE = 30.0
TOKEN = "public-token"
BASE = "/gate/way"
PUBLIC = f"https://gw.example{BASE}"
REMOTE = "203.0.113.7"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("public").resolve()


@pytest.fixture(scope="module")
def site(home: Path) -> Iterator[GatewayProcess]:
    flags = ("--token", TOKEN, "--public-url", PUBLIC + "/", "--trusted-proxy", "127.0.0.1")
    with gateway(home, *flags) as made:
        yield made


def ask(site: GatewayProcess, path: str, **headers: str) -> httpx2.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.get(site.url + path, headers=given, trust_env=False, timeout=DEADLINE)


@pytest.mark.parametrize("path", ["/health", "/capabilities", "/status", "/openapi.json"])
def test_every_route_answers_below_the_path_too(site: GatewayProcess, path: str) -> None:
    plain, below = ask(site, path, **BEARER), ask(site, BASE + path, **BEARER)
    assert below.status_code == plain.status_code == 200
    assert below.content == plain.content
    assert ask(site, BASE + path).status_code == ask(site, path).status_code


@pytest.mark.parametrize(
    "path", ["/gate", "/gate/", "/gate/way2/health", f"{BASE}{BASE}/health", "/gate/wayhealth"]
)
def test_nothing_else_does(site: GatewayProcess, path: str) -> None:
    assert ask(site, path, **BEARER).status_code == 404
    assert ask(site, path).status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("gw.example", 200),
        ("GW.example", 200),
        ("gw.example:443", 200),
        ("gw.example:8443", 403),
        ("evil.example", 403),
        ("x.gw.example", 403),
    ],
)
def test_its_host_is_good(site: GatewayProcess, host: str, status: int) -> None:
    assert ask(site, "/health", Host=host).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://gw.example", 200),
        ("https://GW.example", 200),
        ("http://gw.example", 403),
        ("https://gw.example:8443", 403),
        ("https://evil.example", 403),
        ("null", 403),
    ],
)
async def test_its_origin_is_good(site: GatewayProcess, origin: str, status: int) -> None:
    assert ask(site, f"{BASE}/capabilities", Origin=origin, **BEARER).status_code == status
    ws_url = site.ws_url.replace("/acp", f"{BASE}/acp")
    headers = [(b"Origin", origin.encode()), (b"Authorization", f"Bearer {TOKEN}".encode())]
    if status == 200:
        async with ws_client(ws_url, headers=headers) as ws:
            assert await ws.request("session/list", {})
    else:
        assert (await rejection(ws_url, headers=headers)).status_code == status


async def test_acp_below_the_path(site: GatewayProcess, home: Path) -> None:
    cwd = workspace_of(home)
    headers = [(b"Authorization", f"Bearer {TOKEN}".encode())]
    for path in (f"{BASE}/acp", f"{BASE}/agents/demo/acp"):
        async with ws_client(site.ws_url.replace("/acp", path), headers=headers) as ws:
            session_id = await ws.new(cwd)
            assert (await ws.say(session_id, "/chunks 2 10"))["stopReason"] == "end_turn"
        async with http_client(site.url + path, headers=BEARER) as http:
            session_id = await http.new(cwd)
            assert (await http.say(session_id, "/chunks 2 10"))["stopReason"] == "end_turn"


def test_links_name_it(site: GatewayProcess) -> None:
    ready = next(json.loads(line) for line in site.stderr_tail().splitlines() if '"ready"' in line)
    assert (ready["public_url"], ready["public_ws_url"]) == (PUBLIC, f"wss://gw.example{BASE}/acp")
    assert ready["url"] == site.url  # where it listens


def test_pages_below_the_path(site: GatewayProcess) -> None:
    html = {"Accept": "text/html"}
    moved = ask(site, BASE, **html)
    assert moved.status_code == 307 and moved.headers["location"] == f"{BASE}/"
    page = ask(site, f"{BASE}/", **html)
    assert page.content == ask(site, "/", **html).content
    # Its links are relative, so that they lead below the path.
    links = [part.split('"')[0] for part in page.text.split('src="')[1:]]
    links += [part.split('"')[0] for part in page.text.split('href="')[1:]]
    links = [each for each in links if not each.startswith("#")]
    assert links and not [each for each in links if each.startswith("/")]
    for link in links:
        for start in (f"{BASE}/", f"{BASE}/demo", "/", "/demo"):
            target = httpx2.URL(site.url + start).join(link).path
            assert ask(site, target).status_code == 200, (start, link)


async def test_a_wide_bind_keeps_its_names(tmp_path: Path) -> None:
    flags = ("--host", "0.0.0.0", "--token", TOKEN, "--trusted-proxy", "127.0.0.1")
    with gateway(tmp_path, *flags, "--public-url", PUBLIC) as site:
        assert ask(site, "/health", Host="anything.lan").status_code == 200
        for origin, status in (("https://gw.example", 200), ("https://evil.example", 403)):
            answer = ask(site, "/capabilities", Origin=origin, **BEARER)
            assert answer.status_code == status
        told = {
            "X-Forwarded-For": REMOTE,
            "X-Forwarded-Host": "box.example",
            "X-Forwarded-Proto": "https",
        }
        asked = {**BEARER, **told}
        assert ask(site, "/capabilities", Origin="https://box.example", **asked).status_code == 200
        assert ask(site, "/capabilities", Origin="http://box.example", **asked).status_code == 403
        # Of nobody else is it believed.
        del asked["X-Forwarded-For"]
        assert ask(site, "/capabilities", Origin="https://box.example", **asked).status_code == 403


def test_a_forwarded_host_never_makes_a_wrong_one_right(site: GatewayProcess) -> None:
    """A rebound page can send the header as well as any: it is same-origin with itself."""
    told = {"X-Forwarded-For": REMOTE, "X-Forwarded-Proto": "https"}
    bad = ask(site, "/health", Host="evil.example", X_Forwarded_Host="gw.example", **told)
    assert bad.status_code == 403
    assert ask(site, "/health", X_Forwarded_Host="evil.example", **told).status_code == 403
    assert ask(site, "/health", X_Forwarded_Host="gw.example", **told).status_code == 200


# ---- who is of this machine ---------------------------------------------------------------------


async def test_local_only_votes_are_not_for_remote_clients(tmp_path: Path) -> None:
    """Behind a proxy on loopback every socket is of this machine; the people are not."""
    flags = ("--permission-policy", "local-only", "--trusted-proxy", "127.0.0.1")
    cwd = workspace_of(tmp_path)
    remote = [(b"X-Forwarded-For", REMOTE.encode())]
    local = [(b"X-Forwarded-For", b"127.0.0.1")]
    with gateway(tmp_path, *flags) as site, trio.fail_after(DEADLINE):
        async with (
            ws_client(site.ws_url, headers=remote) as far,
            ws_client(site.ws_url, headers=local) as near,
        ):
            session_id = await far.new(cwd)
            await near.load(cwd, session_id)
            turn = await far.begin(session_id, "Hello")
            await near.until(near.questions)
            assert not far.questions()
            async with httpx2.AsyncClient(base_url=site.url, trust_env=False) as http:
                request = (await http.get(f"/session/{session_id}/status")).json()
                assert request["hasActivePrompt"] is True
                events = await _request_id(http, session_id)
                vote = {"outcome": {"outcome": "selected", "optionId": "allow-once"}}
                path = f"/session/{session_id}/permission/{events}"
                for headers in (
                    {"X-Forwarded-For": REMOTE},
                    {"X-Forwarded-For": f"127.0.0.1, {REMOTE}"},
                    {"X-Forwarded-For": "nonsense"},
                    {"Forwarded": "for=127.0.0.1", "X-Forwarded-For": REMOTE},
                    {},  # a proxy that says nothing speaks for nobody
                ):
                    refused = await http.post(path, json=vote, headers=headers)
                    assert refused.status_code == 403, (headers, refused.text)
                    assert refused.json()["code"] == "permission_forbidden"
                answer = await http.post(path, json=vote, headers={"X-Forwarded-For": "127.0.0.1"})
                assert answer.is_success, answer.text
            assert (await far.answer(turn))["stopReason"] == "end_turn"


async def _request_id(http: httpx2.AsyncClient, session_id: str) -> str:
    audit = (await http.get("/workspace/permissions/audit")).json()
    found = [each for each in audit["entries"] if each.get("sessionId") == session_id]
    return str(found[-1]["requestId"])


async def test_a_tunnel_that_nobody_named_makes_nobody_local(tmp_path: Path) -> None:
    """It connects from loopback; what it adds to the request gives it away."""
    cwd = workspace_of(tmp_path)
    with gateway(tmp_path, "--permission-policy", "local-only") as site:
        async with (
            ws_client(site.ws_url, headers=[(b"X-Forwarded-For", REMOTE.encode())]) as far,
            ws_client(site.ws_url) as near,
        ):
            session_id = await far.new(cwd)
            await near.load(cwd, session_id)
            turn = await far.begin(session_id, "Hello")
            await near.until(near.questions)
            assert not far.questions()
            await near.permit()
            assert (await far.answer(turn))["stopReason"] == "end_turn"


# ---- a proxy that we did not write the rules of -------------------------------------------------


@contextmanager
def forwarder(site: GatewayProcess) -> Iterator[int]:
    """A TCP proxy that adds what nginx adds to the first head of a connection."""
    target = int(site.url.rpartition(":")[2])
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=relay, args=(client,), daemon=True).start()

    def relay(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", target)) as upstream:
            head = b""
            while b"\r\n\r\n" not in head:
                piece = client.recv(65536)
                if not piece:
                    return
                head += piece
            line, _, rest = head.partition(b"\r\n")
            fields, _, body = rest.partition(b"\r\n\r\n")
            kept = [
                each if not each.lower().startswith(b"host:") else b"Host: gw.example"
                for each in fields.split(b"\r\n")
            ]
            kept += [b"X-Forwarded-For: " + REMOTE.encode(), b"X-Forwarded-Proto: https"]
            upstream.sendall(b"\r\n".join((line, *kept, b"", body)))
            back = threading.Thread(target=pipe, args=(upstream, client), daemon=True)
            back.start()
            pipe(client, upstream)
            back.join(DEADLINE)

    def pipe(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(server.getsockname()[1])
    finally:
        server.close()


async def test_through_a_proxy(site: GatewayProcess, home: Path) -> None:
    with forwarder(site) as port, trio.fail_after(DEADLINE):
        url: Any = f"ws://127.0.0.1:{port}{BASE}/acp"
        headers = [
            (b"Origin", b"https://gw.example"),
            (b"Authorization", f"Bearer {TOKEN}".encode()),
        ]
        async with ws_client(url, headers=headers) as ws:
            session_id = await ws.new(workspace_of(home))
            assert (await ws.say(session_id, "/chunks 20 10"))["stopReason"] == "end_turn"
            assert "000019" in ws.text(session_id)
