"""One permission request of an agent: its rule, its votes, and who may decide it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import attrs

CANCEL_SENTINEL: Final = "__cancelled__"
"""Stands for a cancel vote in the audit; no option may have this id."""
CANCEL_REASON_META: Final = "qwen.daemon.permissionCancelReason"
"""In ``_meta`` of the answer to the agent: ``timeout``, ``session_closed`` (nobody attended to the
request) or ``agent_cancelled``."""
DESIGNATED_MISMATCH: Final = "designated_mismatch"
REMOTE_NOT_ALLOWED: Final = "remote_not_allowed"


class Policy(Enum):
    """Who may decide. A cancel vote is an abort and is open to everybody under each of them."""

    FIRST_RESPONDER = "first-responder"
    """Anybody, the anonymous included."""
    DESIGNATED = "designated"
    """The client whose prompt it is, with the identity that it had; anybody when the prompt was
    anonymous."""
    CONSENSUS = "consensus"
    """A quorum of the clients that were registered when it was asked, one vote each; all of one
    identity are one."""
    LOCAL_ONLY = "local-only"
    """Anybody on this machine."""


_STRICTNESS: Final = {
    Policy.FIRST_RESPONDER: 0,
    Policy.DESIGNATED: 1,
    Policy.CONSENSUS: 1,
    Policy.LOCAL_ONLY: 2,
}
"""Two of the same number protect from different things: neither stands in for the other."""


@attrs.frozen(kw_only=True)
class Rule:
    """Taken when a request is issued; a later change does not reach it."""

    policy: Policy = Policy.FIRST_RESPONDER
    quorum: int | None = None
    """For consensus; None: more than half."""

    def at_least(self, other: Rule) -> bool:
        """Is it ``other``, or stricter?"""
        if self.policy is not other.policy:
            return _STRICTNESS[self.policy] > _STRICTNESS[other.policy]
        if self.policy is not Policy.CONSENSUS or self.quorum == other.quorum:
            return True
        # Whether a number is more than half is known only when somebody asks.
        mine, theirs = self.quorum, other.quorum
        return mine is not None and theirs is not None and mine > theirs

    def quorum_of(self, voters: int) -> int:
        """Equal votes that decide, among that many voters. At least 1."""
        if self.policy is not Policy.CONSENSUS:
            return 1
        if self.quorum is None:
            return voters // 2 + 1
        return max(1, min(self.quorum, voters))


@attrs.frozen(kw_only=True)
class Voter:
    client_id: str | None = None
    """Registered in the session (the caller has checked it); None for an anonymous one."""
    loopback: bool = False
    """By the address of its socket, never by a header."""
    name: str | None = None
    """Of its identity; for events and the audit."""
    party: str | None = None
    """Its identity, where that tells it from others; see `core.identity`."""

    @property
    def elector(self) -> str | None:
        """Who it counts as under consensus: all clients of one identity are one."""
        return elector_of(self.client_id, self.party)


def elector_of(client_id: str | None, party: str | None) -> str | None:
    """Who a client counts as: its identity, where that tells it from others, else itself. No client
    id has a ``=``, so none can pass for an identity."""
    return client_id if party is None else f"={party}"


class Settled(Enum):
    """Why a request is over. The value is ``reason`` of the ``permission_resolved`` event."""

    VOTE = "vote"
    """By votes, or by one cancel vote."""
    TIMEOUT = "timeout"
    CANCEL = "cancel"
    """The turn was cancelled or has ended."""
    CLOSED = "closed"
    """The session or its agent ended."""
    WITHDRAWN = "withdrawn"
    """The agent took it back."""
    SPLIT = "split"
    """No option can reach the quorum any more."""
    NO_VOTER = "no_voter"
    """All who might have decided have left."""
    REFUSED = "refused"
    """Never asked: no option to choose, or too many open requests. Clients see nothing of it."""


@attrs.define(kw_only=True, eq=False)
class Question:
    """One ``session/request_permission`` of an agent. Only the mediator changes it."""

    request_id: str
    """Ours, never the agent's JSON-RPC id."""
    session_id: str
    params: dict[str, Any]
    """As the agent sent them, with the session id that clients know."""
    option_ids: frozenset[str]
    rule: Rule
    originator: str | None
    """The client whose prompt it belongs to."""
    originator_party: str | None = None
    """That client's identity."""
    originator_name: str | None = None
    prompt_id: str | None
    electors: Mapping[str, str]
    """The clients that were registered when it was asked, and who each counts as."""
    issued_at: float
    """Unix time, seconds."""
    timeout: float
    """Seconds; 0 for none."""
    quorum: int
    votes: dict[str, str] = attrs.field(factory=dict)
    """Under consensus: who voted (as in `electors`), and the option of its first vote."""
    left: set[str] = attrs.field(factory=set)
    """Clients that have left; a vote given before counts."""
    result: dict[str, Any] | None = None
    """For the agent, once settled."""
    reason: Settled | None = None

    @property
    def open(self) -> bool:
        return self.reason is None

    @property
    def voters(self) -> frozenset[str]:
        """The clients that were registered when it was asked."""
        return frozenset(self.electors)

    @property
    def present(self) -> frozenset[str]:
        """Who can still be heard under consensus, voted or not."""
        return frozenset(
            elector for client, elector in self.electors.items() if client not in self.left
        )

    @property
    def tallies(self) -> Counter[str]:
        return Counter(self.votes.values())

    @property
    def missing(self) -> int:
        """Votes that the leading option lacks."""
        return self.quorum - max(self.tallies.values(), default=0)

    @property
    def undecided(self) -> frozenset[str]:
        """Voters that can still vote under consensus."""
        return self.present - self.votes.keys()

    def refusal(self, voter: Voter) -> str | None:
        """Why its rule does not let ``voter`` choose an option; None when it does."""
        match self.rule.policy:
            case Policy.LOCAL_ONLY if not voter.loopback:
                return REMOTE_NOT_ALLOWED
            case Policy.DESIGNATED if self.originator not in (None, voter.client_id):
                return DESIGNATED_MISMATCH
            case Policy.DESIGNATED if self.originator_party not in (None, voter.party):
                return DESIGNATED_MISMATCH
            case Policy.CONSENSUS if voter.elector not in self.present:
                return DESIGNATED_MISMATCH
        return None


@attrs.frozen
class Ballot:
    """What a client answered."""

    option: str | None
    """None: a cancel vote."""
    extras: dict[str, Any]
    """What rides along to the agent; everything else that a voter sends is dropped."""

    @classmethod
    def read(cls, body: Any) -> Ballot | None:
        """``{outcome: {outcome: selected, optionId} | {outcome: cancelled}, answers?,
        expectedPlanExecutionMode?, _meta?}``; None when the outcome is malformed."""
        match body:
            case {"outcome": {"outcome": "cancelled"}}:
                return cls(None, _extras(body))
            case {"outcome": {"outcome": "selected", "optionId": str(option)}} if option:
                return cls(option, _extras(body))
        return None


def _extras(body: dict[str, Any]) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    match body:
        case {"answers": dict(answers)} if all(
            isinstance(text, str) for pair in answers.items() for text in pair
        ):
            extras["answers"] = answers
    match body:
        case {"expectedPlanExecutionMode": str(mode)}:
            extras["expectedPlanExecutionMode"] = mode
    match body:
        case {"_meta": dict(meta)}:
            extras["_meta"] = meta
    return extras
