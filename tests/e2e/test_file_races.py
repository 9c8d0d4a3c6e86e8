"""A live daemon that writes files while links are swapped in its way, and while it is killed.

`pytest -s` shows how much was tried.
"""

from __future__ import annotations

import json
import random
import shlex
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from agent_env import base_environment
from gateway_process import GatewayProcess
from support.processes import eventually
from support.writing_agent import content, is_whole

from acp_gateway.core.text_file import content_hash
from acp_gateway.runtime.beneath import _openat2
from acp_gateway.runtime.workspace_write import TEMPORARY

SUPPORT = Path(__file__).resolve().parent.parent / "support"
AGENT, SWAPPER = SUPPORT / "writing_agent.py", SUPPORT / "swapper.py"
SWAPS = 10_000
WRITES = 1_000
DEADLINE = 30.0
WITHOUT_OPENAT2 = (
    "-c",
    "from acp_gateway.runtime import beneath; beneath._openat2 = None; "
    "import sys; from acp_gateway.cli import main; sys.exit(main())",
)
OF_A_RACE = {
    "symlink_escape",
    "path_not_found",
    "parse_error",
    "hash_mismatch",
    "file_already_exists",
    "text_not_found",
}


def start(base: Path, *program: str) -> GatewayProcess:
    command = shlex.join([sys.executable, "-S", "-E", str(AGENT)])
    args = ("--agent", f"writer={command}", "--trust-loopback", "--log-format", "json")
    workspace = base / "workspace"
    workspace.mkdir(exist_ok=True)
    how = {"program": program} if program else {}
    return GatewayProcess(workspace, base_environment(base / "home"), args, **how)


def client(made: GatewayProcess) -> httpx2.Client:
    return httpx2.Client(base_url=made.url, trust_env=False, timeout=DEADLINE)


@contextmanager
def agent_at_work(
    made: GatewayProcess, base: Path, paths: list[Path], size: int
) -> Iterator[dict[str, Any]]:
    """The agent writes the paths for the length of the block; then the dictionary has its report,
    unless the daemon was killed."""
    report, until = base / "report", base / "until"
    for path in (report, until):
        path.unlink(missing_ok=True)
    wanted = {
        "paths": [str(each) for each in paths],
        "size": size,
        "until": str(until),
        "report": str(report),
    }
    found: dict[str, Any] = {}
    with client(made) as http:
        session = http.post("/session", json={"sessionScope": "thread"}).raise_for_status().json()
        http.post(
            f"/session/{session['sessionId']}/prompt",
            json={"prompt": [{"type": "text", "text": json.dumps(wanted)}]},
            headers={"X-Qwen-Client-Id": session["clientId"]},
        ).raise_for_status()
        try:
            yield found
        finally:
            until.touch()
            if made.process.poll() is None:
                assert eventually(lambda: report.exists() and report.read_text(), DEADLINE)
                found.update(json.loads(report.read_text()))


# ---- links that are swapped ----------------------------------------------------------------------


def state(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Names, times and contents: a file that was there for a moment leaves its mark too."""
    return {
        str(path): (path.stat().st_mtime_ns, b"" if path.is_dir() else path.read_bytes())
        for path in (directory, *directory.rglob("*"))
    }


class Writers:
    """Threads that use the REST routes until they are told to stop, and what came of it."""

    def __init__(self, made: GatewayProcess, works: list[Callable[[httpx2.Client, int], Any]]):
        self.good, self.refused = 0, Counter[str]()
        self.wrong: list[str] = []
        self._made, self._stop, self._lock = made, threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in works]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE)

    def _run(self, work: Callable[[httpx2.Client, int], Any]) -> None:
        number = 0
        with client(self._made) as http:
            while not self._stop.is_set():
                number += 1
                try:
                    answer = work(http, number)
                except Exception as exc:
                    self.wrong.append(repr(exc))
                    return
                with self._lock:
                    if answer.is_success:
                        self.good += 1
                        continue
                    word = answer.json().get("errorKind")
                    self.refused[str(word)] += 1
                    if word not in OF_A_RACE:
                        self.wrong.append(answer.text)


def written(http: httpx2.Client, path: str, text: str) -> httpx2.Response:
    """Read, and replaced by what is left of its hash; created when there is none."""
    read = http.get("/file", params={"path": path})
    body: dict[str, Any] = {"path": path, "content": text, "mode": "create"}
    if read.is_success:
        body |= {"mode": "replace", "expectedHash": read.json()["hash"]}
    return http.post("/file/write", json=body)


def edited(http: httpx2.Client, path: str, number: int) -> httpx2.Response:
    read = http.get("/file", params={"path": path})
    if not read.is_success:
        return read
    old = read.json()["content"]
    body = {
        "path": path,
        "oldText": old,
        "newText": f"x{number}",
        "expectedHash": read.json()["hash"],
    }
    return http.post("/file/edit", json=body)


@pytest.mark.parametrize("way", ["kernel", "walk"])
@pytest.mark.parametrize("what", ["directory", "file"])
def test_no_byte_lands_outside(tmp_path: Path, way: str, what: str) -> None:
    if way == "kernel" and _openat2 is None:
        pytest.skip("this kernel has no openat2")
    base = tmp_path.resolve()
    root, outside = base / "workspace", base / "outside"
    for directory in (root / "d/e", outside / "e"):
        directory.mkdir(parents=True)
        (directory / "f").write_text("old")
    made = start(base, *(WITHOUT_OPENAT2 if way == "walk" else ()))
    try:
        before = state(outside)
        works: list[Callable[[httpx2.Client, int], Any]] = [
            lambda http, number: written(http, "d/e/f", f"write {number}"),
            lambda http, number: edited(http, "d/e/f", number),
            lambda http, number: written(http, f"d/e/new{number}", "new"),
        ]
        argv = [sys.executable, "-S", "-E", str(SWAPPER), what, str(root), str(SWAPS)]
        with (
            agent_at_work(made, base, [root / "d/e/f", root / "d/e/agent"], 100) as report,
            Writers(made, works) as writers,
        ):
            ran = subprocess.run(argv, capture_output=True, text=True, timeout=120)
        assert ran.stdout.split() == [str(SWAPS)], ran.stderr
        assert state(outside) == before
        assert not writers.wrong, writers.wrong[:3]
        assert writers.good and writers.refused, "the race proves nothing"
        assert report["good"] and set(report["refused"]) <= OF_A_RACE, report
        assert not [each for each in base.rglob("*") if TEMPORARY.fullmatch(each.name)]
        print(
            f"\n{SWAPS} swaps of a {what} ({way}): over REST {writers.good} done, "
            f"{dict(writers.refused)}; by the agent {report['good']} done, {report['refused']}"
        )
    finally:
        made.stop()


# ---- a daemon that is killed ---------------------------------------------------------------------


class Owner:
    """Writes one file again and again; knows what it may hold."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.allowed: set[str | None] = {None}
        """Contents: the one that was acknowledged last, and the one that is being written."""
        self.sent = self.done = 0

    def write(self, http: httpx2.Client) -> None:
        self.sent += 1
        text = content(f"{self.name}-{self.sent}", random.choice([100, 5_000, 50_000, 500_000]))
        (now,) = self.allowed
        body: dict[str, Any] = {"path": str(self.path), "content": text, "mode": "create"}
        if now is not None:
            body |= {"mode": "replace", "expectedHash": content_hash(now.encode())}
        self.allowed = {now, text}
        answer = http.post("/file/write", json=body)
        assert answer.is_success, answer.text
        self.allowed = {text}
        self.done += 1

    def check(self) -> None:
        now = self.path.read_text() if self.path.exists() else None
        assert now in self.allowed, f"{self.path} is neither old nor new"
        assert now is None or is_whole(now)
        self.allowed = {now}


def test_a_daemon_that_is_killed_leaves_whole_files(tmp_path: Path) -> None:
    base = tmp_path.resolve()
    root = base / "workspace"
    for name in ("d0", "d1"):
        (root / name).mkdir(parents=True)
    owners = [Owner(root / f"d{number % 2}/f{number}", f"o{number}") for number in range(8)]
    agents = [root / f"d0/agent{number}" for number in range(4)]
    kills = litter = most = 0
    wrong: list[str] = []

    def run(owner: Owner, made: GatewayProcess, stop: threading.Event) -> None:
        try:
            with client(made) as http:
                while not stop.is_set():
                    owner.write(http)
        except httpx2.TransportError:
            pass  # it was killed
        except Exception as exc:
            wrong.append(repr(exc))

    def done() -> int:
        return sum(owner.done for owner in owners)

    def left() -> list[Path]:
        return [each for each in root.rglob("*") if TEMPORARY.fullmatch(each.name)]

    while sum(owner.sent for owner in owners) < WRITES or kills < 5:
        made, stop = start(base), threading.Event()
        try:
            with suppress(httpx2.TransportError), agent_at_work(made, base, agents, 300_000):
                threads = [
                    threading.Thread(target=run, args=(owner, made, stop)) for owner in owners
                ]
                goal = done() + WRITES // 6
                for thread in threads:
                    thread.start()
                assert eventually(lambda goal=goal: done() >= goal or wrong, 60)
                time.sleep(random.uniform(0, 0.02))
                made.process.kill()
                made.process.wait()
                kills += 1
                stop.set()
                for thread in threads:
                    thread.join(DEADLINE)
        finally:
            made.stop()
        assert not wrong, wrong
        for owner in owners:
            owner.check()
        for path in agents:
            assert not path.exists() or is_whole(path.read_text())
        litter += len(left())
        most = max(most, len(left()))
    # What is left is taken away by the first write of the next one, in each directory.
    made = start(base)
    try:
        with client(made) as http:
            for owner in owners[:2]:
                owner.write(http)
                owner.check()
        assert left() == []
    finally:
        made.stop()
    sent = sum(owner.sent for owner in owners)
    print(
        f"\n{kills} kills during {sent} writes over REST ({done()} acknowledged) and those of an "
        f"agent: every file whole; {litter} temporary files left, at most {most} at once, none "
        "after the next write"
    )
