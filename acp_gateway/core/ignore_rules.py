"""What ``.gitignore`` and ``.qwenignore`` of a root hide (gitignore(5), the patterns of one file).

The rules hide names in lists; they protect nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, Literal

import attrs

from acp_gateway.core.glob_pattern import GlobPattern, name_test

Hidden = Literal["file", "directory"]

MAX_RULES: Final = 2000
"""Of one file; what comes behind them is not read."""
_ESCAPED: Final = re.compile(r"\\(.)")


@attrs.frozen
class _Rule:
    matches: Callable[[tuple[str, ...]], object]
    directory: bool
    """Hides directories only."""
    shows: bool
    """``!``: takes back what a rule before it hid."""


class IgnoreRules:
    """The rules of several files, the later ones winning."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._rules = [rule for text in texts for rule in _read(text)]

    def hides(self, names: tuple[str, ...], *, directory: bool) -> Hidden | None:
        """Whether the path below the root is hidden: as a file, or because it or a directory
        above it is a hidden directory."""
        if not self._rules or not names:
            return None
        for end in range(1, len(names)):
            if self.hides_entry(names[:end], directory=True):
                return "directory"
        if not self.hides_entry(names, directory=directory):
            return None
        return "directory" if directory else "file"

    def hides_entry(self, names: tuple[str, ...], *, directory: bool) -> bool:
        """The same for the entry itself, when no directory above it is hidden."""
        for rule in reversed(self._rules):
            if (directory or not rule.directory) and rule.matches(names):
                return not rule.shows
        return False


def _read(text: str) -> list[_Rule]:
    rules = []
    for line in text.splitlines()[:MAX_RULES]:
        rule = _rule(line)
        if rule is not None:
            rules.append(rule)
    return rules


def _rule(line: str) -> _Rule | None:
    # A space at the end counts only behind a backslash.
    line = re.sub(r"(?<!\\)[ \t]+$", "", line)
    if not line or line.startswith("#"):
        return None
    shows = line.startswith("!")
    if shows:
        line = line[1:]
    directory = line.endswith("/")
    line = line.removesuffix("/")
    anchored = "/" in line
    segments = [_plain(each) for each in line.removeprefix("/").split("/")]
    if "" in segments:
        # No path has an empty name.
        return None
    if not anchored:
        # The usual kind, and the quick one.
        test = name_test(segments[0])
        return _Rule(lambda names: test(names[-1]), directory, shows)
    if segments[-1] == "**":
        # What is inside, not the directory.
        segments.append("*")
    return _Rule(GlobPattern(segments).matches, directory, shows)


def _plain(segment: str) -> str:
    """In the spelling of `GlobPattern`: ``[!a]`` for ``[^a]``, ``[*]`` for a backslash and a star.

    A backslash before a character that means nothing special is dropped.
    """
    segment = _ESCAPED.sub(lambda m: f"[{m[1]}]" if m[1] in "*?[" else m[1], segment)
    return segment.replace("[^", "[!")
