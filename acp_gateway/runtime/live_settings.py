"""Settings that change while the daemon runs.

Everybody holds the one `Settings` object that the daemon was started with and reads it when a value
is needed, so a value that may change is changed in that object, here and nowhere else. Who keeps a
copy (a timer, a cap of something already made) subscribes. `Settings` stays frozen for all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

import attrs

from acp_gateway.config import Settings

AT_ONCE: Final = "at once"
NEW_SESSIONS: Final = "new sessions"
NEW_CONNECTIONS: Final = "new connections"
NEW_AGENTS: Final = "new agent processes"

LIVE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "agent": NEW_SESSIONS,
        "max_sessions": AT_ONCE,
        "strict_acp": AT_ONCE,
        "trust_loopback": AT_ONCE,
        "allow_origin": AT_ONCE,
        "permission_timeout": AT_ONCE,
        "permission_policy": NEW_SESSIONS,
        "consensus_quorum": NEW_SESSIONS,
        "permission_audit": AT_ONCE,
        "max_queued_prompts": NEW_SESSIONS,
        "prompt_deadline": AT_ONCE,
        "tls_cert": NEW_CONNECTIONS,
        "tls_key": NEW_CONNECTIONS,
        "event_ring_size": NEW_SESSIONS,
        "event_ring_bytes": NEW_SESSIONS,
        "total_ring_bytes": AT_ONCE,
        "transcript_bytes": NEW_SESSIONS,
        "handshake_timeout": AT_ONCE,
        "agent_request_timeout": AT_ONCE,
        "cancel_timeout": AT_ONCE,
        "stall_timeout": NEW_CONNECTIONS,
        "evict_timeout": NEW_CONNECTIONS,
        "initialize_timeout": NEW_CONNECTIONS,
        "linger": AT_ONCE,
        "linger_unprompted": AT_ONCE,
        "http_connection_idle": AT_ONCE,
        "shutdown_grace": AT_ONCE,
        "max_connections": AT_ONCE,
        "max_tcp_connections": AT_ONCE,
        "max_subscribers": AT_ONCE,
        "max_message_bytes": NEW_CONNECTIONS,
        "max_agent_line_bytes": NEW_AGENTS,
        "flow_pause_bytes": AT_ONCE,
        "spare_agents": AT_ONCE,
        "spare_idle": AT_ONCE,
        "max_agents": AT_ONCE,
        "sessions_per_agent": AT_ONCE,
        "agent_idle": AT_ONCE,
        "health_interval": AT_ONCE,
        "trust_workspace": AT_ONCE,
        "rate_limit": AT_ONCE,
        "rate_limit_prompt": AT_ONCE,
        "rate_limit_mutation": AT_ONCE,
        "rate_limit_read": AT_ONCE,
        "rate_limit_window": AT_ONCE,
        "max_requests_in_flight": NEW_CONNECTIONS,
        "header_timeout": NEW_CONNECTIONS,
        "enable_session_shell": AT_ONCE,
        "max_shell_commands": AT_ONCE,
        "shell_output_bytes": AT_ONCE,
        "shell_timeout": AT_ONCE,
        "shell_env": AT_ONCE,
    }
)
"""Setting -> from when a changed value counts. Every other setting needs a restart."""

_TLS: Final = frozenset({"tls_cert", "tls_key"})


@attrs.frozen
class Change:
    applied: tuple[str, ...]
    """Settings that have their new value."""
    restart: tuple[str, ...]
    """Settings that keep the old one until the daemon is started again."""


class LiveSettings:
    def __init__(self, settings: Settings) -> None:
        self.now = settings
        self.pending: tuple[str, ...] = ()
        """Settings of the configuration that the running daemon has not, since the last reload."""
        self._told: list[tuple[frozenset[str], Callable[[], None]]] = []

    def when_changed(self, names: Iterable[str], told: Callable[[], None]) -> None:
        """Call ``told`` after any of these got another value."""
        self._told.append((frozenset(names), told))

    def mixed(self, new: Settings) -> Settings:
        """What would hold after `apply`: ``new`` where it can change, the old values elsewhere."""
        return attrs.evolve(self.now, **{name: getattr(new, name) for name in self._applied(new)})

    def apply(self, new: Settings) -> Change:
        """Give every setting that can change its new value, then tell the subscribers."""
        applied = self._applied(new)
        for name in applied:
            object.__setattr__(self.now, name, getattr(new, name))
        self.pending = tuple(name for name in self._differing(new) if name not in applied)
        for wanted, told in self._told:
            if wanted.intersection(applied):
                told()
        return Change(applied, self.pending)

    def _differing(self, new: Settings) -> list[str]:
        names = [field.name for field in attrs.fields(Settings)]
        return [name for name in names if getattr(new, name) != getattr(self.now, name)]

    def _applied(self, new: Settings) -> tuple[str, ...]:
        return tuple(name for name in self._differing(new) if self._is_live(name, new))

    def _is_live(self, name: str, new: Settings) -> bool:
        if name in _TLS and (self.now.tls_cert is None or new.tls_cert is None):
            return False  # on or off: what the port speaks
        return name in LIVE
