"""Start a detached gateway and wait until it answers."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from acp_gateway.cli.http import ask
from acp_gateway.config import APP_NAME, ENV_PREFIX, PACKAGE_PATH, ConfigError, state_directory
from acp_gateway.runtime import runtime_file

if TYPE_CHECKING:
    from acp_gateway.runtime.runtime_file import RuntimeInfo

START_DEADLINE: Final = 30.0
"""Seconds from the start of the process to its first answer."""
_KEPT_LOGS: Final = 10
_spawned: list[subprocess.Popen[bytes]] = []
"""Kept because Popen complains about a forgotten process that runs on, which is the plan here."""


def find_or_spawn(workspace: Path, agents: Iterable[str], token: str | None = None) -> RuntimeInfo:
    """A running gateway that serves ``workspace``, else a new one with ``token``.

    Raises `ConfigError`.

    Two editors that start at once get the same one: the search and the start hold a lock.
    """
    if not workspace.is_dir():
        raise ConfigError(
            f"The workspace {workspace} is not a directory.",
            remedy="Name an existing directory.",
            source="flag --workspace",
        )
    with (runtime_file.runtime_dir() / "spawn.lock").open("w") as lock:
        _acquire(lock)
        for info in runtime_file.list_running():
            if runtime_file.serves(info, workspace):
                return info
        return _spawn(workspace, agents, token)


def _acquire(lock: IO[str]) -> None:
    deadline = time.monotonic() + START_DEADLINE + 5
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConfigError(
                    "Another `connect --spawn` does not finish starting a gateway.",
                    remedy="Run `acp-gateway serve` to see what is wrong.",
                ) from None
            time.sleep(0.05)


def _spawn(workspace: Path, agents: Iterable[str], token: str | None) -> RuntimeInfo:
    log = _new_log()
    argv = [sys.executable, "-P", "-m", "acp_gateway", "serve", "--port", "0"]
    argv += ["--workspace", str(workspace)]
    argv += [word for agent in agents for word in ("--agent", agent)]
    paths = filter(None, (PACKAGE_PATH, os.environ.get("PYTHONPATH")))
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if token:
        environ[f"{ENV_PREFIX}TOKEN"] = token
    with log.open("wb") as stderr:
        # In a session of its own: closing the editor or its terminal must not end it.
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environ,
            start_new_session=True,
        )
    _spawned.append(process)
    deadline = time.monotonic() + START_DEADLINE
    while time.monotonic() < deadline:
        for info in runtime_file.list_running():
            if info.pid == process.pid and _answers(info):
                return info
        if process.poll() is not None:
            raise ConfigError(
                f"The gateway ended with status {process.returncode}: {_last_line(log)}",
                remedy=f"Its log is {log}.",
            )
        time.sleep(0.05)
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    raise ConfigError(
        f"The gateway did not answer within {START_DEADLINE:g} s.", remedy=f"Its log is {log}."
    )


def _answers(info: RuntimeInfo) -> bool:
    try:
        return ask(info.url, "/health", token=info.token, timeout=2, own=True)[0] == 200
    except OSError:
        return False


def _new_log() -> Path:
    directory = state_directory() / "log"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for old in sorted(directory.glob("spawned-*.log"))[: -(_KEPT_LOGS - 1)]:
        old.unlink(missing_ok=True)
    path = directory / f"spawned-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    path.touch(mode=0o600)
    return path


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    told = [line for line in lines if line.startswith(f"{APP_NAME}:")]
    return (told or [line for line in lines if line] or ["it said nothing"])[-1]
