"""The policies designated, consensus and local-only.

They are those of the daemon, or of a session that is made with ``permissionPolicy``.
"""

from __future__ import annotations

from typing import Any

from conformance.context import Context
from conformance.outcome import Skip, brief, check
from conformance.registry import case
from conformance.rest.session import CANCELLED, Question, Session, selected


async def policy_session(ctx: Context, policy: str, **more: Any) -> Session:
    """A new session under this policy; `Skip` when the daemon cannot make one."""
    api = await ctx.rest()
    told = (api.capabilities.get("policy") or {}).get("permission")
    if told != policy or more:
        await need_choice(ctx)
    return await api.session(permissionPolicy=policy, **more)


async def need_choice(ctx: Context) -> None:
    """A daemon that does not know the member takes any value of it."""
    answer = await (await ctx.rest()).create(sessionScope="thread", permissionPolicy="no-such")
    if answer.status == 200:
        raise Skip("permissionPolicy is not known, and the daemon's own policy is another")


async def asked(ctx: Context, policy: str, clients: int = 1, **more: Any) -> tuple[Question, Any]:
    """A question, and the client ids that were registered when it was asked, prompter first."""
    session = await policy_session(ctx, policy, **more)
    voters = [session.client, *[await session.attach() for _ in range(clients - 1)]]
    return await session.question(await session.events()), voters


async def forbidden(question: Question, client: str | None) -> None:
    """A vote of this client must be refused as no voter's."""
    answer = await question.choose("allow_once", client=client)
    answer.refused(
        403,
        "permission_forbidden",
        requestId=question.id,
        sessionId=question.session.id,
        reason="designated_mismatch",
    )


async def finish(question: Question, *, ran: bool) -> None:
    await question.stream.turn_end(question.prompt_id)
    check(question.file.exists() == ran, f"the tool {'did not run' if ran else 'ran'}")


@case("POLICY-001")
async def designated_other(ctx: Context) -> None:
    question, voters = await asked(ctx, "designated", 2)
    await forbidden(question, voters[1])
    await question.settle()


@case("POLICY-002")
async def designated_anonymous(ctx: Context) -> None:
    question, _ = await asked(ctx, "designated")
    await forbidden(question, None)
    await question.settle()


@case("POLICY-003")
async def designated_prompter(ctx: Context) -> None:
    question, voters = await asked(ctx, "designated", 2)
    await forbidden(question, voters[1])
    (await question.choose("allow_once")).ok()
    await finish(question, ran=True)


@case("POLICY-004")
async def designated_event(ctx: Context) -> None:
    question, voters = await asked(ctx, "designated", 2)
    for client in (voters[1], None):
        after = len(question.stream.frames)
        await forbidden(question, client)
        frame = await question.stream.expect("permission_forbidden", after=after)
        check(frame.data.get("clientId") == client, brief(frame.data))
        check(frame.data.get("reason") == "designated_mismatch", brief(frame.data))
        check(frame.data.get("requestId") == question.id, brief(frame.data))
        who = frame.envelope.get("originatorClientId")
        check(who == voters[0], f"originator {who}, not the prompter")
    await question.settle()


@case("POLICY-005")
async def below_quorum(ctx: Context) -> None:
    question, voters = await asked(ctx, "consensus", 3)
    option = question.option("allow_once")
    check((await question.choose("allow_once", client=voters[1])).ok() == {}, "not {}")
    frame = await question.stream.expect("permission_partial_vote", requestId=question.id)
    want = {"votesReceived": 1, "votesNeeded": 1, "quorum": 2, "optionTallies": {option: 1}}
    check(want.items() <= frame.data.items(), f"{brief(frame.data)} instead of {want}")
    check(not question.stream.of("permission_resolved"), "one of three votes decided")
    await question.settle()


@case("POLICY-006")
async def quorum(ctx: Context) -> None:
    question, voters = await asked(ctx, "consensus", 3)
    for client in voters[:2]:
        (await question.choose("allow_once", client=client)).ok()
    frame = await question.stream.expect("permission_resolved", requestId=question.id)
    check(frame.data["outcome"] == selected(question.option("allow_once")), brief(frame.data))
    check(frame.data.get("voterClientId") == voters[1], brief(frame.data))
    await finish(question, ran=True)


@case("POLICY-007")
async def second_vote(ctx: Context) -> None:
    question, voters = await asked(ctx, "consensus", 3)
    (await question.choose("allow_once", client=voters[0])).ok()
    for kind in ("allow_once", "reject_once"):
        (await question.choose(kind, client=voters[0])).ok()
    await question.session.fence(question.stream)
    partial = question.stream.of("permission_partial_vote")
    check(len(partial) == 1, f"{len(partial)} partial votes of one client")
    check(not question.stream.of("permission_resolved"), "one client decided alone")
    (await question.choose("allow_once", client=voters[1])).ok()
    await finish(question, ran=True)


@case("POLICY-008")
async def no_voters(ctx: Context) -> None:
    question, _ = await asked(ctx, "consensus", 2)
    await forbidden(question, None)
    await forbidden(question, await question.session.attach())
    await question.settle()


@case("POLICY-009")
async def abort(ctx: Context) -> None:
    question, voters = await asked(ctx, "consensus", 3)
    (await question.vote(CANCELLED, client=voters[2])).ok()
    frame = await question.stream.expect("permission_resolved", requestId=question.id)
    check(frame.data["outcome"] == CANCELLED, brief(frame.data))
    await finish(question, ran=False)


@case("POLICY-010")
async def local(ctx: Context) -> None:
    ctx.need_loopback()
    question, _ = await asked(ctx, "local-only")
    (await question.choose("allow_once", client=None)).ok()
    await finish(question, ran=True)


@case("POLICY-011")
async def split(ctx: Context) -> None:
    question, voters = await asked(ctx, "consensus", 2)
    (await question.choose("allow_once", client=voters[0])).ok()
    (await question.choose("reject_once", client=voters[1])).ok()
    frame = await question.stream.expect("permission_resolved", requestId=question.id)
    check(frame.data["outcome"] == CANCELLED, brief(frame.data))
    await finish(question, ran=False)


@case("POLICY-012")
async def own_quorum(ctx: Context) -> None:
    question, voters = await asked(ctx, "consensus", 3, consensusQuorum=3)
    for client in voters[:2]:
        (await question.choose("allow_once", client=client)).ok()
    await question.session.fence(question.stream)
    check(not question.stream.of("permission_resolved"), "two of three votes decided")
    (await question.choose("allow_once", client=voters[2])).ok()
    await finish(question, ran=True)


@case("POLICY-013")
async def unknown(ctx: Context) -> None:
    api = await ctx.rest()
    answer = await api.create(sessionScope="thread", permissionPolicy="no-such")
    check(answer.status in (400, 501), f"{answer}")
    answer.refused(answer.status)
