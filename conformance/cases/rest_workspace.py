"""GET /workspace/events: the workspace's own event stream."""

from __future__ import annotations

from conformance.context import Context
from conformance.outcome import brief, check
from conformance.registry import case
from conformance.rest.answer import members
from conformance.rest.api import Api
from conformance.rest.events import EventStream, Frame, ascending

PATH = "/workspace/events"


async def opened(api: Api, last: int | None = None) -> EventStream:
    stream = await api.stream(PATH, last=last)
    check(stream.answer.status == 200, str(stream.answer))
    await stream.first_block()
    return stream


async def about(stream: EventStream, session: str, *, after: int = 0) -> Frame:
    """The next event that is about this session."""
    found = await stream.find(lambda f: f.data.get("sessionId") == session, after=after)
    return stream.frames[found]


@case("WSEV-001")
async def stream(ctx: Context) -> None:
    opened_stream = await opened(await ctx.rest())
    check(opened_stream.blocks[0] == "retry: 3000", f"{opened_stream.blocks[0]!r}")
    kind = opened_stream.headers.get("content-type", "")
    check(kind.startswith("text/event-stream"), f"content-type {kind!r}")
    check("x-qwen-event-epoch" in opened_stream.headers, "no epoch")


@case("WSEV-002")
async def created(ctx: Context) -> None:
    api = await ctx.rest()
    events = await opened(api)
    session = await api.session()
    frame = await about(events, session.id)
    check(frame.type == "session_created", f"{frame.type}: {brief(frame.data)}")


@case("WSEV-003")
async def closed(ctx: Context) -> None:
    api = await ctx.rest()
    events = await opened(api)
    session = await api.session()
    await about(events, session.id)
    (await session.delete()).empty()
    frame = await events.expect("session_closed", sessionId=session.id)
    check(isinstance(frame.data.get("reason"), str), brief(frame.data))


@case("WSEV-004")
async def replayed(ctx: Context) -> None:
    api = await ctx.rest()
    events = await opened(api)
    frame = await about(events, (await api.session()).id)
    assert frame.number is not None
    events.close()
    again = await opened(api, last=frame.number - 1)
    done = await again.index("replay_complete")
    check(again.frames[0].envelope == frame.envelope, f"{again.order()[:3]}")
    check(again.frames[done].data.get("replayedCount") == done, brief(again.frames[done].data))


@case("WSEV-005")
async def envelopes(ctx: Context) -> None:
    api = await ctx.rest()
    events = await opened(api)
    for _ in range(3):
        await about(events, (await api.session()).id)
    check(ascending(events.numbers()), f"ids {events.numbers()}")
    for frame in events.frames:
        members(frame.envelope, v=int, type=str, data=dict, _meta=dict)
        check(frame.event == frame.type, f"event {frame.event} of type {frame.type}")
