"""The numbered events of one session, kept for live delivery and for replay alike.

Rules: ids start at 1 and have no gaps. Replay and live delivery are the same read with a different
cursor. Nothing after ``floor`` (the slowest progressing reader) is dropped; beyond it the newest
``max_events`` / ``max_bytes`` are kept.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from enum import IntEnum
from operator import attrgetter
from typing import Final, TypeAlias

import msgspec

from acp_gateway.wire.large_line import Pieces

Framing: TypeAlias = Callable[[Sequence["Record"]], list[bytes]]
"""Records as a transport sends them: bytes to be written one behind the other."""

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


class Record(msgspec.Struct, gc=False, eq=False):
    """One event. ``data`` is the ACP notification as JSON bytes without a line end, of a large one
    in pieces.

    A struct that the cyclic garbage collector never looks at: a ring holds thousands.
    """

    kind: Kind
    name: str
    """The update kind (``agent_message_chunk`` …), the event type of a notice, or the method of
    an agent's extension notification (begins with ``_``)."""
    data: bytes | Pieces
    time: float
    """Unix time in seconds."""
    prompt_id: str | None = None
    origin: str | None = None
    """The connection that sent what is echoed; it does not get the echo back."""
    client: str | None = None
    """Id of the client that caused it; None for anonymous ones and the gateway itself."""
    who: str | None = None
    """Name of that client's identity, if it has one."""
    id: int = 0
    end: int = 0
    """Bytes of all records up to and with this one."""

    @property
    def line(self) -> bytes:
        """``data`` as one; a large one is copied."""
        data = self.data
        return data if isinstance(data, bytes) else data.join()


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
        self.first_id = 1
        """Id of the oldest kept record; ``last_id + 1`` when none is kept."""
        self.total_bytes = 0
        """Bytes ever appended."""
        self.echoes = self.notices = self.extensions = 0
        """Records of these kinds ever appended; the others are updates."""
        self.missed = 0
        """Times that a reader came too late for what follows its cursor."""
        self._on_evict = on_evict
        self._records: list[Record] = []
        self._evicted_bytes = 0
        self._owned: list[int] = []
        """Ids of kept records that have an origin; few."""
        self._joined: dict[tuple[Framing, int, int], bytes] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def kept_bytes(self) -> int:
        return self.total_bytes - self._evicted_bytes

    @property
    def full(self) -> bool:
        return len(self) > self.max_events or self.kept_bytes > self.max_bytes

    def append(self, record: Record) -> int:
        """Number the record and keep it. Does not evict: the caller knows the floor."""
        self.last_id = record.id = self.last_id + 1
        self.total_bytes = record.end = self.total_bytes + len(record.data)
        self._records.append(record)
        if record.origin is not None:
            self._owned.append(record.id)
        if record.kind is Kind.ECHO:
            self.echoes += 1
        elif record.kind is Kind.NOTICE:
            if record.name.startswith("_"):
                self.extensions += 1
            else:
                self.notices += 1
        return record.id

    def extend(
        self,
        lines: Sequence[bytes | Pieces],
        name: str,
        time: float,
        prompt_id: str | None,
        client: str | None,
        who: str | None = None,
    ) -> int:
        """`append` for a run of the agent's updates that differ in nothing but their lines; gives
        their bytes."""
        number, end, update = self.last_id, self.total_bytes, Kind.UPDATE
        self._records += [
            Record(
                update,
                name,
                line,
                time,
                prompt_id,
                None,
                client,
                who,
                number := number + 1,
                end := end + len(line),
            )
            for line in lines
        ]
        grown = end - self.total_bytes
        self.last_id, self.total_bytes = number, end
        return grown

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
        self.first_id += count
        while self._owned and self._owned[0] <= evicted[-1].id:
            del self._owned[0]
        if self._on_evict is not None:
            self._on_evict(evicted)

    def emptied(self) -> EventRing:
        """One that stands where this one ends and keeps nothing."""
        ring = EventRing(self.max_events, self.max_bytes)
        ring.last_id, ring.first_id = self.last_id, self.last_id + 1
        ring.total_bytes = ring._evicted_bytes = self.total_bytes
        return ring

    def lag_bytes(self, cursor: int) -> int:
        """Bytes of kept records behind ``cursor``."""
        if cursor >= self.last_id:
            return 0
        if cursor < self.first_id:
            return self.kept_bytes
        return self.total_bytes - self._start_of(cursor)

    def stop_within(self, start: int, budget: int) -> int:
        """The last id of a read behind ``start`` that has at most ``budget`` bytes; one record
        always passes."""
        if start >= self.last_id:
            return self.last_id
        fitting = bisect_right(self._records, self._start_of(start) + budget, key=_END)
        return max(self.first_id + fitting - 1, max(start + 1, self.first_id))

    def _start_of(self, cursor: int) -> int:
        """Bytes of all records up to ``cursor``, or before the ring."""
        at = cursor - self.first_id
        return self._evicted_bytes if at < 0 else self._records[at].end

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
    ) -> tuple[list[bytes], int]:
        """One batch of framed records after ``cursor`` and the cursor behind it.

        A batch ends at ``stop``, at a multiple of `BLOCK`, or before it has more than ``budget``
        bytes of records; one record always passes.
        ``skip_origin`` leaves out echoes of what that connection itself sent.
        """
        stop = min(stop, (cursor // BLOCK + 1) * BLOCK, self.last_id)
        if cursor >= stop:
            return [], stop
        # A batch with somebody's echo differs from reader to reader and is never shared.
        shareable = not self._owned or self._unowned(cursor, stop)
        size = self._records[stop - self.first_id].end - self._start_of(cursor)
        if size > budget:
            stop = self.stop_within(cursor, budget)
            shareable = False
        if not shareable or size > _SHARED_BYTES:
            found = self.read(cursor, stop)
            return framing([r for r in found if r.origin is None or r.origin != skip_origin]), stop
        key = (framing, cursor, stop)
        data = self._joined.get(key)
        if data is None:
            data = b"".join(framing(self.read(cursor, stop)))
            if len(data) <= _SHARED_BYTES:
                if len(self._joined) >= _SHARED_BLOCKS:
                    del self._joined[next(iter(self._joined))]
                self._joined[key] = data
        return [data] if data else [], stop

    def _unowned(self, cursor: int, stop: int) -> bool:
        return bisect_right(self._owned, cursor) == bisect_right(self._owned, stop)
