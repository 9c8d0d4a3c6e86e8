"""A gateway's life seen from the command line: spawned, found, asked, stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

from acp_gateway.cli.spawn import find_or_spawn
from acp_gateway.config import ConfigError
from acp_gateway.runtime import runtime_file


def test_connect_spawns_once_and_the_rest_finds_it(
    cli: Cli, stand_in: None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str | None]] = []
    module = types.ModuleType("acp_gateway.transports.stdio_bridge")
    module.run_bridge = lambda url, token: calls.append((url, token))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "acp_gateway.transports.stdio_bridge", module)
    done = cli("connect", "--spawn", "--agent", "demo", "--token", "t0p")
    assert (done.status, done.out) == (0, "")
    (info,) = runtime_file.list_running()
    assert os.getsid(info.pid) == info.pid  # closing the editor does not end it
    assert info.workspace == (str(home),)
    assert cli("connect", "--spawn").status == 0
    assert cli("connect").status == 0
    assert calls == [(info.ws_url, "t0p")] * 3

    done = cli("status", "--json")
    assert done.status == 0
    assert done.json()["status"]["status"] == "ok"
    assert done.json()["process"]["pid"] == info.pid
    assert "t0p" not in done.out
    (Path(os.environ["XDG_RUNTIME_DIR"]) / "acp-gateway" / f"{info.pid}.json").rename(home / "f")
    done = cli("status", info.ws_url, "--token", "wrong")
    assert (done.status, "--token" in done.out) == (1, True)
    assert cli("status", info.ws_url, "--token", "t0p").status == 0
    (home / "f").rename(Path(os.environ["XDG_RUNTIME_DIR"]) / "acp-gateway" / f"{info.pid}.json")
    done = cli("status", info.ws_url)
    assert (done.status, "running" in done.out) == (0, True)
    assert cli("list", "--json").json()["gateways"][0]["pid"] == info.pid

    done = cli("doctor", "--json", "--port", info.url.rpartition(":")[2], "--agent", "demo")
    (port,) = [cell for cell in done.json()["checks"] if cell["name"].startswith("port")]
    assert (port["status"], port["kind"]) == ("warn", "port_used_by_gateway")
    assert port["fix"] == f"acp-gateway stop {info.pid}"

    done = cli("stop", str(info.pid))
    assert done.status == 0, done.err
    assert runtime_file.process_start(info.pid) is None
    assert runtime_file.list_running() == []


def test_two_editors_at_once_share_one(stand_in: None, home: Path) -> None:
    found: list[runtime_file.RuntimeInfo] = []
    threads = [
        threading.Thread(target=lambda: found.append(find_or_spawn(home, ["demo"])))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert len(found) == 3
    assert len({info.pid for info in found}) == 1


def test_another_workspace_gets_its_own(stand_in: None, home: Path, tmp_path: Path) -> None:
    (home / "sub").mkdir()
    one = find_or_spawn(home, ["demo"])
    assert find_or_spawn(home / "sub", []) == one
    assert find_or_spawn(tmp_path / "run", ["demo"]).pid != one.pid


def test_a_gateway_that_cannot_start_says_why(stand_in: None, home: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_or_spawn(home, ["no-such-program"])
    assert caught.value.remedy is not None
    log = Path(caught.value.remedy.removeprefix("Its log is ").rstrip("."))
    assert "no-such-program was not found" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0
    assert "no-such-program" in caught.value.message
    assert runtime_file.list_running() == []


def test_one_that_never_answers_is_ended(
    stand_in: None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    real = subprocess.Popen

    def popen(argv: list[str], **kwargs: Any) -> Any:
        process = real([sys.executable, "-c", "import time; time.sleep(60)"], **kwargs)
        started.append(process.pid)
        return process

    monkeypatch.setattr("acp_gateway.cli.spawn.subprocess.Popen", popen)
    monkeypatch.setattr("acp_gateway.cli.spawn.START_DEADLINE", 0.3)
    with pytest.raises(ConfigError, match=r"within 0\.3 s"):
        find_or_spawn(home, [])
    assert runtime_file.process_start(started[0]) is None


def test_old_logs_are_pruned(stand_in: None, home: Path) -> None:
    for _ in range(3):
        with pytest.raises(ConfigError):
            find_or_spawn(home, ["no-such-program"])
    logs = list(home.rglob("spawned-*.log"))
    assert logs
    directory = logs[0].parent
    for n in range(20):
        (directory / f"spawned-2000{n:02}.log").touch()
    with pytest.raises(ConfigError):
        find_or_spawn(home, ["no-such-program"])
    names = sorted(path.name for path in directory.glob("spawned-*.log"))
    assert 9 <= len(names) <= 10  # this process writes to one name within a second
    assert not names[-1].startswith("spawned-2000")
