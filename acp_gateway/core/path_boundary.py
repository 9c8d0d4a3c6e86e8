"""Which paths may be touched, as far as text can tell; links are the file layer's business.

Nothing is decoded here: ``%2e`` is three characters of a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath, PurePosixPath
from typing import Any, Final

from acp_gateway.protocol.errors import ErrorKind, FileError, GatewayError

MAX_PATH: Final = 4096
"""Bytes of a path."""

_DRIVE_OR_UNC: Final = re.compile(r"[A-Za-z]:[\\/]|\\\\|//")
_DEVICE: Final = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[1-9¹²³]) *(\..*)?", re.IGNORECASE | re.DOTALL
)


def absolute(path: str, what: str = "path") -> PurePosixPath:
    """``path`` as an absolute path without ``.`` and ``..`` parts.

    Raises ``invalid_params`` for a relative path, one with a NUL, or one with half a character.
    """
    if not _is_clean(path) or not path.startswith("/"):
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


def client_path(path: Any, root: PurePath, what: str = "path") -> PurePosixPath:
    """A path that a client sent, relative to ``root`` or absolute, made absolute.

    It may still lie outside the workspace. Raises ``parse_error`` for what is no path, and
    ``path_outside_workspace`` for a spelling that another system or a careless program would take
    for another file: devices and shares of Windows, names that end in a dot or a space, ``...``.
    """
    if not isinstance(path, str) or not path:
        raise FileError(ErrorKind.PARSE_ERROR, f"`{what}` must be a non-empty string", field=what)
    if not _is_clean(path):
        raise FileError(ErrorKind.PARSE_ERROR, f"`{what}` has a NUL or half a character")
    if len(path.encode()) > MAX_PATH:
        raise FileError(ErrorKind.PARSE_ERROR, f"`{what}` is longer than {MAX_PATH} bytes")
    if _is_suspicious(path):
        raise FileError(
            ErrorKind.PATH_OUTSIDE_WORKSPACE,
            "path has a spelling that is not allowed",
            remedy="send a plain path, relative to the workspace",
        )
    return absolute(f"{'' if path.startswith('/') else root}/{path}")


def _is_clean(path: str) -> bool:
    return "\0" not in path and not any("\ud800" <= char <= "\udfff" for char in path)


def _is_suspicious(path: str) -> bool:
    if _DRIVE_OR_UNC.match(path):
        return True
    if "\\" in path and ".." in re.split(r"[\\/]", path):
        return True
    for part in path.split("/"):
        if part in ("", ".", ".."):
            continue
        if part[-1] == "." or part[-1].isspace() or _DEVICE.fullmatch(part):
            return True
    return False
