"""What a session's history was before its ring: compacted, capped, in order.

Records that leave the ring arrive raw. They are compacted only when the raw ones grow past half of
the cap or when somebody reads: runs of message chunks become one chunk, a tool call keeps its last
state, a plan replaces the one before. When even that is over the cap, the oldest go and
``truncated`` says so.
"""

from __future__ import annotations

from typing import Any, Final

from acp_gateway.core.event_ring import Kind, Record
from acp_gateway.wire.json_codec import dumps, loads

_CHUNKS: Final = frozenset({"user_message_chunk", "agent_message_chunk", "agent_thought_chunk"})
_REPLACING: Final = frozenset(
    {
        "plan",
        "available_commands_update",
        "current_mode_update",
        "config_option_update",
        "session_info_update",
        "usage_update",
    }
)
MAX_MERGED_TEXT: Final = 512 * 1024
"""Merged chunks stay below this many characters: a known client dies on a message over 1 MiB."""


class Transcript:
    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.truncated = False
        self._raw: list[Record] = []
        self._raw_bytes = 0
        self._entries: list[_Entry] = []
        self._entry_bytes = 0
        self._tools: dict[str, _Entry] = {}
        self._latest: dict[str, _Entry] = {}

    def add(self, record: Record) -> None:
        """A record that left the ring."""
        if record.kind is Kind.NOTICE:
            return
        self._raw.append(record)
        self._raw_bytes += len(record.line)
        if self._raw_bytes > self.max_bytes // 2:
            self._compact()

    def lines(self) -> list[bytes]:
        """The history as ACP notifications, oldest first."""
        self._compact()
        return [entry.line() for entry in self._entries]

    @property
    def size(self) -> int:
        return self._raw_bytes + self._entry_bytes

    def _compact(self) -> None:
        for record in self._raw:
            self._fold(record.line)
        self._raw.clear()
        self._raw_bytes = 0
        if self._entry_bytes > self.max_bytes:
            self._drop()

    def _fold(self, line: bytes) -> None:
        message = loads(line)
        params = message.get("params") or {}
        update = params.get("update") or {}
        kind = update.get("sessionUpdate")
        if kind in _CHUNKS and self._merge_chunk(kind, update, len(line)):
            return
        if kind == "tool_call_update":
            earlier = self._tools.get(str(update.get("toolCallId")))
            if earlier is not None:
                changed = {k: v for k, v in update.items() if k != "sessionUpdate"}
                earlier.update.update(changed)
                self._grow(earlier, len(line))
                return
        entry = _Entry(message, update, len(line))
        if kind in _REPLACING:
            old = self._latest.pop(kind, None)
            if old is not None and old in self._entries:
                self._entries.remove(old)
                self._entry_bytes -= old.size
            self._latest[kind] = entry
        if kind in ("tool_call", "tool_call_update"):
            self._tools[str(update.get("toolCallId"))] = entry
        self._entries.append(entry)
        self._entry_bytes += entry.size

    def _merge_chunk(self, kind: str, update: dict[str, Any], size: int) -> bool:
        last = self._entries[-1] if self._entries else None
        if last is None or last.update.get("sessionUpdate") != kind:
            return False
        content = update.get("content")
        text = content.get("text") if isinstance(content, dict) else None
        if (
            not isinstance(content, dict)
            or not isinstance(text, str)
            or content.get("type") != "text"
            or update.get("_meta")
            or last.update.get("messageId") != update.get("messageId")
            or not last.append_text(text)
        ):
            return False
        self._grow(last, len(text.encode("utf-8", "surrogatepass")))
        return True

    def _grow(self, entry: _Entry, size: int) -> None:
        entry.size += size
        self._entry_bytes += size

    def _drop(self) -> None:
        dropped = 0
        while self._entries[dropped:] and self._entry_bytes > self.max_bytes * 3 // 4:
            self._entry_bytes -= self._entries[dropped].size
            dropped += 1
        gone = {id(entry) for entry in self._entries[:dropped]}
        del self._entries[:dropped]
        self._tools = {k: e for k, e in self._tools.items() if id(e) not in gone}
        self._latest = {k: e for k, e in self._latest.items() if id(e) not in gone}
        self.truncated = True


class _Entry:
    """One message of the history; the text of a run of chunks is joined when it is read."""

    __slots__ = ("_length", "_text", "message", "size", "update")

    def __init__(self, message: dict[str, Any], update: dict[str, Any], size: int) -> None:
        self.message = message
        self.update = update
        self.size = size
        self._text: list[str] | None = None
        self._length = 0

    def append_text(self, text: str) -> bool:
        if self._text is None:
            content = self.update.get("content")
            first = content.get("text") if isinstance(content, dict) else None
            if not isinstance(first, str) or self.update.get("_meta"):
                return False
            self._text = [first]
            self._length = len(first)
        if self._length + len(text) > MAX_MERGED_TEXT:
            return False
        self._text.append(text)
        self._length += len(text)
        return True

    def line(self) -> bytes:
        if self._text is not None:
            joined = "".join(self._text)
            self._text = [joined]
            self.update["content"]["text"] = joined
        return dumps(self.message)
