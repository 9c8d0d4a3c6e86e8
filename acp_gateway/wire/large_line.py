"""A ``session/update`` of megabytes, relayed in pieces: no step looks at more than a few of them.

Such a line is never joined, decoded or copied as a whole, because each of that would hold up every
other session. Its head tells whose it is. Where one string makes it large, all the rest is parsed
and must be JSON; of a line that is large otherwise, the head alone is.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import attrs

from acp_gateway.wire.json_codec import JsonError, loads
from acp_gateway.wire.jsonrpc import InvalidMessage, open_line

LARGE: Final = 1024 * 1024
"""Lines over so many bytes come in pieces."""
SPLIT_BYTES: Final = 512 * 1024
"""The most that a line with text is left whole with, and that a piece's text takes: a known client
refuses messages over 1 MiB."""
_HEAD: Final = 64 * 1024
_DEPTH: Final = 100
_TURN: Final = 4
"""Pieces that are looked at in one turn."""
_TOKEN: Final = re.compile(rb'\s*+([{}\[\],:]|"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\s{}\[\],:"]++)')
_TEXT: Final = ("params", "update", "content", "text")
SPLITTABLE: Final = frozenset({"user_message_chunk", "agent_message_chunk", "agent_thought_chunk"})
"""Updates whose text may be cut into several."""
# Whole escapes (a surrogate pair is one) and runs of plain bytes.
_UNITS: Final = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?![dD][89abAB])....|\\u[dD][89abAB]..\\u[dD][c-fC-F].."
    # A lone surrogate: what follows must be seen to be no second half.
    rb"|\\u[dD][89abAB]..(?=[^\\]|\\[^u]|\\u(?:[^dD].|[dD][^c-fC-F])..))*+",
    re.DOTALL,
)
_BEGUN: Final = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_BAD_ESCAPE: Final = re.compile(rb"\\(?![/bfnrt]|u[0-9a-fA-F]{4})")
_CONTROLS: Final = bytes(range(32))
_RUN: Final = re.compile(rb"[^\\](?=\\)")
_BACKSLASH: Final = 0x5C
_LONGEST: Final = 6
"""Bytes of an escape."""
_NEAR: Final = 4096


class Pieces:
    """The bytes of one line, in parts. Iterate to write them."""

    __slots__ = ("_parts", "_size")

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = tuple(parts)
        self._size = sum(map(len, self._parts))

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def join(self) -> bytes:
        """One copy of it all: costs a millisecond for a few megabytes."""
        return b"".join(self._parts)

    def between(self, start: int, end: int) -> Pieces:
        """The bytes from ``start`` on, without the last ``end`` ones."""
        parts = list(self._parts)
        while parts and start >= len(parts[0]):
            start -= len(parts.pop(0))
        while parts and end >= len(parts[-1]):
            end -= len(parts.pop())
        if not parts:
            return Pieces(())
        parts[-1] = parts[-1][: len(parts[-1]) - end]
        parts[0] = parts[0][start:]
        return Pieces(parts)


@attrs.frozen
class LargeHead:
    """What the head of a large line tells."""

    session_id: str
    kind: str
    params_at: int
    """Where the value of ``params`` begins."""
    string_at: int | None
    """Where the text of the string begins that does not end in the head; None: there is none."""
    is_text: bool
    """That string is the text of a chunk that may be cut."""


def peek_large(parts: Sequence[bytes]) -> LargeHead | None:
    """The head of a ``session/update``; None when it is something else or cannot be told."""
    head = b"".join(parts[:2])[:_HEAD]
    found: dict[tuple[str, ...], str] = {}
    params_at: int | None = None
    path: list[str] = []
    at = 0
    key, is_key = "", False
    stack: list[bool] = []
    """Is it an object? for each open container."""
    while (match := _TOKEN.match(head, at)) is not None:
        token = match[1]
        at = match.end()
        if token in (b"{", b"["):
            if stack:
                path.append(key)
                if path == ["params"] and params_at is None:
                    params_at = match.start(1)
                elif len(path) > _DEPTH:
                    return None
            stack.append(token == b"{")
            is_key = token == b"{"
            key = ""
        elif token in (b"}", b"]"):
            if not stack:
                return None
            stack.pop()
            key = path.pop() if path else ""
            is_key = False
        elif token == b",":
            is_key = bool(stack) and stack[-1]
        elif token == b":":
            is_key = False
        elif is_key:
            key = _string(token)
        elif at < len(head):  # a number may go on behind the head
            found.setdefault((*path, key), _string(token))
    rest = head[at:].lstrip()
    string_at = None
    if rest.startswith(b'"') and not is_key:
        string_at = len(head) - len(rest) + 1
    session_id = found.get(("params", "sessionId"))
    kind = found.get(("params", "update", "sessionUpdate"))
    if found.get(("method",)) != "session/update" or ("id",) in found:
        return None
    if not session_id or kind is None or params_at is None:
        return None
    is_text = (
        (*path, key) == _TEXT
        and kind in SPLITTABLE
        and found.get(("params", "update", "content", "type"), "text") == "text"
    )
    return LargeHead(session_id, kind, params_at, string_at, is_text)


def _string(token: bytes) -> str:
    try:
        value = loads(token)
    except JsonError:
        return ""
    return value if isinstance(value, str) else ""


def large_params(line: Pieces) -> Pieces:
    """The JSON of ``params``, if it is the last member; else the line is opened whole."""
    first = line.between(0, max(0, len(line) - 2 * _HEAD)).join()
    last = line.between(max(0, len(line) - 64), 0).join()
    head = peek_large((first,))
    end = len(last) - len(last.rstrip())
    if head is None or not last.rstrip().endswith(b"}}"):
        return Pieces((bytes(open_line(line.join()).params),))
    return line.between(head.params_at, end + 1)


def relay(parts: Sequence[bytes], head: LargeHead) -> Iterator[bytes | Pieces | None]:
    """The lines that such a line becomes: itself in pieces, or several chunks of text.

    None: nothing yet, let others have a turn. A text comes as lines of about `SPLIT_BYTES`.
    Raises `InvalidMessage` when it is no JSON, before the first line.
    """
    clean: list[bytes] = []
    for part in _cleaned(parts):
        clean.append(part)
        if len(clean) % _TURN == 0:
            yield None
    if clean[:2] != list(parts[:2]):
        head = peek_large(clean) or head  # its places have moved
    whole = Pieces(clean)
    start, end = head.string_at, None
    if start is None:
        yield whole
        return
    for end in _end_of_string(whole, start):
        if end is None:
            yield None
    if end is None:
        raise InvalidMessage("a string does not end")
    if len(whole) - end > _HEAD:
        yield whole  # large in more than one place
        return
    before = whole.between(0, len(whole) - start).join()
    behind = whole.between(end, 0).join()
    message = _opened(before + behind, head)
    content = message["params"]["update"].get("content")
    if next(reversed(message)) != "params":
        yield whole.join()  # nobody writes so; `large_params` needs it last
    elif head.is_text and isinstance(content, dict) and content.get("type") == "text":
        for text in _cut(whole.between(start, len(whole) - end)):
            yield b"".join((before, text, behind))
    else:
        yield whole


def _opened(line: bytes, head: LargeHead) -> dict[str, Any]:
    """The message without its large string. Raises `InvalidMessage`."""
    try:
        message: dict[str, Any] = loads(line)
        update = message["params"]["update"]
        own = message["params"]["sessionId"] == head.session_id
        if own and "id" not in message and isinstance(update, dict):
            return message
    except (JsonError, KeyError, TypeError):
        pass
    raise InvalidMessage("no session/update")


def split_update(line: bytes) -> list[bytes]:
    """A ``session/update`` whose text makes it larger than `SPLIT_BYTES` as several; else itself.

    For lines that are held whole anyway. What is not plain text goes out whole.
    """
    head = peek_large((line,)) if len(line) > SPLIT_BYTES else None
    if head is None or not head.is_text:
        return [line]
    found = [each for each in relay((line,), head) if each is not None]
    return [each if isinstance(each, bytes) else line for each in found]


def _cleaned(parts: Sequence[bytes]) -> Iterator[bytes]:
    """UTF-8 without CR (which ends a line of SSE); bytes that are no UTF-8 are replaced."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for part in parts:
        if not part.isascii() or decoder.getstate()[0]:
            part = decoder.decode(part).encode()
        yield part.replace(b"\r", b" ") if b"\r" in part else part
    yield decoder.decode(b"", True).encode()


def _end_of_string(whole: Pieces, start: int) -> Iterator[int | None]:
    """Where the quote stands that ends the string; None before for every few pieces.

    Raises `InvalidMessage` for what may not stand in a string (RFC 8259 §7).
    """
    offset = 0
    carry = b""
    """The begun escape at the end of the piece before."""
    for number, part in enumerate(whole):
        begin = max(0, start - offset)
        if begin < len(part):
            text = carry + part[begin:]
            base = offset + begin - len(carry)
            # The escapes that could hide a quote are covered, in their order.
            seen = text
            if b"\\" in text:
                seen = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
            at = seen.find(b'"')
            if at >= 0:
                seen = seen[:at]
            cut = _BEGUN.search(seen, max(0, len(seen) - _LONGEST)) if at < 0 else None
            if cut is not None:
                carry = text[cut.start() :]
                seen = seen[: cut.start()]
            else:
                carry = b""
            if len(seen.translate(None, _CONTROLS)) < len(seen) or _BAD_ESCAPE.search(seen):
                raise InvalidMessage("a string holds what none may hold")
            if at >= 0:
                yield base + at
                return
        offset += len(part)
        if number % _TURN == _TURN - 1:
            yield None
    yield None


def _cut(text: Pieces) -> Iterator[bytes]:
    """The text in parts of at most `SPLIT_BYTES`, cut between characters."""
    size = SPLIT_BYTES
    waiting: list[bytes] = []
    count = 0
    for part in text:
        waiting.append(part)
        count += len(part)
        if count >= size:
            block = b"".join(waiting)
            while len(block) >= size:
                cut = _safe_cut(block, size)
                yield block[:cut]
                block = block[cut:]
            waiting, count = [block], len(block)
    if count:
        yield b"".join(waiting)


def _safe_cut(block: bytes, limit: int) -> int:
    """The last place up to ``limit`` that is not inside a character or an escape."""
    # Where a run of backslashes begins, an escape begins: looking from there is enough.
    near = max(0, limit - _NEAR)
    found = _RUN.search(block, near, limit)
    if found is not None:
        near = found.end()
    elif near:
        near = 0 if block[near] == _BACKSLASH else near + _LONGEST
    match = _UNITS.match(block, near, limit)
    cut = match.end() if match else 0
    while cut and cut < len(block) and block[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut or limit
