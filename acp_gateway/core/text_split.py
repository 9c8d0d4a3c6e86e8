"""Split one oversized text chunk into several, once, before it is numbered.

The Python client's WebSocket library refuses a message over 1 MiB, so text over 512 KiB goes out in
pieces cut at code points. What is not plain text cannot be split and goes out whole.
"""

from __future__ import annotations

from typing import Any, Final

from acp_gateway.wire.json_codec import dumps, loads

SPLIT_BYTES: Final = 512 * 1024
_SPLITTABLE: Final = frozenset({"user_message_chunk", "agent_message_chunk", "agent_thought_chunk"})


def split_update(line: bytes, kind: str) -> list[bytes]:
    """``line`` as one or more ``session/update`` lines."""
    if len(line) <= SPLIT_BYTES or kind not in _SPLITTABLE:
        return [line]
    message: dict[str, Any] = loads(line)
    update = message["params"]["update"]
    content = update.get("content")
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str) or content.get("type") != "text":
        return [line]
    out = []
    for piece in _pieces(text):
        content["text"] = piece
        out.append(dumps(message))
    return out or [line]


def _pieces(text: str) -> list[str]:
    # A character is at most 12 bytes of JSON (an escaped surrogate pair); text that needs no
    # escapes and is ASCII is cut at the full size.
    size = SPLIT_BYTES if text.isascii() and text.isprintable() else SPLIT_BYTES // 4
    pieces = []
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        # Two lone surrogates that belong together stay together.
        if end < len(text) and "\ud800" <= text[end - 1] <= "\udbff":
            end -= 1
        pieces.append(text[start:end])
        start = end
    return pieces
