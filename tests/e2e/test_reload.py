"""The configuration is read again: what changes, what waits for a restart, what changes nothing."""

from __future__ import annotations

import datetime
import json
import os
import pty
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from agent_env import base_environment
from gateway_process import ROOT, GatewayProcess, running_gateway
from support.plain_acp import asker
from support.processes import eventually, gateway, until, workspace_of
from websockets.sync.client import connect

DEADLINE = 20.0
TOKEN = "sesame"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
PLAIN = 'agent = ["demo"]\n'


class Site:
    def __init__(self, base: Path, made: GatewayProcess, verify: Any = True) -> None:
        self.base = base
        self.made = made
        self.file = base / "config.toml"
        self.http = httpx2.Client(
            base_url=made.url, headers=AUTH, timeout=DEADLINE, verify=verify, trust_env=False
        )

    def reload(self, text: str | None = None) -> httpx2.Response:
        if text is not None:
            self.file.write_text(text)
        return self.http.post("/workspace/reload")

    def limits(self) -> dict[str, Any]:
        return dict(self.http.get("/daemon/status").json()["limits"])

    def issues(self) -> dict[str, str]:
        issues = self.http.get("/daemon/status").json()["issues"]
        return {each["code"]: each["message"] for each in issues}

    def log(self, event: str) -> list[dict[str, Any]]:
        lines = self.made.stderr_tail().splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return [each for each in told if each.get("event") == event]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "config.toml").write_text(PLAIN)
    args = (
        "--config",
        str(tmp_path / "config.toml"),
        "--token",
        TOKEN,
        "--max-queued-prompts",
        "3",
    )
    with serving(tmp_path, *args) as site:
        yield site


@contextmanager
def serving(base: Path, *args: str, verify: Any = True) -> Iterator[Site]:
    """A gateway whose agents the file names."""
    workspace_of(base).mkdir(exist_ok=True)
    with running_gateway(workspace_of(base), base_environment(base / "home"), args) as made:
        site = Site(base, made, verify)
        with site.http:
            yield site


def test_what_can_change_does_and_the_rest_is_named(site: Site) -> None:
    assert site.reload().json()["changedKeys"] == []
    body = site.reload(
        f"{PLAIN}max_sessions = 1\nhost = 'localhost'\nmax-queued-prompts = 9\n"
        "permission_policy = 'consensus'\nlinger = 7.5\nmax_message_bytes = 2000\n"
    ).json()
    changed = ["linger", "max_message_bytes", "max_sessions", "permission_policy"]
    assert sorted(body["gateway"]["applied"]) == changed
    assert body["gateway"]["restartRequired"] == ["host"]
    assert body["changedKeys"] == sorted([*changed, "host"])
    assert body["gateway"]["configFile"] == str(site.file)
    limits = site.limits()
    assert (limits["maxSessions"], limits["sessionIdleTimeoutMs"]) == (1, 7500)
    assert limits["maxPendingPromptsPerSession"] == 3, "a flag stays"
    assert "host" in site.issues()["restart_required"]
    assert until(lambda: site.log("reloaded"))[-1]["restart_required"] == ["host"]
    made = site.http.post("/session", json={"cwd": str(workspace_of(site.base))})
    session = made.json()["sessionId"]
    assert made.status_code == 200
    busy = {"prompt": [{"type": "text", "text": "/sleep 30"}]}
    assert site.http.post(f"/session/{session}/prompt", json=busy).status_code == 202
    refused = site.http.post("/session", json={"sessionScope": "thread"})
    assert refused.json()["code"] == "session_limit_exceeded"
    assert site.http.post(f"/session/{session}/cancel").status_code == 204
    long = {"prompt": [{"type": "text", "text": "x" * 3000}]}
    assert site.http.post(f"/session/{session}/prompt", json=long).status_code == 413
    assert site.reload(PLAIN).json()["gateway"]["restartRequired"] == []
    assert "restart_required" not in site.issues()


def test_origins(site: Site) -> None:
    page = {"Origin": "http://page.example"}
    assert site.http.get("/health", headers=page).status_code == 403
    site.reload(f"{PLAIN}allow_origin = ['http://page.example']\n")
    allowed = site.http.get("/health", headers=page)
    assert allowed.headers["access-control-allow-origin"] == "http://page.example"
    assert "allow_origin" in site.http.get("/capabilities").json()["features"]
    site.reload(PLAIN)
    assert site.http.get("/health", headers=page).status_code == 403


BROKEN = {
    "wrong value": ("max_sessions = -1\nlinger = 5\n", "max_sessions"),
    "unknown name": ("max_session = 1\nlinger = 5\n", "max_session"),
    "no TOML": ("linger = 5\nmax_sessions = \n", "cannot be read"),
    "agent not installed": ("linger = 5\nagent = ['demo', 'x=/no/such/program']\n", "/no/such"),
    "wide without a token": ("linger = 5\nrequire_auth = 'perhaps'\n", "require_auth"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_invalid_configuration_changes_nothing(site: Site, what: str) -> None:
    before = site.limits()
    text, told = BROKEN[what]
    refused = site.reload(text)
    assert refused.status_code == 422
    body = refused.json()
    assert body["code"] == "invalid_configuration" and told in body["error"]
    assert body["remedy"] and body["source"]
    assert site.limits() == before
    assert until(lambda: site.log("reload_refused"))[-1]["source"] == body["source"]
    site.made.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: len(site.log("reload_refused")) == 2, DEADLINE)
    assert site.limits() == before
    assert site.reload(PLAIN).status_code == 200


def test_the_file_is_gone(site: Site) -> None:
    site.file.unlink()
    body = site.reload().json()
    assert body["code"] == "invalid_configuration" and str(site.file) in body["source"]


def test_agents_for_new_sessions(site: Site) -> None:
    cwd = str(workspace_of(site.base))
    old = site.http.post("/session", json={"cwd": cwd}).json()["sessionId"]
    with connect(site.made.ws_url, additional_headers=AUTH) as socket:
        ask = asker(socket)
        ask(1, "initialize", {"protocolVersion": 1})
        python = json.dumps(sys.executable)
        body = site.reload(
            f"agent = ['second', 'demo']\n[agents.second]\n"
            f"command = [{python}, '-P', '-m', 'acp_gateway.demo_agent']\n"
            f"env = {{ PYTHONPATH = {json.dumps(str(ROOT))} }}\n"
        ).json()
        assert body["gateway"]["applied"] == ["agent", "agents.second"]
        assert site.http.get("/capabilities").json()["agents"] == ["second", "demo"]
        new = site.http.post("/session", json={"cwd": cwd, "sessionScope": "thread"}).json()
        named = site.http.get("/daemon/status?detail=full").json()["full"]["sessions"]
        agents = {each["sessionId"]: each["agent"] for each in named}
        assert agents == {old: "demo", new["sessionId"]: "second"}
        # The old one goes on, and the old connection starts sessions.
        said = site.http.post(
            f"/session/{old}/prompt", json={"prompt": [{"type": "text", "text": "/chunks 2 10"}]}
        )
        assert said.status_code == 202
        assert "result" in ask(2, "session/new", {"cwd": cwd, "mcpServers": []})
        # One that is gone: its sessions live, nobody gets a new one.
        body = site.reload("agent = ['second']\n" + site.file.read_text().split("\n", 1)[1]).json()
        assert body["gateway"]["applied"] == ["agent", "agents.demo"]
        assert site.http.get(f"/session/{old}/status").status_code == 200
        refused = site.http.post("/session", json={"cwd": cwd, "agent": "demo"})
        assert refused.status_code == 400
        ws_url = site.made.ws_url.removesuffix("/acp") + "/agents/demo/acp"
        with pytest.raises(Exception, match="404"), connect(ws_url, additional_headers=AUTH):
            pass


def test_everybody_is_told(site: Site) -> None:
    session = site.http.post("/session", json={"cwd": str(workspace_of(site.base))}).json()
    paths = ("/workspace/events", f"/session/{session['sessionId']}/events")
    for path in paths:
        with site.http.stream("GET", path, headers={"Last-Event-ID": "0"}) as stream:
            client = {"X-Qwen-Client-Id": session["clientId"]}
            site.file.write_text(f"{PLAIN}linger = {len(path)}\n")
            told = site.http.post("/workspace/reload", headers=client).json()
            for line in stream.iter_lines():
                frame = json.loads(line[5:]) if line.startswith("data:") else {}
                if frame.get("type") == "settings_reloaded" and frame["data"] == {
                    **frame["data"],
                    **told,
                }:
                    assert frame["originatorClientId"] == session["clientId"]
                    break
            else:
                pytest.fail("no event came")


def test_who_may(site: Site, tmp_path: Path) -> None:
    stranger = httpx2.post(f"{site.made.url}/workspace/reload", trust_env=False)
    assert stranger.status_code == 401
    forged = site.http.post("/workspace/reload", headers={"X-Qwen-Client-Id": "somebody"})
    assert (forged.status_code, forged.json()["code"]) == (400, "invalid_client_id")
    base = tmp_path / "open"
    base.mkdir()
    with gateway(base) as made:
        answer = httpx2.post(f"{made.url}/workspace/reload", trust_env=False)
        assert (answer.status_code, answer.json()["code"]) == (401, "token_required")
        with connect(made.ws_url) as socket:
            for id, method in enumerate(("initialize", "_qwen/workspace/reload")):
                message = {"jsonrpc": "2.0", "id": id, "method": method}
                socket.send(json.dumps({**message, "params": {"protocolVersion": 1}}))
                told = json.loads(socket.recv(DEADLINE))
            assert told["error"]["data"]["errorKind"] == "token_required"


def test_the_command(site: Site) -> None:
    env = base_environment(site.base / "home") | {"PYTHONPATH": str(ROOT)}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "acp_gateway", "reload"],
            env=env,
            cwd=workspace_of(site.base),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    site.file.write_text(f"{PLAIN}linger = 3\nisolation = 'shared'\n")
    done = run()
    assert (done.returncode, done.stdout) == (0, "Changed: linger\nNeeds a restart: isolation\n")
    site.file.write_text("linger = 0\n")
    done = run()
    assert done.returncode == 1
    assert "Nothing was changed" in done.stderr and str(site.file) in done.stderr


# -- TLS -------------------------------------------------------------------------------------------


def issue(authority: trustme.CA, base: Path, days: float) -> tuple[bytes, bytes]:
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    leaf = authority.issue_cert("localhost", "127.0.0.1", not_after=end)
    return b"".join(each.bytes() for each in leaf.cert_chain_pems), leaf.private_key_pem.bytes()


def presented(url: str, context: ssl.SSLContext) -> bytes:
    import socket
    from urllib.parse import urlsplit

    port = urlsplit(url).port
    with (
        socket.create_connection(("127.0.0.1", port or 0), DEADLINE) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        found = secure.getpeercert(binary_form=True)
    assert found
    return found


def test_a_renewed_certificate_without_a_dropped_connection(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    pem, key = tmp_path / "c.pem", tmp_path / "c.key"
    old, new = issue(authority, tmp_path, 5), issue(authority, tmp_path, 300)
    pem.write_bytes(old[0])
    key.write_bytes(old[1])
    (tmp_path / "config.toml").write_text(PLAIN)
    args = ["--config", str(tmp_path / "config.toml"), "--token", TOKEN]
    args += ["--tls-cert", str(pem), "--tls-key", str(key)]
    with serving(tmp_path, *args, verify=context) as site:
        made = site.made
        first = presented(made.url, context)
        assert "5.0 days" in site.issues()["tls_certificate_expires"]
        with connect(made.ws_url, ssl=context, additional_headers=AUTH) as socket:
            # Half a renewal: the key is not there yet.
            pem.write_bytes(new[0])
            refused = site.reload()
            assert refused.status_code == 422
            assert refused.json()["source"] == "flag --tls-cert"
            assert str(pem) in refused.json()["error"]
            assert presented(made.url, context) == first
            made.process.send_signal(signal.SIGHUP)
            assert eventually(lambda: len(site.log("reload_refused")) == 2, DEADLINE)
            assert presented(made.url, context) == first
            # Garbage is no better.
            key.write_text("no key")
            assert site.reload().status_code == 422
            key.write_bytes(new[1])
            made.process.send_signal(signal.SIGHUP)
            assert eventually(lambda: site.log("reloaded"), DEADLINE)
            assert site.log("reloaded")[-1]["applied"] == ["tls_cert"]
            assert presented(made.url, context) != first
            assert site.issues() == {}
            assert site.reload().json()["changedKeys"] == []
            socket.send('{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}')
            assert json.loads(socket.recv(DEADLINE))["id"] == 1


# -- SIGHUP ----------------------------------------------------------------------------------------


def with_terminal(base: Path, *, ignored: bool) -> tuple[subprocess.Popen[bytes], int]:
    """A daemon whose controlling terminal is a new one; and the other end of that."""
    workspace_of(base).mkdir(exist_ok=True)
    ours, theirs = pty.openpty()
    launch = (
        "import os, signal, sys; "
        "os.setsid(); os.close(os.open(os.ttyname(0), os.O_RDWR)); "
        + ("signal.signal(signal.SIGHUP, signal.SIG_IGN); " if ignored else "")
        + "os.execv(sys.executable, [sys.executable, '-m', 'acp_gateway', *sys.argv[1:]])"
    )
    argv = ["serve", "--agent", "demo", "--port", "0", "--log-format", "json"]
    process = subprocess.Popen(
        [sys.executable, "-c", launch, *argv],
        cwd=workspace_of(base),
        env=base_environment(base / "home") | {"PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    return process, ours


@pytest.mark.parametrize("ignored", [False, True], ids=["plain", "nohup"])
def test_a_terminal_that_goes_takes_its_daemon_along(tmp_path: Path, ignored: bool) -> None:
    process, terminal = with_terminal(tmp_path, ignored=ignored)
    lines: list[bytes] = []
    assert process.stderr
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
    reader.start()
    try:
        assert eventually(lambda: any(b'"agent_ready"' in line for line in lines), 60), lines
        os.close(terminal)
        if ignored:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.5)
        else:
            assert process.wait(DEADLINE) == 0
            assert any(b'"SIGHUP"' in line for line in lines)
    finally:
        process.terminate()
        process.wait(DEADLINE)
        reader.join(5)
        process.stderr.close()


def test_what_counts_at_once_must_be_good_without_what_waits(tmp_path: Path) -> None:
    """The new token waits for a restart: until then it protects nothing."""
    file = tmp_path / "config.toml"
    file.write_text("")
    page = {"Origin": "https://evil.example"}
    with gateway(tmp_path, "--config", str(file)) as made:
        site = Site(tmp_path, made)
        with httpx2.Client(base_url=made.url, trust_env=False, timeout=DEADLINE) as stranger:
            for text in (
                'token = "secret-enough"\nallow_origin = ["*"]\ntrust_loopback = true\n',
                'token = "secret-enough"\nallow_origin = ["https://evil.example"]\n',
            ):
                file.write_text(text)
                before = len(site.log("reload_refused"))
                made.process.send_signal(signal.SIGHUP)
                assert eventually(
                    lambda before=before: len(site.log("reload_refused")) > before, DEADLINE
                )
                assert stranger.get("/capabilities", headers=page).status_code == 403
            file.write_text('token = "secret-enough"\nmax_sessions = 7\n')
            made.process.send_signal(signal.SIGHUP)
            assert eventually(lambda: site.log("reloaded"), DEADLINE)
            told = site.log("reloaded")[-1]
            assert (told["applied"], told["restart_required"]) == (["max_sessions"], ["token"])
        site.http.close()
