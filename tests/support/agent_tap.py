"""Runs an agent and notes what goes over its pipes.

``agent_tap.py COMMAND...`` becomes COMMAND (same process id), with a child of its own on the
pipes.
``AGENT_TAP_LOG`` names the file that gets a line of JSON for each request, notification and
answer, written before the message itself goes on: ``{"pid", "to", "id", "method", "session",
"error", "outcome"}``. ``pid`` is the agent's; ``to`` is ``agent`` or ``gateway``; ``error`` is the
code of an error; ``outcome`` says that a result has such a member (it answers a permission
request).
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from typing import Any, BinaryIO


def told(message: Any, pid: int, to: str) -> bytes | None:
    """The line for a message; None for the agent's notifications, which are many."""
    if not isinstance(message, dict) or (to == "gateway" and "id" not in message):
        return None
    params, result, error = (message.get(name) for name in ("params", "result", "error"))
    note = {
        "pid": pid,
        "to": to,
        "id": message.get("id"),
        "method": message.get("method"),
        "session": params.get("sessionId") if isinstance(params, dict) else None,
        "error": error.get("code") if isinstance(error, dict) else None,
        "outcome": isinstance(result, dict) and "outcome" in result,
    }
    return json.dumps(note).encode() + b"\n"


def pump(source: BinaryIO, target: BinaryIO, log: int, pid: int, to: str) -> None:
    try:
        for line in source:
            try:
                note = told(json.loads(line), pid, to)
            except ValueError:
                note = None
            if note is not None:
                os.write(log, note)
            target.write(line)
            target.flush()
    except OSError:
        pass  # the other end is gone
    finally:
        with suppress(OSError):
            target.close()


def main() -> None:
    log = os.open(os.environ["AGENT_TAP_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    into, outof = os.pipe(), os.pipe()
    pid = os.getpid()
    if os.fork():
        os.dup2(into[0], 0)
        os.dup2(outof[1], 1)
        os.execvp(sys.argv[1], sys.argv[1:])  # the pipes' other ends close by themselves
    os.close(into[0])
    os.close(outof[1])
    gateway, agent = os.fdopen(0, "rb"), os.fdopen(into[1], "wb")
    down = threading.Thread(target=pump, args=(gateway, agent, log, pid, "agent"), daemon=True)
    down.start()
    pump(os.fdopen(outof[0], "rb"), os.fdopen(1, "wb"), log, pid, "gateway")
    os._exit(0)  # the agent has ended; the other pump may still wait for the gateway


if __name__ == "__main__":
    main()
