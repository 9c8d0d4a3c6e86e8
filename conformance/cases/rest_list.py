"""The list of sessions and the status of one."""

from __future__ import annotations

from typing import Any

import trio

from conformance.context import Context
from conformance.outcome import Failure, Skip, brief, check
from conformance.registry import case
from conformance.rest.answer import members
from conformance.rest.api import Api, unknown_id
from conformance.rest.session import Session

ENTRY: dict[str, Any] = {
    "sessionId": str,
    "workspaceCwd": str,
    "createdAt": str,
    "clientCount": int,
    "hasActivePrompt": bool,
}


async def prompted(api: Api) -> Session:
    """A session with one turn: one that never had a prompt need not be stored."""
    session = await api.session()
    stream = await session.events()
    await session.turn(stream)
    stream.close()
    return session


async def entry_of(api: Api, session_id: str) -> dict[str, Any]:
    listed = (await api.sessions(size=1000)).ok()["sessions"]
    for entry in listed:
        if entry["sessionId"] == session_id:
            return dict(entry)
    raise Failure(f"{session_id} is not among the {len(listed)} listed")


@case("LIST-001")
async def listed(ctx: Context) -> None:
    api = await ctx.rest()
    session = await prompted(api)
    entry = await entry_of(api, session.id)
    members(entry, **ENTRY)
    check(entry["clientCount"] == 1, f"clientCount: {brief(entry)}")
    check(entry["hasActivePrompt"] is False, "hasActivePrompt after the turn")


@case("LIST-002")
async def by_id(ctx: Context) -> None:
    api = await ctx.rest()
    session = await prompted(api)
    ids = [w["id"] for w in api.capabilities["workspaces"] if w["cwd"] == api.workspace]
    body = (await api.call("GET", f"/workspace/{ids[0]}/sessions?size=1000")).ok()
    check(session.id in [entry["sessionId"] for entry in body["sessions"]], "not listed")


@case("LIST-003", timeout=60)
async def paged(ctx: Context) -> None:
    api = await ctx.rest()
    mine = [(await prompted(api)).id for _ in range(3)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        body = (await api.sessions(size=2, **cursor)).ok()
        page = [entry["sessionId"] for entry in body["sessions"]]
        check(len(page) <= 2, f"{len(page)} entries with size=2")
        seen += page
        if not body.get("nextCursor"):
            break
        check(page, "an empty page with a cursor")
        cursor = {"cursor": body["nextCursor"]}
    check(len(seen) == len(set(seen)), "a session is listed twice")
    check(set(mine) <= set(seen), "a session was left out")


@case("LIST-004")
async def bad_cursor(ctx: Context) -> None:
    (await (await ctx.rest()).sessions(cursor="nonsense")).refused(400, "invalid_cursor")


@case("LIST-005")
async def unknown_workspace(ctx: Context) -> None:
    api = await ctx.rest()
    answer = await api.call("GET", "/workspace/%2Fno%2Fsuch%2Fplace/sessions")
    answer.refused(400, "workspace_mismatch")


@case("LIST-006", timeout=30)
async def limit_ignored(ctx: Context) -> None:
    api = await ctx.rest()
    for _ in range(2):
        await prompted(api)
    body = (await api.sessions(limit=1)).ok()
    check(len(body["sessions"]) >= 2, "limit cut the page")


@case("LIST-007")
async def active(ctx: Context) -> None:
    api = await ctx.rest()
    session = await api.session()
    stream = await session.events()
    prompt = await session.running(stream)
    entry = await entry_of(api, session.id)
    check(entry["hasActivePrompt"] is True, brief(entry))
    (await session.post("cancel")).empty()
    await stream.completed(prompt, "cancelled")


@case("LIST-008")
async def closed(ctx: Context) -> None:
    api = await ctx.rest()
    session = await prompted(api)
    (await session.delete()).empty()
    entry = await entry_of(api, session.id)
    check(entry["clientCount"] == 0, brief(entry))


@case("LIST-009", timeout=30)
async def newest_first(ctx: Context) -> None:
    api = await ctx.rest()
    older = await prompted(api)
    await trio.sleep(1.1)  # the times that the list is sorted by may be whole seconds
    newer = await prompted(api)
    ids = [entry["sessionId"] for entry in (await api.sessions(size=1000)).ok()["sessions"]]
    check(older.id in ids and newer.id in ids, "not listed")
    check(ids.index(newer.id) < ids.index(older.id), "the older one comes first")


@case("STATE-001")
async def status(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    body = (await session.get("status")).ok()
    members(body, **ENTRY, pendingInteractions=list, isWaitingForPermission=bool)
    check(body["sessionId"] == session.id, brief(body))


@case("STATE-002")
async def waiting(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    question = await session.question(await session.events())
    body = (await session.get("status")).ok()
    check(body["isWaitingForPermission"] is True, brief(body))
    check(len(body["pendingInteractions"]) == 1, brief(body["pendingInteractions"]))
    found = body["pendingInteractions"][0]
    members(found, requestId=str, kind=str, options=list)
    check(found["requestId"] == question.id, "another request")
    for option in found["options"]:
        members(option, optionId=str, label=str, kind=str)
    await question.settle()
    body = (await session.get("status")).ok()
    check(body["pendingInteractions"] == [], "a settled request is still shown")


@case("STATE-003")
async def unknown_status(ctx: Context) -> None:
    api = await ctx.rest()
    wanted = unknown_id()
    answer = await api.call("GET", f"/session/{wanted}/status")
    answer.refused(404, "session_not_found", sessionId=wanted)


@case("STATE-004")
async def clients(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    before = (await session.get("status")).ok()["clientCount"]
    await session.attach()
    after = (await session.get("status")).ok()["clientCount"]
    if before != 1:
        raise Skip(f"a new session has {before} clients")
    check(after == 2, f"{after} clients after an attach")
