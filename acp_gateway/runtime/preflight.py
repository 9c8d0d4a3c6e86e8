"""What a session would need and whether it is there: the cells of ``GET /workspace/preflight``, and
those of ``GET /workspace/env``.

A cell is ``{kind, status, locality?, detail?, error?, errorKind?, hint?}``; ``status`` is one of
``ok warning error disabled not_started unknown``. What the daemon finds out by itself has locality
``daemon``; what only an agent knows has ``acp``, and is asked of an agent that runs anyway: no
process is started for it. No value of a variable is ever in a cell, but for the hosts of proxies.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import trio

from acp_gateway.protocol.errors import AgentError, ErrorKind, GatewayError
from acp_gateway.runtime import checks
from acp_gateway.runtime.agent_host import AgentHost
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.machine import own_facts
from acp_gateway.runtime.redact import redact
from acp_gateway.runtime.sessions import SessionManager

Cell = dict[str, Any]

REQUIRED_PYTHON: Final = (3, 11)
AGENT_CELLS: Final = ("auth", "mcp_discovery", "skills", "providers", "tool_registry", "egress")
ASK_TIMEOUT: Final = 5.0
KEPT: Final = 5.0
"""Seconds that what needs programs to be run is kept."""
_STATUS: Final = {"ok": "ok", "warn": "warning", "fail": "error"}
_NOT_STARTED: Final = "spawn a session to populate"
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
_VARIABLES: Final = (
    *("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"),
    *("DASHSCOPE_API_KEY", "OPENROUTER_API_KEY", "QWEN_SERVER_TOKEN", "ACP_GATEWAY_TOKEN"),
    *("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "OPENAI_API_BASE", "NODE_EXTRA_CA_CERTS"),
    *("SSL_CERT_FILE", "TZ", "LANG", "LC_ALL", "TERM", "QWEN_CLI_ENTRY"),
)


class Preflight:
    """Runs the checks; who asks while they run gets their outcome."""

    def __init__(self, manager: SessionManager, environ: Mapping[str, str] = os.environ) -> None:
        self._manager = manager
        self._environ = environ
        self._lock = trio.Lock()
        self._known: list[Cell] = []
        self._until = -1.0

    async def cells(self) -> list[Cell]:
        return [*await self._daemon_cells(), *await agent_cells(self._manager)]

    async def _daemon_cells(self) -> list[Cell]:
        async with self._lock:
            if trio.current_time() >= self._until:
                manager = self._manager
                self._known = await trio.to_thread.run_sync(
                    daemon_cells,
                    manager.workspace.roots,
                    tuple(manager.profiles.values()),
                    self._environ,
                )
                self._until = trio.current_time() + KEPT
            known = self._known
        pool = self._manager.pool
        agents = [_agent_cell(each, pool.handshakes, pool.failures) for each in self._profiles]
        return [*known, *agents]

    @property
    def _profiles(self) -> Iterable[AgentProfile]:
        return self._manager.profiles.values()


# ---- the daemon's own ----------------------------------------------------------------------------


def daemon_cells(
    roots: Iterable[Path], profiles: Iterable[AgentProfile], environ: Mapping[str, str]
) -> list[Cell]:
    """Blocks for as long as the programs take to tell their versions."""
    makers: list[tuple[str, Callable[[], Cell]]] = [
        ("python_version", _python),
        ("cli_entry", _entry),
        *(("workspace_dir", lambda root=root: _workspace(root)) for root in roots),
    ]
    if any(_needs_node(each) for each in profiles):
        makers.append(
            ("node_version", lambda: _tool("node_version", checks.node(environ), "error"))
        )
    makers.append(("ripgrep", lambda: _tool("ripgrep", checks.ripgrep(environ))))
    makers.append(("git", lambda: _tool("git", checks.git(environ))))
    return [_guarded(kind, make) for kind, make in makers]


def _guarded(kind: str, make: Callable[[], Cell]) -> Cell:
    """One check that fails is one cell that says so."""
    try:
        return {"kind": kind, "locality": "daemon", **make()}
    except Exception as exc:  # whatever a machine may come up with
        return {
            "kind": kind,
            "locality": "daemon",
            "status": "error",
            "error": f"The check failed: {type(exc).__name__}",
            **_error_kind(exc),
        }


def _error_kind(exc: BaseException) -> Cell:
    """The kind where it is certain, else nothing."""
    if isinstance(exc, TimeoutError):
        return {"errorKind": "init_timeout"}
    if isinstance(exc, FileNotFoundError):
        return {"errorKind": "missing_file"}
    return {"errorKind": "stat_failed"} if isinstance(exc, OSError) else {}


def _python() -> Cell:
    version = ".".join(map(str, sys.version_info[:3]))
    required = ".".join(map(str, REQUIRED_PYTHON))
    detail = {"version": version, "required": f">={required}"}
    if sys.version_info[:2] >= REQUIRED_PYTHON:
        return {"status": "ok", "detail": detail}
    return {
        "status": "error",
        "detail": detail,
        "error": f"Python {version} is too old",
        "errorKind": "missing_binary",
        "hint": f"run the gateway with Python {required} or newer",
    }


def _entry() -> Cell:
    path = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path(__file__)
    if not path.exists():
        return {
            "status": "warning",
            "error": f"{path} is no longer there",
            "errorKind": "missing_file",
            "hint": "the gateway was moved or updated while it runs: restart it",
        }
    return {"status": "ok", "detail": {"path": str(path.resolve()), "source": "sys.argv[0]"}}


def _workspace(root: Path) -> Cell:
    if not root.is_dir():
        return {
            "status": "error",
            "detail": {"path": str(root)},
            "error": f"{root} is not a directory",
            "errorKind": "missing_file",
            "hint": "make it again, or serve another --workspace",
        }
    return _from_check(checks.workspace(root), {"path": str(root)})


def _tool(kind: str, found: checks.Cell, absent: str = "warning") -> Cell:
    if found.status == "ok":
        return {"status": "ok", "detail": {"version": found.message}}
    return {**_from_check(found, None), "status": absent}


def _from_check(found: checks.Cell, detail: Mapping[str, Any] | None) -> Cell:
    cell: Cell = {"status": _STATUS[found.status]}
    if detail is not None:
        cell["detail"] = dict(detail)
    if found.status == "ok":
        return cell
    kind = found.kind if found.kind in ("missing_binary", "stat_failed") else "stat_failed"
    cell |= {"error": found.message, "errorKind": kind}
    return cell if found.fix is None else {**cell, "hint": found.fix}


def _needs_node(profile: AgentProfile) -> bool:
    """Is its program a script for Node.js?"""
    for word in profile.argv[:2]:
        if Path(word).name in ("node", "npx", "npm"):
            return True
    try:
        with open(os.path.realpath(profile.argv[0]), "rb") as file:
            first = file.read(128).split(b"\n")[0]
            return first.startswith(b"#!") and b"node" in first
    except OSError:
        return False


def _agent_cell(
    profile: AgentProfile,
    handshakes: Mapping[str, Mapping[str, Any]],
    failures: Mapping[str, GatewayError],
) -> Cell:
    """Its program, and how its last start went."""
    program = Path(profile.argv[0])
    told = handshakes.get(profile.name, {}).get("agentInfo")
    info = told if isinstance(told, Mapping) else {}
    cell: Cell = {
        "kind": "agent",
        "status": "ok",
        "locality": "daemon",
        "detail": {
            "name": profile.name,
            "path": str(program),
            "version": info.get("version") if isinstance(info.get("version"), str) else None,
            "started": profile.name in handshakes,
        },
    }
    if program.is_absolute() and not os.access(program, os.X_OK):
        return cell | {
            "status": "error",
            "error": f"{program} cannot be run",
            "errorKind": "missing_binary",
            "hint": profile.install or "install the agent again",
        }
    failure = failures.get(profile.name)
    if failure is not None:
        timeout = "did not answer initialize within" in failure.message
        cell |= {"status": "error", "error": failure.message}
        cell |= {"errorKind": "init_timeout" if timeout else "protocol_error"}
        if failure.remedy is not None:
            cell["hint"] = failure.remedy
    return cell


# ---- what agents know ----------------------------------------------------------------------------


async def agent_cells(manager: SessionManager) -> list[Cell]:
    """Of the first agent: what a process of it that runs anyway says, else what is known of it."""
    profile = next(iter(manager.profiles.values()))
    host = manager.pool.any_host(profile)
    if host is None:
        return [_acp(kind, "not_started", hint=_NOT_STARTED) for kind in AGENT_CELLS]
    if profile.quirks.private_meta:
        try:
            told = await host.request("qwen/status/workspace/preflight", {}, timeout=ASK_TIMEOUT)
        except AgentError:
            pass  # an older one, without the method
        except GatewayError as exc:
            word = "init_timeout" if exc.kind is ErrorKind.AGENT_UNRESPONSIVE else "protocol_error"
            return [_acp(kind, "error", error=exc.message, errorKind=word) for kind in AGENT_CELLS]
        else:
            cells = told.get("cells") if isinstance(told, dict) else None
            if isinstance(cells, list):
                found = [each for each in cells if isinstance(each, dict) and "kind" in each]
                return [{"status": "unknown", **each, "locality": "acp"} for each in found]
    return _from_what_is_known(manager, profile, host)


def _from_what_is_known(
    manager: SessionManager, profile: AgentProfile, host: AgentHost
) -> list[Cell]:
    """ACP has no method for any of this; the sessions have been told some of it."""
    methods = host.initialize_result.get("authMethods")
    live = [
        each for each in manager.sessions.values() if each.profile is profile and each.over is None
    ]
    newest = max(live, key=lambda each: each.updated_at, default=None)
    if not methods or newest is not None:
        names = [each.get("id") for each in methods or () if isinstance(each, dict)]
        auth = _acp("auth", "ok", detail={"methods": names, "sessionOpened": newest is not None})
    else:
        auth = _acp("auth", "unknown", hint="the agent tells only when a session is opened")
    hidden = {"hint": f"the agent {profile.name} does not tell"}
    cells = {kind: _acp(kind, "unknown", **hidden) for kind in AGENT_CELLS} | {"auth": auth}
    cells["egress"] = _acp("egress", "not_started", hint="the network is not probed")
    if newest is not None:
        models = newest.state.offered_models
        if models:
            detail = {"count": 1, "providers": [profile.name], "models": len(models)}
            cells["providers"] = _acp("providers", "ok", detail=detail)
        if newest.state.skills:
            cells["skills"] = _acp("skills", "ok", detail={"count": len(newest.state.skills)})
    return list(cells.values())


def _acp(kind: str, status: str, **members: Any) -> Cell:
    return {"kind": kind, "status": status, "locality": "acp", **members}


# ---- the environment -----------------------------------------------------------------------------


def env_cells(profiles: Iterable[AgentProfile], environ: Mapping[str, str]) -> list[Cell]:
    """Blocks for a moment. Variables: presence alone; proxies: host and port alone."""
    rss = own_facts().rss_bytes
    system = platform.system().lower()
    names = dict.fromkeys(_VARIABLES)
    for profile in profiles:
        # What a profile names one by one; a pattern would tell what else there is.
        names |= dict.fromkeys(each for each in profile.env_allow if each.endswith("_API_KEY"))
    return [
        {
            "kind": "runtime",
            "name": "python",
            "status": "ok",
            "value": platform.python_version(),
        },
        {
            "kind": "platform",
            "name": system,
            "status": "ok",
            "value": f"{platform.machine()} ({platform.release()})",
        },
        {
            "kind": "memory",
            "name": "rss",
            "status": "unknown" if rss is None else "ok",
            **({} if rss is None else {"value": f"{rss / 1e6:.1f} MB"}),
        },
        _present("sandbox", "SANDBOX", environ),
        *(_proxy(name, environ) for name in _PROXIES),
        *(_present("env_var", name, environ) for name in names if "*" not in name),
    ]


def _present(kind: str, name: str, environ: Mapping[str, str]) -> Cell:
    present = bool(environ.get(name))
    return {
        "kind": kind,
        "name": name,
        "status": "ok" if present else "disabled",
        "present": present,
    }


def _proxy(name: str, environ: Mapping[str, str]) -> Cell:
    value = environ.get(name) or environ.get(name.lower()) or ""
    cell = _present("proxy", name, {name: value})
    if value:
        cell["value"] = redact(value)[:1024] if name == "NO_PROXY" else _host_of(value)
    return cell


def _host_of(value: str) -> str:
    """``host:port`` of a proxy's URL, which may be without a scheme; never its user."""
    try:
        parts = urlsplit(value if "://" in value else f"//{value}")
        host = parts.hostname or "?"
        host = f"[{host}]" if ":" in host else host
        return host if parts.port is None else f"{host}:{parts.port}"
    except ValueError:
        return "?"
