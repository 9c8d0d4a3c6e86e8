"""One session seen from both surfaces: an ACP client beside a REST client."""

from __future__ import annotations

from typing import Any

from conformance.cases.rest_list import entry_of
from conformance.cases.rest_load import texts
from conformance.context import Context
from conformance.links import (
    Link,
    Message,
    Pending,
    allow,
    leave_open,
    option,
    reject,
    text_of,
    updates,
)
from conformance.outcome import Failure, brief, check
from conformance.registry import case
from conformance.rest.events import ENDS, EventStream, agent_text
from conformance.rest.session import Question, Session, selected
from conformance.rest.words import says_all
from conformance.steps import expect_stop, start_prompt

ECHO = "session_update/user_message_chunk"


async def over_acp(ctx: Context, handler: Any = allow) -> tuple[Link, Session, EventStream]:
    """A session made over ACP, which a REST client joined and listens to."""
    api = await ctx.rest()
    link = await ctx.link(handler=handler)
    id = api.made(await ctx.session(link))
    session = api.known(id, await api.known(id, "").attach())
    return link, session, await session.events()


async def over_rest(ctx: Context, handler: Any = allow) -> tuple[Link, Session, EventStream]:
    """A session made over REST, which an ACP client joined."""
    session = await (await ctx.rest()).session()
    stream = await session.events()
    link = await ctx.link(handler=handler)
    await ctx.load(link, session.id)
    return link, session, stream


async def acp_turn(link: Link, session: Session, text: str) -> None:
    reply = await (await start_prompt(link, session.id, text)).reply()
    expect_stop(reply, "end_turn")


async def acp_running(link: Link, session: Session) -> Pending:
    """A turn of the ACP client that has begun to speak and goes on."""
    turn = await start_prompt(link, session.id, session.api.words.work)
    await link.expect(lambda m: bool(text_of([m], session.id)), after=turn.start)
    return turn


async def acp_question(
    link: Link, session: Session, stream: EventStream
) -> tuple[Pending, Message, Question]:
    """A question of an ACP turn, as both surfaces see it."""
    text, file = session.api.words.ask(session.api.cwd)
    turn = await start_prompt(link, session.id, text)
    message = await link.question(session.id, after=turn.start)
    frame = await stream.expect("permission_request")
    return turn, message, Question(session, stream, str(frame.prompt_id), frame, file)


async def withdrawn(link: Link, question: Message) -> None:
    """Wait until the server takes its question back."""
    await link.expect(
        lambda m: (
            m.get("method") == "$/cancel_request" and m["params"].get("requestId") == question["id"]
        )
    )


@case("CROSS-001")
async def rest_turn(ctx: Context) -> None:
    link, session, stream = await over_rest(ctx)
    start = len(link.log)
    prompt = await session.turn(stream)
    want = agent_text(stream.turn(prompt))
    await link.expect(lambda _: text_of(link.messages(start), session.id) == want, after=start)
    echo = text_of(link.messages(start), session.id, "user_message_chunk")
    check(echo == session.api.words.say, f"the echo of the prompt is {echo!r}")


@case("CROSS-002")
async def turn_on_stream(ctx: Context) -> None:
    link, session, stream = await over_acp(ctx)
    await acp_turn(link, session, session.api.words.say)
    end = await stream.expect("turn_complete")
    check(isinstance(end.prompt_id, str), f"no promptId: {brief(end.envelope)}")
    turn = stream.turn(end.prompt_id)
    check(says_all(agent_text(turn), 3), f"the turn on the stream is {[f.kind for f in turn]}")
    who = {f.envelope.get("originatorClientId") for f in turn}
    check(len(who) == 1 and None not in who, f"originators {who}")
    check(session.client not in who, "the REST client is named as the prompter")


@case("CROSS-003")
async def same_updates(ctx: Context) -> None:
    link, session, stream = await over_rest(ctx)
    start = len(link.log)
    prompt = await session.turn(stream, session.api.words.many(30))
    await link.expect(
        lambda _: says_all(text_of(link.messages(start), session.id), 30), after=start
    )
    await link.fence()
    kind = "agent_message_chunk"
    theirs = [u for u in updates(link.messages(start), session.id, kind) if u["content"]["text"]]
    mine = [f.update for f in stream.turn(prompt) if f.kind.endswith(kind)]
    mine = [u for u in mine if u["content"]["text"]]
    check(theirs == mine, f"{len(theirs)} chunks over ACP, {len(mine)} on the stream")


@case("CROSS-004")
async def rest_vote(ctx: Context) -> None:
    link, session, stream = await over_acp(ctx, leave_open)
    turn, _, question = await acp_question(link, session, stream)
    (await question.choose("allow_once")).ok()
    expect_stop(await turn.reply(), "end_turn")
    check(question.file.exists(), "the tool did not run")
    frame = await stream.expect("permission_resolved", requestId=question.id)
    check(frame.data.get("voterClientId") == session.client, brief(frame.data))


@case("CROSS-005")
async def vote_withdraws(ctx: Context) -> None:
    link, session, stream = await over_acp(ctx, leave_open)
    turn, message, question = await acp_question(link, session, stream)
    (await question.choose("reject_once")).ok()
    await withdrawn(link, message)
    await turn.reply()
    check(not question.file.exists(), "the tool ran")


@case("CROSS-006")
async def acp_answer(ctx: Context) -> None:
    link, session, stream = await over_rest(ctx, leave_open)
    question = await session.question(stream)
    message = await link.question(session.id)
    chosen = selected(option(message, "allow_once"))
    await link.answer(message, {"result": {"outcome": chosen}})
    frame = await stream.expect("permission_resolved", requestId=question.id)
    check(frame.data["outcome"] == chosen, brief(frame.data))
    await stream.completed(question.prompt_id)
    check(question.file.exists(), "the tool did not run")
    (await question.choose("reject_once")).refused(404, requestId=question.id)
    await stream.expect("permission_already_resolved", requestId=question.id)


@case("CROSS-007")
async def acp_refuses(ctx: Context) -> None:
    _, session, stream = await over_rest(ctx, reject)
    question = await session.question(stream)
    frame = await stream.expect("permission_resolved", requestId=question.id)
    check(frame.data["outcome"] == selected(question.option("reject_once")), brief(frame.data))
    voter = frame.data.get("voterClientId")
    check(isinstance(voter, str) and voter != session.client, f"voterClientId {voter!r}")
    check(frame.envelope.get("originatorClientId") == voter, brief(frame.envelope))
    await stream.turn_end(question.prompt_id)
    check(not question.file.exists(), "the tool ran")


@case("CROSS-008")
async def rest_cancel(ctx: Context) -> None:
    link, session, stream = await over_acp(ctx)
    turn = await acp_running(link, session)
    (await session.post("cancel")).empty()
    expect_stop(await turn.reply(), "cancelled")
    frame = await stream.expect("turn_complete")
    check(frame.data.get("stopReason") == "cancelled", brief(frame.data))
    told = stream.of("prompt_cancelled")
    check(told and told[0].envelope.get("originatorClientId") == session.client, "no canceller")


@case("CROSS-009", timeout=30)
async def one_queue(ctx: Context) -> None:
    link, session, stream = await over_acp(ctx)
    turn = await acp_running(link, session)
    prompt = await session.prompt(session.api.words.say)
    await stream.index("pending_prompt_added", promptId=prompt)
    await link.notify("session/cancel", {"sessionId": session.id})
    expect_stop(await turn.reply(), "cancelled")
    await stream.completed(prompt)
    order = [frame.prompt_id == prompt for frame in stream.of(*ENDS)]
    check(order == [False, True], f"the turns ended {stream.order()}")


@case("CROSS-010")
async def lists(ctx: Context) -> None:
    link, session, stream = await over_acp(ctx)
    await session.turn(stream)
    await entry_of(session.api, session.id)
    other = await session.api.session()
    await other.turn(await other.events())
    cursor: dict[str, Any] = {}
    seen: list[str] = []
    while True:
        result = (await link.request("session/list", {"cwd": str(ctx.cwd), **cursor})).result
        seen += [entry["sessionId"] for entry in result["sessions"]]
        if other.id in seen:
            return
        if not result.get("nextCursor"):
            raise Failure(f"{other.id} is not among the {len(seen)} of session/list")
        cursor = {"cursor": result["nextCursor"]}


@case("CROSS-011")
async def rest_load(ctx: Context) -> None:
    link, session, stream = await over_acp(ctx)
    words = session.api.words.say
    await acp_turn(link, session, words)
    await stream.index("turn_complete")
    body = await session.load()
    loaded = [*body["compactedReplay"], *body["liveJournal"]]
    check("".join(texts(loaded, "user_message_chunk")) == words, "the user's words")
    check(says_all("".join(texts(loaded, "agent_message_chunk")), 3), "the agent's words")


@case("CROSS-012")
async def acp_load(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    stream = await session.events()
    prompt = await session.turn(stream)
    want = agent_text(stream.turn(prompt))
    link = await ctx.link()
    await ctx.load(link, session.id)
    # Over HTTP the history may come behind the answer.
    await link.expect(lambda _: text_of(link.messages(), session.id) == want)
    said = text_of(link.messages(), session.id, "user_message_chunk")
    check(said == session.api.words.say, f"the user's words are {said!r}")


@case("CROSS-013")
async def rest_delete(ctx: Context) -> None:
    link, session, stream = await over_acp(ctx)
    turn = await acp_running(link, session)
    (await session.delete()).empty()
    message = (await turn.reply()).message
    reason = (message.get("result") or {}).get("stopReason")
    check("error" in message or reason == "cancelled", f"the prompt was answered {brief(message)}")
    await stream.ended()
    check(stream.order()[-1] == "session_closed", f"{stream.order()[-3:]}")


@case("CROSS-014")
async def bound_id(ctx: Context) -> None:
    link, session, stream = await over_acp(ctx)
    await acp_turn(link, session, session.api.words.say)
    end = await stream.expect("turn_complete")
    acp_client = end.envelope.get("originatorClientId")
    if not isinstance(acp_client, str):
        raise Failure(f"the ACP turn has no originator: {brief(end.envelope)}")
    (await session.post("heartbeat", client=acp_client)).refused(400, "invalid_client_id")
    answer = await session.send(session.api.words.say, client=acp_client)
    answer.refused(400, "invalid_client_id")


@case("CROSS-015")
async def acp_mode(ctx: Context) -> None:
    link, session, stream = await over_acp(ctx)
    result = await link.request("session/set_mode", {"sessionId": session.id, "modeId": "plan"})
    result.succeeds()
    frame = await stream.expect("approval_mode_changed")
    check(frame.data.get("next") == "plan", brief(frame.data))


@case("CROSS-016")
async def drop(ctx: Context) -> None:
    link, session, stream = await over_acp(ctx)
    await acp_turn(link, session, session.api.words.say)
    await link.drop()
    await session.turn(stream)


@case("CROSS-017")
async def title(ctx: Context) -> None:
    link, session, stream = await over_acp(ctx)
    await session.turn(stream)
    (await session.rename("A title from REST")).ok()
    result = (await link.request("session/list", {"cwd": str(ctx.cwd)})).result
    titles = [e.get("title") for e in result["sessions"] if e["sessionId"] == session.id]
    check(titles == ["A title from REST"], f"titles {titles}")


@case("CROSS-018")
async def one_end(ctx: Context) -> None:
    link, session, stream = await over_acp(ctx)
    await acp_turn(link, session, session.api.words.many(30))
    place = await stream.index("turn_complete")
    await session.fence(stream)
    ends = stream.of(*ENDS)
    check(len(ends) == 1, f"{len(ends)} ends of one turn")
    late = [f.kind for f in stream.frames[place:] if f.kind.endswith("_message_chunk")]
    check(not late, f"behind the end came {late}")
    check(len(stream.of(ECHO)) == 1, f"{len(stream.of(ECHO))} echoes on the stream")
