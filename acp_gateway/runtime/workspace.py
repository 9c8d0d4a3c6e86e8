"""The files that agents and sessions may touch: everything under the workspace roots.

A path counts by where it really leads: links are resolved before the check, and the last part is
opened without following one. (A directory that is swapped for a link between check and use is not
yet noticed.) Writes replace the file atomically (temporary file in the same directory, fsync,
rename) and keep its mode.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import trio

from acp_gateway.config import MIB
from acp_gateway.core.path_boundary import absolute, inside
from acp_gateway.protocol.errors import ErrorKind, GatewayError

MAX_READ: Final = 100 * MIB
MAX_WRITE: Final = 100 * MIB


class Workspace:
    """The roots of the daemon. Blocking work runs in threads."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self.roots = tuple(Path(os.path.realpath(root)) for root in roots)
        self._limiter = trio.CapacityLimiter(8)

    @property
    def default(self) -> Path:
        return self.roots[0]

    async def resolve_directory(self, path: str, what: str) -> tuple[Path, Path]:
        """(canonical directory, the root that holds it).

        Raises ``invalid_params`` or ``workspace_mismatch`` that names the roots.
        """
        wanted = absolute(path, what)
        real = await trio.to_thread.run_sync(os.path.realpath, wanted, limiter=self._limiter)
        root = inside(Path(real), self.roots)
        if root is None:
            raise GatewayError(
                ErrorKind.WORKSPACE_MISMATCH,
                f"Workspace mismatch: {what} {path} lies outside "
                + ", ".join(str(each) for each in self.roots),
                remedy="use a directory of the workspace, or serve with another --workspace",
                field=what,
                boundWorkspace=str(self.roots[0]),
                requestedWorkspace=path,
                workspaces=[str(each) for each in self.roots],
            )
        if not await trio.to_thread.run_sync(os.path.isdir, real, limiter=self._limiter):
            raise GatewayError(
                ErrorKind.INVALID_PARAMS,
                f"{what} {path} is not a directory",
                remedy="create it first",
                field=what,
            )
        return Path(real), Path(root)

    async def real(self, path: str) -> Path:
        """``path`` with its links resolved, wherever it leads."""
        return Path(await trio.to_thread.run_sync(os.path.realpath, path, limiter=self._limiter))

    async def read_text(
        self, path: str, roots: tuple[Path, ...], line: int | None, limit: int | None
    ) -> str:
        """A text file, or ``limit`` lines from ``line`` (counted from 1)."""
        return await trio.to_thread.run_sync(
            partial(_read_text, path, roots, line, limit), limiter=self._limiter
        )

    async def write_text(self, path: str, content: str, roots: tuple[Path, ...]) -> None:
        """Create or replace a file; its directory must exist."""
        # Not abandoned on cancel: a begun write is finished or cleaned up.
        await trio.to_thread.run_sync(
            partial(_write_text, path, content, roots), limiter=self._limiter
        )


def _real(path: str, roots: tuple[Path, ...]) -> Path:
    wanted = absolute(path)
    real = Path(os.path.realpath(wanted))
    if inside(real, roots) is None:
        escaped = inside(wanted, roots) is not None
        raise GatewayError(
            ErrorKind.PATH_OUTSIDE_WORKSPACE,
            f"{path} lies outside the session's workspace",
            remedy="use a path under " + ", ".join(str(root) for root in roots),
            errorKind="symlink_escape" if escaped else "path_outside_workspace",
        )
    return real


def _file_error(path: str, exc: OSError) -> GatewayError:
    if isinstance(exc, FileNotFoundError):
        return GatewayError(
            ErrorKind.RESOURCE_NOT_FOUND, f"File not found: {path}", errorKind="path_not_found"
        )
    return GatewayError(ErrorKind.FILE_ERROR, f"{path}: {exc.strerror or 'cannot be used'}")


def _require_regular(fd: int, path: str) -> os.stat_result:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise GatewayError(ErrorKind.FILE_ERROR, f"{path} is not a regular file")
    return status


def _read_text(path: str, roots: tuple[Path, ...], line: int | None, limit: int | None) -> str:
    real = _real(path, roots)
    try:
        fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise _file_error(path, exc) from None
    with open(fd, encoding="utf-8", errors="replace", newline="") as file:
        if _require_regular(fd, path).st_size > MAX_READ:
            raise GatewayError(
                ErrorKind.FILE_TOO_LARGE, f"{path} is larger than {MAX_READ // MIB} MiB"
            )
        if line is None and limit is None:
            return file.read()
        start = max((line or 1) - 1, 0)
        return "".join(islice(file, start, None if limit is None else start + limit))


def _write_text(path: str, content: str, roots: tuple[Path, ...]) -> None:
    data = content.encode("utf-8", "replace")
    if len(data) > MAX_WRITE:
        raise GatewayError(
            ErrorKind.FILE_TOO_LARGE, f"The content is larger than {MAX_WRITE // MIB} MiB"
        )
    real = _real(path, roots)
    temporary: str | None = None
    try:
        try:
            status = os.stat(real, follow_symlinks=False)
        except FileNotFoundError:
            mode = None
        else:
            if not stat.S_ISREG(status.st_mode):
                raise GatewayError(ErrorKind.FILE_ERROR, f"{path} is not a regular file")
            mode = stat.S_IMODE(status.st_mode)
        fd, temporary = tempfile.mkstemp(prefix=".acp-", dir=real.parent)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(fd, mode if mode is not None else 0o666 & ~_umask())
            os.fsync(fd)
        os.replace(temporary, real)
        temporary = None
    except OSError as exc:
        raise _file_error(path, exc) from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def _umask() -> int:
    # There is no way to read it without setting it on every system.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except (OSError, ValueError):
        pass
    return 0o022
