"""Signing in at a live daemon, with an authorization server that is not always a good one."""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
import websockets.sync.client
from agent_env import base_environment
from gateway_process import GatewayProcess, running_gateway
from support.auth_server import ACCESS, REFRESH, SECRETS, USER_CODE, AuthServer, write_config
from support.openapi import BY_NAME, validator
from support.processes import until

TOKEN = "the-daemon-token"
FLOWS = "/workspace/auth/device-flow"
TERMINAL = ("authorized", "expired", "error", "cancelled")


class Site:
    def __init__(self, gateway: GatewayProcess, server: AuthServer, home: Path) -> None:
        self.gateway, self.server, self.home = gateway, server, home
        self.http = httpx2.Client(
            base_url=gateway.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=40
        )
        self.said: list[str] = []
        """Everything that is not for the initiator: no secret may be there."""

    def call(
        self, method: str, path: str, *, client: str | None = None, **more: Any
    ) -> httpx2.Response:
        headers = {} if client is None else {"X-Qwen-Client-Id": client}
        return self.http.request(method, path, headers=headers, **more)

    def start(self, provider: str = "local", client: str | None = None) -> httpx2.Response:
        return self.call("POST", FLOWS, client=client, json={"providerId": provider})

    def get(self, flow: str, client: str | None = None) -> dict[str, Any]:
        body: dict[str, Any] = self.call("GET", f"{FLOWS}/{flow}", client=client).json()
        return body

    def ended(self, flow: str, seconds: float = 30) -> dict[str, Any]:
        return until(
            lambda: (body := self.get(flow))["status"] in TERMINAL and body, seconds=seconds
        )

    def clear(self) -> None:
        for each in self.http.get("/workspace/auth/status").json()["pendingDeviceFlows"]:
            self.call("DELETE", f"{FLOWS}/{each['deviceFlowId']}")


class Reader:
    """Frames of an event stream, while the block lasts."""

    def __init__(self, site: Site, path: str) -> None:
        self.frames: list[dict[str, Any]] = []
        self.text = ""
        self._site, self._path = site, path
        self._open = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        assert self._open.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _read(self) -> None:
        # Silence looks like a stream that broke: it goes on where the last one ended.
        last = max((each.get("id", 0) for each in self.frames), default=0)
        headers = {"last-event-id": str(last)} if self._open.is_set() else {}
        try:
            with self._site.http.stream("GET", self._path, timeout=1, headers=headers) as response:
                self._open.set()
                for line in response.iter_lines():
                    self.text += line + "\n"
                    if line.startswith("data: "):
                        self.frames.append(json.loads(line[6:]))
                    if self._stop.is_set():
                        return
        except httpx2.ReadTimeout:
            if not self._stop.is_set():
                self._read()

    def of_flow(self, flow: str) -> list[dict[str, Any]]:
        found = {}
        for each in self.frames:
            if each.get("data", {}).get("deviceFlowId") == flow:
                found[each["id"]] = each
        return list(found.values())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("sign-in").resolve()
    workspace = base / "workspace"
    workspace.mkdir()
    with AuthServer() as server:
        tables = {
            "local": server.table(scope="openid x", parameters=None),
            "by-issuer": {"issuer": server.url, "client_id": "i", "pkce": False},
            "qwen-oauth": {key: server.table()[key] for key in server.table() if "end" in key},
            **{f"p{n}": server.table() for n in range(4)},
        }
        del tables["local"]["parameters"]
        env = base_environment(base / "home") | write_config(base / "config.toml", tables)
        env["ACP_GATEWAY_TOKEN"] = TOKEN
        with running_gateway(workspace, env, ["--agent", "demo"]) as gateway:
            made = Site(gateway, server, base / "home")
            with made.http:
                yield made


@pytest.fixture(autouse=True)
def _fresh(site: Site) -> Iterator[None]:
    site.server.start, site.server.answers = "ok", ["authorization_pending"]
    site.server.moved = None
    site.server.metadata.clear()
    site.server.requests.clear()
    yield
    site.clear()
    for secret in (*SECRETS, "SECRET"):
        assert secret not in site.gateway.stderr_tail()


def checked(name: str, response: httpx2.Response) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    schema = BY_NAME[name].schema(response.status_code)
    assert schema is not None
    validator(schema).validate(body)
    return body


# ---- from start to end ---------------------------------------------------------------------------


def test_a_sign_in_from_start_to_end(site: Site) -> None:
    made = site.http.post("/session", json={"sessionScope": "thread"}).json()
    me, session = made["clientId"], made["sessionId"]
    site.server.answers = ["authorization_pending", "slow_down", "authorization_pending"]
    with (
        Reader(site, "/workspace/events") as workspace,
        Reader(site, f"/session/{session}/events") as events,
    ):
        answer = site.start("qwen-oauth", client=me)
        assert answer.status_code == 201 and answer.headers["cache-control"] == "no-store"
        body = checked("auth_device_flow_start", answer)
        flow = body["deviceFlowId"]
        assert body["userCode"] == USER_CODE and body["initiatorClientId"] == me
        assert body["verificationUri"].startswith(site.server.url)
        assert 590_000 < body["expiresAt"] - time.time() * 1000 < 610_000
        assert (body["attached"], body["status"], body["intervalMs"]) == (False, "pending", 1000)

        again = site.start("qwen-oauth", client=me)
        assert again.status_code == 200 and again.json()["userCode"] == USER_CODE
        for stranger in (None, "client_other"):
            other = site.start("qwen-oauth", client=stranger)
            assert (other.status_code, other.json()["attached"]) == (200, True)
            got = site.call("GET", f"{FLOWS}/{flow}", client=stranger)
            checked("auth_device_flow_get", got)
            site.said += [other.text, got.text]
            assert "initiatorClientId" not in other.text + got.text

        mine = checked("auth_device_flow_get", site.call("GET", f"{FLOWS}/{flow}", client=me))
        assert mine["userCode"] == USER_CODE and mine["createdAt"] <= time.time() * 1000
        status = checked("auth_status", site.http.get("/workspace/auth/status"))
        assert [each["deviceFlowId"] for each in status["pendingDeviceFlows"]] == [flow]
        full = site.http.get("/daemon/status?detail=full")
        assert full.json()["full"]["auth"]["pendingDeviceFlowCount"] == 1
        site.said += [json.dumps(status), full.text]

        until(lambda: site.get(flow)["intervalMs"] == 6000)
        site.server.answers = ["grant"]
        ended = site.ended(flow)
        assert ended["status"] == "authorized" and "expiresAt" not in ended
        until(lambda: len(events.of_flow(flow)) == len(workspace.of_flow(flow)) == 3)
    site.said += [json.dumps(ended), workspace.text, events.text, site.gateway.stderr_tail()]

    for reader in (events, workspace):
        kinds = [each["type"].removeprefix("auth_device_flow_") for each in reader.of_flow(flow)]
        assert kinds == ["started", "throttled", "authorized"]
        assert {each["originatorClientId"] for each in reader.of_flow(flow)} == {me}
    file = site.home / ".qwen" / "oauth_creds.json"
    kept = json.loads(file.read_text())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert set(kept) == {
        *("access_token", "refresh_token", "token_type", "resource_url", "expiry_date")
    }
    assert (kept["access_token"], kept["refresh_token"]) == (ACCESS, REFRESH)
    assert 3_590_000 < kept["expiry_date"] - time.time() * 1000 < 3_610_000
    for text in site.said:
        assert not [each for each in (*SECRETS, "SECRET", site.server.url) if each in text], text

    cancelled = site.call("DELETE", f"{FLOWS}/{flow}")
    assert (cancelled.status_code, cancelled.content) == (204, b"")
    assert site.get(flow)["status"] == "authorized"
    (begun, *_), polls = site.server.seen("/device"), site.server.seen("/token")
    assert begun["client_id"].startswith("f0304") and begun["code_challenge_method"] == "S256"
    assert polls[-1]["grant_type"] == "urn:ietf:params:oauth:grant-type:device_code"
    assert polls[-1]["code_verifier"]


def test_an_issuer_is_asked_where_its_endpoints_are(site: Site) -> None:
    body = site.start("by-issuer").json()
    site.server.answers = ["grant"]
    assert site.ended(body["deviceFlowId"])["status"] == "authorized"
    file = site.home / ".local/state/acp-gateway/credentials/by-issuer.json"
    kept = json.loads(file.read_text())
    assert kept["access_token"] == ACCESS and kept["token_endpoint"].endswith("/token")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "code_challenge" not in site.server.seen("/device")[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "https://evil.example"},
        {"token_endpoint": None},
        {"token_endpoint": "http://example.org/token"},
        {"device_authorization_endpoint": "https://10.0.0.1/device"},
        {"device_authorization_endpoint": "file:///etc/passwd"},
    ],
)
def test_metadata_that_lead_elsewhere(site: Site, changes: dict[str, Any]) -> None:
    site.server.metadata.update(changes)
    answer = site.start("by-issuer")
    assert (answer.status_code, answer.json()["code"]) == (502, "upstream_error")
    assert site.server.seen("/device") == []


# ---- bad servers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", ["html", "malformed", "array", "broken", "huge", "redirect", "access_denied"]
)
def test_a_start_that_goes_wrong(site: Site, bad: str) -> None:
    site.server.start = bad
    answer = site.start()
    assert answer.status_code == 502
    body = checked("auth_device_flow_start", answer)
    assert body["code"] == "upstream_error" and site.server.url not in answer.text
    assert site.server.seen("/elsewhere") == []
    until(lambda: '"start_failed"' in site.gateway.stderr_tail())


@pytest.mark.parametrize(
    ("changes"),
    [
        {"user_code": None},
        {"user_code": "x" * 500},
        {"user_code": "a\u202eb"},
        {"device_code": None},
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri": None},
    ],
)
def test_codes_that_cannot_be_shown(site: Site, changes: dict[str, Any]) -> None:
    before = dict(site.server.codes)
    site.server.codes.update(changes)
    try:
        assert site.start().status_code == 502
    finally:
        site.server.codes = before


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ("access_denied", "access_denied"),
        ("expired_token", "expired_token"),
        ("invalid_grant", "invalid_grant"),
        ("server_is_odd", "upstream_error"),
        ("html", "upstream_error"),
        ("malformed", "upstream_error"),
        ("array", "upstream_error"),
        ("huge", "upstream_error"),
        ("redirect", "upstream_error"),
    ],
)
def test_a_poll_that_goes_wrong(site: Site, bad: str, kind: str) -> None:
    flow = site.start().json()["deviceFlowId"]
    site.server.answers = [bad]
    with AuthServer() as elsewhere:
        site.server.moved = f"{elsewhere.url}/token"
        ended = site.ended(flow)
        assert elsewhere.requests == []
    assert (ended["status"], ended["errorKind"]) == ("error", kind)
    assert ended["hint"] and "userCode" not in ended
    assert len(site.server.seen("/token")) == 1
    again = site.start()
    assert again.status_code == 201 and again.json()["deviceFlowId"] != flow


def test_a_server_that_is_down_for_a_while(site: Site) -> None:
    flow = site.start().json()["deviceFlowId"]
    site.server.answers = ["broken", "broken", "grant"]
    assert site.ended(flow)["status"] == "authorized"


def test_a_server_that_stays_silent_does_not_hold_up_a_cancel(site: Site) -> None:
    flow = site.start().json()["deviceFlowId"]
    site.server.answers = ["hang"]
    until(lambda: site.server.seen("/token"))
    assert site.call("DELETE", f"{FLOWS}/{flow}", client="client_x").status_code == 204
    ended = site.get(flow)
    assert ended["status"] == "cancelled" and "errorKind" not in ended


# ---- refusals ------------------------------------------------------------------------------------


def test_refusals(site: Site) -> None:
    for body in ({}, {"providerId": ""}, {"providerId": 7}):
        answer = site.call("POST", FLOWS, json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    answer = site.start("github")
    assert (answer.status_code, answer.json()["code"]) == (400, "unsupported_provider")
    assert answer.json()["supportedProviders"][0] == "qwen-oauth"
    for method in ("GET", "DELETE"):
        answer = site.call(method, f"{FLOWS}/nope")
        assert (answer.status_code, answer.json()["code"]) == (404, "device_flow_not_found")
    assert site.start(client="no good").json()["code"] == "invalid_client_id"
    features = site.http.get("/capabilities").json()["features"]
    assert "auth_device_flow" in features


def test_five_at_once(site: Site) -> None:
    codes = [site.start(f"p{n}").status_code for n in range(4)]
    answer = site.start("local")
    assert codes == [201] * 4
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_active_flows")
    assert site.start("p0").status_code == 200


@pytest.fixture
def without_token(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[GatewayProcess]:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    env = base_environment(tmp_path / "home")
    with running_gateway(workspace, env, ["--agent", "demo", *request.param]) as gateway:
        yield gateway


@pytest.mark.parametrize("without_token", [()], indirect=True)
def test_strict_without_a_token(without_token: GatewayProcess) -> None:
    with httpx2.Client(base_url=without_token.url) as http:
        for method, path in (("POST", FLOWS), ("GET", f"{FLOWS}/x"), ("DELETE", f"{FLOWS}/x")):
            answer = http.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (401, "token_required")
        status = http.get("/workspace/auth/status").json()
        assert status["supportedDeviceFlowProviders"] == []
        assert "auth_device_flow" not in http.get("/capabilities").json()["features"]


@pytest.mark.parametrize("without_token", [("--trust-loopback",)], indirect=True)
def test_without_providers(without_token: GatewayProcess) -> None:
    with httpx2.Client(base_url=without_token.url) as http:
        answer = http.post(FLOWS, json={"providerId": "qwen-oauth"})
        assert answer.status_code == 400 and answer.json()["supportedProviders"] == []


# ---- over /acp -----------------------------------------------------------------------------------


class Acp:
    """One WebSocket connection, initialized."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._stack = ExitStack()
        self._socket = self._stack.enter_context(
            websockets.sync.client.connect(
                gateway.ws_url, additional_headers={"Authorization": f"Bearer {TOKEN}"}, proxy=None
            )
        )
        self._id = 0
        self.call("initialize", protocolVersion=1, clientCapabilities={})

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._id += 1
        message = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
        self._socket.send(json.dumps(message))
        while True:
            answer: dict[str, Any] = json.loads(self._socket.recv(30))
            if answer.get("id") == self._id:
                return answer

    def auth(self, method: str, **params: Any) -> dict[str, Any]:
        return self.call(f"_qwen/workspace/auth/{method}", **params)

    def close(self) -> None:
        self._stack.close()


def test_over_acp(site: Site) -> None:
    mine, other = Acp(site.gateway), Acp(site.gateway)
    try:
        started = mine.auth("device_flow/start", providerId="local")["result"]
        view = started["view"]
        flow, me = view["deviceFlowId"], view["initiatorClientId"]
        assert (started["attached"], view["userCode"]) == (False, USER_CODE)
        assert mine.auth("device_flow/get", id=flow)["result"]["userCode"] == USER_CODE
        attached = other.auth("device_flow/start", providerId="local")["result"]
        assert attached["attached"] is True
        seen = other.auth("device_flow/get", id=flow)["result"]
        # Somebody who read the id in an event and claims it over REST.
        claimed = site.call("GET", f"{FLOWS}/{flow}", client=me).text
        assert "SECRET" not in json.dumps([attached, seen]) + claimed
        refused = other.auth("device_flow/cancel", id=flow)["error"]
        assert refused["code"] == -32602
        status = other.auth("status")["result"]
        assert [each["deviceFlowId"] for each in status["pendingDeviceFlows"]] == [flow]
        gone = mine.auth("device_flow/cancel", id=flow)["result"]
        assert gone == {"ok": True, "alreadyTerminal": False}
        assert mine.auth("device_flow/cancel", id=flow)["result"]["alreadyTerminal"] is True
        for method in ("get", "cancel"):
            error = mine.auth(f"device_flow/{method}", id="nope")["error"]
            assert (error["code"], error["data"]["errorKind"]) == (
                -32602,
                "device_flow_not_found",
            )
        error = mine.auth("device_flow/start", providerId="nope")["error"]
        assert (error["code"], error["data"]["supportedProviders"][0]) == (-32602, "qwen-oauth")
    finally:
        mine.close()
        other.close()
