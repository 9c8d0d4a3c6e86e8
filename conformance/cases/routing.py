"""Ids, methods, params and messages that nobody waits for."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import trio

from conformance.context import Context
from conformance.links import ABSENT, leave_open, same_id, text_of
from conformance.outcome import Failure, brief, check
from conformance.registry import case
from conformance.steps import (
    check_numbers,
    expect_stop,
    run_prompt,
    running,
    start_prompt,
    text_prompt,
)

STRANGE_TEXT = 'tab\t nul\0 \u2028\u2029 \x7f é 漢字 \U0001f680 "quoted" \\u0041 </script> \r\n end'


@case("ROUTE-001", id='an id with " and é')
@case("ROUTE-002", id=0)
@case("ROUTE-003", id=-7)
@case("ROUTE-006", id=2**53 + 1)
async def id_echo(ctx: Context, id: Any) -> None:
    link = await ctx.link()
    (await link.request("session/list", id=id)).message["id"]
    (await link.request("conformance/unknown", {}, id=id)).fails_with(-32601)


@case("ROUTE-004", id=1.5)
@case("ROUTE-005", id=None)
async def odd_id(ctx: Context, id: Any) -> None:
    link = await ctx.link()
    start = len(link.log)
    try:
        await link.start("conformance/unknown", {}, id=id)
    except Failure as refusal:
        # Over HTTP a message that is not accepted is a 400.
        check("400" in str(refusal), str(refusal))
        return
    answer = await link.expect(
        lambda m: "method" not in m and (same_id(m.get("id"), id) or m.get("id") is None),
        after=start,
    )
    code = answer["error"]["code"]
    if answer["id"] is None and id is not None:
        check(code == -32600, brief(answer))
    else:
        check(code in (-32601, -32600), brief(answer))
    await link.fence()


@case("ROUTE-007")
async def unknown_method(ctx: Context) -> None:
    link = await ctx.link()
    for method in ("conformance/unknown", "session/unknown", "", "initialized"):
        error = (await link.request(method, {})).error
        check(error["code"] == -32601, f"{method!r}: {brief(error)}")


async def silent(ctx: Context, *messages: dict[str, Any]) -> None:
    """None of the messages may be answered, and the link must go on."""
    link = await ctx.link()
    start = len(link.log)
    for message in messages:
        await link.send({"jsonrpc": "2.0", **message})
    await link.fence()
    errors = [m for m in link.messages(start) if "error" in m][:-1]
    check(not errors, f"answered: {brief(errors)}")


@case("ROUTE-008")
async def unknown_notification(ctx: Context) -> None:
    await silent(
        ctx,
        {"method": "_conformance/none", "params": {"a": 1}},
        {"method": "conformance/none", "params": {}},
        {"method": "conformance/none"},
    )


@case("ROUTE-009")
async def unknown_dollar(ctx: Context) -> None:
    await silent(ctx, {"method": "$/conformance", "params": {"a": 1}}, {"method": "$/x"})


@case("ROUTE-010")
async def unknown_underscore_request(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    await link.request("_conformance/none", {"sessionId": session})
    await link.request("_conformance/none", {})
    await link.fence()


@case("ROUTE-011", needs="demo")
async def underscore_request(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    params = {"sessionId": session, "deep": {"list": [1, 2.5, None, True, "x"]}, "n": 2**53 + 1}
    result = (await link.request("_demo/echo", params)).result
    check(result == params, f"came back as {brief(result)}")


@case("ROUTE-012", params=ABSENT)
@case("ROUTE-013", params=None)
async def no_params(ctx: Context, params: Any) -> None:
    link = await ctx.link()
    await ctx.require(link, "list")
    result = (await link.request("session/list", params)).result
    check(isinstance(result.get("sessions"), list), brief(result))


@case("ROUTE-014")
async def array_params(ctx: Context) -> None:
    link = await ctx.link()
    (await link.request("session/new", [str(ctx.cwd), []])).fails_with(-32602)


@case("ROUTE-015")
async def unknown_response(ctx: Context) -> None:
    await silent(
        ctx,
        {"id": 987654, "result": {}},
        {"id": "never asked", "error": {"code": -32603, "message": "x"}},
        {"id": "never asked", "result": {"outcome": {"outcome": "cancelled"}}},
    )


@case("ROUTE-016")
async def unknown_root_members(ctx: Context) -> None:
    link = await ctx.link()
    message = {"method": "session/list", "params": {}, "trace": "x", "_meta": {"a": 1}}
    start = len(link.log)
    await link.send({"jsonrpc": "2.0", "id": "root", **message})
    answer = await link.expect(lambda m: m.get("id") == "root", after=start)
    check("result" in answer, brief(answer))


@case("ROUTE-017")
async def unknown_params(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link, somethingNew={"x": [1]}, _meta={"k": "v"})
    check(session, "no session")


@case("ROUTE-018", needs="demo")
async def interleaved(ctx: Context) -> None:
    link = await ctx.link()
    sessions = [await ctx.session(link), await ctx.session(link)]
    sizes = (40, 60)
    turns = [
        await start_prompt(link, session, f"/chunks 200 {size}")
        for session, size in zip(sessions, sizes, strict=True)
    ]
    for turn in turns:
        expect_stop(await turn.reply(), "end_turn")
    for session, size in zip(sessions, sizes, strict=True):
        check_numbers(text_of(link.messages(), session), 200, size)


@case("ROUTE-019", needs="demo")
async def not_held_up(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    turn = await running(link, session)
    await link.request("session/list", {})
    await link.request("session/set_mode", {"sessionId": session, "modeId": "ask"})
    check(not turn.answered, "the turn is over already, so nothing was proved")
    await link.notify("session/cancel", {"sessionId": session})
    expect_stop(await turn.reply(), "cancelled")


@case("ROUTE-020", needs="demo")
async def same_ids(ctx: Context) -> None:
    texts = {}

    async def client(name: str, size: int) -> None:
        link = await ctx.link()
        session = await ctx.session(link)
        params = text_prompt(session, f"/chunks 50 {size}")
        reply = await link.request("session/prompt", params, id=777)
        expect_stop(reply, "end_turn")
        texts[name] = text_of(reply.before, session)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client, "one", 20)
        nursery.start_soon(client, "two", 30)
    check_numbers(texts["one"], 50, 20)
    check_numbers(texts["two"], 50, 30)


@case("ROUTE-021", needs="demo")
async def question_ids(ctx: Context) -> None:
    link = await ctx.link(handler=leave_open)
    sessions = [await ctx.session(link), await ctx.session(link)]
    turns = [await start_prompt(link, session, "hello") for session in sessions]
    questions = [await link.question(session) for session in sessions]
    ids = [json.dumps(question["id"]) for question in questions]
    check(ids[0] != ids[1], f"both questions have the id {ids[0]}")
    for session in sessions:
        await link.notify("session/cancel", {"sessionId": session})
    for turn in turns:
        expect_stop(await turn.reply(), "cancelled")


@case("ROUTE-022")
async def cancel_as_request(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    await link.request("session/cancel", {"sessionId": session})
    await link.fence()


@case("ROUTE-023", needs="demo")
async def unicode(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    result = (await link.request("_demo/echo", {"sessionId": session, "s": STRANGE_TEXT})).result
    check(result.get("s") == STRANGE_TEXT, f"came back as {result.get('s')!r}")
    await run_prompt(link, session, "/session")


@case("ROUTE-024")
async def many_requests(ctx: Context) -> None:
    link = await ctx.link()
    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(partial(link.request, "session/list", {}, id=f"many-{number}"))
