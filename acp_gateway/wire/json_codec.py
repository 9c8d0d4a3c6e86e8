"""JSON text to values and back, for messages of a peer that may be wrong.

msgspec does the work. What it refuses although it is JSON goes through the standard library: a lone
surrogate escape (Node agents emit one when an emoji is cut between two chunks), integers beyond
64 bits and numbers out of range, which become infinite as in JavaScript. ``NaN`` and ``Infinity``
are refused in a text; the values are written as null, as ``JSON.stringify`` does.
"""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


class JsonError(ValueError):
    """The text is not one JSON value (RFC 8259), or is nested too deeply."""


def _no_constant(name: str) -> Any:
    raise JsonError(f"{name} is not JSON")


def loads(data: bytes | bytearray | memoryview | str) -> Any:
    """Decode one JSON value. Raises `JsonError`."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError) as first:
        try:
            text = data if isinstance(data, str) else str(data, "utf-8")
            # The slow decoder is tried only where it can differ (a surrogate, a number out of
            # range), so that garbage is not decoded twice.
            if "\\u" in text or isinstance(first, msgspec.ValidationError):
                return json.loads(text, parse_constant=_no_constant, parse_int=_int)
        except (ValueError, RecursionError):
            pass
        raise JsonError(str(first)) from None
    except RecursionError:
        raise JsonError("nested too deeply") from None


def _int(text: str) -> int | float:
    # Python refuses to convert more digits than this (its default limit is 4300).
    return int(text) if len(text) <= 4000 else float(text)


def dumps(value: Any) -> bytes:
    """Encode one value as compact JSON on one line. Raises `JsonError`."""
    try:
        try:
            return _encoder.encode(value)
        except (UnicodeEncodeError, OverflowError):
            return json.dumps(_plain(value), separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError) as exc:
        raise JsonError(str(exc)) from None


def _plain(value: Any) -> Any:
    # msgspec.Raw is a buffer to the standard library; only the rare path pays for opening it.
    if isinstance(value, msgspec.Raw):
        return loads(bytes(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_meta(result: Any, more: dict[str, Any]) -> Any:
    """A result, decoded or raw, with ``more`` in its ``_meta``; other members stay the bytes that
    they are. Something else than an object comes back as it is.
    """
    try:
        members: dict[str, Any] = (
            dict(result) if isinstance(result, dict) else dict(_members.decode(bytes(result)))
        )
        meta = members.get("_meta")
        if isinstance(meta, msgspec.Raw):
            meta = loads(bytes(meta))
    except (msgspec.DecodeError, TypeError, ValueError):
        return result
    members["_meta"] = {**(meta if isinstance(meta, dict) else {}), **more}
    return members


def valid_utf8(line: bytes) -> bytes:
    """``line``, with bytes that are not UTF-8 replaced.

    The fast decoder does not look inside strings that it skips, so relayed bytes must be checked:
    a text frame with invalid UTF-8 makes a WebSocket peer close with 1007 (RFC 6455 §8.1).
    """
    if line.isascii():
        return line
    try:
        line.decode()
    except UnicodeDecodeError:
        return line.decode(errors="replace").encode()
    return line
