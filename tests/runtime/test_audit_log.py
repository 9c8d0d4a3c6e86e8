"""The file of an audit: whole lines, no forged ones, no secrets, bounded, for its owner only."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.runtime import audit_log
from acp_gateway.runtime.audit_log import MAX_TEXT, AuditLog, audit_line


def entries(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def test_one_line_for_each_entry_in_a_file_of_its_owner(tmp_path: Path) -> None:
    file = AuditLog(tmp_path / "a.jsonl")
    before = os.umask(0)
    try:
        file.write({"kind": "one", "n": 1})
    finally:
        os.umask(before)
    file.write({"kind": "two", "list": ["a", {"b": None}]})
    assert entries(file.path) == [
        {"kind": "one", "n": 1},
        {"kind": "two", "list": ["a", {"b": None}]},
    ]
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


FORGERS = (
    'x"}\n{"kind":"forged"}',
    "x\r\n{}",
    "x\u2028y\u2029z\u0085",
    "\x1b[2J\x07\x7f\x9b",
    "\u202egnp.exe\u2066\u200b\ufeff",
    "\ud800 half",
    "\0",
)


@pytest.mark.parametrize("text", FORGERS, ids=range(len(FORGERS)))
def test_what_others_wrote_forges_no_line(tmp_path: Path, text: str) -> None:
    file = AuditLog(tmp_path / "a.jsonl")
    file.write({"kind": "x", text: [text], "path": text})
    data = file.path.read_bytes()
    assert data.count(b"\n") == 1 and data.endswith(b"\n")
    assert data[:-1].isascii() and data[:-1].decode().isprintable()
    assert entries(file.path) == [{"kind": "x", text: [text], "path": text}]


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
def test_any_entry_is_one_printable_line(entry: dict[str, Any]) -> None:
    line = audit_line(entry)
    assert line.endswith(b"\n") and line[:-1].decode("ascii").isprintable()
    assert isinstance(json.loads(line), dict)


def test_secrets_and_floods_stay_out(tmp_path: Path) -> None:
    file = AuditLog(tmp_path / "a.jsonl")
    nested: Any = "end"
    for _ in range(100):
        nested = [nested]
    file.write(
        {
            "hint": "Authorization: Bearer abcdefghijklmnop",
            "deep": {"url": ["https://u:hunter22@host/"]},
            "long": "x" * 100_000,
            "nested": nested,
            "what": object,
        }
    )
    data = file.path.read_bytes()
    assert b"abcdefghijklmnop" not in data and b"hunter22" not in data
    assert len(data) < MAX_TEXT + 1000


def test_it_is_moved_aside_and_bounded(tmp_path: Path) -> None:
    file = AuditLog(tmp_path / "a.jsonl", max_bytes=200, kept=2)
    for number in range(100):
        file.write({"n": number})
    names = sorted(os.listdir(tmp_path))
    assert names in (["a.jsonl", "a.jsonl.1", "a.jsonl.2"], ["a.jsonl.1", "a.jsonl.2"])
    assert sum((tmp_path / name).stat().st_size for name in names) < 700
    numbers = [each["n"] for each in entries(*(tmp_path / name for name in reversed(names)))]
    assert numbers == list(range(100))[-len(numbers) :], "the newest, without a gap"
    assert all(stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600 for name in names)


WRITER = """
import sys
from pathlib import Path
from acp_gateway.runtime.audit_log import AuditLog
file = AuditLog(Path(sys.argv[1]), max_bytes=20_000, kept=200)
for number in range(1000):
    file.write({"who": sys.argv[2], "n": number, "pad": "x" * (number % 50)})
"""


def test_several_processes_and_threads_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    argv = [sys.executable, "-c", WRITER, str(path)]
    others = [subprocess.Popen([*argv, str(number)]) for number in range(2)]
    file = AuditLog(path, max_bytes=20_000, kept=200)

    def write(who: str) -> None:
        for number in range(1000):
            file.write({"who": who, "n": number})

    threads = [threading.Thread(target=write, args=(f"t{each}",)) for each in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [each.wait(60) for each in others] == [0, 0]
    parts = sorted(tmp_path.iterdir(), key=lambda each: each.suffix)
    found = entries(*parts)
    for who in ("0", "1", "t0", "t1"):
        assert sorted(each["n"] for each in found if each["who"] == who) == list(range(1000))
    assert file.lost == 0


def test_another_program_may_move_it_away(tmp_path: Path) -> None:
    file = AuditLog(tmp_path / "a.jsonl")
    file.write({"n": 1})
    file.path.rename(tmp_path / "old")
    file.write({"n": 2})
    assert entries(tmp_path / "old", file.path) == [{"n": 1}, {"n": 2}]


def test_whoever_is_audited_is_not_held_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    class Log:
        def error(self, event: str, **how: Any) -> None:
            told.append((event, how))

        warning = error

    monkeypatch.setattr(audit_log, "log", Log())
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("dir", "pipe", "missing/a"):
        file = AuditLog(tmp_path / name)
        for _ in range(3):
            file.write({"n": 1})
        assert file.lost == 3
    assert [event for event, _ in told] == ["audit_not_written"] * 3
    (tmp_path / "missing").mkdir()
    file.write({"n": 2})
    assert told[-1][0] == "audit_written_again" and told[-1][1]["lost"] == 3
    assert entries(file.path) == [{"n": 2}] and file.lost == 0


def test_a_torn_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AuditLog(tmp_path / "a.jsonl")
    file.write({"n": 1})
    real = os.write
    monkeypatch.setattr(audit_log.os, "write", lambda fd, data: real(fd, data[:3]))
    file.write({"n": 2})
    monkeypatch.undo()
    file.write({"n": 3})
    assert entries(file.path) == [{"n": 1}, {"n": 3}]
