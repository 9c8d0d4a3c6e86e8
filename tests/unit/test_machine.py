"""What the system tells of processes and disks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from acp_gateway.runtime import machine
from acp_gateway.runtime.machine import ProcessFacts, disk, own_facts, parse_ps, process_facts

HOLD = "import sys; held = bytearray({size}); print('x', flush=True); sys.stdin.read()"
PARENT = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], "
    "stdin=subprocess.PIPE, stdout=subprocess.PIPE); child.stdout.read(1); print('x', flush=True); "
    "sys.stdin.read()"
)


def started(argv: list[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.read(1)  # it holds what it is to hold
    return process


def ended(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, 9)
    process.communicate(timeout=10)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_agent_is_told_with_what_it_started() -> None:
    big = HOLD.format(size=60_000_000)
    alone = started([sys.executable, "-c", big])
    wrapper = started([sys.executable, "-c", PARENT, big])
    try:
        facts = process_facts([alone.pid, wrapper.pid, 2**22 + 1])
    finally:
        ended(alone)
        ended(wrapper)
    assert set(facts) == {alone.pid, wrapper.pid}
    assert facts[alone.pid].processes == 1 and facts[wrapper.pid].processes == 2
    for each in facts.values():
        assert each.rss_bytes is not None and 60_000_000 < each.rss_bytes < 200_000_000
        assert each.open_fds is not None and each.open_fds >= 3
        assert each.cpu_seconds is not None and each.cpu_seconds >= 0
        assert each.disk_read is not None and each.disk_read >= 0
        assert each.disk_written is not None and each.disk_written >= 0
    assert process_facts([alone.pid]) == {}  # it has ended
    assert process_facts([]) == {}


def test_this_process() -> None:
    facts = own_facts()
    assert facts.rss_bytes is not None and facts.rss_bytes > 10_000_000
    assert facts.cpu_seconds is not None and facts.cpu_seconds > 0
    assert machine.max_fds() is None or machine.max_fds() > 0  # type: ignore[operator]


def test_a_system_without_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    assert own_facts().rss_bytes is not None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert process_facts([os.getpid()]) == {os.getpid(): ProcessFacts()}  # and without ps


def test_lines_of_ps() -> None:
    told = (
        "    1     1   1000   0:01.50\n"
        "  501   501  20480   1:02.25\n"
        "  502   501  10240 1-02:03:04\n"
        "a line that ps has never had\n"
        "  600   600    512      0:00\n"
    )
    facts = parse_ps(told, {501, 777})
    assert facts == {
        501: ProcessFacts(
            rss_bytes=30720 * 1024, cpu_seconds=62.25 + 86400 + 7384, open_fds=None, processes=2
        )
    }


def test_disks(tmp_path: Path) -> None:
    found = disk(tmp_path)
    assert found.total_bytes is not None and found.free_bytes is not None
    assert 0 <= found.free_bytes <= found.total_bytes
    assert disk(tmp_path / "gone").total_bytes is None
