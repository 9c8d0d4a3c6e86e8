"""Lists and searches of directories of the workspace. Blocking: for threads.

Links are told, and never entered; a directory that is swapped for one while a search is in it ends
the search there.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Final

import attrs

from acp_gateway.core.glob_pattern import GlobPattern, State, alternatives, is_wild
from acp_gateway.core.ignore_rules import Hidden, IgnoreRules
from acp_gateway.core.path_boundary import inside
from acp_gateway.protocol.errors import ErrorKind, FileError
from acp_gateway.runtime.beneath import Place, open_below, place_of
from acp_gateway.runtime.workspace_files import (
    Kind,
    Roots,
    failures,
    opened,
    pread,
)
from acp_gateway.runtime.workspace_write import TEMPORARY

MAX_ENTRIES: Final = 2000
MAX_VISITED: Final = 100_000
"""Names that one search looks at."""
MAX_RULE_BYTES: Final = 256 * 1024
RULE_FILES: Final = (".gitignore", ".qwenignore")
NEVER_ENTERED: Final = frozenset({".git", "node_modules"})
KNOWN_RULES: Final = 16

_ENTER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@attrs.frozen
class Entry:
    name: str
    kind: Kind
    ignored: bool


@attrs.frozen(kw_only=True)
class Listing:
    path: Path
    entries: list[Entry]
    truncated: bool


@attrs.frozen(kw_only=True)
class Found:
    path: Path
    """Below which they are."""
    paths: list[Path]
    """Without links, each once."""
    truncated: bool


class RuleBook:
    """The ignore rules of the roots, read again when their files change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Path, tuple[object, IgnoreRules]] = OrderedDict()

    def of(self, root: Path) -> IgnoreRules:
        marks, texts = [], []
        for name in RULE_FILES:
            # Whatever is wrong with such a file: it hides nothing.
            with suppress(FileError, OSError), place_of(root / name, (root,)) as place:
                status = place.status
                if status is not None and stat.S_ISREG(status.st_mode):
                    marks.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
        with self._lock:
            known = self._known.get(root)
        if known is not None and known[0] == marks:
            return known[1]
        for name, *_ in marks:
            with (
                suppress(FileError, OSError),
                place_of(root / name, (root,)) as place,
                opened(place, name) as fd,
            ):
                texts.append(pread(fd, MAX_RULE_BYTES).decode(errors="replace"))
        rules = IgnoreRules(texts)
        with self._lock:
            self._known[root] = (marks, rules)
            if len(self._known) > KNOWN_RULES:
                self._known.popitem(last=False)
        return rules

    def hides(self, path: Path, roots: Roots, *, directory: bool = False) -> Hidden | None:
        """Of a path without links."""
        root = inside(path, roots)
        if root is None:
            return None
        names = path.parts[len(root.parts) :]
        return self.of(Path(root)).hides(names, directory=directory)


def told(name: str) -> str:
    """A name as it can be told: what is no UTF-8 is replaced."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


@contextmanager
def _entered(place: Place, shown: str) -> Iterator[int]:
    """A descriptor on a directory, for reading it."""
    if place.status is None:
        raise FileNotFoundError(errno.ENOENT, "missing")
    if not stat.S_ISDIR(place.status.st_mode):
        raise FileError(ErrorKind.PARSE_ERROR, f"{shown} is not a directory")
    fd = os.open(place.name, _ENTER, dir_fd=place.parent)
    try:
        yield fd
    finally:
        os.close(fd)


def list_directory(
    roots: Roots, path: PurePath, shown: str, rules: RuleBook, *, ignored: bool
) -> Listing:
    """At most `MAX_ENTRIES` of its names, sorted. ``ignored``: those too that rules hide."""
    with failures(shown), place_of(path, roots) as place, _entered(place, shown) as fd:
        book = rules.of(place.root)
        hidden = bool(place.names) and book.hides(place.names, directory=True) is not None
        entries: list[Entry] = []
        truncated = False
        with os.scandir(fd) as found:
            for each in found:
                kind = _kind(each)
                is_hidden = hidden or _is_hidden(book, (*place.names, each.name), kind)
                if is_hidden and not ignored:
                    continue
                if len(entries) == MAX_ENTRIES:
                    truncated = True
                    break
                entries.append(Entry(told(each.name), kind, is_hidden))
        entries.sort(key=lambda entry: entry.name)
        return Listing(path=place.path, entries=entries, truncated=truncated)


def _kind(entry: os.DirEntry[str]) -> Kind:
    # Known from the directory itself, but on a few file systems.
    if entry.is_symlink():
        return "symlink"
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    if entry.is_file(follow_symlinks=False):
        return "file"
    return "other"


def _is_hidden(rules: IgnoreRules, names: tuple[str, ...], kind: Kind) -> bool:
    if TEMPORARY.fullmatch(names[-1]):
        return True
    return rules.hides_entry(names, directory=kind == "directory")


# ---- search --------------------------------------------------------------------------------------


@attrs.define
class _Search:
    roots: Roots
    rules: RuleBook
    ignored: bool
    most: int
    go_on: Callable[[], None]
    paths: dict[Path, None] = attrs.field(factory=dict)
    visited: int = 0

    def is_full(self) -> bool:
        return len(self.paths) > self.most or self.visited > MAX_VISITED

    def run(self, base: Path, segments: list[str], shown: str) -> None:
        """One pattern, from the directory at ``base``, which has no links."""
        plain = 0
        while plain < len(segments) - 1 and not is_wild(segments[plain]):
            plain += 1
        if NEVER_ENTERED.intersection(segments[:plain]):
            return
        start = base.joinpath(*segments[:plain])
        try:
            with (
                failures(shown),
                place_of(start, self.roots) as place,
                _entered(place, shown) as top,
            ):
                self._walk(top, place, GlobPattern(segments[plain:]))
        except FileError:
            if plain == 0:
                raise
            # The pattern names a directory that is not there, or that leads out: no match.

    def _walk(self, top: int, place: Place, pattern: GlobPattern) -> None:
        rules = self.rules.of(place.root)
        todo: list[tuple[tuple[str, ...], State]] = [((), pattern.start)]
        while todo and not self.is_full():
            self.go_on()
            below, state = todo.pop()
            # One that has gone, or may not be read, holds no matches.
            with suppress(OSError):
                directories = []
                for name, kind in self._names(top, below):
                    if self.is_full():
                        return
                    after = pattern.step(state, name)
                    if not after or name in NEVER_ENTERED:
                        continue
                    names = (*place.names, *below, name)
                    if not self.ignored and _is_hidden(rules, names, kind):
                        continue
                    if pattern.accepts(after):
                        self._add(place.root.joinpath(*names), kind)
                    if kind == "directory" and pattern.goes_on(after):
                        directories.append(((*below, name), after))
                todo += reversed(directories)

    def _names(self, top: int, below: tuple[str, ...]) -> list[tuple[str, Kind]]:
        path = open_below(top, below)
        try:
            fd = os.open(".", _ENTER, dir_fd=path)
        finally:
            os.close(path)
        try:
            with os.scandir(fd) as found:
                names = []
                for each in found:
                    self.visited += 1
                    if self.is_full():
                        break
                    names.append((each.name, _kind(each)))
        finally:
            os.close(fd)
        return sorted(names)

    def _add(self, path: Path, kind: Kind) -> None:
        if kind != "symlink":
            self.paths[path] = None
            return
        with suppress(FileError, OSError), place_of(path, self.roots) as place:
            if place.status is not None:
                self.paths[place.path] = None


def search(
    roots: Roots,
    base: PurePath,
    shown: str,
    pattern: str,
    rules: RuleBook,
    *,
    ignored: bool,
    most: int,
    go_on: Callable[[], None],
) -> Found:
    """At most ``most`` files and directories below ``base``, by directory and name.

    ``go_on`` is called for each directory and ends the search by raising.
    """
    patterns = alternatives(pattern)
    with failures(shown), place_of(base, roots) as place, _entered(place, shown):
        start = place.path
    found = _Search(roots, rules, ignored, most, go_on)
    for segments in patterns:
        if segments:
            found.run(start, segments, shown)
    return Found(path=start, paths=list(found.paths)[:most], truncated=found.is_full())
