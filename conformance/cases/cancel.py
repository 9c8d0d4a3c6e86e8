"""session/cancel and $/cancel_request."""

from __future__ import annotations

from conformance.context import Context
from conformance.links import leave_open, text_of, updates
from conformance.outcome import brief, check
from conformance.registry import case
from conformance.steps import chunk_text, expect_stop, run_prompt, running, start_prompt


@case("CANCEL-001", needs="demo")
async def cancel_running(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    turn = await running(link, session)
    await link.notify("session/cancel", {"sessionId": session})
    expect_stop(await turn.reply(), "cancelled")


@case("CANCEL-002", needs="demo")
async def cancel_asking(ctx: Context) -> None:
    link = await ctx.link(handler=leave_open)
    session = await ctx.session(link)
    turn = await start_prompt(link, session, "hello")
    question = await link.question(session)
    await link.notify("session/cancel", {"sessionId": session})
    # What ACP asks of a client that cancels.
    await link.answer(question, {"result": {"outcome": {"outcome": "cancelled"}}})
    expect_stop(await turn.reply(), "cancelled")
    check(not (ctx.cwd / "acp-demo.txt").exists(), "the tool ran")


@case("CANCEL-012", needs="demo")
async def cancel_withdraws(ctx: Context) -> None:
    link = await ctx.link(handler=leave_open)
    session = await ctx.session(link)
    turn = await start_prompt(link, session, "hello")
    question = await link.question(session)
    await link.notify("session/cancel", {"sessionId": session})
    expect_stop(await turn.reply(), "cancelled")
    await link.expect(
        lambda m: (
            m.get("method") == "$/cancel_request" and m["params"].get("requestId") == question["id"]
        )
    )


@case("CANCEL-003", needs="demo")
async def cancel_queued(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    turns = [await running(link, session)]
    turns += [await start_prompt(link, session, "/sleep 60") for _ in range(2)]
    await link.notify("session/cancel", {"sessionId": session})
    for turn in turns:
        expect_stop(await turn.reply(), "cancelled")


@case("CANCEL-004", needs="demo")
async def cancel_by_id(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    turn = await running(link, session)
    await link.notify("$/cancel_request", {"requestId": turn.id})
    reply = await turn.reply()
    if "error" in reply.message:
        reply.fails_with(-32800)
    else:
        expect_stop(reply, "cancelled")


@case("CANCEL-005")
async def cancel_nothing(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    start = len(link.log)
    await link.notify("session/cancel", {"sessionId": session})
    await link.fence()
    errors = [m for m in link.messages(start) if "error" in m][:-1]
    check(not errors, f"answered {brief(errors)}")
    if ctx.agent == "demo":
        await run_prompt(link, session, "/session")


@case("CANCEL-006", params={"sessionId": "conformance-none"})
@case("CANCEL-007", params={"requestId": 987654})
async def cancel_unknown(ctx: Context, params: dict[str, object]) -> None:
    link = await ctx.link()
    start = len(link.log)
    await link.notify("session/cancel" if "sessionId" in params else "$/cancel_request", params)
    await link.fence()
    errors = [m for m in link.messages(start) if "error" in m][:-1]
    check(not errors, f"answered {brief(errors)}")


@case("CANCEL-008", needs="demo")
async def next_prompt(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    for _ in range(3):
        turn = await running(link, session)
        await link.notify("session/cancel", {"sessionId": session})
        expect_stop(await turn.reply(), "cancelled")
        reply = await run_prompt(link, session, "/session")
        check(session in text_of(reply.before, session), "no answer of the agent")


@case("CANCEL-009", needs="demo")
async def cancel_by_another(ctx: Context) -> None:
    sender, other = await ctx.link(), await ctx.link()
    session = await ctx.session(sender)
    await ctx.load(other, session)
    turn = await running(sender, session)
    await other.notify("session/cancel", {"sessionId": session})
    expect_stop(await turn.reply(), "cancelled")


@case("CANCEL-010", needs="demo")
async def cancel_queued_by_id(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    first = await running(link, session)
    second = await start_prompt(link, session, "/session")
    await link.notify("$/cancel_request", {"requestId": second.id})
    reply = await second.reply()
    if "error" in reply.message:
        reply.fails_with(-32800)
    else:
        expect_stop(reply, "cancelled")
    check(not first.answered, "the running prompt ended, too")
    await link.notify("session/cancel", {"sessionId": session})
    expect_stop(await first.reply(), "cancelled")


@case("CANCEL-011", needs="demo")
async def cancel_flood(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    turn = await start_prompt(link, session, "/chunks 2000000 100")
    await link.expect(lambda m: chunk_text(m, session) is not None, after=turn.start)
    await link.notify("session/cancel", {"sessionId": session})
    reply = await turn.reply()
    expect_stop(reply, "cancelled")
    await link.request("session/list", {})
    late = updates(link.messages(reply.index), session, "agent_message_chunk")
    check(not late, f"{len(late)} chunks after the answer")
