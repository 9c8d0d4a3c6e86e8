"""The daemon's mediator with its effects carried out: events, answers to agents, the audit.

One for the daemon, so that a request is found from any session's URL and refused there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
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
from acp_gateway.wire.json_codec import dumps

if TYPE_CHECKING:
    from acp_gateway.runtime.session import Session

log = structlog.get_logger("acp_gateway.permissions")


class _Asked:
    def __init__(self, answer: Callable[[Question], None]) -> None:
        self.answer = answer
        self.over = trio.Event()


class PermissionDesk:
    def __init__(self, settings: Settings) -> None:
        self.rule = Rule(
            policy=Policy(settings.permission_policy), quorum=settings.consensus_quorum or None
        )
        """For sessions that have none of their own."""
        self.audit = AuditRing()
        self._mediator = Mediator()
        self._timeout = settings.permission_timeout
        self._asked: dict[str, _Asked] = {}
        self._owners: dict[str, Session] = {}
        self._file: Path | None = settings.permission_audit
        self._file_failed = False

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
        self._owners[session.id] = session
        try:
            question, effects = self._mediator.ask(
                session.id,
                request_id,
                params,
                rule=session.rule,
                originator=None if running is None else running.client,
                prompt_id=None if running is None else running.prompt_id,
                voters=session.parties.ids,
                now=time.time(),
                timeout=self._timeout,
            )
        except BaseException:
            del self._asked[request_id]
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
        if self._file is None:
            return
        try:
            with self._file.open("ab") as file:
                file.write(dumps(entry) + b"\n")
        except OSError as exc:
            if not self._file_failed:
                # Told once: the ring still has it, and an answer must not fail for a full disk.
                log.error("permission_audit_not_written", path=str(self._file), error=str(exc))
            self._file_failed = True
