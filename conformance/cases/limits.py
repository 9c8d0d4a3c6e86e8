"""Large messages in both directions."""

from __future__ import annotations

import json

from conformance.context import Context
from conformance.links import text_of, updates
from conformance.outcome import check
from conformance.registry import case
from conformance.steps import check_numbers, run_prompt

MIB = 1024 * 1024


@case("LIMIT-001", needs="demo", timeout=60)
async def big_prompt(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    reply = await run_prompt(link, session, "y" * 3_000_000)
    check("(3000000 characters)" in text_of(reply.before, session), "the prompt did not arrive")


@case("LIMIT-002", needs="demo", timeout=60)
async def big_chunk(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    reply = await run_prompt(link, session, "/size 1500000")
    chunks = updates(reply.before, session, "agent_message_chunk")
    sizes = [len(json.dumps(chunk)) for chunk in chunks]
    check(text_of(reply.before, session) == "x" * 1_500_000, f"chunks of {sizes}")
    check(max(sizes) < MIB, f"chunks of {sizes} bytes; a real client dies above {MIB}")


@case("LIMIT-003", needs="demo", timeout=60)
async def multi_byte(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    # Three bytes a character, so that no cut at a round number of bytes is a good one.
    (ctx.cwd / "big.txt").write_text("漢字\U0001f680" * 300_000, encoding="utf-8")
    reply = await run_prompt(link, session, "/read big.txt")
    text = text_of(reply.before, session)
    check(text == "漢字\U0001f680" * 300_000, f"{len(text)} characters came")


@case("LIMIT-004", needs="demo", timeout=60)
async def almost_too_large(ctx: Context) -> None:
    link = await ctx.link()
    reply = await link.request("conformance/unknown", {"x": "z" * (10 * MIB - 4096)})
    reply.fails_with(-32601)


@case("LIMIT-005", needs="demo", timeout=60)
async def wide_chunks(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    reply = await run_prompt(link, session, "/chunks 200 20000")
    check_numbers(text_of(reply.before, session), 200, 20_000)
