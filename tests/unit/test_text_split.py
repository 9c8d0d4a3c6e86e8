"""One oversized chunk of text goes out in pieces that every client takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acp_gateway.core.text_split import SPLIT_BYTES, split_update
from acp_gateway.wire.json_codec import dumps, loads

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
    lines = split_update(text_line(text), KIND)
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
    lines = split_update(line, KIND)
    # As read: what was cut would not be one character again.
    assert rejoined(lines) == loads(line)["params"]["update"]["content"]["text"]
    assert max(map(len, lines)) < CLIENT_LIMIT


def test_a_surrogate_pair_is_never_cut() -> None:
    escaped = b'{"params":{"update":{"content":{"type":"text","text":"\\ud83d%b"}}}}'
    lines = split_update(escaped % (b"\\ud83d\\ude00" * 200_000), KIND)
    assert len(lines) > 1
    text = rejoined(lines)
    assert text == "\ud83d" + "\U0001f600" * 200_000
    assert all(rejoined([line])[0] == "\U0001f600" for line in lines[1:])


def test_everything_but_the_text_is_in_every_piece() -> None:
    lines = split_update(text_line("x" * 2 * SPLIT_BYTES, messageId="m"), KIND)
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
    (same,) = split_update(line, KIND)
    assert same is line


@pytest.mark.parametrize("kind", ["tool_call", "tool_call_update", "plan", ""])
def test_only_chunks_of_messages_are_split(kind: str) -> None:
    line = text_line(BIG, kind)
    assert split_update(line, kind) == [line]


@pytest.mark.parametrize("kind", ["user_message_chunk", "agent_thought_chunk"])
def test_all_three_kinds_of_chunks_are_split(kind: str) -> None:
    assert len(split_update(text_line(BIG, kind), kind)) > 1
