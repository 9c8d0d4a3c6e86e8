"""Wildcards over paths: ``*``, ``?`` and ``[a-z]`` inside a name, ``**`` over whole directories.

A pattern is followed one name at a time, so that a walk can turn back where nothing below could
match. Time is linear in the pattern for every name: nobody can stop the daemon with a pattern.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from typing import Final, TypeAlias

from acp_gateway.protocol.errors import ErrorKind, FileError

MAX_LENGTH: Final = 1024
MAX_ALTERNATIVES: Final = 64

State: TypeAlias = frozenset[int]
"""Which positions of a pattern the names so far may have led to."""

_WILD: Final = re.compile(r"[*?\[]")
_BRACES: Final = re.compile(r"\{([^{}]*,[^{}]*)\}")


def is_wild(name: str) -> bool:
    return _WILD.search(name) is not None


class GlobPattern:
    """One pattern without braces; ``segments`` are its parts between slashes."""

    def __init__(self, segments: list[str]) -> None:
        self._tests = [None if each == "**" else name_test(each) for each in segments]
        self._end = len(segments)
        self.start = self._closed({0})

    def step(self, state: State, name: str) -> State:
        """After one more name."""
        found = set()
        for at in state:
            if at == self._end:
                continue
            test = self._tests[at]
            if test is None:
                found.add(at)
            elif test(name):
                found.add(at + 1)
        return self._closed(found)

    def accepts(self, state: State) -> bool:
        return self._end in state

    def goes_on(self, state: State) -> bool:
        """May more names still match?"""
        return any(at < self._end for at in state)

    def matches(self, names: tuple[str, ...]) -> bool:
        state = self.start
        for name in names:
            state = self.step(state, name)
        return self.accepts(state)

    def _closed(self, state: set[int]) -> State:
        # ``**`` stands for no directory too.
        for at in tuple(state):
            while at < self._end and self._tests[at] is None:
                at += 1
                state.add(at)
        return frozenset(state)


def name_test(segment: str) -> Callable[[str], object]:
    """What tells whether a name matches one segment; ``**`` counts as ``*``."""
    if not is_wild(segment):
        return segment.__eq__
    return re.compile(fnmatch.translate(segment)).match


def alternatives(pattern: str) -> list[list[str]]:
    """The patterns that a client's ``pattern`` stands for (``{a,b}``), each as its segments.

    Raises ``parse_error`` for one that is empty, absolute, too long or has ``..``.
    """
    if not pattern or len(pattern) > MAX_LENGTH or "\0" in pattern:
        raise FileError(
            ErrorKind.PARSE_ERROR, f"`pattern` must have 1 to {MAX_LENGTH} characters and no NUL"
        )
    made: dict[str, None] = {}
    todo = [pattern]
    while todo:
        each = todo.pop()
        match = _BRACES.search(each)
        if match is None:
            made[each] = None
        else:
            head, tail = each[: match.start()], each[match.end() :]
            todo += [head + choice + tail for choice in reversed(match[1].split(","))]
        if len(todo) + len(made) > MAX_ALTERNATIVES:
            raise FileError(
                ErrorKind.PARSE_ERROR,
                f"`pattern` stands for more than {MAX_ALTERNATIVES} patterns",
                remedy="use fewer braces",
            )
    return [_segments(each) for each in made]


def _segments(pattern: str) -> list[str]:
    segments = re.split(r"/+", pattern)
    if ".." in re.split(r"[\\/]", pattern):
        raise FileError(ErrorKind.PARSE_ERROR, "`pattern` may not have '..'")
    if pattern.startswith(("/", "\\\\")) or re.match(r"[A-Za-z]:[\\/]", pattern):
        raise FileError(
            ErrorKind.PARSE_ERROR,
            "`pattern` must be relative",
            remedy="send one such as src/**/*.py, with `cwd` for another directory",
        )
    return [each for each in segments if each not in ("", ".")]
