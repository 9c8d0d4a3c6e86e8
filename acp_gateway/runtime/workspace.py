"""The files that agents, sessions and clients may touch: everything under the workspace roots.

One boundary for all of them, `beneath`: a path counts by where it really leads, and no link that
appears meanwhile leads out. Writes replace a file atomically and keep its mode.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Final, Literal, TypeVar

import attrs
import trio

from acp_gateway.core.file_audit import CHANGES, NOBODY, Who
from acp_gateway.core.ignore_rules import Hidden
from acp_gateway.core.path_boundary import absolute, client_path, inside
from acp_gateway.protocol.errors import ErrorKind, FileError, GatewayError
from acp_gateway.runtime.audit_log import AuditLog
from acp_gateway.runtime.file_records import FileRecords
from acp_gateway.runtime.workspace_files import read_for_agent
from acp_gateway.runtime.workspace_search import RuleBook, told
from acp_gateway.runtime.workspace_write import Changed, write_for_agent

T = TypeVar("T")
Intent = Literal["read", "list", "glob", "stat", "write", "edit"]

AGENT_THREADS: Final = 8
CLIENT_THREADS: Final = 4
"""Clients have their own: whatever they ask, agents and new sessions do not wait for it."""


@attrs.define
class WatchState:
    """What became of the watching of files (`runtime.file_watch`)."""

    enabled: bool = False
    active: bool = False
    directories: int = 0
    problem: str | None = None
    """Why changes are not told, or not all of them: a sentence, with what to do."""


class Workspace:
    """The roots of the daemon. Blocking work runs in threads; none is abandoned when its caller is
    cancelled, so that a begun write is finished or cleaned up."""

    def __init__(
        self,
        roots: Iterable[Path],
        *,
        trusted: bool = True,
        audit: AuditLog | None = None,
        raw_paths: bool = False,
    ) -> None:
        """``trusted``: files may be changed too, by agents and clients. ``raw_paths``: the audit
        names them."""
        self.roots = tuple(Path(os.path.realpath(root)) for root in roots)
        self.trusted = trusted
        self.rules = RuleBook()
        self.audit = audit
        """Where accesses to files, and all else that is audited, are written."""
        self.records = FileRecords(self, audit, raw_paths=raw_paths)
        self.watch = WatchState()
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

    async def real(self, path: PurePath) -> Path:
        """``path`` with its links resolved, wherever it leads."""
        return Path(await trio.to_thread.run_sync(os.path.realpath, path, limiter=self._limiter))

    # ---- for agents -----------------------------------------------------------------------------

    async def read_text(
        self,
        path: str,
        roots: tuple[Path, ...],
        line: int | None,
        limit: int | None,
        who: Who = NOBODY,
    ) -> str:
        """A text file, or ``limit`` lines from ``line`` (counted from 1)."""

        def work(wanted: PurePath) -> str:
            return read_for_agent(roots, wanted, line, limit)

        wanted = partial(absolute, path)
        return await self._carry_out("read", "fs/read_text_file", who, wanted, work, self._limiter)

    async def write_text(
        self, path: str, content: str, roots: tuple[Path, ...], who: Who = NOBODY
    ) -> None:
        """Create or replace a file; its directory must exist."""

        def work(wanted: PurePath) -> Changed:
            return write_for_agent(roots, wanted, content)

        wanted = partial(absolute, path)
        await self._carry_out("write", "fs/write_text_file", who, wanted, work, self._limiter)

    # ---- for clients ----------------------------------------------------------------------------

    async def for_client(
        self,
        intent: Intent,
        route: str,
        work: Callable[..., T],
        path: Any,
        who: Who = NOBODY,
        **how: Any,
    ) -> T:
        """``work`` (of `workspace_files`, `workspace_search` or `workspace_write`) on a path as a
        client sent it.

        ``route`` is for the log. Raises `FileError`.
        """
        what = "cwd" if intent == "glob" else "path"
        return await self._carry_out(
            intent,
            route,
            who,
            partial(client_path, path, self.default, what),
            lambda wanted: work(self.roots, wanted, path, **how),
            self._client_limiter,
            how.get("pattern"),
        )

    def check_trusted(self) -> None:
        """Raises ``untrusted_workspace``."""
        if not self.trusted:
            raise FileError(
                ErrorKind.UNTRUSTED_WORKSPACE,
                "files of this workspace may only be read",
                remedy="serve it with --trust-workspace",
            )

    async def _carry_out(
        self,
        intent: Intent,
        route: str,
        who: Who,
        find: Callable[[], PurePath],
        work: Callable[[PurePath], T],
        limiter: trio.CapacityLimiter,
        pattern: str | None = None,
    ) -> T:
        """``work`` on the path that ``find`` gives, in a thread, watched by logs and audit."""

        def run() -> T:
            began = time.perf_counter()
            wanted = None
            try:
                wanted = find()
                if intent in CHANGES:
                    self.check_trusted()
                    self.records.writing(who)
                result = work(wanted)
            except GatewayError as exc:
                self.records.denied(intent, route, who, wanted, exc, pattern)
                raise
            took = time.perf_counter() - began
            self.records.done(intent, route, who, wanted, result, took, pattern)
            return result

        return await trio.to_thread.run_sync(run, limiter=limiter)

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
