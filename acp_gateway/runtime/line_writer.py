"""A thread that writes lines, so that a disk or a terminal that stands still holds up nobody.

What waits is bounded in bytes: beyond it lines are lost, and counted. They are written in the order
in which they were put, and where some are missing a line says so.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

QUEUE_BYTES: Final = 4 * 1024 * 1024
BATCH: Final = 256
"""Lines that are written at once."""

Item = TypeVar("Item")


class Target(Protocol):
    """Where lines go. Called from the writer's thread alone; must not raise."""

    def write(self, lines: Sequence[bytes]) -> None: ...
    def close(self) -> None: ...


class LineWriter(Generic[Item]):
    """``render`` makes the line of an item, without its end, in the writer's thread."""

    def __init__(
        self,
        target: Target,
        render: Callable[[Item], bytes],
        lost_line: Callable[[int], bytes],
        *,
        name: str,
        limit: int = QUEUE_BYTES,
    ) -> None:
        self._target = target
        self._render = render
        self._lost_line = lost_line
        self._limit = limit
        self._queue: deque[tuple[Item | int, int]] = deque()
        self._bytes = 0
        self._lost = 0
        self.lost = 0
        """Lines that found no room since the start."""
        self._closing = False
        self._waits = threading.Condition(threading.Lock())
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: Item, size: int) -> None:
        """Queue one line; ``size`` is about its bytes. Never blocks."""
        with self._waits:
            if self._bytes + size > self._limit or self._closing:
                self._lost += 1
                self.lost += 1
                return
            if self._lost:
                # Ahead of the first that found room again.
                self._queue.append((_Lost(self._lost), 0))
                self._lost = 0
            self._queue.append((item, size))
            self._bytes += size
            self._waits.notify()

    @property
    def waiting(self) -> int:
        """Bytes that are not written yet."""
        return self._bytes

    def close(self, timeout: float) -> bool:
        """Write what waits, for so many seconds at most. False: some of it is lost."""
        with self._waits:
            self._closing = True
            self._waits.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._waits:
                while not self._queue and not self._closing:
                    self._waits.wait()
                if not self._queue:
                    break
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            self._target.write([self._line(item) for item, _ in batch])
            with self._waits:
                self._bytes -= sum(size for _, size in batch)
        if self._lost:
            self._target.write([self._lost_line(self._lost) + b"\n"])
        self._target.close()

    def _line(self, item: Item | int) -> bytes:
        if isinstance(item, _Lost):
            return self._lost_line(item) + b"\n"
        try:
            return self._render(item) + b"\n"  # type: ignore[arg-type]
        except Exception as exc:
            # One line that cannot be made must not end the others.
            return self._lost_line(1) + b" (%b)\n" % type(exc).__name__.encode()


class _Lost(int):
    """So many lines are missing here."""
