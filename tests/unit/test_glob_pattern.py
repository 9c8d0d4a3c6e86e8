"""Wildcards over paths."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.glob_pattern import MAX_ALTERNATIVES, GlobPattern, alternatives
from acp_gateway.protocol.errors import ErrorKind, FileError


def matches(pattern: str, path: str) -> bool:
    return any(GlobPattern(each).matches(tuple(path.split("/"))) for each in alternatives(pattern))


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("*.py", ["a.py", ".py", ".a.py"], ["a/b.py", "a.pyc", "py"]),
        ("**/*.py", ["a.py", "a/b/c.py"], ["a/b", "a.py/b"]),
        ("src/**", ["src", "src/a", "src/a/b"], ["a", "srcs/a", "a/src"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a", "b", "a/bb"]),
        ("**", ["a", "a/b"], []),
        ("a?c", ["abc", "a/c".replace("/", "b")], ["ac", "a/c"]),
        ("[!a]x", ["bx"], ["ax", "/x", "x"]),
        ("[a-c]*", ["a", "cx"], ["d", ""]),
        ("*.{ts,tsx}", ["a.ts", "a.tsx"], ["a.t", "a.{ts,tsx}"]),
        ("{a,b{c,d}}/x", ["a/x", "bc/x", "bd/x"], ["b/x", "a"]),
        ("./a//b/", ["a/b"], ["a", "b"]),
        ("{a}", ["{a}"], ["a"]),
        ("a[", ["a["], ["a"]),
        ("A", ["A"], ["a"]),
        ("a**b", ["ab", "axxb"], ["a/b"]),
    ],
)
def test_what_matches(pattern: str, good: list[str], bad: list[str]) -> None:
    for path in good:
        assert matches(pattern, path), path
    for path in bad:
        assert not matches(pattern, path), path


@pytest.mark.parametrize(
    "pattern",
    ["", "../a", "a/../b", "/etc/*", "a\\..\\b", "C:\\*", "\\\\host\\*", "a{..,b}/../c", "a\0"],
)
def test_what_is_refused(pattern: str) -> None:
    with pytest.raises(FileError) as caught:
        alternatives(pattern)
    assert caught.value.kind is ErrorKind.PARSE_ERROR


def test_braces_do_not_explode() -> None:
    assert len(alternatives("{a,b}" * 6)) == MAX_ALTERNATIVES
    with pytest.raises(FileError):
        alternatives("{a,b}" * 100)
    with pytest.raises(FileError):
        alternatives("x" * 2000)


def test_a_pattern_cannot_stop_the_daemon() -> None:
    began = time.process_time()
    assert not matches("*a" * 200 + "b", "a" * 250)
    assert not matches("**/" * 300 + "x", "/".join("a" * 100))
    assert time.process_time() - began < 1


def naive(segments: list[str], names: list[str]) -> bool:
    if not segments:
        return not names
    if segments[0] == "**":
        return any(naive(segments[1:], names[at:]) for at in range(len(names) + 1))
    return (
        bool(names)
        and fnmatch.fnmatchcase(names[0], segments[0])
        and naive(segments[1:], names[1:])
    )


name = st.text("ab.", min_size=1, max_size=3)
segment = st.one_of(st.just("**"), st.text("ab.*?[]!", min_size=1, max_size=4))


@given(st.lists(segment, min_size=1, max_size=5), st.lists(name, min_size=1, max_size=5))
def test_the_steps_find_what_trying_everything_finds(segments: list[str], names: list[str]) -> None:
    pattern = GlobPattern(segments)
    assert pattern.matches(tuple(names)) == naive(segments, names)
    state = pattern.start
    for at, each in enumerate(names):
        if not pattern.goes_on(state):
            # Nothing below can match: a walk turns back here.
            assert not any(naive(segments, names[: at + more]) for more in range(1, len(names)))
            break
        state = pattern.step(state, each)


@given(st.text(max_size=60))
def test_any_text_is_patterns_or_refused(text: str) -> None:
    try:
        found = alternatives(text)
    except FileError:
        return
    for each in found:
        GlobPattern(each).matches(("a", "b"))
