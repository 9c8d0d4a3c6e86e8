"""Model, approval mode and the read models of a session."""

from __future__ import annotations

from typing import Any

from conformance.cases.rest_list import prompted
from conformance.cases.rest_prompt import joined
from conformance.context import Context
from conformance.outcome import Failure, Skip, brief, check
from conformance.registry import case
from conformance.rest.answer import members
from conformance.rest.api import unknown_id
from conformance.rest.events import agent_text
from conformance.rest.session import Session

READS = ("context", "context-usage", "stats", "supported-commands", "tasks", "transcript")


async def context(session: Session) -> dict[str, Any]:
    state = (await session.get("context")).ok().get("state")
    if not isinstance(state, dict):
        raise Failure(f"context has no state: {brief(state)}")
    return state


async def models(session: Session) -> tuple[str, list[str]]:
    """The current model and all of them; `Skip` when the agent has none."""
    found = (await context(session)).get("models")
    if not found:
        raise Skip("the agent lists no models")
    return found["currentModelId"], [entry["modelId"] for entry in found["availableModels"]]


@case("MODEL-001")
async def switch(ctx: Context) -> None:
    session, stream = await joined(ctx)
    current, known = await models(session)
    wanted = next((model for model in known if model != current), current)
    (await session.post("model", {"modelId": wanted})).ok()
    frame = await stream.expect("model_switched")
    check(frame.data.get("sessionId") == session.id, brief(frame.data))
    check(isinstance(frame.data.get("modelId"), str), brief(frame.data))


@case("MODEL-002")
async def unknown_model(ctx: Context) -> None:
    session, stream = await joined(ctx)
    await models(session)
    answer = await session.post("model", {"modelId": "no-such-model"})
    if answer.status == 200:
        raise Skip("the agent takes any model")
    check(400 <= answer.status < 600 and answer.status != 404, f"{answer}")
    answer.refused(answer.status)
    frame = await stream.expect("model_switch_failed")
    check(frame.data.get("requestedModelId") == "no-such-model", brief(frame.data))
    check(isinstance(frame.data.get("error"), str), brief(frame.data))


@case("MODEL-003")
async def no_model(ctx: Context) -> None:
    session, _ = await joined(ctx)
    for body in ({}, {"modelId": ""}, {"modelId": 7}):
        (await session.post("model", body)).refused(400)


@case("MODE-001")
async def mode(ctx: Context) -> None:
    session, stream = await joined(ctx)
    body = (await session.post("approval-mode", {"mode": "plan"})).ok()
    members(body, sessionId=str, mode=str, previous=str, persisted=bool)
    check(body["mode"] == "plan" and body["previous"] != "plan", brief(body))
    frame = await stream.expect("approval_mode_changed")
    want = {"previous": body["previous"], "next": "plan", "persisted": body["persisted"]}
    check(want.items() <= frame.data.items(), f"{brief(frame.data)} instead of {want}")


@case("MODE-002")
async def unknown_mode(ctx: Context) -> None:
    session, stream = await joined(ctx)
    for wanted in ("reckless", "", 7, None):
        body = (await session.post("approval-mode", {"mode": wanted})).refused(
            400, "invalid_approval_mode"
        )
        check("plan" in body.get("allowed", []), brief(body))
    await session.fence(stream)
    check(not stream.of("approval_mode_changed"), "a refused mode was announced")


@case("READ-001")
async def read_context(ctx: Context) -> None:
    session, _ = await joined(ctx)
    body = (await session.get("context")).ok()
    members(body, v=int, sessionId=str, workspaceCwd=str, state=dict)
    state = body["state"]
    if state.get("models"):
        members(state["models"], currentModelId=str, availableModels=list)
    if state.get("modes"):
        members(state["modes"], currentModeId=str, availableModes=list)


@case("READ-002")
async def commands(ctx: Context) -> None:
    session, _ = await joined(ctx)
    body = (await session.get("supported-commands")).ok()
    members(body, v=int, sessionId=str, availableCommands=list)
    for command in body["availableCommands"]:
        members(command, name=str, description=str)


@case("READ-003")
async def tasks(ctx: Context) -> None:
    session, _ = await joined(ctx)
    body = (await session.get("tasks")).ok()
    members(body, v=int, sessionId=str, now=(int, float), tasks=list)


@case("READ-004")
async def stats(ctx: Context) -> None:
    session = await prompted(await ctx.rest())
    answer = await session.get("stats")
    members(answer.ok(), v=int, sessionId=str, promptCount=int, models=dict, tools=dict)
    check(answer.body["promptCount"] >= 1, brief(answer.body))
    check(answer.headers.get("cache-control") == "no-store", "it may be stored")


@case("READ-005")
async def usage(ctx: Context) -> None:
    session = await prompted(await ctx.rest())
    body = (await session.get("context-usage")).ok()
    members(body, v=int, sessionId=str, usage=dict)
    members(body["usage"], totalTokens=(int, float), contextWindowSize=(int, float))


@case("READ-006")
async def transcript(ctx: Context) -> None:
    session, stream = await joined(ctx)
    session.api.need("session_transcript")
    prompt = await session.turn(stream)
    body = (await session.get("transcript")).ok()
    members(body, v=int, sessionId=str, events=list, hasMore=bool)
    text = ""
    for event in body["events"]:
        members(event, v=int, type=str, data=dict)
        check("update" not in event["data"], f"wrapped: {brief(event)}")
        if event["data"].get("sessionUpdate") == "agent_message_chunk":
            text += event["data"]["content"].get("text", "")
    check(text == agent_text(stream.turn(prompt)), f"the transcript says {text[:200]!r}")


@case("READ-007")
async def unknown(ctx: Context) -> None:
    api = await ctx.rest()
    session = api.known(unknown_id(), "")
    for read in READS:
        (await session.get(read)).refused(404, "session_not_found", sessionId=session.id)


@case("READ-008")
async def current_model(ctx: Context) -> None:
    session, stream = await joined(ctx)
    current, known = await models(session)
    wanted = next((model for model in known if model != current), None)
    if wanted is None:
        raise Skip("the agent has one model")
    (await session.post("model", {"modelId": wanted})).ok()
    await stream.index("model_switched")
    seen, _ = await models(session)
    check(seen == wanted, f"the current model is {seen}, not {wanted}")
