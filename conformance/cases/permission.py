"""session/request_permission: one client, several clients, none."""

from __future__ import annotations

from typing import Any

from conformance.context import Context
from conformance.links import Link, Message, Pending, allow, leave_open, option, reject, text_of
from conformance.outcome import brief, check
from conformance.registry import case
from conformance.steps import expect_stop, run_prompt, start_prompt

KINDS = ("allow_once", "allow_always", "reject_once", "reject_always")


def ran(ctx: Context) -> bool:
    return (ctx.cwd / "acp-demo.txt").exists()


def selected(question: Message, kind: str) -> Message:
    return {"result": {"outcome": {"outcome": "selected", "optionId": option(question, kind)}}}


async def ask_two(ctx: Context) -> tuple[Link, Link, str, Pending, Message, Message]:
    """Two clients on one session and a question that both got."""
    first, second = await ctx.link(handler=leave_open), await ctx.link(handler=leave_open)
    session = await ctx.session(first)
    await ctx.load(second, session)
    turn = await start_prompt(first, session, "hello")
    return (
        first,
        second,
        session,
        turn,
        await first.question(session),
        await second.question(session),
    )


@case("PERM-001", needs="demo")
async def allowed(ctx: Context) -> None:
    link = await ctx.link(handler=allow)
    session = await ctx.session(link)
    await run_prompt(link, session, "remember this text")
    check(ran(ctx), "the file is missing")
    check("remember this text" in (ctx.cwd / "acp-demo.txt").read_text(), "the file is wrong")


@case("PERM-002", needs="demo")
async def rejected(ctx: Context) -> None:
    link = await ctx.link(handler=reject)
    session = await ctx.session(link)
    await run_prompt(link, session, "hello")
    check(not ran(ctx), "the tool ran although it was rejected")


@case("PERM-003", needs="demo")
async def shape(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    await run_prompt(link, session, "hello")
    params = (await link.question(session))["params"]
    check(isinstance(params["toolCall"].get("toolCallId"), str), brief(params))
    check(params["options"], "no options")
    for entry in params["options"]:
        known = isinstance(entry.get("optionId"), str) and isinstance(entry.get("name"), str)
        check(known and entry.get("kind") in KINDS, f"option {brief(entry)}")


@case("PERM-004", needs="demo")
async def outcome_cancelled(ctx: Context) -> None:
    async def cancelled(link: Link, request: Message) -> Message | None:
        return {"result": {"outcome": {"outcome": "cancelled"}}}

    link = await ctx.link(handler=cancelled)
    session = await ctx.session(link)
    turn = await start_prompt(link, session, "hello")
    expect_stop(await turn.reply(), "end_turn", "cancelled")
    check(not ran(ctx), "the tool ran")


@case("PERM-005", needs="demo")
async def both_asked(ctx: Context) -> None:
    first, _, _, turn, mine, theirs = await ask_two(ctx)
    check(mine["params"]["toolCall"] == theirs["params"]["toolCall"], "two different questions")
    check(mine["params"]["options"] == theirs["params"]["options"], "two different choices")
    await first.answer(mine, selected(mine, "reject_once"))
    expect_stop(await turn.reply(), "end_turn")


@case("PERM-006", needs="demo")
async def first_wins(ctx: Context) -> None:
    first, second, _, turn, mine, theirs = await ask_two(ctx)
    await second.answer(theirs, selected(theirs, "allow_once"))
    await withdrawn(first, mine)
    expect_stop(await turn.reply(), "end_turn")
    check(ran(ctx), "the first answer did not count")
    lost = [m for m in second.messages() if m.get("method") == "$/cancel_request"]
    check(not lost, f"the winner was told {brief(lost)}")


async def withdrawn(link: Link, question: Message) -> None:
    """Wait for the $/cancel_request of this question."""
    await link.expect(
        lambda m: (
            m.get("method") == "$/cancel_request" and m["params"].get("requestId") == question["id"]
        )
    )


@case("PERM-007", needs="demo")
async def late_answer(ctx: Context) -> None:
    first, second, session, turn, mine, theirs = await ask_two(ctx)
    await first.answer(mine, selected(mine, "reject_once"))
    expect_stop(await turn.reply(), "end_turn")
    start = len(second.log)
    await second.answer(theirs, selected(theirs, "allow_once"))
    await second.fence()
    errors = [m for m in second.messages(start) if "error" in m][:-1]
    check(not errors, f"the late answer was answered {brief(errors)}")
    await run_prompt(second, session, "/session")
    check(not ran(ctx), "the late answer counted")


@case("PERM-008", needs="demo")
async def malformed(ctx: Context) -> None:
    first, second, _, turn, mine, theirs = await ask_two(ctx)
    bad: list[dict[str, Any]] = [
        {"result": {}},
        {"error": {"code": -32603, "message": "the dialog crashed"}},
        {"result": {"outcome": {"outcome": "selected", "optionId": "conformance-none"}}},
        {"result": {"outcome": "allow"}},
        {"result": None},
    ]
    for members in bad:
        await second.answer(theirs, members)
    await second.fence()
    check(not turn.answered, "a malformed answer ended the turn")
    await first.answer(mine, selected(mine, "allow_once"))
    expect_stop(await turn.reply(), "end_turn")
    check(ran(ctx), "a malformed answer decided for the other client")


@case("PERM-009", needs="demo")
async def asked_again(ctx: Context) -> None:
    first = await ctx.link(handler=leave_open)
    session = await ctx.session(first)
    await start_prompt(first, session, "hello")
    await first.question(session)
    await first.drop()
    second = await ctx.link(handler=leave_open)
    await ctx.load(second, session)
    question = await second.question(session)
    await second.answer(question, selected(question, "allow_once"))
    await second.expect(lambda m: "I wrote" in text_of([m], session))
    check(ran(ctx), "the answer after the reconnect did not count")


@case("PERM-010", needs="demo")
async def not_asked_again(ctx: Context) -> None:
    first = await ctx.link()
    session = await ctx.session(first)
    await run_prompt(first, session, "hello")
    second = await ctx.link(handler=leave_open)
    await ctx.load(second, session)
    await run_prompt(second, session, "/session")
    asked = [m for m in second.messages() if m.get("method") == "session/request_permission"]
    check(not asked, f"a settled question was asked again: {brief(asked)}")


@case("PERM-011", needs="demo")
async def joined_by_resume(ctx: Context) -> None:
    first = await ctx.link(handler=leave_open)
    session = await ctx.session(first)
    turn = await start_prompt(first, session, "hello")
    await first.question(session)
    second = await ctx.link(handler=leave_open)
    await ctx.load(second, session, "session/resume")
    question = await second.question(session)
    await second.answer(question, selected(question, "reject_once"))
    expect_stop(await turn.reply(), "end_turn")


@case("PERM-012", needs="demo")
async def bystander_leaves(ctx: Context) -> None:
    first, second, _, turn, mine, _ = await ask_two(ctx)
    await second.drop()
    await first.fence()
    check(not turn.answered, "the bystander's leaving ended the turn")
    await first.answer(mine, selected(mine, "allow_once"))
    expect_stop(await turn.reply(), "end_turn")
    check(ran(ctx), "the bystander's leaving decided")


@case("PERM-013", needs="demo")
async def answered_twice(ctx: Context) -> None:
    link = await ctx.link(handler=leave_open)
    session = await ctx.session(link)
    turn = await start_prompt(link, session, "hello")
    question = await link.question(session)
    await link.answer(question, selected(question, "allow_once"))
    await link.answer(question, selected(question, "reject_once"))
    expect_stop(await turn.reply(), "end_turn")
    check(ran(ctx), "the second answer counted")
    await link.fence()
