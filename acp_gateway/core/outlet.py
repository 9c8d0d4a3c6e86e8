"""What one stream to a client still has to carry, and in which order.

One outlet is one WebSocket or one server-sent event stream. It joins three sources: the rings of
the sessions it follows (by cursor), answers and questions tied to a place in a ring (slots), and
messages tied to nothing. Rules:

1. A slot goes out exactly when its subscription's cursor has reached its watermark: no answer
   overtakes the updates that came before it, and nothing later overtakes the answer.
2. A slot is fixed (gets its watermark) in the moment its answer is known, and filled later; in
   between the ring is not read past it.
3. Memory is bounded: what waits outside the rings is counted, and over the cap the stream is
   closed by its owner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from acp_gateway.core.event_ring import EventRing, Framing

BATCH_BYTES: Final = 256 * 1024
"""A batch is closed once it has passed this size."""


class Slot:
    """The place of one answer or question in a subscription's stream."""

    __slots__ = ("data", "done", "jump", "once", "sub", "watermark")

    def __init__(self, sub: Subscription) -> None:
        self.sub: Subscription | None = sub
        self.watermark: int | None = None
        self.data: bytes | None = None
        self.done = False
        self.once = False
        """Of this reading alone: a rewind does not bring it again."""
        self.jump: int | None = None
        """Reading goes on behind this id: what lies between is not sent."""

    def fix(self, watermark: int) -> None:
        """Tie the answer to this place in the ring. Only the first call counts."""
        if self.watermark is None and self.sub is not None and not self.done:
            self.watermark = watermark
            self.sub.slots.append(self)


class Subscription:
    """One outlet's view of one session's ring."""

    def __init__(
        self,
        session_id: str,
        ring: EventRing,
        cursor: int,
        *,
        origin: str | None = None,
        history: list[bytes] | None = None,
    ) -> None:
        self.session_id = session_id
        self.ring = ring
        self.cursor = cursor
        self.origin = origin
        self.own_from = ring.last_id
        """Echoes of what this client itself sent are left out behind this id; as history they
        are wanted."""
        self.outlet: Outlet | None = None
        self.slots: deque[Slot] = deque()
        self.history: deque[bytes] = deque(history or ())
        """Lines that come before anything in the ring."""
        self.announced = cursor
        """The cursor that the client was last told."""
        self.from_start = cursor < ring.first_id
        """It was to get everything from the beginning."""
        self.read = False
        """Something of it has gone out."""
        self.ended = False
        """The session is over: the subscription goes once everything was read."""

    @property
    def lag_bytes(self) -> int:
        return self.ring.lag_bytes(self.cursor)

    @property
    def caught_up(self) -> bool:
        return self.cursor >= self.ring.last_id and not self.history


class Outlet:
    """See the module. ``wake`` is called when there may be something to collect."""

    def __init__(
        self,
        framing: Framing,
        frame: Callable[[bytes], bytes],
        wake: Callable[[], None],
        *,
        max_bytes: int,
        cursor_line: Callable[[Subscription], bytes] | None = None,
        resync_line: Callable[[Subscription], bytes] | None = None,
        remember_bytes: int = 0,
    ) -> None:
        self._framing = framing
        self._frame = frame
        self._cursor_line = cursor_line
        self._resync_line = resync_line
        self.wake = wake
        self.flush = wake
        """`wake`, for callers that expect what they published to be on its way when it returns."""
        self.max_bytes = max_bytes
        self.subs: dict[str, Subscription] = {}
        self.waiting_bytes = 0
        """Bytes that wait outside the rings."""
        self.waiting_messages = 0
        self._free: deque[bytes] = deque()
        self._remember_bytes = remember_bytes
        self._sent: deque[tuple[Subscription, int, bytes]] = deque()
        """Answers and questions that went out last, for `rewind`."""
        self._sent_bytes = 0
        self.pumped = False
        """A pump is writing this outlet to a peer."""
        self.pump: object = None
        """The pump that does; the newest one when an older has not let go yet."""
        self._blocked_since: float | None = None

    def tell_cursors(self, line: Callable[[Subscription], bytes]) -> None:
        """Tell the client behind every batch how far it has come."""
        self._cursor_line = line

    # ---- filling --------------------------------------------------------------------------------

    def add(self, sub: Subscription) -> None:
        """Follow a session; a subscription that it had before makes room."""
        self.remove(sub.session_id)
        sub.outlet = self
        self.subs[sub.session_id] = sub
        self.wake()

    def remove(self, session_id: str) -> Subscription | None:
        """Stop following a session; answers that waited for its cursor go out at once."""
        sub = self.subs.pop(session_id, None)
        if sub is not None:
            for slot in sub.slots:
                slot.sub = None
                if slot.data is not None:
                    self._free.append(slot.data)
            sub.slots.clear()
            sub.history.clear()
            sub.outlet = None
            self.wake()
        return sub

    def send(self, payload: bytes) -> None:
        """A message that is tied to no session's events."""
        self._count(payload)
        self._free.append(payload)
        self.wake()

    def fill(self, slot: Slot, payload: bytes) -> None:
        """The answer of a slot. One that was never fixed goes out at the ring's present end."""
        slot.done = True
        sub = slot.sub
        if sub is None or sub.outlet is not self:
            self.send(payload)
            return
        if slot.watermark is None:
            slot.watermark = sub.ring.last_id
            sub.slots.append(slot)
        slot.data = payload
        self._count(payload)
        self.wake()

    def abandon(self, slot: Slot) -> None:
        """The slot will not be filled; what it held back may go on."""
        slot.done = True
        self.wake()

    def recall(self, slot: Slot) -> bool:
        """Take back a message that has not gone out. False when it has."""
        if slot.data is None or slot.sub is None or slot not in slot.sub.slots:
            return False
        self.waiting_bytes -= len(slot.data)
        self.waiting_messages -= 1
        slot.data = None
        self.abandon(slot)
        return True

    def rewind(self, sub: Subscription, cursor: int) -> None:
        """The peer got nothing behind ``cursor``: send it again, with what stood among it."""
        again = [(mark, data) for each, mark, data in self._sent if each is sub and mark >= cursor]
        for mark, data in reversed(again):
            slot = Slot(sub)
            slot.watermark, slot.data, slot.done = mark, data, True
            sub.slots.appendleft(slot)
            self._count(data)
        # They are noted anew when they go out.
        self._sent = deque(each for each in self._sent if each[0] is not sub or each[1] < cursor)
        self._sent_bytes = sum(len(each[2]) for each in self._sent)
        sub.history.clear()
        sub.cursor = sub.announced = cursor
        self.wake()

    def _note_sent(self, sub: Subscription, slot: Slot, data: bytes) -> None:
        if not self._remember_bytes or slot.watermark is None or slot.once:
            return
        self._sent.append((sub, slot.watermark, data))
        self._sent_bytes += len(data)
        while self._sent_bytes > self._remember_bytes:
            self._sent_bytes -= len(self._sent.popleft()[2])

    @property
    def over(self) -> bool:
        """More waits outside the rings than may."""
        return self.waiting_bytes > self.max_bytes

    def _count(self, payload: bytes) -> None:
        self.waiting_bytes += len(payload)
        self.waiting_messages += 1

    # ---- emptying -------------------------------------------------------------------------------

    def collect(self) -> list[bytes]:
        """The next batch of framed messages; empty when there is nothing to send now."""
        parts: list[bytes] = []
        size = 0
        while self._free and size < BATCH_BYTES:
            size += self._emit(parts, self._free.popleft())
        for sub in tuple(self.subs.values()):
            if size >= BATCH_BYTES:
                break
            for part in self._follow(sub, BATCH_BYTES - size):
                parts.append(part)
                size += len(part)
            if sub.ended and sub.caught_up and not sub.slots:
                self.remove(sub.session_id)
            elif size >= BATCH_BYTES:
                # Round robin: whoever filled this batch comes last in the next one.
                self.subs[sub.session_id] = self.subs.pop(sub.session_id)
        return parts

    def _emit(self, parts: list[bytes], payload: bytes) -> int:
        self.waiting_bytes -= len(payload)
        self.waiting_messages -= 1
        framed = self._frame(payload)
        parts.append(framed)
        return len(framed)

    def _follow(self, sub: Subscription, budget: int) -> Iterator[bytes]:
        sub.read = True
        size = 0
        if sub.history:
            while sub.history and size < budget:
                line = self._frame(sub.history.popleft())
                size += len(line)
                yield line
            if sub.history:
                return
            # The client learns where its history ends and the ring begins.
            sub.announced = -1
            yield from self._cursor(sub)
        ring = sub.ring
        while size < budget:
            slot = sub.slots[0] if sub.slots else None
            stop = ring.last_id
            if slot is not None and slot.watermark is not None:
                stop = min(stop, slot.watermark)
            if sub.cursor < stop:
                if sub.cursor + 1 < ring.first_id:
                    ring.missed += 1
                    if self._resync_line is not None:
                        yield self._frame(self._resync_line(sub))
                    sub.cursor = ring.first_id - 1
                    yield from self._cursor(sub)
                    continue
                origin = sub.origin
                if sub.cursor < sub.own_from:
                    origin, stop = None, min(stop, sub.own_from)
                framed, sub.cursor = ring.read_framed(
                    sub.cursor, stop, self._framing, budget - size, origin
                )
                for data in framed:
                    size += len(data)
                    yield data
                continue
            if slot is None:
                break
            if slot.data is not None:
                sub.slots.popleft()
                if slot.jump is not None:
                    sub.cursor = max(sub.cursor, slot.jump)
                yield from self._cursor(sub)
                self.waiting_bytes -= len(slot.data)
                self.waiting_messages -= 1
                self._note_sent(sub, slot, slot.data)
                answer = self._frame(slot.data)
                size += len(answer)
                yield answer
            elif slot.done:
                sub.slots.popleft()
            else:
                break
        yield from self._cursor(sub)

    def _cursor(self, sub: Subscription) -> Iterator[bytes]:
        if self._cursor_line is not None and sub.announced < sub.cursor:
            sub.announced = sub.cursor
            yield self._frame(self._cursor_line(sub))

    # ---- progress -------------------------------------------------------------------------------

    def write_began(self, now: float) -> None:
        self._blocked_since = now

    def write_moved(self, now: float) -> None:
        """The peer took some bytes; of a write that is not the outlet's, nothing follows."""
        if self._blocked_since is not None:
            self._blocked_since = now

    def write_done(self) -> None:
        self._blocked_since = None

    @property
    def blocked(self) -> bool:
        """A write is under way."""
        return self._blocked_since is not None

    def progressing(self, now: float, stall: float) -> bool:
        """May this outlet hold up its sessions? Lag counts only while a write is blocked."""
        return self.pumped and (self._blocked_since is None or now - self._blocked_since < stall)
