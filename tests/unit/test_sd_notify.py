"""What the service manager is told, and that its variables go no further."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from acp_gateway.runtime.sd_notify import ServiceManager


class Listening:
    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self.socket.settimeout(5)
        self.address = address

    def heard(self) -> dict[str, str]:
        lines = self.socket.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listening]:
    address = str(tmp_path / "n") if request.param == "path" else f"@acp-{os.getpid()}"
    listening = Listening(address)
    yield listening
    listening.socket.close()


def test_it_says_what_happens(manager: Listening) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "HOME": "/"}
    service = ServiceManager(environ)
    assert environ == {"HOME": "/"}
    service.ready("two\nlines")
    told = manager.heard()
    assert (told["READY"], told["STATUS"], told["MAINPID"]) == ("1", "two lines", str(os.getpid()))
    service.reloading()
    told = manager.heard()
    assert told["RELOADING"] == "1" and int(told["MONOTONIC_USEC"]) > 0
    service.stopping("bye")
    assert manager.heard() == {"STOPPING": "1", "STATUS": "bye"}
    service.close()
    service.ready("nobody hears this")


async def test_signs_of_life(manager: Listening) -> None:
    environ = {
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "100000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    service = ServiceManager(environ)
    assert service.interval == 0.05
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.keep_alive)
            for _ in range(3):
                told = await trio.to_thread.run_sync(manager.heard)
                assert told == {"WATCHDOG": "1"}
            nursery.cancel_scope.cancel()
    service.close()


@pytest.mark.parametrize(
    "changes", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"NOTIFY_SOCKET": ""}]
)
async def test_no_signs_of_life_where_nobody_waits(
    manager: Listening, changes: dict[str, str]
) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000", **changes}
    service = ServiceManager(environ)
    assert service.interval is None
    with trio.fail_after(1):
        await service.keep_alive()
    service.close()


def test_a_manager_that_is_gone_harms_nothing(tmp_path: Path) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "1"})
    assert service.interval is None
    service.ready("hello?")
    service.close()
