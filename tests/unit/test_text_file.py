"""Text in files: probe, encodings, parts, cursors, edits."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.text_file import (
    ENCODINGS,
    Cursor,
    Encoding,
    checked_hash,
    content_hash,
    detect,
    edited,
    encoding_of,
    is_binary,
    line_count,
    line_ending,
    line_start,
    window,
    with_ending,
)
from acp_gateway.protocol.errors import ErrorKind, FileError

MARKED = ("utf-8", "utf-16le", "utf-16be", "utf-32le", "utf-32be")
KINDS = (
    Encoding(),
    *(Encoding(name, bom=True) for name in MARKED),
    Encoding("iso-8859-1"),
)
text = st.text(st.characters(codec="utf-8", exclude_characters="\ufeff\0"), max_size=60) | st.text(
    "a\n\r\né€😀", max_size=60
)


@pytest.mark.parametrize(
    ("data", "binary"),
    [
        (b"", False),
        (b"plain\ttext\r\n\f\x1b[0m", False),
        (b"a\0b", True),
        (b"\xff\xfea\0", False),
        (b"\xef\xbb\xbf\0", False),
        (bytes(range(0x80, 0x100)), False),
        (b"\x01" * 30 + b"a" * 70, False),
        (b"\x01" * 31 + b"a" * 69, True),
        (b"\x7f" * 10, False),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", True),
    ],
)
def test_the_probe(data: bytes, binary: bool) -> None:
    assert is_binary(data) is binary


@given(text, st.sampled_from(KINDS[:-1]))
def test_what_is_written_is_detected(content: str, encoding: Encoding) -> None:
    data = encoding.encode(content)
    assert detect(data) == encoding
    assert encoding.decode(data[len(encoding.mark) :]) == content


def test_what_is_no_utf_8_is_latin_1() -> None:
    assert detect(b"caf\xe9") == Encoding("iso-8859-1")
    assert detect("é".encode()[:1], cut=True) == Encoding()
    assert detect("é".encode()[:1]) == Encoding("iso-8859-1")


@pytest.mark.parametrize("name", ["UTF8", "latin1", "utf-16", *ENCODINGS])
def test_known_encodings(name: str) -> None:
    assert encoding_of(name) in ENCODINGS
    Encoding(str(encoding_of(name))).encode("plain")


@pytest.mark.parametrize("name", ["rot13", "idna", "unicode_escape", "zlib", "", 7, ["utf-8"]])
def test_unknown_encodings(name: object) -> None:
    with pytest.raises(FileError) as caught:
        encoding_of(name)
    assert caught.value.kind is ErrorKind.PARSE_ERROR and "utf-8" in caught.value.data["allowed"]


def test_what_an_encoding_lacks() -> None:
    assert encoding_of(None) is None
    with pytest.raises(FileError, match="iso-8859-1 does not have"):
        Encoding("iso-8859-1").encode("€")
    with pytest.raises(FileError, match="half a character"):
        Encoding().encode("a\ud800")


def test_hashes() -> None:
    told = content_hash(b"x")
    assert told == "sha256:" + hashlib.sha256(b"x").hexdigest() == checked_hash(told)
    for wrong in (None, 1, "", told[7:], told.upper(), told + "0", told[:-1], told + "\n"):
        with pytest.raises(FileError) as caught:
            checked_hash(wrong)
        assert caught.value.kind is ErrorKind.PARSE_ERROR


# ---- lines and parts -----------------------------------------------------------------------------


@given(text, st.sampled_from(KINDS), st.integers(1, 9))
def test_lines(content: str, encoding: Encoding, line: int) -> None:
    content = content.encode(encoding.name, "ignore").decode(encoding.name)
    data = encoding.encode(content)
    lines = content.split("\n")
    assert line_count(data, encoding) == len(lines)
    start = line_start(data, encoding, line)
    if line > len(lines):
        assert start is None
    else:
        assert start is not None
        assert encoding.decode(data[start:]) == "\n".join(lines[line - 1 :])


def test_a_newline_is_a_whole_unit() -> None:
    encoding = Encoding("utf-16le", bom=True)
    data = encoding.encode("\u0a00\u000a\u0a0a")  # 00 0a, 0a 00, 0a 0a
    assert line_count(data, encoding) == 2


@given(
    text,
    st.sampled_from(KINDS),
    st.integers(1, 12),
    st.one_of(st.none(), st.integers(1, 3)),
)
def test_parts_make_the_whole(
    content: str, encoding: Encoding, most: int, limit: int | None
) -> None:
    content = content.encode(encoding.name, "ignore").decode(encoding.name)
    data = encoding.encode(content)
    at, told = len(encoding.mark), ""
    while at < len(data):
        part = window(data, encoding, at, limit=limit, max_bytes=most)
        assert part.end > at, "a reader must come on"
        # More than was asked for only where a character is larger.
        assert len(part.text.encode()) <= most or len(part.text) == 1
        assert limit is None or part.text.count("\n") <= limit
        at, told = part.end, told + part.text
    assert (at, told) == (len(data), content)


@given(st.binary(max_size=40), st.integers(1, 6), st.integers(0, 40))
def test_parts_of_no_text(data: bytes, most: int, start: int) -> None:
    for encoding in KINDS:
        at = min(start, len(data))
        for _ in range(100):
            if at >= len(data):
                break
            part = window(data, encoding, at, limit=None, max_bytes=most)
            assert part.end > at
            at = part.end
        assert at >= len(data)


def test_limits_of_a_part() -> None:
    data = b"1\n22\n333\n"
    assert window(data, Encoding(), 0, limit=2, max_bytes=99).text == "1\n22\n"
    assert window(data, Encoding(), 2, limit=9, max_bytes=99).text == "22\n333\n"
    assert window(data, Encoding(), 0, limit=0, max_bytes=99).text == ""
    assert window(data, Encoding(), 0, limit=None, max_bytes=3).text == "1\n2"
    assert window("aé".encode(), Encoding(), 0, limit=None, max_bytes=2).text == "a"
    assert window("é".encode(), Encoding(), 0, limit=None, max_bytes=1).text == "é"


def test_the_ending_of_most_lines() -> None:
    assert line_ending(b"", Encoding()) == "lf"
    assert line_ending(b"a\r\nb\nc\n", Encoding()) == "lf"
    assert line_ending(b"a\r\nb\r\nc\n", Encoding()) == "crlf"
    wide = Encoding("utf-16be", bom=True)
    assert line_ending(wide.encode("a\r\nb"), wide) == "crlf"
    assert with_ending("a\nb\r\nc", "crlf") == "a\r\nb\r\nc"
    assert with_ending("a\nb\r\nc", "lf") == "a\nb\nc"


# ---- cursors -------------------------------------------------------------------------------------

number = st.integers(0, 2**53)


@given(number, number, number, number, st.sampled_from(["utf-8", "iso-8859-1"]))
def test_a_cursor_comes_back(offset: int, size: int, device: int, inode: int, name: str) -> None:
    offset, size = sorted((offset, size))
    cursor = Cursor(offset, size, device, inode, name)
    assert Cursor.of_text(cursor.to_text()) == cursor


GOOD = Cursor(2, 4, 5, 6, "utf-8").to_text()


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "x",
        "====",
        "é",
        "e30",
        "W10",
        "A" * 2000,
        GOOD[:-4],
        Cursor(5, 4, 5, 6, "utf-8").to_text(),
        Cursor(-1, 4, 5, 6, "utf-8").to_text(),
        Cursor(1, 4, 5, 6, "utf-16le").to_text(),
        Cursor(2, 4, 5, 6, "rot13").to_text(),
        Cursor(2.5, 4, 5, 6, "utf-8").to_text(),  # type: ignore[arg-type]
        Cursor(True, 4, 5, 6, "utf-8").to_text(),
    ],
)
def test_wrong_cursors(wrong: str) -> None:
    with pytest.raises(FileError) as caught:
        Cursor.of_text(wrong)
    assert caught.value.kind is ErrorKind.PARSE_ERROR


@given(st.text(max_size=80) | st.binary(max_size=60).map(lambda data: data.hex()))
def test_any_text_is_a_cursor_or_refused(wrong: str) -> None:
    try:
        cursor = Cursor.of_text(wrong)
    except FileError:
        return
    assert 0 <= cursor.offset <= cursor.size


# ---- edits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "old", "new", "after"),
    [
        ("a b c", "b", "x", "a x c"),
        ("a", "a", "", ""),
        ("1\r\n2\r\n3\r\n", "1\n2", "x\ny", "x\r\ny\r\n3\r\n"),
        ("1\r\n2\r\n", "1\r\n2", "x\r\ny", "x\r\ny\r\n"),
        ("1\r\n2\r\n", "2", "x\ny", "1\r\nx\r\ny\r\n"),
        ("1\n2\n", "1", "x\r\ny", "x\ny\n2\n"),
        ("1\r\n2\r\n3\n4\n", "3\n4", "x\ny", "1\r\n2\r\nx\ny\n"),
    ],
)
def test_edits(before: str, old: str, new: str, after: str) -> None:
    ending = line_ending(before.encode(), Encoding())
    assert edited(before, old, new, ending) == after


@pytest.mark.parametrize(
    ("before", "old", "kind"),
    [
        ("a b", "x", ErrorKind.TEXT_NOT_FOUND),
        ("a b", "A", ErrorKind.TEXT_NOT_FOUND),
        ("a a", "a", ErrorKind.AMBIGUOUS_TEXT_MATCH),
        ("aaa", "aa", ErrorKind.AMBIGUOUS_TEXT_MATCH),
        ("a", "", ErrorKind.PARSE_ERROR),
        ("1\r\n1\r\n1\r\n", "1\n1", ErrorKind.AMBIGUOUS_TEXT_MATCH),
    ],
)
def test_refused_edits(before: str, old: str, kind: ErrorKind) -> None:
    with pytest.raises(FileError) as caught:
        edited(before, old, "new", line_ending(before.encode(), Encoding()))
    assert caught.value.kind is kind


@given(text, text, text, text)
def test_an_edit_changes_one_place(head: str, old: str, tail: str, new: str) -> None:
    before = head + old + tail
    if not old or before.find(old) != before.rfind(old):
        with pytest.raises(FileError):
            edited(before, old, new, "lf")
        return
    new_text = new if "\n" in old else with_ending(new, "lf")
    assert edited(before, old, new, "lf") == head + new_text + tail
