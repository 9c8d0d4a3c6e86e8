"""Lists of sessions: what each row tells, and the pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from acp_gateway.runtime import session_control
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.session_catalog import AGENT, iso
from acp_gateway.transports.operations.call import Call, bad_request
from acp_gateway.transports.operations.cursors import bad_cursor, from_cursor, to_cursor
from acp_gateway.transports.operations.daemon import workspace_id

DEFAULT_PAGE: Final = 20
MAX_PAGE: Final = 1000


def summary(session: Session) -> dict[str, Any]:
    """What a list and the status route tell of a live session."""
    questions = session.questions
    asked = [session_control.is_user_question(each) for each in questions]
    title = session.title
    return {
        "sessionId": session.id,
        "workspaceCwd": str(session.cwd),
        "cwd": str(session.cwd),
        "agent": session.profile.name,
        "createdAt": iso(session.created_at),
        "updatedAt": iso(session.updated_at),
        **({"displayName": title, "title": title} if title is not None else {}),
        **({"titleSource": session.title_source} if session.title_source is not None else {}),
        "clientCount": len(session.parties),
        "hasActivePrompt": session.queue.running is not None,
        "isArchived": False,
        "activeWorkState": "active" if len(session.queue) else "idle",
        "hasRunningBackgroundTasks": False,
        "isWaitingForPermission": not all(asked),
        "isWaitingForUserQuestion": any(asked),
        "pendingInteractionCount": len(questions),
        "hasTurnError": session.turn_failed,
        "pendingInteractions": [],
        **session.labels,
    }


def _stored(info: dict[str, Any]) -> dict[str, Any]:
    meta = info.get("_meta")
    meta = meta if isinstance(meta, dict) else {}
    updated = info.get("updatedAt")
    created = meta.get("createdAt")
    title = info.get("title")
    return {
        "sessionId": info.get("sessionId"),
        "agent": info.get(AGENT),
        "workspaceCwd": info.get("cwd"),
        "cwd": info.get("cwd"),
        "createdAt": created if isinstance(created, str) else updated,
        "updatedAt": updated,
        **({"displayName": title, "title": title} if isinstance(title, str) else {}),
        "clientCount": 0,
        "hasActivePrompt": False,
        "isArchived": False,
    }


async def workspace_of(call: Call) -> Path:
    """The directory that the path names, by its id or as it is. Raises ``workspace_mismatch``."""
    workspace = call.manager.workspace
    selector = call.text("workspace") or call.text("workspaceCwd") or ""
    for root in workspace.roots:
        if workspace_id(str(root)) == selector:
            return root
    path = selector if selector.startswith("/") else "/" + selector
    directory, _ = await workspace.resolve_directory(path, "workspace")
    return directory


async def listing(call: Call) -> Any:
    manager = call.manager
    directory = await workspace_of(call)
    size = _size(call.params.get("size"))
    before = _position(call.text("cursor"))
    if call.params.get("archiveState") == "archived":
        return {"sessions": []}  # there is no archive
    rows = await manager.catalog.in_directory(directory)
    found = [summary(row) if isinstance(row, Session) else _stored(row) for row in rows]
    for name, unlabelled in (("sourceType", "default"), ("sourceId", None)):
        label = call.text(name)
        if label:
            found = [each for each in found if each.get(name, unlabelled) == label]
    found.sort(key=_order, reverse=True)
    if before is not None:
        found = [each for each in found if _order(each) < before]
    page = found[:size]
    body: dict[str, Any] = {"sessions": page}
    if len(found) > size:
        body["nextCursor"] = to_cursor(json.dumps(_order(page[-1])))
    return body


def _order(row: dict[str, Any]) -> tuple[str, str]:
    return (str(row.get("updatedAt") or ""), str(row.get("sessionId")))


def _size(value: Any) -> int:
    if value is None or value == "":
        return DEFAULT_PAGE
    try:
        return max(1, min(MAX_PAGE, int(value)))
    except (TypeError, ValueError):
        raise bad_request(f"`size` must be a number from 1 to {MAX_PAGE}", field="size") from None


def _position(cursor: str | None) -> tuple[str, str] | None:
    if not cursor:
        return None
    try:
        updated, session_id = json.loads(from_cursor(cursor))
        if isinstance(updated, str) and isinstance(session_id, str):
            return updated, session_id
    except (ValueError, TypeError):
        pass
    raise bad_cursor("use the nextCursor of the page before, or leave it out")
