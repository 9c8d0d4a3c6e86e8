"""Transport framings of one encoded message: a WebSocket text frame, a server-sent event.

Both are pure functions of the payload, so a frame is made once and shared by all subscribers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

SSE_KEEPALIVE: Final = b":\n\n"
"""A comment line; clients ignore it (WHATWG server-sent events §9.2.6)."""


_MEDIUM: Final = struct.Struct("!HH").pack


def ws_text(payload: bytes) -> bytes:
    """An unfragmented, unmasked text frame, as a server sends it (RFC 6455 §5.2)."""
    return ws_head(len(payload)) + payload


def ws_head(size: int) -> bytes:
    """What stands before the payload of such a frame."""
    if 125 < size < 65536:
        return _MEDIUM(0x817E, size)
    if size < 126:
        return bytes((0x81, size))
    return struct.pack("!HQ", 0x817F, size)


Bytes: TypeAlias = bytes | bytearray | memoryview


def joined(parts: Sequence[Bytes], size: int) -> Iterator[Bytes]:
    """``parts`` one behind the other, in few blocks of at most ``size`` bytes."""
    block: list[Bytes] = []
    count = 0
    for part in parts:
        if block and count + len(part) > size:
            yield b"".join(block)
            block, count = [], 0
        if len(part) > size:
            for start in range(0, len(part), size):
                yield part[start : start + size]
            continue
        block.append(part)
        count += len(part)
    if block:
        yield b"".join(block) if len(block) > 1 else block[0]


CLOSE_FRAME: Final = 0x88
"""First byte of a close frame."""


def ws_close(code: int, reason: str = "") -> bytes:
    """A close frame with a status code (RFC 6455 §5.5.1); the reason is cut to fit."""
    text = reason.encode()[:123].decode(errors="ignore").encode()
    return struct.pack("!BBH", CLOSE_FRAME, len(text) + 2, code) + text


def sse_message(payload: bytes, event_id: int | None = None) -> bytes:
    """One event of one ``data:`` line, LF only: a known client splits at LF LF and nothing else."""
    if event_id is None:
        return b"data: " + payload + b"\n\n"
    return b"id: %d\ndata: %b\n\n" % (event_id, payload)


def sse_event(payload: bytes, kind: str, event_id: int | None = None) -> bytes:
    """One named event, as the daemon's event streams send it: ``id:`` (if any), ``event:``,
    ``data:``."""
    if event_id is None:
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), payload)
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event_id, kind.encode(), payload)


def parse_last_event_id(value: str | None) -> int | None:
    """A decimal event id up to 2**53-1; anything else counts as absent."""
    if value is None or not value.isascii() or not value.isdigit() or len(value) > 16:
        return None
    number = int(value)
    return number if number < 2**53 else None
