"""new, load, resume, list, close, delete, fork, modes and config options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conformance.context import Context
from conformance.links import Link, text_of, updates
from conformance.outcome import Failure, Skip, brief, check
from conformance.registry import case
from conformance.steps import expect_stop, run_prompt, running, text_prompt

UNKNOWN = "00000000-0000-4000-8000-00000000c0de"


def same_place(left: str, right: Path) -> bool:
    return Path(left).resolve() == right.resolve()


async def facts(link: Link, session: str) -> dict[str, Any]:
    """What the demo agent says of the session."""
    reply = await run_prompt(link, session, "/session")
    return dict(json.loads(text_of(reply.before, session)))


@case("SESS-001")
async def new_ids(ctx: Context) -> None:
    link = await ctx.link()
    first, second = await ctx.session(link), await ctx.session(link)
    check(first and second and first != second, f"{first!r} and {second!r}")


async def new_result(ctx: Context, member: str) -> Any:
    link = await ctx.link()
    reply = await link.request("session/new", {"cwd": str(ctx.cwd), "mcpServers": []})
    value = reply.result.get(member)
    if value is None:
        raise Skip(f"session/new gives no {member}")
    return value


@case("SESS-002")
async def modes(ctx: Context) -> None:
    value = await new_result(ctx, "modes")
    ids = []
    for mode in value["availableModes"]:
        check(isinstance(mode.get("id"), str), f"no id: {brief(mode)}")
        check(isinstance(mode.get("name"), str), f"no name: {brief(mode)}")
        ids.append(mode["id"])
    check(value.get("currentModeId") in ids, f"currentModeId {value.get('currentModeId')!r}")


@case("SESS-003")
async def config_options(ctx: Context) -> None:
    for option in await new_result(ctx, "configOptions"):
        check(isinstance(option.get("id"), str), f"no id: {brief(option)}")
        check(isinstance(option.get("name"), str), f"no name: {brief(option)}")
        check(option.get("type") in ("select", "boolean"), f"type: {brief(option)}")
        if option["type"] == "select":
            flat = [
                entry
                for item in option["options"]
                for entry in (item["options"] if "group" in item else [item])
            ]
            values = [entry["value"] for entry in flat]
            check(option.get("currentValue") in values, f"currentValue: {brief(option)}")


@case("SESS-004", needs="demo")
async def cwd_arrives(ctx: Context) -> None:
    link = await ctx.link()
    seen = (await facts(link, await ctx.session(link)))["cwd"]
    check(same_place(seen, ctx.cwd), f"the agent works in {seen}")


@case("SESS-005", needs="demo")
async def roots_arrive(ctx: Context) -> None:
    link = await ctx.link()
    extra = ctx.cwd / "extra"
    extra.mkdir()
    session = await ctx.session(link, additionalDirectories=[str(extra)])
    roots = (await facts(link, session))["roots"]
    check(len(roots) == 2 and same_place(roots[1], extra), f"roots of the agent: {roots}")


@case("SESS-006", needs="demo")
async def mcp_servers_arrive(ctx: Context) -> None:
    link = await ctx.link()
    servers = [
        {"name": "one", "command": "/bin/true", "args": [], "env": []},
        {"name": "two", "command": "/bin/true", "args": ["x"], "env": [{"name": "A", "value": ""}]},
    ]
    session = await ctx.session(link, mcpServers=servers)
    names = (await facts(link, session))["mcpServers"]
    check(names == ["one", "two"], f"MCP servers of the agent: {names}")


@case("SESS-007", method="session/load")
@case("SESS-008", method="session/resume")
@case("SESS-009", method="session/prompt")
async def unknown_session(ctx: Context, method: str) -> None:
    link = await ctx.link()
    params = {"cwd": str(ctx.cwd), "mcpServers": [], **text_prompt(UNKNOWN, "hello")}
    reply = await link.request(method, params)
    reply.fails_with()
    await link.fence()


@case("SESS-010")
async def unknown_session_code(ctx: Context) -> None:
    link = await ctx.link()
    for method in ("session/load", "session/resume", "session/prompt"):
        params = {"cwd": str(ctx.cwd), "mcpServers": [], **text_prompt(UNKNOWN, "hello")}
        error = (await link.request(method, params)).error
        check(error["code"] == -32002, f"{method}: {brief(error)}")


async def listed(link: Link, **params: Any) -> dict[str, dict[str, Any]]:
    """All sessions by id; fails when a page repeats one."""
    found: dict[str, dict[str, Any]] = {}
    for _ in range(1000):
        result = (await link.request("session/list", params)).result
        check(isinstance(result.get("sessions"), list), f"sessions: {brief(result)}")
        for session in result["sessions"]:
            check(isinstance(session.get("sessionId"), str), f"no sessionId: {brief(session)}")
            check(isinstance(session.get("cwd"), str), f"no cwd: {brief(session)}")
            check(session["sessionId"] not in found, f"listed twice: {session['sessionId']}")
            found[session["sessionId"]] = session
        if not result.get("nextCursor"):
            return found
        params["cursor"] = result["nextCursor"]
    raise Failure("nextCursor never ends")


@case("SESS-011")
async def list_has_it(ctx: Context) -> None:
    link = await ctx.link()
    await ctx.require(link, "list")
    session = await ctx.session(link)
    found = await listed(link)
    check(session in found, f"{session} is not among {len(found)} sessions")
    check(same_place(found[session]["cwd"], ctx.cwd), brief(found[session]))


@case("SESS-012", needs="demo")
async def list_by_cwd(ctx: Context) -> None:
    link = await ctx.link()
    await ctx.require(link, "list")
    one, two = ctx.cwd / "one", ctx.cwd / "two"
    one.mkdir()
    two.mkdir()
    session = await ctx.session(link, cwd=str(one))
    found = await listed(link, cwd=str(one))
    check(list(found) == [session], f"in one: {list(found)}")
    check(await listed(link, cwd=str(two)) == {}, "in two there should be none")


@case("SESS-013")
async def list_bad_cursor(ctx: Context) -> None:
    link = await ctx.link()
    await ctx.require(link, "list")
    reply = await link.request("session/list", {"cursor": "conformance: never given"})
    reply.fails_with()


@case("SESS-014", timeout=60)
async def list_pages(ctx: Context) -> None:
    link = await ctx.link()
    await ctx.require(link, "list")
    mine = {await ctx.session(link) for _ in range(3)}
    missing = mine - set(await listed(link))
    check(not missing, f"not listed: {missing}")


@case("SESS-015")
async def list_wrong_types(ctx: Context) -> None:
    link = await ctx.link()
    await ctx.require(link, "list")
    for params in ({"cursor": 5}, {"cursor": ["x"]}, {"cwd": 5}):
        error = (await link.request("session/list", params)).error
        check(error["code"] == -32602, f"{params}: {brief(error)}")


@case("SESS-016")
async def close(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    result = (await link.request("session/close", {"sessionId": session})).message["result"]
    check(result == {}, f"session/close gave {brief(result)}")
    reply = await link.request("session/prompt", text_prompt(session, "hello"))
    reply.fails_with()


@case("SESS-017")
async def close_unknown(ctx: Context) -> None:
    link = await ctx.link()
    await link.request("session/close", {"sessionId": UNKNOWN})
    await link.fence()


@case("SESS-018", needs="demo")
async def close_in_turn(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    turn = await running(link, session)
    closing = await link.start("session/close", {"sessionId": session})
    expect_stop(await turn.reply(), "cancelled")
    check((await closing.reply()).result == {}, "session/close did not give {}")
    link.sessions.discard(session)


@case("SESS-019", again=False)
@case("SESS-020", again=True)
async def delete(ctx: Context, again: bool) -> None:
    link = await ctx.link()
    await ctx.require(link, "delete")
    session = await ctx.session(link)
    for _ in range(2 if again else 1):
        result = (await link.request("session/delete", {"sessionId": session})).result
        check(result == {}, f"session/delete gave {brief(result)}")
    check(session not in await listed(link), "the deleted session is still listed")


@case("SESS-021")
async def fork(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    if ctx.agent == "demo":
        await run_prompt(link, session, "/chunks 3 20")
    params = {"sessionId": session, "cwd": str(ctx.cwd), "mcpServers": []}
    reply = await link.request("session/fork", params)
    if "error" in reply.message:
        check(ctx.agent != "demo", f"the demo agent can fork: {brief(reply.message)}")
        reply.fails_with(-32601)
        return
    copy = reply.result.get("sessionId")
    check(isinstance(copy, str) and copy != session, f"fork gave {brief(reply.result)}")
    await link.attached(str(copy))
    if ctx.agent == "demo":
        known = await facts(link, str(copy))
        check(known["sessionId"] == copy, f"the agent calls the fork {known['sessionId']}")


@case("SESS-022", needs="demo")
async def set_mode(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    reply = await link.request("session/set_mode", {"sessionId": session, "modeId": "plan"})
    check(reply.result == {}, f"session/set_mode gave {brief(reply.result)}")
    check((await facts(link, session))["mode"] == "plan", "the mode is not in force")


@case("SESS-023", needs="demo")
async def mode_update(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    start = len(link.log)
    await link.request("session/set_mode", {"sessionId": session, "modeId": "auto"})
    message = await link.expect(
        lambda m: bool(updates([m], session, "current_mode_update")), after=start
    )
    update = message["params"]["update"]
    check(update.get("currentModeId") == "auto", brief(update))


@case("SESS-024")
async def unknown_mode(ctx: Context) -> None:
    link = await ctx.link()
    params = {"sessionId": await ctx.session(link), "modeId": "conformance-no-such-mode"}
    reply = await link.request("session/set_mode", params)
    reply.fails_with()


@case("SESS-025", needs="demo")
async def set_config_option(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    params = {"sessionId": session, "configId": "model", "value": "demo-typing"}
    options = (await link.request("session/set_config_option", params)).result["configOptions"]
    values = {option["id"]: option["currentValue"] for option in options}
    check(values.get("model") == "demo-typing", f"values: {values}")
    check("mode" in values, f"the list is not complete: {values}")


@case("SESS-026")
async def unknown_config_option(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    params = {"sessionId": session, "configId": "conformance-none", "value": "x"}
    reply = await link.request("session/set_config_option", params)
    reply.fails_with()


@case("SESS-027", needs="demo")
async def resume_without_history(ctx: Context) -> None:
    first = await ctx.link()
    session = await ctx.session(first)
    await run_prompt(first, session, "/chunks 5 20")
    second = await ctx.link()
    await ctx.load(second, session, "session/resume")
    # What comes before this answer would be history.
    await second.request("session/set_mode", {"sessionId": session, "modeId": "ask"})
    kinds = ("user_message_chunk", "agent_message_chunk")
    seen = updates(second.messages(), session, *kinds)
    check(not seen, f"history after resume: {brief(seen)}")


@case("SESS-028", needs="demo")
async def results_name_the_session(ctx: Context) -> None:
    first = await ctx.link()
    session = await ctx.session(first)
    for method in ("session/load", "session/resume"):
        reply = await ctx.load(await ctx.link(), session, method)
        check(reply.result.get("sessionId") == session, f"{method}: {brief(reply.result)}")


@case("SESS-029", needs="demo")
async def history_before_answer(ctx: Context) -> None:
    first = await ctx.link()
    session = await ctx.session(first)
    await run_prompt(first, session, "/chunks 20 50")
    second = await ctx.link()
    reply = await ctx.load(second, session)
    user = text_of(reply.before, session, "user_message_chunk")
    check(user == "/chunks 20 50", f"the user's message before the answer: {user!r}")
    check(
        text_of(reply.before, session) == text_of(first.messages(), session),
        "the agent's message before the answer is not the one of the turn",
    )
    after = len(second.log)
    await second.request("session/set_mode", {"sessionId": session, "modeId": "ask"})
    late = text_of(second.messages(after), session)
    check(late == "", f"history after the answer: {brief(late)}")


@case("SESS-030")
async def soft_mcp_servers(ctx: Context) -> None:
    link = await ctx.link()
    for extra in ({}, {"mcpServers": "junk"}, {"mcpServers": [5, {"name": 7}]}):
        reply = await link.request("session/new", {"cwd": str(ctx.cwd), **extra})
        check(isinstance(reply.result.get("sessionId"), str), f"{extra}: {brief(reply.result)}")


@case("SESS-031", needs="demo")
async def load_closed(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    await run_prompt(link, session, "/chunks 5 20")
    before = text_of(link.messages(), session)
    await link.request("session/close", {"sessionId": session})
    second = await ctx.link()
    await ctx.load(second, session)
    await run_prompt(second, session, "/session")
    text = text_of(second.messages(), session)
    check(text.startswith(before), f"history of the stored session: {brief(text)}")


@case("SESS-032", needs="demo")
async def over_the_other_transport(ctx: Context) -> None:
    first = await ctx.link()
    session = await ctx.session(first)
    await run_prompt(first, session, "/chunks 5 20")
    second = await ctx.link("http" if ctx.transport == "ws" else "ws")
    await ctx.load(second, session)
    await run_prompt(second, session, "/session")
    text = text_of(second.messages(), session)
    check(text.startswith("000000 "), f"history over the other transport: {brief(text)}")
