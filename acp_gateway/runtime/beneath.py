"""From a path to the directory that holds its file, without leaving the workspace on the way.

Rule 1: nothing is opened by a path that the kernel resolves by itself. Each directory is opened
from the descriptor of the one above it and no link is followed, so that a directory that is
swapped for a link while we are on our way is an error, not a way out. Rule 2: a link is read, and
where it points to is walked anew from a root, under the same rules; so links that stay inside work
and others are refused. Rule 3: ``..`` is never given to the kernel. Rule 4: what is found is a
directory's descriptor and a name in it; whoever opens the name says O_NOFOLLOW again.

Linux does the common case, a path without links, in one call: openat2(2) with RESOLVE_BENEATH and
RESOLVE_NO_SYMLINKS. Where it is missing the walk alone is as tight.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Final

import attrs

from acp_gateway.core.path_boundary import inside
from acp_gateway.protocol.errors import ErrorKind, FileError

MAX_DETOURS: Final = 64
"""Links and ``..`` of links on the way to one file."""
DIRECTORY: Final = (
    getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
)

_SYS_OPENAT2: Final = 437
_NO_MAGICLINKS: Final = 0x02
_NO_SYMLINKS: Final = 0x04
_BENEATH: Final = 0x08


@attrs.frozen
class Place:
    """Where a path leads: to ``name`` in the directory that ``parent`` is open on."""

    root: Path
    names: tuple[str, ...]
    """Below the root, without links."""
    parent: int
    status: os.stat_result | None
    """Of the file, None when there is none; never a link's."""

    @property
    def name(self) -> str:
        return self.names[-1] if self.names else "."

    @property
    def path(self) -> Path:
        return self.root.joinpath(*self.names)


@contextmanager
def place_of(path: PurePath, roots: Sequence[Path]) -> Iterator[Place]:
    """``path`` is absolute and without ``..``; ``roots`` are canonical.

    Raises ``path_outside_workspace``, ``symlink_escape`` and `OSError` (a directory on the way is
    missing, is none, or may not be entered).
    """
    place = _find(path, roots)
    try:
        yield place
    finally:
        os.close(place.parent)


def open_below(directory: int, names: Sequence[str]) -> int:
    """The directory at ``names`` below an open one; its descriptor is the caller's to close.

    Raises `OSError`, also for a link on the way.
    """
    if _openat2 is not None and names:
        with suppress(BlockingIOError):
            path = "/".join(names)
            return _openat2(directory, path, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)
    return _down(directory, names)


def _down(directory: int, names: Sequence[str]) -> int:
    here = os.open(".", DIRECTORY, dir_fd=directory)
    for name in names:
        try:
            below = os.open(name, DIRECTORY, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def _find(path: PurePath, roots: Sequence[Path]) -> Place:
    parts = list(path.parts[1:])
    for detour in range(MAX_DETOURS):
        root, names = _start(parts, roots, is_link=detour > 0)
        found = _walk(root, names)
        if isinstance(found, Place):
            return found
        parts = found
    raise FileError(
        ErrorKind.SYMLINK_ESCAPE,
        "the path leads through too many links, or in a circle",
        remedy="send a path without links",
    )


def _start(parts: list[str], roots: Sequence[Path], *, is_link: bool) -> tuple[Path, list[str]]:
    """The root that holds a path by its text, and what is left to walk below it."""
    plain = list(parts)
    if ".." in plain:
        plain = plain[: plain.index("..")]
    root = inside(Path("/", *plain), roots)
    if root is None:
        # The workspace may have a second name, through a link outside it. What is below the root
        # is walked all the same.
        parts = list(Path(os.path.realpath("/" + "/".join(parts))).parts[1:])
        root = inside(Path("/", *parts), roots)
    if root is None:
        raise FileError(
            ErrorKind.SYMLINK_ESCAPE if is_link else ErrorKind.PATH_OUTSIDE_WORKSPACE,
            "a link of the path leads out of the workspace"
            if is_link
            else "path is outside the workspace",
            remedy="use a path under " + ", ".join(str(each) for each in roots),
        )
    return Path(root), parts[len(root.parts) - 1 :]


def _walk(root: Path, names: list[str]) -> Place | list[str]:
    """What is at ``names``; or, when a link or ``..`` stands in the way, the path (from ``/``)
    that is to be walked instead."""
    base = list(root.parts[1:])
    here = _open_root(root)
    try:
        *above, last = names or ["."]
        if ".." not in above and above:
            with suppress(OSError):
                # The quick way. When it fails, the walk below says what is the matter.
                there = open_below(here, above)
                os.close(here)
                here, above = there, []
        done = len(names) - 1 - len(above) if names else 0
        for index, name in enumerate(above, done):
            if name == "..":
                return _back(base + names[:index], names[index:])
            try:
                below = os.open(name, DIRECTORY, dir_fd=here)
            except OSError:
                target = _target(name, here)
                if target is None:
                    raise
                return _joined(base + names[:index], target, names[index + 1 :])
            os.close(here)
            here = below
        if last == "..":
            return _back(base + names[:-1], names[-1:])
        try:
            status = os.stat(last, dir_fd=here, follow_symlinks=False)
        except FileNotFoundError:
            status = None
        if status is not None and stat.S_ISLNK(status.st_mode):
            target = _target(last, here)
            if target is None:
                # It is a file again: look once more.
                return base + names
            return _joined(base + names[:-1], target, [])
        place = Place(root, tuple(names), here, status)
        here = -1
        return place
    finally:
        if here >= 0:
            os.close(here)


def _back(before: list[str], rest: list[str]) -> list[str]:
    """``before`` has been walked and has no links, so that its text may be shortened."""
    while rest and rest[0] == "..":
        before, rest = before[:-1], rest[1:]
    return before + rest


def _joined(before: list[str], target: str, rest: list[str]) -> list[str]:
    parts = [each for each in target.split("/") if each not in ("", ".")]
    return (parts if target.startswith("/") else before + parts) + rest


def _target(name: str, directory: int) -> str | None:
    """Where a link points to; None when it is no link."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return None


def _open_root(root: Path) -> int:
    """A root has no links on its way; one that is there now was put there to lead us astray."""
    try:
        if _openat2 is not None:
            with suppress(BlockingIOError):
                return _openat2(-1, str(root), _NO_SYMLINKS | _NO_MAGICLINKS)
        top = os.open("/", DIRECTORY)
        try:
            return _down(top, root.parts[1:])
        finally:
            os.close(top)
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENOTDIR):
            raise FileError(
                ErrorKind.SYMLINK_ESCAPE,
                f"the workspace {root} is no longer the directory that it was",
                remedy="start the gateway again",
            ) from None
        raise


# ---- openat2(2) ----------------------------------------------------------------------------------


class _How(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _OpenAt2:
    """Opens a directory. Raises `OSError`; `BlockingIOError`: the kernel cannot tell, walk."""

    def __init__(self) -> None:
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long

    def __call__(self, directory: int, path: str, resolve: int) -> int:
        how = _How(DIRECTORY, 0, resolve)
        while True:
            opened = self._syscall(
                ctypes.c_long(_SYS_OPENAT2),
                ctypes.c_int(directory),
                ctypes.c_char_p(os.fsencode(path)),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
            )
            if opened >= 0:
                return int(opened)
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))


def _available() -> _OpenAt2 | None:
    if sys.platform != "linux":
        return None
    try:
        call = _OpenAt2()
        os.close(call(-1, "/", _NO_SYMLINKS))
    except (OSError, AttributeError):
        # An old kernel, or a sandbox that does not know the call.
        return None
    return call


_openat2: Final = _available()
