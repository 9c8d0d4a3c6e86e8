"""What the server sends, held against the schemas."""

from __future__ import annotations

from typing import Any

from conformance.context import Context
from conformance.links import Link
from conformance.outcome import check
from conformance.registry import case
from conformance.schemas import check_messages
from conformance.steps import run_prompt, text_prompt


async def _call(link: Link, methods: dict[Any, str], method: str, params: Any) -> Any:
    pending = await link.start(method, params)
    methods[pending.id] = method
    return (await pending.reply()).message.get("result")


@case("SCHEMA-001")
async def session_answers(ctx: Context) -> None:
    link = await ctx.bare()
    methods: dict[Any, str] = {}
    await _call(link, methods, "initialize", {"protocolVersion": 1, "clientCapabilities": {}})
    where = {"cwd": str(ctx.cwd), "mcpServers": []}
    opened = await _call(link, methods, "session/new", where)
    session = {"sessionId": opened["sessionId"]}
    await link.attached(session["sessionId"])
    await _call(link, methods, "session/list", {})
    await _call(link, methods, "session/load", {**session, **where})
    modes = opened.get("modes")
    if modes is not None:
        mode = {**session, "modeId": modes["currentModeId"]}
        await _call(link, methods, "session/set_mode", mode)
    await _call(link, methods, "session/close", session)
    check(check_messages(link, methods) >= len(methods), "an answer has no definition")


@case("SCHEMA-002", needs="demo")
async def turn(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    await run_prompt(link, session, "hello")
    judged = check_messages(link, {})
    check(judged > 10, f"only {judged} messages of a whole turn were judged")


@case("SCHEMA-003")
async def errors(ctx: Context) -> None:
    link = await ctx.link()
    for method, params in (
        ("no/such_method", {}),
        ("session/new", {"cwd": 5}),
        ("session/prompt", text_prompt("no-such-session", "hello")),
        ("session/load", {"sessionId": "no-such-session", "cwd": str(ctx.cwd), "mcpServers": []}),
    ):
        reply = await link.request(method, params)
        check("error" in reply.message, f"{method} was answered {reply.message}")
    check(check_messages(link, {}) >= 4, "an error has no definition")
