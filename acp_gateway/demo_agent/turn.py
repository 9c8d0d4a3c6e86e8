"""One running prompt: a thread that sends updates, asks the client and can be cancelled.

Rule 1: after a cancel nothing more of the turn is sent but the end of an open tool call and the
answer ``cancelled``. Rule 2: every wait of a turn ends at a cancel.
"""

from __future__ import annotations

import os
import threading

from acp_gateway.demo_agent import script
from acp_gateway.demo_agent.link import INTERNAL_ERROR, Link, Reply, RpcError, encode, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from acp_gateway.demo_agent.store import Session, Store

_OPTIONS = (
    ("allow-once", "Write it", "allow_once"),
    ("allow-always", "Write it, and do not ask again in this session", "allow_always"),
    ("reject-once", "Do not write", "reject_once"),
)
_BATCH_BYTES = 1 << 16


class Cancelled(Exception):
    """The turn was cancelled; only `Turn` catches it."""


class Turn:
    """The turn of one ``session/prompt`` request."""

    def __init__(
        self,
        link: Link,
        store: Store,
        session: Session,
        client_fs: dict[str, Any],
        request_id: Any,
        prompt: list[dict[str, Any]],
        ended: Callable[[str], None],
    ) -> None:
        self.session = session
        self.prompt = prompt
        self.client_fs = client_fs
        self.request_id = request_id
        self.cancelled = threading.Event()
        self._link = link
        self._store = store
        self._ended = ended
        self._lock = threading.Lock()
        self._asked: Reply | None = None
        self._open_tool: str | None = None
        self._thread = threading.Thread(target=self._run, name="turn", daemon=True)
        self.start = self._thread.start

    # -- called by the main thread

    def cancel(self) -> None:
        """Ends the turn soon; it answers ``cancelled`` by itself."""
        with self._lock:
            self.cancelled.set()
            if self._asked:
                self._asked.settled.set()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    # -- called by the script, in the turn's thread

    def update(self, variant: str, /, **fields: Any) -> None:
        """Sends one ``session/update`` and keeps it in the history."""
        self._link.wait_room(self.cancelled)
        if self.cancelled.is_set():
            raise Cancelled
        self._send({"sessionUpdate": variant, **fields})

    def say(self, text: str, message_id: str, kind: str = "agent_message_chunk") -> None:
        """Sends one chunk of text."""
        self.update(kind, content={"type": "text", "text": text}, messageId=message_id)

    def message_id(self) -> str:
        return os.urandom(8).hex()

    def sleep(self, seconds: float) -> None:
        if self.cancelled.wait(seconds):
            raise Cancelled

    def chunks(self, count: int, size: int) -> None:
        """Sends numbered chunks in joined writes, as one message in the history."""
        message_id = self.message_id()
        mark = "@@"
        update = {
            "sessionUpdate": "agent_message_chunk",
            "content": {"type": "text", "text": mark},
            "messageId": message_id,
        }
        params = {"sessionId": self.session.id, "update": update}
        line = encode({"jsonrpc": "2.0", "method": "session/update", "params": params})
        head, tail = line.split(mark.encode())
        step = max(1, _BATCH_BYTES // (len(head) + size + len(tail)))
        for first in range(0, count, step):
            self._link.wait_room(self.cancelled)
            if self.cancelled.is_set():
                raise Cancelled
            texts = [
                f"{number:06d} ".ljust(size, "x")
                for number in range(first, min(first + step, count))
            ]
            whole = {"type": "text", "text": "".join(texts)}
            with self.session.lock:
                self.session.record({**update, "content": whole})
                self._link.write(b"".join(head + text.encode() + tail for text in texts))

    def ask(self, method: str, params: dict[str, Any]) -> Any:
        """The client's result. Raises `RpcError` for its error."""
        with self._lock:
            if self.cancelled.is_set():
                raise Cancelled
            reply = self._asked = self._link.ask(method, {"sessionId": self.session.id, **params})
        reply.settled.wait()
        with self._lock:
            self._asked = None
        if reply.message is None:
            self._link.withdraw(reply)
            raise Cancelled
        if (error := reply.message.get("error")) is not None:
            text = error.get("message") if isinstance(error, dict) else error
            raise RpcError(INTERNAL_ERROR, str(text))
        return reply.message.get("result")

    def tool_started(self, kind: str, title: str, path: str, **fields: Any) -> str:
        """Opens a tool call in progress; gives its id."""
        self._open_tool = call = f"call-{os.urandom(6).hex()}"
        self.update(
            "tool_call",
            toolCallId=call,
            title=title,
            kind=kind,
            status="pending",
            locations=[{"path": path}],
            **fields,
        )
        return call

    def tool_ended(self, call: str, status: str, *content: dict[str, Any]) -> None:
        self.update("tool_call_update", toolCallId=call, status=status, content=list(content))
        self._open_tool = None

    def may_write(self, call: str, title: str, path: str, diff: dict[str, Any]) -> bool:
        """Asks for permission where the mode wants it. A ``cancelled`` outcome ends the turn."""
        session = self.session
        if session.mode == "auto" or session.allow_always:
            return True
        result = self.ask(
            "session/request_permission",
            {
                "toolCall": {
                    "toolCallId": call,
                    "title": title,
                    "kind": "edit",
                    "status": "pending",
                    "locations": [{"path": path}],
                    "content": [diff],
                },
                "options": [{"optionId": i, "name": n, "kind": k} for i, n, k in _OPTIONS],
            },
        )
        outcome = result.get("outcome") if isinstance(result, dict) else None
        if not isinstance(outcome, dict) or outcome.get("outcome") != "selected":
            raise Cancelled
        chosen = outcome.get("optionId")
        session.allow_always = chosen == "allow-always"
        return chosen in ("allow-once", "allow-always")

    def crash(self) -> None:
        """Ends the process in the middle of the turn, with status 70."""
        log("crashing because the prompt asked for it")
        self._link.drain(1)
        os._exit(70)

    # -- the thread

    def _send(self, update: dict[str, Any]) -> None:
        with self.session.lock:
            self.session.record(update)
            self._link.notify("session/update", {"sessionId": self.session.id, "update": update})

    def _run(self) -> None:
        session = self.session
        answer: Any = None
        try:
            self._remember_prompt()
            script.play(self)
            answer = self._result("end_turn")
        except Cancelled:
            if self._open_tool:
                self._send(
                    {
                        "sessionUpdate": "tool_call_update",
                        "toolCallId": self._open_tool,
                        "status": "failed",
                    }
                )
            answer = self._result("cancelled")
        except Exception:
            import traceback

            log(traceback.format_exc())
        session.updated = max(session.updated, script.now())
        self._store.save(session)
        self._ended("error" if answer is None else answer["stopReason"])
        # Free before the answer: whoever reads the answer may send the next prompt at once.
        session.turn = None
        if answer is None:
            error = RpcError(INTERNAL_ERROR, "the turn failed inside the agent, see its stderr")
            self._link.refuse(self.request_id, error)
        else:
            self._link.answer(self.request_id, answer)

    def _remember_prompt(self) -> None:
        session = self.session
        message_id = self.message_id()
        with session.lock:
            for block in self.prompt:
                session.record(
                    {
                        "sessionUpdate": "user_message_chunk",
                        "content": block,
                        "messageId": message_id,
                    }
                )
        text = script.prompt_text(self.prompt)
        if session.title is None and text and not text.startswith("/"):
            session.title = text.splitlines()[0][:60]
            self.update("session_info_update", title=session.title)
        self._store.save(session)

    def _result(self, stop_reason: str) -> dict[str, Any]:
        sent = len(script.prompt_text(self.prompt)) // 4
        used = script.tokens_used(self.session)
        return {
            "stopReason": stop_reason,
            "usage": {
                "inputTokens": sent,
                "outputTokens": max(0, used - sent),
                "totalTokens": max(used, sent),
            },
        }
