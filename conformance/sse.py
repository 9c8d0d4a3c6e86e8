"""A strict reader of server-sent events, as strict as the strictest client in the field."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One event: its data line and, when there was one, its id."""

    data: str
    id: str | None


class SseParser:
    """Splits only on LF LF and takes only ``data:`` lines; what a lax parser would forgive is
    noted in ``faults``."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.comments = 0
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that are complete now."""
        # A blank line may be cut between two chunks, so one byte is looked at again.
        searched = max(0, len(self._rest) - 1)
        self._rest += chunk
        found: list[Event] = []
        start = 0
        while (end := self._rest.find(b"\n\n", max(searched, start))) >= 0:
            event = self._event(self._rest[start:end].decode("utf-8"))
            if event is not None:
                found.append(event)
            start = end + 2
        del self._rest[:start]
        return found

    def _event(self, block: str) -> Event | None:
        if "\r" in block:
            self.faults.append("a CR in the stream (one client splits only on LF LF)")
        data: list[str] = []
        event_id = None
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            if name == "":
                self.comments += 1
            elif name == "data":
                data.append(value.removeprefix(" "))
            elif name == "id":
                event_id = value.strip()
        if not data:
            return None
        if len(data) > 1:
            self.faults.append(f"{len(data)} data lines in one event; it must be one")
        return Event("\n".join(data), event_id)
