"""Streamable HTTP: the streams and what goes where."""

from __future__ import annotations

from conformance.cases.http_requests import EVENTS, LIST, by_hand, call, status
from conformance.context import Context
from conformance.http_link import HttpRefused
from conformance.links import leave_open, text_of, updates
from conformance.outcome import brief, check
from conformance.registry import case
from conformance.steps import check_numbers, expect_stop, run_prompt, start_prompt


@case("HTTP-009")
async def unknown_session_stream(ctx: Context) -> None:
    link = await ctx.http()
    try:
        stream = await link.open_stream("conformance-none")
    except HttpRefused as refusal:
        check(refusal.status == 404, str(refusal))
        return
    await link.fence()
    seen = [entry.message for entry in link.log if entry.stream == stream.name]
    check(not seen, f"a stream of an unknown session said {brief(seen)}")


@case("HTTP-010", needs="demo")
async def stream_before_load(ctx: Context) -> None:
    first = await ctx.link()
    session = await ctx.session(first)
    await run_prompt(first, session, "/chunks 5 20")
    second = await ctx.http()
    await second.open_stream(session)
    await ctx.load(second, session)
    await run_prompt(second, session, "/session")
    text = text_of(second.messages(), session)
    check(text.startswith("000000 "), f"on the stream: {brief(text)}")


@case("HTTP-017")
async def buffered_connection(ctx: Context) -> None:
    link = await ctx.http(open_streams=False)
    pending = [await link.start("session/list", {}) for _ in range(5)]
    await link.open_stream(None)
    for request in pending:
        (await request.reply()).succeeds()


@case("HTTP-018", needs="demo")
async def buffered_session(ctx: Context) -> None:
    link = await ctx.http(open_streams=False)
    await link.open_stream(None)
    reply = await link.request("session/new", {"cwd": str(ctx.cwd), "mcpServers": []})
    session = reply.result["sessionId"]
    watcher = await ctx.link("ws")
    await ctx.load(watcher, session)
    turn = await start_prompt(link, session, "/chunks 20 30")
    # The turn is over for the other client, so everything was said before the stream opens.
    await watcher.expect(lambda m: text_of([m], session).startswith("000019 "))
    await watcher.request("session/set_mode", {"sessionId": session, "modeId": "ask"})
    await link.open_stream(session)
    reply = await turn.reply()
    expect_stop(reply, "end_turn")
    check_numbers(text_of(reply.before, session), 20, 30)


@case("HTTP-019")
async def newest_wins(ctx: Context) -> None:
    link = await ctx.http()
    first = link.streams["connection"]
    second = await link.open_stream(None)
    await first.over.wait()
    await link.fence()
    check(not second.over.is_set(), "the second stream ended too")


@case("HTTP-020")
async def stream_headers(ctx: Context) -> None:
    link = await ctx.http()
    await ctx.session(link)
    for name, stream in link.streams.items():
        kind = stream.headers.get("content-type", "")
        check(kind.split(";")[0] == "text/event-stream", f"{name}: Content-Type {kind!r}")
        cache = stream.headers.get("cache-control", "")
        check("no-cache" in cache or "no-store" in cache, f"{name}: Cache-Control {cache!r}")


@case("HTTP-021")
async def framing(ctx: Context) -> None:
    link = await ctx.http()
    session = await ctx.session(link)
    if ctx.agent == "demo":
        await run_prompt(link, session, "/chunks 50 30")
    await link.fence()
    for name, stream in link.streams.items():
        check(not stream.parser.faults, f"{name}: {stream.parser.faults[:3]}")
    odd = [m for m in link.messages() if m.get("jsonrpc") != "2.0"]
    check(not odd, f"no JSON-RPC: {brief(odd)}")


@case("HTTP-022")
async def h2c(ctx: Context) -> None:
    link = await ctx.http(http2=True)
    session = await ctx.session(link)
    answer = await link.post(LIST)
    check(answer.http_version == "HTTP/2", f"answered in {answer.http_version}")
    if ctx.agent == "demo":
        reply = await run_prompt(link, session, "/chunks 200 100")
        check_numbers(text_of(reply.before, session), 200, 100)
        await run_prompt(link, session, "hello")
        check((ctx.cwd / "acp-demo.txt").exists(), "the demo agent's file is missing")
    await link.fence()


@case("HTTP-029", needs="demo")
async def lean_prompt(ctx: Context) -> None:
    link = await ctx.http(session_header=False)
    session = await ctx.session(link)
    reply = await run_prompt(link, session, "/chunks 10 20")
    check_numbers(text_of(reply.before, session), 10, 20)


@case("HTTP-030", needs="demo")
async def lean_answer(ctx: Context) -> None:
    link = await ctx.http(handler=leave_open)
    session = await ctx.session(link)
    turn = await start_prompt(link, session, "hello")
    question = await link.question(session)
    outcome = {"outcome": "selected", "optionId": question["params"]["options"][0]["optionId"]}
    answer = await link.post(
        {"jsonrpc": "2.0", "id": question["id"], "result": {"outcome": outcome}}, session=None
    )
    status(answer, 202)
    expect_stop(await turn.reply(), "end_turn")
    check((ctx.cwd / "acp-demo.txt").exists(), "the tool did not run")


@case("HTTP-033")
async def connection_answers(ctx: Context) -> None:
    link = await ctx.http()
    params = {"cwd": str(ctx.cwd), "mcpServers": []}
    reply = await link.request("session/new", params)
    check(reply.stream == "connection", f"session/new was answered on {reply.stream}")
    other = await ctx.http()
    session = reply.result["sessionId"]
    reply = await other.request("session/load", {**params, "sessionId": session})
    check(reply.stream == "connection", f"session/load was answered on {reply.stream}")


@case("HTTP-034", needs="demo")
async def session_answers(ctx: Context) -> None:
    link = await ctx.http()
    session = await ctx.session(link)
    reply = await run_prompt(link, session, "hello")
    check(reply.stream == session, f"session/prompt was answered on {reply.stream}")
    wrong = {e.stream for e in link.log if updates([e.message], session)} - {session}
    check(not wrong, f"updates came on {wrong}")
    asked = next(e for e in link.log if e.message.get("method") == "session/request_permission")
    check(asked.stream == session, f"the question came on {asked.stream}")


@case("HTTP-035", needs="demo")
async def last_event_id(ctx: Context) -> None:
    link = await ctx.http()
    session = await ctx.session(link)
    await run_prompt(link, session, "/chunks 30 20")
    events = [(e.event_id, e.message) for e in link.log if e.stream == session]
    chunks = [(i, m) for i, m in events if text_of([m], session)]
    check(all(i for i, _ in chunks), "chunks without an event id")
    numbers = [int(i or 0) for i, _ in chunks]
    check(numbers == sorted(set(numbers)), f"ids do not rise: {numbers[:20]}")
    cut = 11
    link.streams[session].scope.cancel()
    start = len(link.log)
    await link.open_stream(session, last_event_id=chunks[cut][0])
    await run_prompt(link, session, "/session")
    text = text_of(link.messages(start), session)
    want = "".join(text_of([m], session) for _, m in chunks[cut + 1 :])
    check(text.startswith(want + "{"), f"after event {chunks[cut][0]}: {brief(text)}")


@case("HTTP-036")
async def head(ctx: Context) -> None:
    link = await ctx.http(open_streams=False)
    pending = await link.start("session/list", {})
    answer = await call(ctx, "HEAD", {**EVENTS, **by_hand(link)})
    check(answer.status_code < 500, f"HEAD was answered {answer.status_code}")
    await link.open_stream(None)
    (await pending.reply()).succeeds()


@case("HTTP-037")
async def session_outlives(ctx: Context) -> None:
    first = await ctx.http()
    session = await ctx.session(first)
    if ctx.agent == "demo":
        await run_prompt(first, session, "/chunks 5 20")
    await first.close()
    second = await ctx.http()
    await ctx.load(second, session)


@case("HTTP-042", needs="demo")
async def history_first(ctx: Context) -> None:
    first = await ctx.http()
    session = await ctx.session(first)
    await run_prompt(first, session, "/chunks 20 50")
    second = await ctx.http()
    await ctx.load(second, session)
    await run_prompt(second, session, "/session")
    mine = [e.message for e in second.log if e.stream == session]
    kinds = [u["sessionUpdate"] for u in updates(mine, session)]
    chunk_kinds = [kind for kind in kinds if kind.endswith("_message_chunk")]
    check(chunk_kinds[:1] == ["user_message_chunk"], f"the first updates: {kinds[:5]}")
    text = text_of(mine, session)
    check(text.startswith(text_of(first.messages(), session)[: 20 * 50]), brief(text))
