"""Reading the configuration again: all of it is checked first, then what can change is changed.

Flags stay as they were given; the file, the token file and the files that settings name are read
anew, and the programs of the agents are looked up anew. A configuration that would not start a
daemon changes nothing. Agents with Qwen's methods read their own settings again as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import structlog
import trio

from acp_gateway.config import ConfigError, LoadedSettings, Settings
from acp_gateway.config_access import checked
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.events import SETTINGS_RELOADED
from acp_gateway.runtime.agent_host import AgentHost
from acp_gateway.runtime.agent_profile import Profiles
from acp_gateway.runtime.live_settings import LiveSettings
from acp_gateway.runtime.sessions import SessionManager

log = structlog.get_logger("acp_gateway.reload")

READ_TIMEOUT: Final = 15.0
AGENT_TIMEOUT: Final = 30.0
"""What Qwen's own daemon gives its child to read its settings again."""

Reread: TypeAlias = Callable[[], tuple[LoadedSettings, Profiles]]
"""Reads and checks the configuration; raises `ConfigError`."""
Prepare: TypeAlias = Callable[[Settings], Callable[[], bool]]
"""Checks something that settings name, in a thread; raises `ConfigError`. What it gives puts it to
use and says whether it is another one."""


class Reloader:
    def __init__(
        self,
        live: LiveSettings,
        profiles: Profiles,
        manager: SessionManager,
        reread: Reread,
        prepare: Mapping[str, Prepare],
        *,
        agents_changed: Callable[[], None],
        began: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        """``prepare``: for the name of a setting, what it names. ``agents_changed``: the profiles
        are others now. ``began`` and ``ended`` are called
        around each reload.
        """
        self._live = live
        self._profiles = profiles
        self._manager = manager
        self._reread = reread
        self._prepare = prepare
        self._agents_changed = agents_changed
        self._began, self._ended = began, ended
        self._lock = trio.Lock()

    async def reload(self, cause: str, client: str | None = None) -> dict[str, Any]:
        """The body of the answer and of the event. Raises ``invalid_configuration``."""
        async with self._lock:
            self._began()
            try:
                return await self._reload(cause, client)
            finally:
                self._ended()

    async def _reload(self, cause: str, client: str | None) -> dict[str, Any]:
        try:
            loaded, profiles, uses = await self._read()
        except GatewayError as exc:
            log.error("reload_refused", cause=cause, error=exc.message, **exc.data)
            raise
        renewed = [name for name, use in uses.items() if use()]
        change = self._live.apply(loaded.settings)
        agents = [f"agents.{name}" for name in self._profiles.become(profiles)]
        if agents:
            self._agents_changed()
        applied = list(dict.fromkeys([*change.applied, *renewed, *agents]))
        body = await self._reload_agents()
        body["changedKeys"] = sorted({*body["changedKeys"], *applied, *change.restart})
        body["gateway"] = {
            "applied": applied,
            "restartRequired": list(change.restart),
            "configFile": None if loaded.config_file is None else str(loaded.config_file),
        }
        log.info(
            "reloaded",
            cause=cause,
            applied=applied,
            restart_required=list(change.restart),
            agents_reloaded=body["childReloaded"],
        )
        self._manager.tell_everywhere(SETTINGS_RELOADED, body, client)
        return body

    async def _read(self) -> tuple[LoadedSettings, Profiles, dict[str, Callable[[], bool]]]:
        def read() -> tuple[LoadedSettings, Profiles, dict[str, Callable[[], bool]]]:
            loaded, profiles = self._reread()
            # As a whole it would start a daemon. What of it counts now, beside what stays, must be
            # good too: a token that waits for a restart protects nothing yet.
            mixed = self._live.mixed(loaded.settings)
            checked(mixed, loaded.sources, lambda: self._manager.asks_for_token)
            return (
                loaded,
                profiles,
                {name: prepare(loaded.settings) for name, prepare in self._prepare.items()},
            )

        try:
            with trio.fail_after(READ_TIMEOUT):
                return await trio.to_thread.run_sync(read, abandon_on_cancel=True)
        except ConfigError as exc:
            raise GatewayError(
                ErrorKind.INVALID_CONFIGURATION,
                f"Nothing was changed: {exc.message}",
                remedy=exc.remedy,
                source=exc.source,
            ) from None
        except trio.TooSlowError:
            raise GatewayError(
                ErrorKind.INVALID_CONFIGURATION,
                f"Nothing was changed: the configuration was not read within {READ_TIMEOUT:g} s",
                remedy="check the file system that it is on",
                source=None,
            ) from None

    async def _reload_agents(self) -> dict[str, Any]:
        """Let agents that can read their settings again; what they said, joined."""
        hosts = [
            host
            for host in self._manager.pool.hosts
            if host.alive and host.profile.quirks.private_meta
        ]
        answers: list[dict[str, Any]] = []
        problems: list[str] = []

        async def ask(host: AgentHost) -> None:
            try:
                params = {"cwd": str(host.cwd)}
                told = await host.request(_RELOAD, params, timeout=AGENT_TIMEOUT)
            except GatewayError as exc:
                problems.append(exc.message)
            else:
                answers.append(told if isinstance(told, dict) else {})

        async with trio.open_nursery() as nursery:
            for host in hosts:
                nursery.start_soon(ask, host)

        def joined(*path: str) -> list[str]:
            found: set[str] = set()
            for answer in answers:
                value: Any = answer
                for part in path:
                    value = value.get(part) if isinstance(value, dict) else None
                if isinstance(value, list):
                    found.update(each for each in value if isinstance(each, str))
            return sorted(found)

        if not hosts:
            problems.append("no agent that has settings to read is running")
        body: dict[str, Any] = {
            "env": {
                "updatedKeys": joined("env", "updatedKeys"),
                "removedKeys": joined("env", "removedKeys"),
            },
            "changedKeys": joined("changedKeys"),
            "childReloaded": bool(answers),
            "sessionsRefreshed": joined("sessionsRefreshed"),
            "sessionsSkipped": joined("sessionsSkipped"),
            "runtimeEnvironmentApplied": True,
        }
        if problems:
            body["childError"] = "; ".join(dict.fromkeys(problems))
        return body


_RELOAD: Final = "qwen/control/workspace/reload"
