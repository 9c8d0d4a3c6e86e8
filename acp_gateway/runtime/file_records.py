"""What is kept of accesses to files: log lines without names, the audit, who wrote what.

Called in the thread that touched the file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, Final, Protocol

import structlog

from acp_gateway.core import file_audit
from acp_gateway.core.file_audit import CHANGES, Who
from acp_gateway.core.path_boundary import inside
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.audit_log import AuditLog
from acp_gateway.runtime.own_writes import NOTED, Note, OwnWrites
from acp_gateway.runtime.workspace_search import RuleBook

log = structlog.get_logger("acp_gateway.workspace")

_DENIED: Final = (
    ErrorKind.PATH_OUTSIDE_WORKSPACE,
    ErrorKind.SYMLINK_ESCAPE,
    ErrorKind.UNTRUSTED_WORKSPACE,
    ErrorKind.PERMISSION_DENIED,
)
"""What a client or an agent must not do; the rest is what every program runs into."""


class _Site(Protocol):
    @property
    def roots(self) -> Sequence[Path]: ...
    @property
    def rules(self) -> RuleBook: ...


class FileRecords:
    def __init__(self, site: _Site, audit: AuditLog | None, *, raw_paths: bool) -> None:
        self.writes = OwnWrites()
        self._site = site
        self._audit = audit
        self._raw_paths = raw_paths

    def writing(self, who: Who) -> None:
        """From now on, in this context, what is written is noted as written by ``who``."""
        NOTED.set(lambda path, created, stamp: self.writes.add(path, stamp, Note(who, created)))

    def denied(
        self,
        intent: str,
        route: str,
        who: Who,
        path: PurePath | None,
        error: GatewayError,
        pattern: str | None,
    ) -> None:
        """``path``: as it was asked for, made absolute; None for what is no path."""
        named = None if path is None else os.fsencode(path)
        if error.kind in _DENIED:
            digest = None if named is None else file_audit.path_hash(named)
            log.warning("fs_denied", intent=intent, route=route, path=digest, error=error.kind.word)
        if self._audit is not None:
            raw = self._raw(path, pattern)
            self._audit.write(
                file_audit.denied(time.time(), intent, route, who, named, error, raw=raw)
            )

    def done(
        self,
        intent: str,
        route: str,
        who: Who,
        asked: PurePath,
        result: Any,
        took: float,
        pattern: str | None,
    ) -> None:
        """``result``: what the work gave; where it tells ``path``, that is the file itself."""
        path = getattr(result, "path", None)
        path = path if isinstance(path, PurePath) else asked
        operation = None
        if intent in CHANGES:
            created = bool(getattr(result, "created", False))
            operation = "edit" if intent == "edit" else "create" if created else "replace"
            digest = file_audit.path_hash(os.fsencode(path))
            log.info("fs_changed", intent=intent, route=route, path=digest)
        if self._audit is None:
            return
        size, truncated = getattr(result, "size", None), getattr(result, "truncated", None)
        self._audit.write(
            file_audit.access(
                time.time(),
                intent,
                route,
                who,
                os.fsencode(path),
                took,
                size=size,
                truncated=truncated,
                hidden=self._site.rules.hides(
                    Path(path), self._site.roots, directory=intent in ("list", "glob")
                ),
                operation=operation,
                raw=self._raw(path, pattern),
            )
        )

    def _raw(self, path: PurePath | None, pattern: str | None) -> dict[str, str] | None:
        if not self._raw_paths:
            return None
        raw = {} if pattern is None else {"pattern": pattern}
        if path is not None:
            root = inside(path, self._site.roots)
            raw["relPath"] = str(path if root is None else path.relative_to(root))
        return raw
