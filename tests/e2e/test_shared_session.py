"""Two clients on one session, one over WebSocket and one over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway_process import GatewayProcess
from support.acp_clients import AcpClient, http_client, ws_client
from support.processes import gateway

DEADLINE = 60.0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared").resolve()


@pytest.fixture(scope="module")
def site(base: Path) -> Iterator[GatewayProcess]:
    with gateway(base, "--max-sessions", "50") as made:
        yield made


@pytest.fixture
def cwd(base: Path, request: pytest.FixtureRequest) -> Path:
    path = base / "workspace" / "".join(c if c.isalnum() else "-" for c in request.node.name)
    path.mkdir(parents=True)
    return path


async def connect(stack: AsyncExitStack, site: GatewayProcess, kind: str) -> AcpClient:
    if kind == "ws":
        return await stack.enter_async_context(ws_client(site.ws_url))
    return await stack.enter_async_context(http_client(site.http_url))


def story(client: AcpClient, session_id: str) -> list[dict[str, Any]]:
    """Updates and notices of a session, in the order in which they came."""
    own = []
    for message in client.messages:
        if message.get("method") in ("session/update", "_qwen/notify"):
            params = message["params"]
            if session_id in (params.get("sessionId"), params.get("data", {}).get("sessionId")):
                own.append(params)
    return own


def without_echo(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        params
        for params in told
        if params.get("update", {}).get("sessionUpdate") != "user_message_chunk"
    ]


def echoes(told: list[dict[str, Any]]) -> list[str]:
    return [
        params["update"]["content"]["text"]
        for params in told
        if params.get("update", {}).get("sessionUpdate") == "user_message_chunk"
    ]


async def end_of_turns(client: AcpClient, session_id: str, count: int) -> None:
    await client.until(lambda: len(client.notices(session_id, "turn_complete")) >= count)


async def test_both_see_the_same(site: GatewayProcess, cwd: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            ws = await connect(stack, site, "ws")
            http = await connect(stack, site, "http")
            session_id = await ws.new(cwd)
            await http.load(cwd, session_id)
            # Each drives a turn: updates of many kinds, a question, a long stream.
            turn = await ws.begin(session_id, "write it down")
            await http.permit()
            assert (await ws.answer(turn))["stopReason"] == "end_turn"
            await http.say(session_id, "/chunks 3000 200")
            await ws.say(session_id, "/plan")
            for client in (ws, http):
                await end_of_turns(client, session_id, 3)
            ws_story, http_story = story(ws, session_id), story(http, session_id)
            assert without_echo(ws_story) == without_echo(http_story)
            assert echoes(ws_story) == ["/chunks 3000 200"]
            assert echoes(http_story) == ["write it down", "/plan"]
            kinds = {params["update"]["sessionUpdate"] for params in ws.of(session_id)}
            assert {"plan", "tool_call", "tool_call_update", "agent_thought_chunk"} <= kinds
            assert (cwd / "acp-demo.txt").read_text() == "write it down\n"
            numbers = [
                int(params["update"]["content"]["text"].split()[0])
                for params in http.of(session_id)
                if params["update"]["sessionUpdate"] == "agent_message_chunk"
                and params["update"]["content"]["text"][:6].isdigit()
            ]
            assert numbers == list(range(3000))


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1000, 5000])
@pytest.mark.parametrize("kind", ["ws", "http"])
async def test_no_answer_overtakes_its_updates(
    site: GatewayProcess, cwd: Path, kind: str, count: int
) -> None:
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            client = await connect(stack, site, kind)
            session_id = await client.new(cwd)
            turn = await client.begin(session_id, f"/chunks {count} 20")
            await client.answer(turn)
            place = next(n for n, m in enumerate(client.messages) if m.get("id") == turn)
            before = [
                m["params"]["update"]["content"]["text"][:6]
                for m in client.messages[:place]
                if m.get("method") == "session/update"
                and m["params"]["update"]["sessionUpdate"] == "agent_message_chunk"
            ]
            assert before == [f"{n:06d}" for n in range(count)]
            await client.request("session/close", {"sessionId": session_id})


@pytest.mark.parametrize("killed", ["ws", "http"])
async def test_one_is_killed_in_mid_turn_and_sees_the_rest(
    site: GatewayProcess, cwd: Path, killed: str
) -> None:
    stays = "http" if killed == "ws" else "ws"
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            witness = await connect(stack, site, stays)
            async with AsyncExitStack() as doomed:
                victim = await connect(doomed, site, killed)
                session_id = await victim.new(cwd)
                await witness.load(cwd, session_id)
                await victim.begin(session_id, "/sleep 1.5")
                await victim.until(lambda: "tick" in victim.text(session_id))
                victim.cut()  # type: ignore[attr-defined]
            back = await connect(stack, site, killed)
            await back.load(cwd, session_id)
            for client in (witness, back):
                await end_of_turns(client, session_id, 1)
            assert witness.notices(session_id, "turn_complete")[0]["stopReason"] == "end_turn"
            text = witness.text(session_id)
            assert text.endswith("slept 1.5 s") and text.count("tick") >= 10
            assert back.text(session_id) == text
            assert back.text(session_id, "user_message_chunk") == "/sleep 1.5"


async def test_a_client_resumes_at_its_cursor(site: GatewayProcess, cwd: Path) -> None:
    meta = {"acp_gateway": {"cursor": True}}
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            watch = await stack.enter_async_context(ws_client(site.ws_url, meta=meta))
            session_id = await watch.new(cwd)
            opened = next(m for m in watch.messages if "sessionId" in (m.get("result") or {}))
            epoch = opened["result"]["_meta"]["acp_gateway"]["epoch"]
            await watch.begin(session_id, "/sleep 1.5")
            await watch.until(lambda: watch.text(session_id).count("tick") >= 3)
            watch.cut()
            await watch.until(lambda: watch.closed)
            last = watch.of(session_id, "_acp_gateway/cursor")[-1]["lastEventId"]
            seen = watch.text(session_id)
            back = await stack.enter_async_context(ws_client(site.ws_url, meta=meta))
            where = {"acp_gateway": {"lastEventId": last, "epoch": epoch}}
            result = await back.load(cwd, session_id, _meta=where)
            assert result["_meta"]["acp_gateway"]["resumed"] is True
            await end_of_turns(back, session_id, 1)
            text = seen + back.text(session_id)
            assert text.startswith("tick ") and text.endswith("slept 1.5 s")
            assert back.text(session_id, "user_message_chunk") == "", "history was doubled"
            whole = await connect(stack, site, "ws")
            await whole.load(cwd, session_id)
            assert text == whole.text(session_id)


@pytest.mark.parametrize("kind", ["ws", "http"])
async def test_a_question_waits_for_whoever_comes_back(
    site: GatewayProcess, cwd: Path, kind: str
) -> None:
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            gone = await connect(stack, site, kind)
            session_id = await gone.new(cwd)
            await gone.begin(session_id, "/write note.txt hello")
            await gone.until(gone.questions)
            gone.cut()  # type: ignore[attr-defined]
            back = await connect(stack, site, kind)
            await back.load(cwd, session_id)
            await back.permit()
            await end_of_turns(back, session_id, 1)
            assert (cwd / "note.txt").read_text() == "hello\n"
            late = await connect(stack, site, kind)
            await late.load(cwd, session_id)
            # Over HTTP the history follows the answer, on a stream of its own.
            await late.until(lambda: late.text(session_id) == back.text(session_id))
            assert not late.questions(), "a settled question was asked again"


async def test_first_answer_wins_and_the_other_is_told(site: GatewayProcess, cwd: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            ws = await connect(stack, site, "ws")
            http = await connect(stack, site, "http")
            session_id = await ws.new(cwd)
            await http.load(cwd, session_id)
            turn = await ws.begin(session_id, "/write note.txt hello")
            await ws.until(ws.questions)
            await http.permit(option="reject-once")
            copy = ws.questions()[0]["id"]
            await ws.until(
                lambda: [
                    m
                    for m in ws.messages
                    if m.get("method") == "$/cancel_request" and m["params"]["requestId"] == copy
                ]
            )
            await ws.permit()  # too late: it settles nothing and breaks nothing
            assert (await ws.answer(turn))["stopReason"] == "end_turn"
            assert not (cwd / "note.txt").exists()


async def test_cancel_of_one_is_seen_by_both(site: GatewayProcess, cwd: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            ws = await connect(stack, site, "ws")
            http = await connect(stack, site, "http")
            session_id = await http.new(cwd)
            await ws.load(cwd, session_id)
            turn = await http.begin(session_id, "/sleep 60")
            await ws.until(lambda: "tick" in ws.text(session_id))
            await ws.notify("session/cancel", {"sessionId": session_id})
            assert (await http.answer(turn))["stopReason"] == "cancelled"
            for client in (ws, http):
                await end_of_turns(client, session_id, 1)
                (end,) = client.notices(session_id, "turn_complete")
                assert end["stopReason"] == "cancelled"


async def test_a_prompt_attaches_to_a_live_session(site: GatewayProcess, cwd: Path) -> None:
    """A client that comes back may go on without load; it gets what is new."""
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            first = await connect(stack, site, "ws")
            session_id = await first.new(cwd)
            await first.say(session_id, "/chunks 3 20")
            second = await connect(stack, site, "ws")
            await second.say(session_id, "/chunks 2 30")
            await second.until(lambda: second.text(session_id).count("0000") >= 2)
            assert second.text(session_id).startswith("000000 ")
            assert len(second.text(session_id)) == 60, "it got the past as well"
            await end_of_turns(first, session_id, 2)
            assert len(first.text(session_id)) == 3 * 20 + 2 * 30


async def test_a_second_load_asks_an_open_question_once(site: GatewayProcess, cwd: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            ws = await connect(stack, site, "ws")
            session_id = await ws.new(cwd)
            await ws.begin(session_id, "/write note.txt hello")
            await ws.until(ws.questions)
            await ws.load(cwd, session_id)
            await ws.until(lambda: len(ws.questions()) == 2)
            old, new = (each["id"] for each in ws.questions())
            taken_back = [
                m["params"]["requestId"]
                for m in ws.messages
                if m.get("method") == "$/cancel_request"
            ]
            assert taken_back == [old]
            assert new not in taken_back


async def test_a_reload_in_mid_turn_keeps_the_answer_last(site: GatewayProcess, cwd: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            ws = await connect(stack, site, "ws")
            session_id = await ws.new(cwd)
            turn = await ws.begin(session_id, "/chunks 5000 200")
            await ws.load(cwd, session_id)
            await ws.answer(turn)
            at = next(i for i, m in enumerate(ws.messages) if m.get("id") == turn)
            after = [m for m in ws.messages[at + 1 :] if m.get("method") == "session/update"]
            assert not after, f"{len(after)} updates came behind the answer"
            assert ws.text(session_id).count("004999 ") >= 1


async def test_cancel_from_a_connection_that_did_not_load(site: GatewayProcess, cwd: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            first = await connect(stack, site, "ws")
            second = await connect(stack, site, "ws")
            session_id = await first.new(cwd)
            turn = await first.begin(session_id, "/sleep 60")
            await first.until(lambda: first.text(session_id))
            await second.notify("session/cancel", {"sessionId": session_id})
            assert (await first.answer(turn))["stopReason"] == "cancelled"
