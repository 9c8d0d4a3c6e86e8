"""Files of a live daemon: who may change them, what is kept of it, who is told."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gateway_process import GatewayProcess
from support.acp_clients import RpcError, ws_client
from support.event_schemas import validate_frame
from support.processes import eventually, gateway, workspace_of

from acp_gateway.core.text_file import content_hash

DEADLINE = 20.0
AGENT = Path(__file__).resolve().parent.parent / "support" / "writing_agent.py"
AS_AGENT = ("--agent", "writer=" + shlex.join([sys.executable, "-S", "-E", str(AGENT)]))


@contextmanager
def http_of(made: GatewayProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=made.url, trust_env=False, timeout=DEADLINE) as http:
        yield http


def let_agent_write(http: httpx2.Client, base: Path, *paths: Path) -> tuple[dict[str, Any], str]:
    """The agent writes for a moment; its report, and its session."""
    until, report = base / "until", base / "report"
    wanted = {"paths": [str(each) for each in paths], "size": 10}
    wanted |= {"until": str(until), "report": str(report)}
    session = http.post("/session", json={"sessionScope": "thread"}).raise_for_status().json()
    http.post(
        f"/session/{session['sessionId']}/prompt",
        json={"prompt": [{"type": "text", "text": json.dumps(wanted)}]},
        headers={"X-Qwen-Client-Id": session["clientId"]},
    ).raise_for_status()
    threading.Timer(0.5, until.touch).start()
    assert eventually(lambda: report.exists() and report.read_text(), DEADLINE)
    return json.loads(report.read_text()), session["sessionId"]


def test_a_workspace_that_is_not_trusted_is_read_and_never_changed(tmp_path: Path) -> None:
    root = workspace_of(tmp_path)
    root.mkdir()
    (root / "a").write_text("old")
    with (
        gateway(tmp_path, *AS_AGENT, "--no-trust-workspace", "--trust-loopback") as made,
        http_of(made) as http,
    ):
        assert [each["trusted"] for each in http.get("/capabilities").json()["workspaces"]] == [
            False
        ]
        assert http.get("/daemon/status").json()["security"]["workspaceTrusted"] is False
        for row in ("/file?path=a", "/file/bytes?path=a", "/stat?path=a", "/list?path=."):
            assert http.get(row).status_code == 200
        assert http.get("/glob", params={"pattern": "*"}).json()["matches"] == ["a"]
        old = content_hash(b"old")
        for row, body in (
            ("write", {"path": "b", "content": "x", "mode": "create"}),
            ("write", {"path": "a", "content": "x", "mode": "replace", "expectedHash": old}),
            ("edit", {"path": "a", "oldText": "old", "newText": "x", "expectedHash": old}),
        ):
            answer = http.post(f"/file/{row}", json=body)
            assert (answer.status_code, answer.json()["errorKind"]) == (403, "untrusted_workspace")
            assert "--trust-workspace" in answer.json()["hint"]
        report, _ = let_agent_write(http, tmp_path, root / "a", root / "b")
        assert report["good"] == 0 and set(report["refused"]) == {"untrusted_workspace"}
    assert sorted(path.name for path in root.iterdir()) == ["a"]
    assert (root / "a").read_text() == "old"


def test_trusted_is_the_default(tmp_path: Path) -> None:
    with gateway(tmp_path) as made, http_of(made) as http:
        (row,) = http.get("/capabilities").json()["workspaces"]
        assert row["trusted"] is True
        assert http.get("/daemon/status").json()["security"]["workspaceTrusted"] is True


# ---- audit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True])
def test_both_doors_are_audited(tmp_path: Path, raw: bool) -> None:
    root, file = workspace_of(tmp_path), tmp_path / "audit.jsonl"
    root.mkdir()
    (root / ".gitignore").write_text("*.log\n")
    (root / "secret-name.log").write_text("x" * 300_000)
    flags = ["--audit-log", str(file), "--trust-loopback", *(["--audit-raw-paths"] if raw else [])]
    with gateway(tmp_path, *AS_AGENT, *flags) as made, http_of(made) as http:
        http.get("/file", params={"path": "secret-name.log", "limit": 1})
        http.get("/glob", params={"pattern": "secret-*"})
        http.get("/file", params={"path": "../secret-name"})
        http.get("/file", params={"path": "x\n{}\u202e\x1b[2J"})
        http.get("/file", params={"path": "token=verysecretvalue99"})
        http.get("/file", params={"path": ""})
        http.post("/file/write", json={"path": "new", "content": "x", "mode": "create"})
        report, session = let_agent_write(http, tmp_path, root / "agent", root.parent / "out")
        assert report["good"] and set(report["refused"]) == {"path_outside_workspace"}
    data = file.read_bytes()
    assert data.isascii() and b"verysecretvalue99" not in data and b"\x1b" not in data
    assert file.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in data.splitlines()]
    reads = [each for each in lines if each["intent"] in ("read", "glob")]
    first = hashlib.sha256(str(root / "secret-name.log").encode()).hexdigest()[:16]
    assert reads[0]["kind"] == "fs.access" and reads[0]["pathHash"] == first
    assert reads[0]["sizeBytes"] == 300_000 and reads[0]["truncated"] is True
    assert reads[0]["matchedIgnore"] == "file" and reads[0]["route"] == "GET /file"
    assert [each["kind"] for each in reads[1:]] == ["fs.access", *["fs.denied"] * 4]
    assert [each["errorKind"] for each in reads[2:]] == [
        "path_outside_workspace",
        "path_not_found",
        "path_not_found",
        "parse_error",
    ]
    assert "pathHash" not in reads[-1]
    made_by = next(each for each in lines if each["route"] == "POST /file/write")
    assert made_by["operation"] == "create" and made_by["sizeBytes"] == 1
    agent = [each for each in lines if each["route"] == "fs/write_text_file"]
    assert {each["sessionId"] for each in agent} == {session}
    assert {each.get("operation") for each in agent} == {"create", "replace", None}
    kinds = [each["kind"] for each in agent]
    assert kinds.count("fs.access") == report["good"]
    assert kinds.count("fs.denied") == sum(report["refused"].values())
    if raw:
        assert reads[0]["relPath"] == "secret-name.log" and reads[1]["pattern"] == "secret-*"
        assert reads[3]["relPath"] == "x\n{}\u202e\x1b[2J" and "message" in reads[3]
    else:
        assert b"secret-name" not in data and b"secret-*" not in data
        assert not any("relPath" in each or "message" in each for each in lines)


# ---- events --------------------------------------------------------------------------------------


class Reader:
    """The workspace's events, gathered in a thread."""

    def __init__(self, made: GatewayProcess) -> None:
        self.events: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._run, args=(made.url,), daemon=True)
        self._thread.start()

    def _run(self, url: str) -> None:
        with (
            httpx2.Client(trust_env=False, timeout=60) as http,
            http.stream("GET", f"{url}/workspace/events") as answer,
        ):
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    event = json.loads(line[5:])
                    validate_frame(event)
                    self.events.append(event)

    def changes(self) -> dict[str, dict[str, Any]]:
        return {
            each["path"]: each
            for event in self.events
            if event["type"] == "workspace_files_changed"
            for each in event["data"]["changes"]
        }


def test_changes_by_anyone_are_told(tmp_path: Path) -> None:
    root = workspace_of(tmp_path)
    with gateway(tmp_path, *AS_AGENT, "--trust-loopback") as made, http_of(made) as http:
        assert "workspace_file_events" in http.get("/capabilities").json()["features"]
        runtime = http.get("/daemon/status").json()["runtime"]
        assert runtime["fileWatch"] == {"enabled": True, "active": False, "directories": 0}
        reader = Reader(made)
        assert eventually(lambda: reader.events, DEADLINE)
        assert reader.events[0]["data"] == {"changes": [], "truncated": True, "reason": "started"}
        assert http.get("/daemon/status").json()["runtime"]["fileWatch"]["active"] is True
        (root / "mine").write_text("x")
        http.post("/file/write", json={"path": "theirs", "content": "x", "mode": "create"})
        _, session = let_agent_write(http, tmp_path, root / "agent")
        assert eventually(lambda: {"mine", "theirs", "agent"} <= set(reader.changes()), DEADLINE)
        found = reader.changes()
        assert "writer" not in found["mine"]
        assert found["theirs"]["writer"] == {}
        assert found["agent"]["writer"]["sessionId"] == session


def test_the_watch_can_be_turned_off(tmp_path: Path) -> None:
    with gateway(tmp_path, "--no-watch-files") as made, http_of(made) as http:
        assert "workspace_file_events" not in http.get("/capabilities").json()["features"]
        assert http.get("/daemon/status").json()["runtime"]["fileWatch"]["enabled"] is False


def test_a_watch_that_fails_is_an_issue_of_the_status(tmp_path: Path) -> None:
    with gateway(tmp_path) as made, http_of(made) as http:
        reader = Reader(made)
        assert eventually(lambda: reader.events, DEADLINE)
        shutil.rmtree(workspace_of(tmp_path))
        # What follows the loss is looked at when something is heard of it.
        assert eventually(
            lambda: [
                each
                for each in http.get("/daemon/status").json()["issues"]
                if each["code"] == "file_watch_degraded"
            ],
            3 * DEADLINE,
        )
        assert reader.events[-1]["data"]["reason"] == "failed"
        workspace_of(tmp_path).mkdir()


# ---- directories that are none -------------------------------------------------------------------


@pytest.mark.parametrize("cwd", ["/tmp/\0x", "\0", "relative", "", "/" + "x" * 5000])
async def test_a_directory_that_cannot_be_one(tmp_path: Path, cwd: str) -> None:
    with gateway(tmp_path) as made:
        async with ws_client(made.ws_url) as ws:
            for method, params in (
                ("session/list", {"cwd": cwd}),
                ("session/new", {"cwd": cwd, "mcpServers": []}),
                ("session/load", {"cwd": cwd, "mcpServers": [], "sessionId": "none"}),
                ("session/resume", {"cwd": cwd, "mcpServers": [], "sessionId": "none"}),
            ):
                if method == "session/list" and len(cwd) > 4096:
                    continue
                with pytest.raises(RpcError) as caught:
                    await ws.request(method, params)
                assert caught.value.error["code"] == -32602, (method, caught.value.error)
        with http_of(made) as http:
            answer = http.post("/session", json={"cwd": cwd})
            assert answer.status_code == 400, answer.text
            answer = http.get(f"/workspace/{cwd.encode().hex()}%00/sessions")
            assert answer.status_code == 400
