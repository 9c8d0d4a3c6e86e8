"""The watchdog: what it ends, and that it comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from support.runtime_rig import running

from acp_gateway.runtime.watchdog import Watchdog


def eventually(what: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    return what()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process group that ignores SIGTERM."""
    code = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", code], start_new_session=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_what_is_listed_ends_with_it(child: subprocess.Popen[bytes]) -> None:
    watchdog = Watchdog()
    watchdog.start()
    pid = watchdog.pid
    watchdog.add(child.pid)
    watchdog.close()
    assert child.wait(3) == -signal.SIGKILL
    assert pid is not None and not running(pid)


def test_what_was_removed_lives_on(child: subprocess.Popen[bytes]) -> None:
    watchdog = Watchdog()
    watchdog.start()
    watchdog.add(child.pid)
    watchdog.remove(child.pid)
    watchdog.close()
    assert child.poll() is None


def test_it_comes_back_and_knows_all(child: subprocess.Popen[bytes]) -> None:
    watchdog = Watchdog()
    watchdog.start()
    first = watchdog.pid
    assert first is not None
    watchdog.add(child.pid)
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: not running(first))
    watchdog.add(99_999_999)  # the next word finds the pipe broken
    second = watchdog.pid
    assert second is not None and second != first and running(second)
    watchdog.remove(99_999_999)
    watchdog.close()
    assert child.wait(3) == -signal.SIGKILL


def test_signals_for_the_daemon_do_not_reach_it() -> None:
    watchdog = Watchdog()
    watchdog.start()
    pid = watchdog.pid
    assert pid is not None and os.getsid(pid) == pid
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        ignored = 1 << (number - 1)

        def ignores(mask: int = ignored) -> bool:
            with open(f"/proc/{pid}/status") as status:
                line = next(each for each in status if each.startswith("SigIgn:"))
            return bool(int(line.split()[1], 16) & mask)

        if sys.platform == "linux":
            assert eventually(ignores)
        os.kill(pid, number)
    assert running(pid)
    watchdog.close()
    assert not running(pid)
