"""Which paths a session may touch, as far as text can tell; links are the file layer's business."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath, PurePosixPath

from acp_gateway.protocol.errors import ErrorKind, GatewayError


def absolute(path: str, what: str = "path") -> PurePosixPath:
    """``path`` as an absolute path without ``.`` and ``..`` parts.

    Raises ``invalid_params`` for a relative path, one with a NUL, or one with half a character.
    """
    halved = any("\ud800" <= char <= "\udfff" for char in path)
    if "\0" in path or halved or not path.startswith("/"):
        raise GatewayError(
            ErrorKind.INVALID_PARAMS,
            f"{what} must be an absolute path",
            remedy=f"send {what} as an absolute path",
            field=what,
        )
    parts: list[str] = []
    for part in PurePosixPath(path).parts[1:]:
        if part == "..":
            if parts:
                parts.pop()
        elif part != ".":
            parts.append(part)
    return PurePosixPath("/", *parts)


def inside(path: PurePath, roots: Iterable[PurePath]) -> PurePath | None:
    """The deepest root that holds ``path``, or None."""
    holding = [root for root in roots if path == root or root in path.parents]
    return max(holding, key=lambda root: len(root.parts), default=None)
