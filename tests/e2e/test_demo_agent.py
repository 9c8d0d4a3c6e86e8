"""The demo agent driven by the official Python SDK over stdio, as an editor would."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import acp
from acp import schema

DEADLINE = 30.0


class Client(acp.Client):
    """Keeps what it is told and answers permission requests by ``choose``."""

    def __init__(self, choose: str | None = "allow-once") -> None:
        self.choose = choose
        self.updates: list[tuple[str, Any]] = []
        self.questions: list[Any] = []
        self.asked = asyncio.Event()
        self.seen = asyncio.Condition()
        self.files: dict[str, str] = {}

    async def session_update(self, session_id: str, update: Any, **kwargs: Any) -> None:
        async with self.seen:
            self.updates.append((session_id, update))
            self.seen.notify_all()

    async def request_permission(
        self, session_id: str, tool_call: Any, options: Any, **kwargs: Any
    ) -> schema.RequestPermissionResponse:
        self.questions.append((tool_call, options))
        self.asked.set()
        if self.choose is None:
            await asyncio.Event().wait()
        return schema.RequestPermissionResponse(
            outcome=schema.AllowedOutcome(outcome="selected", option_id=str(self.choose))
        )

    async def write_text_file(
        self, session_id: str, path: str, content: str, **kwargs: Any
    ) -> schema.WriteTextFileResponse:
        self.files[path] = content
        return schema.WriteTextFileResponse()

    async def read_text_file(
        self, session_id: str, path: str, **kwargs: Any
    ) -> schema.ReadTextFileResponse:
        return schema.ReadTextFileResponse(content=self.files[path])

    def of(self, session_id: str, kind: str) -> list[Any]:
        return [u for s, u in self.updates if s == session_id and u.session_update == kind]

    def text(self, session_id: str, kind: str = "agent_message_chunk") -> str:
        return "".join(u.content.text for u in self.of(session_id, kind))

    async def wait_for_text(self, session_id: str, part: str) -> None:
        async with self.seen:
            await self.seen.wait_for(lambda: part in self.text(session_id))


@asynccontextmanager
async def agent(home: Path, client: Client, *, fs: bool = False) -> AsyncIterator[Any]:
    """A connected and initialized demo agent process."""
    env = {"ACP_DEMO_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = (sys.executable, "-m", "acp_gateway.demo_agent")
    async with acp.spawn_agent_process(client, *command, env=env) as (connection, process):
        capabilities = schema.ClientCapabilities(
            fs=schema.FileSystemCapabilities(read_text_file=fs, write_text_file=fs)
        )
        answer = await connection.initialize(1, capabilities)
        assert answer.protocol_version == 1
        assert answer.agent_info is not None
        assert answer.agent_info.name == "acp-gateway-demo"
        yield connection
    assert process.returncode == 0


async def say(connection: Any, session_id: str, words: str) -> str:
    """Prompts with text; gives the stop reason."""
    prompt = [acp.text_block(words)]
    answer = await connection.prompt(session_id=session_id, prompt=prompt)
    return str(answer.stop_reason)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), DEADLINE)

    asyncio.run(bounded())


def test_a_turn_streams_asks_writes_and_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client()
        async with agent(tmp_path / "home", client) as connection:
            session = await connection.new_session(str(tmp_path))
            assert session.modes is not None
            assert [m.name for m in session.modes.available_modes] == ["Ask", "Auto", "Plan"]
            assert session.config_options is not None
            assert [o.id for o in session.config_options] == ["mode", "model"]
            sid = session.session_id
            assert await say(connection, sid, "hello demo") == "end_turn"
            assert (tmp_path / "acp-demo.txt").read_text() == "hello demo\n"
            assert "You wrote: hello demo" in client.text(sid)
            assert len(client.of(sid, "agent_message_chunk")) > 4
            assert client.of(sid, "agent_thought_chunk")
            plans = [[e.status for e in u.entries] for u in client.of(sid, "plan")]
            assert plans[0] == ["in_progress", "pending", "pending"]
            assert plans[-1] == ["completed"] * 3
            (start,) = client.of(sid, "tool_call")
            steps = client.of(sid, "tool_call_update")
            assert start.status == "pending"
            assert [s.status for s in steps] == ["in_progress", "completed"]
            assert steps[-1].content[0].new_text == "hello demo\n"
            (question,) = client.questions
            assert question[0].tool_call_id == start.tool_call_id
            kinds = {o.option_id: o.kind for o in question[1]}
            assert kinds == {
                "allow-once": "allow_once",
                "allow-always": "allow_always",
                "reject-once": "reject_once",
            }
            assert client.of(sid, "usage_update")
            assert client.of(sid, "available_commands_update")

    run(scenario)


def test_a_rejected_write_leaves_no_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client("reject-once")
        async with agent(tmp_path / "home", client) as connection:
            sid = (await connection.new_session(str(tmp_path))).session_id
            assert await say(connection, sid, "hello") == "end_turn"
            assert not (tmp_path / "acp-demo.txt").exists()
            assert [u.status for u in client.of(sid, "tool_call_update")] == ["failed"]
            assert "said no" in client.text(sid)

    run(scenario)


def test_allow_always_and_modes_decide_whether_it_asks(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client("allow-always")
        async with agent(tmp_path / "home", client) as connection:
            first = (await connection.new_session(str(tmp_path))).session_id
            await say(connection, first, "one")
            await say(connection, first, "two")
            assert len(client.questions) == 1
            second = (await connection.new_session(str(tmp_path))).session_id
            await say(connection, second, "three")
            assert len(client.questions) == 2, "a standing permission is one session's"

            third = (await connection.new_session(str(tmp_path))).session_id
            await connection.set_session_mode(session_id=third, mode_id="auto")
            (mode,) = client.of(third, "current_mode_update")
            (options,) = client.of(third, "config_option_update")
            assert mode.current_mode_id == "auto"
            assert options.config_options[0].current_value == "auto"
            await say(connection, third, "/write by-auto.txt words")
            assert (tmp_path / "by-auto.txt").read_text() == "words\n"
            complete = await connection.set_config_option(
                config_id="mode", session_id=third, value="plan"
            )
            assert [o.id for o in complete.config_options] == ["mode", "model"]
            await say(connection, third, "/write by-plan.txt words")
            assert not (tmp_path / "by-plan.txt").exists()
            assert len(client.questions) == 2

    run(scenario)


def test_cancel_ends_a_sleep_and_an_open_question(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client(choose=None)
        async with agent(tmp_path / "home", client) as connection:
            sid = (await connection.new_session(str(tmp_path))).session_id
            turn = asyncio.create_task(say(connection, sid, "/sleep 600"))
            await client.wait_for_text(sid, "tick tick")
            await connection.cancel(sid)
            assert await turn == "cancelled"

            turn = asyncio.create_task(say(connection, sid, "write"))
            await client.asked.wait()
            await connection.cancel(sid)
            assert await turn == "cancelled"
            assert [u.status for u in client.of(sid, "tool_call_update")] == ["failed"]
            assert not (tmp_path / "acp-demo.txt").exists()
            assert await say(connection, sid, "/help") == "end_turn"

    run(scenario)


def test_two_sessions_interleave(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client()
        async with agent(tmp_path / "home", client) as connection:
            slow = (await connection.new_session(str(tmp_path))).session_id
            quick = (await connection.new_session(str(tmp_path))).session_id
            turn = asyncio.create_task(say(connection, slow, "/sleep 600"))
            await client.wait_for_text(slow, "tick")
            assert await say(connection, quick, "/chunks 500 50") == "end_turn"
            texts = [u.content.text for u in client.of(quick, "agent_message_chunk")]
            assert [t[:7] for t in texts] == [f"{n:06d} " for n in range(500)]
            assert {len(t) for t in texts} == {50}
            assert not turn.done()
            await connection.close_session(slow)
            assert await turn == "cancelled"

    run(scenario)


def test_a_new_process_lists_and_loads_the_session(tmp_path: Path) -> None:
    async def scenario() -> None:
        home, work, other = tmp_path / "home", tmp_path / "work", tmp_path / "other"
        work.mkdir()
        other.mkdir()
        before = Client()
        async with agent(home, before) as connection:
            sid = (await connection.new_session(str(work))).session_id
            await say(connection, sid, "remember me")
            await connection.set_session_mode(session_id=sid, mode_id="auto")
            await connection.new_session(str(other))

        after = Client()
        async with agent(home, after) as connection:
            listed = (await connection.list_sessions(cwd=str(work))).sessions
            assert [(s.session_id, s.title) for s in listed] == [(sid, "remember me")]
            assert len((await connection.list_sessions()).sessions) == 2
            loaded = await connection.load_session(cwd=str(work), session_id=sid)
            assert loaded.modes is not None
            assert loaded.modes.current_mode_id == "auto"
            for kind in ("agent_message_chunk", "agent_thought_chunk"):
                assert after.text(sid, kind) == before.text(sid, kind) != ""
            assert after.text(sid, "user_message_chunk") == "remember me"
            assert [u.status for u in after.of(sid, "tool_call_update")] == [
                "in_progress",
                "completed",
            ]
            fork = (await connection.fork_session(session_id=sid, cwd=str(work))).session_id
            assert fork != sid
            await connection.load_session(cwd=str(work), session_id=fork)
            assert after.text(fork) == before.text(sid)
            count = len(after.updates)
            await connection.resume_session(session_id=sid, cwd=str(work))
            assert {u.session_update for _, u in after.updates[count:]} <= {
                "available_commands_update"
            }

    run(scenario)


def test_directories_servers_and_files_are_passed_through(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client()
        more = tmp_path / "more"
        more.mkdir()
        async with agent(tmp_path / "home", client, fs=True) as connection:
            server = schema.McpServerStdio(name="clock", command="clock", args=[], env=[])
            new = await connection.new_session(
                str(tmp_path), additional_directories=[str(more)], mcp_servers=[server]
            )
            sid = new.session_id
            await say(connection, sid, "/session")
            facts = json.loads(client.text(sid))
            assert facts["roots"] == [str(tmp_path), str(more)]
            assert facts["mcpServers"] == ["clock"]

            await say(connection, sid, "/write note.txt by the client")
            path = str(tmp_path / "note.txt")
            assert client.files == {path: "by the client\n"}
            assert "note.txt" not in os.listdir(tmp_path)
            await say(connection, sid, "/read note.txt")
            assert client.text(sid).endswith("by the client\n")

            data = base64.b64encode(b"12345").decode()
            await connection.prompt(session_id=sid, prompt=[acp.image_block(data, "image/png")])
            assert client.text(sid).endswith("I got image without a name (image/png, 5 bytes).\n")

    run(scenario)
