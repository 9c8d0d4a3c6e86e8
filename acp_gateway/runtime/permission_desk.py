"""The daemon's mediator with its effects carried out: events, answers to agents, the audit.

One for the daemon, so that a request is found from any session's URL and refused there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import structlog
import trio

from acp_gateway.config import Settings
from acp_gateway.core.mediator import (
    Answer,
    Audit,
    Decision,
    Effect,
    Mediator,
    Note,
    Policy,
    Publish,
    Question,
    Rule,
    Settled,
    Voter,
)
from acp_gateway.core.permission_audit import AuditRing
from acp_gateway.core.tally import LONG, Counts, Histogram
from acp_gateway.runtime.audit_log import AuditLog
from acp_gateway.runtime.live_settings import LiveSettings

if TYPE_CHECKING:
    from acp_gateway.runtime.session import Session

log = structlog.get_logger("acp_gateway.permissions")


class _Asked:
    def __init__(self, answer: Callable[[Question], None]) -> None:
        self.answer = answer
        self.over = trio.Event()


class PermissionTally:
    """What became of all requests since the start."""

    def __init__(self) -> None:
        self.asked = 0
        self.outcomes = Counts()
        """(policy, reason): settled ones, by `Settled`."""
        self.votes = Counts()
        """(verdict,)"""
        self.wait_seconds = Histogram(LONG[:-2])
        """From the question to its end."""

    def settled(self, question: Question, now: float) -> None:
        reason = "none" if question.reason is None else question.reason.value
        self.outcomes.add(question.rule.policy.value, reason)
        self.wait_seconds.observe(now - question.issued_at)


class PermissionDesk:
    def __init__(self, settings: Settings, shared: AuditLog | None = None) -> None:
        """``shared``: the audit of everything; ``permission_audit`` may name a file beside it."""
        self._settings = settings
        self._shared = shared
        self.rule: Rule
        """For sessions that have none of their own."""
        self.audit = AuditRing()
        self.tally = PermissionTally()
        self._mediator = Mediator()
        self._asked: dict[str, _Asked] = {}
        self._owners: dict[str, Session] = {}
        self._files: list[AuditLog]
        self._take_over()

    def follow(self, live: LiveSettings) -> None:
        names = ("permission_policy", "consensus_quorum", "permission_audit", "permission_timeout")
        live.when_changed(names, self._take_over)

    def _take_over(self) -> None:
        settings = self._settings
        policy, quorum = Policy(settings.permission_policy), settings.consensus_quorum
        self.rule = Rule(policy=policy, quorum=quorum or None)
        self._timeout = settings.permission_timeout
        shared, own = self._shared, settings.permission_audit
        self._files = [] if shared is None else [shared]
        if own is not None and (shared is None or own != shared.path):
            self._files.append(AuditLog(own))

    def forget(self, session: Session) -> None:
        """The session has ended; nothing more is published to it."""
        if self._owners.get(session.id) is session:
            del self._owners[session.id]

    # ---- asking ---------------------------------------------------------------------------------

    def ask(
        self,
        session: Session,
        request_id: str,
        params: dict[str, Any],
        answer: Callable[[Question], None],
    ) -> Question:
        """Publish and register in one step (nothing is awaited in between).

        ``answer`` is called exactly once. Raises `CancelSentinelCollision`.
        """
        running = session.queue.running
        asked = _Asked(answer)
        self._asked[request_id] = asked
        self.tally.asked += 1
        self._owners[session.id] = session
        try:
            question, effects = self._mediator.ask(
                session.id,
                request_id,
                params,
                rule=session.rule,
                originator=None if running is None else running.client,
                prompt_id=None if running is None else running.prompt_id,
                originator_party=None if running is None else running.party,
                originator_name=None if running is None else running.who,
                voters=session.parties.electorate,
                now=time.time(),
                timeout=self._timeout,
            )
        except BaseException:
            del self._asked[request_id]
            self.tally.asked -= 1  # it is the agent's mistake, and was never a request
            raise
        self._carry_out(effects)
        return question

    async def wait(self, question: Question) -> None:
        """Run the question's timer; returns once it is settled."""
        asked = self._asked.get(question.request_id)
        if asked is None:
            return
        with trio.move_on_after(question.timeout if question.timeout > 0 else float("inf")):
            await asked.over.wait()
            return
        self._carry_out(self._mediator.expire(question, now=time.time()))

    def pending(self, session_id: str | None = None) -> tuple[Question, ...]:
        return self._mediator.pending(session_id)

    def may_vote(self, question: Question, voter: Voter) -> bool:
        return self._mediator.may_vote(question, voter)

    def session_of(self, request_id: str) -> str | None:
        """The session of a request that is open or remembered."""
        return self._mediator.session_of(request_id)

    # ---- settling -------------------------------------------------------------------------------

    def vote(self, session_id: str | None, request_id: str, body: Any, voter: Voter) -> Decision:
        decision = self._mediator.vote(session_id, request_id, body, voter, now=time.time())
        self.tally.votes.add(decision.verdict.value)
        self._carry_out(decision.effects)
        return decision

    def end(self, question: Question, reason: Settled) -> None:
        self._carry_out(self._mediator.end(question, reason, now=time.time()))

    def end_session(self, session_id: str, reason: Settled) -> None:
        self._carry_out(self._mediator.end_session(session_id, reason, now=time.time()))

    def end_prompt(self, session_id: str, prompt_id: str, reason: Settled) -> None:
        self._carry_out(self._mediator.end_prompt(session_id, prompt_id, reason, now=time.time()))

    def leave(self, session_id: str, client_id: str) -> None:
        """A client has left for good (not: lost its connection)."""
        self._carry_out(self._mediator.leave(session_id, client_id, now=time.time()))

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        touched: set[str] = set()
        for effect in effects:
            if isinstance(effect, Publish):
                session = self._owners.get(effect.session_id)
                if session is not None and not session.halted:
                    session.publish(
                        effect.kind,
                        prompt_id=effect.prompt_id,
                        client=effect.originator,
                        **{**effect.data, "sessionId": session.id},
                    )
                    touched.add(effect.session_id)
            elif isinstance(effect, Answer):
                asked = self._asked.pop(effect.question.request_id, None)
                if asked is not None:
                    self.tally.settled(effect.question, time.time())
                    asked.over.set()
                    asked.answer(effect.question)
            elif isinstance(effect, Audit):
                self._record(effect.entry)
            elif isinstance(effect, Note):
                log.warning("permission_note", note=effect.text)
        for session_id in touched:
            if session_id in self._owners:
                self._owners[session_id].wake()

    def _record(self, entry: dict[str, Any]) -> None:
        self.audit.append(entry)
        for file in self._files:
            # The ring has it anyway: an answer must not fail for a full disk.
            file.write(entry)
