"""A sign-in by the Qwen daemon's own client, and what `qwen serve` answers to the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from agent_env import base_environment, qwen_environment
from fake_model import FakeModel
from gateway_process import running_gateway
from peers_env import find, need, node
from support.auth_server import USER_CODE, AuthServer, write_config

pytestmark = pytest.mark.real

PEERS = Path(__file__).resolve().parent.parent / "peers"
TOKEN = "the-daemon-token"
FLOWS = "/workspace/auth/device-flow"


def test_the_client_of_the_qwen_daemon(tmp_path: Path) -> None:
    need("node", "qwen-sdk")
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    with AuthServer() as server:
        server.answers = ["authorization_pending", "slow_down", "authorization_pending", "grant"]
        env = base_environment(tmp_path / "home") | {"ACP_GATEWAY_TOKEN": TOKEN}
        env |= write_config(tmp_path / "config.toml", {"local": server.table()})
        with running_gateway(workspace, env, ["--agent", "demo"]) as gateway:
            ran = subprocess.run(
                [
                    *(str(node()), str(PEERS / "sign_in.mjs"), "--base", gateway.url),
                    *("--token", TOKEN, "--cwd", str(workspace)),
                ],
                capture_output=True,
                text=True,
                timeout=90,
                env={**os.environ},
            )
    assert ran.returncode == 0, ran.stderr
    said: dict[str, Any] = {}
    refused = []
    for line in map(json.loads, ran.stdout.splitlines()):
        said[line["what"]] = line["value"]
        if line["what"] == "refused":
            refused.append((line["value"]["status"], line["value"]["code"]))
    assert said["started"]["userCode"] == USER_CODE and said["started"]["attached"] is False
    assert said["again"]["attached"] is True and "userCode" not in said["again"]
    assert said["pending"]["userCode"] == USER_CODE
    assert len(said["status"]["pendingDeviceFlows"]) == 1
    assert said["ended"]["status"] == "authorized"
    assert said["cancelled"]["status"] == "cancelled"
    assert refused == [(400, "unsupported_provider"), (400, "invalid_request")]


# ---- the same questions to both ------------------------------------------------------------------

STUB = """
const real = globalThis.fetch;
globalThis.fetch = (url, init) =>
  real(String(url).replace("https://chat.qwen.ai/api/v1/oauth2/device/code", "{url}/device")
    .replace("https://chat.qwen.ai/api/v1/oauth2/token", "{url}/token"), init);
"""


@contextmanager
def qwen_serve(base: Path, model: FakeModel, server: AuthServer) -> Iterator[str]:
    """The real daemon; the provider that it knows is replaced as its process starts."""
    workspace = base / "qwen-workspace"
    workspace.mkdir()
    stub = base / "stub.mjs"
    stub.write_text(STUB.replace("{url}", server.url))
    env = qwen_environment(base / "qwen-home", model.url) | {"NODE_OPTIONS": f"--import={stub}"}
    process = subprocess.Popen(
        [str(node()), str(find("qwen")), "serve", "--port", "0", "--token", TOKEN],
        cwd=workspace,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "listening on" in line:
                yield line.split("listening on ")[1].split()[0]
                break
        else:
            pytest.fail("qwen serve did not start")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


def answers(url: str, server: AuthServer) -> dict[str, Any]:
    """Status and member names (with their types) of every answer, by what was asked."""
    found: dict[str, Any] = {}
    with httpx2.Client(
        base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=40
    ) as http:

        def note(name: str, method: str, path: str, client: str = "", **more: Any) -> Any:
            headers = {"X-Qwen-Client-Id": client} if client else {}
            answer = http.request(method, path, headers=headers, **more)
            body = answer.json() if answer.content else None
            # A remedy and what it is about are ours to add.
            names = {
                key: type(value).__name__
                for key, value in (body or {}).items()
                if key not in ("remedy", "field", "limit", "providerId")
                or (key == "providerId" and answer.status_code < 400)
            }
            words = {key: body[key] for key in ("status", "code", "errorKind") if key in names}
            found[name] = (answer.status_code, names, words)
            return body

        server.answers = ["authorization_pending"]
        start = {"json": {"providerId": "qwen-oauth"}}
        note("status before", "GET", "/workspace/auth/status")
        flow = note("new", "POST", FLOWS, "client_a", **start)["deviceFlowId"]
        note("attached", "POST", FLOWS, "client_a", **start)
        note("attached stranger", "POST", FLOWS, "client_b", **start)
        note("attached nobody", "POST", FLOWS, **start)
        note("get", "GET", f"{FLOWS}/{flow}", "client_a")
        note("get stranger", "GET", f"{FLOWS}/{flow}", "client_b")
        note("status pending", "GET", "/workspace/auth/status")
        note("cancel", "DELETE", f"{FLOWS}/{flow}")
        note("cancel again", "DELETE", f"{FLOWS}/{flow}")
        note("get cancelled", "GET", f"{FLOWS}/{flow}", "client_a")
        note("get unknown", "GET", f"{FLOWS}/nope")
        note("cancel unknown", "DELETE", f"{FLOWS}/nope")
        note("no provider", "POST", FLOWS, json={})
        note("unknown provider", "POST", FLOWS, json={"providerId": "nope"})
        note("bad client", "POST", FLOWS, "no good", **start)
        for word in ("access_denied", "expired_token", "invalid_grant", "odd", "grant"):
            server.answers = [word]
            flow = note(f"new {word}", "POST", FLOWS, **start)["deviceFlowId"]
            deadline = time.monotonic() + 30
            while http.get(f"{FLOWS}/{flow}").json()["status"] == "pending":
                assert time.monotonic() < deadline
                time.sleep(0.1)
            note(f"ended {word}", "GET", f"{FLOWS}/{flow}")
        server.start = "broken"
        note("broken start", "POST", FLOWS, **start)
        server.start = "ok"
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="process groups")
def test_the_answers_are_those_of_qwen_serve(tmp_path: Path, model: FakeModel) -> None:
    need("node", "qwen")
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    with AuthServer() as server:
        env = base_environment(tmp_path / "home") | {"ACP_GATEWAY_TOKEN": TOKEN}
        ends = {key: value for key, value in server.table().items() if "endpoint" in key}
        env |= write_config(tmp_path / "config.toml", {"qwen-oauth": ends})
        with running_gateway(workspace, env, ["--agent", "demo"]) as gateway:
            ours = answers(gateway.url, server)
        server.requests.clear()
        with qwen_serve(tmp_path, model, server) as url:
            theirs = answers(url, server)
        assert server.seen("/device"), "the stub was not used"
        # What their client writes and ours are the same file with the same members.
        files = [tmp_path / home / ".qwen/oauth_creds.json" for home in ("home", "qwen-home")]
        kept = [json.loads(file.read_text()) for file in files]
        assert set(kept[0]) == set(kept[1])
        assert files[0].stat().st_mode == files[1].stat().st_mode
        for each in kept:
            del each["expiry_date"]
        assert kept[0] == kept[1]
    assert ours == theirs
