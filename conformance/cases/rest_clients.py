"""X-Qwen-Client-Id, heartbeats and metadata."""

from __future__ import annotations

from conformance.cases.rest_list import prompted
from conformance.cases.rest_prompt import joined
from conformance.context import Context
from conformance.outcome import brief, check
from conformance.registry import case
from conformance.rest.answer import members
from conformance.rest.api import unknown_id

CALLS = ("prompt", "cancel", "heartbeat", "detach")
BODY = {"prompt": [{"type": "text", "text": "x"}]}


@case("CLIENT-001")
async def malformed(ctx: Context) -> None:
    session, _ = await joined(ctx)
    for client in ("no spaces", "umlaut/slash", "x" * 129, 'a"b'):
        answer = await session.post("heartbeat", client=client)
        answer.refused(400, "invalid_client_id")
    for call in CALLS:
        answer = await session.post(call, BODY, client="no spaces")
        answer.refused(400, "invalid_client_id")


@case("CLIENT-002")
async def stranger(ctx: Context) -> None:
    session, _ = await joined(ctx)
    for call in CALLS[:3]:
        answer = await session.post(call, BODY, client="stranger")
        answer.refused(400, "invalid_client_id", sessionId=session.id, clientId="stranger")


@case("CLIENT-003")
async def empty(ctx: Context) -> None:
    session, _ = await joined(ctx)
    body = (await session.post("heartbeat", client="")).ok()
    check("clientId" not in body, brief(body))


@case("CLIENT-004")
async def of_another(ctx: Context) -> None:
    session, _ = await joined(ctx)
    other, _ = await joined(ctx)
    answer = await session.post("heartbeat", client=other.client)
    answer.refused(400, "invalid_client_id", sessionId=session.id, clientId=other.client)


@case("CLIENT-005")
async def gone(ctx: Context) -> None:
    session, _ = await joined(ctx)
    client = await session.attach()
    (await session.post("heartbeat", client=client)).ok()
    (await session.post("detach", client=client)).empty()
    (await session.post("heartbeat", client=client)).refused(400, "invalid_client_id")


@case("CLIENT-006")
async def twice(ctx: Context) -> None:
    session, _ = await joined(ctx)
    again = await session.post("resume", {"cwd": str(ctx.cwd)}, client=session.client)
    check(again.ok()["clientId"] == session.client, "the registered id was not kept")
    (await session.post("detach")).empty()
    (await session.post("heartbeat")).ok()
    (await session.post("detach")).empty()
    (await session.post("heartbeat")).refused(400, "invalid_client_id")


@case("CLIENT-007")
async def length(ctx: Context) -> None:
    session, _ = await joined(ctx)
    good = ("Az09._:-" * 16)[:128]
    answer = await session.post("heartbeat", client=good)
    answer.refused(400, "invalid_client_id", clientId=good)
    body = (await session.post("heartbeat", client=good + "x")).refused(400, "invalid_client_id")
    check("clientId" not in body, f"129 characters pass as well-formed: {brief(body)}")


@case("CLIENT-008")
async def always_new(ctx: Context) -> None:
    session, _ = await joined(ctx)
    ids = [session.client, await session.attach(), (await session.load())["clientId"]]
    check(len(set(ids)) == 3, f"client ids {ids}")


@case("CLIENT-009")
async def session_first(ctx: Context) -> None:
    session = (await ctx.rest()).known(unknown_id(), "stranger")
    (await session.post("heartbeat")).refused(404, "session_not_found")


@case("BEAT-001")
async def heartbeat(ctx: Context) -> None:
    session, _ = await joined(ctx)
    first = (await session.post("heartbeat")).ok()
    members(first, sessionId=str, clientId=str, lastSeenAt=(int, float))
    check(first["clientId"] == session.client, brief(first))
    second = (await session.post("heartbeat")).ok()
    check(second["lastSeenAt"] >= first["lastSeenAt"], "lastSeenAt went back")


@case("BEAT-002")
async def anonymous(ctx: Context) -> None:
    session, _ = await joined(ctx)
    body = (await session.post("heartbeat", client=None)).ok()
    members(body, sessionId=str, lastSeenAt=(int, float))
    check("clientId" not in body, brief(body))


@case("BEAT-003")
async def refused(ctx: Context) -> None:
    session, _ = await joined(ctx)
    (await session.post("heartbeat", client="stranger")).refused(400, "invalid_client_id")
    nobody = session.api.known(unknown_id(), "")
    (await nobody.post("heartbeat", client=None)).refused(404, "session_not_found")


# --- metadata


@case("META-001")
async def rename(ctx: Context) -> None:
    session, stream = await joined(ctx)
    body = (await session.rename("My session")).ok()
    check(body == {"sessionId": session.id, "displayName": "My session"}, brief(body))
    frame = await stream.expect("session_metadata_updated", displayName="My session")
    check(frame.data.get("sessionId") == session.id, brief(frame.data))
    check(frame.envelope.get("originatorClientId") == session.client, brief(frame.envelope))


@case("META-002")
async def cut(ctx: Context) -> None:
    session, _ = await joined(ctx)
    body = (await session.rename("n" * 300)).ok()
    check(body["displayName"] == "n" * 256, f"{len(body['displayName'])} characters")


@case("META-003")
async def no_string(ctx: Context) -> None:
    session, _ = await joined(ctx)
    for name in (7, ["x"], {"a": 1}, True):
        (await session.rename(name)).refused(400, "invalid_metadata", field="displayName")


@case("META-004", names=("a\u0007b", "a\u001b[31mb", "a\u0000"))
@case("META-008", names=("", "   "))
async def bad_name(ctx: Context, names: tuple[str, ...]) -> None:
    session, _ = await joined(ctx)
    for name in names:
        (await session.rename(name)).refused(400, "invalid_metadata", field="displayName")


@case("META-005")
async def empty_patch(ctx: Context) -> None:
    session, stream = await joined(ctx)
    (await session.rename("kept")).ok()
    place = await stream.index("session_metadata_updated", displayName="kept")
    body = (await session.api.call("PATCH", session.path("metadata"), {})).ok()
    check(body.get("displayName") == "kept", brief(body))
    end = await session.fence(stream)
    told = [f for f in stream.frames[place + 1 : end] if f.type == "session_metadata_updated"]
    check(not told, "an empty patch was announced")


@case("META-006")
async def shown(ctx: Context) -> None:
    session = await prompted(await ctx.rest())
    (await session.rename("A name to show")).ok()
    body = (await session.get("status")).ok()
    check(body.get("displayName") == "A name to show", brief(body))


@case("META-007")
async def unknown(ctx: Context) -> None:
    session = (await ctx.rest()).known(unknown_id(), "")
    (await session.rename("x", client=None)).refused(404, "session_not_found")
