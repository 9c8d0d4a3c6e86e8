"""``list``, ``status`` and ``stop``: the gateways of this user, by their runtime files."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import click

from acp_gateway.cli.base import command, json_option, print_error, print_json, print_table, say

if TYPE_CHECKING:
    from acp_gateway.runtime.runtime_file import RuntimeInfo


def _public(info: RuntimeInfo) -> dict[str, Any]:
    """A runtime file without its secret."""
    return {key: value for key, value in info.to_dict().items() if key not in ("v", "token")}


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


@command("list")
@json_option()
def list_command(as_json: bool) -> None:
    """List the gateways that run as this user."""
    from acp_gateway.runtime.runtime_file import list_running

    running = list_running()
    if as_json:
        print_json({"gateways": [_public(info) for info in running]})
        return
    if not running:
        say("No gateway is running.")
        return
    rows = [
        (
            str(info.pid),
            info.url,
            ", ".join(info.agents),
            _age(time.time() - info.started_at),
            ", ".join(info.workspace),
        )
        for info in running
    ]
    print_table(("PID", "URL", "AGENTS", "UP", "WORKSPACE"), rows)


@command("status")
@json_option()
@click.option("--token", envvar="ACP_GATEWAY_TOKEN", help="Token of a gateway of another user.")
@click.argument("url", required=False)
def status(url: str | None, token: str | None, as_json: bool) -> int:
    """Ask a gateway how it is. Exits with 1 when it does not answer.

    URL may be unix:PATH. It may be left out when one gateway runs, or one that serves the current
    directory.
    """
    from acp_gateway.cli.http import ask
    from acp_gateway.runtime.runtime_file import find

    info = find(url)
    if info is None and (url is None or url.isdecimal()):
        return _none_running(as_json)
    base = _base(info, url)
    token = info.token if info else token
    problem: str | None = None
    body: Any = None
    try:
        code, body = ask(base, "/status", token=token, timeout=5, own=info is not None)
        if code in (401, 403):
            problem = f"It refuses the request (HTTP status {code}): name its token with --token."
        elif code != 200:
            problem = f"It answered with HTTP status {code}."
    except OSError as error:
        problem = f"It does not answer: {error}."
    result = {
        "running": problem is None,
        "url": info.url if info else base,
        "problem": problem,
        "process": _public(info) if info else None,
        "status": body,
    }
    if as_json:
        print_json(result)
    else:
        _print_status(result)
    return 0 if problem is None else 1


def _base(info: RuntimeInfo | None, url: str | None) -> str:
    """Where to ask: the Unix socket of a known gateway if it has one, else what its URL says."""
    from acp_gateway.config import unix_path

    if info is not None:
        return info.base
    assert url is not None
    if (path := unix_path(url)) is not None:
        return f"unix:{path}"
    base = url if "//" in url else f"http://{url}"
    base = base.replace("ws://", "http://", 1).replace("wss://", "https://", 1)
    return base.split("?")[0].rstrip("/").removesuffix("/acp")


def _none_running(as_json: bool) -> int:
    if as_json:
        print_json({"running": False, "url": None, "problem": "No gateway is running."})
    else:
        say("No gateway is running. Start one with: acp-gateway serve")
    return 1


def _print_status(result: dict[str, Any]) -> None:
    rows = [("url", result["url"]), ("state", result["problem"] or "running")]
    process = result["process"] or {}
    shown_keys = (
        "pid",
        "version",
        "ws_url",
        "unix_socket",
        "workspace",
        "agents",
        "auth",
        "log_file",
    )
    rows += [(key, process[key]) for key in shown_keys if process.get(key)]
    if process:
        rows.append(("up", _age(time.time() - process["started_at"])))
    body = result["status"]
    for key, value in body.items() if isinstance(body, dict) else []:
        if key not in {"v", *(name for name, _ in rows)}:
            rows.append((key, value))
    for key, value in rows:
        click.echo(f"{key + ':':<12} {_plain(value)}")


def _plain(value: Any) -> str:
    """One line for a person."""
    from acp_gateway.runtime.redact import visible

    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, dict):
        return " ".join(f"{key}={_plain(item)}" for key, item in value.items())
    return visible(str(value))


@command("reload")
@json_option()
@click.option("--token", envvar="ACP_GATEWAY_TOKEN", help="Token of a gateway of another user.")
@click.argument("url", required=False)
def reload(url: str | None, token: str | None, as_json: bool) -> int:
    """Let a gateway read its configuration again, and print what changed.

    URL may be unix:PATH or a process id, and may be left out when one gateway runs, or one that
    serves the current directory.
    """
    from acp_gateway.cli.http import ask
    from acp_gateway.runtime.runtime_file import find

    info = find(url)
    if info is None and (url is None or url.isdecimal()):
        return _none_running(as_json)
    try:
        status, body = ask(
            _base(info, url),
            "/workspace/reload",
            token=info.token if info else token,
            timeout=60,
            own=info is not None,
            method="POST",
        )
    except OSError as error:
        status, body = 0, {"error": f"It does not answer: {error}."}
    if as_json:
        print_json(body)
    elif status == 200:
        told = body["gateway"]
        click.echo(f"Changed: {_plain(told['applied'])}")
        if told["restartRequired"]:
            click.echo(f"Needs a restart: {_plain(told['restartRequired'])}")
    else:
        told = body if isinstance(body, dict) else {"error": f"HTTP status {status}"}
        print_error(str(told.get("error")), told.get("source"), told.get("remedy"))
    return 0 if status == 200 else 1


@command("stop")
@click.option("--timeout", default=20.0, metavar="SECONDS", help="How long to wait [20].")
@click.argument("target", required=False, metavar="[PID|URL]")
def stop(target: str | None, timeout: float) -> int:
    """Stop a gateway: it tells its clients, ends its agents, and exits.

    URL may be unix:PATH. PID or URL may be left out when one gateway runs, or one that serves the
    current directory.
    """
    from acp_gateway.runtime.runtime_file import find, is_alive, remove

    info = find(target)
    if info is None:
        say(f"No gateway {target} is running." if target else "No gateway is running.")
        return 1
    with contextlib.suppress(ProcessLookupError):
        os.kill(info.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while is_alive(info):
        if time.monotonic() > deadline:
            say(
                f"The gateway {info.pid} still runs after {timeout:g} s. "
                f"To force it: kill -9 {info.pid}"
            )
            return 1
        time.sleep(0.05)
    remove(info.pid)
    click.echo(f"Stopped {info.url} (process {info.pid}).")
    return 0
