"""Who was asked, who voted, how it ended: audit entries, and the ring that keeps the newest.

Every entry has ``kind``, ``recordedAtMs``, ``requestId`` and ``sessionId``; members that are not
known are absent. What an agent wants to do and what a user answered to its questions is not kept.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from acp_gateway.core.question import CANCEL_REASON_META, Policy, Question, Settled, Voter

KEPT: Final = 512

Entry = dict[str, Any]


def milliseconds(seconds: float) -> int:
    """Unix time (or a duration) as the daemon's wire format has it."""
    return int(seconds * 1000)


def _entry(kind: str, question: Question, now: float, **members: Any) -> Entry:
    return {
        "kind": f"permission.{kind}",
        "recordedAtMs": milliseconds(now),
        "requestId": question.request_id,
        "sessionId": question.session_id,
        **{name: value for name, value in members.items() if value is not None},
    }


def requested(question: Question) -> Entry:
    return _entry(
        "requested",
        question,
        question.issued_at,
        originatorClientId=question.originator,
        originatorName=question.originator_name,
        policy=question.rule.policy.value,
        votersAtIssue=sorted(question.voters),
        issuedAtMs=milliseconds(question.issued_at),
        allowedOptionIds=sorted(question.option_ids),
    )


def voted(
    question: Question, voter: Voter, option: str, outcome: dict[str, Any], now: float
) -> Entry:
    """``outcome``: {kind: resolved, resolvedOptionId} or {kind: recorded, votesNeeded}."""
    return _entry(
        "voted",
        question,
        now,
        **_voter(voter),
        optionId=option,
        receivedAtMs=milliseconds(now),
        outcome=outcome,
    )


def forbidden(question: Question, voter: Voter, option: str, reason: str, now: float) -> Entry:
    return _entry("forbidden", question, now, **_voter(voter), optionId=option, reason=reason)


def timed_out(question: Question, now: float) -> Entry:
    return _entry("timeout", question, now, issuedAtMs=milliseconds(question.issued_at))


def resolved(question: Question, result: dict[str, Any], voter: Voter, now: float) -> Entry:
    """What became of a settled question, and by which rule. ``result``: the agent's answer."""
    option = result["outcome"].get("optionId")
    if option is not None:
        resolution = {"kind": "option", "optionId": option}
    else:
        resolution = {"kind": "cancelled", "reason": result["_meta"][CANCEL_REASON_META]}
    decision = _decision(question, resolution, voter, now)
    return _entry("resolved", question, now, resolution=resolution, decisionReason=decision)


def _decision(
    question: Question, resolution: dict[str, Any], voter: Voter, now: float
) -> dict[str, Any]:
    names = {"resolverClientId": voter.client_id, "resolverName": voter.name}
    resolver = {key: name for key, name in names.items() if name is not None}
    match question.reason, question.rule.policy:
        case Settled.VOTE, _ if resolution["kind"] == "cancelled":
            return {"type": "voter-cancelled", **resolver}
        case Settled.VOTE, Policy.CONSENSUS:
            option = resolution["optionId"]
            return {
                "type": "consensus-quorum",
                "resolvedOptionId": option,
                "quorum": question.quorum,
                "tally": question.tallies[option],
            }
        case Settled.VOTE, Policy.DESIGNATED if question.originator is not None:
            return {"type": "designated-originator", "originatorClientId": question.originator}
        case Settled.VOTE, Policy.LOCAL_ONLY:
            return {"type": "local-only-loopback", **resolver}
        case Settled.VOTE, _:
            return {"type": "first-responder", **resolver}
        case Settled.TIMEOUT, _:
            return {
                "type": "timeout",
                "issuedAtMs": milliseconds(question.issued_at),
                "timeoutMs": milliseconds(question.timeout),
                "firedAtMs": milliseconds(now),
            }
        case Settled.SPLIT, _:
            tallies = dict(question.tallies)
            return {"type": "consensus-split", "quorum": question.quorum, "optionTallies": tallies}
        case Settled.NO_VOTER, _:
            return {"type": "no-voter"}
        case Settled.WITHDRAWN, _:
            return {"type": "agent-withdrawn"}
        case Settled.REFUSED, _:
            return {"type": "refused"}
    closed = resolution["reason"] == "session_closed"
    return {"type": "session-closed" if closed else "agent-cancelled"}


def _voter(voter: Voter) -> dict[str, Any]:
    return {
        "clientId": voter.client_id,
        "tokenName": voter.name,
        "fromLoopback": voter.loopback,
    }


class AuditRing:
    """The newest `KEPT` entries of the daemon."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=KEPT)

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, entry: Entry) -> None:
        self._entries.append(entry)

    def query(self, session_id: str | None = None, limit: int | None = None) -> list[Entry]:
        """The newest ``limit`` entries (of one session), newest last.

        Raises `ValueError` for a limit that is not a whole number from 0 up.
        """
        if limit is not None and (type(limit) is not int or limit < 0):
            raise ValueError("limit must be a whole number, 0 or more")
        found = [
            entry
            for entry in self._entries
            if session_id is None or entry["sessionId"] == session_id
        ]
        return found if limit is None else found[max(len(found) - limit, 0) :]
