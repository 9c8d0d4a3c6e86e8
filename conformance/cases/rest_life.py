"""Detach, close, delete and crash: every end of a session."""

from __future__ import annotations

from typing import Any

from conformance.cases.rest_list import prompted
from conformance.cases.rest_prompt import joined
from conformance.context import Context
from conformance.outcome import brief, check
from conformance.registry import case
from conformance.rest.api import unknown_id
from conformance.rest.events import ENDS, EventStream
from conformance.rest.session import CANCELLED, Session


async def alive(session: Session) -> bool:
    answer = await session.get("status")
    if answer.status == 200:
        return True
    answer.refused(404, "session_not_found")
    return False


async def closed(session: Session, stream: EventStream, **options: Any) -> None:
    """DELETE the session and read its stream to the end."""
    (await session.delete(**options)).empty(204)
    await stream.ended()
    kinds = stream.order()
    check(kinds[-1:] == ["session_closed"], f"the last frames are {kinds[-4:]}")


@case("LIFE-001")
async def detach(ctx: Context) -> None:
    session, _ = await joined(ctx)
    (await session.post("detach", client=None)).empty()
    (await session.post("detach")).empty()
    (await session.post("detach", client=None)).empty()
    check(await alive(session), "the session is gone although a stream is open")


@case("LIFE-002")
async def last_detach(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    (await session.post("detach")).empty()
    check(not await alive(session), "the session lives on without a holder")


@case("LIFE-003")
async def held_by_stream(ctx: Context) -> None:
    session, stream = await joined(ctx)
    (await session.post("detach")).empty()
    prompt = await session.prompt(session.api.words.say, client=None)
    await stream.completed(prompt)


@case("LIFE-004")
async def delete(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    (await session.delete()).empty(204)
    check(not await alive(session), "the session is still there")


@case("LIFE-005")
async def delete_again(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    (await session.delete()).empty(204)
    (await session.delete(client=None)).refused(404, "session_not_found", sessionId=session.id)


@case("LIFE-006")
async def last_frame(ctx: Context) -> None:
    session, stream = await joined(ctx)
    await session.turn(stream)
    await closed(session, stream)
    check(len(stream.of("session_closed")) == 1, "session_closed came twice")


@case("LIFE-007")
async def closer(ctx: Context) -> None:
    session, stream = await joined(ctx)
    other = await session.attach()
    await closed(session, stream, client=other)
    frame = stream.frames[-1]
    want = {"sessionId": session.id, "reason": "client_close", "closedBy": other}
    check(want.items() <= frame.data.items(), f"{brief(frame.data)} instead of {want}")
    check(frame.envelope.get("originatorClientId") == other, brief(frame.envelope))


@case("LIFE-008")
async def open_question(ctx: Context) -> None:
    session, stream = await joined(ctx)
    question = await session.question(stream)
    await closed(session, stream)
    found = stream.of("permission_resolved")
    check([f.data["requestId"] for f in found] == [question.id], f"{stream.order()[-5:]}")
    check(found[0].data["outcome"] == CANCELLED, brief(found[0].data))
    check(not question.file.exists(), "the tool ran")


@case("LIFE-009")
async def running(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompt = await session.running(stream)
    await closed(session, stream)
    ends = [frame.data.get("promptId") for frame in stream.of(*ENDS)]
    check(ends == [prompt], f"ends of turns: {ends}")


@case("LIFE-010")
async def all_routes(ctx: Context) -> None:
    session = await prompted(await ctx.rest())
    (await session.delete()).empty()
    for call in ("prompt", "cancel", "heartbeat", "model", "approval-mode"):
        body = {"prompt": [{"type": "text", "text": "x"}], "modelId": "x", "mode": "default"}
        answer = await session.post(call, body, client=None)
        answer.refused(404, "session_not_found", sessionId=session.id)
    for read in ("context", "pending-prompts", "status"):
        (await session.get(read)).refused(404, "session_not_found", sessionId=session.id)
    (await session.subscribe()).answer.refused(404, "session_not_found", sessionId=session.id)


async def erase(session: Session, ids: Any) -> Any:
    return await session.api.call("POST", "/sessions/delete", {"sessionIds": ids})


@case("LIFE-011", timeout=30)
async def erased(ctx: Context) -> None:
    session = await prompted(await ctx.rest())
    body = (await erase(session, [session.id])).ok()
    check(body.get("removed") == [session.id], brief(body))
    check(body.get("notFound") == [] and body.get("errors") == [], brief(body))
    check(not await alive(session), "the session is still there")
    answer = await session.post("load", {"cwd": str(ctx.cwd)}, client=None)
    answer.refused(404, "session_not_found")
    listed = (await session.api.sessions(size=1000)).ok()["sessions"]
    check(session.id not in [entry["sessionId"] for entry in listed], "it is still listed")


@case("LIFE-012")
async def not_found(ctx: Context) -> None:
    session = await prompted(await ctx.rest())
    nobody = unknown_id()
    body = (await erase(session, [nobody, session.id])).ok()
    check(body.get("notFound") == [nobody], brief(body))
    check(body.get("removed") == [session.id], brief(body))


@case("LIFE-013")
async def bad_lists(ctx: Context) -> None:
    session, _ = await joined(ctx)
    for ids in ([], [7], "x", None, [unknown_id() for _ in range(101)]):
        (await erase(session, ids)).refused(400, "invalid_request")


@case("LIFE-014")
async def all_streams(ctx: Context) -> None:
    session, stream = await joined(ctx)
    second = await session.events()
    other, other_stream = await joined(ctx)
    await closed(session, stream)
    await second.ended()
    check(second.order()[-1:] == ["session_closed"], f"{second.order()[-3:]}")
    await other.fence(other_stream)
    check(not other_stream.of("session_closed"), "the other session was told")


@case("LIFE-015")
async def one_leaves(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    other = await session.attach()
    (await session.post("detach")).empty()
    (await session.post("heartbeat", client=other)).ok()


@case("LIFE-016")
async def held_by_turn(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompt = await session.running(stream)
    stream.close()
    await stream.ended()
    (await session.post("detach")).empty()
    check(await alive(session), "the session was closed under its turn")
    again = await session.events(last=0)
    (await session.post("cancel", client=None)).empty()
    await again.completed(prompt, "cancelled")


@case("LIFE-017")
async def stranger(ctx: Context) -> None:
    session, _ = await joined(ctx)
    (await session.delete(client="stranger")).refused(400, "invalid_client_id")
    check(await alive(session), "a stranger closed the session")


@case("LIFE-018")
async def waiting(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompts = [await session.running(stream), await session.prompt(session.api.words.say)]
    await closed(session, stream)
    ends = {frame.data.get("promptId"): frame for frame in stream.of(*ENDS)}
    check(set(ends) == set(prompts), f"ends of {set(ends)}, prompts {prompts}")
    check(len(stream.of(*ENDS)) == 2, "a prompt ended twice")
    code = ends[prompts[1]].data.get("code")
    check(code == "session_closed", f"the waiting prompt ended {brief(ends[prompts[1]].envelope)}")


async def crashed(ctx: Context) -> tuple[Session, EventStream, str]:
    """A session with one finished turn whose agent then ended in a turn."""
    session, stream = await joined(ctx)
    await session.turn(stream)
    prompt = await session.prompt("/crash")
    await stream.ended()
    return session, stream, prompt


@case("LIFE-019", needs="demo")
async def crash(ctx: Context) -> None:
    _, stream, prompt = await crashed(ctx)
    kinds = stream.order()
    check(kinds[-1] == "session_died", f"the last frames are {kinds[-4:]}")
    end = await stream.turn_end(prompt)
    check(end.type == "turn_error", brief(end.envelope))
    died = stream.frames[-1].data
    check(died.get("reason") == "channel_closed", brief(died))
    check("exitCode" in died and "signalCode" in died, brief(died))


@case("LIFE-020", needs="demo", timeout=30)
async def recovered(ctx: Context) -> None:
    session, _, _ = await crashed(ctx)
    body = await session.load()
    loaded = [*body["compactedReplay"], *body["liveJournal"]]
    check("000002" in str(loaded), "the finished turn is not in the history")
    again = session.api.known(session.id, body["clientId"])
    await again.turn(await again.events())
