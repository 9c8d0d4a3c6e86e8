"""What ends with what: one agent, the gateway, all of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from gateway_process import GatewayProcess
from support.acp_clients import AcpClient, Gone, RpcError, http_client, ws_client
from support.processes import (
    descendants,
    eventually,
    gateway,
    running,
    scripted_command,
    status,
    workspace_of,
)

DEADLINE = 60.0


async def connect(stack: AsyncExitStack, site: GatewayProcess, kind: str) -> AcpClient:
    if kind == "ws":
        return await stack.enter_async_context(ws_client(site.ws_url))
    return await stack.enter_async_context(http_client(site.http_url))


async def facts(client: AcpClient, session_id: str) -> dict[str, Any]:
    """What the demo agent says of itself."""
    before = len(client.text(session_id))
    await client.say(session_id, "/session")
    found: dict[str, Any] = json.loads(client.text(session_id)[before:])
    return found


async def test_kill_of_one_agent_ends_only_its_session_s_turn(tmp_path: Path) -> None:
    with gateway(tmp_path) as site, trio.fail_after(DEADLINE):
        cwd = workspace_of(tmp_path)
        async with AsyncExitStack() as stack:
            ws = await connect(stack, site, "ws")
            http = await connect(stack, site, "http")
            hit, other = await ws.new(cwd), await ws.new(cwd)
            await http.load(cwd, hit)
            pid = (await facts(ws, hit))["pid"]
            assert pid != (await facts(ws, other))["pid"]
            turn = await ws.begin(hit, "/sleep 60")
            busy = await ws.begin(other, "/sleep 2")
            await http.until(lambda: "tick" in http.text(hit))
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(RpcError) as caught:
                await ws.answer(turn, 5)
            error = caught.value.error
            assert error["data"]["errorKind"] == "agent_exited"
            assert error["data"]["signal"] == "SIGKILL"
            for client in (ws, http):
                await client.until(lambda c=client: c.notices(hit, "session_died"), 5)
                (died,) = client.notices(hit, "session_died")
                assert died["errorKind"] == "agent_exited" and "SIGKILL" in died["message"]
                assert not client.notices(other, "session_died")
            # A new session works at once, and so does the one that was hit.
            began = time.monotonic()
            fresh = await http.new(cwd)
            assert (await http.say(fresh, "/chunks 3 10"))["stopReason"] == "end_turn"
            assert time.monotonic() - began < 5
            assert (await facts(ws, hit))["pid"] not in (pid, None)
            assert (await ws.answer(busy))["stopReason"] == "end_turn"


@pytest.mark.parametrize("isolation", ["session", "shared"])
async def test_kill_of_the_gateway_leaves_no_process(tmp_path: Path, isolation: str) -> None:
    agent = f"bad={scripted_command('forks-grandchild')}"
    args = ("--agent", "demo", "--agent", agent, "--isolation", isolation)
    with gateway(tmp_path, *args) as site, trio.fail_after(DEADLINE):
        cwd = workspace_of(tmp_path)
        async with AsyncExitStack() as stack:
            ws = await connect(stack, site, "ws")
            busy = await ws.new(cwd)
            await ws.begin(busy, "/sleep 60")
            bad = await stack.enter_async_context(
                ws_client(f"{site.url}/agents/bad/acp".replace("http", "ws"))
            )
            await bad.new(cwd)
            if isolation == "session":
                # Both spares are part of it.
                def spares() -> bool:
                    rows = status(site)["processes"]
                    return len(rows) == 4 and sum(row["spare"] for row in rows) == 2

                await trio.to_thread.run_sync(eventually, spares, 10)
                assert spares()
            family = descendants(site.process.pid)
            agents = {row["pid"] for row in status(site)["processes"]}
            assert agents <= family and len(family) > len(agents) + 1, "grandchildren, watchdog"
            os.kill(site.process.pid, signal.SIGKILL)
            died = time.monotonic()
            gone = await trio.to_thread.run_sync(
                eventually, lambda: not any(map(running, family)), 2.0
            )
            assert gone, f"alive after 2 s: {[pid for pid in family if running(pid)]}"
            assert time.monotonic() - died <= 2.1


async def test_kill_of_the_gateway_ends_agents_that_ignore_term(tmp_path: Path) -> None:
    with (
        gateway(tmp_path, "--agent", scripted_command("ignores-term")) as site,
        trio.fail_after(DEADLINE),
    ):
        async with ws_client(site.ws_url) as ws:
            await ws.new(workspace_of(tmp_path))
            family = descendants(site.process.pid)
            os.kill(site.process.pid, signal.SIGKILL)
            gone = await trio.to_thread.run_sync(
                eventually, lambda: not any(map(running, family)), 2.0
            )
            assert gone


def _exit_code(site: GatewayProcess, seconds: float) -> int | None:
    try:
        return site.process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


@pytest.mark.parametrize("agent", ["demo", "no-close"])
async def test_term_in_mid_turn(tmp_path: Path, agent: str) -> None:
    grace = 10.0
    command = "demo" if agent == "demo" else scripted_command("no-load")
    if agent == "no-close":
        command = scripted_command("hang-permission")  # ends its turn when it is answered
    with gateway(tmp_path, "--agent", command) as site, trio.fail_after(DEADLINE):
        cwd = workspace_of(tmp_path)
        async with AsyncExitStack() as stack:
            ws = await connect(stack, site, "ws")
            http = await connect(stack, site, "http")
            session_id = await ws.new(cwd)
            await http.load(cwd, session_id)
            if agent == "demo":
                turn = await ws.begin(session_id, "/sleep 60")
                await http.until(lambda: "tick" in http.text(session_id))
            else:
                turn = await ws.begin(session_id, "go")
                await http.until(http.questions)
            own = await http.new(cwd)
            if agent == "demo":
                http_turn = await http.begin(own, "/sleep 60")
                await http.until(lambda: "tick" in http.text(own))
            family = descendants(site.process.pid)
            began = time.monotonic()
            site.process.send_signal(signal.SIGTERM)
            assert (await ws.answer(turn))["stopReason"] == "cancelled"
            if agent == "demo":
                assert (await http.answer(http_turn))["stopReason"] == "cancelled"
            await ws.until(lambda: ws.closed)
            assert ws.closed is not None and ws.closed[0] == 1001
            for client in (ws, http):
                (told,) = client.notices(session_id, "session_died")
                assert told["reason"] == "daemon_shutdown"
            code = await trio.to_thread.run_sync(_exit_code, site, grace)
            assert code == 0, site.stderr_tail()
            assert time.monotonic() - began < grace
            assert not any(map(running, family))


@pytest.mark.parametrize("mode", ["hang-prompt", "ignores-term"])
async def test_term_with_agents_that_resist_keeps_the_grace(tmp_path: Path, mode: str) -> None:
    with (
        gateway(tmp_path, "--agent", scripted_command(mode), shutdown_grace=4) as site,
        trio.fail_after(DEADLINE),
    ):
        async with ws_client(site.ws_url) as ws:
            session_id = await ws.new(workspace_of(tmp_path))
            turn = await ws.begin(session_id, "go")
            await ws.until(lambda: ws.text(session_id))
            family = descendants(site.process.pid)
            site.process.send_signal(signal.SIGTERM)
            if mode == "hang-prompt":
                assert (await ws.answer(turn))["stopReason"] == "cancelled"
            code = await trio.to_thread.run_sync(_exit_code, site, 4 + 1)
            assert code == 0, site.stderr_tail()
            assert not any(map(running, family))


async def test_a_second_term_does_not_wait(tmp_path: Path) -> None:
    with (
        gateway(tmp_path, "--agent", scripted_command("ignores-term"), shutdown_grace=60) as site,
        trio.fail_after(DEADLINE),
    ):
        async with ws_client(site.ws_url) as ws:
            await ws.new(workspace_of(tmp_path))
            family = descendants(site.process.pid)
            site.process.send_signal(signal.SIGTERM)
            await ws.until(lambda: ws.closed)
            assert site.process.poll() is None, "the ladder was over too soon for this test"
            began = time.monotonic()
            site.process.send_signal(signal.SIGTERM)
            code = await trio.to_thread.run_sync(_exit_code, site, 10)
            assert code is not None
            assert time.monotonic() - began < 2.5
            assert not any(map(running, family))


async def test_a_draining_gateway_takes_nothing_new(tmp_path: Path) -> None:
    with (
        gateway(tmp_path, "--agent", scripted_command("ignores-term"), shutdown_grace=60) as site,
        trio.fail_after(DEADLINE),
    ):
        async with ws_client(site.ws_url) as ws:
            await ws.new(workspace_of(tmp_path))
            site.process.send_signal(signal.SIGTERM)
            try:
                while True:
                    await ws.request("session/list", {})
                    await ws.request("session/new", {"cwd": str(workspace_of(tmp_path))})
            except RpcError as exc:
                refusal = exc.error["data"]["errorKind"]
            except Gone:
                refusal = "shutting_down"  # it was told with the close
            assert refusal == "shutting_down"
            await ws.until(lambda: ws.closed)
            assert ws.closed is not None and ws.closed[0] == 1001
