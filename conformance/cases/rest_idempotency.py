"""Idempotency-Key: a retried prompt never runs twice."""

from __future__ import annotations

from uuid import uuid4

import trio

from conformance.cases.rest_prompt import ECHO, joined
from conformance.context import Context
from conformance.outcome import check
from conformance.registry import case
from conformance.rest.answer import Answer
from conformance.rest.session import Session


def key() -> dict[str, str]:
    return {"Idempotency-Key": uuid4().hex}


async def say(session: Session, headers: dict[str, str]) -> str:
    answer = await session.send(session.api.words.say, headers=headers)
    return str(answer.ok(202)["promptId"])


@case("IDEM-001")
async def same_prompt(ctx: Context) -> None:
    session, stream = await joined(ctx)
    headers = key()
    first, second = await say(session, headers), await say(session, headers)
    check(first == second, "two promptIds")
    await stream.completed(first)


@case("IDEM-002")
async def after_the_turn(ctx: Context) -> None:
    session, stream = await joined(ctx)
    headers = key()
    first = await say(session, headers)
    await stream.completed(first)
    check(await say(session, headers) == first, "another promptId")
    await session.turn(stream)
    check(len(stream.of(ECHO)) == 2, f"{len(stream.of(ECHO))} turns ran instead of 2")


@case("IDEM-003")
async def twice_at_once(ctx: Context) -> None:
    session, stream = await joined(ctx)
    headers = key()
    answers: list[Answer] = []

    async def one() -> None:
        answers.append(await session.send(session.api.words.say, headers=headers))

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(one)
    ids = {answer.ok(202)["promptId"] for answer in answers}
    check(len(ids) == 1, f"promptIds {ids}")
    await stream.completed(ids.pop())
    await session.turn(stream)
    check(len(stream.of(ECHO)) == 2, f"{len(stream.of(ECHO))} turns ran instead of 2")


@case("IDEM-004")
async def other_key(ctx: Context) -> None:
    session, stream = await joined(ctx)
    first, second = await say(session, key()), await say(session, key())
    check(first != second, "one promptId for two keys")
    await stream.completed(second)


@case("IDEM-005")
async def other_session(ctx: Context) -> None:
    headers = key()
    ids = set()
    for _ in range(2):
        session, stream = await joined(ctx)
        prompt = await say(session, headers)
        await stream.completed(prompt)
        ids.add(prompt)
    check(len(ids) == 2, "one promptId in two sessions")
