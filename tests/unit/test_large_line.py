"""A line of megabytes: a text goes out cut so that every client takes it, all else in pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acp_gateway.core.envelope import sse_envelopes
from acp_gateway.core.event_ring import Kind, Record
from acp_gateway.wire.json_codec import dumps, loads
from acp_gateway.wire.jsonrpc import InvalidMessage, open_line
from acp_gateway.wire.large_line import (
    SPLIT_BYTES,
    Pieces,
    large_params,
    peek_large,
    relay,
    split_update,
)

CLIENT_LIMIT = 1024 * 1024
KIND = "agent_message_chunk"


def line_of(content: Any, kind: str = KIND, **more: Any) -> bytes:
    update = {"sessionUpdate": kind, "content": content, **more}
    params = {"sessionId": "s", "update": update, "_meta": {"kept": True}}
    return dumps({"jsonrpc": "2.0", "method": "session/update", "params": params})


def text_line(text: str, kind: str = KIND, **more: Any) -> bytes:
    return line_of({"type": "text", "text": text}, kind, **more)


def rejoined(lines: list[bytes]) -> str:
    return "".join(loads(line)["params"]["update"]["content"]["text"] for line in lines)


@pytest.mark.parametrize(
    "unit",
    ["a", "é", "中", "😀", '"', "\\", "\x01", "\n", "a\x01" * 3, "z" * 900 + "\x00" * 900],
)
@pytest.mark.parametrize("size", [SPLIT_BYTES, 3 * 1024 * 1024])
def test_pieces_join_to_the_text_and_fit(unit: str, size: int) -> None:
    text = unit * (size // len(unit) + 1)
    lines = split_update(text_line(text))
    assert rejoined(lines) == text
    assert len(lines) > 1 and max(map(len, lines)) < CLIENT_LIMIT
    # Not more pieces than four times the fewest.
    assert len(lines) <= 4 * (len(text_line(text)) // SPLIT_BYTES + 1)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=()), min_size=1, max_size=4), min_size=1),
    st.integers(SPLIT_BYTES // 4, SPLIT_BYTES),
)
def test_any_text_with_lone_surrogates_too(parts: list[str], repeat: int) -> None:
    text = "".join(parts)
    text *= repeat // len(text) + 1
    line = text_line(text)
    lines = split_update(line)
    # As read: what was cut would not be one character again.
    assert rejoined(lines) == loads(line)["params"]["update"]["content"]["text"]
    assert max(map(len, lines)) < CLIENT_LIMIT


def test_a_surrogate_pair_is_never_cut() -> None:
    escaped = text_line("@").replace(b"@", b"\\ud83d%b")
    lines = split_update(escaped % (b"\\ud83d\\ude00" * 200_000))
    assert len(lines) > 1
    text = rejoined(lines)
    assert text == "\ud83d" + "\U0001f600" * 200_000
    assert all(rejoined([line])[0] == "\U0001f600" for line in lines[1:])


def test_everything_but_the_text_is_in_every_piece() -> None:
    lines = split_update(text_line("x" * 2 * SPLIT_BYTES, messageId="m"))
    for line in lines:
        message = loads(line)
        message["params"]["update"]["content"]["text"] = ""
        assert message == loads(text_line("", messageId="m"))


BIG = "x" * (2 * SPLIT_BYTES)


@pytest.mark.parametrize(
    "line",
    [
        text_line("x"),
        text_line("x" * (SPLIT_BYTES - 1000)),
        line_of({"type": "image", "data": BIG}),
        line_of({"type": "resource", "text": BIG}),
        line_of({"type": "text", "text": [BIG]}),
        line_of([BIG]),
        line_of(None, other=BIG),
        # What would be repeated with each piece is too large itself.
        text_line(BIG, other=BIG),
        b'{"params":{"update":{"content":' + b"[" * SPLIT_BYTES + b"]" * SPLIT_BYTES + b"}}}",
    ],
)
def test_what_is_short_or_no_plain_text_goes_out_untouched(line: bytes) -> None:
    (same,) = split_update(line)
    assert same is line


@pytest.mark.parametrize("kind", ["tool_call", "tool_call_update", "plan", ""])
def test_only_chunks_of_messages_are_split(kind: str) -> None:
    line = text_line(BIG, kind)
    assert split_update(line) == [line]


@pytest.mark.parametrize("kind", ["user_message_chunk", "agent_thought_chunk"])
def test_all_three_kinds_of_chunks_are_split(kind: str) -> None:
    assert len(split_update(text_line(BIG, kind))) > 1


# ---- in pieces ----------------------------------------------------------------------------------


def cut(line: bytes, size: int) -> list[bytes]:
    return [line[start : start + size] for start in range(0, len(line), size)]


def relayed(line: bytes, size: int) -> list[bytes]:
    """What the gateway makes of a line that comes in parts of ``size`` bytes."""
    parts = cut(line, size)
    head = peek_large(parts)
    assert head is not None and (head.session_id, head.kind) == ("s", KIND)
    found = [each for each in relay(parts, head) if each is not None]
    return [each if isinstance(each, bytes) else each.join() for each in found]


SIZES = (64 * 1024, 40_001)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("unit", ["x", 'say "yes"\\\n', "中😀", "\\" * 7])
def test_a_text_in_parts_is_cut_as_one_that_is_whole(unit: str, size: int) -> None:
    text = unit * (3_000_000 // len(unit.encode()))
    lines = relayed(text_line(text, messageId="m"), size)
    assert rejoined(lines) == text and len(lines) > 3 and max(map(len, lines)) < CLIENT_LIMIT
    assert all(loads(line)["params"]["update"]["messageId"] == "m" for line in lines)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "line",
    [
        line_of({"type": "image", "data": BIG}),
        line_of([BIG, BIG]),
        line_of(None, rawOutput={"rows": [[1.5e3, None, True, "x"]] * 100_000}),
        line_of(None, nested=[[[{"a": {"b": [BIG]}}]]], after=[1, 2]),
    ],
)
def test_all_else_is_the_same_bytes(line: bytes, size: int) -> None:
    assert relayed(line, size) == [line]
    assert large_params(Pieces(cut(line, size))).join() == bytes(open_line(line).params)


def test_what_a_client_cannot_read_is_mended() -> None:
    line = line_of(None, other="é" * 1_000_000)
    broken = line[:-30] + b"\xff" + line[-29:]
    (got,) = relayed(broken, SIZES[0])
    assert got == broken.decode(errors="replace").encode()
    (got,) = relayed(b" \r" + line, SIZES[0])
    assert b"\r" not in got and loads(got) == loads(line)


@pytest.mark.parametrize("end", [b'"', b'"}}', b'"]}}}', b'","id":1}}}', b""])
def test_what_is_no_json_goes_nowhere(end: bytes) -> None:
    line = line_of(None, other=BIG)
    broken = line[: line.rindex(b'"', 0, line.index(b'"_meta"'))] + end
    parts = cut(broken, SIZES[0])
    head = peek_large(parts)
    assert head is not None
    if end == b'","id":1}}}':
        assert [each.join() for each in relay(parts, head) if isinstance(each, Pieces)] == [broken]
        return
    with pytest.raises(InvalidMessage):
        list(relay(parts, head))


@pytest.mark.parametrize(
    "line",
    [
        dumps({"jsonrpc": "2.0", "id": 7, "result": {"sessionId": "s", "x": BIG}}),
        dumps(
            {"jsonrpc": "2.0", "id": 7, "method": "session/update", "params": {"sessionId": BIG}}
        ),
        dumps({"method": "session/request_permission", "params": {"sessionId": "s", "x": BIG}}),
        dumps({"params": {"sessionId": "s", "update": {"sessionUpdate": "x", "y": BIG}}}),
        dumps([{"method": "session/update", "x": BIG}]),
        b'"' + b"x" * 2_000_000 + b'"',
        b"}{" * 1_000_000,
        b"\xff" * 2_000_000,
    ],
)
def test_only_updates_that_the_head_tells_go_in_pieces(line: bytes) -> None:
    assert peek_large(cut(line, SIZES[0])) is None


def test_no_step_touches_more_than_a_few_pieces() -> None:
    """Counted in steps: a text of 32 MiB is not worked on in one."""
    parts = cut(text_line("x" * 32 * 1024 * 1024), SIZES[0])
    head = peek_large(parts)
    assert head is not None
    steps = list(relay(parts, head))
    assert len(steps) >= 2 * len(parts) // 16 + 64
    assert max(len(each) for each in steps if each is not None) < CLIENT_LIMIT


@pytest.mark.parametrize("size", [SIZES[0], 977])
@pytest.mark.parametrize("bad", [b"\t", b"\x00", b"\x1b", b"\\x", b"\\u12G4", b"\\u123", b"\\u"])
def test_what_no_string_may_hold_goes_nowhere(bad: bytes, size: int) -> None:
    """However the pieces fall: else a client gets JSON that it cannot read."""
    for place in (1_200_000, 1_200_005):
        line = text_line("x" * 2_000_000)
        parts = cut(line[:place] + bad + line[place:], size)
        head = peek_large(parts)
        assert head is not None
        found = []
        with pytest.raises(InvalidMessage):
            found += [each for each in relay(parts, head) if each is not None]
        assert found == []


def test_a_text_is_cut_also_behind_bytes_that_are_no_utf8() -> None:
    line = text_line("x" * 2_000_000).replace(b'{"jsonrpc"', b'{"_meta":{"n":"\xff\xff"},"jsonrpc"')
    assert max(map(len, relayed(line, SIZES[0]))) < CLIENT_LIMIT


def test_a_stream_survives_what_was_relayed_unread() -> None:
    line = line_of([BIG, BIG])[:-3] + b"] ]"
    (piece,) = relayed(line, SIZES[0])
    made = Record(Kind.UPDATE, KIND, Pieces(cut(piece, SIZES[0])), 0.0)
    assert b'"data":{},' in b"".join(sse_envelopes([made]))
