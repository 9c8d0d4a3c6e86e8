"""What a session's history was before its ring: compacted, capped, in order.

What leaves the ring is folded at once: runs of message chunks become one chunk, a tool call keeps
its last state, a plan replaces the one before. When even that is over the cap, the oldest go and
``truncated`` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Final, cast

from acp_gateway.core.event_ring import Kind, Record
from acp_gateway.protocol.events import USER_SHELL_COMMAND, USER_SHELL_RESULT
from acp_gateway.wire.json_codec import JsonError, dumps, loads

_CHUNKS: Final = frozenset({"user_message_chunk", "agent_message_chunk", "agent_thought_chunk"})
_STATES: Final = frozenset(
    {
        "available_commands_update",
        "current_mode_update",
        "config_option_update",
        "session_info_update",
        "usage_update",
    }
)
"""Each replaces the one before; they stand beside the conversation and do not end a run of chunks
(some agents tell their usage with every chunk)."""
_REPLACING: Final = _STATES | {"plan"}
_OUTPUT: Final = "shell_output"
_TOLD: Final = frozenset({USER_SHELL_COMMAND, USER_SHELL_RESULT})
"""Notices that are part of the conversation: a user's command and its end, around its output."""
_BLOCK: Final = 64
"""So many records are looked at together, if they are small."""
_BLOCK_BYTES: Final = 256 * 1024
_WHOLE: Final = 64 * 1024
"""A chunk with more bytes is kept apart and not merged."""
MAX_MERGED: Final = 512 * 1024
"""Bytes of a merged message: a known client dies on a message over 1 MiB."""


class Transcript:
    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.truncated = False
        """Something that was said is no longer here."""
        self._entries: dict[int, _Entry] = {}
        """In order; a dict, so that one in the middle goes without moving the others."""
        self._entry_bytes = 0
        self._next_key = 0
        self._tools: dict[str, _Entry] = {}
        self._latest: dict[str, _Entry] = {}
        self._run: _Entry | None = None
        """The chunk that the next one may be merged into."""

    def add(self, records: Sequence[Record]) -> None:
        """Records that left the ring, oldest first."""
        told = [each for each in records if each.kind is not Kind.NOTICE or each.name in _TOLD]
        changed: set[_Entry] = set()
        start = 0
        while start < len(told):
            start += self._merge(told[start : start + _BLOCK], changed)
        for entry in changed:
            # A tool call sends its output again and again: only the last state counts.
            self._resize(entry, len(entry.line()))
        if self._entry_bytes > self.max_bytes:
            self._drop()

    def lines(self) -> list[bytes]:
        """The history as ACP notifications, oldest first."""
        return [entry.line() for entry in self._entries.values()]

    def entries(self) -> list[Record]:
        """The history as records; each has the id and the time of the last one in it."""
        return [entry.as_record() for entry in self._entries.values()]

    @property
    def size(self) -> int:
        """Bytes held, at most ``max_bytes``."""
        return self._entry_bytes

    def _merge(self, block: list[Record], changed: set[_Entry]) -> int:
        """Take in records from the beginning of the block; gives how many, at least one.

        Most chunks of a run differ in nothing but their text: they are joined as bytes, many at
        once, and not decoded. What is not so goes through `_fold`.
        """
        run, first = self._run, block[0]
        if first.kind is Kind.NOTICE:
            self._put_notice(first)
            return 1
        if not isinstance(first.data, bytes) or (
            len(first.data) > _WHOLE and first.name in _CHUNKS
        ):
            self._put_whole(first)
            return 1
        if run is not None and first.name in _CHUNKS:
            if block[-1].end - first.end > _BLOCK_BYTES:
                block = block[:1]
            # What is not bytes is large, and alone in its block.
            lines = cast("list[bytes]", [record.data for record in block])
            alike, grown = run.append_like(lines)
            if alike:
                run.last = block[alike - 1]
                self._resize(run, run.size + grown)
                return alike
        self._fold(first, changed)
        return 1

    def _put_whole(self, record: Record) -> None:
        """Keep a large record as it is: to decode it would hold up every session."""
        size = len(record.data)
        if size > self.max_bytes // 4:
            self.truncated = True  # one message is not worth all that was said before
            return
        self._run = None
        if record.name not in _CHUNKS:
            self._tools.clear()  # what follows may be about the tool call in there
        self._entries[self._next_key] = _Entry(self._next_key, None, {}, record)
        self._next_key += 1
        self._entry_bytes += size

    def _put_notice(self, record: Record) -> None:
        self._run = None
        entry = _Entry(self._next_key, None, {}, record)
        self._entries[entry.key] = entry
        self._next_key += 1
        self._entry_bytes += entry.size

    def _fold(self, record: Record, changed: set[_Entry]) -> None:
        line = record.line
        try:
            message = loads(line)
            update = message["params"]["update"]
        except (JsonError, KeyError, TypeError):
            self.truncated = True  # nested too deeply to be kept
            return
        kind = update.get("sessionUpdate")
        if (kind in _CHUNKS or kind == _OUTPUT) and self._run is not None:
            grown = self._run.merge(update) if kind in _CHUNKS else self._run.merge_output(update)
            if grown is not None:
                self._run.last = record
                self._resize(self._run, self._run.size + grown)
                return
        entry = _Entry(self._next_key, message, update, record)
        if kind in _CHUNKS:
            entry.look_around(line)
        if kind in ("tool_call", "tool_call_update"):
            tool = str(update.get("toolCallId"))
            earlier = self._tools.get(tool)
            if kind == "tool_call_update" and earlier is not None:
                earlier.amend(update)
                earlier.last = record
                changed.add(earlier)
                return
            self._tools[tool] = entry
        if kind in _REPLACING:
            old = self._latest.get(kind)
            if old is not None:
                del self._entries[old.key]
                self._entry_bytes -= old.size
            self._latest[kind] = entry
        if kind not in _STATES:
            self._run = entry
        self._entries[entry.key] = entry
        self._next_key += 1
        self._entry_bytes += entry.size

    def _resize(self, entry: _Entry, size: int) -> None:
        self._entry_bytes += size - entry.size
        entry.size = size

    def _drop(self) -> None:
        for key in tuple(self._entries):
            if self._entry_bytes <= self.max_bytes * 3 // 4:
                break
            self._entry_bytes -= self._entries.pop(key).size
        kept = self._entries
        self._tools = {name: each for name, each in self._tools.items() if each.key in kept}
        self._latest = {name: each for name, each in self._latest.items() if each.key in kept}
        if self._run is not None and self._run.key not in kept:
            self._run = None
        self.truncated = True


class _Entry:
    """One message of the history; the text of a run of chunks is joined when it is read.

    Without a ``message`` it is its record, unread.
    """

    __slots__ = ("_around", "_text", "key", "last", "message", "size", "update")

    def __init__(
        self, key: int, message: dict[str, Any] | None, update: dict[str, Any], record: Record
    ) -> None:
        self.key = key
        self.message = message
        self.update = update
        self.last = record
        """The newest record in it."""
        self.size = len(record.data)
        self._text: list[bytes] = []
        """What was appended, encoded."""
        self._around = (b"\n", b"")  # no line begins so

    def look_around(self, line: bytes) -> None:
        """Learn what stands before and behind the text in the line of this chunk."""
        text = _mergeable_text(self.update)
        if text is not None:
            head, found, tail = line.rpartition(b'"text":' + dumps(text))
            if found:
                self._around = (head + b'"text":"', b'"' + tail)

    def append_like(self, lines: list[bytes]) -> tuple[int, int]:
        """Append the texts of the first of these chunks that differ in nothing else.

        Gives how many, and the bytes of their texts.
        """
        head, tail = self._around
        begin, end = len(head), -len(tail)
        texts = [each[begin:end] for each in lines if each.startswith(head) and each.endswith(tail)]
        if len(texts) < len(lines):
            alike = takewhile(lambda each: each.startswith(head) and each.endswith(tail), lines)
            texts = [each[begin:end] for each in alike]
        text = b"".join(texts)
        if not texts:
            return 0, 0
        if self.size + len(text) > MAX_MERGED or not _is_inside_string(text):
            return (0, 0) if len(texts) == 1 else self.append_like(lines[:1])
        self._text.append(text)
        return len(texts), len(text)

    def merge(self, update: dict[str, Any]) -> int | None:
        """Append the text of another chunk; its encoded size, or None when it stays apart."""
        first, text = _mergeable_text(self.update), _mergeable_text(update)
        if (
            first is None
            or text is None
            or self.update["sessionUpdate"] != update["sessionUpdate"]
            or self.update.get("messageId") != update.get("messageId")
            or self.update.get("_meta") != update.get("_meta")
        ):
            return None
        encoded = dumps(text)[1:-1]
        if self.size + len(encoded) > MAX_MERGED:
            return None
        self._text.append(encoded)
        return len(encoded)

    def merge_output(self, update: dict[str, Any]) -> int | None:
        """`merge` for what one command of a user wrote."""
        output = update.get("output")
        if (
            not isinstance(output, str)
            or self.update.get("sessionUpdate") != _OUTPUT
            or _shell_of(self.update) != _shell_of(update)
        ):
            return None
        encoded = dumps(output)[1:-1]
        if self.size + len(encoded) > MAX_MERGED:
            return None
        self._text.append(encoded)
        return len(encoded)

    def amend(self, update: dict[str, Any]) -> None:
        """Take over the members that a ``tool_call_update`` changes (null: unchanged, ACP v1)."""
        for name, value in update.items():
            if name != "sessionUpdate" and value is not None:
                self.update[name] = value

    def as_record(self) -> Record:
        last = self.last
        name = str(self.update.get("sessionUpdate")) if self.message else last.name
        kind = Kind.NOTICE if last.kind is Kind.NOTICE else Kind.UPDATE
        record = Record(kind, name, self.line(), last.time, last.prompt_id, None, last.client)
        record.id = last.id
        return record

    def line(self) -> bytes:
        if self.message is None:
            return self.last.line
        if self._text:
            name = "output" if self.update["sessionUpdate"] == _OUTPUT else "text"
            holder = self.update if name == "output" else self.update["content"]
            first = dumps(holder[name])[1:-1]
            holder[name] = loads(b'"' + first + b"".join(self._text) + b'"')
            self._text = []
        return dumps(self.message)


def _is_inside_string(text: bytes) -> bool:
    """Does a piece of valid JSON that begins inside a string also end there?"""
    if b'"' not in text:
        return True
    # A run of backslashes begins at an escape, so that pairs may be taken from the left.
    return b'"' not in text.replace(b"\\\\", b"").replace(b'\\"', b"")


def _shell_of(update: dict[str, Any]) -> Any:
    meta = update.get("_meta")
    return meta.get("shellId") if isinstance(meta, dict) else None


def _mergeable_text(update: dict[str, Any]) -> str | None:
    content = update.get("content")
    if not isinstance(content, dict) or content.get("type") != "text":
        return None
    if update.get("_meta") and update.get("sessionUpdate") == "user_message_chunk":
        return None  # each block of a prompt stays what it was
    text = content.get("text")
    return text if isinstance(text, str) else None
