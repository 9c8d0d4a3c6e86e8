"""The file of a Unix socket: private, a dead one's successor, never a live one's."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from acp_gateway.config import PortError
from acp_gateway.transports.unix_socket import (
    LONGEST,
    UnixSocket,
    UnixSocketInUse,
    open_unix_socket,
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    path = tmp_path / "s"
    assert len(os.fsencode(path)) <= LONGEST
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def closed(made: UnixSocket) -> None:
    made.socket.close()


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_the_mode_is_as_asked_whatever_the_umask(place: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = open_unix_socket(place, 0o600)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert mode(place) == 0o600
    closed(made)


def test_another_mode(place: Path) -> None:
    closed(open_unix_socket(place, 0o660))
    assert mode(place) == 0o660


def test_a_dead_one_is_replaced(place: Path) -> None:
    closed(open_unix_socket(place, 0o600))
    assert place.exists()
    made = open_unix_socket(place, 0o600)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))
    closed(made)


def test_a_live_one_stays_and_its_owner_is_named(place: Path) -> None:
    made = open_unix_socket(place, 0o600)
    with pytest.raises(UnixSocketInUse) as caught:
        open_unix_socket(place, 0o600)
    assert caught.value.pid == os.getpid()
    assert str(os.getpid()) in caught.value.message
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))
    closed(made)


def test_one_with_a_full_backlog_is_alive(place: Path) -> None:
    clients = []
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(place))
        busy.listen(0)
        for _ in range(4):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            clients.append(client)
            try:
                client.connect(str(place))
            except BlockingIOError:
                break
        else:
            pytest.fail("the backlog never filled")
        with pytest.raises(UnixSocketInUse):
            open_unix_socket(place, 0o600)
    for client in clients:
        client.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_stays(place: Path, kind: str) -> None:
    if kind == "file":
        place.write_text("precious")
    elif kind == "directory":
        place.mkdir()
    else:
        made = open_unix_socket(place.with_name("t"), 0o600)
        closed(made)
        place.symlink_to(made.path)
    with pytest.raises(PortError, match="not a socket"):
        open_unix_socket(place, 0o600)
    assert place.is_symlink() or place.exists()


def test_remove_spares_a_successor(place: Path) -> None:
    first = open_unix_socket(place, 0o600)
    closed(first)
    second = open_unix_socket(place, 0o600)
    first.remove()
    assert place.exists()
    closed(second)
    second.remove()
    second.remove()
    assert not place.exists()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [("missing", "cannot be used"), ("file", "not a directory"), ("loose", "Others can replace")],
)
def test_the_directory_is_looked_at(place: Path, wrong: str, told: str) -> None:
    directory = place.parent / "d"
    if wrong == "file":
        directory.touch()
    elif wrong == "loose":
        directory.mkdir()
        directory.chmod(0o777)
    with pytest.raises(PortError, match=told) as caught:
        open_unix_socket(directory / "s", 0o600)
    assert caught.value.remedy


def test_a_sticky_directory_will_do(place: Path) -> None:
    directory = place.parent / "tmp"
    directory.mkdir()
    directory.chmod(0o1777)
    closed(open_unix_socket(directory / "s", 0o600))


def test_a_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="longer than"):
        open_unix_socket(tmp_path / ("x" * LONGEST), 0o600)
