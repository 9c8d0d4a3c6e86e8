"""Newline-delimited framing: bytes in, whole lines out; any split gives the same lines.

Only the new piece is searched and unfinished pieces are kept in a list, so that one 64 MiB line
costs linear time.
"""

from __future__ import annotations


class LineSplitter:
    """Splits a byte stream at LF. A line longer than ``max_line`` bytes is dropped and counted."""

    def __init__(self, max_line: int) -> None:
        self.max_line = max_line
        self.dropped = 0
        """Lines that were too long, so far."""
        self._pieces: list[bytes] = []
        self._size = 0
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes, without their LF."""
        end = data.rfind(b"\n")
        if end < 0:
            self._keep(data)
            return []
        lines = data[:end].split(b"\n")
        if self._skipping:
            # The long line ends here; what follows is good again.
            self._skipping = False
            del lines[0]
        elif self._pieces:
            self._pieces.append(lines[0])
            lines[0] = b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
        if len(data) > self.max_line or (lines and len(lines[0]) > self.max_line):
            short = [line for line in lines if len(line) <= self.max_line]
            self.dropped += len(lines) - len(short)
            lines = short
        self._keep(data[end + 1 :])
        return lines

    def _keep(self, data: bytes) -> None:
        if self._skipping or not data:
            return
        self._size += len(data)
        if self._size > self.max_line:
            self._pieces.clear()
            self._size = 0
            self._skipping = True
            self.dropped += 1
        else:
            self._pieces.append(data)

    def rest(self) -> bytes:
        """What was left without an LF at end of stream."""
        rest = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return rest
