"""Writing files of the workspace. Blocking: for threads.

A file is replaced by another that was written beside it, so that at every moment it is the old one
or the new one, whole; also when the process is killed or the disk is full.

A process that is killed leaves what it was writing behind, under a name of `TEMPORARY`. Whoever
writes one holds a lock on it, and a lock goes with its process; so the first write of a process in
a directory takes away what is there without a lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Final

import attrs
import structlog

from acp_gateway.config import MIB
from acp_gateway.core.text_file import (
    SAMPLE,
    Encoding,
    LineEnding,
    content_hash,
    detect,
    edited,
    is_binary,
    line_ending,
    with_ending,
)
from acp_gateway.protocol.errors import ErrorKind, FileError
from acp_gateway.runtime.beneath import Place, place_of
from acp_gateway.runtime.own_writes import NOTED, stamp_of
from acp_gateway.runtime.workspace_files import (
    MAX_SCAN,
    MAX_WHOLE,
    READ,
    Roots,
    check_regular,
    check_size,
    check_text,
    failures,
    pread,
    stable,
)

log = structlog.get_logger("acp_gateway.files")

MAX_WRITE: Final = 5 * MIB
TEMPORARY: Final = re.compile(r"\.acp-[0-9a-f]{16}\.tmp")
"""Names of files that are being written, and of nothing else: such a file may be taken away."""
MAX_LOOKED_AT: Final = 100_000
"""Names in a directory among which litter is looked for."""
TRIES: Final = 3
KNOWN_CLEAN: Final = 4096
"""Directories that are remembered to be free of it."""
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS: Final = (errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system says that has no hard links."""
_clean: Final[OrderedDict[tuple[int, int], None]] = OrderedDict()
_clean_lock: Final = threading.Lock()
_locks: Final = tuple(threading.Lock() for _ in range(64))
"""One file is written by one thread at a time; which lock is its own is a matter of chance."""


@attrs.frozen(kw_only=True)
class Written:
    path: Path
    created: bool
    size: int
    hash: str
    encoding: Encoding
    ending: LineEnding


@attrs.frozen
class Changed:
    """What became of a file."""

    path: Path
    """Where it is, without links."""
    created: bool
    data: bytes = attrs.field(repr=False)

    @property
    def size(self) -> int:
        return len(self.data)


@attrs.frozen(kw_only=True)
class Change:
    """What is to become of a file."""

    make: Callable[[bytes | None], bytes]
    """From the old content to the new one. It gets None when there is no old one, and when none is
    ``expected``."""
    create: bool = True
    """There may be none yet."""
    replace: bool = True
    """There may be one."""
    expected: str | None = None
    """Hash that the old content must have."""
    limit: int = MAX_WRITE


def change(roots: Roots, path: PurePath, shown: str, wanted: Change) -> Changed:
    """Carry it out.

    At every moment the file is the old one or the new one, whole; also when the process is killed.
    """
    with failures(shown), place_of(path, roots) as place:
        where = os.fstat(place.parent)
        _clean_up(place.parent, (where.st_dev, where.st_ino))
        with _locks[hash((where.st_dev, where.st_ino, place.name)) % len(_locks)]:
            old = _lstat(place)
            if old is None and not wanted.create:
                raise FileNotFoundError(errno.ENOENT, "missing")
            if old is not None:
                if not wanted.replace:
                    raise FileExistsError(errno.EEXIST, "there")
                check_regular(old, shown)
                _check_writable(place)
            data = wanted.make(_old_content(place, wanted, shown))
            if len(data) > wanted.limit:
                raise FileError(
                    ErrorKind.FILE_TOO_LARGE,
                    f"the content is larger than {wanted.limit // MIB} MiB",
                )
            _put(place, data, old, wanted, shown)
    return Changed(place.path, old is None, data)


def _lstat(place: Place) -> os.stat_result | None:
    try:
        return os.stat(place.name, dir_fd=place.parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _check_writable(place: Place) -> None:
    # A rename would not ask: a file that is read-only stays as it is.
    effective = os.access in os.supports_effective_ids
    if not os.access(place.name, os.W_OK, dir_fd=place.parent, effective_ids=effective):
        raise PermissionError(errno.EACCES, "read-only")


def _old_content(place: Place, wanted: Change, shown: str) -> bytes | None:
    if wanted.expected is None:
        return None
    fd = os.open(place.name, READ, dir_fd=place.parent)
    try:
        check_regular(os.fstat(fd), shown)
        check_size(fd, MAX_SCAN, shown)
        _, data = stable(fd, lambda size: pread(fd, size), shown)
    finally:
        os.close(fd)
    if content_hash(data) != wanted.expected:
        raise FileError(
            ErrorKind.HASH_MISMATCH,
            f"the file is not the one that was read: {shown}",
            remedy="read it again, and send its hash",
        )
    return data


def _new_temporary(place: Place, mode: int) -> tuple[str, int]:
    """A new file, locked, and its descriptor."""
    for _ in range(TRIES):
        name = f".acp-{secrets.token_hex(8)}.tmp"
        fd = os.open(name, _NEW, mode, dir_fd=place.parent)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError:
            return name, fd  # no locks on this file system: nobody takes anything away there
        else:
            if os.fstat(fd).st_nlink:
                return name, fd
        # Between the two calls somebody took it for litter.
        os.close(fd)
        with suppress(OSError):
            os.unlink(name, dir_fd=place.parent)
    raise OSError(errno.EBUSY, "somebody locks what is written")


def _clean_up(directory: int, key: tuple[int, int]) -> None:
    """Take away what processes that were killed left in a directory; once for each."""
    with _clean_lock:
        if key in _clean:
            _clean.move_to_end(key)
            return
        _clean[key] = None
        if len(_clean) > KNOWN_CLEAN:
            _clean.popitem(last=False)
    # A directory that cannot be read keeps what it has.
    with suppress(OSError):
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            with os.scandir(fd) as found:
                for each, _ in zip(found, range(MAX_LOOKED_AT), strict=False):
                    if TEMPORARY.fullmatch(each.name):
                        _take_away(fd, each.name)
        finally:
            os.close(fd)


def _take_away(directory: int, name: str) -> None:
    with suppress(OSError):
        fd = os.open(name, READ, dir_fd=directory)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                # Fails while its writer lives.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=directory)
                log.info("litter_removed", size=os.fstat(fd).st_size)
        finally:
            os.close(fd)


def _put(place: Place, data: bytes, old: os.stat_result | None, wanted: Change, shown: str) -> None:
    # A new file gets what the umask leaves; nobody reads an old one's new content before it has
    # the old one's mode.
    temporary, fd = _new_temporary(place, 0o666 if old is None else 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if old is not None:
                for owner in ((-1, old.st_gid), (old.st_uid, -1)):
                    with suppress(OSError):
                        os.fchown(fd, *owner)
                os.fchmod(fd, stat.S_IMODE(old.st_mode))
            os.fsync(fd)
            stamp = stamp_of(os.fstat(fd))
            if (noted := NOTED.get()) is not None:
                noted(place.path, old is None, stamp)
            # The lock is held until the file has its name.
            if not wanted.replace:
                _link(temporary, place)
            else:
                now = _lstat(place)
                if now is not None:
                    check_regular(now, shown)
                _old_content(place, wanted, shown)
                os.replace(temporary, place.name, src_dir_fd=place.parent, dst_dir_fd=place.parent)
    finally:
        # A rename has taken it away already.
        with suppress(OSError):
            os.unlink(temporary, dir_fd=place.parent)
    _sync_directory(place)


def _link(temporary: str, place: Place) -> None:
    """Let the file appear under its name, unless there is one."""
    try:
        os.link(
            temporary,
            place.name,
            src_dir_fd=place.parent,
            dst_dir_fd=place.parent,
            follow_symlinks=False,
        )
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        # Such a file system may show an empty file for a moment.
        os.close(os.open(place.name, _NEW, 0o600, dir_fd=place.parent))
        os.replace(temporary, place.name, src_dir_fd=place.parent, dst_dir_fd=place.parent)


def _sync_directory(place: Place) -> None:
    # Where a directory may be written to but not read, the system decides when it is on the disk.
    with suppress(OSError):
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place.parent)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_text(
    roots: Roots,
    path: PurePath,
    shown: str,
    content: str,
    *,
    expected: str | None,
    encoding: str | None = None,
    bom: bool | None = None,
    ending: LineEnding | None = None,
) -> Written:
    """Create a file (``expected`` is None), or replace the one with that hash.

    What is not said is kept from the old file: encoding and mark.
    """
    if content.startswith("\ufeff"):
        content, bom = content[1:], bom is not False
    if ending is not None:
        content = with_ending(content, ending)
    chosen = Encoding()

    def make(old: bytes | None) -> bytes:
        nonlocal chosen
        known = Encoding()
        if old is not None and not is_binary(old[:SAMPLE]):
            known = detect(old)
        name = encoding or known.name
        if encoding is None and name == "iso-8859-1" and not _fits(content, name):
            # It was only what every byte can be read as.
            name = "utf-8"
        kept = known.bom and known.name == name
        chosen = Encoding(name, (kept if bom is None else bom) and name.startswith("utf-"))
        return chosen.encode(content)

    creates = expected is None
    made = change(
        roots,
        path,
        shown,
        Change(make=make, create=creates, replace=not creates, expected=expected),
    )
    return _written(made, chosen)


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def edit_text(
    roots: Roots, path: PurePath, shown: str, old_text: str, new_text: str, *, expected: str
) -> Written:
    """Replace the only ``old_text``; encoding, mark and ends of lines stay."""
    chosen = Encoding()

    def make(old: bytes | None) -> bytes:
        nonlocal chosen
        data = old or b""
        check_text(data[:SAMPLE], shown)
        chosen = detect(data)
        try:
            text = data[len(chosen.mark) :].decode(chosen.name)
        except UnicodeDecodeError:
            raise FileError(ErrorKind.BINARY_FILE, f"{shown} is no {chosen.name}") from None
        return chosen.encode(edited(text, old_text, new_text, line_ending(data, chosen)))

    made = change(roots, path, shown, Change(make=make, create=False, expected=expected))
    return _written(made, chosen)


def _written(made: Changed, encoding: Encoding) -> Written:
    return Written(
        path=made.path,
        created=made.created,
        size=made.size,
        hash=content_hash(made.data),
        encoding=encoding,
        ending=line_ending(made.data, encoding),
    )


def write_for_agent(roots: Roots, path: PurePath, content: str) -> Changed:
    """Create or replace a file; its directory must exist. The text is written as UTF-8."""
    data = content.encode("utf-8", "replace")
    wanted = Change(make=lambda _: data, limit=MAX_WHOLE)
    return change(roots, path, str(path), wanted)
