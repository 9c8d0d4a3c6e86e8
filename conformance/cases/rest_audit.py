"""GET /workspace/permissions/audit."""

from __future__ import annotations

from typing import Any

from conformance.cases.rest_policy import policy_session
from conformance.cases.rest_vote import decided
from conformance.context import Context
from conformance.outcome import brief, check
from conformance.registry import case
from conformance.rest.answer import members
from conformance.rest.session import Question


async def audit(question: Question, query: str = "") -> list[dict[str, Any]]:
    """The entries of the question's session, oldest first."""
    session = question.session
    path = f"/workspace/permissions/audit?sessionId={session.id}{query}"
    body = (await session.api.call("GET", path)).ok()
    lists = [value for value in body.values() if isinstance(value, list)]
    check(len(lists) == 1, f"no list of entries: {brief(body)}")
    return list(lists[0])


@case("AUDIT-001")
async def audit_order(ctx: Context) -> None:
    question = await decided(ctx)
    entries = await audit(question)
    for entry in entries:
        members(entry, kind=str, requestId=str, sessionId=str, recordedAtMs=(int, float))
    kinds = [entry["kind"] for entry in entries]
    want = [f"permission.{kind}" for kind in ("requested", "voted", "resolved")]
    check(kinds == want, f"{kinds}")
    check({entry["requestId"] for entry in entries} == {question.id}, brief(entries))


@case("AUDIT-002")
async def audit_of_session(ctx: Context) -> None:
    first, second = await decided(ctx), await decided(ctx)
    for question in (first, second):
        seen = {entry["sessionId"] for entry in await audit(question)}
        check(seen == {question.session.id}, f"sessions {seen}")


@case("AUDIT-003")
async def audit_limit(ctx: Context) -> None:
    question = await decided(ctx)
    whole = await audit(question)
    check(await audit(question, "&limit=1") == whole[-1:], "not the last entry")


@case("AUDIT-004")
async def audit_bad_limit(ctx: Context) -> None:
    api = await ctx.rest()
    for limit in ("-1", "x", "1.5"):
        (await api.call("GET", f"/workspace/permissions/audit?limit={limit}")).refused(400)


@case("AUDIT-005")
async def audit_refusal(ctx: Context) -> None:
    session = await policy_session(ctx, "designated")
    question = await session.question(await session.events())
    (await question.choose("allow_once", client=None)).refused(403)
    kinds = [entry["kind"] for entry in await audit(question)]
    check("permission.forbidden" in kinds, f"{kinds}")
    await question.settle()
