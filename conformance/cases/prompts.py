"""Turns: order, ends, queue, content."""

from __future__ import annotations

from conformance.context import Context
from conformance.links import text_of, updates
from conformance.outcome import Failure, brief, check
from conformance.registry import case
from conformance.steps import (
    STOP_REASONS,
    check_numbers,
    chunk_text,
    expect_stop,
    run_prompt,
    running,
    start_prompt,
    text_prompt,
)

TOOL_ENDS = ("completed", "failed")


@case("PROMPT-001", timeout=60)
async def stop_reason(ctx: Context) -> None:
    link = await ctx.link()
    reply = await link.request("session/prompt", text_prompt(await ctx.session(link), "hello"))
    expect_stop(reply, *STOP_REASONS)


@case("PROMPT-002", timeout=60)
async def message_first(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    reply = await link.request("session/prompt", text_prompt(session, "hello"))
    expect_stop(reply, *STOP_REASONS)
    check(text_of(reply.before, session), "no agent_message_chunk came before the answer")


@case("PROMPT-003", needs="demo", count=1)
@case("PROMPT-004", needs="demo", count=10)
@case("PROMPT-005", needs="demo", count=100)
@case("PROMPT-006", needs="demo", count=1000)
@case("PROMPT-007", needs="demo", count=5000, timeout=60)
async def all_before_the_answer(ctx: Context, count: int) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    reply = await run_prompt(link, session, f"/chunks {count} 64")
    check_numbers(text_of(reply.before, session), count, 64)
    check(text_of(link.messages(reply.index), session) == "", "chunks came after the answer")


@case("PROMPT-008", needs="demo")
async def first_in_first_out(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    turns = [await start_prompt(link, session, f"/chunks {count} 20") for count in (300, 200, 100)]
    replies = [await turn.reply() for turn in turns]
    for reply in replies:
        expect_stop(reply, "end_turn")
    indexes = [reply.index for reply in replies]
    check(indexes == sorted(indexes), f"answers came out of order: {indexes}")
    begin = 0
    for reply, count in zip(replies, (300, 200, 100), strict=True):
        check_numbers(text_of(link.messages(begin)[: reply.index - begin], session), count, 20)
        begin = reply.index


@case("PROMPT-009", needs="demo")
async def queue_cap(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    first = await running(link, session)
    others = [await start_prompt(link, session, "/session") for _ in range(40)]
    refused = await others[-1].reply()
    error = refused.error
    kind = (error.get("data") or {}).get("errorKind")
    check(kind == "prompt_queue_full", f"the last of 41 prompts: {brief(error)}")
    check(not first.answered, "the running prompt ended")
    waiting = [turn for turn in others if not turn.answered]
    check(waiting, "no prompt waits in the queue")
    await link.notify("$/cancel_request", {"requestId": first.id})
    await first.reply()
    for turn in waiting:
        expect_stop(await turn.reply(), "end_turn")


@case("PROMPT-010", needs="demo")
async def nothing_after_the_answer(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    for text in ("hello", "/plan", "/chunks 500 30"):
        reply = await run_prompt(link, session, text)
        await link.request("session/list", {})
        kinds = ("agent_message_chunk", "agent_thought_chunk", "plan", "tool_call")
        late = updates(link.messages(reply.index), session, *kinds, "tool_call_update")
        check(not late, f"after the answer to {text!r}: {brief(late)}")


@case("PROMPT-011", timeout=60)
async def resource_link(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    blocks = [
        {"type": "text", "text": "hello"},
        {"type": "resource_link", "uri": "file:///tmp/a.txt", "name": "a.txt"},
    ]
    reply = await link.request("session/prompt", {"sessionId": session, "prompt": blocks})
    expect_stop(reply, *STOP_REASONS)


@case("PROMPT-012", needs="demo")
async def tool_call(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    reply = await run_prompt(link, session, "hello")
    calls = updates(reply.before, session, "tool_call")
    check(len(calls) == 1, f"tool calls: {brief(calls)}")
    mine = [
        update
        for update in updates(reply.before, session, "tool_call_update")
        if update["toolCallId"] == calls[0]["toolCallId"]
    ]
    if not mine:
        raise Failure("the tool call was never updated")
    check(mine[-1].get("status") in TOOL_ENDS, f"last update: {brief(mine[-1])}")


@case("PROMPT-013", needs="demo")
async def plan(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    plans = updates((await run_prompt(link, session, "/plan")).before, session, "plan")
    check(plans, "no plan")
    for entry in (entry for update in plans for entry in update["entries"]):
        check(isinstance(entry.get("content"), str), brief(entry))
        check(entry.get("priority") in ("high", "medium", "low"), brief(entry))
        check(entry.get("status") in ("pending", "in_progress", "completed"), brief(entry))


@case("PROMPT-014", needs="demo")
async def echo(ctx: Context) -> None:
    sender, watcher = await ctx.link(), await ctx.link()
    session = await ctx.session(sender)
    await ctx.load(watcher, session)
    await run_prompt(sender, session, "/chunks 3 20")
    mine = text_of(sender.messages(), session, "user_message_chunk")
    check(mine == "", f"the sender got its own prompt: {mine!r}")
    await watcher.expect(lambda m: (chunk_text(m, session) or "").startswith("000002 "))
    theirs = text_of(watcher.messages(), session, "user_message_chunk")
    check(theirs == "/chunks 3 20", f"the other client got {theirs!r}")


@case("PROMPT-015", needs="demo")
async def commands(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    message = await link.expect(lambda m: bool(updates([m], session, "available_commands_update")))
    names = [c["name"] for c in message["params"]["update"]["availableCommands"]]
    check("chunks" in names, f"commands: {names}")


@case("PROMPT-016", needs="demo", then=False)
@case("PROMPT-017", needs="demo", then=True, timeout=60)
async def crash(ctx: Context, then: bool) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    await run_prompt(link, session, "/chunks 3 20")
    reply = await link.request("session/prompt", text_prompt(session, "/crash"))
    error = reply.fails_with(-32603)
    check((error.get("data") or {}).get("errorKind") == "agent_exited", brief(error))
    if then:
        reply = await run_prompt(link, session, "/session")
        check(session in text_of(reply.before, session), "another session answered")
