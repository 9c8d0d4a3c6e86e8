"""Which directories are watched, and what has become of a path. Blocking: for threads.

No link is followed: a directory is entered by its descriptor, from the root (`beneath`). What the
ignore rules of a root hide, ``.git`` and ``node_modules`` are left out.
"""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Final

import attrs

from acp_gateway.core.file_changes import Kind as ChangeKind
from acp_gateway.core.file_changes import by_path, settled
from acp_gateway.core.ignore_rules import IgnoreRules
from acp_gateway.core.path_boundary import inside
from acp_gateway.protocol.errors import FileError
from acp_gateway.runtime.beneath import place_of
from acp_gateway.runtime.own_writes import Note, OwnWrites
from acp_gateway.runtime.workspace_files import Roots
from acp_gateway.runtime.workspace_search import NEVER_ENTERED, RULE_FILES, RuleBook
from acp_gateway.runtime.workspace_write import TEMPORARY

MAX_DIRECTORIES: Final = 20_000
"""That are watched; those nearest to the roots come first."""

COARSE_NS: Final = 50_000_000

_READ: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@attrs.frozen
class Change:
    path: Path
    kind: ChangeKind
    directory: bool
    writer: Note | None
    """Who wrote it, when the gateway did."""


@attrs.frozen
class _Look:
    changed: int
    """When the directory changed last, as it was looked at (nanoseconds)."""
    at: int

    def missed(self, changed: int) -> bool:
        """May something have been made since? File systems tell time by a coarse clock."""
        return changed != self.changed or self.at - changed < COARSE_NS


@attrs.define
class Plan:
    directories: dict[Path, _Look] = attrs.field(factory=dict)
    """Canonical."""
    complete: bool = True
    """False: there are more than `MAX_DIRECTORIES`."""

    def names(self) -> list[str]:
        """As a watcher takes them: those that can be spelled."""
        return [name for name in map(str, self.directories) if _can_be_told(name)]

    def forget(self, gone: set[Path]) -> None:
        """These, and what is below them."""
        for path in tuple(self.directories) if gone else ():
            if path in gone or not gone.isdisjoint(path.parents):
                del self.directories[path]

    def prune(self) -> None:
        """Forget what is no directory any more, or cannot be read."""
        for path in tuple(self.directories):
            if path.is_symlink() or not path.is_dir() or not os.access(path, os.R_OK):
                del self.directories[path]


class Watched:
    """The roots, as a watcher looks at them."""

    def __init__(self, roots: Roots, rules: RuleBook, writes: OwnWrites) -> None:
        self._roots = roots
        self._rules = rules
        self._writes = writes
        self._known: dict[Path, IgnoreRules] = {}
        """The rules of the roots, for one look at them."""

    def plan(self, go_on: Callable[[], None]) -> Plan:
        """All directories below the roots. ``go_on`` is called for each, and ends it by raising."""
        plan = Plan()
        for _ in self.below(plan, self._outermost(), go_on):
            pass
        return plan

    def roots_only(self) -> Plan:
        """For a system that watches trees."""
        return Plan(dict.fromkeys(self._outermost(), _Look(0, 0)))

    def _outermost(self) -> list[Path]:
        return [
            root for root in self._roots if not any(each in root.parents for each in self._roots)
        ]

    def identities(self) -> list[tuple[int, int] | None]:
        """Which directories the roots are, None for one that is gone."""
        found: list[tuple[int, int] | None] = []
        for root in self._roots:
            try:
                status = os.lstat(root)
            except OSError:
                found.append(None)
            else:
                found.append((status.st_dev, status.st_ino))
        return found

    def below(
        self, plan: Plan, starts: Iterable[Path], go_on: Callable[[], None]
    ) -> Iterator[Path]:
        """Puts ``starts`` and what is below them into the plan, and gives every file and directory
        there that is not hidden."""
        self._known.clear()
        todo = deque(starts)
        while todo:
            go_on()
            path = todo.popleft()
            if path in plan.directories:
                continue
            if len(plan.directories) >= MAX_DIRECTORIES:
                plan.complete = False
                return
            found = self._entries(path)
            if found is None:
                continue
            plan.directories[path], entries = found
            for entry, directory in entries:
                if directory:
                    todo.append(entry)
                yield entry

    def missed(self, plan: Plan, go_on: Callable[[], None]) -> list[Path]:
        """Directories that were made behind our look at theirs, with what is in them; they are in
        the plan now."""
        self._known.clear()
        starts = []
        for path, look in tuple(plan.directories.items()):
            go_on()
            try:
                changed = os.lstat(path).st_mtime_ns
            except OSError:
                continue
            if look.missed(changed) and (found := self._entries(path)) is not None:
                plan.directories[path], entries = found
                starts += [
                    entry
                    for entry, directory in entries
                    if directory and entry not in plan.directories
                ]
        return [*starts, *self.below(plan, starts, go_on)]

    def _entries(self, path: Path) -> tuple[_Look, list[tuple[Path, bool]]] | None:
        """What may be told of a directory; None for one that has gone, or may not be read."""
        root = inside(path, self._roots)
        if root is None:
            return None
        rules, above = self._rules_of(Path(root)), path.parts[len(root.parts) :]
        try:
            with _entered(path, self._roots) as fd, os.scandir(fd) as found:
                look = _Look(os.fstat(fd).st_mtime_ns, time.time_ns())
                entries = [(each.name, each.is_dir(follow_symlinks=False)) for each in found]
        except (OSError, FileError):
            return None
        return look, [
            (path / name, directory)
            for name, directory in entries
            if not _never_told(name) and not rules.hides_entry((*above, name), directory=directory)
        ]

    def _rules_of(self, root: Path) -> IgnoreRules:
        rules = self._known.get(root)
        if rules is None:
            rules = self._known[root] = self._rules.of(root)
        return rules

    def hides(self, path: Path, *, directory: bool) -> bool:
        """Is nothing told of a path?"""
        root = inside(path, self._roots)
        if root is None:
            return True
        names = path.parts[len(root.parts) :]
        if any(_never_told(name) for name in names):
            return True
        return self._rules_of(Path(root)).hides(names, directory=directory) is not None

    def is_rule(self, path: Path) -> bool:
        """Is it a file of ignore rules?"""
        return path.name in RULE_FILES and path.parent in self._roots

    def changes(self, sightings: Iterable[tuple[int, str]], plan: Plan) -> list[Change]:
        """What has become of what was seen, as far as it may be told."""
        self._known.clear()
        found = []
        seen = by_path(sightings)
        for parent, names in groupby(sorted(map(Path, seen), key=_parent), key=_parent):
            paths = list(names)
            for path, status in self._states(parent, paths):
                directory = (
                    path in plan.directories if status is None else stat.S_ISDIR(status.st_mode)
                )
                kind = settled(seen[str(path)], there=status is not None, directory=directory)
                if kind is None or self.hides(path, directory=directory):
                    continue
                if kind == "deleted" and self.hides(path, directory=True):
                    continue  # it may have been a directory
                note = None
                if status is not None and not directory:
                    note = self._writes.of(path, status)
                if note is not None:
                    kind = "created" if note.created else "modified"
                found.append(Change(path, kind, directory, note))
        return found

    def _states(
        self, parent: Path, paths: list[Path]
    ) -> Iterator[tuple[Path, os.stat_result | None]]:
        """Each with its status, None for one that is not there. Nothing, when the way to them
        leads through a link by now: then they may lie outside."""
        try:
            with _entered(parent, self._roots) as fd:
                for path in paths:
                    try:
                        yield path, os.stat(path.name, dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:
                        yield path, None
        except FileError:
            for path in paths:
                if path in self._roots:  # its parent lies outside
                    yield path, os.lstat(path) if os.path.lexists(path) else None
        except (FileNotFoundError, NotADirectoryError):
            for path in paths:
                yield path, None
        except OSError:
            return


@contextmanager
def _entered(path: Path, roots: Roots) -> Iterator[int]:
    """A descriptor on a directory that has that very path, without links."""
    with place_of(path, roots) as place:
        if place.path != path or place.status is None:
            raise FileNotFoundError(path)
        fd = os.open(place.name, _READ, dir_fd=place.parent)
    try:
        yield fd
    finally:
        os.close(fd)


def _never_told(name: str) -> bool:
    return name in NEVER_ENTERED or TEMPORARY.fullmatch(name) is not None


def _can_be_told(name: str) -> bool:
    return not any("\udc80" <= char <= "\udcff" for char in name)


def _parent(path: Path) -> Path:
    return path.parent
