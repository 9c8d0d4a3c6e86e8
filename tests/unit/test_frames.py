"""Frames, read by programs that had no part in writing them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, TextMessage

from acp_gateway.wire.frames import (
    SSE_KEEPALIVE,
    parse_last_event_id,
    sse_message,
    ws_close,
    ws_text,
)


def received(data: bytes) -> list[str]:
    """The text messages that wsproto, as a client, finds in what the server sent."""
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    texts, parts = [], []
    for event in client.events():
        assert isinstance(event, TextMessage), event
        assert event.frame_finished  # one frame is one message
        parts.append(event.data)
        if event.message_finished:
            texts.append("".join(parts))
            parts = []
    assert not parts
    return texts


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 65537, 3 * 2**20])
def test_a_text_frame_of_any_size(size: int) -> None:
    frame = ws_text(b"x" * size)
    assert received(frame + ws_text(b"next")) == ["x" * size, "next"]
    assert len(frame) - size == (2 if size < 126 else 4 if size < 65536 else 10)


@given(st.lists(st.text(max_size=200), max_size=5))
def test_frames_may_be_written_together(texts: list[str]) -> None:
    assert received(b"".join(ws_text(text.encode()) for text in texts)) == texts


@pytest.mark.parametrize("reason", ["", "going away", "é" * 100, "a" + "😀" * 40])
def test_a_close_frame_has_its_code_and_a_whole_reason(reason: str) -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(ws_close(1013, reason))
    (event,) = client.events()
    assert isinstance(event, CloseConnection) and not isinstance(event, Message)
    assert event.code == 1013
    assert (reason.startswith(event.reason or "") and len((event.reason or "").encode()) > 118) or (
        event.reason or ""
    ) == reason


def parse_sse(data: bytes) -> list[tuple[str | None, str]]:
    """(last event id, data) of each event, by WHATWG server-sent events §9.2.6."""
    assert b"\r" not in data
    events: list[tuple[str | None, str]] = []
    last_id: str | None = None
    lines: list[str] = []
    *whole, rest = data.decode().split("\n")
    assert rest == ""
    for line in whole:
        if line == "":
            if lines:
                events.append((last_id, "\n".join(lines)))
            lines = []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            lines.append(value)
        elif field == "id" and "\0" not in value:
            last_id = value
        else:
            assert field == "", f"unexpected field {field!r}"  # a comment
    return events


payloads = st.text(max_size=50).map(lambda t: "{" + t.replace("\n", "").replace("\r", "") + "}")


@given(st.lists(st.tuples(payloads, st.none() | st.integers(0, 2**53 - 1)), max_size=6))
def test_sse_events_are_found_again_with_their_ids(events: list[tuple[str, int | None]]) -> None:
    data = b"".join(SSE_KEEPALIVE + sse_message(text.encode(), id) for text, id in events)
    expected = []
    last: str | None = None
    for text, id in events:
        last = last if id is None else str(id)
        expected.append((last, text))
    assert parse_sse(data) == expected


def test_an_event_ends_at_the_first_empty_line_and_has_one_data_line() -> None:
    # A known client splits at LF LF and takes the first "data:" line of each part.
    frame = sse_message(b'{"a":1}', 7)
    assert frame == b'id: 7\ndata: {"a":1}\n\n'
    assert frame.count(b"\n\n") == 1
    assert SSE_KEEPALIVE.startswith(b":") and SSE_KEEPALIVE.endswith(b"\n\n")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0),
        ("17", 17),
        ("007", 7),
        (str(2**53 - 1), 2**53 - 1),
        (str(2**53), None),
        ("9" * 16, None),
        ("9" * 4301, None),
        (None, None),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.0", None),
        ("1e3", None),
        (" 1", None),
        ("1_000", None),
        ("٣", None),
        ("²", None),
    ],
)
def test_last_event_id(value: str | None, expected: int | None) -> None:
    assert parse_last_event_id(value) == expected
