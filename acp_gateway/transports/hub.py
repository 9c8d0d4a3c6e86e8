"""What all transports share: settings, policy, the agent's methods, and who is connected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from acp_gateway.config import Settings
from acp_gateway.core.pairing import Pairing
from acp_gateway.core.rate_limit import Tier
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.device_flow import SignIns
from acp_gateway.runtime.loop_lag import LoopLag
from acp_gateway.runtime.sessions import SessionManager
from acp_gateway.transports.access_log import AccessLog
from acp_gateway.transports.acp_agent import AcpAgent
from acp_gateway.transports.client_address import Proxies
from acp_gateway.transports.connection import Connection
from acp_gateway.transports.guards import Policy
from acp_gateway.transports.keep_alive import KeepAlive
from acp_gateway.transports.machine_watch import Machine, MachineWatch
from acp_gateway.transports.patience import Patience
from acp_gateway.transports.rate_limits import RATE_SETTINGS, RateLimits
from acp_gateway.transports.traffic import Traffic
from acp_gateway.transports.web_files import WebFiles

if TYPE_CHECKING:
    from acp_gateway.runtime.live_settings import LiveSettings
    from acp_gateway.runtime.preflight import Preflight
    from acp_gateway.runtime.reload import Reloader
    from acp_gateway.runtime.wire_trace import WireTrace
    from acp_gateway.transports.certificates import Certificates


def _stderr_only() -> dict[str, Any]:
    return {"logMode": "stderr-only", "logHealth": "ok"}


class Hub:
    def __init__(
        self,
        settings: Settings,
        manager: SessionManager,
        policy: Policy,
        sign_ins: SignIns | None = None,
    ) -> None:
        self.settings = settings
        self.manager = manager
        self.policy = policy
        self.sign_ins = sign_ins
        manager.asks_for_token = policy.token_digest is not None
        self.agent = AcpAgent(manager)
        self.patience = Patience()
        self.keep_alive = KeepAlive()
        self.proxies = Proxies(settings.trusted_proxy)
        self.limits = RateLimits(settings) if settings.rate_limit else None
        self.pairing = Pairing()
        self.web = WebFiles(settings.web)
        self.connections: dict[str, Connection] = {}
        self.live: LiveSettings | None = None
        """`settings` as they change; None where nothing changes them."""
        self.reloader: Reloader | None = None
        self.certificates: Certificates | None = None
        """Of TLS; None without."""
        self.event_streams = 0
        """Open event streams of the daemon's surface."""
        self.traffic = Traffic()
        self.machine = MachineWatch()
        self._preflight: Preflight | None = None
        self.lag = LoopLag()
        self.state_dir: Path | None = None
        """Where the daemon keeps what outlives it. Set by the daemon."""
        self.log_health: Callable[[], dict[str, Any]] = _stderr_only
        """``logMode``, ``logHealth`` and more of the log, as the daemon's status has them."""
        self.began = trio.current_time()
        self.access = AccessLog()
        self.wire: WireTrace | None = None
        self._left: trio.Event | None = None
        """Set when somebody leaves, while `empty` waits for it."""

    @property
    def uptime(self) -> float:
        """Seconds."""
        return trio.current_time() - self.began

    @property
    def rate_limit_hits(self) -> dict[str, int]:
        """Requests over the limit, by tier; zeros while there is none."""
        return {tier.value: 0 for tier in Tier} if self.limits is None else self.limits.hits

    @property
    def preflight(self) -> Preflight:
        """The checks; imported when somebody asks for them."""
        if self._preflight is None:
            from acp_gateway.runtime.preflight import Preflight

            self._preflight = Preflight(self.manager)
        return self._preflight

    async def look(self) -> Machine:
        """What the system tells of the gateway, its agents and its disks."""
        self.lag.ask()
        roots = self.manager.workspace.roots
        places = {f"workspace{'' if n == 1 else n}": root for n, root in enumerate(roots, 1)}
        if self.state_dir is not None:
            places["state"] = self.state_dir
        pids = {host.pid for host in self.manager.pool.hosts if host.pid is not None}
        return await self.machine.look(pids, places)

    @property
    def default_profile(self) -> AgentProfile:
        return next(iter(self.manager.profiles.values()))

    def profile_at(self, path: str) -> AgentProfile | None:
        """The agent that an endpoint's path names: ``/acp`` is the first, ``/agents/NAME/acp``."""
        profiles = self.manager.profiles
        if path == "/acp":
            return self.default_profile
        parts = path.split("/")
        if len(parts) == 4 and parts[1] == "agents" and parts[3] == "acp":
            return profiles.get(parts[2])
        return None

    def follow(self, live: LiveSettings) -> None:
        """Take over what changes in the settings and is kept in another shape here."""
        self.live = live
        live.when_changed(("allow_origin",), self._origins_changed)
        live.when_changed(RATE_SETTINGS, self._limits_changed)

    def _limits_changed(self) -> None:
        """Everybody begins with full buckets."""
        self.limits = RateLimits(self.settings) if self.settings.rate_limit else None
        for connection in self.connections.values():
            connection.limits = self.limits

    def _origins_changed(self) -> None:
        allowed = frozenset(each.lower().rstrip("/") for each in self.settings.allow_origin)
        self.policy = attrs.evolve(self.policy, allow_origin=allowed)

    def agents_changed(self) -> None:
        """Connections that are open start new sessions with the agents as they are now."""
        profiles = self.manager.profiles
        for connection in self.connections.values():
            connection.profile = profiles.get(connection.profile.name, connection.profile)

    def admit(self) -> GatewayError | None:
        """Room for one more ``/acp`` connection?"""
        if self.manager.draining:
            return GatewayError(ErrorKind.SHUTTING_DOWN, "The gateway is shutting down")
        limit = self.settings.max_connections
        if len(self.connections) < limit:
            return None
        if any(each.give_way() for each in tuple(self.connections.values())):
            return None
        self.traffic.refused.add(ErrorKind.CONNECTION_LIMIT.word)
        return GatewayError(
            ErrorKind.CONNECTION_LIMIT,
            f"Too many ACP connections ({limit})",
            remedy="close a connection, or raise max_connections",
            limit=limit,
        )

    def add(self, connection: Connection) -> None:
        connection.max_in_flight = self.settings.max_requests_in_flight
        connection.limits = self.limits
        self.connections[connection.id] = connection
        connection.request_seconds = self.traffic.acp_requests
        self.traffic.connections.add(connection.kind)
        self.access.connection(
            "connection_opened",
            connection=connection.label,
            transport=connection.kind,
            agent=connection.profile.name,
        )

    def remove(self, connection: Connection) -> None:
        if self.connections.pop(connection.id, None) is not None:
            self.access.connection(
                "connection_closed",
                connection=connection.label,
                transport=connection.kind,
                client=connection.client_name,
                duration_ms=round((trio.current_time() - connection.began) * 1000),
            )
        if connection.overflowed:
            self.traffic.evict("queue_bytes_overflow")
        self._told_of_leaving()

    def stream_began(self) -> None:
        self.event_streams += 1
        self.traffic.event_streams += 1

    def stream_ended(self) -> None:
        self.event_streams -= 1
        self._told_of_leaving()

    def _told_of_leaving(self) -> None:
        if self._left is not None:
            self._left.set()
            self._left = None

    async def empty(self) -> None:
        """Return once nobody is connected and no event stream is open."""
        while self.connections or self.event_streams:
            if self._left is None:
                self._left = trio.Event()
            await self._left.wait()

    def kick_all(self, code: int, reason: str) -> None:
        for connection in tuple(self.connections.values()):
            connection.kick(code, reason)
