"""Agents that misbehave: ``python scripted.py MODE [ARGUMENT]``. The modes are in `MODES`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from typing import Any

from base import Agent, prompt_text

Params = dict[str, Any]


class Garbage(Agent):
    """Lines that are no messages stand around every message."""

    JUNK = (
        b"Debugger attached.\n",
        b"\n",
        b'{"jsonrpc": "2.0", "method": "session/upd\n',
        b"\xff\xfe\x00binary\n",
        b"[1, 2]\n",
        b'"text"\n',
        b"{}\n",
        b'{"jsonrpc": "2.0", "id": 987654, "result": {}}\n',
    )

    def send(self, **message: Any) -> None:
        self.raw(b"".join(self.JUNK))
        super().send(**message)
        self.raw(b"".join(self.JUNK))


class HangInitialize(Agent):
    def on_initialize(self, params: Params) -> None:
        return None


class HangNew(Agent):
    def on_new(self, params: Params) -> None:
        return None


class HangPrompt(Agent):
    """One chunk, then silence; a cancel changes nothing."""

    def on_prompt(self, params: Params) -> None:
        self.say(params["sessionId"], "started")


class Flood(Agent):
    """ARGUMENT (100,000) numbered chunks as fast as the pipe takes them."""

    def on_prompt(self, params: Params) -> Params:
        count = int(self.argument or 100_000)
        line = (
            '{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":%s,"update":'
            '{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"%06d "}}}}\n'
        )
        session = json.dumps(params["sessionId"])
        for first in range(0, count, 500):
            numbers = range(first, min(first + 500, count))
            self.raw("".join(line % (session, number) for number in numbers).encode())
        return {"stopReason": "end_turn"}


class ExitInitialize(Agent):
    def on_initialize(self, params: Params) -> None:
        os.write(2, b"scripted: no API key is set; run `scripted login` first\n")
        os._exit(3)


class ExitPrompt(Agent):
    def on_prompt(self, params: Params) -> None:
        self.say(params["sessionId"], "started")
        os.write(2, b"scripted: out of memory in the middle of a turn\n")
        os._exit(4)


class IgnoresEof(Agent):
    """Must be sent SIGTERM."""

    def at_eof(self) -> None:
        while True:
            signal.pause()


class IgnoresTerm(IgnoresEof):
    """Must be sent SIGKILL."""

    def run(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        super().run()


class ForksGrandchild(Agent):
    """Leaves a grandchild in its process group; its pid is on stderr as ``grandchild PID``."""

    def run(self) -> None:
        # Not on our pipes: the end of the child is still seen as the end of its output.
        none = subprocess.DEVNULL
        child = subprocess.Popen(["sleep", "1000"], stdin=none, stdout=none, stderr=none)
        os.write(2, f"grandchild {child.pid}\n".encode())
        super().run()


class HangPermission(Agent):
    """Asks for permission; even after a cancel it ends the prompt only when that is answered."""

    def on_prompt(self, params: Params) -> Params:
        session = params["sessionId"]
        answer = self.ask_permission(session)
        outcome = answer.get("result", {}).get("outcome", {})
        self.say(session, json.dumps(outcome))
        stopped = session in self.cancelled or outcome.get("outcome") == "cancelled"
        return {"stopReason": "cancelled" if stopped else "end_turn"}


class EndTurnOnCancel(Agent):
    """Works until it is cancelled, then says ``end_turn``."""

    def __init__(self, *arguments: str) -> None:
        super().__init__(*arguments)
        self._prompts: dict[str, Any] = {}

    def on_prompt(self, params: Params) -> None:
        self._prompts[params["sessionId"]] = self.request_id
        self.say(params["sessionId"], "started")

    def cancel(self, session: str) -> None:
        if session in self._prompts:
            self.send(id=self._prompts.pop(session), result={"stopReason": "end_turn"})


class StringIds(HangPermission):
    """Its own requests have UUIDs as ids."""

    def next_id(self) -> str:
        return str(uuid.uuid4())


class WrongVersion(Agent):
    version = 99


class NoLoad(Agent):
    can_load = False


class LoneSurrogate(Agent):
    """A chunk whose text is half an emoji, as JavaScript agents cut it."""

    def on_prompt(self, params: Params) -> Params:
        self.say(params["sessionId"], "half \ud83d emoji")
        return {"stopReason": "end_turn"}


class BigLine(Agent):
    """One chunk of ARGUMENT (20 Mi) bytes."""

    def on_prompt(self, params: Params) -> Params:
        self.say(params["sessionId"], "x" * int(self.argument or 20 << 20))
        return {"stopReason": "end_turn"}


class AsksDrain(Agent):
    """Asks for queued messages in mid turn; the whole response becomes a chunk."""

    def on_prompt(self, params: Params) -> Params:
        session = params["sessionId"]
        answer = self.ask("craft/drainMidTurnQueue", {"sessionId": session})
        self.say(session, json.dumps(answer))
        return {"stopReason": "end_turn"}


class ReadsFs(Agent):
    """Reads the file that the prompt names through the client; the response becomes a chunk."""

    def on_prompt(self, params: Params) -> Params:
        session = params["sessionId"]
        path = prompt_text(params).strip()
        answer = self.ask("fs/read_text_file", {"sessionId": session, "path": path})
        error = answer.get("error")
        self.say(session, json.dumps({"error": error}) if error else answer["result"]["content"])
        return {"stopReason": "end_turn"}


class StderrFlood(Agent):
    """ARGUMENT (200,000) lines on stderr during a prompt, the last one without an end."""

    def on_prompt(self, params: Params) -> Params:
        for first in range(0, int(self.argument or 200_000), 500):
            data = b"".join(b"log line %d\n" % n for n in range(first, first + 500))
            while data:
                data = data[os.write(2, data) :]
        os.write(2, b"no line end")
        self.say(params["sessionId"], "still here")
        return {"stopReason": "end_turn"}


class EarlyUpdates(Agent):
    """Updates of a new session come before the answer that names it."""

    def on_new(self, params: Params) -> Params:
        result = super().on_new(params)
        assert result is not None
        commands = [{"name": "early", "description": "came before the answer"}]
        self.update(result["sessionId"], "available_commands_update", availableCommands=commands)
        return result


class Pings(Agent):
    """Knows the extension request ``_x/ping``."""

    def on__x_ping(self, params: Params) -> Params:
        return {"pong": params}


class PrintsEnvironment(Agent):
    """Its environment, as JSON, becomes a chunk."""

    def on_prompt(self, params: Params) -> Params:
        self.say(params["sessionId"], json.dumps(dict(os.environ)))
        return {"stopReason": "end_turn"}


MODES: dict[str, type[Agent]] = {
    "polite": Agent,
    "garbage": Garbage,
    "hang-initialize": HangInitialize,
    "hang-new": HangNew,
    "hang-prompt": HangPrompt,
    "flood": Flood,
    "exit-initialize": ExitInitialize,
    "exit-prompt": ExitPrompt,
    "ignores-eof": IgnoresEof,
    "ignores-term": IgnoresTerm,
    "forks-grandchild": ForksGrandchild,
    "hang-permission": HangPermission,
    "end-turn-on-cancel": EndTurnOnCancel,
    "string-ids": StringIds,
    "wrong-version": WrongVersion,
    "no-load": NoLoad,
    "lone-surrogate": LoneSurrogate,
    "big-line": BigLine,
    "asks-drain": AsksDrain,
    "reads-fs": ReadsFs,
    "stderr-flood": StderrFlood,
    "early-updates": EarlyUpdates,
    "pings": Pings,
    "prints-environment": PrintsEnvironment,
}

if __name__ == "__main__":
    MODES[sys.argv[1]](*sys.argv[2:3]).run()
