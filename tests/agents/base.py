"""The tiny part that the scripted test agents share: a single-threaded ACP v1 stdio agent."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


class Failure(Exception):
    """An error response: (code, message)."""


class Agent:
    """Answers politely and at once; a scripted agent overrides what it does badly.

    A handler gives the result, or None when it has answered (or will never answer) by itself.
    """

    version = 1
    can_load = True

    def __init__(self, argument: str | None = None) -> None:
        self.argument = argument
        self.cancelled: set[str] = set()
        self.request_id: Any = None
        self._sessions = 0
        self._asked = 0

    # -- output

    def raw(self, data: bytes) -> None:
        while data:
            data = data[os.write(1, data) :]

    def send(self, **message: Any) -> None:
        self.raw(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def update(self, session: str, kind: str, **fields: Any) -> None:
        self.send(
            method="session/update",
            params={"sessionId": session, "update": {"sessionUpdate": kind, **fields}},
        )

    def say(self, session: str, text: str) -> None:
        self.update(session, "agent_message_chunk", content={"type": "text", "text": text})

    def next_id(self) -> int | str:
        self._asked += 1
        return self._asked

    def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Sends a request and handles other messages until its response is there."""
        request_id = self.next_id()
        self.send(id=request_id, method=method, params=params)
        while True:
            message = self.read()
            if message is None:
                sys.exit(0)
            if "method" not in message and message.get("id") == request_id:
                return message
            self.handle(message)

    def ask_permission(self, session: str) -> dict[str, Any]:
        return self.ask(
            "session/request_permission",
            {
                "sessionId": session,
                "toolCall": {"toolCallId": "call-1", "title": "Write", "kind": "edit"},
                "options": [
                    {"optionId": "yes", "name": "Yes", "kind": "allow_once"},
                    {"optionId": "no", "name": "No", "kind": "reject_once"},
                ],
            },
        )

    # -- input

    def read(self) -> dict[str, Any] | None:
        line = sys.stdin.buffer.readline()
        return json.loads(line) if line else None

    def run(self) -> None:
        while (message := self.read()) is not None:
            self.handle(message)
        self.at_eof()

    def at_eof(self) -> None:
        """The default is to exit."""

    def handle(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params") or {}
        if method == "session/cancel":
            self.cancelled.add(params["sessionId"])
            self.cancel(params["sessionId"])
        if "id" not in message or method is None:
            return
        name = "on_" + method.replace("session/", "").replace("/", "_")
        handler = getattr(self, name, None)
        self.request_id = message["id"]
        if method == "session/prompt":
            self.cancelled.discard(params["sessionId"])
        try:
            if handler is None:
                raise Failure(-32601, f"no method {method}")
            result = handler(params)
        except Failure as error:
            code, text = error.args
            self.send(id=message["id"], error={"code": code, "message": text})
        else:
            if result is not None:
                self.send(id=message["id"], result=result)

    # -- methods

    def on_initialize(self, params: dict[str, Any]) -> dict[str, Any] | None:
        return {
            "protocolVersion": self.version,
            "agentInfo": {"name": "scripted", "version": "1"},
            "agentCapabilities": {
                "loadSession": self.can_load,
                "sessionCapabilities": {"resume": {}, "close": {}} if self.can_load else {},
            },
            "authMethods": [],
        }

    def on_new(self, params: dict[str, Any]) -> dict[str, Any] | None:
        self._sessions += 1
        return {"sessionId": f"scripted-{os.getpid()}-{self._sessions}"}

    def on_load(self, params: dict[str, Any]) -> dict[str, Any] | None:
        if not self.can_load:
            raise Failure(-32601, "no method session/load")
        self.say(params["sessionId"], "loaded")
        return {}

    def on_resume(self, params: dict[str, Any]) -> dict[str, Any] | None:
        return {}

    def on_close(self, params: dict[str, Any]) -> dict[str, Any] | None:
        return {}

    def on_prompt(self, params: dict[str, Any]) -> dict[str, Any] | None:
        self.say(params["sessionId"], "still here")
        return {"stopReason": "end_turn"}

    def cancel(self, session: str) -> None:
        """Called at session/cancel; most scripts answer every prompt at once."""


def prompt_text(params: dict[str, Any]) -> str:
    return "".join(block.get("text", "") for block in params["prompt"])
