"""What event streams send, held against the schemas."""

from __future__ import annotations

from conformance.cases.rest_prompt import joined, stop
from conformance.context import Context
from conformance.registry import case
from conformance.schemas import check_event


@case("SCHEMA-004", timeout=40)
async def events(ctx: Context) -> None:
    session, stream = await joined(ctx)
    question = await session.question(stream)
    (await question.choose("allow_once")).ok()
    await stream.completed(question.prompt_id)
    (await question.choose("reject_once")).refused(404)
    first = await session.running(stream)
    second = await session.prompt(session.api.words.say)
    third = await session.prompt(session.api.words.say)
    (await session.delete(f"pending-prompts/{third}")).ok()
    await stop(session, stream, first)
    await stream.completed(second)
    await session.fence(stream)
    resync = await session.events("?snapshot=1", last=9000)
    await resync.index("session_snapshot")
    (await session.delete()).empty()
    await stream.ended()
    for frame in [*stream.frames, *resync.frames]:
        check_event(frame.envelope)
