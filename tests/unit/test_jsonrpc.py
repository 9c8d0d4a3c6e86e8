"""What came in is classified; an agent's line is peeked at and opened with the same result."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.wire.json_codec import dumps, loads
from acp_gateway.wire.jsonrpc import (
    InvalidMessage,
    Line,
    Notification,
    Request,
    Response,
    classify,
    error_bytes,
    notification_bytes,
    open_line,
    peek_update,
    request_bytes,
    result_bytes,
)

ERROR = {"code": -32603, "message": "no"}


@pytest.mark.parametrize("id", [1, 0, -7, 2**80, 1.5, "1", "", None])
def test_ids_keep_type_and_value(id: Any) -> None:
    message = classify({"jsonrpc": "2.0", "id": id, "method": "m"})
    assert message == Request(id, "m", None) and type(message.id) is type(id)
    answer = classify(loads(result_bytes(id, {"a": 1})))
    assert answer == Response(id, {"a": 1}, None) and type(answer.id) is type(id)
    assert classify(loads(error_bytes(id, ERROR))) == Response(id, None, ERROR)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"method": "m"}, Notification("m", None)),
        ({"method": "m", "params": [1]}, Notification("m", [1])),
        ({"method": "m", "params": None, "id": "a"}, Request("a", "m", None)),
        ({"method": "", "id": 1}, Request(1, "", None)),
        ({"method": "m", "id": 1, "result": 5}, Request(1, "m", None)),
        ({"id": 1, "result": None}, Response(1, None, None)),
        ({"id": 1, "result": 0}, Response(1, 0, None)),
        ({"id": None, "error": ERROR}, Response(None, None, ERROR)),
        # Lenient: null is absent.
        ({"id": 1, "result": {}, "error": None}, Response(1, {}, None)),
        ({"id": 1, "method": None, "result": {}}, Response(1, {}, None)),
    ],
)
def test_messages(value: dict[str, Any], expected: object) -> None:
    assert classify({"jsonrpc": "2.0", **value}) == expected


@pytest.mark.parametrize(
    ("value", "id", "word"),
    [
        ([], None, "object"),
        ("x", None, "object"),
        (None, None, "object"),
        ({}, None, "jsonrpc"),
        ({"jsonrpc": "1.0", "id": 3, "method": "m"}, 3, "jsonrpc"),
        ({"jsonrpc": 2.0, "id": "a", "method": "m"}, "a", "jsonrpc"),
        ({"jsonrpc": "2.0", "id": True, "method": "m"}, None, "id"),
        ({"jsonrpc": "2.0", "id": [1], "method": "m"}, None, "id"),
        ({"jsonrpc": "2.0", "id": {}, "result": 1}, None, "id"),
        ({"jsonrpc": "2.0", "id": 4, "method": 5}, 4, "method"),
        ({"jsonrpc": "2.0", "id": 4, "method": ["m"]}, 4, "method"),
        ({"jsonrpc": "2.0"}, None, "method"),
        ({"jsonrpc": "2.0", "result": 1}, None, "method"),
        ({"jsonrpc": "2.0", "id": 5}, 5, "exactly one"),
        ({"jsonrpc": "2.0", "id": 5, "error": None}, 5, "exactly one"),
        ({"jsonrpc": "2.0", "id": 5, "result": None, "error": ERROR}, 5, "exactly one"),
        ({"jsonrpc": "2.0", "id": 5, "error": "text"}, 5, "error"),
    ],
)
def test_what_is_no_message_is_refused_with_the_id_to_answer(
    value: Any, id: Any, word: str
) -> None:
    with pytest.raises(InvalidMessage, match=word) as caught:
        classify(value)
    assert caught.value.id == id and type(caught.value.id) is type(id)


def test_what_is_built_is_what_is_read() -> None:
    assert classify(loads(request_bytes(1, "m", {"a": 1}))) == Request(1, "m", {"a": 1})
    assert classify(loads(notification_bytes("m", [1]))) == Notification("m", [1])
    assert result_bytes("x", msgspec.Raw(b'{"n": 1.50}')).endswith(b'"result":{"n": 1.50}}')


# ---- the agent's lines --------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
updates = st.fixed_dictionaries(
    {},
    optional={"sessionUpdate": st.sampled_from(["agent_message_chunk", "", "é"]) | values}
    | {"content": values},
)
params = st.fixed_dictionaries(
    {}, optional={"sessionId": st.sampled_from(["s", ""]) | values, "update": updates | values}
)
messages = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0")},
    optional={
        "method": st.just("session/update") | values,
        "params": params | values,
        "id": values,
        "result": values,
        "error": values,
    },
)


@given(messages, st.booleans())
def test_peek_and_open_agree(message: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps(message, ensure_ascii=ascii_only)
    line = text.encode(errors="surrogatepass")
    peeked = peek_update(line)
    try:
        opened = open_line(line)
    except InvalidMessage:
        # Only a method that is no string; the peek never claims such a line.
        assert peeked is None and not isinstance(message["method"], str | None)
        return
    assert opened.method == (message.get("method") or "")
    assert bool(opened.id) == ("id" in message)
    if peeked is not None:
        assert opened.method == "session/update" and not opened.id
        found = opened.params_object()
        assert (found.get("sessionId", ""), found["update"].get("sessionUpdate", "")) == peeked
    # What was opened can be read, whatever the line held.
    if isinstance(message.get("params"), dict):
        assert set(opened.params_object()) == set(loads(valid(text))["params"])
    else:
        assert opened.params_object() == {}
    if message.get("error") is None:
        assert not opened.error
    else:
        assert isinstance(opened.error_object(), dict)


def valid(text: str) -> bytes:
    return text.encode(errors="surrogatepass").decode(errors="replace").encode()


def update_line(**extra: Any) -> bytes:
    update = {"sessionUpdate": "agent_message_chunk", **extra}
    return dumps({"method": "session/update", "params": {"sessionId": "s", "update": update}})


def test_the_peek_takes_an_ordinary_update() -> None:
    line = update_line(content={"type": "text", "text": "é"})
    assert peek_update(line) == ("s", "agent_message_chunk")
    assert peek_update(b" " + line + b" \r") == ("s", "agent_message_chunk")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json",
        b"[]",
        b'{"method":"session/update"}',
        b'{"method":"session/update","params":{"sessionId":"s"}}',
        b'{"method":"session/update","params":{"sessionId":"s","update":[]}}',
        b'{"method":"session/update","id":null,"params":{"sessionId":"s","update":{}}}',
        b'{"method":"session/prompt","params":{"sessionId":"s","update":{}}}',
        update_line() + b"{}",
        update_line()[:-1],
        b"[" * 100_000,
        b'{"method":"session/update","params":{"sessionId":"s","update":{"a":'
        + b"[" * 100_000
        + b"]" * 100_000
        + b"}}}",
    ],
)
def test_the_peek_takes_nothing_else_and_raises_nothing(line: bytes) -> None:
    assert peek_update(line) is None


def test_a_lone_surrogate_is_opened_by_the_lenient_way() -> None:
    line = update_line(content={"type": "text", "text": "cut \ud83d"})
    assert peek_update(line) is None
    opened = open_line(line)
    assert opened.method == "session/update"
    assert opened.params_object()["update"]["content"]["text"] == "cut \ud83d"


def test_bytes_that_are_not_utf8_do_not_make_a_line_unreadable() -> None:
    opened = open_line(b'{"id":1,"method":"m","params":{"path":"/a\xff"}}')
    assert opened.params_object() == {"path": "/a�"}
    answer = open_line(b'{"id":1,"result":{"stopReason":"a\xff"}}')
    assert loads(bytes(answer.result)) == {"stopReason": "a�"}


def test_a_number_out_of_range_does_not_make_a_line_unreadable() -> None:
    opened = open_line(b'{"id":1,"method":"m","params":{"sessionId":"s","n":1e999}}')
    assert opened.params_object()["sessionId"] == "s"


@pytest.mark.parametrize(
    "line", [b"garbage", b"[]", b"1", b"", b'{"method":5}', b"[" * 100_000, b'{"a":"\\ud800",}']
)
def test_what_is_no_object_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidMessage):
        open_line(line)


def test_error_and_method_null_count_as_absent_as_they_do_in_classify() -> None:
    opened = open_line(b'{"id":1,"method":null,"result":{},"error":null}')
    assert (opened.method, bytes(opened.result), bool(opened.error)) == ("", b"{}", False)


def test_a_malformed_error_becomes_one_that_clients_can_read() -> None:
    assert open_line(b'{"id":1,"error":"no"}').error_object()["code"] == -32603
    assert Line().error_object()["code"] == -32603
    assert open_line(b'{"id":1,"error":{"code":1,"message":"m"}}').error_object() == {
        "code": 1,
        "message": "m",
    }
