"""Lines come out the same however the bytes were cut; a line that is too long costs no memory."""

from __future__ import annotations

import itertools
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.wire.ndjson import LineSplitter

MAX = 6
lines_of_any_length = st.lists(st.binary(max_size=3 * MAX).map(lambda b: b.replace(b"\n", b".")))


@st.composite
def cut(draw: st.DrawFn) -> tuple[list[bytes], bytes, list[bytes]]:
    """(lines, what stands behind the last LF, the same bytes in pieces)"""
    lines, rest = draw(lines_of_any_length), draw(st.sampled_from([b"", b"tail", b"a long tail"]))
    data = b"".join(line + b"\n" for line in lines) + rest
    places = draw(st.lists(st.integers(0, len(data)), max_size=12).map(sorted))
    ends = [0, *places, len(data)]
    return lines, rest, [data[a:b] for a, b in itertools.pairwise(ends)]


@given(cut())
def test_any_split_gives_the_same_lines(given_: tuple[list[bytes], bytes, list[bytes]]) -> None:
    lines, rest, pieces = given_
    splitter = LineSplitter(1000)
    assert [line for piece in pieces for line in splitter.feed(piece)] == lines
    assert splitter.rest() == rest
    assert splitter.rest() == b"" and splitter.dropped == 0


@given(cut())
def test_long_lines_are_dropped_and_counted_once_wherever_the_cuts_fall(
    given_: tuple[list[bytes], bytes, list[bytes]],
) -> None:
    lines, rest, pieces = given_
    splitter = LineSplitter(MAX)
    got = []
    for piece in pieces:
        got += splitter.feed(piece)
        assert sum(map(len, splitter._pieces)) <= MAX  # never more is kept than a line may have
    assert got == [line for line in lines if len(line) <= MAX]
    too_long = sum(len(line) > MAX for line in [*lines, rest])
    assert splitter.dropped == too_long
    assert splitter.rest() == (rest if len(rest) <= MAX else b"")


def test_the_counter_may_be_taken_and_reset() -> None:
    splitter = LineSplitter(3)
    assert splitter.feed(b"1234") == [] and splitter.dropped == 1
    splitter.dropped = 0
    assert splitter.feed(b"5678") == [] and splitter.dropped == 0
    assert splitter.feed(b"9\nok\n12345\n") == [b"ok"] and splitter.dropped == 1


class Touched(bytes):
    """Bytes that count how many of them are read by slicing and searching."""

    total = 0

    def _count(self, size: int) -> None:
        Touched.total += size

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        if isinstance(part, bytes):
            self._count(len(part))
        return part

    def rfind(self, *args: Any) -> int:
        self._count(len(self))
        return super().rfind(*args)

    def find(self, *args: Any) -> int:
        self._count(len(self))
        return super().find(*args)

    def split(self, *args: Any) -> Any:
        self._count(len(self))
        return super().split(*args)


@pytest.mark.parametrize("mib", [16, 64])
def test_one_huge_line_in_small_pieces_costs_linear_time(mib: int) -> None:
    """Counted in bytes touched. The factor is the same for any size of line."""
    size, step = mib * 1024 * 1024, 64 * 1024
    splitter = LineSplitter(size)
    piece = Touched(step)
    joins: list[int] = []

    def on_call(_: FrameType, event: str, arg: Any) -> None:
        if event == "c_call" and getattr(arg, "__name__", "") == "join":
            joins.append(sum(map(len, splitter._pieces)))

    Touched.total = 0
    before = sys.getprofile()
    sys.setprofile(on_call)
    try:
        for _ in range(size // step):
            assert splitter.feed(piece) == []
        (line,) = splitter.feed(Touched(b"\n"))
    finally:
        sys.setprofile(before)
    assert len(line) == size
    assert joins == [size]
    assert Touched.total + sum(joins) <= 2 * size + 16


@given(cut())
def test_large_lines_come_apart_from_the_others_and_in_their_place(
    given_: tuple[list[bytes], bytes, list[bytes]],
) -> None:
    lines, rest, pieces = given_
    splitter = LineSplitter(1000, large=MAX)
    got, large = [], []
    for piece in pieces:
        found = splitter.feed(piece)
        taken = splitter.take_large()
        if taken is not None:
            large.append(b"".join(taken))
            got.append(large[-1])
        got += found
    assert got == lines and splitter.rest() == rest
    assert all(len(line) > MAX for line in large)
