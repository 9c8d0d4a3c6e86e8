"""Drives a stdio agent line by line, without any SDK, for tests of what SDKs would hide."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPTED = Path(__file__).with_name("scripted.py")
DEADLINE = 20.0

Message = dict[str, Any]


class Driver:
    """A running agent. ``messages`` are its lines so far that were taken out by a wait."""

    def __init__(self, *command: str, env: dict[str, str] | None = None) -> None:
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            start_new_session=True,
        )
        self.pid = self._child.pid
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._errors: list[bytes] = []
        self._threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self._next = 0

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.kill()
        self._child.wait(DEADLINE)
        for thread in self._threads:
            thread.join(DEADLINE)
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            if pipe and not pipe.closed:
                pipe.close()

    def _read(self) -> None:
        assert self._child.stdout
        for line in self._child.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _read_errors(self) -> None:
        assert self._child.stderr
        while data := os.read(self._child.stderr.fileno(), 1 << 16):
            self._errors.append(data)

    @property
    def stderr(self) -> str:
        return b"".join(self._errors).decode(errors="replace")

    def line(self) -> bytes:
        """The next line; empty at the end of stdout. Raises queue.Empty after the deadline."""
        return self._lines.get(timeout=DEADLINE)

    def message(self) -> Message:
        line = self.line()
        assert line, f"the agent ended its output; stderr: {self.stderr}"
        message: Message = json.loads(line)
        return message

    def raw(self, data: bytes) -> None:
        assert self._child.stdin
        self._child.stdin.write(data)
        self._child.stdin.flush()

    def send(self, method: str | None = None, **members: Any) -> None:
        if method is not None:
            members["method"] = method
        self.raw(json.dumps({"jsonrpc": "2.0", **members}).encode() + b"\n")

    def request(self, method: str, params: Any = None) -> int:
        self._next += 1
        self.send(method, id=self._next, params=params)
        return self._next

    def until(self, wanted: Callable[[Message], bool]) -> tuple[Message, list[Message]]:
        """The first message that is wanted, and those that came before it."""
        before: list[Message] = []
        while not wanted(message := self.message()):
            before.append(message)
        return message, before

    def answer(self, request_id: Any) -> tuple[Message, list[Message]]:
        """The response to a request, and the messages before it."""
        return self.until(lambda m: "method" not in m and m.get("id") == request_id)

    def call(self, method: str, params: Any = None) -> tuple[Message, list[Message]]:
        return self.answer(self.request(method, params))

    def result(self, method: str, params: Any = None) -> Any:
        response, _ = self.call(method, params)
        assert "result" in response, response
        return response["result"]

    def error(self, method: str, params: Any = None) -> tuple[int, str]:
        response, _ = self.call(method, params)
        assert "error" in response, response
        return response["error"]["code"], response["error"]["message"]

    def open(self, cwd: Path, **params: Any) -> str:
        """initialize and session/new; gives the session's id."""
        self.result("initialize", {"protocolVersion": 1, **params})
        return str(self.result("session/new", {"cwd": str(cwd), "mcpServers": []})["sessionId"])

    def prompt(self, session: str, text: str) -> int:
        blocks = [{"type": "text", "text": text}]
        return self.request("session/prompt", {"sessionId": session, "prompt": blocks})

    def close_input(self) -> None:
        assert self._child.stdin
        self._child.stdin.close()

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def wait(self, seconds: float = DEADLINE) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        return self._child.wait(seconds)


def demo(home: Path) -> Driver:
    return Driver(sys.executable, "-m", "acp_gateway.demo_agent", env={"ACP_DEMO_HOME": str(home)})


def scripted(mode: str, *argument: str) -> Driver:
    return Driver(sys.executable, str(SCRIPTED), mode, *argument)


def texts(messages: list[Message], kind: str = "agent_message_chunk") -> list[str]:
    """The texts of the chunks among the messages."""
    updates = [m["params"]["update"] for m in messages if m.get("method") == "session/update"]
    return [u["content"]["text"] for u in updates if u["sessionUpdate"] == kind]
