"""The log of a live gateway: who came, what happened, no secret, no forged line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from agent_env import base_environment
from gateway_process import ROOT, GatewayProcess, running_gateway
from support.processes import until

TOKEN = "the-very-own-token-of-this-daemon"
SECRET = "Zx81-abcdefghijklmnop_9"


class Site:
    def __init__(self, gateway: GatewayProcess, home: Path, log: Path) -> None:
        self.gateway = gateway
        self.home = home
        self.log = log
        headers = {"authorization": f"Bearer {TOKEN}"}
        self.http = httpx2.Client(
            base_url=gateway.url, trust_env=False, timeout=30, headers=headers
        )

    def lines(self) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            return [json.loads(line) for line in self.log.read_bytes().splitlines()]
        return []

    def line(self, event: str, **wanted: Any) -> dict[str, Any]:
        return until(
            lambda: next(
                (
                    each
                    for each in self.lines()
                    if each["event"] == event and wanted.items() <= each.items()
                ),
                None,
            ),
            f"no line {event} {wanted}",
        )

    def logs(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "acp_gateway", "logs", self.gateway.url, *args],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.home)


def environment(home: Path) -> dict[str, str]:
    run = home.parent / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    return base_environment(home) | {
        "XDG_RUNTIME_DIR": str(run),
        "ACP_GATEWAY_TOKEN": TOKEN,
        "PYTHONPATH": str(ROOT),
    }


@contextmanager
def site(tmp_path: Path, *args: str, log: Path | None = None) -> Iterator[Site]:
    workspace = tmp_path / "work"
    workspace.mkdir(exist_ok=True)
    home = tmp_path / "home"
    usual = home / ".local/state/acp-gateway/log/daemon.log"
    with running_gateway(workspace, environment(home), ["--agent", "demo", *args]) as gateway:
        here = Site(gateway, home, log or usual)
        with here.http:
            yield here


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("logs")) as found:
        yield found


def test_a_request_has_a_line_with_its_route(running: Site) -> None:
    opened = running.http.post("/session", json={}).json()
    line = running.line("request", route="/session")
    assert (line["method"], line["status"], line["level"]) == ("POST", 200, "info")
    assert line["duration_ms"] > 0
    running.line("session_started", session_id=opened["sessionId"])
    assert running.http.get(f"/session/{SECRET}/status?token={SECRET}").status_code == 404
    line = running.line("request", status=404)
    assert SECRET not in json.dumps(line) and line["level"] == "warning"


def test_probes_that_go_well_are_not_told(running: Site) -> None:
    for _ in range(5):
        assert running.http.get("/health").status_code == 200
    running.http.get("/nowhere")
    running.line("request", path="/nowhere")
    assert not [each for each in running.lines() if each.get("route") == "/health"]


def test_no_request_forges_a_line(running: Site) -> None:
    before = len(running.lines())
    path = '/x%0a{"event":"forged"}%1b[2J%e2%80%ae%c2%9b%0d'
    running.http.get(path)
    host, port = running.gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"GET /a\x1b[31mb\xe2\x80\xae HTTP/1.1\r\nHost: x\r\n\r\n")
        raw.recv(4096)
    line = until(
        lambda: next((e for e in running.lines() if "forged" in str(e.get("path"))), None), "no"
    )
    assert line["event"] == "request"
    text = running.log.read_text()
    for char in "\x1b\r\x9b\u202e":
        assert char not in text
    assert len(running.lines()) > before  # all of them are JSON
    assert all(each["event"] != "forged" for each in running.lines())
    shown = running.logs("-n", "500").stdout
    assert "\x1b" not in shown and "\u202e" not in shown and r"\n{" in shown


def test_no_secret_gets_into_the_log(running: Site) -> None:
    running.http.get(f"/a/token={SECRET}", headers={"cookie": f"sid={SECRET}"})
    running.http.get("/b", headers={"authorization": f"Bearer {SECRET}"})
    running.http.get(f"/c/{TOKEN}")
    running.line("request", path="/c/[redacted]")
    running.line("request", status=401)
    text = running.log.read_text() + running.gateway.stderr_tail()
    assert SECRET not in text and TOKEN not in text


def test_refusals_do_not_push_the_others_out(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        for _ in range(200):
            here.http.get("/capabilities", headers={"authorization": "Bearer nonsense"})
        for _ in range(100):
            here.http.get("/capabilities")
        told = here.line("refusals_not_logged")
        assert 120 <= told["n_4xx"] <= 170
        lines = [each for each in here.lines() if each["event"] == "request"]
        assert 30 <= sum(each["status"] == 401 for each in lines) <= 80
        assert 60 <= sum(each["status"] == 200 for each in lines) <= 100


def test_a_turn_and_its_connection_have_lines(running: Site) -> None:
    from websockets.sync.client import connect

    headers = {"Authorization": f"Bearer {TOKEN}"}
    with connect(running.gateway.ws_url, proxy=None, additional_headers=headers) as ws:
        workspace = str(running.home.parent / "work")
        for number, (method, params) in enumerate(
            (
                (
                    "initialize",
                    {"protocolVersion": 1, "clientInfo": {"name": "me", "version": "1"}},
                ),
                ("session/new", {"cwd": workspace, "mcpServers": []}),
            )
        ):
            ws.send(
                json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            )
            answer = json.loads(ws.recv(timeout=30))
        session_id = answer["result"]["sessionId"]
        prompt = {"sessionId": session_id, "prompt": [{"type": "text", "text": "/chunks 2 9"}]}
        ws.send(
            json.dumps({"jsonrpc": "2.0", "id": 9, "method": "session/prompt", "params": prompt})
        )
        while json.loads(ws.recv(timeout=30)).get("id") != 9:
            pass
        connection = ws.response.headers["acp-connection-id"]
    turn = running.line("turn_ended", session_id=session_id)
    assert (turn["stop_reason"], turn["agent"]) == ("end_turn", "demo")
    assert len(turn["trace_id"]) == 32 and turn["duration_ms"] >= 0 and turn["client_id"]
    closed = running.line("connection_closed", transport="ws", client="me")
    running.line("connection_opened", connection=closed["connection"])
    assert connection not in running.log.read_text()  # it is a key to the connection


def test_logs_shows_the_last_lines(running: Site) -> None:
    running.http.get("/shown")
    running.line("request", path="/shown")
    raw = running.logs("-n", "3", "--json").stdout.splitlines()
    assert len(raw) == 3 and all(isinstance(json.loads(line), dict) for line in raw)
    shown = running.logs("-n", "200").stdout
    assert "warning request" in shown and "path=/shown" in shown
    assert running.logs("-n", "0").stdout == ""


def test_logs_follows_through_rotation(running: Site) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "acp_gateway", "logs", running.gateway.url, "-f", "-n", "1"],
        env=running.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    seen: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: seen.extend(process.stdout), daemon=True)  # type: ignore[arg-type]
    reader.start()
    try:
        until(lambda: seen, "nothing was shown")
        running.http.get("/before")
        running.line("request", path="/before")
        os.rename(running.log, f"{running.log}.1")
        running.http.get("/after")
        until(lambda: any("/after" in line for line in seen), "the new file was not followed")
        assert sum("path=/before" in line for line in seen) == 1
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(10)
        reader.join(5)
        process.stdout.close()


def test_a_log_that_fails_shows_in_the_status(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        here.line("listening")
        here.log.unlink()
        here.log.mkdir()  # as good as a full disk: nothing can be written
        here.http.get("/nowhere")

        def degraded() -> Any:
            body = here.http.get("/daemon/status").json()
            return [each for each in body["issues"] if each["code"] == "daemon_log_degraded"]

        issue = until(degraded, "the status says nothing")[0]
        assert issue["message"].startswith("write_failed")
        here.log.rmdir()
        here.http.get("/again")
        here.line("request", path="/again")
        until(lambda: not degraded(), "it is still degraded")


def test_a_named_file_no_file_and_one_that_cannot_be(tmp_path: Path) -> None:
    named = tmp_path / "elsewhere" / "mine.log"
    with site(tmp_path, "--log-file", str(named), log=named) as here:
        here.line("listening")
        assert not (here.home / ".local/state/acp-gateway/log/daemon.log").exists()
        with pytest.raises(RuntimeError, match="another process writes to"):
            GatewayProcess(tmp_path / "work", here.environment, ["--log-file", str(named)])
        with running_gateway(
            tmp_path / "work", here.environment, ["--agent", "demo", "--log-file", "none"]
        ) as silent:
            other = Site(silent, here.home, named)
            with other.http:
                done = other.logs()
            assert done.returncode == 1 and "no log file" in done.stderr
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="cannot be written"):
        GatewayProcess(
            tmp_path / "work", environment(tmp_path / "home"), ["--log-file", f"{tmp_path}/file/x"]
        )


def test_two_daemons_have_two_files(tmp_path: Path) -> None:
    with site(tmp_path) as first, site(tmp_path, log=first_log(tmp_path, 2)) as second:
        assert first.line("listening")["url"] == first.gateway.url
        assert second.line("listening")["url"] == second.gateway.url


def first_log(tmp_path: Path, number: int) -> Path:
    return tmp_path / f"home/.local/state/acp-gateway/log/daemon-{number}.log"


def test_levels(tmp_path: Path) -> None:
    with site(tmp_path, "--log-level", "error") as here:
        here.http.get("/nowhere")
    assert here.log.read_bytes() == b""
    with site(tmp_path, "--log-level", "debug") as here:
        here.http.get("/health")
        here.line("request", route="/health", level="debug")
