"""The runtime file: private, whole, and gone with its daemon."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from conftest import make_info

from acp_gateway.config import ConfigError
from acp_gateway.runtime import runtime_file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def other_process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_it_is_private_and_round_trips() -> None:
    info = make_info()
    path = runtime_file.write(info)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert path.name == f"{os.getpid()}.json"
    content = json.loads(path.read_text())
    assert content["v"] == 1
    assert content["token"] == "s3cret"
    assert runtime_file.list_running() == [info]
    assert "s3cret" not in repr(info)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file


def test_it_is_private_whatever_the_umask() -> None:
    old = os.umask(0)
    try:
        path = runtime_file.write(make_info())
    finally:
        os.umask(old)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)


def test_remove() -> None:
    path = runtime_file.write(make_info())
    runtime_file.remove()
    runtime_file.remove()
    assert not path.exists()


def test_a_directory_that_others_can_enter_is_not_used(tmp_path: Path) -> None:
    usual = runtime_file.runtime_dir()
    usual.chmod(0o755)
    path = runtime_file.write(make_info())
    assert path.parent != usual
    assert mode(path.parent) == 0o700
    runtime_file.remove()


def test_without_any_private_directory_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(runtime_file, "_candidates", lambda: [tmp_path / "file"])
    with pytest.raises(ConfigError) as caught:
        runtime_file.write(make_info())
    assert "XDG_RUNTIME_DIR" in str(caught.value.remedy)


def test_files_of_dead_daemons_are_dropped() -> None:
    process = other_process()
    start = runtime_file.process_start(process.pid)
    assert start
    path = runtime_file.write(make_info(pid=process.pid, process_start=start))
    assert len(runtime_file.list_running()) == 1
    process.kill()
    while runtime_file.process_start(process.pid) == start:
        pass  # a zombie counts as dead: it is not waited for here
    assert runtime_file.list_running() == []
    assert not path.exists()
    end(process)


def test_a_reused_process_id_is_another_daemon() -> None:
    path = runtime_file.write(make_info(process_start="1"))
    assert runtime_file.list_running() == []
    assert not path.exists()


def test_process_start_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("ps") is None:
        pytest.skip("this machine has no ps")
    monkeypatch.setattr(runtime_file.os.path, "exists", lambda path: False)
    start = runtime_file.process_start(os.getpid())
    assert start
    assert start == runtime_file.process_start(os.getpid())
    process = other_process()
    end(process)
    assert runtime_file.process_start(process.pid) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"v": 2}', '{"v": 1, "pid": "x", "url": "u"}'])
def test_foreign_files_are_left_alone(content: str) -> None:
    path = runtime_file.runtime_dir() / "1.json"
    path.write_text(content)
    assert runtime_file.list_running() == []
    assert path.read_text() == content


def test_members_of_later_versions_are_ignored() -> None:
    path = runtime_file.write(make_info())
    path.write_text(json.dumps({**json.loads(path.read_text()), "later": 1}))
    assert len(runtime_file.list_running()) == 1


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:4170",
        "http://localhost:4170/",
        "ws://127.0.0.1:4170/acp",
        "ws://[::1]:4170/acp?token=x",
        "127.0.0.1:4170",
        pytest.param(str(os.getpid()), id="pid"),
        None,
    ],
)
def test_find_by_any_name(target: str | None) -> None:
    info = make_info()
    runtime_file.write(info)
    assert runtime_file.find(target) == info


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:4171", "http://example.org:4170", "1", "http://["]
)
def test_find_nothing(target: str) -> None:
    runtime_file.write(make_info())
    assert runtime_file.find(target) is None


def test_of_several_the_one_that_serves_the_directory(tmp_path: Path) -> None:
    process = other_process()
    try:
        start = runtime_file.process_start(process.pid)
        one, two = tmp_path / "one", tmp_path / "two"
        (one / "sub").mkdir(parents=True)
        two.mkdir()
        here = make_info(workspace=(str(one),), started_at=2.0)
        there = attrs.evolve(
            make_info(port=4171),
            pid=process.pid,
            process_start=start,
            workspace=(str(two),),
            started_at=1.0,
        )
        runtime_file.write(here)
        runtime_file.write(there)
        assert runtime_file.list_running() == [there, here]
        assert runtime_file.find(workspace=one / "sub") == here
        assert runtime_file.find(workspace=two) == there
        assert runtime_file.owner_of_port(4171) == there
        assert runtime_file.owner_of_port(4172) is None
        with pytest.raises(ConfigError, match="2 gateways are running"):
            runtime_file.find(workspace=tmp_path)
    finally:
        end(process)
