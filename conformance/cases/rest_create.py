"""POST /session: new sessions and attaching to the shared one."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from uuid import uuid4

import trio

from conformance.context import Context
from conformance.outcome import Skip, brief, check
from conformance.registry import case
from conformance.rest.answer import Answer, members
from conformance.rest.api import Api

MINTED = re.compile(r"client_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


@case("CREATE-001")
async def fresh(ctx: Context) -> None:
    api = await ctx.rest()
    body = (await api.create(sessionScope="thread")).ok()
    members(body, sessionId=str, workspaceCwd=str, attached=bool, clientId=str, createdAt=str)
    check(body["attached"] is False, "attached is true")
    check(str(ctx.cwd).startswith(body["workspaceCwd"]), f"workspaceCwd {body['workspaceCwd']}")
    datetime.fromisoformat(body["createdAt"].replace("Z", "+00:00"))


@case("CREATE-002")
async def threads(ctx: Context) -> None:
    api = await ctx.rest()
    ids = {(await api.session()).id for _ in range(3)}
    check(len(ids) == 3, f"three creates gave {len(ids)} sessions")


@case("CREATE-003", scope={"sessionScope": "single"})
@case("CREATE-004", scope={})
async def shared(ctx: Context, scope: dict[str, str]) -> None:
    api = await ctx.rest()
    first = (await api.create(sessionScope="single")).ok()
    second = (await api.create(**scope)).ok()
    check(second["sessionId"] == first["sessionId"], "two sessions")
    check(second["attached"] is True, "the second did not attach")
    check(second["clientId"] != first["clientId"], "both have one client id")


async def at_once(api: Api, count: int, scope: str) -> list[dict[str, Any]]:
    answers: list[Answer] = []

    async def one() -> None:
        answers.append(await api.create(sessionScope=scope))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return [answer.ok() for answer in answers]


@case("CREATE-005", timeout=30)
async def coalesced(ctx: Context) -> None:
    api = await ctx.rest()
    made = await at_once(api, 5, "single")
    check(len({body["sessionId"] for body in made}) == 1, "more than one session")
    check(len({body["clientId"] for body in made}) == 5, "two callers share a client id")
    fresh_ones = [body for body in made if not body["attached"]]
    check(len(fresh_ones) <= 1, f"{len(fresh_ones)} callers made it")


@case("CREATE-006", timeout=30)
async def not_coalesced(ctx: Context) -> None:
    api = await ctx.rest()
    made = await at_once(api, 5, "thread")
    check(len({body["sessionId"] for body in made}) == 5, "fewer than five sessions")


@case("CREATE-007")
async def minted(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    check(MINTED.match(session.client), f"clientId {session.client!r}")


@case("CREATE-008")
async def own_id(ctx: Context) -> None:
    api = await ctx.rest()
    body = (await api.create(sessionScope="thread", client="alice")).ok()
    check(MINTED.match(body["clientId"]), f"clientId {body['clientId']!r}")


@case("CREATE-009")
async def kept_id(ctx: Context) -> None:
    api = await ctx.rest()
    first = (await api.create(sessionScope="single")).ok()
    again = (await api.create(sessionScope="single", client=first["clientId"])).ok()
    check(again["clientId"] == first["clientId"], f"another id: {again['clientId']}")


@case("CREATE-010")
async def malformed_id(ctx: Context) -> None:
    api = await ctx.rest()
    answer = await api.create(sessionScope="thread", client="no spaces")
    answer.refused(400, "invalid_client_id")


@case("CREATE-011", cwd="relative/path")
@case("CREATE-012", cwd=17)
async def bad_cwd(ctx: Context, cwd: Any) -> None:
    (await (await ctx.rest()).create(cwd=cwd)).refused(400)


@case("CREATE-013")
async def mismatch(ctx: Context) -> None:
    answer = await (await ctx.rest()).create(cwd="/")
    body = answer.refused(400, "workspace_mismatch", requestedWorkspace="/")
    members(body, boundWorkspace=str)


@case("CREATE-014")
async def bad_scope(ctx: Context) -> None:
    answer = await (await ctx.rest()).create(sessionScope="per-client")
    answer.refused(400, "invalid_session_scope")


async def with_id(api: Api, wanted: str) -> dict[str, Any]:
    """A session made under this id; `Skip` when the agent gives its own."""
    api.need("session_id_override")
    answer = await api.create(sessionId=wanted)
    if answer.status == 501 and answer.body.get("code") == "unsupported_by_agent":
        raise Skip("the agent chooses the ids of its sessions")
    return answer.ok()


@case("CREATE-015")
async def wanted_id(ctx: Context) -> None:
    wanted = str(uuid4())
    body = await with_id(await ctx.rest(), wanted)
    check(body["sessionId"] == wanted, f"sessionId {body['sessionId']}")
    check(body["attached"] is False, "attached is true")


@case("CREATE-016")
async def wanted_no_uuid(ctx: Context) -> None:
    api = await ctx.rest()
    api.need("session_id_override")
    (await api.create(sessionId="mine")).refused(400, "invalid_session_id")


@case("CREATE-017")
async def wanted_live(ctx: Context) -> None:
    api = await ctx.rest()
    wanted = str(uuid4())
    await with_id(api, wanted)
    (await api.create(sessionId=wanted)).refused(409, "session_id_conflict", sessionId=wanted)


@case("CREATE-018")
async def bad_mode(ctx: Context) -> None:
    answer = await (await ctx.rest()).create(sessionScope="thread", approvalMode="reckless")
    answer.refused(400, "invalid_approval_mode")


@case("CREATE-019")
async def thread_apart(ctx: Context) -> None:
    api = await ctx.rest()
    thread = await api.session()
    body = (await api.create(sessionScope="single")).ok()
    check(body["sessionId"] != thread.id, "the thread became the shared session")
    again = (await api.create(sessionScope="single")).ok()
    check(again["sessionId"] == body["sessionId"], "a thread in between changed the shared one")


@case("CREATE-020")
async def shared_again(ctx: Context) -> None:
    api = await ctx.rest()
    first = (await api.create(sessionScope="single")).ok()["sessionId"]
    (await api.call("DELETE", f"/session/{first}")).empty()
    body = (await api.create(sessionScope="single")).ok()
    check(body["sessionId"] != first, f"the deleted session again: {brief(body)}")
    check(body["attached"] is False, "attached to nothing")
