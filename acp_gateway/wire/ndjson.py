"""Newline-delimited framing: bytes in, whole lines out; any split gives the same lines.

Only the new piece is searched and unfinished pieces are kept in a list, so that one 64 MiB line
costs linear time.
"""

from __future__ import annotations


class LineSplitter:
    """Splits a byte stream at LF. A line longer than ``max_line`` bytes is dropped and counted;
    one longer than ``large`` is not joined: see `take_large`."""

    def __init__(self, max_line: int, large: int | None = None) -> None:
        self.max_line = max_line
        self._large = max_line if large is None else large
        self._large_line: list[bytes] | None = None
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
            if self._large < self._size + len(lines[0]) <= self.max_line:
                self._large_line = self._pieces
                self._pieces = []
                del lines[0]
            else:
                lines[0] = b"".join(self._pieces)
                self._pieces.clear()
            self._size = 0
        if len(data) > self.max_line or (lines and len(lines[0]) > self.max_line):
            short = [line for line in lines if len(line) <= self.max_line]
            self.dropped += len(lines) - len(short)
            lines = short
        self._keep(data[end + 1 :])
        return lines

    def take_large(self) -> list[bytes] | None:
        """The parts of a large line that ended in the last `feed`, before the lines of that."""
        line, self._large_line = self._large_line, None
        return line

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
