"""Clients that vanish, come back, or share a session."""

from __future__ import annotations

from conformance.context import Context
from conformance.links import Link, Message, allow, leave_open, text_of, updates
from conformance.outcome import Failure, brief, check
from conformance.registry import case
from conformance.steps import (
    check_numbers,
    chunk_text,
    expect_stop,
    run_prompt,
    running,
    start_prompt,
)

STREAM_KINDS = (
    "user_message_chunk",
    "agent_message_chunk",
    "agent_thought_chunk",
    "plan",
    "tool_call",
    "tool_call_update",
)


async def last_tick(link: Link, session: str, *, after: int = 0) -> None:
    """Wait for the end of /sleep."""
    await link.expect(lambda m: (chunk_text(m, session) or "").startswith("slept "), after=after)


@case("RECON-001", needs="demo", timeout=60)
async def drop_in_a_turn(ctx: Context) -> None:
    first = await ctx.link()
    session = await ctx.session(first)
    turn = await start_prompt(first, session, "/chunks 30000 100")
    await first.expect(lambda m: (chunk_text(m, session) or "")[:6] >= "000300", after=turn.start)
    await first.drop()
    second = await ctx.link()
    await ctx.load(second, session)
    # The turn may or may not be over by now; the next one can only come after all of it.
    await run_prompt(second, session, "/session")
    text = text_of(second.messages(), session)
    check_numbers(text[: text.rindex("{")], 30000, 100)


@case("RECON-002", needs="demo")
async def drop_cancels_nothing(ctx: Context) -> None:
    first, second = await ctx.link(), await ctx.link()
    session = await ctx.session(first)
    await ctx.load(second, session)
    await start_prompt(first, session, "/sleep 1")
    await second.expect(lambda m: chunk_text(m, session) == "tick ")
    await first.drop()
    await last_tick(second, session)


def story(messages: list[Message], session: str) -> list[Message]:
    """The updates of the conversation, without what the sender alone does not get."""
    return [
        update
        for update in updates(messages, session, *STREAM_KINDS)
        if update["sessionUpdate"] != "user_message_chunk"
    ]


async def same_story(ctx: Context, sender: Link, watcher: Link) -> None:
    session = await ctx.session(sender)
    await ctx.load(watcher, session)
    for text in ("hello", "/chunks 300 50", "/plan"):
        await run_prompt(sender, session, text)
    # A turn of the watcher's own: everything before it has arrived when it is answered.
    await run_prompt(watcher, session, "/session")
    await sender.expect(lambda m: (chunk_text(m, session) or "").startswith("{"))
    mine, theirs = story(sender.messages(), session), story(watcher.messages(), session)
    check(len(mine) == len(theirs), f"{len(mine)} updates for the sender, {len(theirs)} else")
    for number, (left, right) in enumerate(zip(mine, theirs, strict=True)):
        check(left == right, f"update {number}: {brief(left)} and {brief(right)}")
    echoed = text_of(watcher.messages(), session, "user_message_chunk")
    check(echoed == "hello/chunks 300 50/plan", f"the watcher saw the prompts {echoed!r}")


@case("RECON-003", needs="demo")
async def two_clients(ctx: Context) -> None:
    await same_story(ctx, await ctx.link(), await ctx.link(handler=leave_open))


@case("RECON-004", needs="demo")
async def two_transports(ctx: Context) -> None:
    await same_story(ctx, await ctx.link("ws"), await ctx.link("http", handler=leave_open))
    await same_story(ctx, await ctx.link("http"), await ctx.link("ws", handler=leave_open))


@case("RECON-005", needs="demo")
async def whole_conversation(ctx: Context) -> None:
    first = await ctx.link(handler=allow)
    session = await ctx.session(first)
    await run_prompt(first, session, "hello one")
    await run_prompt(first, session, "/chunks 3 20")
    second = await ctx.link()
    await ctx.load(second, session)
    await run_prompt(second, session, "/session")
    sides: list[tuple[str, str]] = []
    for update in updates(second.messages(), session, *STREAM_KINDS[:2]):
        who, text = update["sessionUpdate"], update["content"].get("text", "")
        if sides and sides[-1][0] == who:
            sides[-1] = (who, sides[-1][1] + text)
        else:
            sides.append((who, text))
    who = [side for side, _ in sides]
    check(who[:4] == [*STREAM_KINDS[:2], *STREAM_KINDS[:2]], f"sides: {who}")
    check(sides[0][1] == "hello one" and sides[2][1] == "/chunks 3 20", brief(sides))
    check("You wrote: hello one" in sides[1][1], brief(sides[1]))
    check(sides[3][1].startswith("000000 "), brief(sides[3]))
    calls = updates(second.messages(), session, "tool_call", "tool_call_update")
    check(calls and calls[-1].get("status") == "completed", f"tool calls: {brief(calls)}")


@case("RECON-006", needs="demo")
async def close_detaches(ctx: Context) -> None:
    first, second = await ctx.link(), await ctx.link()
    session = await ctx.session(first)
    await ctx.load(second, session)
    turn = await running(first, session)
    await second.request("session/close", {"sessionId": session})
    await first.fence()
    check(not turn.answered, "the close of one client ended the other's turn")
    await first.notify("session/cancel", {"sessionId": session})
    expect_stop(await turn.reply(), "cancelled")


@case("RECON-007", needs="demo")
async def foreign_answer(ctx: Context) -> None:
    first = await ctx.link()
    session = await ctx.session(first)
    turn = await start_prompt(first, session, "/sleep 1")
    await first.expect(lambda m: chunk_text(m, session) == "tick ", after=turn.start)
    await first.drop()
    second = await ctx.link()
    await ctx.load(second, session)
    await last_tick(second, session)
    await run_prompt(second, session, "/session")
    known = [f"{i}" for i in range(1, second._last_id + 1)]
    strange = [m for m in second.messages() if "stopReason" in (m.get("result") or {})]
    if len(strange) != 1 or str(strange[0]["id"]) not in known:
        raise Failure(f"answers of prompts: {brief(strange)}")


@case("RECON-008", needs="demo", timeout=60)
async def many_reconnects(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    await run_prompt(link, session, "/chunks 10 20")
    for _ in range(10):
        await link.drop()
        link = await ctx.link()
        await ctx.load(link, session)
    await run_prompt(link, session, "/session")
    text = text_of(link.messages(), session)
    check_numbers(text[: text.rindex("{")], 10, 20)
