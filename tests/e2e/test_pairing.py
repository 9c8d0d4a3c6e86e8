"""Pairing against a live daemon, as a phone does it and as somebody who guesses does."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from agent_env import base_environment
from gateway_process import ROOT, GatewayProcess
from support.openapi import BY_NAME, validator
from support.processes import gateway, rss

from acp_gateway.core.identity import Scope
from acp_gateway.core.pairing import PER_MINUTE, TRIES
from acp_gateway.token_store import TokenStore
from acp_gateway.transports.request_body import OPEN_LIMIT, OPEN_TIMEOUT

DAEMON = "the-daemons-own-token"


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "tokens.json")


@pytest.fixture
def site(tmp_path: Path, store: TokenStore) -> Iterator[GatewayProcess]:
    with gateway(tmp_path.resolve(), token=DAEMON, tokens_file=store.path) as made:
        yield made


def ask(site: GatewayProcess, method: str, path: str, token: str | None = None, **how: Any) -> Any:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    headers |= how.pop("headers", {})
    with httpx2.Client(base_url=site.url, headers=headers, trust_env=False, timeout=20) as http:
        return http.request(method, path, **how)


def offered(site: GatewayProcess, **how: Any) -> str:
    answer = ask(site, "POST", "/pair/code", DAEMON, json=how)
    assert answer.status_code == 201 and answer.headers["cache-control"] == "no-store"
    body = answer.json()
    validator(BY_NAME["pair_code"].schema(201) or {}).validate(body)
    return str(body["code"])


def guess(site: GatewayProcess, code: Any, **how: Any) -> tuple[int, Any]:
    answer = ask(site, "POST", "/pair", json={"code": code, **how})
    return answer.status_code, answer.json()


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 10**6:06}"


def pair_command(site: GatewayProcess, home: Path, *args: str) -> dict[str, Any]:
    pid = str(site.process.pid)
    done = subprocess.run(
        [sys.executable, "-m", "acp_gateway", "pair", "--json", pid, *args],
        env={**base_environment(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_phone_comes_in(site: GatewayProcess, store: TokenStore, tmp_path: Path) -> None:
    told = pair_command(site, tmp_path / "home", "--scope", "prompt", "--expires", "1h")
    assert told["url"] == f"{site.url}/pair#{told['code']}" and "phone cannot" in told["hint"]
    page = ask(site, "GET", "/pair", headers={"Accept": "text/html"})
    assert (
        page.status_code == 200 and "script-src 'self'" in page.headers["content-security-policy"]
    )
    status, body = guess(site, told["code"], name="iphone")
    assert status == 201
    validator(BY_NAME["pair"].schema(201) or {}).validate(body)
    assert (body["name"], body["scopes"]) == ("iphone", ["read", "prompt"])
    token = body["token"]
    assert ask(site, "GET", "/capabilities", token).status_code == 200
    assert ask(site, "POST", "/pair/code", token, json={}).json()["code"] == "insufficient_scope"
    (kept,) = store.read()
    assert kept.kind.value == "paired" and kept.expires_at is not None
    assert token not in store.path.read_text() and token not in site.stderr_tail()
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    store.revoke("iphone")
    assert ask(site, "GET", "/capabilities", token).status_code == 401


def test_the_address_that_a_phone_can_reach(site: GatewayProcess, tmp_path: Path) -> None:
    told = pair_command(site, tmp_path / "home", "--url", "https://gw.example/base/")
    assert told["url"] == f"https://gw.example/base/pair#{told['code']}" and told["hint"] is None


def test_a_code_is_good_once(site: GatewayProcess) -> None:
    code = offered(site)
    assert guess(site, code)[0] == 201
    first = guess(site, code)
    assert first[0] == 403 and first[1]["code"] == "pairing_failed"
    # A wrong one reads the same, and so does one when there is none.
    assert guess(site, wrong(code)) == first


def test_a_newer_code_voids_the_older(site: GatewayProcess) -> None:
    older = offered(site)
    newer = offered(site, name="tablet")
    if older != newer:
        assert guess(site, older)[0] == 403
    assert guess(site, newer, name="ignored")[1]["name"] == "tablet"


def test_guessing_voids_the_code(site: GatewayProcess) -> None:
    code = offered(site)
    for _ in range(TRIES):
        assert guess(site, wrong(code))[0] == 403
    assert guess(site, code)[0] == 403, "the right one comes too late"


def test_guessing_goes_on_for_nobody(site: GatewayProcess, store: TokenStore) -> None:
    """Not faster than a few in a minute, with new codes and without."""
    code = offered(site)
    for number in range(PER_MINUTE):
        if number % 3 == 0:
            code = offered(site)
        assert guess(site, wrong(code))[0] == 403
    code = offered(site)
    status, body = guess(site, code)
    assert (status, body["code"]) == (429, "pairing_limit_exceeded")
    assert 0 < body["retryAfterMs"] <= 60_000
    assert store.read() == ()


@pytest.mark.parametrize(
    "code", [None, 123456, ["1"], {"a": 1}, "", "x" * 4000, "１２３４５６", "\ud800", "000000\0"]
)
def test_what_is_no_code(site: GatewayProcess, code: Any) -> None:
    offered(site)
    answer = ask(
        site,
        "POST",
        "/pair",
        content=json.dumps({"code": code}),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code in (400, 403)
    assert ask(site, "GET", "/health").status_code == 200


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "x" * 65, "ä", "a\nb", 5, ["a"]])
def test_names_that_would_forge_a_line(site: GatewayProcess, name: Any) -> None:
    code = offered(site)
    for answer in (
        ask(site, "POST", "/pair/code", DAEMON, json={"name": name}),
        ask(site, "POST", "/pair", json={"code": code, "name": name}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_token_name")
    assert guess(site, code, name="fine")[0] == 201, "the code is still good"


@pytest.mark.parametrize(
    "wish",
    [{"scope": "root"}, {"scope": 4}, {"scope": ["admin"]}]
    + [{"expiresInSeconds": value} for value in (0, -1, 1.5, True, "1d", 10**12)],
)
def test_wishes_that_are_refused(site: GatewayProcess, wish: dict[str, Any]) -> None:
    answer = ask(site, "POST", "/pair/code", DAEMON, json=wish)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def test_two_devices_of_one_name(site: GatewayProcess, store: TokenStore) -> None:
    for _ in range(2):
        assert guess(site, offered(site), name="android")[0] == 201
    assert [each.name for each in store.read()] == ["android", "android-2"]


def test_only_who_runs_it_makes_codes(site: GatewayProcess, store: TokenStore) -> None:
    token, _ = store.create("guest", Scope.APPROVE)
    assert ask(site, "POST", "/pair/code", json={}).status_code == 401
    assert ask(site, "POST", "/pair/code", token, json={}).status_code == 403
    page = {"Origin": "https://evil.example"}
    assert ask(site, "POST", "/pair", json={"code": "1"}, headers=page).status_code == 403
    host = {"Host": "evil.example"}
    assert ask(site, "POST", "/pair", json={"code": "1"}, headers=host).status_code == 403


def test_without_a_token_there_is_nothing_to_pair(tmp_path: Path) -> None:
    with gateway(tmp_path.resolve()) as open_site:
        answer = ask(open_site, "POST", "/pair/code", json={})
        assert (answer.status_code, answer.json()["code"]) == (401, "token_required")


# ---- what a stranger can send --------------------------------------------------------------------

STRANGERS = 40
PIECE = b"x" * 65536


def begun(site: GatewayProcess, line: str, *headers: str) -> socket.socket:
    """A stranger's request without the end of its body."""
    where = urlsplit(site.url)
    stream = socket.create_connection((where.hostname, where.port), 20)
    lines = (f"{line} HTTP/1.1", f"Host: {where.netloc}", *headers, "", "")
    stream.sendall("\r\n".join(lines).encode())
    return stream


def answered(stream: socket.socket) -> int:
    """The status, once it is there."""
    return int(stream.recv(65536).split(b" ", 2)[1])


@pytest.mark.parametrize("line", ["POST /pair", "PUT /pair", "POST /health", "POST /readyz"])
def test_a_strangers_body_is_not_kept(site: GatewayProcess, line: str) -> None:
    """Forty of them, each with most of what somebody with a token may send."""
    ask(site, "GET", "/health")
    before = rss(site.process.pid)
    chunk = b"%x\r\n%b\r\n" % (len(PIECE), PIECE)
    with ExitStack() as stack:
        streams = []
        for _ in range(STRANGERS):
            stream = begun(site, line, "Transfer-Encoding: chunked")
            streams.append(stack.enter_context(closing(stream)))
            stream.settimeout(0.2)
            with suppress(OSError):  # nobody reads it any more
                for _ in range(120):
                    stream.sendall(chunk)
        grown = rss(site.process.pid) - before
        assert grown < 30 * 1024 * 1024, grown
    assert ask(site, "GET", "/capabilities", DAEMON).status_code == 200


@pytest.mark.parametrize("size", [OPEN_LIMIT + 1, 9_000_000])
def test_a_code_is_small(site: GatewayProcess, size: int) -> None:
    answer = ask(site, "POST", "/pair", content=b" " * size)
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    assert str(OPEN_LIMIT) in answer.json()["error"]
    assert guess(site, "000000", name="x" * 64)[0] == 403


def test_a_strangers_body_has_little_time(site: GatewayProcess) -> None:
    with closing(begun(site, "POST /pair", "Content-Length: 100")) as stream:
        stream.sendall(b"{")
        began = time.monotonic()
        assert answered(stream) == 408
        assert time.monotonic() - began < OPEN_TIMEOUT + 3


def test_who_has_to_wait_need_not_send_a_body(site: GatewayProcess) -> None:
    for _ in range(PER_MINUTE):
        assert guess(site, "000000")[0] == 403
    with closing(begun(site, "POST /pair", "Content-Length: 100")) as stream:
        began = time.monotonic()
        assert answered(stream) == 429
        assert time.monotonic() - began < OPEN_TIMEOUT - 1
