"""Drives an ACP endpoint with the Python SDK and prints one JSON report line on stdout.

    python py_client.py --transport ws|http --url URL --cwd DIR --scenario NAME
                        [--token T] [--prompts JSON] [--timeout SECONDS]
    python py_client.py --transport stdio --command 'COMMAND ARGS' --cwd DIR --scenario NAME

ts_client.mjs runs the same scenarios with the TypeScript SDK; its head has the report's shape.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import re
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import acp
from acp.connection import StreamDirection, StreamEvent
from acp.schema import (
    AllowedOutcome,
    ClientCapabilities,
    Implementation,
    RequestPermissionResponse,
)

# The words for the demo agent; --prompts replaces them for other agents.
PROMPTS: dict[str, Any] = {
    "text": "please write the file",
    "permission": "please write the file",
    "file": "acp-demo.txt",
    "slow": "/sleep 30",
    "chunks": "/chunks {n} 200",
    "big": "/size {n}",
    "big_echo": r"\((\d+) characters\)",
    "burst": [1, 10, 100, 1000, 5000],
}

Update = dict[str, Any]


def text_of(updates: list[Update], kind: str = "agent_message_chunk") -> str:
    return "".join(
        u["content"]["text"]
        for u in updates
        if u["sessionUpdate"] == kind and u["content"].get("type") == "text"
    )


def numbers_in(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"(?<!\d)(\d{6}) ", text)]


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    # What is waited for happens inside the SDK, which has no event for it.
    while not condition() and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return condition()


class Peer:
    """One connection, with everything that came over it."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.wire: list[tuple[str, Any]] = []
        self.by_session: dict[str, list[Update]] = {}
        self.handled: dict[str, int] = {}
        self.permissions: list[dict[str, Any]] = []
        self.sent: set[Any] = set()
        self.strays: list[Any] = []
        self.initialized: Any = None
        self.agent: Any = None

    # What the SDK calls.

    async def request_permission(
        self, session_id: str, tool_call: Any, options: list[Any], **_: Any
    ) -> RequestPermissionResponse:
        self.permissions.append({"sessionId": session_id, "toolCallId": tool_call.tool_call_id})
        wanted = "reject" if self.policy == "reject" else "allow"
        option = next(
            (o for o in options if o.kind == f"{wanted}_once"),
            next(o for o in options if o.kind.startswith(wanted)),
        )
        outcome = AllowedOutcome(outcome="selected", option_id=option.option_id)
        return RequestPermissionResponse(outcome=outcome)

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        self.handled[session_id] = self.handled.get(session_id, 0) + 1

    def observe(self, event: StreamEvent) -> None:
        message = event.message
        if event.direction is StreamDirection.OUTGOING:
            self.wire.append((">", message))
            return
        self.wire.append(("<", message))
        if message.get("method") == "session/update":
            self.updates(message["params"]["sessionId"]).append(message["params"]["update"])
        elif "method" not in message:
            # The SDK numbers its requests from 0 and has one answer to each.
            if not isinstance(message.get("id"), int) or message["id"] in self.sent:
                self.strays.append(message)
            self.sent.add(message.get("id"))

    # What the scenarios use.

    def updates(self, session_id: str) -> list[Update]:
        return self.by_session.setdefault(session_id, [])

    async def all_handled(self, session_id: str) -> bool:
        """Whether the SDK took every update of the session that came over the wire."""
        return await until(
            lambda: self.handled.get(session_id, 0) == len(self.updates(session_id)), 5
        )


class Run:
    """One scenario: the options, the checks so far, the connections."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.prompts = {**PROMPTS, **json.loads(options.prompts)}
        self.cwd: str = options.cwd
        self.checks: list[dict[str, Any]] = []
        self.peers: list[Peer] = []

    def check(self, name: str, ok: object, detail: object = "") -> None:
        self.checks.append({"name": name, "ok": bool(ok), "detail": str(detail)[:500]})

    def check_range(self, name: str, updates: list[Update], count: int) -> None:
        numbers = numbers_in(text_of(updates))
        detail = f"{len(numbers)} numbers, first {numbers[:5]}"
        self.check(name, numbers == list(range(count)), detail)

    def check_end(self, name: str, answer: Any, *reasons: str) -> None:
        self.check(name, answer.stop_reason in (reasons or ("end_turn",)), answer.stop_reason)

    def words(self, key: str, n: int = 0) -> str:
        return str(self.prompts[key]).replace("{cwd}", self.cwd).replace("{n}", str(n))

    @asynccontextmanager
    async def open(self, policy: str = "allow") -> AsyncIterator[Peer]:
        """A connected and initialized peer; leaving the block closes the connection."""
        peer: Any = Peer(policy)  # it answers only what agents here ask of a client
        self.peers.append(peer)
        token = self.options.token
        headers = {"Authorization": f"Bearer {token}"} if token else None
        async with AsyncExitStack() as stack:
            if self.options.transport == "stdio":
                command = shlex.split(self.options.command)
                peer.agent, _ = await stack.enter_async_context(
                    acp.spawn_agent_process(
                        peer,
                        *command,
                        env=dict(os.environ),
                        cwd=self.cwd,
                        transport_kwargs={"limit": 50 * 1024 * 1024, "stderr": None},
                        observers=[peer.observe],
                    )
                )
            else:
                if self.options.transport == "ws":
                    from acp.ws import create_websocket_stream

                    stream = await create_websocket_stream(self.options.url, headers=headers)
                else:
                    from acp.http import create_http_stream

                    stream = create_http_stream(self.options.url, headers=headers)
                peer.agent = acp.connect_to_agent(peer, stream, observers=[peer.observe])
                stack.push_async_callback(peer.agent.close)
            async with asyncio.timeout(30):
                peer.initialized = await peer.agent.initialize(
                    protocol_version=1,
                    client_capabilities=ClientCapabilities(),
                    client_info=Implementation(name="py-client", version="1"),
                )
            yield peer

    async def new_session(self, peer: Peer) -> Any:
        async with asyncio.timeout(60):
            return await peer.agent.new_session(cwd=self.cwd, mcp_servers=[])

    async def prompt(self, peer: Peer, session_id: str, text: str) -> tuple[Any, list[Update]]:
        """The answer, and the updates that were there when it came."""
        before = len(peer.updates(session_id))
        async with asyncio.timeout(self.options.timeout):
            answer = await peer.agent.prompt(session_id=session_id, prompt=[acp.text_block(text)])
        return answer, peer.updates(session_id)[before:]


async def basic(run: Run) -> None:
    async with run.open() as peer:
        init = peer.initialized
        run.check("protocol version", init.protocol_version == 1, init.protocol_version)
        run.check("agentInfo", init.agent_info and init.agent_info.name, init.agent_info)
        run.check("loadSession", init.agent_capabilities.load_session)
        session = await run.new_session(peer)
        run.check("session id", session.session_id, session.session_id)
        modes = session.modes.available_modes if session.modes else []
        run.check("modes have names", all(m.id and m.name for m in modes), modes)
        answer, updates = await run.prompt(peer, session.session_id, run.words("text"))
        run.check_end("stop reason", answer)
        run.check("answer text", text_of(updates), text_of(updates)[:200])
        ids = list(peer.by_session)
        run.check("updates of this session only", ids == [session.session_id], ids)
        handled = await peer.all_handled(session.session_id)
        run.check("updates handled", handled, f"{len(updates)} in the turn")
        run.check("no stray responses", not peer.strays, peer.strays)


async def permission(run: Run, policy: str, *reasons: str) -> None:
    file = os.path.join(run.cwd, run.prompts["file"])
    with contextlib.suppress(FileNotFoundError):
        os.remove(file)
    async with run.open(policy) as peer:
        session_id = (await run.new_session(peer)).session_id
        answer, _ = await run.prompt(peer, session_id, run.words("permission"))
        run.check("asked once", len(peer.permissions) == 1, f"{len(peer.permissions)} requests")
        asked = peer.permissions[0] if peer.permissions else {}
        run.check("asked for this session", asked.get("sessionId") == session_id, asked)
        run.check("names a tool call", asked.get("toolCallId"), asked)
        run.check_end("stop reason", answer, *reasons)
        exists = os.access(file, os.F_OK)
        run.check("file", exists == (policy == "allow"), f"{file} exists: {exists}")
        run.check("updates handled", await peer.all_handled(session_id))


async def cancel(run: Run) -> None:
    async with run.open() as peer:
        session_id = (await run.new_session(peer)).session_id
        before = len(peer.updates(session_id))
        turn = asyncio.create_task(run.prompt(peer, session_id, run.words("slow")))
        # Cancel inside the turn: once it has said something, else after a while.
        await until(lambda: bool(text_of(peer.updates(session_id)[before:])), 5)
        asked = time.monotonic()
        await peer.agent.cancel(session_id=session_id)
        async with asyncio.timeout(15):
            answer, _ = await turn
        took = time.monotonic() - asked
        run.check_end("stop reason", answer, "cancelled")
        run.check("prompt end", took < 12, f"{took:.3f} s")
        answer, updates = await run.prompt(peer, session_id, run.words("chunks", 3))
        run.check_end("next turn", answer)
        run.check_range("next turn is whole", updates, 3)


async def interleave(run: Run) -> None:
    sizes = [200, 300]
    async with run.open() as peer:
        ids = [(await run.new_session(peer)).session_id for _ in sizes]
        run.check("two sessions", ids[0] != ids[1], ids)
        turns = await asyncio.gather(
            *(
                run.prompt(peer, session_id, run.words("chunks", size))
                for session_id, size in zip(ids, sizes, strict=True)
            )
        )
        for i, (answer, updates) in enumerate(turns):
            run.check_end(f"session {i} ended", answer)
            run.check_range(f"session {i} is whole", updates, sizes[i])
        run.check("no foreign session", set(peer.by_session) <= set(ids), list(peer.by_session))


async def big(run: Run) -> None:
    size = 3_000_000
    async with run.open() as peer:
        session_id = (await run.new_session(peer)).session_id
        text = run.words("text") + "\n" + "lorem ipsum dolor sit amet. " * (size // 28 + 1)
        answer, updates = await run.prompt(peer, session_id, text)
        run.check_end("3 MB out", answer)
        if run.prompts["big_echo"]:
            found = re.search(run.prompts["big_echo"], text_of(updates))
            echoed = int(found[1]) if found else 0
            run.check("arrived whole", echoed >= size, f"{echoed} of {len(text)}")
        session_id = (await run.new_session(peer)).session_id
        answer, updates = await run.prompt(peer, session_id, run.words("big", size))
        got = len(text_of(updates))
        run.check("3 MB in", size <= got < size + 2000, f"{got} characters")
        run.check_end("answer", answer)
        run.check("updates handled", await peer.all_handled(session_id))


async def reload(run: Run) -> None:
    text = run.words("chunks", 5)
    async with run.open() as peer:
        session_id = (await run.new_session(peer)).session_id
        answer, _ = await run.prompt(peer, session_id, text)
        run.check_end("first turn", answer)
    async with run.open() as peer:
        async with asyncio.timeout(60):
            await peer.agent.load_session(cwd=run.cwd, session_id=session_id, mcp_servers=[])
        if run.options.transport == "http":
            # Answer and history come on two streams, so only their arrival can be asked for.
            await until(lambda: len(numbers_in(text_of(peer.updates(session_id)))) >= 5, 10)
        history = list(peer.updates(session_id))
        kinds = [u["sessionUpdate"] for u in history]
        user_text = text_of(history, "user_message_chunk")
        run.check("history has the prompt", text in user_text, kinds)
        run.check_range("history has the answer", history, 5)
        order = [
            kinds.index(k) for k in ("user_message_chunk", "agent_message_chunk") if k in kinds
        ]
        run.check("prompt before answer", len(order) == 2 and order == sorted(order), kinds)
        answer, updates = await run.prompt(peer, session_id, run.words("chunks", 7))
        run.check_end("next turn", answer)
        run.check_range("next turn is whole", updates, 7)
        run.check("updates handled", await peer.all_handled(session_id))


async def close(run: Run) -> None:
    async with run.open() as peer:
        session_id = (await run.new_session(peer)).session_id
        await run.prompt(peer, session_id, run.words("chunks", 3))
        async with asyncio.timeout(20):
            await peer.agent.close_session(session_id=session_id)
        run.check("closed", True)
        try:
            late, _ = await run.prompt(peer, session_id, run.words("chunks", 3))
            run.check("later prompt fails", False, late)
        except acp.RequestError as error:
            run.check("later prompt fails", True, f"{error.code} {error}")
        other = await run.new_session(peer)
        run.check("connection lives on", other.session_id != session_id, other.session_id)


async def burst(run: Run) -> None:
    async with run.open() as peer:
        session_id = (await run.new_session(peer)).session_id
        for n in run.prompts["burst"]:
            answer, updates = await run.prompt(peer, session_id, run.words("chunks", n))
            run.check_end(f"{n} ended", answer)
            run.check_range(f"{n} before the answer", updates, n)
        run.check("updates handled", await peer.all_handled(session_id))


async def list_sessions(run: Run) -> None:
    async with run.open() as peer:
        session_id = (await run.new_session(peer)).session_id
        await run.prompt(peer, session_id, run.words("chunks", 3))
        listed: list[Any] = []
        cursor = None
        while True:
            async with asyncio.timeout(20):
                page = await peer.agent.list_sessions(cwd=run.cwd, cursor=cursor)
            listed += page.sessions
            if not (cursor := page.next_cursor):
                break
        mine = [s for s in listed if s.session_id == session_id]
        run.check("listed once", len(mine) == 1, f"{len(mine)} of {len(listed)}")
        run.check("right cwd", mine and mine[0].cwd == run.cwd, [s.cwd for s in mine])
        run.check("only this cwd", all(s.cwd == run.cwd for s in listed))


SCENARIOS: dict[str, Callable[[Run], Awaitable[None]]] = {
    "basic": basic,
    "permission-allow": lambda run: permission(run, "allow", "end_turn"),
    "permission-reject": lambda run: permission(run, "reject", "end_turn", "cancelled"),
    "cancel": cancel,
    "interleave": interleave,
    "big": big,
    "reload": reload,
    "close": close,
    "burst": burst,
    "list": list_sessions,
}


async def main() -> int:
    parser = argparse.ArgumentParser(description="Drive an ACP endpoint with the Python SDK.")
    parser.add_argument("--transport", choices=["ws", "http", "stdio"], default="ws")
    parser.add_argument("--url", help="the endpoint (ws, http)")
    parser.add_argument("--command", help="the agent's command line (stdio)")
    parser.add_argument("--token")
    parser.add_argument("--cwd", required=True)
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="basic")
    parser.add_argument("--prompts", default="{}")
    parser.add_argument("--timeout", type=float, default=60)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    run = Run(options)
    started = time.monotonic()
    report: dict[str, Any] = {"client": "py", "transport": options.transport}
    report |= {"scenario": options.scenario, "ok": False}
    try:
        async with asyncio.timeout(options.timeout * 2):
            await SCENARIOS[options.scenario](run)
    except Exception as error:
        data = getattr(error, "data", None)
        code = getattr(error, "code", "")
        name = type(error).__name__
        report["error"] = f"{name} {code} {error} {data if data is not None else ''}".strip()
    report["seconds"] = round(time.monotonic() - started, 3)
    report["checks"] = run.checks
    report["ok"] = "error" not in report and bool(run.checks) and all(c["ok"] for c in run.checks)
    if not report["ok"]:
        report["wire"] = [
            [way + json.dumps(message)[:400] for way, message in peer.wire[-25:]]
            for peer in run.peers
        ]
    print(json.dumps(report), flush=True)
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(asyncio.run(main()))
