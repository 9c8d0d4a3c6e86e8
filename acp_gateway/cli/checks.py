"""The checks of ``doctor``. Each yields cells; none changes anything or raises."""

from __future__ import annotations

import errno
import importlib
import os
import socket
import stat
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from acp_gateway.cli import options
from acp_gateway.cli.handshake import handshake
from acp_gateway.config import ConfigError, LoadedSettings, Settings
from acp_gateway.runtime import runtime_file
from acp_gateway.runtime.agent_profile import AgentProfile, find_agents, resolve_agents
from acp_gateway.runtime.checks import Cell, proxies, python, system, workspace
from acp_gateway.runtime.checks import fail as _fail
from acp_gateway.runtime.checks import ok as _ok
from acp_gateway.runtime.checks import warn as _warn
from acp_gateway.transports import tls_check

_PACKAGES: Final = (
    *("attrs", "cattrs", "click", "h11", "hypercorn", "jsonrpcserver", "msgspec", "platformdirs"),
    *("quart_trio", "structlog", "trio", "trio_websocket", "typed_settings"),
)


def check_all(flags: dict[str, Any], environ: Mapping[str, str] = os.environ) -> Iterator[Cell]:
    """All checks, in the order in which they are worth fixing."""
    yield python()
    yield system()
    yield from _packages()
    loaded, cell = _configuration(flags)
    yield cell
    settings = loaded.settings
    for root in settings.workspace:
        yield workspace(root)
    yield _runtime_directory()
    yield _port(settings)
    yield from tls_cells(settings)
    yield proxies(environ)
    yield from _agents(loaded, environ)


def _packages() -> Iterator[Cell]:
    broken = []
    for name in _PACKAGES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # also where the user made errors of them
                importlib.import_module(name)
        except Exception as error:  # an installed package may fail in any way
            broken.append(f"{name} ({type(error).__name__}: {error})")
    if broken:
        yield _fail(
            "packages",
            "package_missing",
            f"These cannot be imported: {', '.join(broken)}.",
            f"{sys.executable} -m pip install --force-reinstall acp-gateway",
        )
    else:
        yield _ok("packages", f"all {len(_PACKAGES)} can be imported")


def _configuration(flags: dict[str, Any]) -> tuple[LoadedSettings, Cell]:
    try:
        loaded = options.load(flags)
    except ConfigError as error:
        usual = Settings(workspace=(Path.cwd(),))
        where = f" ({error.source})" if error.source else ""
        cell = _fail(
            "configuration",
            error.kind,
            f"{error.message}{where} The other checks use the defaults.",
            error.remedy,
        )
        return LoadedSettings(settings=usual, sources={}), cell
    return loaded, _ok("configuration", f"{loaded.config_file or 'no file, defaults'}")


def _runtime_directory() -> Cell:
    try:
        return _ok("runtime directory", str(runtime_file.runtime_dir()))
    except ConfigError as error:
        return _fail("runtime directory", "runtime_dir_unusable", error.message, error.remedy)


def _port(settings: Settings) -> Cell:
    name = f"port {settings.port}"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return _taken(name, settings, error)
    return _ok(name, f"can be listened on at {settings.host}")


def _taken(name: str, settings: Settings, error: OSError) -> Cell:
    if error.errno == errno.EADDRINUSE:
        owner = runtime_file.owner_of_port(settings.port)
        if owner is not None:
            return _warn(
                name,
                "port_used_by_gateway",
                f"The gateway {owner.url} (process {owner.pid}) listens on it, for "
                f"{', '.join(owner.workspace)}.",
                f"acp-gateway stop {owner.pid}",
            )
        return _fail(
            name, "port_in_use", "Another program listens on it.", "acp-gateway serve --port 0"
        )
    if error.errno == errno.EACCES:
        return _fail(
            name, "port_forbidden", "Only root may use it.", "acp-gateway serve --port 4170"
        )
    return _fail(
        name,
        "address_unusable",
        f"{settings.host} cannot be listened on: {error.strerror or error}.",
        "acp-gateway serve --host 127.0.0.1",
    )


def tls_cells(settings: Settings) -> Iterator[Cell]:
    """Nothing without TLS; else the pair, its expiry, and who may read the key."""
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None or key is None:
        return
    try:
        expires = tls_check.expiry(cert, key)
    except tls_check.TlsProblem as problem:
        yield _fail("tls", problem.kind, problem.message, problem.remedy)
        return
    days = (expires - time.time()) / 86400
    until = time.strftime("%Y-%m-%d", time.gmtime(expires))
    if days < 0:
        yield _fail("tls", "tls_expired", f"The certificate expired on {until}.", "Renew it.")
    elif days < 14:
        yield _warn("tls", "tls_expires_soon", f"The certificate ends on {until}.", "Renew it.")
    else:
        yield _ok("tls", f"certificate and key fit, valid until {until}")
    if stat.S_IMODE(key.stat().st_mode) & 0o077:
        yield _warn("tls key", "tls_key_exposed", "Others may read the key.", f"chmod 600 '{key}'")


def _agents(loaded: LoadedSettings, environ: Mapping[str, str]) -> Iterator[Cell]:
    """The agents that would be served must answer; other installed ones should."""
    wanted: dict[str, AgentProfile] = {}
    for text in loaded.settings.agent:
        try:
            profiles = resolve_agents([text], loaded.agents, environ)
        except ConfigError as error:
            yield _fail(f"agent {text}", error.kind, error.message, error.remedy)
            continue
        wanted |= profiles
        if profiles.default.name == "demo" and profiles.note:
            yield _warn("agent auto", "no_agent", profiles.note, "acp-gateway agents")
    others = {
        agent.profile.name: agent.profile
        for agent in find_agents(loaded.agents, environ)
        if agent.path and agent.profile.name not in wanted
    }
    cwd = (loaded.settings.workspace or (Path.cwd(),))[0]

    def ask(profile: AgentProfile) -> Cell:
        timeout = profile.handshake_timeout or loaded.settings.handshake_timeout
        result = handshake(profile, timeout=timeout, cwd=cwd, environ=environ)
        name = f"agent {profile.name}"
        if result.kind == "ok":
            return _ok(name, f"{result.message[:-1]} ({result.seconds:.1f} s)")
        make = _fail if profile.name in wanted else _warn
        return make(name, result.kind, result.message, profile.install or _shell(profile))

    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(ask, [*wanted.values(), *others.values()])


def _shell(profile: AgentProfile) -> str:
    import shlex

    return f"{shlex.join(profile.argv)}  (run it by hand and look at what it prints)"
