"""The gateway as an ACP *client* towards an agent: permissions, files, Qwen's callbacks.

Every request of an agent gets exactly one answer, also when its session ends meanwhile; the one
exception is a request that the agent itself took back.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from acp_gateway.config import Settings
from acp_gateway.core.file_audit import Who
from acp_gateway.core.mediator import CancelSentinelCollision, Question, Settled
from acp_gateway.protocol.converter import read
from acp_gateway.protocol.errors import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    ErrorKind,
    GatewayError,
)
from acp_gateway.protocol.types import ReadTextFileParams, WriteTextFileParams
from acp_gateway.runtime.agent_rpc import AgentRpc
from acp_gateway.runtime.session_feed import ClientGone
from acp_gateway.runtime.tracing import begin, finish
from acp_gateway.runtime.workspace import Workspace
from acp_gateway.wire.json_codec import dumps, loads

if TYPE_CHECKING:
    from acp_gateway.runtime.session import Session

log = structlog.get_logger("acp_gateway.callbacks")

FORWARD_TIMEOUT: Final = 30.0
BIG_CONTENT: Final = 8 * 1024 * 1024


class AgentCallbacks:
    def __init__(self, session: Session, workspace: Workspace, settings: Settings) -> None:
        self._session = session
        self._workspace = workspace
        self._settings = settings
        self._questions: dict[bytes, Question] = {}
        """Open questions by the agent's own request id, as JSON: it may be any value."""

    def serve(
        self, host: AgentRpc, id: bytes, method: str, params: Any, nursery: trio.Nursery
    ) -> None:
        """A request of the agent, in wire order. Never blocks."""
        if method == "session/request_permission":
            self._ask(host, id, params, nursery)
        elif method == "craft/drainMidTurnQueue":
            self._drain(host, id)
        elif method in ("fs/read_text_file", "fs/write_text_file"):
            nursery.start_soon(self._file, host, id, method, params)
        else:
            host.respond_error(
                id,
                {
                    "code": METHOD_NOT_FOUND,
                    "message": f"Method not found: {method}",
                    "data": {"method": method},
                },
            )

    # ---- permissions ----------------------------------------------------------------------------

    def _ask(self, host: AgentRpc, id: bytes, params: Any, nursery: trio.Nursery) -> None:
        session, desk = self._session, self._session.desk
        options = params.get("options")
        usable = [
            option
            for option in (options if isinstance(options, list) else ())
            if isinstance(option, dict) and isinstance(option.get("optionId"), str)
        ]
        if not usable or not isinstance(params.get("toolCall"), dict):
            host.respond_error(
                id,
                {
                    "code": INVALID_PARAMS,
                    "message": "session/request_permission needs a toolCall and options with ids",
                },
            )
            return
        if session.over is not None:
            # Nothing is told any more behind the session's last event.
            host.respond(id, {"outcome": {"outcome": "cancelled"}})
            return
        key = dumps(loads(id))
        request_id = str(uuid.uuid4())
        meta = params.get("_meta")
        meta = dict(meta) if isinstance(meta, dict) else {}
        theirs = meta.get("qwen")
        meta["qwen"] = {**(theirs if isinstance(theirs, dict) else {}), "requestId": request_id}
        turn = session.queue.running
        parent = None if turn is None else turn.span.context
        span = begin("acp_gateway.permission", parent, **{"acp_gateway.request_id": request_id})

        def settled(question: Question) -> None:
            finish(
                span, **{"acp_gateway.outcome": question.reason.value if question.reason else None}
            )
            self._settled(host, id, key, question)

        try:
            question = desk.ask(
                session,
                request_id,
                {**params, "sessionId": session.id, "_meta": meta},
                settled,
            )
        except CancelSentinelCollision as exc:
            finish(span, "internal_error")
            host.respond_error(id, {"code": INTERNAL_ERROR, "message": str(exc)})
            return
        if not question.open:
            return
        self._questions[key] = question
        running = session.queue.running
        if running is not None and running.cancel_requested:
            desk.end(question, Settled.CANCEL)
            return
        session.touch()
        for client in tuple(session.clients.values()):
            client.ask(session, question)
        nursery.start_soon(desk.wait, question)

    def _settled(self, host: AgentRpc, id: bytes, key: bytes, question: Question) -> None:
        session = self._session
        self._questions.pop(key, None)
        if question.reason is not Settled.WITHDRAWN and host.alive:
            host.respond(id, question.result)
        for client in tuple(session.clients.values()):
            client.question_over(session, question)

    def withdraw(self, request_id: Any) -> None:
        """``$/cancel_request`` of the agent for a question it asked."""
        question = self._questions.get(dumps(request_id))
        if question is not None:
            # It still wants an answer to its request (ACP v1: the original MUST be answered).
            self._session.desk.end(question, Settled.CANCEL)

    # ---- messages for the running turn ----------------------------------------------------------

    def _drain(self, host: AgentRpc, id: bytes) -> None:
        """``craft/drainMidTurnQueue``; one refusal would switch it off in qwen for good."""
        session = self._session
        taken = session.mid_turn.take()
        host.respond(
            id,
            {
                "messages": [each.text for each in taken],
                "items": [
                    {
                        "messageId": each.message_id,
                        "displayText": each.text,
                        "content": list(each.content),
                    }
                    for each in taken
                ],
                "hasQueuedPrompt": bool(session.queue.waiting),
            },
        )
        running = session.queue.running
        if taken:
            clients = {each.client for each in taken}
            session.publish(
                "mid_turn_message_injected",
                prompt_id=None if running is None else running.prompt_id,
                client=clients.pop() if len(clients) == 1 else None,
                messages=[each.text for each in taken],
                messageIds=[each.message_id for each in taken],
                items=[{"content": list(each.content)} for each in taken],
            )
            session.wake()

    # ---- files ----------------------------------------------------------------------------------

    async def _file(self, host: AgentRpc, id: bytes, method: str, params: Any) -> None:
        session = self._session
        reading = method == "fs/read_text_file"
        limit = self._settings.max_agent_line_bytes
        running = session.queue.running
        origin = next(
            (
                client
                for client in session.clients.values()
                if running is not None and client.origin == running.origin
            ),
            None,
        )
        result: Any = None
        who = Who(session=session.id, client=None if running is None else running.client)
        try:
            if origin is not None and (origin.reads_files if reading else origin.writes_files):
                # A client that leaves meanwhile is replaced by the gateway itself.
                with trio.fail_after(FORWARD_TIMEOUT), suppress(ClientGone):
                    asked = {**params, "sessionId": session.id}
                    # Null is a success of a write (ACP v1, lenient decoding).
                    result = await origin.forward(session, method, asked) or {}
            if result is not None:
                pass
            elif reading:
                wanted = read(ReadTextFileParams, params)
                content = await self._workspace.read_text(
                    wanted.path, session.opening.roots, wanted.line, wanted.limit, who
                )
                if len(content) > BIG_CONTENT and len(dumps(content)) > limit:
                    raise GatewayError(
                        ErrorKind.FILE_TOO_LARGE,
                        f"{wanted.path} is too large for one message",
                        remedy="read it in parts, with line and limit",
                    )
                result = {"content": content}
            else:
                given = read(WriteTextFileParams, params)
                await self._workspace.write_text(
                    given.path, given.content, session.opening.roots, who
                )
                result = {}
        except GatewayError as exc:
            host.respond_error(id, exc.to_jsonrpc())
        except trio.TooSlowError:
            error = GatewayError(
                ErrorKind.FILE_ERROR, f"The client did not answer {method} in time"
            )
            host.respond_error(id, error.to_jsonrpc())
        except trio.Cancelled:
            error = GatewayError(ErrorKind.REQUEST_CANCELLED, "The session is closing")
            host.respond_error(id, error.to_jsonrpc())
            raise
        else:
            host.respond(id, result)
