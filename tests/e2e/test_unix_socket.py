"""Everything over a Unix socket, by clients that were not written for this."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from agent_env import base_environment
from gateway_process import ROOT, GatewayProcess
from support.plain_acp import asker
from support.processes import gateway, workspace_of
from websockets.exceptions import InvalidStatus
from websockets.sync.client import unix_connect

DEADLINE = 20.0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("u").resolve()
    (base / "run").mkdir(mode=0o700)
    return base


@pytest.fixture(scope="module")
def path(base: Path) -> Path:
    return base / "s"


@pytest.fixture(scope="module")
def site(base: Path, path: Path) -> Iterator[GatewayProcess]:
    args = ("--no-tcp", "--unix-socket", str(path), "--permission-policy", "local-only")
    with gateway(base, *args) as made:
        yield made


def client(path: Path, **how: bool) -> httpx2.Client:
    transport = httpx2.HTTPTransport(uds=str(path), **how)
    return httpx2.Client(transport=transport, base_url="http://localhost", timeout=DEADLINE)


def test_it_is_the_only_way_in_and_says_so(site: GatewayProcess, path: Path) -> None:
    assert site.url == site.ws_url == f"unix:{path}"
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    shown = subprocess.run(
        ["ss", "-ltnp"], capture_output=True, text=True, check=False, timeout=DEADLINE
    ).stdout
    assert f"pid={site.process.pid}," not in shown


def test_what_a_proxy_passed_on_has_a_host(site: GatewayProcess, path: Path) -> None:
    """A name was looked up to get to the proxy: it must be one of ours (DNS rebinding)."""
    for headers in (
        {"X-Forwarded-Host": "evil.example", "X-Forwarded-For": "203.0.113.9"},
        {"X-Forwarded-For": "203.0.113.9"},
        {"Forwarded": "for=203.0.113.9;host=evil.example"},
    ):
        with client(path) as http:
            answer = http.get("/daemon/status", headers={"Host": "evil.example", **headers})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize("h2", [False, True], ids=["http/1.1", "h2c"])
def test_rest_whatever_the_host_is_called(site: GatewayProcess, path: Path, h2: bool) -> None:
    with client(path, http1=not h2, http2=h2) as http:
        for host in ("localhost", "evil.example", "127.0.0.1:1"):
            answer = http.get("/capabilities", headers={"Host": host})
            assert answer.status_code == 200
            assert answer.http_version == ("HTTP/2" if h2 else "HTTP/1.1")


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost", "null"])
def test_a_foreign_origin_is_refused(site: GatewayProcess, path: Path, origin: str) -> None:
    with client(path) as http:
        assert http.get("/capabilities", headers={"Origin": origin}).status_code == 403
    with (
        pytest.raises(InvalidStatus) as caught,
        unix_connect(str(path), "ws://localhost/acp", origin=origin),  # type: ignore[arg-type]
    ):
        pass
    assert caught.value.response.status_code == 403


def events(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data:"):
            yield json.loads(line.removeprefix("data:"))


def test_who_comes_over_it_is_local(site: GatewayProcess, base: Path, path: Path) -> None:
    """Under the policy local-only a vote counts only from this machine."""
    with client(path) as http:
        made = http.post("/session", json={"cwd": str(workspace_of(base))}).json()
        session = f"/session/{made['sessionId']}"
        headers = {"X-Qwen-Client-Id": made["clientId"]}
        with client(path) as other, other.stream("GET", f"{session}/events") as stream:
            prompt = [{"type": "text", "text": f"/write {workspace_of(base)}/f x"}]
            asked = http.post(f"{session}/prompt", json={"prompt": prompt}, headers=headers)
            assert asked.status_code == 202
            found = events(stream)
            request = next(each for each in found if each["type"] == "permission_request")
            option = request["data"]["options"][0]["optionId"]
            vote = {"outcome": {"outcome": "selected", "optionId": option}}
            voted = http.post(
                f"{session}/permission/{request['data']['requestId']}", json=vote, headers=headers
            )
            assert voted.status_code == 200, voted.text
            assert next(each for each in found if each["type"] == "turn_complete")
    assert (workspace_of(base) / "f").exists()


def test_acp_over_a_websocket(site: GatewayProcess, base: Path, path: Path) -> None:
    with unix_connect(str(path), "ws://localhost/acp") as socket:
        ask = asker(socket)
        ask(1, "initialize", {"protocolVersion": 1})
        made = ask(2, "session/new", {"cwd": str(workspace_of(base)), "mcpServers": []})["result"]
        prompt = [{"type": "text", "text": "/chunks 20 100"}]
        ended = ask(3, "session/prompt", {"sessionId": made["sessionId"], "prompt": prompt})
        assert ended["result"]["stopReason"] == "end_turn"


def command(base: Path, *argv: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    env = base_environment(base / "home") | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "acp_gateway", *argv],
        env=env,
        cwd=workspace_of(base),
        input=input,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_commands_find_it(site: GatewayProcess, base: Path, path: Path) -> None:
    assert f"unix:{path}" in command(base, "list").stdout
    for target in ((), (f"unix:{path}",), (f"unix://{path}",), (str(site.process.pid),)):
        done = command(base, "status", "--json", *target)
        assert (done.returncode, json.loads(done.stdout)["running"]) == (0, True), done.stderr
    assert command(base, "status", f"unix:{path}x").returncode == 1


def test_connect_bridges_to_it(site: GatewayProcess, base: Path, path: Path) -> None:
    for target in (("--unix", str(path)), (f"unix:{path}",), ()):
        env = base_environment(base / "home") | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, "-m", "acp_gateway", "connect", *target],
            env=env,
            cwd=workspace_of(base),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as bridge:
            assert bridge.stdin and bridge.stdout
            request = {"jsonrpc": "2.0", "id": 7, "method": "initialize"}
            bridge.stdin.write(json.dumps({**request, "params": {"protocolVersion": 1}}) + "\n")
            bridge.stdin.flush()
            answer = json.loads(bridge.stdout.readline())
            bridge.stdin.close()
            assert bridge.wait(DEADLINE) == 0
        assert (answer["id"], answer["result"]["protocolVersion"]) == (7, 1)


# -- its life --------------------------------------------------------------------------------------


def test_a_live_one_is_refused_and_a_dead_one_replaced(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "s"
    with gateway(tmp_path, "--unix-socket", str(path)) as first:
        refused = command(tmp_path, "serve", "--agent", "demo", "--no-tcp", "--unix-socket", "../s")
        assert refused.returncode == 4
        assert f"another acp-gateway (process {first.process.pid}" in refused.stderr
        with client(path) as http:
            assert http.get("/health").status_code == 200
        assert httpx2.get(f"{first.url}/health").status_code == 200
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(DEADLINE)
    assert path.exists()
    with gateway(tmp_path, "--unix-socket", str(path)), client(path) as http:
        assert http.get("/health").status_code == 200
    assert not path.exists()


def test_other_users_come_in_with_a_token_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    workspace_of(tmp_path).mkdir()
    path = tmp_path / "s"
    wide = ("--unix-socket", str(path), "--unix-socket-mode", "0660")
    refused = command(tmp_path, "serve", "--agent", "demo", "--port", "0", *wide)
    assert (refused.returncode, path.exists()) == (3, False)
    assert "flag --unix-socket-mode" in refused.stderr and "--token-file" in refused.stderr
    with gateway(tmp_path, *wide, token="sesame"), client(path) as http:
        assert stat.S_IMODE(path.lstat().st_mode) == 0o660
        assert http.get("/capabilities").status_code == 401
        let_in = {"Authorization": "Bearer sesame"}
        assert http.get("/capabilities", headers=let_in).status_code == 200


def test_nothing_to_listen_on(tmp_path: Path) -> None:
    workspace_of(tmp_path).mkdir()
    done = command(tmp_path, "serve", "--agent", "demo", "--no-tcp")
    assert done.returncode == 3 and "--unix-socket" in done.stderr


def test_without_tcp_a_wide_host_does_not_matter(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    args = ("--no-tcp", "--host", "0.0.0.0", "--unix-socket", str(tmp_path / "s"))
    with gateway(tmp_path, *args) as made:
        assert made.url.startswith("unix:")


def test_tls_is_for_tcp_alone(tmp_path: Path) -> None:
    import trustme

    tmp_path.chmod(0o700)
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    pem, key = tmp_path / "c.pem", tmp_path / "c.key"
    leaf.private_key_pem.write_to_path(str(key))
    pem.write_bytes(b"".join(each.bytes() for each in leaf.cert_chain_pems))
    args = ("--tls-cert", str(pem), "--tls-key", str(key), "--unix-socket", str(tmp_path / "s"))
    with gateway(tmp_path, *args) as made, client(tmp_path / "s") as http:
        assert made.url.startswith("https:")
        assert http.get("/health").status_code == 200
        # connect takes the socket: no certificate has to fit.
        assert command(tmp_path, "status").returncode == 0


def test_a_stop_by_the_command(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "s"
    with gateway(tmp_path, "--no-tcp", "--unix-socket", str(path)) as made:
        assert command(tmp_path, "stop", f"unix:{path}").returncode == 0
        assert made.process.wait(DEADLINE) == 0
    assert not os.path.lexists(path)
