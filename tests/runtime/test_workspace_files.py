"""Files of the workspace: reads, lists, searches, writes, edits; what must never be half done."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from support.runtime_rig import rig, scripted, texts

from acp_gateway.core.text_file import MAX_WINDOW, content_hash
from acp_gateway.protocol.errors import ErrorKind, FileError, GatewayError
from acp_gateway.runtime import workspace_write
from acp_gateway.runtime.workspace import Workspace
from acp_gateway.runtime.workspace_files import (
    MAX_SCAN,
    Text,
    failures,
    read_bytes,
    read_for_agent,
    read_text,
    status_of,
)
from acp_gateway.runtime.workspace_search import MAX_ENTRIES, RuleBook, list_directory, search
from acp_gateway.runtime.workspace_write import (
    MAX_WRITE,
    TEMPORARY,
    edit_text,
    write_for_agent,
    write_text,
)

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 20.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path.resolve() / "ws"
    made.mkdir()
    return made


def kind(work: Callable[..., Any], *args: Any, **how: Any) -> ErrorKind:
    with pytest.raises(FileError) as caught:
        work(*args, **how)
    return caught.value.kind


def text(root: Path, name: str, **how: Any) -> Text:
    return read_text((root,), root / name, name, **how)


def left(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if TEMPORARY.fullmatch(name)]


# ---- reading -------------------------------------------------------------------------------------


def test_a_whole_text(root: Path) -> None:
    (root / "a").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    found = text(root, "a")
    assert (found.content, found.encoding.name, found.encoding.bom) == (
        "one\r\ntwo\r\n",
        "utf-8",
        True,
    )
    assert (found.ending, found.size, found.lines, found.cursor) == ("crlf", 13, 3, None)
    assert found.hash == content_hash((root / "a").read_bytes())
    (root / "empty").touch()
    found = text(root, "empty")
    assert (found.content, found.lines, found.cursor, found.size) == ("", 1, None, 0)


def test_lines_and_pages(root: Path) -> None:
    (root / "a").write_text("".join(f"line {number}\n" for number in range(1, 101)))
    found = text(root, "a", line=10, limit=2)
    assert found.content == "line 10\nline 11\n" and found.cursor is not None
    assert found.hash == text(root, "a").hash and found.lines == 101
    more = text(root, "a", cursor=found.cursor, limit=1)
    assert more.content == "line 12\n"
    end = text(root, "a", line=100)
    assert (end.content, end.cursor) == ("line 100\n", None)
    assert (text(root, "a", line=500).content, text(root, "a", line=500).cursor) == ("", None)
    assert text(root, "a", max_bytes=3).content == "lin"


@pytest.mark.parametrize("size", [MAX_WINDOW + 1, MAX_SCAN + 5_000_000])
def test_a_large_text_in_parts(root: Path, size: int) -> None:
    data = ("é" * 49 + "\n").encode() * (size // 99 + 1)
    (root / "a").write_bytes(data)
    assert kind(text, root, "a") is ErrorKind.FILE_TOO_LARGE
    pages, cursor = [], None
    while True:
        found = text(root, "a", max_bytes=MAX_WINDOW, cursor=cursor)
        pages.append(found.content)
        cursor = found.cursor
        if cursor is None:
            break
    assert "".join(pages).encode() == data
    assert (found.hash is None) == (found.lines is None) == (size > MAX_SCAN)
    lines = data.count(b"\n")
    if size > MAX_SCAN:
        assert kind(text, root, "a", line=lines) is ErrorKind.FILE_TOO_LARGE
        assert text(root, "a", line=80_000, limit=1).content == "é" * 49 + "\n"
    else:
        assert text(root, "a", line=lines).content == "é" * 49 + "\n"


def test_a_page_of_a_file_that_changed(root: Path) -> None:
    (root / "a").write_text("1\n2\n3\n")
    cursor = text(root, "a", limit=1).cursor
    (root / "a").write_text("1\n2\n3\n4\n")
    assert kind(text, root, "a", cursor=cursor) is ErrorKind.HASH_MISMATCH
    cursor = text(root, "a", limit=1).cursor
    (root / "b").write_text("1\n2\n3\n4\n")
    (root / "b").replace(root / "a")
    assert kind(text, root, "a", cursor=cursor) is ErrorKind.HASH_MISMATCH


def test_a_file_that_changes_while_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a").write_text("old")
    pread = os.pread

    def meddling(fd: int, length: int, offset: int) -> bytes:
        data = pread(fd, length, offset)
        with (root / "a").open("a") as file:
            file.write("!")
        return data

    monkeypatch.setattr(os, "pread", meddling)
    assert kind(text, root, "a") is ErrorKind.HASH_MISMATCH
    # An agent reads a log that grows all the same.
    assert read_for_agent((root,), root / "a", None, None).startswith("old")


def test_bytes(root: Path) -> None:
    data = bytes(range(256)) * 4
    (root / "a").write_bytes(data)
    whole = read_bytes((root,), root / "a", "a", offset=0, length=4096)
    assert (whole.data, whole.size, whole.hash) == (data, 1024, content_hash(data))
    part = read_bytes((root,), root / "a", "a", offset=1000, length=100)
    assert (part.data, part.size, part.hash) == (data[1000:], 1024, None)
    assert read_bytes((root,), root / "a", "a", offset=2**50, length=9).data == b""


def test_what_is_no_text_or_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "binary").write_bytes(b"a\0b")
    (root / "d").mkdir()
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        # The path of a socket may not be as long as those of tests.
        monkeypatch.chdir(root)
        server.bind("sock")
        assert kind(text, root, "binary") is ErrorKind.BINARY_FILE
        assert kind(read_for_agent, (root,), root / "binary", None, None) is ErrorKind.BINARY_FILE
        for name in ("d", "pipe", "sock", "."):
            assert kind(text, root, name) is ErrorKind.PARSE_ERROR
            assert kind(read_bytes, (root,), root / name, name, offset=0, length=1) is (
                ErrorKind.PARSE_ERROR
            )
            assert kind(write_for_agent, (root,), root / name, "x") is ErrorKind.PARSE_ERROR
            assert status_of((root,), root / name, name)[1].st_mode
    assert kind(text, root, "none") is ErrorKind.PATH_NOT_FOUND
    assert kind(text, root, "none/x") is ErrorKind.PATH_NOT_FOUND
    assert kind(text, root, "binary/x") is ErrorKind.PARSE_ERROR
    assert kind(text, root, "x" * 300) is ErrorKind.IO_ERROR
    assert kind(status_of, (root,), root / "none", "none") is ErrorKind.PATH_NOT_FOUND


def test_a_device(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    try:
        os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no devices here")
    assert kind(text, root, "null") is ErrorKind.PARSE_ERROR
    assert kind(write_for_agent, (root,), root / "null", "x") is ErrorKind.PARSE_ERROR
    assert stat.S_ISCHR((root / "null").stat().st_mode)


def test_what_an_agent_reads(root: Path) -> None:
    def read(line: int | None = None, limit: int | None = None) -> str:
        return read_for_agent((root,), root / "a", line, limit)

    (root / "a").write_bytes(b"1\r\n2\n\n4")
    assert read() == "1\r\n2\n\n4"
    assert (read(2, 1), read(0, 1), read(3), read(9), read(1, 0)) == ("2\n", "1\r\n", "\n4", "", "")
    (root / "a").write_bytes(b"\xef\xbb\xbfmarked")
    assert read() == "\ufeffmarked" and read(1) == "\ufeffmarked"
    (root / "a").write_bytes(b"caf\xe9")
    assert read() == "café"
    (root / "a").write_bytes("weit\n".encode("utf-16"))
    assert read() == "\ufeffweit\n"
    (root / "a").write_bytes(b"")
    assert read(1, 5) == ""


ERRORS = {
    errno.ENOENT: ErrorKind.PATH_NOT_FOUND,
    errno.EACCES: ErrorKind.PERMISSION_DENIED,
    errno.EROFS: ErrorKind.PERMISSION_DENIED,
    errno.ELOOP: ErrorKind.SYMLINK_ESCAPE,
    errno.EISDIR: ErrorKind.PARSE_ERROR,
    errno.ENOSPC: ErrorKind.IO_ERROR,
    errno.EMFILE: ErrorKind.IO_ERROR,
    errno.ENAMETOOLONG: ErrorKind.IO_ERROR,
    errno.EFBIG: ErrorKind.FILE_TOO_LARGE,
    errno.EBADF: ErrorKind.INTERNAL,
}


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
def test_what_the_system_says(number: int) -> None:
    with pytest.raises(FileError) as caught, failures("the/path"):
        raise OSError(number, "secret detail", "/secret/path")
    assert caught.value.kind is ERRORS[number]
    assert "secret" not in str(caught.value.to_http())


# ---- lists and searches --------------------------------------------------------------------------


def tree(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)


def found(root: Path, pattern: str, cwd: str = ".", **how: Any) -> list[str]:
    how = {"ignored": False, "most": 100, "go_on": lambda: None, **how}
    told = search((root,), root / cwd, cwd, pattern, RuleBook(), **how)
    return [str(path.relative_to(root)) for path in told.paths]


def test_a_list(root: Path) -> None:
    tree(root, "b", "a/", "c/x", ".hidden", "x.log", ".gitignore")
    (root / ".gitignore").write_text("*.log\nc/\n")
    (root / "link").symlink_to("/etc")
    os.mkfifo(root / "pipe")
    rules = RuleBook()
    listed = list_directory((root,), root, ".", rules, ignored=False)
    assert [(each.name, each.kind) for each in listed.entries] == [
        *((".gitignore", "file"), (".hidden", "file"), ("a", "directory"), ("b", "file")),
        *(("link", "symlink"), ("pipe", "other")),
    ]
    listed = list_directory((root,), root, ".", rules, ignored=True)
    assert {each.name for each in listed.entries if each.ignored} == {"c", "x.log"}
    inner = list_directory((root,), root / "c", "c", rules, ignored=True)
    assert [(each.name, each.ignored) for each in inner.entries] == [("x", True)]
    assert kind(list_directory, (root,), root / "b", "b", rules, ignored=False) is (
        ErrorKind.PARSE_ERROR
    )
    assert kind(list_directory, (root,), root / "no", "no", rules, ignored=False) is (
        ErrorKind.PATH_NOT_FOUND
    )


def test_rules_are_read_again(root: Path, tmp_path: Path) -> None:
    tree(root, "a", "b")
    rules = RuleBook()
    assert rules.hides(root / "a", (root,)) is None
    (root / ".gitignore").write_text("a\n")
    assert rules.hides(root / "a", (root,)) == "file"
    (root / ".qwenignore").write_text("!a\nb\n")
    assert (rules.hides(root / "a", (root,)), rules.hides(root / "b", (root,))) == (None, "file")
    assert rules.hides(tmp_path / "else", (root,)) is None
    # One that is a link to the outside is no rule, and nobody learns what is in it.
    (tmp_path / "rules").write_text("a\n")
    (root / ".gitignore").unlink()
    (root / ".gitignore").symlink_to(tmp_path / "rules")
    assert rules.hides(root / "a", (root,)) is None


def test_a_list_has_an_end(root: Path) -> None:
    for number in range(MAX_ENTRIES + 1):
        (root / f"f{number}").touch()
    listed = list_directory((root,), root, ".", RuleBook(), ignored=False)
    assert len(listed.entries) == MAX_ENTRIES and listed.truncated


def test_names_that_are_no_text(root: Path) -> None:
    with open(os.fsencode(root) + b"/bad\xff", "wb"):
        pass
    listed = list_directory((root,), root, ".", RuleBook(), ignored=False)
    assert [each.name for each in listed.entries] == ["bad\ufffd"]


def test_a_search(root: Path) -> None:
    tree(root, "a.py", "src/b.py", "src/deep/c.py", "src/deep/d.txt", ".e.py")
    tree(root, ".git/x.py", "node_modules/y.py", "src/node_modules/z.py", "out/w.py", ".gitignore")
    (root / ".gitignore").write_text("out/\n")
    assert found(root, "**/*.py") == [".e.py", "a.py", "src/b.py", "src/deep/c.py"]
    assert found(root, "*.py", cwd="src") == ["src/b.py"]
    assert found(root, "src/*/*") == ["src/deep/c.py", "src/deep/d.txt"]
    assert found(root, "src/deep") == ["src/deep"]
    assert found(root, "src/**") == ["src/b.py", "src/deep", "src/deep/c.py", "src/deep/d.txt"]
    assert found(root, "**/*.{txt,py}", cwd="src/deep") == ["src/deep/d.txt", "src/deep/c.py"]
    assert found(root, "**/w.py", ignored=True) == ["out/w.py"]
    assert found(root, "node_modules/*") == found(root, "none/*") == found(root, ".") == []
    assert found(root, "**/*.py", most=2) == [".e.py", "a.py"]
    how: dict[str, Any] = {"ignored": False, "go_on": lambda: None}
    for most, cut in ((4, False), (3, True)):
        told = search((root,), root, ".", "**/*.py", RuleBook(), most=most, **how)
        assert told.truncated is cut and len(told.paths) == most
    assert kind(found, root, "*", cwd="none") is ErrorKind.PATH_NOT_FOUND
    assert kind(found, root, "*", cwd="a.py") is ErrorKind.PARSE_ERROR


def test_links_in_a_search(root: Path, tmp_path: Path) -> None:
    tree(root, "d/a")
    (tmp_path / "secret").write_text("s")
    for name, target in {
        "in": "d",
        "file": "d/a",
        "out": tmp_path / "secret",
        "dir": tmp_path,
        "loop": ".",
        "gone": "none",
    }.items():
        (root / name).symlink_to(target)
    assert found(root, "**") == ["d", "d/a", "."], "links are told as what they lead to"
    assert found(root, "in/*") == ["d/a"]
    assert found(root, "dir/*") == found(root, "loop/dir/*") == []
    assert found(root, "**/secret") == []


def test_a_search_can_be_ended(root: Path) -> None:
    tree(root, "a/b/c/d", "e")

    class Enough(Exception):
        pass

    def go_on() -> None:
        raise Enough

    with pytest.raises(Enough):
        found(root, "**", go_on=go_on)


# ---- writing -------------------------------------------------------------------------------------


def test_create_and_replace(root: Path) -> None:
    path = root / "a"
    made = write_text((root,), path, "a", "one\n", expected=None)
    assert (made.created, made.size, made.hash) == (True, 4, content_hash(b"one\n"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()
    assert kind(write_text, (root,), path, "a", "x", expected=None) is (
        ErrorKind.FILE_ALREADY_EXISTS
    )
    assert kind(write_text, (root,), path, "a", "x", expected=content_hash(b"")) is (
        ErrorKind.HASH_MISMATCH
    )
    assert path.read_text() == "one\n"
    for mode in (0o640, 0o755, 0o600):
        path.chmod(mode)
        before = content_hash(path.read_bytes())
        again = write_text((root,), path, "a", f"{mode}", expected=before)
        assert not again.created and path.read_text() == f"{mode}"
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert kind(write_text, (root,), root / "no", "no", "x", expected=before) is (
        ErrorKind.PATH_NOT_FOUND
    )
    assert kind(write_text, (root,), root / "no/x", "no/x", "x", expected=None) is (
        ErrorKind.PATH_NOT_FOUND
    )
    assert not (root / "no").exists() and not left(root)


def umask() -> int:
    now = os.umask(0o22)
    os.umask(now)
    return now


def test_encodings_and_endings(root: Path) -> None:
    path = root / "a"

    def put(content: str, **how: Any) -> bytes:
        old = content_hash(path.read_bytes()) if path.exists() else None
        told = write_text((root,), path, "a", content, expected=old, **how)
        data = path.read_bytes()
        assert (told.hash, told.size) == (content_hash(data), len(data))
        assert read_text((root,), path, "a").encoding == told.encoding
        return data

    assert put("é\n", encoding="utf-16le", bom=True) == b"\xff\xfe\xe9\0\n\0"
    assert put("é") == b"\xff\xfe\xe9\0", "encoding and mark are kept"
    assert put("é", encoding="utf-8") == b"\xc3\xa9"
    assert put("\ufeffé") == b"\xef\xbb\xbf\xc3\xa9"
    assert put("é") == b"\xef\xbb\xbf\xc3\xa9"
    assert put("é", bom=False) == b"\xc3\xa9"
    assert put("é", encoding="iso-8859-1") == b"\xe9"
    assert put("è") == b"\xe8"
    assert put("€") == "€".encode(), "what does not fit is written as UTF-8"
    assert put("a\nb\r\nc", ending="crlf") == b"a\r\nb\r\nc"
    assert put("a\nb\r\nc", ending="lf") == b"a\nb\nc"
    assert put("a\nb\r\nc") == b"a\nb\r\nc"
    old = content_hash(path.read_bytes())
    for wrong in ("a\ud800",):
        assert kind(write_text, (root,), path, "a", wrong, expected=old) is ErrorKind.PARSE_ERROR
    assert (
        kind(write_text, (root,), path, "a", "€", expected=old, encoding="iso-8859-1")
        is ErrorKind.PARSE_ERROR
    )
    assert path.read_bytes() == b"a\nb\r\nc" and not left(root)


def test_edits(root: Path) -> None:
    path = root / "a"
    data = "\ufeffeins\r\nzwei\r\n".encode("utf-16le")
    path.write_bytes(data)
    path.chmod(0o751)

    def edit(old: str, new: str) -> Any:
        before = content_hash(path.read_bytes())
        return edit_text((root,), path, "a", old, new, expected=before)

    told = edit("eins\nzwei", "eins\ndrei")
    assert path.read_bytes() == "\ufeffeins\r\ndrei\r\n".encode("utf-16le")
    assert (told.encoding.name, told.encoding.bom, told.ending) == ("utf-16le", True, "crlf")
    assert stat.S_IMODE(path.stat().st_mode) == 0o751
    assert kind(edit, "vier", "x") is ErrorKind.TEXT_NOT_FOUND
    assert kind(edit, "ei", "x") is ErrorKind.AMBIGUOUS_TEXT_MATCH
    assert kind(edit, "", "x") is ErrorKind.PARSE_ERROR
    path.write_bytes(b"caf\xe9")
    edit("caf", "th")
    assert path.read_bytes() == b"th\xe9"
    assert kind(edit, "th", "€") is ErrorKind.PARSE_ERROR
    path.write_bytes(b"a\0")
    assert kind(edit, "a", "b") is ErrorKind.BINARY_FILE
    path.write_bytes(b"\xff\xfea\0b")
    assert kind(edit, "a", "b") is ErrorKind.BINARY_FILE
    wrong = content_hash(b"")
    assert kind(edit_text, (root,), path, "a", "a", "b", expected=wrong) is ErrorKind.HASH_MISMATCH
    assert kind(edit_text, (root,), root / "no", "no", "a", "b", expected=wrong) is (
        ErrorKind.PATH_NOT_FOUND
    )
    assert not left(root)


def test_limits_of_writing(root: Path) -> None:
    path = root / "a"
    most = "x" * MAX_WRITE
    write_text((root,), path, "a", most, expected=None)
    assert kind(write_text, (root,), root / "b", "b", most + "x", expected=None) is (
        ErrorKind.FILE_TOO_LARGE
    )
    before = content_hash(path.read_bytes())
    assert kind(write_text, (root,), path, "a", most + "x", expected=before) is (
        ErrorKind.FILE_TOO_LARGE
    )
    assert path.stat().st_size == MAX_WRITE and os.listdir(root) == ["a"]
    path.write_bytes(b"x" * (MAX_SCAN + 1))
    assert kind(edit_text, (root,), path, "a", "y", "z", expected=before) is (
        ErrorKind.FILE_TOO_LARGE
    )


def test_through_a_link(root: Path) -> None:
    tree(root, "d/")
    (root / "link").symlink_to("d/new")
    made = write_text((root,), root / "link", "link", "x", expected=None)
    assert made.path == root / "d/new" and (root / "link").is_symlink()
    write_for_agent((root,), root / "link", "y")
    assert (root / "d/new").read_text() == "y" and (root / "link").is_symlink()


@pytest.mark.parametrize("step", ["write", "fsync", "replace", "link", "fchmod"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    root: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = root / "a"
    path.write_text("old")
    before = content_hash(b"old")

    def fails(*args: Any, **how: Any) -> Any:
        raise OSError(errno.ENOSPC, "full")

    if step == "write":
        monkeypatch.setattr(workspace_write, "open", fails, raising=False)
    else:
        monkeypatch.setattr(os, step, fails)
    if step == "link":
        assert kind(write_text, (root,), root / "b", "b", "x", expected=None) is ErrorKind.IO_ERROR
    else:
        assert kind(write_text, (root,), path, "a", "x", expected=before) is ErrorKind.IO_ERROR
        assert kind(write_for_agent, (root,), path, "x") is ErrorKind.IO_ERROR
    assert path.read_text() == "old" and os.listdir(root) == ["a"]


def test_a_file_system_without_hard_links(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **how: Any) -> Any:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", fails)
    write_text((root,), root / "a", "a", "x", expected=None)
    assert (root / "a").read_text() == "x"
    monkeypatch.setattr(workspace_write, "_lstat", lambda place: None)
    assert kind(write_text, (root,), root / "a", "a", "y", expected=None) is (
        ErrorKind.FILE_ALREADY_EXISTS
    )
    assert (root / "a").read_text() == "x" and os.listdir(root) == ["a"]


AS_NOBODY = """
import os, sys
from pathlib import Path
root = Path(sys.argv[1])
from acp_gateway.protocol.errors import FileError
from acp_gateway.core.text_file import content_hash
from acp_gateway.runtime.workspace_files import read_text, status_of
from acp_gateway.runtime.workspace_search import RuleBook, list_directory, search
from acp_gateway.runtime.workspace_write import write_for_agent, write_text
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
rules = RuleBook()
for name, work in {
    "unreadable": lambda: read_text((root,), root / "unreadable", "x"),
    "closed": lambda: read_text((root,), root / "closed/a", "x"),
    "closed list": lambda: list_directory((root,), root / "closed", "x", rules, ignored=False),
    "closed stat": lambda: status_of((root,), root / "closed/a", "x"),
    "read-only": lambda: write_for_agent((root,), root / "read-only", "x"),
    "replace": lambda: write_text((root,), root / "read-only", "x", "x",
                                  expected=content_hash(b"old")),
    "directory": lambda: write_text((root,), root / "fixed/new", "x", "x", expected=None),
    "dark": lambda: list_directory((root,), root / "dark", "x", rules, ignored=False),
    "dark file": lambda: read_text((root,), root / "dark/a", "x").content,
    "dark write": lambda: write_for_agent((root,), root / "dark/a", "new").created,
    "search": lambda: len(search((root,), root, ".", "**/a", rules, ignored=True, most=9,
                                 go_on=lambda: None).paths),
}.items():
    try:
        print(name, work())
    except FileError as exc:
        print(name, exc.kind.word)
"""


def test_permissions(root: Path) -> None:
    """In a process of its own, which is not root."""
    tree(root, "unreadable", "closed/a", "read-only", "fixed/", "dark/a", "open/a")
    (root / "read-only").write_text("old")
    modes = {"unreadable": 0o000, "closed": 0o000, "read-only": 0o444, "fixed": 0o555}
    modes |= {"dark": 0o333, "dark/a": 0o666, "open": 0o777, ".": 0o777}
    if os.geteuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, 65534, 65534)
    for name, mode in reversed(modes.items()):
        (root / name).chmod(mode)
    above = [each for each in root.parents if each.stat().st_mode & 0o5 != 0o5]
    kept = {each: each.stat().st_mode for each in above}
    for each in above:
        each.chmod(kept[each] | 0o55)
    try:
        ran = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(root)],
            env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    finally:
        for each, mode in kept.items():
            each.chmod(mode)
        (root / "closed").chmod(0o755)
        (root / "dark").chmod(0o755)
    assert ran.stdout.splitlines() == [
        "unreadable permission_denied",
        "closed permission_denied",
        "closed list permission_denied",
        "closed stat permission_denied",
        "read-only permission_denied",
        "replace permission_denied",
        "directory permission_denied",
        "dark permission_denied",
        "dark file dark/a",
        "dark write False",
        "search 1",
    ], ran.stderr
    assert (root / "read-only").read_text() == "old" and (root / "dark/a").read_text() == "new"


# ---- several at once, and a sudden end -----------------------------------------------------------


def in_threads(run: Callable[[int], None], arguments: Iterable[int]) -> None:
    workers = [threading.Thread(target=run, args=(each,)) for each in arguments]
    for each in workers:
        each.start()
    for each in workers:
        each.join(DEADLINE)


def test_one_of_many_with_the_same_hash(root: Path) -> None:
    path = root / "a"
    path.write_text("0")
    rounds, threads = 20, 6
    for number in range(rounds):
        before = content_hash(path.read_bytes())
        start, won = threading.Barrier(threads), []

        def run(who: int, before: str = before, start: Any = start, won: Any = won) -> None:
            start.wait(DEADLINE)
            try:
                write_text((root,), path, "a", f"{who}", expected=before)
                won.append(who)
            except FileError as exc:
                won.append(exc.kind)

        in_threads(run, range(number * threads + 1, (number + 1) * threads + 1))
        winners = [each for each in won if isinstance(each, int)]
        assert len(winners) == 1 and won.count(ErrorKind.HASH_MISMATCH) == threads - 1
        assert path.read_text() == f"{winners[0]}"


def test_one_of_many_creates(root: Path) -> None:
    path, start = root / "a", threading.Barrier(8)
    won, lost = [], []

    def run(who: int) -> None:
        start.wait(DEADLINE)
        try:
            write_text((root,), path, "a", f"{who}", expected=None)
            won.append(who)
        except FileError as exc:
            lost.append(exc.kind)

    in_threads(run, range(8))
    assert len(won) == 1 and path.read_text() == f"{won[0]}" and not left(root)
    assert lost == [ErrorKind.FILE_ALREADY_EXISTS] * 7


def test_somebody_else_writes_between_check_and_rename(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "a"
    path.write_text("old")
    fsync = os.fsync

    def meddling(fd: int) -> None:
        path.write_text("not")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", meddling)
    before = content_hash(b"old")
    assert kind(write_text, (root,), path, "a", "new", expected=before) is ErrorKind.HASH_MISMATCH
    assert path.read_text() == "not" and not left(root)


def test_readers_see_whole_files(root: Path) -> None:
    path, over = root / "a", threading.Event()
    contents = [letter * 200_000 for letter in "ab"]
    path.write_text(contents[0])

    def run() -> None:
        for number in range(40):
            write_for_agent((root,), path, contents[number % 2])
        over.set()

    writer = threading.Thread(target=run)
    writer.start()
    while not over.is_set():
        assert path.read_text() in contents
        assert read_for_agent((root,), path, None, None) in contents
    writer.join(DEADLINE)


WRITER = """
import sys
from pathlib import Path
from acp_gateway.runtime.workspace_write import write_for_agent
root = Path(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    write_for_agent((root,), root / f"f{number % 8}", chr(97 + number % 26) * 100_000)
"""


def test_a_kill_in_the_middle_of_writes(root: Path) -> None:
    for number in range(8):
        (root / f"f{number}").write_text("a" * 100_000)
    for delay in (0.02, 0.05, 0.08, 0.11, 0.14):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root)],
            env={"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE)
            process.stdout.close()  # type: ignore[union-attr]
        for number in range(8):
            content = (root / f"f{number}").read_text()
            assert len(content) == 100_000 and len(set(content)) == 1
        others = {name for name in os.listdir(root) if name[0] != "f"}
        assert others == set(left(root))
    listed = list_directory((root,), root, ".", RuleBook(), ignored=False)
    assert len(listed.entries) == 8, "what a kill left behind is not shown"


# ---- the workspace -------------------------------------------------------------------------------


async def test_a_cancelled_write_is_finished(root: Path) -> None:
    workspace = Workspace((root,))
    content = "x" * 3_000_000
    for number in range(10):
        with trio.move_on_after(0.0005 * number):
            await workspace.write_text(str(root / "a"), content, (root,))
    assert (root / "a").read_text() == content and not left(root)


async def test_a_search_ends_with_its_caller(root: Path) -> None:
    tree(root, "a/b/c/d")
    workspace = Workspace((root,))
    with trio.CancelScope() as scope:
        scope.cancel()
        await workspace.for_client(
            "glob",
            "GET /glob",
            search,
            ".",
            pattern="**",
            rules=workspace.rules,
            ignored=False,
            most=9,
            go_on=trio.from_thread.check_cancelled,
        )
    assert scope.cancelled_caught


async def test_agents_and_clients_have_the_same_boundary(root: Path) -> None:
    outside = root.parent / "out"
    outside.mkdir()
    (outside / "a").write_text("secret")
    (root / "out").symlink_to(outside)
    workspace = Workspace((root,))
    for path in (str(root / "out/a"), str(root / "out/none"), str(outside / "a")):
        kinds = set()
        for work in (
            lambda path=path: workspace.read_text(path, (root,), None, None),
            lambda path=path: workspace.write_text(path, "x", (root,)),
            lambda path=path: workspace.for_client("read", "", read_text, path),
            lambda path=path: workspace.for_client(
                "write", "", write_text, path, content="x", expected=None
            ),
        ):
            with pytest.raises(FileError) as caught:
                await work()
            kinds.add(caught.value.kind)
        assert kinds == {
            ErrorKind.SYMLINK_ESCAPE if "ws" in path else ErrorKind.PATH_OUTSIDE_WORKSPACE
        }
    assert os.listdir(outside) == ["a"] and (outside / "a").read_text() == "secret"
    with pytest.raises(GatewayError) as caught_:
        await workspace.read_text("a", (root,), None, None)
    assert caught_.value.kind is ErrorKind.INVALID_PARAMS


async def test_a_workspace_that_is_not_trusted(root: Path) -> None:
    (root / "a").write_text("old")
    workspace = Workspace((root,), trusted=False)
    assert await workspace.read_text(str(root / "a"), (root,), None, None) == "old"
    old = content_hash(b"old")
    for work in (
        lambda: workspace.write_text(str(root / "a"), "x", (root,)),
        lambda: workspace.for_client("write", "", write_text, "a", content="x", expected=old),
        lambda: workspace.for_client(
            "edit", "", edit_text, "a", old_text="old", new_text="x", expected=old
        ),
    ):
        with pytest.raises(FileError) as caught:
            await work()
        assert caught.value.kind is ErrorKind.UNTRUSTED_WORKSPACE
    assert (root / "a").read_text() == "old"


def test_how_paths_are_told(root: Path, tmp_path: Path) -> None:
    workspace = Workspace((root, tmp_path.resolve() / "other"))
    assert workspace.told(root) == "."
    assert workspace.told(root / "a/b") == "a/b"
    assert workspace.told(tmp_path.resolve() / "other/x") == str(tmp_path.resolve() / "other/x")


async def test_an_agent_asks_the_gateway(root: Path) -> None:
    (root / "a").write_text("text")
    (root / "out").symlink_to("/etc")
    async with rig(root, scripted("reads-fs")) as r:
        with trio.fail_after(DEADLINE):
            session = await r.create()
            for path, wanted in {
                str(root / "a"): "text",
                str(root / "none"): (-32002, "path_not_found"),
                str(root / "out/passwd"): (-32602, "symlink_escape"),
                "/etc/passwd": (-32602, "path_outside_workspace"),
                f"{root}/../../etc/passwd": (-32602, "path_outside_workspace"),
                str(root): (-32602, "parse_error"),
                "a": (-32602, "invalid_params"),
            }.items():
                await r.say(session, path)
                told = texts(session)[-1]
                if isinstance(wanted, str):
                    assert told == wanted
                    continue
                error = json.loads(told)["error"]
                assert (error["code"], error["data"]["errorKind"]) == wanted, path


# ---- what a killed process left ------------------------------------------------------------------


def test_litter_is_taken_away_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    left, written, other = (root / f".acp-{digit * 16}.tmp" for digit in "0af")
    left.write_text("a writer was killed")
    written.write_text("a writer is at work")
    (root / ".acp-123.tmp").write_text("some other file")
    (root / "link").write_text("kept")
    other.symlink_to("link")
    with written.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_for_agent((root,), root / "new", "x")
    names = {".acp-123.tmp", "link", "new", other.name, written.name}
    assert set(os.listdir(root)) == names and (root / "link").read_text() == "kept"
    # Once for each directory: the next process looks again.
    write_for_agent((root,), root / "new", "y")
    assert set(os.listdir(root)) == names
    script = (
        "import sys; from pathlib import Path; "
        "from acp_gateway.runtime.workspace_write import write_for_agent; "
        "root = Path(sys.argv[1]); write_for_agent((root,), root / 'new', 'z')"
    )
    subprocess.run([sys.executable, "-c", script, str(root)], check=True, timeout=60)
    assert set(os.listdir(root)) == names - {written.name}


def test_somebody_who_locks_what_is_written_stops_nobody_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path.resolve()

    def taken(fd: int, how: int) -> None:
        raise BlockingIOError

    monkeypatch.setattr(workspace_write.fcntl, "flock", taken)
    with pytest.raises(FileError) as caught:
        write_for_agent((root,), root / "new", "x")
    assert caught.value.kind is ErrorKind.IO_ERROR and os.listdir(root) == []


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path.resolve()
    (root / f".acp-{'0' * 16}.tmp").write_text("left")

    def unsupported(fd: int, how: int) -> None:
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr(workspace_write.fcntl, "flock", unsupported)
    write_for_agent((root,), root / "new", "x")
    assert (root / "new").read_text() == "x" and len(os.listdir(root)) == 2
