"""The numbered events of one session, kept for live delivery and for replay alike.

Rules: ids start at 1 and have no gaps. Replay and live delivery are the same read with a different
cursor. Nothing after ``floor`` (the slowest progressing reader) is dropped; beyond it the newest
``max_events`` / ``max_bytes`` are kept.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from enum import IntEnum
from operator import attrgetter
from typing import Final, TypeAlias

Framing: TypeAlias = Callable[["Record"], bytes]

BLOCK: Final = 64
"""Reads stop at multiples of this id, so that readers at different places share joined bytes."""
_END: Final = attrgetter("end")
_SHARED_BLOCKS: Final = 8
_SHARED_BYTES: Final = 256 * 1024


class Kind(IntEnum):
    """What a record is."""

    UPDATE = 0
    """A ``session/update`` of the agent."""
    ECHO = 1
    """The user's message, published when its turn starts."""
    NOTICE = 2
    """An event of the gateway (``_qwen/notify``) or an extension notification of the agent."""


class Record:
    """One event. ``line`` is the ACP notification as JSON bytes without a line end."""

    __slots__ = ("client", "end", "id", "kind", "line", "name", "origin", "prompt_id", "time")

    def __init__(
        self,
        kind: Kind,
        name: str,
        line: bytes,
        time: float,
        prompt_id: str | None = None,
        origin: str | None = None,
        client: str | None = None,
    ) -> None:
        self.id = 0
        self.kind = kind
        self.name = name
        """The update kind (``agent_message_chunk`` …), the event type of a notice, or the method of
        an agent's extension notification (begins with ``_``)."""
        self.line = line
        self.time = time
        """Unix time in seconds."""
        self.prompt_id = prompt_id
        self.origin = origin
        """The connection that sent what is echoed; it does not get the echo back."""
        self.client = client
        """Id of the client that caused it; None for anonymous ones and the gateway itself."""
        self.end = 0
        """Bytes of all records up to and with this one."""


class EventRing:
    def __init__(
        self,
        max_events: int,
        max_bytes: int,
        on_evict: Callable[[list[Record]], None] | None = None,
    ) -> None:
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.last_id = 0
        self.total_bytes = 0
        """Bytes ever appended."""
        self._on_evict = on_evict
        self._records: list[Record] = []
        self._evicted_bytes = 0
        self._joined: dict[tuple[Framing, int, int], bytes] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def first_id(self) -> int:
        """Id of the oldest kept record; ``last_id + 1`` when none is kept."""
        return self.last_id - len(self) + 1

    @property
    def kept_bytes(self) -> int:
        return self.total_bytes - self._evicted_bytes

    @property
    def full(self) -> bool:
        return len(self) > self.max_events or self.kept_bytes > self.max_bytes

    def append(self, record: Record) -> int:
        """Number the record and keep it. Does not evict: the caller knows the floor."""
        self.last_id = record.id = self.last_id + 1
        self.total_bytes = record.end = self.total_bytes + len(record.line)
        self._records.append(record)
        return record.id

    def trim(self, floor: int, max_bytes: int | None = None) -> None:
        """Evict down to the caps, but nothing with an id above ``floor``."""
        records = self._records
        count = len(records) - self.max_events
        excess = self.kept_bytes - (self.max_bytes if max_bytes is None else max_bytes)
        if excess > 0:
            enough = bisect_left(records, self._evicted_bytes + excess, key=_END) + 1
            count = max(count, enough)
        count = min(count, floor - self.first_id + 1)
        if count <= 0:
            return
        evicted = records[:count]
        del records[:count]
        self._evicted_bytes = evicted[-1].end
        if self._on_evict is not None:
            self._on_evict(evicted)

    def lag_bytes(self, cursor: int) -> int:
        """Bytes of kept records behind ``cursor``."""
        if cursor >= self.last_id:
            return 0
        if cursor < self.first_id:
            return self.kept_bytes
        return self.total_bytes - self._at(cursor).end

    def stop_within(self, start: int, budget: int) -> int:
        """The last id of a read behind ``start`` that has at most ``budget`` bytes; one record
        always passes."""
        if start >= self.last_id:
            return self.last_id
        before = self._evicted_bytes if start < self.first_id else self._at(start).end
        fitting = bisect_right(self._records, before + budget, key=_END)
        return max(self.first_id + fitting - 1, max(start + 1, self.first_id))

    def _at(self, id: int) -> Record:
        return self._records[id - self.first_id]

    @property
    def records(self) -> list[Record]:
        """All that are kept."""
        return self._records.copy()

    def read(self, cursor: int, stop: int) -> list[Record]:
        """Kept records with ``cursor < id <= stop``."""
        offset = -self.first_id
        low = max(cursor + 1, self.first_id) + offset
        return self._records[low : max(low, min(stop, self.last_id) + offset + 1)]

    def read_framed(
        self, cursor: int, stop: int, framing: Framing, budget: int, skip_origin: str | None = None
    ) -> tuple[bytes, int]:
        """One batch of framed records after ``cursor`` and the cursor behind it.

        A batch ends at ``stop``, at a multiple of `BLOCK`, or once it has ``budget`` bytes (which
        is more than 0).
        ``skip_origin`` leaves out echoes of what that connection itself sent.
        """
        stop = min(stop, (cursor // BLOCK + 1) * BLOCK, self.last_id)
        key = (framing, cursor, stop)
        shared = self._joined.get(key)
        if shared is not None and len(shared) <= budget:
            return shared, stop
        parts: list[bytes] = []
        size = 0
        # A batch with somebody's echo differs from reader to reader and is never shared.
        shareable = True
        for record in self.read(cursor, stop):
            if size >= budget:
                stop = record.id - 1
                shareable = False
                break
            if record.origin is not None:
                shareable = False
                if record.origin == skip_origin:
                    continue
            frame = framing(record)
            size += len(frame)
            parts.append(frame)
        data = b"".join(parts)
        if shareable and size <= _SHARED_BYTES:
            if len(self._joined) >= _SHARED_BLOCKS:
                del self._joined[next(iter(self._joined))]
            self._joined[key] = data
        return data, stop
