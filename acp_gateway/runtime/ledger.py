"""What the sessions of the daemon have done since it started, those that are gone included.

A session counts for itself while it lives; the ledger has what is counted for all of them, and
takes over a session's own numbers when it ends. So a total never goes down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from acp_gateway.core.event_ring import EventRing
from acp_gateway.core.tally import LONG, SHORT, Counts, Histogram, Histograms
from acp_gateway.core.usage import Usage

if TYPE_CHECKING:
    from acp_gateway.runtime.session import Session

STOP_REASONS: Final = frozenset(
    {"end_turn", "max_tokens", "max_turn_requests", "refusal", "cancelled"}
)
"""Of ACP v1; an agent's own word counts as ``other``, a turn that failed as ``error``."""

ENDINGS: Final = (
    *("client_close", "last_client_detached", "idle_timeout", "limit", "deleted"),
    *("daemon_shutdown", "agent_exited", "agent_unresponsive", "not_restored", "internal"),
)
"""Why sessions end."""


class EventTotals:
    """What the rings of sessions were given."""

    def __init__(self) -> None:
        self.kinds = Counts()
        """By ``update``, ``echo``, ``notice`` and ``extension``."""
        self.bytes = 0
        self.evicted = 0
        """Events that a ring no longer holds."""
        self.missed = 0
        """Times that a reader came too late for what its cursor needed."""

    def add(self, ring: EventRing) -> None:
        others = ring.echoes + ring.notices + ring.extensions
        self.kinds.add("update", by=ring.last_id - others)
        self.kinds.add("echo", by=ring.echoes)
        self.kinds.add("notice", by=ring.notices)
        self.kinds.add("extension", by=ring.extensions)
        self.bytes += ring.total_bytes
        self.evicted += ring.first_id - 1
        self.missed += ring.missed

    def plus(self, other: EventTotals) -> None:
        self.kinds.update(other.kinds)
        self.bytes += other.bytes
        self.evicted += other.evicted
        self.missed += other.missed


class Ledger:
    def __init__(self) -> None:
        self.created = Counts()
        """(agent, how): ``new``, ``load`` or ``resume``."""
        self.ended = Counts()
        """(agent, reason). What was created and has not ended is open."""
        self.died = Counts()
        """(agent, reason, recoverable): a session lost its agent, or failed."""
        self.restored = Counts()
        """(agent,): a session went on with a new process."""
        self.turns = Counts()
        """(agent, stop reason)."""
        self.turn_errors = Counts()
        """(agent, kind): why turns ended with an error."""
        self.turn_seconds = Histograms(LONG)
        """(agent,): of turns that ran."""
        self.queue_seconds = Histogram(SHORT + LONG[6:11])
        """What turns waited behind others before they ran."""
        self.usage: dict[str, Usage] = {}
        """By agent."""
        self.events = EventTotals()
        """Of sessions that have ended."""
        self.pauses = 0
        """Times that the agent of an ended session was not read because of a slow client."""

    # ---- sessions -------------------------------------------------------------------------------

    def session_ended(self, session: Session) -> None:
        """Before it gives up its ring."""
        self.ended.add(session.profile.name, session.end_reason or "error")
        self.events.add(session.ring)
        self.pauses += session.pauses

    # ---- turns ----------------------------------------------------------------------------------

    def turn_began(self, waited: float) -> None:
        self.queue_seconds.observe(waited)

    def turn_ended(
        self,
        agent: str,
        *,
        stop_reason: str | None = None,
        error: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """``error``: the kind, for a turn without a stop reason. ``seconds``: None when it never
        ran."""
        if error is not None:
            self.turns.add(agent, "error")
            self.turn_errors.add(agent, error)
        else:
            word = stop_reason if stop_reason in STOP_REASONS else "other"
            self.turns.add(agent, word or "other")
        if seconds is not None:
            self.turn_seconds.observe(seconds, agent)

    def used(self, agent: str, usage: Usage) -> None:
        if usage.told:
            self.usage.setdefault(agent, Usage()).add(usage)
