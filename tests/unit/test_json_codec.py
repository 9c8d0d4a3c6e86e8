"""JSON of peers that may be wrong: it comes back the same, or it is a `JsonError`."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.wire.json_codec import JsonError, dumps, loads, valid_utf8

# Any code point, lone surrogates as well: JSON can write them all.
any_text = st.text(st.characters(exclude_categories=()), max_size=20)
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=20,
)


def escaped(text: str) -> str:
    """What a decoder makes of escapes: two halves side by side are one character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def same(value: Any) -> Any:
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, list):
        return [same(item) for item in value]
    if isinstance(value, dict):
        return {same(key): same(item) for key, item in value.items()}
    return value


@given(any_json)
def test_what_is_written_reads_back_here_and_elsewhere(value: Any) -> None:
    data = dumps(value)
    assert b"\n" not in data and b"\r" not in data
    assert data.decode()  # valid UTF-8, whatever the text held
    assert loads(data) == json.loads(data) == same(value)


@given(any_json)
def test_all_kinds_of_buffers_are_read_alike(value: Any) -> None:
    data = json.dumps(value).encode()
    expected = loads(data)
    assert loads(data.decode()) == expected
    assert loads(bytearray(data)) == expected
    assert loads(memoryview(data)) == expected


def test_an_integer_of_any_size_keeps_its_digits() -> None:
    for number in (2**63, 2**64, -(2**63) - 1, 10**400):
        assert loads(dumps({"id": number})) == {"id": number}
    # More digits than Python converts by default; refused by no JSON grammar.
    assert loads(b"1" * 5000) == math.inf and loads(b"-" + b"1" * 5000) == -math.inf


def test_a_lone_surrogate_survives_and_a_pair_is_one_character() -> None:
    assert loads(b'"\\ud83d"') == "\ud83d"
    assert loads(b'"a\\ud83d\\ude00b"') == "a\U0001f600b"
    assert dumps("cut \ud83d") == b'"cut \\ud83d"'
    assert dumps({"\ud83d": ["é", msgspec.Raw(b'{"x": 1}')]}) == (
        b'{"\\ud83d":["\\u00e9",{"x":1}]}'
    )


@pytest.mark.parametrize("text", [b"NaN", b"[Infinity]", b'{"a":-Infinity}', b'["\\ud83d",NaN]'])
def test_nan_and_infinity_are_not_json(text: bytes) -> None:
    with pytest.raises(JsonError):
        loads(text)


def test_values_that_json_does_not_have_are_written_as_null() -> None:
    assert dumps([math.nan, math.inf]) == b"[null,null]"
    assert dumps([math.nan, {"a": -math.inf}, 2**70]) == b'[null,{"a":null},1180591620717411303424]'


def test_a_number_out_of_range_is_infinite_as_in_javascript() -> None:
    assert loads(b'{"a":1e999,"b":-1e999}') == {"a": math.inf, "b": -math.inf}


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b" ", b"{", b"[1,]", b'{"a":1,}', b"01", b"1.", b"tru", b"'a'", b"1 2", b"{} x"),
        *(b'"\\q"', b'"\\u12"', b'"a\nb"', b'"\xff"', b'"\\ud800\xff"', b"\xef\xbb\xbf1", b"\xfe"),
        b'"\xed\xa0\x80"',
    ],
)
def test_what_is_not_one_json_value_in_utf8_is_refused(text: bytes) -> None:
    with pytest.raises(JsonError):
        loads(text)


@given(st.binary(max_size=40) | st.text(st.characters(exclude_categories=())).map(str))
def test_loads_raises_nothing_else(data: bytes | str) -> None:
    with contextlib.suppress(JsonError):
        loads(data)


@pytest.mark.parametrize("depth", [3_000, 100_000])
@pytest.mark.parametrize("inside", [b"1", b'"\\ud800"', b"1e999"])
def test_deep_nesting_is_refused_both_ways(depth: int, inside: bytes) -> None:
    for before, after in ((b"[", b"]"), (b'{"a":', b"}")):
        with pytest.raises(JsonError):
            loads(before * depth + inside + after * depth)
    value: Any = 2**70
    for _ in range(depth):
        value = [value]
    with pytest.raises(JsonError):
        dumps(value)


def test_nesting_that_real_messages_have_is_accepted() -> None:
    data = b"[" * 100 + b'"\\ud800"' + b"]" * 100
    assert loads(dumps(loads(data))) == loads(data)


def test_raw_is_spliced_in_unread() -> None:
    assert dumps({"result": msgspec.Raw(b'{"n": 1.50}')}) == b'{"result":{"n": 1.50}}'


@pytest.mark.parametrize("value", [object(), {(1, 2): 3}, [2**70, object()]])
def test_what_has_no_json_form_is_refused(value: Any) -> None:
    with pytest.raises(JsonError):
        dumps(value)


@given(st.binary(max_size=30))
def test_valid_utf8_is_utf8_and_changes_only_what_is_not(data: bytes) -> None:
    clean = valid_utf8(data)
    assert clean.decode() == data.decode(errors="replace")
    assert valid_utf8(clean) is clean
    try:
        data.decode()
    except UnicodeDecodeError:
        assert clean != data
    else:
        assert clean is data
