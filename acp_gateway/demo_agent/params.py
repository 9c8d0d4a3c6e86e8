"""Reads the params of requests, with the leniency that ACP v1 marks and a sentence for the rest.

Every function raises `RpcError` (-32602) for what it cannot accept.
"""

from __future__ import annotations

import os

from acp_gateway.demo_agent.link import INVALID_PARAMS, RpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Params = dict[str, Any]


def bad(sentence: str) -> RpcError:
    """The -32602 error with this sentence."""
    return RpcError(INVALID_PARAMS, sentence)


def text(params: Params, name: str) -> str:
    """A required string that is not empty."""
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise bad(f"`{name}` must be a non-empty string")
    return value


def choice(value: Any, allowed: tuple[tuple[str, str, str], ...], name: str) -> str:
    """A value that is the first member of one of ``allowed``."""
    ids = [item[0] for item in allowed]
    if value not in ids:
        raise bad(f"`{name}` must be one of {', '.join(ids)}")
    return str(value)


def _items(params: Params, name: str) -> list[Any]:
    # ACP v1 marks these lists as soft: what is not a list counts as an empty one.
    value = params.get(name)
    return value if isinstance(value, list) else []


def directories(params: Params) -> tuple[str, list[str]]:
    """The cwd and the further directories. Raises -32602 when one is not absolute."""
    cwd = text(params, "cwd")
    additional = [d for d in _items(params, "additionalDirectories") if isinstance(d, str)]
    for directory in (cwd, *additional):
        if not os.path.isabs(directory):
            raise bad(f"the directory {directory} must be an absolute path")
    if not os.path.isdir(cwd):
        raise bad(f"`cwd` must be a directory that exists: {cwd}")
    return os.path.normpath(cwd), additional


def servers(params: Params) -> list[dict[str, Any]]:
    """The MCP servers that have a name; others are dropped."""
    return [
        server
        for server in _items(params, "mcpServers")
        if isinstance(server, dict) and isinstance(server.get("name"), str)
    ]


def own_id(params: Params) -> str | None:
    """The id that the client chose for a new session (Qwen's member of ``_meta``)."""
    meta = params.get("_meta")
    wanted = meta.get("qwen-code/sessionId") if isinstance(meta, dict) else None
    if isinstance(wanted, str) and len(wanted) == 36 and set(wanted) <= set("0123456789abcdef-"):
        return wanted
    return None


def nested(value: Any, *names: str) -> dict[str, Any]:
    """The object at the end of a path of optional members; empty when there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def cursor(params: Params) -> tuple[float, str] | None:
    """The (updated, session id) that a page starts after. Raises -32602 for a foreign cursor."""
    value = params.get("cursor")
    if value is None:
        return None
    try:
        updated, _, session_id = value.partition(":")
        return float(updated), session_id
    except (AttributeError, ValueError):
        raise bad("`cursor` must be a nextCursor of an earlier answer") from None
