"""A user's command as a machine: output cut and bounded, one end."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.shell_run import (
    CHUNK,
    HISTORY,
    INTERVAL,
    TAIL,
    ShellOutput,
    ShellRun,
    for_history,
)

pieces = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.builds(lambda byte, n: bytes([byte]) * n, st.integers(0, 255), st.integers(0, 90_000)),
    ),
    max_size=12,
)


def told(output: ShellOutput, parts: list[bytes], step: float = 0.02) -> list[str]:
    """The events of an output whose parts come one every ``step`` seconds."""
    events, now = [], 0.0
    for part in parts:
        output.feed(part)
        due = output.due(now)
        if due is not None and due <= now:
            events += output.take(now)
        now += step
    output.finish()
    return events + output.take(now)


@given(pieces)
def test_events_together_are_the_text(parts: list[bytes]) -> None:
    output = ShellOutput(1 << 30)
    events = told(output, parts)
    whole = b"".join(parts)
    assert "".join(events) == output.text == whole.decode(errors="replace")
    assert all(0 < len(each) <= CHUNK for each in events)
    assert output.total == len(whole) and not output.truncated


@given(pieces, st.integers(1, 100_000))
def test_what_is_left_out_is_counted(parts: list[bytes], limit: int) -> None:
    output = ShellOutput(limit)
    events = told(output, parts)
    whole = b"".join(parts)
    assert "".join(events) == output.text
    assert output.truncated == (len(whole) > limit)
    if not output.truncated:
        assert output.text == whole.decode(errors="replace")
        return
    # Three bytes of the text stand for one byte that was none.
    assert len(output.text.encode()) <= 3 * limit + 64
    head = limit - min(TAIL, limit // 4)
    assert output.text.startswith(whole[:head].decode(errors="replace"))
    mark = output.text[len(whole[:head].decode(errors="replace")) :]
    found = re.match(r"\n\[(\d+) bytes left out\]\n", mark)
    assert found and 0 <= int(found[1]) - (len(whole) - limit) < 4


def test_a_character_at_the_cut_is_not_torn_in_the_tail() -> None:
    output = ShellOutput(101)
    whole = "€".encode() * TAIL
    output.feed(whole)
    output.finish()
    head, _, tail = output.text.partition("\n[")
    left, _, tail = tail.partition(" bytes left out]\n")
    assert set(head) == {"€", "\ufffd"} and set(tail) == {"€"}
    assert 76 + int(left) + len(tail.encode()) == len(whole)


def test_the_first_words_go_out_at_once_and_then_so_many_a_second() -> None:
    output = ShellOutput(1 << 20)
    assert output.due(5.0) is None
    output.feed(b"a")
    assert (output.due(5.0) or 0) <= 5.0
    assert output.take(5.0) == ["a"]
    output.feed(b"b")
    assert output.due(5.0) == 5.0 + INTERVAL
    output.feed(b"c" * CHUNK)
    assert output.due(5.0) == 5.0
    assert "".join(output.take(5.0)) == "b" + "c" * CHUNK
    assert output.due(9.0) is None and output.take(9.0) == []


def test_memory_is_bounded_whatever_comes() -> None:
    output = ShellOutput(64 * 1024)
    for _ in range(2000):
        output.feed(b"y\n" * 32 * 1024)
        output.take(0.0)
    assert output.full and len(output._tail) == 16 * 1024
    assert sum(map(len, output._told)) == 48 * 1024


def make() -> ShellRun:
    return ShellRun(id="r", command="c", cwd="/", client=None, output=ShellOutput(10))


def test_it_ends_once() -> None:
    run = make()
    end = run.settle(0, None)
    assert end is not None and (end.exit_code, end.aborted, end.error) == (0, False, None)
    assert run.settle(1, None) is None and run.end is end
    assert not run.stop("too late") and run.end == end
    assert end.as_event() == {"exitCode": 0, "signal": None, "aborted": False}


@pytest.mark.parametrize("code", [None, 0, 4])
def test_one_that_was_stopped_says_so_however_it_ended(code: int | None) -> None:
    run = make()
    assert run.stop("first") and not run.stop("second")
    end = run.settle(code, None if code is not None else 15)
    assert end is not None and (end.aborted, end.error) == (True, "first")
    assert end.as_event()["error"] == "first"


def test_an_agents_history_gets_beginning_and_end() -> None:
    assert for_history("x" * HISTORY) == "x" * HISTORY
    cut = for_history("a" * HISTORY + "b" * HISTORY)
    assert len(cut) <= HISTORY and cut.startswith("a" * 4000) and cut.endswith("b" * 4000)
