"""What all transports share: settings, policy, the agent's methods, and who is connected."""

from __future__ import annotations

import trio

from acp_gateway.config import Settings
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.sessions import SessionManager
from acp_gateway.transports.acp_agent import AcpAgent
from acp_gateway.transports.connection import Connection
from acp_gateway.transports.guards import Policy
from acp_gateway.transports.keep_alive import KeepAlive
from acp_gateway.transports.patience import Patience
from acp_gateway.transports.web_files import WebFiles


class Hub:
    def __init__(self, settings: Settings, manager: SessionManager, policy: Policy) -> None:
        self.settings = settings
        self.manager = manager
        self.policy = policy
        self.agent = AcpAgent(manager)
        self.patience = Patience()
        self.keep_alive = KeepAlive()
        self.web = WebFiles(settings.web)
        self.connections: dict[str, Connection] = {}
        self.event_streams = 0
        """Open event streams of the daemon's surface."""
        self.began = trio.current_time()
        self._left: trio.Event | None = None
        """Set when somebody leaves, while `empty` waits for it."""

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

    def admit(self) -> GatewayError | None:
        """Room for one more ``/acp`` connection?"""
        if self.manager.draining:
            return GatewayError(ErrorKind.SHUTTING_DOWN, "The gateway is shutting down")
        limit = self.settings.max_connections
        if len(self.connections) < limit:
            return None
        if any(each.give_way() for each in tuple(self.connections.values())):
            return None
        return GatewayError(
            ErrorKind.CONNECTION_LIMIT,
            f"Too many ACP connections ({limit})",
            remedy="close a connection, or raise max_connections",
            limit=limit,
        )

    def add(self, connection: Connection) -> None:
        self.connections[connection.id] = connection

    def remove(self, connection: Connection) -> None:
        self.connections.pop(connection.id, None)
        self._told_of_leaving()

    def stream_began(self) -> None:
        self.event_streams += 1

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
