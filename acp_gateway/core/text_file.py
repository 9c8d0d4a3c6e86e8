"""Text in files: is it text, in which encoding, which part of it, and what an edit makes of it."""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import re
from typing import Any, Final, Literal

import attrs

from acp_gateway.protocol.errors import ErrorKind, FileError
from acp_gateway.wire.json_codec import JsonError, dumps, loads

SAMPLE: Final = 4096
"""Bytes at the start of a file that tell whether it is text."""
MAX_WINDOW: Final = 256 * 1024
"""Bytes of text in one answer."""
MAX_CURSOR: Final = 1024

LineEnding = Literal["lf", "crlf"]

_BOMS: Final = (
    # UTF-32LE begins as UTF-16LE does.
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32le"),
    (codecs.BOM_UTF32_BE, "utf-32be"),
    (codecs.BOM_UTF16_LE, "utf-16le"),
    (codecs.BOM_UTF16_BE, "utf-16be"),
)
ENCODINGS: Final = (
    *(name for _, name in _BOMS),
    *("iso-8859-1", "windows-1252", "us-ascii", "gb18030", "gbk", "big5", "shift_jis"),
    *("euc-jp", "euc-kr"),
)
"""Which a client may ask for."""
_SAME: Final = {
    "utf8": "utf-8",
    "utf16le": "utf-16le",
    "utf-16": "utf-16le",
    "utf16be": "utf-16be",
    "latin1": "iso-8859-1",
    "latin-1": "iso-8859-1",
    "ascii": "us-ascii",
}
_UNIT: Final = {"utf-16le": 2, "utf-16be": 2, "utf-32le": 4, "utf-32be": 4}
_CONTROL: Final = bytes({*range(0x01, 0x09), *range(0x0E, 0x20)})
_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")


@attrs.frozen
class Encoding:
    """How a file says its text."""

    name: str = "utf-8"
    bom: bool = False

    @property
    def mark(self) -> bytes:
        """The byte order mark, if there is one."""
        return next((mark for mark, name in _BOMS if name == self.name), b"") if self.bom else b""

    def decode(self, data: bytes) -> str:
        """``data`` without the mark. What is no text in this encoding is replaced."""
        return data.decode(self.name, "replace")

    def encode(self, text: str) -> bytes:
        """With the mark. Raises ``parse_error``."""
        try:
            return self.mark + text.encode(self.name)
        except UnicodeEncodeError as exc:
            half = "\ud800" <= text[exc.start] <= "\udfff"
            raise FileError(
                ErrorKind.PARSE_ERROR,
                "The text has half a character"
                if half
                else f"The text has characters that {self.name} does not have",
                remedy=None if half else "write the whole file with `encoding` utf-8",
            ) from None


def content_hash(data: bytes) -> str:
    """``sha256:`` and 64 hex digits, of the bytes as they are on the disk."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def checked_hash(value: Any) -> str:
    """A hash as a client sends it. Raises ``parse_error``."""
    if isinstance(value, str) and _HASH.fullmatch(value):
        return value
    raise FileError(
        ErrorKind.PARSE_ERROR,
        "`expectedHash` must be sha256: and 64 hex digits",
        remedy="send the hash of the file as it was read",
    )


def encoding_of(name: Any) -> str | None:
    """The encoding that a client asks for, None for none. Raises ``parse_error``."""
    if name is None:
        return None
    known = _SAME.get(name.lower(), name.lower()) if isinstance(name, str) else ""
    if known not in ENCODINGS:
        raise FileError(ErrorKind.PARSE_ERROR, "`encoding` is not known", allowed=sorted(ENCODINGS))
    return known


def is_binary(sample: bytes) -> bool:
    """``sample``: the first `SAMPLE` bytes of the file."""
    if not sample or any(sample.startswith(mark) for mark, _ in _BOMS):
        return False
    if 0 in sample:
        return True
    controls = len(sample) - len(sample.translate(None, _CONTROL))
    return controls > 0.3 * len(sample)


def detect(data: bytes, *, cut: bool = False) -> Encoding:
    """The encoding of a text. ``cut``: it is the start of a longer one.

    What has no mark and is no UTF-8 counts as Latin-1, in which every byte is a character.
    """
    for mark, name in _BOMS:
        if data.startswith(mark):
            return Encoding(name, bom=True)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, final=not cut)
    except UnicodeDecodeError:
        return Encoding("iso-8859-1")
    return Encoding()


def line_ending(data: bytes, encoding: Encoding) -> LineEnding:
    """The one that most lines have."""
    pair = "\r\n".encode(encoding.name)
    pairs = data.count(pair)
    return "crlf" if 2 * pairs > data.count(pair[len(pair) // 2 :]) else "lf"


def with_ending(text: str, ending: LineEnding) -> str:
    return re.sub(r"\r?\n", "\r\n" if ending == "crlf" else "\n", text)


# ---- a part of a text ----------------------------------------------------------------------------


def line_count(data: bytes, encoding: Encoding) -> int:
    """One more than there are ends of lines."""
    at, count = -1, 0
    while (at := _newline(data, at + 1, encoding)) >= 0:
        count += 1
    return count + 1


def line_start(data: bytes, encoding: Encoding, line: int) -> int | None:
    """Where line ``line`` (from 1) begins; None when there are fewer."""
    at = len(encoding.mark)
    for _ in range(line - 1):
        end = _newline(data, at, encoding)
        if end < 0:
            return None
        at = end + _UNIT.get(encoding.name, 1)
    return at


@attrs.frozen
class Window:
    text: str
    end: int
    """Offset of the first byte that is not in it."""


def window(
    data: bytes, encoding: Encoding, start: int, *, limit: int | None, max_bytes: int
) -> Window:
    """At most ``limit`` lines and ``max_bytes`` bytes of UTF-8 from ``start``; whole characters.

    At least one character, where there is one: a reader must come on.
    """
    unit = _UNIT.get(encoding.name, 1)
    stop = len(data)
    if limit is not None:
        at = start
        for _ in range(limit):
            end = _newline(data, at, encoding)
            if end < 0:
                break
            at = end + unit
        else:
            stop = at
    # Every unit takes a byte of UTF-8 at least; a character has four bytes at most.
    room = max(max_bytes, 4) * unit if encoding.name != "utf-8" else max_bytes
    if encoding.name == "utf-8":
        end = _before_character(data, start, min(stop, start + room))
        return Window(encoding.decode(data[start:end]), end)
    text = encoding.decode(data[start : min(stop, start + room)])
    told = text.encode(errors="replace")
    if len(told) <= max_bytes:
        return Window(text, min(stop, start + room))
    end = _before_character(told, 0, max_bytes)
    text = told[:end].decode(errors="replace")
    return Window(text, start + len(text.encode(encoding.name, "replace")))


def _before_character(data: bytes, start: int, end: int) -> int:
    """``end``, or where the UTF-8 character begins in which it lies; the end of the first one
    when that leaves nothing."""
    cut = end
    while cut < len(data) and cut > start and end - cut < 3 and data[cut] & 0xC0 == 0x80:
        cut -= 1
    if cut > start or end <= start:
        return cut
    while end < len(data) and end - start < 4 and data[end] & 0xC0 == 0x80:
        end += 1
    return end


def _newline(data: bytes, start: int, encoding: Encoding) -> int:
    """Offset of the next end of a line, or -1."""
    unit = _UNIT.get(encoding.name, 1)
    mark = "\n".encode(encoding.name)
    at = data.find(mark, start)
    while at >= 0 and at % unit:
        at = data.find(mark, at + 1)
    return at


@attrs.frozen
class Cursor:
    """Where the next page of a file begins, and of which file."""

    offset: int
    size: int
    device: int
    inode: int
    encoding: str

    def to_text(self) -> str:
        told = {
            "v": 1,
            "off": self.offset,
            "size": self.size,
            "dev": self.device,
            "ino": self.inode,
            "enc": self.encoding,
        }
        return base64.urlsafe_b64encode(dumps(told)).decode().rstrip("=")

    @classmethod
    def of_text(cls, text: str) -> Cursor:
        """Raises ``parse_error``."""
        wrong = FileError(
            ErrorKind.PARSE_ERROR,
            "`cursor` is not one of this gateway's",
            remedy="send the nextCursor of the page before, or none",
        )
        if len(text) > MAX_CURSOR:
            raise wrong
        try:
            told = loads(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
        except (binascii.Error, ValueError, JsonError):
            raise wrong from None
        if not isinstance(told, dict) or told.get("v") != 1:
            raise wrong
        numbers = [told.get(name, -1) for name in ("off", "size", "dev", "ino")]
        if not all(type(each) is int and each >= 0 for each in numbers):
            raise wrong
        offset, size, device, inode = numbers
        encoding = told.get("enc")
        if not isinstance(encoding, str) or encoding not in ENCODINGS or offset > size:
            raise wrong
        if offset % _UNIT.get(encoding, 1):
            raise wrong
        return cls(offset, size, device, inode, encoding)


# ---- edits ---------------------------------------------------------------------------------------


def edited(text: str, old: str, new: str, ending: LineEnding) -> str:
    """``text`` with its only ``old`` replaced by ``new``.

    A client need not know how lines end: ``old`` is looked for as it is, then with the file's own
    ends of lines, which ``new`` gets too. Raises ``text_not_found``, ``ambiguous_text_match``
    (places that overlap count), and ``parse_error`` for an empty ``old``.
    """
    if not old:
        raise FileError(ErrorKind.PARSE_ERROR, "`oldText` must not be empty")
    at = text.find(old)
    if at < 0:
        old = with_ending(old, ending)
        at = text.find(old)
        new = with_ending(new, ending)
    elif "\n" not in old:
        new = with_ending(new, ending)
    if at < 0:
        raise FileError(
            ErrorKind.TEXT_NOT_FOUND,
            "`oldText` is not in the file",
            remedy="read the file again and send the text as it is there",
        )
    if text.find(old, at + 1) >= 0:
        raise FileError(
            ErrorKind.AMBIGUOUS_TEXT_MATCH,
            "`oldText` is in the file more than once",
            remedy="send more of the text around it",
        )
    return text[:at] + new + text[at + len(old) :]
