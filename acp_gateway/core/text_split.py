"""Split one oversized text chunk into several, once, before it is numbered.

The Python client's WebSocket library refuses a message over 1 MiB, so text over 512 KiB goes out in
pieces cut at code points. What is not plain text cannot be split and goes out whole.
"""

from __future__ import annotations

from typing import Any, Final

from acp_gateway.wire.json_codec import JsonError, dumps, loads

SPLIT_BYTES: Final = 512 * 1024
"""The most that a line is left whole with, that a piece's text takes, and that the rest of a line
may have to be repeated with each piece: no piece is over twice this size."""
_SPLITTABLE: Final = frozenset({"user_message_chunk", "agent_message_chunk", "agent_thought_chunk"})


def split_update(line: bytes, kind: str) -> list[bytes]:
    """``line`` as one or more ``session/update`` lines."""
    if len(line) <= SPLIT_BYTES or kind not in _SPLITTABLE:
        return [line]
    try:
        message: dict[str, Any] = loads(line)
    except JsonError:  # nested too deeply
        return [line]
    content = message["params"]["update"].get("content")
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str) or content.get("type") != "text":
        return [line]
    content["text"] = ""
    if len(dumps(message)) > SPLIT_BYTES:
        return [line]
    out = []
    for piece in _pieces(text):
        content["text"] = piece
        out.append(dumps(message))
    return out


def _pieces(text: str) -> list[str]:
    # How many bytes a character takes differs along the text, so a piece may be cut again.
    size = len(dumps(text)) - 2
    if size <= SPLIT_BYTES or len(text) == 1:
        return [text]
    step = max(1, len(text) * SPLIT_BYTES // size)
    cut = (text[start : start + step] for start in range(0, len(text), step))
    return [piece for each in cut for piece in _pieces(each)]
