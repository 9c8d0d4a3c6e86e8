"""POST /session/:id/cancel."""

from __future__ import annotations

from conformance.cases.rest_prompt import joined, stop
from conformance.context import Context
from conformance.outcome import brief, check
from conformance.registry import case
from conformance.rest.answer import members
from conformance.rest.api import unknown_id


@case("STOP-001")
async def no_body(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompt = await session.running(stream)
    (await session.post("cancel")).empty(204)
    await stream.completed(prompt, "cancelled")


@case("STOP-002")
async def idle(ctx: Context) -> None:
    session, _ = await joined(ctx)
    (await session.post("cancel")).empty(204)


@case("STOP-003")
async def unknown(ctx: Context) -> None:
    api = await ctx.rest()
    wanted = unknown_id()
    answer = await api.call("POST", f"/session/{wanted}/cancel", {})
    answer.refused(404, "session_not_found", sessionId=wanted)


@case("STOP-004")
async def order(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompt = await session.running(stream)
    (await session.post("cancel")).empty()
    end = await stream.completed(prompt, "cancelled")
    cancelled = stream.of("prompt_cancelled")
    check(len(cancelled) == 1, f"{len(cancelled)} prompt_cancelled")
    check(cancelled[0].envelope.get("promptId") == prompt, brief(cancelled[0].envelope))
    check(stream.frames.index(cancelled[0]) < stream.frames.index(end), "it came after the end")
    members(end.data.get("promptCancelled"), cancelledAt=(int, float), elapsedMs=(int, float))


@case("STOP-005")
async def with_question(ctx: Context) -> None:
    session, stream = await joined(ctx)
    question = await session.question(stream)
    (await session.post("cancel")).empty()
    end = await stream.completed(question.prompt_id, "cancelled")
    resolved = await stream.expect("permission_resolved", requestId=question.id)
    check(resolved.data["outcome"] == {"outcome": "cancelled"}, brief(resolved.data))
    check("voterClientId" not in resolved.data, "a voter for a cancel")
    cancelled = stream.of("prompt_cancelled")[0]
    places = [stream.frames.index(frame) for frame in (cancelled, resolved, end)]
    check(places == sorted(places), f"the order is {stream.order(min(places))}")
    check(not question.file.exists(), "the tool ran")


@case("STOP-006", timeout=30)
async def queue_lives(ctx: Context) -> None:
    session, stream = await joined(ctx)
    first = await session.running(stream)
    second = await session.prompt(session.api.words.say)
    await stop(session, stream, first)
    await stream.completed(second)


@case("STOP-007")
async def idle_event(ctx: Context) -> None:
    session, stream = await joined(ctx)
    (await session.post("cancel")).empty()
    frame = await stream.expect("prompt_cancelled")
    check(frame.prompt_id is None, brief(frame.envelope))


@case("STOP-008")
async def originators(ctx: Context) -> None:
    session, stream = await joined(ctx)
    other = await session.attach()
    prompt = await session.running(stream)
    (await session.post("cancel", client=other)).empty()
    end = await stream.completed(prompt, "cancelled")
    who = stream.of("prompt_cancelled")[0].envelope.get("originatorClientId")
    check(who == other, f"prompt_cancelled is of {who}, not of the canceller")
    who = end.envelope.get("originatorClientId")
    check(who == session.client, f"turn_complete is of {who}, not of the prompter")


@case("STOP-009")
async def again(ctx: Context) -> None:
    session, stream = await joined(ctx)
    question = await session.question(stream)
    for _ in range(2):
        (await session.post("cancel")).empty()
    await stream.completed(question.prompt_id, "cancelled")
    await session.fence(stream)
    told = [f for f in stream.of("prompt_cancelled") if f.prompt_id == question.prompt_id]
    check(len(told) == 1, f"{len(told)} prompt_cancelled for one prompt")


@case("STOP-010")
async def anonymous(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompt = await session.running(stream)
    (await session.post("cancel", client=None)).empty()
    await stream.completed(prompt, "cancelled")
    who = stream.of("prompt_cancelled")[0].envelope.get("originatorClientId")
    check(who is None, f"an anonymous cancel is of {who}")


@case("STOP-011")
async def goes_on(ctx: Context) -> None:
    session, stream = await joined(ctx)
    await stop(session, stream, await session.running(stream))
    await session.turn(stream)
