"""Reading files of the workspace. Blocking: for threads.

Every function finds its file by `beneath` and touches it only through the descriptor that it got
there. Expected failures are `FileError`; messages name the path as the caller said it and never
where a link leads.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Final, Literal, NamedTuple

import attrs
import structlog

from acp_gateway.config import MIB
from acp_gateway.core.text_file import (
    MAX_WINDOW,
    SAMPLE,
    Cursor,
    Encoding,
    LineEnding,
    content_hash,
    detect,
    is_binary,
    line_count,
    line_ending,
    line_start,
    window,
)
from acp_gateway.protocol.errors import ErrorKind, FileError
from acp_gateway.runtime.beneath import Place, place_of

log = structlog.get_logger("acp_gateway.files")

Roots = Sequence[Path]
Kind = Literal["file", "directory", "symlink", "other"]

MAX_SCAN: Final = 8 * MIB
"""Bytes that are read of a text: longer ones are read in parts, and have no hash."""
MAX_WHOLE: Final = 100 * MIB
"""Bytes of a text that an agent reads or writes."""

READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS: Final = {
    ErrorKind.PATH_NOT_FOUND: (errno.ENOENT,),
    ErrorKind.FILE_ALREADY_EXISTS: (errno.EEXIST,),
    ErrorKind.PERMISSION_DENIED: (errno.EACCES, errno.EPERM, errno.EROFS),
    ErrorKind.PARSE_ERROR: (errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV),
    ErrorKind.SYMLINK_ESCAPE: (errno.ELOOP, errno.EXDEV),
    ErrorKind.FILE_TOO_LARGE: (errno.EFBIG,),
    ErrorKind.IO_ERROR: (
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBUSY, errno.ETXTBSY, errno.ENOMEM),
        *(errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT),
    ),
}
_KIND_OF: Final = {number: kind for kind, numbers in _KINDS.items() for number in numbers}
_TEXTS: Final = {
    ErrorKind.PATH_NOT_FOUND: ("path does not exist: {}", None),
    ErrorKind.FILE_ALREADY_EXISTS: ("there is already a file: {}", "use mode replace"),
    ErrorKind.PERMISSION_DENIED: ("the gateway may not do that: {}", None),
    ErrorKind.PARSE_ERROR: ("not a file, or not a directory where one must be: {}", None),
    ErrorKind.SYMLINK_ESCAPE: ("a link stands where a file or directory was: {}", None),
    ErrorKind.FILE_TOO_LARGE: ("the file system takes no file of this size: {}", None),
    ErrorKind.IO_ERROR: ("the file system failed: {}", "try again later"),
}


@attrs.frozen(kw_only=True)
class Text:
    """A text, or a part of it."""

    path: Path
    """Where it is, without links."""
    content: str
    encoding: Encoding
    ending: LineEnding
    size: int
    hash: str | None
    lines: int | None
    cursor: Cursor | None
    """Of the next page; None at the end."""

    @property
    def truncated(self) -> bool:
        return self.cursor is not None


@attrs.frozen(kw_only=True)
class Bytes:
    path: Path
    offset: int
    data: bytes
    size: int
    hash: str | None

    @property
    def truncated(self) -> bool:
        return self.offset + len(self.data) < self.size


class Status(NamedTuple):
    """Of a file or directory, and where it is without links."""

    path: Path
    status: os.stat_result


@contextmanager
def failures(shown: str) -> Iterator[None]:
    """`OSError` becomes a `FileError` about ``shown``."""
    try:
        yield
    except OSError as exc:
        kind = _KIND_OF.get(exc.errno or 0)
        if kind is None:
            log.exception("file_failed", errno=exc.errno)
            raise FileError(ErrorKind.INTERNAL, "Internal error") from None
        text, remedy = _TEXTS[kind]
        raise FileError(kind, text.format(shown), remedy=remedy) from None


@contextmanager
def opened(place: Place, shown: str) -> Iterator[int]:
    """A descriptor on a regular file."""
    if place.status is None:
        raise FileNotFoundError(errno.ENOENT, "missing")
    check_regular(place.status, shown)
    fd = os.open(place.name, READ, dir_fd=place.parent)
    try:
        check_regular(os.fstat(fd), shown)
        yield fd
    finally:
        os.close(fd)


def check_regular(status: os.stat_result, shown: str) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISLNK(status.st_mode):
        raise FileError(ErrorKind.SYMLINK_ESCAPE, f"a link stands where a file was: {shown}")
    what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
    raise FileError(ErrorKind.PARSE_ERROR, f"{shown} is {what}")


def pread(fd: int, length: int, offset: int = 0) -> bytes:
    pieces = []
    while length > 0 and (piece := os.pread(fd, length, offset)):
        pieces.append(piece)
        length -= len(piece)
        offset += len(piece)
    return b"".join(pieces)


def stable(fd: int, read: Callable[[int], bytes], shown: str) -> tuple[os.stat_result, bytes]:
    """What ``read`` reads, when the file is the same before and after."""
    before = os.fstat(fd)
    data = read(before.st_size)
    after = os.fstat(fd)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise FileError(
            ErrorKind.HASH_MISMATCH, f"the file changed meanwhile: {shown}", remedy="read it again"
        )
    return before, data


def check_size(fd: int, limit: int, shown: str) -> None:
    if os.fstat(fd).st_size > limit:
        raise FileError(ErrorKind.FILE_TOO_LARGE, f"{shown} is larger than {limit // MIB} MiB")


def check_text(sample: bytes, shown: str) -> None:
    if is_binary(sample):
        raise FileError(
            ErrorKind.BINARY_FILE,
            f"{shown} is no text",
            remedy="read its bytes (GET /file/bytes)",
        )


def read_text(
    roots: Roots,
    path: PurePath,
    shown: str,
    *,
    max_bytes: int | None = None,
    line: int | None = None,
    limit: int | None = None,
    cursor: Cursor | None = None,
) -> Text:
    """A text, or ``limit`` lines from ``line`` (from 1) or ``cursor``, cut at ``max_bytes``."""
    with failures(shown), place_of(path, roots) as place, opened(place, shown) as fd:
        base = 0
        in_parts = any(each is not None for each in (max_bytes, line, limit, cursor))

        def read(size: int) -> bytes:
            nonlocal base
            if size > MAX_WINDOW and not in_parts:
                raise FileError(
                    ErrorKind.FILE_TOO_LARGE,
                    f"{shown} has {size} bytes, more than {MAX_WINDOW}",
                    remedy="read it in parts, with limit or maxBytes and then nextCursor",
                )
            if size <= MAX_SCAN:
                return pread(fd, size)
            base = 0 if cursor is None else cursor.offset
            # Some more than a window, so that its last character is whole.
            return pread(fd, MAX_WINDOW + 16 + (MAX_SCAN if cursor is None else 0), base)

        status, data = stable(fd, read, shown)
        size = status.st_size
        check_text(data[:SAMPLE] if base == 0 else pread(fd, SAMPLE), shown)
        whole = size <= MAX_SCAN
        encoding = detect(data, cut=not whole)
        start = len(encoding.mark)
        if cursor is not None:
            now = (size, status.st_dev, status.st_ino)
            if (cursor.size, cursor.device, cursor.inode) != now:
                raise FileError(
                    ErrorKind.HASH_MISMATCH,
                    f"the file changed since the page before: {shown}",
                    remedy="read it again from its start",
                )
            start = cursor.offset - base
            if not whole:
                encoding = Encoding(cursor.encoding)
        elif line is not None:
            found = line_start(data, encoding, line)
            if found is None and not whole:
                raise FileError(
                    ErrorKind.FILE_TOO_LARGE,
                    f"line {line} of {shown} lies behind the first {MAX_SCAN // MIB} MiB",
                    remedy="read on with nextCursor, or read its bytes",
                )
            start = len(data) if found is None else found
        part = window(
            data, encoding, start, limit=limit, max_bytes=min(max_bytes or MAX_WINDOW, MAX_WINDOW)
        )
        end = base + part.end
        following = None
        if end < size:
            following = Cursor(end, size, status.st_dev, status.st_ino, encoding.name)
        return Text(
            path=place.path,
            content=part.text,
            encoding=encoding,
            ending=line_ending(data, encoding),
            size=size,
            hash=content_hash(data) if whole else None,
            lines=line_count(data, encoding) if whole else None,
            cursor=following,
        )


def read_bytes(roots: Roots, path: PurePath, shown: str, *, offset: int, length: int) -> Bytes:
    with failures(shown), place_of(path, roots) as place, opened(place, shown) as fd:
        status, data = stable(fd, lambda _: pread(fd, length, offset), shown)
        whole = offset == 0 and len(data) == status.st_size
        return Bytes(
            path=place.path,
            offset=offset,
            data=data,
            size=status.st_size,
            hash=content_hash(data) if whole else None,
        )


def kind_of(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"


def status_of(roots: Roots, path: PurePath, shown: str) -> Status:
    with failures(shown), place_of(path, roots) as place:
        if place.status is None:
            raise FileNotFoundError(errno.ENOENT, "missing")
        return Status(place.path, place.status)


# ---- what an agent asks --------------------------------------------------------------------------


def read_for_agent(roots: Roots, path: PurePath, line: int | None, limit: int | None) -> str:
    """A text file, or ``limit`` lines from ``line`` (0 counts as 1)."""
    shown = str(path)
    with failures(shown), place_of(path, roots) as place, opened(place, shown) as fd:
        check_size(fd, MAX_WHOLE, shown)
        data = pread(fd, os.fstat(fd).st_size)
    check_text(data[:SAMPLE], shown)
    encoding = detect(data)
    # The mark stays: agents put it back when they write.
    if line is None and limit is None:
        return encoding.decode(data)
    start = line_start(data, Encoding(encoding.name), max(line or 1, 1))
    if start is None:
        return ""
    most = len(data) * 4
    return window(data, encoding, start, limit=limit, max_bytes=most).text if data else ""
