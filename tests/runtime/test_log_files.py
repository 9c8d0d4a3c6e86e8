"""Lines reach their file in order, in bounded space, and whatever the disk does."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from acp_gateway.core.line_budget import LineBudget
from acp_gateway.runtime.line_writer import LineWriter
from acp_gateway.runtime.rotating_file import RotatingFile


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _wide_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


# ---- the file ----------------------------------------------------------------------------------


def test_it_is_private_with_its_directory_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "state" / "log" / "daemon.log"
    file = RotatingFile(path, max_bytes=1000, archives=2)
    file.write([b"one\n"])
    file.close()
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)


def test_an_existing_file_becomes_private_and_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    path.chmod(0o644)
    file = RotatingFile(path, max_bytes=1000, archives=2)
    file.write([b"new\n"])
    file.close()
    assert path.read_bytes() == b"old\nnew\n" and mode(path) == 0o600


def test_it_makes_room_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = RotatingFile(path, max_bytes=100, archives=3)
    lines = [b"line %03d of ten bytes more\n" % number for number in range(40)]
    for start in range(0, 40, 7):
        file.write(lines[start : start + 7])
    file.close()
    names = ["log.3", "log.2", "log.1", "log"]
    assert sorted(each.name for each in tmp_path.glob("log*")) == sorted(names)
    kept = b"".join((tmp_path / name).read_bytes() for name in names)
    assert kept == b"".join(lines)[-len(kept) :] and kept.startswith(b"line ")
    assert all((tmp_path / name).stat().st_size <= 100 for name in names)
    assert all(mode(tmp_path / name) == 0o600 for name in names)


def test_one_line_larger_than_the_file_has_one_of_its_own(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "log", max_bytes=10, archives=1)
    file.write([b"a\n", b"x" * 50 + b"\n", b"b\n"])
    file.close()
    assert (tmp_path / "log.1").read_bytes() == b"x" * 50 + b"\n"
    assert (tmp_path / "log").read_bytes() == b"b\n"


def test_two_processes_do_not_share_one(tmp_path: Path) -> None:
    first = RotatingFile(tmp_path / "log", max_bytes=100, archives=1)
    with pytest.raises(BlockingIOError):
        RotatingFile(tmp_path / "log", max_bytes=100, archives=1)
    first.close()
    RotatingFile(tmp_path / "log", max_bytes=100, archives=1).close()


@pytest.mark.parametrize("kind", ["directory", "link", "fifo", "dangling"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        target = tmp_path / "target"
        if kind == "link":
            target.write_text("precious")
        path.symlink_to(target)
    with pytest.raises(OSError):
        RotatingFile(path, max_bytes=100, archives=1)
    if kind == "link":
        assert target.read_text() == "precious"
    assert kind != "dangling" or not target.exists()


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = RotatingFile(path, max_bytes=1000, archives=1)
    file.write([b"one\n"])
    path.rename(tmp_path / "moved")
    file.write([b"two\n"])
    path.unlink()
    file.write([b"three\n"])
    file.close()
    assert (tmp_path / "moved").read_bytes() == b"one\n"
    assert path.read_bytes() == b"three\n" and file.problem is None


def test_a_full_disk_is_remembered_and_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RotatingFile(tmp_path / "log", max_bytes=10_000, archives=1)
    write = os.write
    room = 7

    def full(fd: int, data: bytes) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(28, "No space left on device")
        sent = write(fd, data[:room])
        room -= sent
        return sent

    monkeypatch.setattr("acp_gateway.runtime.rotating_file.os.write", full)
    file.write([b"one\n", b"two\n", b"three\n"])
    assert file.problem == "write_failed: No space left on device" and file.lost == 2
    file.write([b"four\n"])
    assert file.lost == 3
    monkeypatch.undo()
    file.write([b"five\n"])
    assert file.problem is None
    file.close()
    # What was cut is a line of its own: the next one can be read.
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nfive\n"


def test_where_it_cannot_be_rotated_it_does_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RotatingFile(tmp_path / "log", max_bytes=100, archives=1)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("acp_gateway.runtime.rotating_file.os.replace", refused)
    for number in range(100):
        file.write([b"line %03d\n" % number])
    assert file.problem == "rotation_failed: Permission denied"
    file.close()
    assert (tmp_path / "log").stat().st_size <= 100


# ---- the writer --------------------------------------------------------------------------------


class Slow:
    """A disk that stands still until it may go."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.go = threading.Event()
        self.closed = False

    def write(self, lines: Sequence[bytes]) -> None:
        self.go.wait()
        self.lines += lines

    def close(self) -> None:
        self.closed = True


def lost(count: int) -> bytes:
    return b"lost %d" % count


def test_lines_keep_their_order() -> None:
    target = Slow()
    target.go.set()
    writer = LineWriter(target, str.encode, lost, name="t")
    for number in range(5000):
        writer.put(str(number), 4)
    assert writer.close(10)
    assert target.lines == [b"%d\n" % number for number in range(5000)] and target.closed


def test_a_disk_that_stands_still_holds_up_nobody_and_takes_no_memory() -> None:
    target = Slow()
    writer = LineWriter(target, str.encode, lost, name="t", limit=1000)
    for number in range(1000):
        writer.put(f"{number:09d}", 10)
    assert writer.waiting <= 1000 and writer.lost == 900
    assert not writer.close(0.05)  # bounded
    target.go.set()
    assert writer.close(10)
    assert target.lines[:100] == [b"%09d\n" % number for number in range(100)]
    assert target.lines[100:] == [b"lost 900\n"]


def test_a_gap_is_told_where_it_is() -> None:
    target = Slow()
    writer = LineWriter(target, str.encode, lost, name="t", limit=10)
    for word in ("a", "b", "c", "d"):
        writer.put(word, 5)
    target.go.set()
    while writer.waiting:
        threading.Event().wait(0.01)
    writer.put("e", 5)
    assert writer.close(10)
    assert target.lines == [b"a\n", b"b\n", b"lost 2\n", b"e\n"]


def test_a_line_that_cannot_be_made_does_not_end_the_others() -> None:
    target = Slow()
    target.go.set()

    def render(number: int) -> bytes:
        return b"%d" % (6 // number)

    writer = LineWriter(target, render, lost, name="t")
    for number in (1, 0, 2):
        writer.put(number, 1)
    assert writer.close(10)
    assert target.lines == [b"6\n", b"lost 1 (ZeroDivisionError)\n", b"3\n"]


# ---- the budget --------------------------------------------------------------------------------


def test_a_burst_then_a_trickle_and_the_rest_in_sums() -> None:
    budget = LineBudget(60, 2, now=0.0)
    assert sum(budget.take("2xx", 0.0) for _ in range(100)) == 60
    assert sum(budget.take("4xx", 1.0) for _ in range(10)) == 2
    assert budget.summary() == {"2xx": 40, "4xx": 8}
    assert budget.summary() is None
    assert sum(budget.take("2xx", 10_000.0) for _ in range(100)) == 60  # it does not save up
    budget.take("2xx", 9_999.0)  # a clock that goes back changes little
    assert budget.summary() == {"2xx": 41}
