"""A user's command as a machine: its output, bounded and cut into events, and its one end.

Rules: of the output the beginning is told as it comes and the last `TAIL` bytes at the end, no more
than ``limit`` together, with a line between them that says how much was left out. What is told is
text: invalid UTF-8 becomes U+FFFD, control characters stay. A run ends exactly once; what is called
first wins.
"""

from __future__ import annotations

import codecs
from typing import Any, Final

import attrs

TAIL: Final = 32 * 1024
"""Bytes kept of the end of an output that is over its limit."""
CHUNK: Final = 32 * 1024
"""Characters of one event at most: in JSON a character may take six bytes or more."""
INTERVAL: Final = 0.05
"""Seconds between two events of one command while it keeps writing."""
HISTORY: Final = 10_000
"""Characters of an output that an agent's history gets."""


class ShellOutput:
    """What a command wrote."""

    def __init__(self, limit: int) -> None:
        self.total = 0
        """Bytes that came."""
        self._head_bytes = 0
        self._tail_size = min(TAIL, limit // 4)
        self._head_left = limit - self._tail_size
        self._tail = bytearray()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._told: list[str] = []
        self._pending: list[str] = []
        self._pending_size = 0
        self._last_told = float("-inf")
        self._tail_over = False

    @property
    def truncated(self) -> bool:
        """Something is missing between beginning and end."""
        return self._tail_over

    @property
    def full(self) -> bool:
        """Nothing that comes now is told before the end."""
        return not self._head_left

    def feed(self, data: bytes) -> None:
        """Take in what was read, at most a few pipes' worth at once."""
        self.total += len(data)
        head, rest = data[: self._head_left], data[self._head_left :]
        self._head_left -= len(head)
        self._head_bytes += len(head)
        if head:
            self._add(self._decoder.decode(head))
        if rest:
            self._tail += rest
            left_out = len(self._tail) - self._tail_size
            if left_out > 0:
                del self._tail[:left_out]
                self._tail_over = True

    def due(self, now: float) -> float | None:
        """When the next event has to go out; None: there is nothing to tell."""
        if not self._pending:
            return None
        return now if self._pending_size >= CHUNK else self._last_told + INTERVAL

    def take(self, now: float) -> list[str]:
        """The texts of the events to publish now."""
        text = "".join(self._pending)
        self._pending, self._pending_size = [], 0
        self._last_told = now
        return [text[at : at + CHUNK] for at in range(0, len(text), CHUNK)]

    def finish(self) -> None:
        """Nothing comes any more: the tail is ready to be told."""
        tail = bytes(self._tail)
        self._tail.clear()
        if self._tail_over:
            self._add(self._decoder.decode(b"", True))
            # Do not begin within a character.
            start = next((at for at in range(min(4, len(tail))) if tail[at] & 0xC0 != 0x80), 0)
            left_out = self.total - self._head_bytes - len(tail) + start
            self._add(f"\n[{left_out} bytes left out]\n{tail[start:].decode(errors='replace')}")
        else:
            self._add(self._decoder.decode(tail, True))

    @property
    def text(self) -> str:
        """Everything that is told."""
        return "".join(self._told)

    def _add(self, text: str) -> None:
        if text:
            self._told.append(text)
            self._pending.append(text)
            self._pending_size += len(text)


@attrs.define(kw_only=True)
class ShellRun:
    """One command. ``end`` is None until it has ended."""

    id: str
    command: str
    cwd: str
    client: str | None
    """Who runs it."""
    output: ShellOutput
    stopped: str | None = None
    """Why it is being ended: a sentence. None: nobody wants that."""
    end: ShellEnd | None = None

    def stop(self, why: str) -> bool:
        """Somebody wants it ended. True the first time, while it runs."""
        if self.stopped is not None or self.end is not None:
            return False
        self.stopped = why
        return True

    def settle(
        self, exit_code: int | None, signal: int | None, error: str | None = None
    ) -> ShellEnd | None:
        """It has ended; None when it had ended before."""
        if self.end is not None:
            return None
        aborted = self.stopped is not None
        self.end = ShellEnd(
            exit_code=exit_code,
            signal=signal,
            aborted=aborted,
            error=error or self.stopped,
        )
        return self.end


@attrs.frozen(kw_only=True)
class ShellEnd:
    """How a command ended. ``exit_code`` and ``signal``: one of them, or none when it never ran or
    was given up."""

    exit_code: int | None
    signal: int | None
    aborted: bool
    error: str | None = None

    def as_event(self) -> dict[str, Any]:
        """Data of ``user_shell_result`` (without the session's id)."""
        told: dict[str, Any] = {
            "exitCode": self.exit_code,
            "signal": self.signal,
            "aborted": self.aborted,
        }
        return told if self.error is None else {**told, "error": self.error}


def for_history(text: str) -> str:
    """An output as an agent's history gets it: its beginning and its end."""
    if len(text) <= HISTORY:
        return text
    mark = "\n[…]\n"
    half = (HISTORY - len(mark)) // 2
    return f"{text[:half]}{mark}{text[-half:]}"
