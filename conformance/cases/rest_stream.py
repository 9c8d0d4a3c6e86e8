"""GET /session/:id/events: the bytes and the envelopes."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from conformance.cases.rest_prompt import joined
from conformance.context import Context
from conformance.outcome import brief, check
from conformance.registry import case
from conformance.rest.answer import members
from conformance.rest.api import unknown_id
from conformance.rest.events import ascending


@case("SSE-001")
async def status(ctx: Context) -> None:
    _, stream = await joined(ctx)
    kind = stream.headers.get("content-type", "")
    check(kind.partition(";")[0].strip() == "text/event-stream", f"content-type {kind!r}")


@case("SSE-002")
async def headers(ctx: Context) -> None:
    _, stream = await joined(ctx)
    cache = {part.strip() for part in stream.headers.get("cache-control", "").split(",")}
    check({"no-cache", "no-transform"} <= cache, f"cache-control {cache}")
    check(stream.headers.get("x-accel-buffering") == "no", "x-accel-buffering is not no")
    check("content-length" not in stream.headers, "a stream with a content-length")


@case("SSE-003")
async def retry(ctx: Context) -> None:
    _, stream = await joined(ctx)
    check(stream.blocks[0] == "retry: 3000", f"the first block is {stream.blocks[0]!r}")


@case("SSE-004")
async def lines(ctx: Context) -> None:
    session, stream = await joined(ctx)
    await session.turn(stream)
    for frame in stream.frames:
        names = [line.partition(": ")[0] for line in frame.block.split("\n")]
        want = ["event", "data"] if frame.number is None else ["id", "event", "data"]
        check(names == want, f"the lines of a frame are {names}")


@case("SSE-005")
async def line_ends(ctx: Context) -> None:
    session, stream = await joined(ctx)
    await session.turn(stream)
    check(not any("\r" in block for block in stream.blocks), "a CR in the stream")


@case("SSE-006")
async def repeated(ctx: Context) -> None:
    session, stream = await joined(ctx)
    await session.turn(stream)
    for frame in stream.frames:
        check(frame.event == frame.type, f"event {frame.event} of type {frame.type}")
        number = None if frame.id is None else int(frame.id)
        check(number == frame.number, f"id line {frame.id}, id in the envelope {frame.number}")


@case("SSE-007")
async def envelopes(ctx: Context) -> None:
    session, stream = await joined(ctx)
    await session.turn(stream)
    for frame in stream.frames:
        members(frame.envelope, v=int, type=str, data=dict, _meta=dict)
        check(frame.envelope["v"] == 1, brief(frame.envelope))
        members(frame.envelope["_meta"], serverTimestamp=(int, float))


@case("SSE-008")
async def consecutive(ctx: Context) -> None:
    session, stream = await joined(ctx)
    for _ in range(2):
        await session.turn(stream)
    await session.fence(stream)
    numbers = stream.numbers()
    check(all(isinstance(n, int) for n in numbers), f"ids {numbers[:9]}")
    check(ascending(numbers), f"ids {brief(numbers)}")


@case("SSE-009")
async def from_one(ctx: Context) -> None:
    session, stream = await joined(ctx)
    await session.turn(stream)
    whole = await session.events(last=0)
    await whole.index("replay_complete")
    check(whole.numbers()[:1] == [1], f"the first id is {whole.numbers()[:1]}")


@case("SSE-010")
async def epoch(ctx: Context) -> None:
    session, stream = await joined(ctx)
    other = await session.events()
    body = (await session.send(session.api.words.say)).ok(202)
    seen = {s.headers.get("x-qwen-event-epoch") for s in (stream, other)}
    check(seen == {body["eventEpoch"]}, f"the streams say {seen}, the prompt {brief(body)}")


@case("SSE-011")
async def stream_ids(ctx: Context) -> None:
    session, stream = await joined(ctx)
    other = await session.events()
    ids = {s.headers.get("x-qwen-sse-stream-id", "") for s in (stream, other)}
    check(len(ids) == 2, f"stream ids {ids}")
    for id in ids:
        UUID(id)


@case("SSE-012")
async def unknown(ctx: Context) -> None:
    api = await ctx.rest()
    wanted = unknown_id()
    stream = await api.stream(f"/session/{wanted}/events")
    stream.answer.refused(404, "session_not_found", sessionId=wanted)


@case("SSE-013")
async def any_client(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    for client in ("stranger", "no spaces", "x" * 200):
        await session.events(client=client)


@case("SSE-014", slow=True, timeout=30)
async def heartbeat(ctx: Context) -> None:
    _, stream = await joined(ctx)
    check(await stream.comment() == ": heartbeat", "another comment")


@case("SSE-015")
async def bad_queue(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    for value in ("15", "2049", "0", "-16", "abc", "16.5", "1e3", ""):
        stream = await session.subscribe(f"?maxQueued={value}")
        stream.answer.refused(400, "invalid_max_queued")


@case("SSE-016")
async def good_queue(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    for value in (16, 2048):
        stream = await session.events(f"?maxQueued={value}")
        await session.fence(stream)


@case("SSE-017")
async def same_story(ctx: Context) -> None:
    session, stream = await joined(ctx)
    other = await session.events()
    begin = await session.fence(stream)
    await session.turn(stream)
    end = await session.fence(stream)
    number = stream.frames[end].number
    await other.find(lambda frame: frame.number == number)
    mine = [frame.envelope for frame in stream.frames[begin:]]
    first = mine[0]["id"]
    theirs = [f.envelope for f in other.frames if f.number is not None and f.number >= first]
    check(mine == theirs, "the two streams differ")


@case("SSE-018", timeout=40)
async def cap(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    for _ in range(64):
        await session.events()
    refused = await session.subscribe()
    refused.answer.refused(429, "subscriber_limit_exceeded", limit=64)
    check(refused.headers.get("retry-after") == "5", "Retry-After is not 5")


@case("SSE-019")
async def replayed(ctx: Context) -> None:
    session, stream = await joined(ctx)
    await session.turn(stream)
    again = await session.events(last=0)
    await again.index("replay_complete")
    live = {frame.number: frame.block for frame in stream.frames if frame.number}
    replay = {frame.number: frame.block for frame in again.frames if frame.number}
    differ = [n for n, block in live.items() if n in replay and replay[n] != block]
    missing = [n for n in live if n not in replay and n < max(replay)]
    check(not missing, f"ids {missing} were not replayed")
    # The order of members may differ; what they say may not.
    for number in differ:
        one = next(f.envelope for f in stream.frames if f.number == number)
        two = next(f.envelope for f in again.frames if f.number == number)
        check(one == two, f"{brief(one)} was replayed as {brief(two)}")


@case("SSE-020")
async def no_client(ctx: Context) -> None:
    session, _ = await joined(ctx)
    body = (await session.get("status")).ok()
    check(body["clientCount"] == 1, f"{body['clientCount']} clients")


@case("SSE-021")
async def wrapped(ctx: Context) -> None:
    session, stream = await joined(ctx)
    await session.turn(stream)
    found = stream.of("session_update")
    check(found, "no session_update")
    for frame in found:
        members(frame.data, sessionId=str, update=dict)
        check(frame.data["sessionId"] == session.id, brief(frame.data))
        members(frame.data["update"], sessionUpdate=str)


@case("SSE-022")
async def apart(ctx: Context) -> None:
    session, stream = await joined(ctx)
    other, other_stream = await joined(ctx)
    await other.turn(other_stream)
    await session.fence(stream)

    def foreign(value: Any) -> bool:
        return bool(value.data.get("sessionId") == other.id)

    check(not [f for f in stream.frames if foreign(f)], "an event of the other session")


@case("SSE-023")
async def epochs(ctx: Context) -> None:
    _, stream = await joined(ctx)
    _, other = await joined(ctx)
    name = "x-qwen-event-epoch"
    check(stream.headers[name] != other.headers[name], "one epoch in two sessions")


@case("SSE-024")
async def diagnostics(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    query = "?connectReason=no-such-reason&previousStreamId=x&other=1"
    await session.fence(await session.events(query))
