"""What the operating system tells of processes and disks.

Linux tells it in ``/proc``, other systems through ``ps``. What a system does not tell is None,
never an error. All of it blocks for a few milliseconds: call it in a thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs

_PROC: Final = Path("/proc")
_PS_TIMEOUT: Final = 5.0


@attrs.frozen(kw_only=True)
class ProcessFacts:
    """A process; of an agent all of its processes together, but for ``open_fds``."""

    rss_bytes: int | None = None
    cpu_seconds: float | None = None
    """In user and system mode since it started."""
    open_fds: int | None = None
    processes: int | None = None
    disk_read: int | None = None
    disk_written: int | None = None
    """Bytes to and from disks (not caches) since it started; Linux alone tells it."""


@attrs.frozen(kw_only=True)
class Disk:
    path: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    """For who has no privileges."""


def process_facts(leaders: Iterable[int]) -> dict[int, ProcessFacts]:
    """Facts of each process and of what runs in its session (each agent leads one of its own).

    A process that has ended is absent.
    """
    wanted = set(leaders)
    if not wanted:
        return {}
    if (_PROC / "self/stat").exists():
        return _from_proc(wanted)
    return _from_ps(wanted)


def own_facts() -> ProcessFacts:
    """Of this process alone."""
    pid = os.getpid()
    if (_PROC / "self/stat").exists():
        found = _stat(pid)
        if found is not None:
            return ProcessFacts(
                rss_bytes=found[1], cpu_seconds=found[2], open_fds=_fds(pid), processes=1
            )
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024
    return ProcessFacts(
        # The most that it ever was: there is no other number without a helper.
        rss_bytes=used.ru_maxrss * unit,
        cpu_seconds=used.ru_utime + used.ru_stime,
        open_fds=_fds_here(),
        processes=1,
    )


def max_fds() -> int | None:
    """How many descriptors this process may open."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def disk(path: Path) -> Disk:
    """The file system that holds ``path``."""
    try:
        found = os.statvfs(path)
    except OSError:
        return Disk(path=str(path))
    return Disk(
        path=str(path),
        total_bytes=found.f_blocks * found.f_frsize,
        free_bytes=found.f_bavail * found.f_frsize,
    )


# ---- Linux ---------------------------------------------------------------------------------------


def _from_proc(leaders: set[int]) -> dict[int, ProcessFacts]:
    sums: dict[int, tuple[int, float, int]] = {}
    disks: dict[int, tuple[int, int]] = {}
    # One pass over all processes: what an agent started is found by its session.
    for name in os.listdir(_PROC):
        if not name.isdecimal():
            continue
        found = _stat(int(name))
        if found is None:
            continue
        leader = found[0] if found[0] in leaders else int(name)
        if leader in leaders:
            rss, cpu, count = sums.get(leader, (0, 0.0, 0))
            sums[leader] = (rss + found[1], cpu + found[2], count + 1)
            read, written = disks.get(leader, (0, 0))
            more = _disk_bytes(int(name))
            disks[leader] = (read + more[0], written + more[1])
    return {
        pid: ProcessFacts(
            rss_bytes=rss,
            cpu_seconds=cpu,
            open_fds=_fds(pid),
            processes=count,
            disk_read=disks[pid][0],
            disk_written=disks[pid][1],
        )
        for pid, (rss, cpu, count) in sums.items()
    }


def _stat(pid: int) -> tuple[int, int, float] | None:
    """(session, bytes of RSS, CPU seconds) of proc(5)'s ``stat``."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
        # The name in parentheses may hold anything, parentheses too.
        fields = text[text.rindex(b")") + 2 :].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return int(fields[3]), int(fields[21]) * os.sysconf("SC_PAGE_SIZE"), cpu
    except (OSError, ValueError, IndexError):
        return None


def _disk_bytes(pid: int) -> tuple[int, int]:
    """(read, written) of proc(5)'s ``io``; zeros where it is another user's."""
    told = {}
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            name, _, value = line.partition(":")
            told[name] = int(value)
    return told.get("read_bytes", 0), told.get("write_bytes", 0)


def _fds(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


# ---- elsewhere -----------------------------------------------------------------------------------


def _fds_here() -> int | None:
    with suppress(OSError):
        return len(os.listdir("/dev/fd"))
    return None


def _from_ps(leaders: set[int]) -> dict[int, ProcessFacts]:
    # An agent leads a process group too, and ps knows no session on every system.
    try:
        told = subprocess.run(
            ["ps", "-axo", "pid=,pgid=,rss=,time="],
            capture_output=True,
            text=True,
            timeout=_PS_TIMEOUT,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(leaders, ProcessFacts())
    return parse_ps(told, leaders)


def parse_ps(told: str, leaders: set[int]) -> dict[int, ProcessFacts]:
    """Lines of ``ps -o pid=,pgid=,rss=,time=``: KiB, and ``[[DD-]hh:]mm:ss[.cc]``."""
    sums: dict[int, tuple[int, float, int]] = {}
    for line in told.splitlines():
        try:
            pid, group, kib, clock = line.split()
            leader = int(group) if int(group) in leaders else int(pid)
            if leader in leaders:
                rss, cpu, count = sums.get(leader, (0, 0.0, 0))
                sums[leader] = (rss + int(kib) * 1024, cpu + _seconds(clock), count + 1)
        except ValueError:
            continue
    return {
        pid: ProcessFacts(rss_bytes=rss, cpu_seconds=cpu, processes=count)
        for pid, (rss, cpu, count) in sums.items()
    }


def _seconds(clock: str) -> float:
    days, _, rest = clock.rpartition("-")
    seconds = 0.0
    for part in rest.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds + 86400 * int(days or 0)
