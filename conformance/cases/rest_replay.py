"""Last-Event-ID, the epoch and the snapshot."""

from __future__ import annotations

import trio

from conformance.cases.rest_prompt import joined
from conformance.context import Context
from conformance.outcome import Skip, brief, check
from conformance.registry import case
from conformance.rest.events import SYNTHETIC, EventStream, Frame, agent_text, ascending
from conformance.rest.session import Session
from conformance.rest.words import says_all

SMALL_RING = 200
QUIET = 0.7
"""Seconds without an event after which a session is at rest."""


async def quiet(stream: EventStream) -> None:
    """Wait until nothing came for a while: some agents comment on a new name."""
    seen = -1
    while seen != len(stream.frames):
        seen = len(stream.frames)
        with trio.move_on_after(QUIET):
            await stream.find(lambda _: True, after=seen)


async def told(ctx: Context) -> tuple[Session, list[Frame]]:
    """A session with a few events and none on the way, and those events.

    No turn is among them: some agents have more to say long after its end.
    """
    session = await (await ctx.rest()).session()
    stream = await session.events(last=0)
    for _ in range(4):
        await session.fence(stream)
    await quiet(stream)
    stream.close()
    return session, [frame for frame in stream.frames if frame.number is not None]


async def live_only(session: Session, events: list[Frame], stream: EventStream) -> Frame:
    """The stream must hold nothing but what is published from now on; its first frame."""
    last = events[-1].number or 0
    (await session.rename(f"behind {last}")).ok()
    place = await stream.find(lambda frame: (frame.number or 0) > last)
    check(place == 0, f"first came {stream.order()[:place]}")
    return stream.frames[0]


def envelopes(frames: list[Frame]) -> list[dict[str, object]]:
    return [frame.envelope for frame in frames]


@case("REPLAY-001")
async def no_header(ctx: Context) -> None:
    session, events = await told(ctx)
    await live_only(session, events, await session.events())


@case("REPLAY-002")
async def at_the_end(ctx: Context) -> None:
    session, events = await told(ctx)
    stream = await session.events(last=events[-1].number)
    done = await stream.index("replay_complete")
    check(done == 0, f"before it came {stream.order()[:done]}")
    check(stream.frames[0].data == {"replayedCount": 0}, brief(stream.frames[0].data))


@case("REPLAY-003", back=3)
@case("REPLAY-004", back=None)
async def suffix(ctx: Context, back: int | None) -> None:
    session, events = await told(ctx)
    start = 0 if back is None else len(events) - back
    last = events[start].number
    assert last is not None
    stream = await session.events(last=last - 1)
    done = await stream.index("replay_complete")
    check(envelopes(stream.frames[:done]) == envelopes(events[start:]), brief(stream.order()))
    data = stream.frames[done].data
    want = {"replayedCount": done, "lastReplayedEventId": events[-1].number}
    check(want.items() <= data.items(), f"{brief(data)} instead of {want}")


async def resync(ctx: Context, beyond: int) -> tuple[Session, EventStream]:
    """A stream opened with an id ``beyond`` the last: announced, then the whole ring."""
    session, events = await told(ctx)
    last = events[-1].number
    assert last is not None
    stream = await session.events(last=last + beyond)
    done = await stream.index("replay_complete")
    first = stream.frames[0]
    check(first.type == "state_resync_required", f"the first frame is {first.type}")
    check(first.data.get("reason") == "epoch_reset", brief(first.data))
    check("detail" not in first.data, brief(first.data))
    check(first.data.get("lastDeliveredId") == last + beyond, brief(first.data))
    check(envelopes(stream.frames[1:done]) == envelopes(events), "the replay is not the ring")
    return session, stream


@case("REPLAY-005", beyond=9000)
@case("REPLAY-006", beyond=1)
async def too_far(ctx: Context, beyond: int) -> None:
    await resync(ctx, beyond)


@case("REPLAY-007")
async def other_epoch(ctx: Context) -> None:
    session, events = await told(ctx)
    stream = await session.events(last=events[-2].number, epoch="deadbeef")
    done = await stream.index("replay_complete")
    data = stream.frames[0].data
    seen = (stream.frames[0].type, data.get("reason"), data.get("detail"))
    check(seen == ("state_resync_required", "epoch_reset", "epoch_mismatch"), f"{seen}")
    check(envelopes(stream.frames[1:done]) == envelopes(events), "the replay is not the ring")


@case("REPLAY-008")
async def same_epoch(ctx: Context) -> None:
    session, events = await told(ctx)
    epoch = (await session.events()).headers["x-qwen-event-epoch"]
    stream = await session.events(last=events[-3].number, epoch=epoch)
    done = await stream.index("replay_complete")
    check(envelopes(stream.frames[:done]) == envelopes(events[-2:]), brief(stream.order()))


@case("REPLAY-009", values=("abc",))
@case("REPLAY-010", values=("-1",))
@case("REPLAY-011", timeout=40, values=("1.0", "+1", "1e0", "0x1", "1 2", "99999999999999999999"))
async def no_id(ctx: Context, values: tuple[str, ...]) -> None:
    session, events = await told(ctx)
    for value in values:
        events = [await live_only(session, events, await session.events(last=value))]


@case("REPLAY-012")
async def snapshot(ctx: Context) -> None:
    session, events = await told(ctx)
    stream = await session.events("?snapshot=1")
    await session.fence(stream)
    check(stream.frames[0].type == "session_snapshot", f"{stream.order()}")
    check((stream.frames[1].number or 0) > (events[-1].number or 0), f"{stream.order()}")
    data = stream.frames[0].data
    check(data.get("sessionId") == session.id, brief(data))
    check({"currentModelId", "currentApprovalMode"} <= set(data), brief(data))


@case("REPLAY-013")
async def snapshot_after(ctx: Context) -> None:
    session, events = await told(ctx)
    stream = await session.events("?snapshot=1", last=events[-2].number)
    place = await stream.index("session_snapshot")
    kinds = [frame.type for frame in stream.frames[:place]]
    check(kinds == [events[-1].type, "replay_complete"], f"before the snapshot: {kinds}")


@case("REPLAY-014", timeout=60)
async def every_prefix(ctx: Context) -> None:
    session, events = await told(ctx)
    for start in range(len(events) + 1):
        last = events[start].number - 1 if start < len(events) else events[-1].number  # type: ignore[operator]
        stream = await session.events(last=last)
        done = await stream.index("replay_complete")
        wrong = envelopes(stream.frames[:done]) != envelopes(events[start:])
        check(not wrong, f"after {last}: {stream.order()[: done + 1]}")
        stream.close()


@case("REPLAY-015")
async def in_a_turn(ctx: Context) -> None:
    size = await (await ctx.rest()).limit("eventRingSize")
    if size < 400:
        raise Skip(f"the ring holds {size} events, fewer than the turn has")
    session, stream = await joined(ctx)
    prompt = await session.prompt(session.api.words.many(300))
    parts: list[Frame] = []
    for _ in range(4):
        # a part may end between the last chunk and the end of the turn
        await stream.find(
            lambda f: f.kind.endswith("agent_message_chunk") or f.type == "turn_complete"
        )
        stream.close()
        await stream.ended()
        parts += [frame for frame in stream.frames if frame.number is not None]
        stream = await session.events(last=parts[-1].number)
        if any(frame.type == "turn_complete" for frame in parts):
            break
    await stream.index("replay_complete")
    if not any(frame.type == "turn_complete" for frame in parts):
        await stream.completed(prompt)
    check(not stream.of("state_resync_required"), "a resync in one life of the session")
    parts += [frame for frame in stream.frames if frame.number is not None]
    check(ascending([frame.number for frame in parts if frame.number]), "a gap or a repetition")
    check(says_all(agent_text(parts), 300), "the text is not whole")


@case("REPLAY-016", timeout=60)
async def evicted(ctx: Context) -> None:
    api = await ctx.rest()
    size = await api.limit("eventRingSize")
    if size > SMALL_RING:
        raise Skip(f"the ring holds {size} events; start the server with at most {SMALL_RING}")
    session, stream = await joined(ctx)
    for _ in range(size + 5):
        await session.fence(stream)
    again = await session.events(last=1)
    done = await again.index("replay_complete")
    first = again.frames[0]
    check(first.data.get("reason") == "ring_evicted", brief(first.envelope))
    check(first.data.get("lastDeliveredId") == 1, brief(first.data))
    oldest = again.frames[1].number
    check(first.data.get("earliestAvailableId") == oldest, f"{brief(first.data)}, then {oldest}")
    check(done - 1 == size, f"{done - 1} events were replayed of a ring of {size}")
    check((again.frames[done - 1].number or 0) >= stream.numbers()[-1], "the replay ends too early")


@case("REPLAY-017")
async def no_ids(ctx: Context) -> None:
    _, stream = await resync(ctx, 5)
    bad = [f.type for f in stream.frames if (f.type in SYNTHETIC) != (f.number is None)]
    check(not bad, f"frames with a wrong id: {bad}")


@case("REPLAY-018")
async def epoch_alone(ctx: Context) -> None:
    session, events = await told(ctx)
    await live_only(session, events, await session.events(epoch="deadbeef"))


@case("REPLAY-019")
async def goes_on(ctx: Context) -> None:
    session, stream = await resync(ctx, 5)
    await session.fence(stream)
    check(ascending(stream.numbers()), "a gap between the replay and live events")


@case("REPLAY-020")
async def query(ctx: Context) -> None:
    session, events = await told(ctx)
    await live_only(session, events, await session.events("?lastEventId=0&Last-Event-ID=0"))


@case("REPLAY-021")
async def resync_ids(ctx: Context) -> None:
    _, stream = await resync(ctx, 77)
    oldest = stream.frames[1].number
    found = stream.frames[0].data.get("earliestAvailableId")
    check(found == oldest, f"earliestAvailableId {found}, the first replayed {oldest}")
