"""Gateways in processes of their own, and what the system says of them."""

from __future__ import annotations

import json
import shlex
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent_env import base_environment
from gateway_process import GatewayProcess

TESTS = Path(__file__).resolve().parent.parent


def scripted_command(mode: str, *arguments: str) -> str:
    """The command of a bad agent of tests/agents/scripted.py."""
    script = str(TESTS / "agents" / "scripted.py")
    return shlex.join([sys.executable, "-S", "-E", script, mode, *arguments])


@contextmanager
def gateway(base: Path, *args: str, **settings: Any) -> Iterator[GatewayProcess]:
    """A gateway with the demo agent (unless ``args`` say another), a home and a workspace of its
    own; ``settings`` become ``ACP_GATEWAY_*``. It and all its descendants are gone at the end.
    """
    workspace = base / "workspace"
    workspace.mkdir(exist_ok=True)
    env = base_environment(base / "home")
    env |= {f"ACP_GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}
    if "--agent" not in args:
        args = ("--agent", "demo", *args)
    made = GatewayProcess(workspace, env, args)
    family = set()
    try:
        yield made
    finally:
        family = descendants(made.process.pid)
        made.stop()
        left = [pid for pid in family if not eventually(lambda pid=pid: not running(pid), 5)]
        assert not left, f"processes left: {left}\n{made.stderr_tail()}"


def workspace_of(base: Path) -> Path:
    return base / "workspace"


def running(pid: int) -> bool:
    """Is there such a process, other than as a zombie?"""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def descendants(pid: int) -> set[int]:
    """Children, their children and so on."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(path.name))
    found: set[int] = set()
    front = [pid]
    while front:
        for child in parents.get(front.pop(), ()):
            if child not in found:
                found.add(child)
                front.append(child)
    return found


def rss(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def eventually(what: Callable[[], Any], seconds: float) -> Any:
    """The first true value of ``what``, or what it gave last."""
    deadline = time.monotonic() + seconds
    while not (value := what()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return value


def until(what: Callable[[], Any], problem: str = "it never came", seconds: float = 20.0) -> Any:
    """The first true value of ``what``; without one the test fails."""
    value = eventually(what, seconds)
    assert value, problem
    return value


def status(made: GatewayProcess, token: str | None = None) -> dict[str, Any]:
    """``GET /status`` as JSON."""
    headers = {"Accept": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{made.url}/status", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        body: dict[str, Any] = json.load(answer)
    return body
