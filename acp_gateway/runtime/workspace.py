"""The files that agents, sessions and clients may touch: everything under the workspace roots.

One boundary for all of them, `beneath`: a path counts by where it really leads, and no link that
appears meanwhile leads out. Writes replace a file atomically and keep its mode.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Final, Literal, TypeVar

import structlog
import trio

from acp_gateway.core.ignore_rules import Hidden
from acp_gateway.core.path_boundary import absolute, client_path, inside
from acp_gateway.protocol.errors import ErrorKind, FileError, GatewayError
from acp_gateway.runtime.workspace_files import read_for_agent
from acp_gateway.runtime.workspace_search import RuleBook, told
from acp_gateway.runtime.workspace_write import write_for_agent

log = structlog.get_logger("acp_gateway.workspace")

T = TypeVar("T")
Intent = Literal["read", "list", "glob", "stat", "write", "edit"]

AGENT_THREADS: Final = 8
CLIENT_THREADS: Final = 4
"""Clients have their own: whatever they ask, agents and new sessions do not wait for it."""
_DENIED: Final = (
    ErrorKind.PATH_OUTSIDE_WORKSPACE,
    ErrorKind.SYMLINK_ESCAPE,
    ErrorKind.UNTRUSTED_WORKSPACE,
    ErrorKind.PERMISSION_DENIED,
)


class Workspace:
    """The roots of the daemon. Blocking work runs in threads; none is abandoned when its caller is
    cancelled, so that a begun write is finished or cleaned up."""

    def __init__(self, roots: Iterable[Path], *, trusted: bool = True) -> None:
        """``trusted``: files may be changed too, by agents and clients."""
        self.roots = tuple(Path(os.path.realpath(root)) for root in roots)
        self.trusted = trusted
        self.rules = RuleBook()
        self._limiter = trio.CapacityLimiter(AGENT_THREADS)
        self._client_limiter = trio.CapacityLimiter(CLIENT_THREADS)

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

    # ---- for agents -----------------------------------------------------------------------------

    async def read_text(
        self, path: str, roots: tuple[Path, ...], line: int | None, limit: int | None
    ) -> str:
        """A text file, or ``limit`` lines from ``line`` (counted from 1)."""
        wanted = absolute(path)
        with self._watched("read", wanted, "fs/read_text_file"):
            return await trio.to_thread.run_sync(
                read_for_agent, roots, wanted, line, limit, limiter=self._limiter
            )

    async def write_text(self, path: str, content: str, roots: tuple[Path, ...]) -> None:
        """Create or replace a file; its directory must exist."""
        wanted = absolute(path)
        with self._watched("write", wanted, "fs/write_text_file"):
            await trio.to_thread.run_sync(
                write_for_agent, roots, wanted, content, limiter=self._limiter
            )

    # ---- for clients ----------------------------------------------------------------------------

    async def for_client(
        self, intent: Intent, route: str, work: Callable[..., T], path: Any, **how: Any
    ) -> T:
        """``work`` (of `workspace_files`, `workspace_search` or `workspace_write`) on a path as a
        client sent it.

        ``route`` is for the log. Raises `FileError`.
        """
        wanted = client_path(path, self.default, "cwd" if intent == "glob" else "path")
        with self._watched(intent, wanted, route):
            return await trio.to_thread.run_sync(
                partial(work, self.roots, wanted, path, **how), limiter=self._client_limiter
            )

    def told(self, path: Path) -> str:
        """A path without links as clients are told it: below the first root relative to that."""
        if path == self.default:
            return "."
        if self.default in path.parents:
            path = path.relative_to(self.default)
        return told(str(path))

    async def hides(self, path: Path, *, directory: bool = False) -> Hidden | None:
        """Whether the ignore rules of its root hide a path without links."""
        return await trio.to_thread.run_sync(
            partial(self.rules.hides, path, self.roots, directory=directory),
            limiter=self._client_limiter,
        )

    @contextmanager
    def _watched(self, intent: Intent, path: PurePath, route: str) -> Iterator[None]:
        """What is refused and what is changed goes to the log, without names."""
        changes = intent in ("write", "edit")
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        try:
            if changes and not self.trusted:
                raise FileError(
                    ErrorKind.UNTRUSTED_WORKSPACE,
                    "files of this workspace may only be read",
                    remedy="serve it as a trusted workspace",
                )
            yield
        except FileError as exc:
            if exc.kind in _DENIED:
                log.warning(
                    "fs_denied", intent=intent, route=route, path=digest, error=exc.kind.word
                )
            raise
        if changes:
            log.info("fs_changed", intent=intent, route=route, path=digest)
