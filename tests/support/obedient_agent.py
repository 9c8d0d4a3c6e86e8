"""An agent that does what each prompt says: ``python obedient_agent.py [FLAG…]``.

Every message it receives is appended to the file AGENT_LOG as one JSON line ``{"pid", "message"}``.
The words of a prompt are in `Obedient.on_prompt`, the flags in `Obedient.__init__`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "agents"))

from base import Agent, Failure, prompt_text

Params = dict[str, Any]


class Obedient(Agent):
    def __init__(self, *flags: str) -> None:
        super().__init__()
        self._log = os.open(os.environ["AGENT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._flags = flags
        self.can_load = "no-load" not in flags
        self._open: dict[str, Any] = {}

    def read(self) -> Params | None:
        message = super().read()
        if message is not None:
            line = json.dumps({"pid": os.getpid(), "message": message})
            os.write(self._log, line.encode() + b"\n")
        return message

    def on_initialize(self, params: Params) -> Params | None:
        if "deep" in self._flags:
            self.raw(b"[" * 200_000 + b"\n")
        if "fail-start" in self._flags:
            raise Failure(-32603, "no start today")
        result = super().on_initialize(params)
        assert result is not None
        sessions = result["agentCapabilities"]["sessionCapabilities"]
        sessions.update({"list": {}, "delete": {}, "fork": {}})
        return result

    def on_authenticate(self, params: Params) -> Params | None:
        return None if "hang-authenticate" in self._flags else {}

    def on_new(self, params: Params) -> Params | None:
        if "hang-new" in self._flags:
            return None
        return super().on_new(params)

    def on_load(self, params: Params) -> Params | None:
        if "hang-load" in self._flags:
            return None
        if "refuse-load" in self._flags:
            raise Failure(-32603, "the file is broken")
        self.say(params["sessionId"], "replayed")
        return {}

    def on_list(self, params: Params) -> Params:
        return {"sessions": [{"sessionId": "stored-1", "cwd": "/stored"}]}

    def on_delete(self, params: Params) -> Params:
        return {}

    def on_fork(self, params: Params) -> Params:
        return {"sessionId": params["sessionId"] + "-fork"}

    def on_set_mode(self, params: Params) -> Params:
        return {}

    def on_prompt(self, params: Params) -> Params | None:
        session = params["sessionId"]
        word, _, rest = prompt_text(params).partition(" ")
        if word == "hang":  # never ends, a cancel changes nothing
            self.say(session, "started")
            return None
        if word == "wait":  # until it is cancelled
            self._open[session] = self.request_id
            self.say(session, "started")
            return None
        if word == "crash":
            os.write(2, b"token=verysecretvalue went wrong\n")
            self.say(session, "started")
            os._exit(7)
        if word == "ask":
            answer = self.ask_permission(session)
            self.say(session, json.dumps(answer.get("result", answer.get("error"))))
        elif word == "chunks":
            count, size = (int(each) for each in rest.split())
            lines = [
                json.dumps(
                    {
                        "jsonrpc": "2.0",
                        "method": "session/update",
                        "params": {
                            "sessionId": session,
                            "update": {
                                "sessionUpdate": "agent_message_chunk",
                                "content": {"type": "text", "text": f"{n:06d}".ljust(size, ".")},
                            },
                        },
                    }
                )
                for n in range(count)
            ]
            self.raw("".join(line + "\n" for line in lines).encode())
        elif word == "raw":  # any line, then the answer
            self.raw(rest.replace("SESSION", session).encode() + b"\n")
        elif word == "deep":
            self.raw(b'{"jsonrpc":"2.0","method":"x","params":' + b"[" * 200_000 + b"\n")
        else:
            self.say(session, f"you said {prompt_text(params)}")
        return {"stopReason": "end_turn"}

    def cancel(self, session: str) -> None:
        if session in self._open:
            self.send(id=self._open.pop(session), result={"stopReason": "end_turn"})


if __name__ == "__main__":
    Obedient(*sys.argv[1:]).run()
