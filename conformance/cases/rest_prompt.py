"""POST /session/:id/prompt and the events of a turn."""

from __future__ import annotations

from typing import Any

from conformance.context import Context
from conformance.outcome import Failure, brief, check
from conformance.registry import case
from conformance.rest.answer import members
from conformance.rest.api import unknown_id
from conformance.rest.events import ENDS, EventStream, agent_text
from conformance.rest.session import Session
from conformance.rest.words import says_all

ECHO = "session_update/user_message_chunk"


async def joined(ctx: Context) -> tuple[Session, EventStream]:
    """A new session and a stream of it."""
    session = await (await ctx.rest()).session()
    return session, await session.events()


async def stop(session: Session, stream: EventStream, prompt: str) -> None:
    (await session.post("cancel")).empty()
    await stream.completed(prompt, "cancelled")


@case("TURN-001")
async def accepted(ctx: Context) -> None:
    session, stream = await joined(ctx)
    body = (await session.send(session.api.words.say)).ok(202)
    members(body, promptId=str, lastEventId=int, eventEpoch=str)
    await stream.completed(body["promptId"])


@case("TURN-002")
async def watermark(ctx: Context) -> None:
    session, stream = await joined(ctx)
    for _ in range(3):
        body = (await session.send(session.api.words.say)).ok(202)
        await stream.completed(body["promptId"])
        ids = [f.number for f in stream.turn(body["promptId"]) if f.number is not None]
        check(ids, "no event of the turn")
        check(body["lastEventId"] < min(ids), f"{body['lastEventId']} is not before {ids[0]}")


@case("TURN-003")
async def from_watermark(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    body = (await session.send(session.api.words.say)).ok(202)
    stream = await session.events(last=body["lastEventId"], epoch=body["eventEpoch"])
    await stream.completed(body["promptId"])
    check(not stream.of("state_resync_required"), "a resync")
    turn = stream.turn(body["promptId"])
    check(turn[0].kind == ECHO, f"the turn began with {turn[0].kind}")
    check(says_all(agent_text(turn), 3), f"the text is {agent_text(turn)!r}")


@case("TURN-004")
async def echo(ctx: Context) -> None:
    session, stream = await joined(ctx)
    blocks = [{"type": "text", "text": text} for text in ("first block", "second block")]
    answer = await session.post("prompt", {"prompt": blocks})
    prompt = answer.ok(202)["promptId"]
    # What the agent makes of them is not waited for.
    await stream.find(lambda frame: frame.update.get("content") == blocks[1])
    await session.fence(stream)
    echoes = stream.of(ECHO)
    check([f.update["content"] for f in echoes] == blocks, brief([f.update for f in echoes]))
    sources = {(f.update.get("_meta") or {}).get("source") for f in echoes}
    check(sources == {"bridge-echo"}, f"_meta.source is {sources}")
    check([f.prompt_id for f in echoes] == [prompt, prompt], "the echo has another promptId")


@case("TURN-005")
async def owned(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompt = await session.turn(stream)
    begin = stream.frames.index(stream.of(ECHO)[0])
    end = await stream.index("turn_complete", promptId=prompt)
    for frame in stream.frames[begin : end + 1]:
        if frame.kind.endswith(("_message_chunk", "turn_complete")):
            who = frame.envelope.get("originatorClientId")
            check(who == session.client, f"originator {who!r} of {frame.kind}")
            check(frame.envelope.get("promptId") == prompt, f"promptId of {frame.kind}")


@case("TURN-006")
async def one_end(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompts = [await session.turn(stream) for _ in range(2)]
    await session.fence(stream)
    ends = [frame.data["promptId"] for frame in stream.of(*ENDS)]
    check(ends == prompts, f"ends {ends} of the prompts {prompts}")


@case("TURN-007", timeout=30)
async def order(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompts = [await session.prompt(session.api.words.many(n)) for n in (3, 4, 5, 6)]
    await stream.completed(prompts[-1])
    ends = [frame.data["promptId"] for frame in stream.of(*ENDS)]
    check(ends == prompts, f"the turns ended in the order {ends}, not {prompts}")
    begins = list(dict.fromkeys(frame.prompt_id for frame in stream.of(ECHO)))
    check(begins == prompts, f"the turns began in the order {begins}")


@case("TURN-008", timeout=30)
async def queue_events(ctx: Context) -> None:
    session, stream = await joined(ctx)
    first = await session.running(stream)
    words = session.api.words.say
    second = await session.prompt(words)
    added = await stream.expect("pending_prompt_added", promptId=second)
    check(added.data["text"] == words, brief(added.data))
    members(added.data, sessionId=str, queuedAt=(int, float))
    await stop(session, stream, first)
    await stream.index("pending_prompt_completed", promptId=second, state="completed")
    seen = [f.kind for f in stream.turn(second)]
    want = ["pending_prompt_added", "pending_prompt_started", ECHO]
    check(seen[:3] == want, f"the queued turn began {seen[:4]}")
    tail = [kind for kind in seen if kind in ("turn_complete", "pending_prompt_completed")]
    check(tail == ["turn_complete", "pending_prompt_completed"], f"it ended {tail}")
    check(seen[-1] == "pending_prompt_completed", f"after that came {seen[-1]}")


@case("TURN-009")
async def no_queue_events(ctx: Context) -> None:
    session, stream = await joined(ctx)
    await session.turn(stream)
    await session.fence(stream)
    seen = [kind for kind in stream.order() if kind.startswith("pending_prompt")]
    check(not seen, f"{seen} for a prompt that did not wait")


async def fill(session: Session, stream: EventStream) -> list[str]:
    """A running prompt and as many waiting ones as are allowed."""
    cap = session.api.capabilities["limits"]["maxPendingPromptsPerSession"]
    first = await session.running(stream)
    return [first, *[await session.prompt(session.api.words.say) for _ in range(cap - 1)]]


@case("TURN-010", timeout=30)
async def full(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompts = await fill(session, stream)
    answer = await session.send("one too many")
    body = answer.refused(503, "prompt_queue_full", sessionId=session.id)
    check(answer.headers.get("retry-after") == "5", "Retry-After is not 5")
    check(body["limit"] == body["pendingCount"] == len(prompts), brief(body))
    (await session.delete()).empty()


@case("TURN-011")
async def no_prompt(ctx: Context) -> None:
    session, _ = await joined(ctx)
    good = {"type": "text", "text": "x"}
    misshapen: tuple[Any, ...] = (None, [], "text", {}, ["text"], [good, 7], [[]], 0)
    for prompt in misshapen:
        answer = await session.post("prompt", {"prompt": prompt})
        answer.refused(400)
    (await session.post("prompt", {})).refused(400)


@case("TURN-012")
async def bad_deadline(ctx: Context) -> None:
    session, _ = await joined(ctx)
    for deadline in (0, -1, 1.5, "100", True):
        (await session.send("x", deadlineMs=deadline)).refused(400, "invalid_deadline_ms")


@case("TURN-013")
async def anonymous(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompt = await session.prompt(session.api.words.say, client=None)
    await stream.completed(prompt)
    named = [f.kind for f in stream.turn(prompt) if "originatorClientId" in f.envelope]
    check(not named, f"an originator on {named}")


@case("TURN-014")
async def unknown(ctx: Context) -> None:
    api = await ctx.rest()
    session = api.known(unknown_id(), "")
    answer = await session.send("x", client=None)
    answer.refused(404, "session_not_found", sessionId=session.id)


@case("TURN-015")
async def dropped(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompt = await session.prompt(session.api.words.many(50))
    await stream.index(ECHO)
    stream.close()
    await stream.ended()
    again = await session.events(last=0)
    await again.completed(prompt)
    check(says_all(agent_text(again.turn(prompt)), 50), "the turn was cut short")


@case("TURN-016")
async def many(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompt = await session.turn(stream, session.api.words.many(100))
    check(says_all(agent_text(stream.turn(prompt)), 100), "a chunk is missing or misplaced")


@case("TURN-017")
async def side_by_side(ctx: Context) -> None:
    busy, busy_stream = await joined(ctx)
    prompt = await busy.running(busy_stream)
    other, stream = await joined(ctx)
    await other.turn(stream)
    check(not busy_stream.of(*ENDS), "the other turn ended")
    await stop(busy, busy_stream, prompt)


@case("TURN-018")
async def no_trace(ctx: Context) -> None:
    session, stream = await joined(ctx)
    begin = await session.fence(stream)
    (await session.post("prompt", {"prompt": []})).refused(400)
    (await session.send("x", client="stranger")).refused(400, "invalid_client_id")
    end = await session.fence(stream)
    seen = [f for f in stream.frames[begin + 1 : end] if f.prompt_id]
    check(not seen, f"events {[f.kind for f in seen]}")


@case("TURN-019", timeout=40)
async def beyond(ctx: Context) -> None:
    session, stream = await joined(ctx)
    first, *waiting = await fill(session, stream)
    (await session.send("one too many")).refused(503)
    await stop(session, stream, first)
    for prompt in waiting:
        await stream.completed(prompt)
    await session.fence(stream)
    ends = [frame.data["promptId"] for frame in stream.of(*ENDS)]
    check(ends == [first, *waiting], f"{len(ends)} turns ended")
    said = [f.update["content"]["text"] for f in stream.of(ECHO)]
    check("one too many" not in said, "the refused prompt ran")


@case("TURN-020")
async def end_last(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompt = await session.turn(stream, session.api.words.many(30))
    end = await stream.index("turn_complete", promptId=prompt)
    await session.fence(stream)
    late = [f.kind for f in stream.frames[end + 1 :] if f.kind.endswith("_message_chunk")]
    check(not late, f"{late} after the end of the turn")


@case("TURN-021")
async def deadline(ctx: Context) -> None:
    session, stream = await joined(ctx)
    prompt = await session.prompt(session.api.words.work, deadlineMs=1500)
    end = await stream.turn_end(prompt)
    check(end.type == "turn_error", f"the turn ended with {brief(end.envelope)}")
    check(end.data.get("code") == "prompt_deadline_exceeded", brief(end.data))
    await session.turn(stream)


# --- pending prompts


async def pending(session: Session) -> list[dict[str, Any]]:
    found = (await session.get("pending-prompts")).ok()["pendingPrompts"]
    if not isinstance(found, list):
        raise Failure(f"pendingPrompts: {brief(found)}")
    return found


@case("QUEUE-001")
async def listed(ctx: Context) -> None:
    session, stream = await joined(ctx)
    other = await session.attach()
    first = await session.running(stream)
    second = await session.prompt("the second", client=other)
    found = await pending(session)
    seen = [(e["promptId"], e["state"], e.get("originatorClientId")) for e in found]
    want = [(first, "running", session.client), (second, "queued", other)]
    check(seen == want, f"{seen} instead of {want}")
    check(found[1]["text"] == "the second", brief(found[1]))
    members(found[1], queuedAt=(int, float))
    (await session.delete()).empty()


@case("QUEUE-002")
async def removed(ctx: Context) -> None:
    session, stream = await joined(ctx)
    first = await session.running(stream)
    second = await session.prompt(session.api.words.say)
    body = (await session.delete(f"pending-prompts/{second}")).ok()
    check(body.get("removed") is True, brief(body))
    await stream.completed(second, "cancelled")
    await stream.index("pending_prompt_completed", promptId=second, state="removed")
    check([e["promptId"] for e in await pending(session)] == [first], "it is still pending")
    await stop(session, stream, first)


@case("QUEUE-003")
async def remove_unknown(ctx: Context) -> None:
    session, _ = await joined(ctx)
    body = (await session.delete(f"pending-prompts/{unknown_id()}")).ok()
    check(body.get("removed") is False, brief(body))


@case("QUEUE-004", timeout=30)
async def removed_never_runs(ctx: Context) -> None:
    session, stream = await joined(ctx)
    first = await session.running(stream)
    second = await session.prompt(session.api.words.many(7))
    third = await session.prompt(session.api.words.say)
    (await session.delete(f"pending-prompts/{second}")).ok()
    await stop(session, stream, first)
    await stream.completed(third)
    check(agent_text(stream.turn(second)) == "", "the removed prompt was answered")
    check(ECHO not in [f.kind for f in stream.turn(second)], "the removed prompt was echoed")


@case("QUEUE-005")
async def none_pending(ctx: Context) -> None:
    session, stream = await joined(ctx)
    check(await pending(session) == [], "pending in a new session")
    await session.turn(stream)
    await session.fence(stream)
    check(await pending(session) == [], "pending after the turn")


@case("QUEUE-006")
async def mid_turn_idle(ctx: Context) -> None:
    session, _ = await joined(ctx)
    session.api.need("session_mid_turn_message_mutation")
    body = (await session.post("mid-turn-message", {"message": "hello"})).ok()
    check(body.get("accepted") is False, brief(body))
