"""Permission votes under first-responder: the order of checks, the answers and the events."""

from __future__ import annotations

from typing import Any

import trio

from conformance.cases.rest_prompt import joined
from conformance.context import Context
from conformance.outcome import Skip, brief, check
from conformance.registry import case
from conformance.rest.answer import Answer, members
from conformance.rest.api import unknown_id
from conformance.rest.session import CANCELLED, Question, selected

SENTINEL = "__cancelled__"
BAD_OUTCOMES: tuple[Any, ...] = (
    None,
    "selected",
    [],
    {},
    {"outcome": "maybe"},
    {"outcome": "selected"},
    {"outcome": "selected", "optionId": 7},
    {"outcome": 1, "optionId": "x"},
)


async def asked(ctx: Context, *, client: Any = ...) -> Question:
    """A question in a new session of a daemon where the first answer wins."""
    api = await ctx.rest()
    policy = (api.capabilities.get("policy") or {}).get("permission")
    if policy != "first-responder":
        raise Skip(f"the daemon's policy is {policy}")
    session, stream = await joined(ctx)
    if client is ...:
        return await session.question(stream)
    return await session.question(stream, client=client)


@case("VOTE-001")
async def allowed(ctx: Context) -> None:
    question = await asked(ctx)
    check((await question.choose("allow_once")).ok() == {}, "the body is not {}")
    await question.stream.completed(question.prompt_id)
    check(question.file.exists(), "the tool did not run")


@case("VOTE-002")
async def resolved(ctx: Context) -> None:
    question = await asked(ctx)
    other = await question.session.attach()
    option = question.option("allow_once")
    (await question.vote(selected(option), client=other)).ok()
    frame = await question.stream.expect("permission_resolved", requestId=question.id)
    check(frame.data["outcome"] == selected(option), brief(frame.data))
    check(frame.data.get("voterClientId") == other, brief(frame.data))
    check(frame.envelope.get("originatorClientId") == other, brief(frame.envelope))
    await question.stream.completed(question.prompt_id)


@case("VOTE-003")
async def anonymous(ctx: Context) -> None:
    question = await asked(ctx)
    (await question.choose("allow_once", client=None)).ok()
    frame = await question.stream.expect("permission_resolved", requestId=question.id)
    check("voterClientId" not in frame.data, brief(frame.data))
    check("originatorClientId" not in frame.envelope, brief(frame.envelope))
    await question.stream.completed(question.prompt_id)
    check(question.file.exists(), "the tool did not run")


@case("VOTE-004")
async def bad_outcome(ctx: Context) -> None:
    question = await asked(ctx)
    for outcome in BAD_OUTCOMES:
        (await question.vote(outcome)).refused(400)
    (await question.session.post(f"permission/{question.id}", {})).refused(400)
    await question.settle()


@case("VOTE-005")
async def empty_option(ctx: Context) -> None:
    question = await asked(ctx)
    (await question.vote(selected(""))).refused(400)
    await question.settle()


@case("VOTE-006")
async def malformed_client(ctx: Context) -> None:
    question = await asked(ctx)
    answer = await question.choose("allow_once", client="no spaces")
    answer.refused(400, "invalid_client_id")
    await question.settle()


@case("VOTE-007")
async def unknown_session(ctx: Context) -> None:
    api = await ctx.rest()
    wanted = unknown_id()
    path = f"/session/{wanted}/permission/{unknown_id()}"
    answer = await api.call("POST", path, {"outcome": CANCELLED})
    answer.refused(404, "session_not_found", sessionId=wanted)


@case("VOTE-008")
async def other_session(ctx: Context) -> None:
    question = await asked(ctx)
    other, other_stream = await joined(ctx)
    answer = await other.post(f"permission/{question.id}", {"outcome": CANCELLED})
    answer.refused(404, sessionId=other.id, requestId=question.id)
    await other.fence(other_stream)
    await question.session.fence(question.stream)
    for stream in (other_stream, question.stream):
        check(not stream.of("permission_resolved", "permission_already_resolved"), "an event")
    await question.settle()


@case("VOTE-009")
async def unknown_request(ctx: Context) -> None:
    session, stream = await joined(ctx)
    wanted = unknown_id()
    answer = await session.post(f"permission/{wanted}", {"outcome": CANCELLED})
    answer.refused(404, sessionId=session.id, requestId=wanted)
    await session.fence(stream)
    check(not stream.of("permission_already_resolved"), "an event for no request")


@case("VOTE-010")
async def legacy_unknown(ctx: Context) -> None:
    api = await ctx.rest()
    wanted = unknown_id()
    answer = await api.call("POST", f"/permission/{wanted}", {"outcome": CANCELLED})
    answer.refused(404, requestId=wanted)


@case("VOTE-011")
async def stranger(ctx: Context) -> None:
    question = await asked(ctx)
    answer = await question.choose("allow_once", client="stranger")
    answer.refused(400, "invalid_client_id", sessionId=question.session.id, clientId="stranger")
    await question.settle()


@case("VOTE-012")
async def sentinel(ctx: Context) -> None:
    question = await asked(ctx)
    answer = await question.vote(selected(SENTINEL))
    answer.refused(400, "invalid_option_id", requestId=question.id, optionId=SENTINEL)
    await question.settle()


async def decided(ctx: Context) -> Question:
    """A question that was settled by an allow."""
    question = await asked(ctx)
    (await question.choose("allow_once")).ok()
    await question.stream.completed(question.prompt_id)
    return question


@case("VOTE-013")
async def late(ctx: Context) -> None:
    question = await decided(ctx)
    answer = await question.choose("reject_once")
    answer.refused(404, sessionId=question.session.id, requestId=question.id)
    frame = await question.stream.expect("permission_already_resolved", requestId=question.id)
    check(frame.data["outcome"] == selected(question.option("allow_once")), brief(frame.data))
    check(frame.data.get("sessionId") == question.session.id, brief(frame.data))
    check("originatorClientId" not in frame.envelope, brief(frame.envelope))


@case("VOTE-014")
async def cancelled(ctx: Context) -> None:
    question = await asked(ctx)
    (await question.vote(CANCELLED)).ok()
    frame = await question.stream.expect("permission_resolved", requestId=question.id)
    check(frame.data["outcome"] == CANCELLED, brief(frame.data))
    await question.stream.turn_end(question.prompt_id)
    check(not question.file.exists(), "the tool ran")


@case("VOTE-015")
async def not_offered(ctx: Context) -> None:
    question = await asked(ctx)
    answer = await question.vote(selected("bogus"))
    answer.refused(400, "invalid_option_id", requestId=question.id, optionId="bogus")
    await question.settle()


@case("VOTE-016")
async def shape_first(ctx: Context) -> None:
    question = await asked(ctx)
    body = (await question.vote({}, client="no spaces")).refused(400)
    check(body.get("code") != "invalid_client_id", "the client id was looked at first")
    await question.settle()


@case("VOTE-017")
async def form_before_session(ctx: Context) -> None:
    api = await ctx.rest()
    path = f"/session/{unknown_id()}/permission/x"
    answer = await api.call("POST", path, {"outcome": CANCELLED}, client="no spaces")
    answer.refused(400, "invalid_client_id")


@case("VOTE-018")
async def request_before_client(ctx: Context) -> None:
    session, _ = await joined(ctx)
    wanted = unknown_id()
    answer = await session.post(f"permission/{wanted}", {"outcome": CANCELLED}, client="stranger")
    answer.refused(404, requestId=wanted)


@case("VOTE-019")
async def client_before_option(ctx: Context) -> None:
    question = await asked(ctx)
    for option in (SENTINEL, "bogus"):
        answer = await question.vote(selected(option), client="stranger")
        answer.refused(400, "invalid_client_id")
    await question.settle()


@case("VOTE-020")
async def late_before_option(ctx: Context) -> None:
    question = await decided(ctx)
    (await question.vote(selected("bogus"))).refused(404, requestId=question.id)
    await question.stream.expect("permission_already_resolved", requestId=question.id)


@case("VOTE-021")
async def legacy(ctx: Context) -> None:
    question = await asked(ctx)
    body = {"outcome": selected(question.option("allow_once"))}
    session = question.session
    answer = await session.api.call(
        "POST", f"/permission/{question.id}", body, client=session.client
    )
    check(answer.ok() == {}, "the body is not {}")
    await question.stream.completed(question.prompt_id)
    check(question.file.exists(), "the tool did not run")


@case("VOTE-022")
async def two_at_once(ctx: Context) -> None:
    question = await asked(ctx)
    answers: dict[str, Answer] = {}

    async def vote(kind: str) -> None:
        answers[kind] = await question.choose(kind)

    async with trio.open_nursery() as nursery:
        for kind in ("allow_once", "reject_once"):
            nursery.start_soon(vote, kind)
    statuses = sorted(answer.status for answer in answers.values())
    check(statuses == [200, 404], f"the two votes were answered {statuses}")
    await question.stream.turn_end(question.prompt_id)
    await question.session.fence(question.stream)
    found = question.stream.of("permission_resolved")
    check(len(found) == 1, f"{len(found)} permission_resolved")
    won = next(kind for kind, answer in answers.items() if answer.status == 200)
    check(found[0].data["outcome"] == selected(question.option(won)), brief(found[0].data))
    check(question.file.exists() == (won == "allow_once"), "the tool obeyed the other vote")


@case("VOTE-023")
async def rejected(ctx: Context) -> None:
    question = await asked(ctx)
    (await question.choose("reject_once")).ok()
    await question.stream.turn_end(question.prompt_id)
    check(not question.file.exists(), "the tool ran")


@case("VOTE-024")
async def shape(ctx: Context) -> None:
    question = await asked(ctx)
    members(question.frame.data, requestId=str, sessionId=str, toolCall=dict, options=list)
    members(question.frame.data["toolCall"], toolCallId=str)
    for option in question.frame.data["options"]:
        members(option, optionId=str, name=str, kind=str)
    await question.settle()


@case("VOTE-025")
async def replayed(ctx: Context) -> None:
    question = await asked(ctx)
    late = await question.session.events(last=0)
    frame = await late.expect("permission_request", requestId=question.id)
    check(frame.envelope == question.frame.envelope, "another request")
    check(not late.of("permission_resolved"), "it is settled in the replay")
    await question.settle()


@case("VOTE-026")
async def still_open(ctx: Context) -> None:
    question = await asked(ctx)
    (await question.vote({})).refused(400)
    (await question.vote(selected("bogus"))).refused(400)
    (await question.choose("reject_once", client="stranger")).refused(400)
    await question.session.fence(question.stream)
    check(not question.stream.of("permission_resolved"), "a refused vote decided")
    (await question.choose("allow_once")).ok()
    await question.stream.completed(question.prompt_id)
    check(question.file.exists(), "the tool did not run")


@case("VOTE-027")
async def prompter(ctx: Context) -> None:
    question = await asked(ctx)
    envelope = question.frame.envelope
    check(envelope.get("originatorClientId") == question.session.client, brief(envelope))
    check(envelope.get("promptId") == question.prompt_id, brief(envelope))
    await question.settle()


@case("VOTE-028")
async def once_before_tool(ctx: Context) -> None:
    question = await decided(ctx)
    call = question.frame.data["toolCall"]["toolCallId"]
    stream = question.stream
    found = stream.of("permission_resolved")
    check(len(found) == 1, f"{len(found)} permission_resolved")
    place = stream.frames.index(found[0])
    done = [
        index
        for index, frame in enumerate(stream.frames)
        if frame.update.get("toolCallId") == call and frame.update.get("status") == "completed"
    ]
    check(done and place < done[0], f"the order is {stream.order()}")


@case("VOTE-029")
async def late_told(ctx: Context) -> None:
    question = await decided(ctx)
    answer = await question.choose("reject_once")
    outcome = selected(question.option("allow_once"))
    answer.refused(404, "permission_already_resolved", outcome=outcome)
