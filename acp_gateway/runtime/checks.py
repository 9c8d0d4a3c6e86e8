"""Checks of the machine that ``doctor`` and a running daemon share. None changes or raises.

They block: a daemon calls them in a thread.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import attrs

_VERSION_TIMEOUT: Final = 5.0


@attrs.frozen(kw_only=True)
class Cell:
    """One line of the report."""

    name: str
    status: Literal["ok", "warn", "fail"]
    kind: str
    """``ok`` or a stable word for the problem."""
    message: str
    fix: str | None = None
    """A command, or a sentence where no command can do it."""


def ok(name: str, message: str) -> Cell:
    return Cell(name=name, status="ok", kind="ok", message=message)


def fail(name: str, kind: str, message: str, fix: str | None) -> Cell:
    return Cell(name=name, status="fail", kind=kind, message=message, fix=fix)


def warn(name: str, kind: str, message: str, fix: str | None) -> Cell:
    return Cell(name=name, status="warn", kind=kind, message=message, fix=fix)


def python() -> Cell:
    version = ".".join(map(str, sys.version_info[:3]))
    return ok("python", f"{version} at {sys.executable}")


def system() -> Cell:
    system = platform.system()
    if system == "Linux":
        return ok("platform", "Linux")
    if system == "Darwin":
        return warn(
            "platform",
            "platform_limited",
            "macOS has no openat2, landlock or bubblewrap: files are guarded by path checks and "
            "agents cannot be sandboxed.",
            None,
        )
    return fail(
        "platform",
        "platform_unsupported",
        f"{system} is not supported.",
        "Use Linux or macOS.",
    )


def workspace(root: Path) -> Cell:
    name = f"workspace {root}"
    if not os.access(root, os.R_OK | os.X_OK):
        return fail(name, "workspace_unreadable", "It cannot be read.", f"chmod u+rx '{root}'")
    try:
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        return warn(
            name,
            "workspace_read_only",
            f"Agents cannot write in it: {error.strerror}.",
            f"chmod u+w '{root}'",
        )
    return ok(name, "can be read and written")


def proxies(environ: Mapping[str, str]) -> Cell:
    names = [
        name
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
        if environ.get(name, "").strip()
    ]
    exempt = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    # The names in the list decide, so it is read from environ and not from this process.
    missed = [
        host
        for host in ("127.0.0.1", "localhost")
        if not urllib.request.proxy_bypass_environment(host, {"no": exempt})  # type: ignore[attr-defined]
    ]
    if names and missed:
        return warn(
            "proxies",
            "proxy_catches_loopback",
            f"{', '.join(names)} would send clients of {' and '.join(missed)} to a proxy.",
            "export NO_PROXY=localhost,127.0.0.1,::1 no_proxy=localhost,127.0.0.1,::1",
        )
    return ok("proxies", "none catches the loopback")


def tool(name: str, argv: Sequence[str], use: str, environ: Mapping[str, str]) -> Cell:
    """A program that is wanted for ``use`` and not needed; the message is what it calls itself."""
    path = shutil.which(argv[0], path=environ.get("PATH"))
    if path is None:
        return warn(name, "missing_binary", f"{argv[0]} is not on the PATH.", f"Install it: {use}.")
    try:
        done = subprocess.run(
            [path, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_TIMEOUT,
            env=dict(environ),
        )
    except (OSError, subprocess.SubprocessError) as error:
        why = "it does not end" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        return warn(
            name, "stat_failed", f"{path} cannot be run: {why}.", f"Install it anew: {use}."
        )
    line = (done.stdout.strip().splitlines() or [""])[0]
    if done.returncode != 0 or not line:
        return warn(
            name,
            "stat_failed",
            f"{path} ended with {done.returncode} when it was asked for its version.",
            f"Install it anew: {use}.",
        )
    return ok(name, line[:200])


def git(environ: Mapping[str, str]) -> Cell:
    return tool("git", ("git", "--version"), "agents look at changes with it", environ)


def ripgrep(environ: Mapping[str, str]) -> Cell:
    return tool("ripgrep", ("rg", "--version"), "agents search faster with it", environ)


def node(environ: Mapping[str, str]) -> Cell:
    return tool("node", ("node", "--version"), "an agent is written for Node.js", environ)
