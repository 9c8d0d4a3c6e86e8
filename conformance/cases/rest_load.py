"""POST /session/:id/load and /resume."""

from __future__ import annotations

from typing import Any

from conformance.cases.rest_list import prompted
from conformance.context import Context
from conformance.outcome import brief, check
from conformance.registry import case
from conformance.rest.answer import members
from conformance.rest.api import unknown_id
from conformance.rest.events import agent_text, ascending
from conformance.rest.words import says_all


def kinds(envelopes: list[dict[str, Any]]) -> list[str]:
    """Types, of updates their kind."""
    return [
        str((e["data"].get("update") or {}).get("sessionUpdate") or e["type"]) for e in envelopes
    ]


def texts(envelopes: list[dict[str, Any]], kind: str) -> list[str]:
    """The text of every chunk of this kind that has one."""
    found = [(e["data"].get("update") or {}) for e in envelopes]
    chunks = [u["content"].get("text", "") for u in found if u.get("sessionUpdate") == kind]
    return [text for text in chunks if text]


@case("LOAD-001")
async def attach(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    body = await session.load()
    check(body["attached"] is True, "attached is false")
    check(body["sessionId"] == session.id, "another session")
    check(body["clientId"] != session.client, "the client id of the first client")


@case("LOAD-002")
async def arrays(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    members(await session.load(), compactedReplay=list, liveJournal=list)


@case("LOAD-003")
async def watermark(ctx: Context) -> None:
    api = await ctx.rest()
    session = await prompted(api)
    stream = await session.events(last=0)
    await stream.index("replay_complete")
    body = await session.load()
    members(body, lastEventId=int, eventEpoch=str)
    await session.fence(stream)
    below = [n for n in stream.numbers() if n <= body["lastEventId"]]
    check(below and below[-1] == body["lastEventId"], f"lastEventId {body['lastEventId']}")
    epoch = stream.headers["x-qwen-event-epoch"]
    check(body["eventEpoch"] == epoch, f"epoch {body['eventEpoch']} and {epoch}")


@case("LOAD-004")
async def terminals(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    prompt = await session.turn(await session.events())
    body = await session.load()
    found = [entry for entry in body["promptTerminals"] if entry["promptId"] == prompt]
    check(len(found) == 1, brief(body["promptTerminals"]))
    check(found[0]["terminal"] == "completed", brief(found))
    check(found[0].get("stopReason") == "end_turn", brief(found))


@case("LOAD-005")
async def merged(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    stream = await session.events()
    words = session.api.words.many(20)
    prompt = await session.turn(stream, words)
    body = await session.load()
    said = texts(body["compactedReplay"], "agent_message_chunk")
    check(len(said) == 1, f"{len(said)} chunks of the agent in compactedReplay")
    check(says_all(said[0], 20), f"the text is {said[0][:100]!r}")
    check(texts(body["compactedReplay"], "user_message_chunk") == [words], "the user's words")
    check(
        texts(body["liveJournal"], "agent_message_chunk") == [], "the turn is also in the journal"
    )
    check(said[0] == agent_text(stream.turn(prompt)), "the text differs from the live one")


@case("LOAD-006")
async def journal(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    stream = await session.events()
    prompt = await session.running(stream)
    body = await session.load()
    check(body["hasActivePrompt"] is True, "hasActivePrompt is not true")
    check("user_message_chunk" in kinds(body["liveJournal"]), brief(kinds(body["liveJournal"])))
    check(texts(body["liveJournal"], "agent_message_chunk"), "what was said is missing")
    (await session.post("cancel")).empty()
    await stream.completed(prompt, "cancelled")


@case("LOAD-007")
async def resume(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    body = (await session.post("resume", {"cwd": str(ctx.cwd)}, client=None)).ok()
    members(body, sessionId=str, clientId=str, attached=bool, lastEventId=int, eventEpoch=str)
    extra = {"compactedReplay", "liveJournal", "promptTerminals"} & set(body)
    check(not extra, f"resume answers {extra}")


@case("LOAD-008", action="load")
@case("LOAD-009", action="resume")
async def unknown(ctx: Context, action: str) -> None:
    api = await ctx.rest()
    wanted = unknown_id()
    answer = await api.call("POST", f"/session/{wanted}/{action}", {"cwd": str(ctx.cwd)})
    answer.refused(404, "session_not_found", sessionId=wanted)


@case("LOAD-010")
async def seamless(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    stream = await session.events()
    prompt = await session.prompt(session.api.words.many(200))
    await stream.index("session_update/agent_message_chunk")
    body = await session.load()
    late = await session.events(last=body["lastEventId"], epoch=body["eventEpoch"])
    await stream.completed(prompt)
    if any(n > body["lastEventId"] for n in stream.numbers()):
        await session.fence(late)
    check(not late.of("state_resync_required"), "the stream began with a resync")
    check(ascending(late.numbers()), "ids of the stream have a gap")
    loaded = [*body["compactedReplay"], *body["liveJournal"]]
    text = "".join(texts(loaded, "agent_message_chunk")) + agent_text(late.frames)
    check(text == agent_text(stream.frames), "loaded text and stream do not make the whole")
    check(says_all(text, 200), "the whole is not the turn")


@case("LOAD-011", timeout=30)
async def stored(ctx: Context) -> None:
    api = await ctx.rest()
    session = await prompted(api)
    (await session.delete()).empty()
    body = await session.load()
    check(body["attached"] is False, "attached to a closed session")
    loaded = [*body["compactedReplay"], *body["liveJournal"]]
    check("".join(texts(loaded, "user_message_chunk")) == api.words.say, brief(kinds(loaded)))
    check(says_all("".join(texts(loaded, "agent_message_chunk")), 3), brief(kinds(loaded)))


@case("LOAD-012")
async def mismatch(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    (await session.post("load", {"cwd": "/"}, client=None)).refused(400, "workspace_mismatch")


@case("LOAD-013")
async def open_question(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    question = await session.question(await session.events())
    body = await session.load()
    asked = [e["data"] for e in body["liveJournal"] if e["type"] == "permission_request"]
    check([data["requestId"] for data in asked] == [question.id], brief(asked))
    await question.settle()


@case("LOAD-014", timeout=30)
async def seeded(ctx: Context) -> None:
    session = await prompted(await ctx.rest())
    (await session.delete()).empty()
    body = await session.load()
    stream = await session.events(last=0)
    done = await stream.index("replay_complete")
    resync = stream.of("state_resync_required")
    if not resync:
        # A server that still has them replays them, and nothing is missing.
        numbers = stream.numbers()
        check(ascending(numbers) and len(numbers) >= body["lastEventId"], f"ids {numbers}")
        return
    check(resync[0] is stream.frames[0], f"the stream began {stream.order()[:3]}")
    check(resync[0].data["reason"] == "seeded_replay_not_in_ring", brief(resync[0].data))
    check(resync[0].data["lastDeliveredId"] == 0, brief(resync[0].data))
    check(stream.frames[done].data["replayedCount"] == len(stream.numbers()), "replayedCount")


@case("LOAD-015", timeout=30)
async def new_epoch(ctx: Context) -> None:
    session = await prompted(await ctx.rest())
    before = (await session.post("resume", {"cwd": str(ctx.cwd)}, client=None)).ok()
    (await session.delete()).empty()
    after = await session.load()
    check(after["eventEpoch"] != before["eventEpoch"], "the epoch is the old one")
    check(after["clientId"] not in (session.client, before["clientId"]), "an old client id")


@case("LOAD-016")
async def envelopes(ctx: Context) -> None:
    session = await prompted(await ctx.rest())
    body = await session.load()
    check(body["compactedReplay"], "nothing to replay")
    for envelope in [*body["compactedReplay"], *body["liveJournal"]]:
        members(envelope, v=int, type=str, data=dict)
        check(envelope["v"] == 1, brief(envelope))


@case("LOAD-017")
async def bad_mode(ctx: Context) -> None:
    session = await (await ctx.rest()).session()
    body = {"cwd": str(ctx.cwd), "compactedReplayMode": "some"}
    (await session.post("load", body, client=None)).refused(400)
