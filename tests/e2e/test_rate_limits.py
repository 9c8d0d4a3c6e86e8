"""One bucket for each tier and caller, over REST and both transports of ``/acp``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from gateway_process import GatewayProcess
from support.acp_clients import INITIALIZE, AcpClient, RpcError, http_client, ws_client
from support.processes import gateway, workspace_of

DEADLINE = 30.0
HEADERS = ("retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")


@contextmanager
def limited(base: Path, *flags: str, **limits: int) -> Iterator[GatewayProcess]:
    """A window of a day: nothing comes back within a test."""
    given = [
        f"--rate-limit-{name}={limits.get(name, 1000)}" for name in ("prompt", "mutation", "read")
    ]
    with gateway(base, "--rate-limit", "--rate-limit-window", "86400", *given, *flags) as site:
        yield site


def rest(site: GatewayProcess) -> httpx2.Client:
    return httpx2.Client(base_url=site.url, trust_env=False, timeout=DEADLINE)


def refused(answer: httpx2.Response, tier: str, limit: int) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert answer.status_code == 429
    assert set(body) == {"error", "code", "tier", "retryAfterMs"}
    assert body["code"] == "rate_limit_exceeded" and body["tier"] == tier
    wait = int(answer.headers["retry-after"])
    assert 0 <= wait * 1000 - body["retryAfterMs"] < 1000
    assert answer.headers["x-ratelimit-limit"] == str(limit)
    assert answer.headers["x-ratelimit-remaining"] == "0"
    assert abs(int(answer.headers["x-ratelimit-reset"]) - time.time() - wait) < 3
    return body


async def refused_rpc(client: AcpClient, method: str, params: Any, tier: str) -> None:
    with pytest.raises(RpcError) as caught:
        await client.request(method, params)
    error = caught.value.error
    assert error["code"] == -32603 and error["message"] == "Rate limit exceeded"
    data = error["data"]
    assert data["errorKind"] == "rate_limit_exceeded" and data["tier"] == tier
    assert data["httpStatus"] == 429 and data["retryAfterMs"] > 0


async def test_prompts_share_a_bucket(tmp_path: Path) -> None:
    with limited(tmp_path, prompt=3) as site, rest(site) as http, trio.fail_after(DEADLINE):
        cwd = workspace_of(tmp_path)
        async with ws_client(site.ws_url) as ws, http_client(site.http_url) as acp:
            session_id = await ws.new(cwd)
            await acp.load(cwd, session_id)
            # One each.
            assert (await ws.say(session_id, "/chunks 2 10"))["stopReason"] == "end_turn"
            assert (await acp.say(session_id, "/chunks 2 10"))["stopReason"] == "end_turn"
            body = {"prompt": [{"type": "text", "text": "/chunks 2 10"}]}
            path = f"/session/{session_id}/prompt"
            accepted = http.post(path, json=body)
            assert accepted.status_code == 202
            assert not [name for name in HEADERS if name in accepted.headers]
            # And then none, wherever one asks.
            refused(http.post(path, json=body), "prompt", 3)
            prompt = {"sessionId": session_id, "prompt": body["prompt"]}
            await refused_rpc(ws, "session/prompt", prompt, "prompt")
            await refused_rpc(acp, "session/prompt", prompt, "prompt")
            # Nobody saw what was refused, and other tiers go on.
            assert http.get(f"/session/{session_id}/pending-prompts").status_code == 200
            assert await ws.request("session/list", {})
            # To stop something is free.
            await ws.notify("session/cancel", {"sessionId": session_id})
            status = http.get("/daemon/status").json()
            assert status["runtime"]["rateLimit"]["rejectedSinceStart"] == {
                "prompt": 3,
                "mutation": 0,
                "read": 0,
            }
            assert "rate_limit" in http.get("/capabilities").json()["features"]


async def test_mutations_and_reads(tmp_path: Path) -> None:
    with (
        limited(tmp_path, mutation=3, read=4) as site,
        rest(site) as http,
        trio.fail_after(DEADLINE),
    ):
        cwd = str(workspace_of(tmp_path))
        async with ws_client(site.ws_url) as ws, http_client(site.http_url) as acp:
            new = {"cwd": cwd, "mcpServers": []}
            session_id = (await ws.request("session/new", new))["sessionId"]
            assert http.post("/session", json={"cwd": cwd, "sessionScope": "thread"}).is_success
            await acp.follow(session_id)
            await acp.request("session/load", {**new, "sessionId": session_id})
            refused(http.post("/session", json={"cwd": cwd}), "mutation", 3)
            refused(http.delete(f"/session/{session_id}"), "mutation", 3)
            await refused_rpc(ws, "session/new", new, "mutation")
            await refused_rpc(acp, "session/new", new, "mutation")
            await refused_rpc(ws, "_qwen/session/update_metadata", {}, "mutation")
            # What is free stays so.
            heartbeat = f"/session/{session_id}/heartbeat"
            for _ in range(10):
                assert http.post(heartbeat, json={}).status_code != 429
                assert http.get("/health").status_code == 200
                assert http.options("/session").status_code != 429
                assert http.get("/demo").status_code == 200
            assert await ws.request("_qwen/session/heartbeat", {"sessionId": session_id})
            # Reads have a bucket of their own.
            assert await ws.request("session/list", {})
            assert await acp.request("_qwen/session/context", {"sessionId": session_id})
            for path in ("/capabilities", "/nothing"):
                assert http.get(path).status_code != 429
            for path in ("/capabilities", "/nothing", "/status"):
                refused(http.get(path), "read", 4)
            await refused_rpc(ws, "session/list", {}, "read")
            # An event stream can be opened all the same.
            with http.stream("GET", f"/session/{session_id}/events") as stream:
                assert stream.status_code == 200
            # The connections live on.
            assert ws.closed is None and acp.closed is None


async def test_a_client_id_is_no_other_caller(tmp_path: Path) -> None:
    with limited(tmp_path, read=1) as site, rest(site) as http:
        assert http.get("/capabilities", headers={"X-Qwen-Client-Id": "a"}).status_code == 200
        for number in range(5):
            headers = {"X-Qwen-Client-Id": f"c{number}", "X-Forwarded-For": f"1.2.3.{number}"}
            refused(http.get("/capabilities", headers=headers), "read", 1)


async def test_callers_behind_a_trusted_proxy(tmp_path: Path) -> None:
    with limited(tmp_path, "--trusted-proxy", "127.0.0.1", read=1) as site, rest(site) as http:

        def ask(forwarded: str) -> httpx2.Response:
            return http.get("/capabilities", headers={"X-Forwarded-For": forwarded})

        assert ask("203.0.113.1").status_code == 200
        assert ask("203.0.113.2").status_code == 200
        refused(ask("203.0.113.1"), "read", 1)
        # What the client put in front changes nothing.
        refused(ask("203.0.113.99, 203.0.113.2"), "read", 1)
        assert ask("nonsense").status_code == 200  # the proxy's own bucket
        refused(ask("other nonsense"), "read", 1)
        headers = [(b"X-Forwarded-For", b"203.0.113.1")]
        async with ws_client(site.ws_url, headers=headers) as ws:
            await refused_rpc(ws, "session/list", {}, "read")
        headers = [(b"X-Forwarded-For", b"203.0.113.5")]
        async with ws_client(site.ws_url, headers=headers) as ws:
            assert await ws.request("session/list", {})


async def test_qwens_client_gets_the_refusal_as_the_answer(tmp_path: Path) -> None:
    with limited(tmp_path, mutation=1) as site, rest(site) as http:

        def post(message: dict[str, Any], connection: str = "") -> httpx2.Response:
            headers = {"Acp-Connection-Id": connection} if connection else {}
            return http.post("/acp", json={"jsonrpc": "2.0", **message}, headers=headers)

        params = {**INITIALIZE, "clientInfo": {"name": "qwen-code-sdk", "version": "1"}}
        first = post({"id": 1, "method": "initialize", "params": params})
        connection = first.headers["acp-connection-id"]
        new = {"cwd": str(workspace_of(tmp_path)), "mcpServers": []}
        answer = post({"id": 2, "method": "session/new", "params": new}, connection)
        session_id = answer.json()["result"]["sessionId"]
        for method in ("session/new", "session/prompt"):
            params = {**new, "sessionId": session_id, "prompt": []}
            answer = post({"id": 3, "method": method, "params": params}, connection)
            if method == "session/new":
                assert answer.json()["error"]["data"]["tier"] == "mutation"
            else:
                assert "rate_limit" not in answer.text  # its tier is not used up


async def test_notifications_are_dropped(tmp_path: Path) -> None:
    with limited(tmp_path, mutation=1) as site, trio.fail_after(DEADLINE):
        async with ws_client(site.ws_url) as ws:
            session_id = await ws.new(workspace_of(tmp_path))
            for _ in range(3):
                await ws.notify("_some/thing", {"sessionId": session_id})
            await ws.request("session/list", {})
            with rest(site) as http:
                refusals = http.get("/daemon/status").json()["runtime"]["rateLimit"][
                    "rejectedSinceStart"
                ]
            assert refusals["mutation"] == 3


def test_without_the_flag_there_is_no_limit(tmp_path: Path) -> None:
    with gateway(tmp_path, rate_limit_read=1) as site, rest(site) as http:
        for _ in range(5):
            answer = http.get("/capabilities")
            assert answer.status_code == 200
            assert "rate_limit" not in answer.json()["features"]
        status = http.get("/daemon/status").json()
        assert status["runtime"]["rateLimit"]["enabled"] is False


def test_the_environment_turns_it_on_and_the_log_tells(tmp_path: Path) -> None:
    with gateway(tmp_path, rate_limit="1", rate_limit_read=2) as site, rest(site) as http:
        codes = [http.get("/capabilities").status_code for _ in range(130)]
        assert codes[:2] == [200, 200] and codes.count(429) >= 120
        told = [
            json.loads(line) for line in site.stderr_tail().splitlines() if '"rate_limited"' in line
        ]
        assert [line["suppressed"] for line in told] == [0, 98]
        assert {(line["tier"], line["caller"]) for line in told} == {("read", "127.0.0.1")}


def test_no_spelling_of_a_path_costs_less(tmp_path: Path) -> None:
    """The map of routes would take each of these for the same route."""
    with limited(tmp_path, prompt=1) as site, rest(site) as http:
        session_id = http.post("/session", json={"cwd": str(workspace_of(tmp_path))}).json()[
            "sessionId"
        ]
        body = {"prompt": [{"type": "text", "text": "/chunks 2 10"}]}
        path = f"/session/{session_id}/prompt"
        assert http.post(path, json=body).status_code == 202
        for spelt in ("/" + path, "//" + path, "/%2F" + path[1:], "/%2f/" + path[1:]):
            answer = http.post(f"{site.url}{spelt}", json=body)
            assert (answer.status_code, answer.json()["code"]) == (404, "route_not_found"), spelt
        refused(http.post(path.replace("prompt", "p%72ompt"), json=body), "prompt", 1)
        assert http.get(f"{site.url}//capabilities").status_code == 404
        assert http.post(f"{site.url}//acp", json={}).status_code == 404
