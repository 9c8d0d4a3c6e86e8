"""``GET /metrics``, health and status over a live daemon: they tell what happened, and no more."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from gateway_process import ROOT
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_open_metrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse
from support.acp_clients import RpcError, ws_client
from support.processes import gateway, workspace_of
from test_event_stream import Client, client_of, raw_stream

from acp_gateway.protocol import schema_files as schemas

DEADLINE = 90.0

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpcore2:ResourceWarning")


class Figures:
    """One answer, by sample name and labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.kinds: dict[str, str] = {}
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in parse(text):
            assert family.documentation, family.name
            self.kinds[family.name] = family.type
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.samples, f"{key} is told twice"
                self.samples[key] = sample.value

    def __getitem__(self, name: str) -> float:
        return self.of(name)

    def of(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels."""
        found = [
            value
            for (each, given), value in self.samples.items()
            if each == f"acp_gateway_{name}" and labels.items() <= dict(given).items()
        ]
        assert found, f"no {name} {labels}"
        return sum(found)

    def rising(self) -> dict[Any, float]:
        """Samples that must never go down."""
        ends = ("_total", "_bucket", "_count", "_sum")
        return {key: value for key, value in self.samples.items() if key[0].endswith(ends)}


async def figures(client: Client) -> Figures:
    answer = await client.http.get(f"{client.site.url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Figures(answer.text)


async def until(what: Callable[[], Awaitable[Any]]) -> None:
    with trio.fail_after(30):
        while True:
            if await what():
                return
            await trio.sleep(0.05)


async def asked(client: Client, name: str, at_least: int = 1) -> bool:
    return (await figures(client))[name] >= at_least


async def ready(client: Client, status: str) -> bool:
    answer = await client.http.get(f"{client.site.url}/readyz")
    assert (answer.status_code == 200) == (answer.json() == {"status": "ready"})
    return bool(answer.json()["status"] == status)


async def settled(client: Client, session: str, text: str, vote: str | None = None) -> str:
    """Prompt, vote if asked, and wait for the end; its event."""
    answer = await client.prompt(session, text)
    ends = ("turn_complete", "turn_error")
    async with client.events(session, answer["lastEventId"]) as stream:
        if vote is not None:
            await stream.until(lambda: stream.has("permission_request"))
            (question,) = stream.of("permission_request")
            body = {"outcome": {"outcome": "selected", "optionId": vote}}
            path = f"/session/{session}/permission/{question['requestId']}"
            await client.ask("POST", path, body)
        await stream.until(lambda: any(each in stream.names for each in ends))
    return next(each for each in stream.names if each in ends)


async def test_what_happened_is_what_is_told(tmp_path: Path) -> None:
    """Two sessions, four turns: one is cancelled, one crashes its agent; a vote, an eviction."""
    with gateway(tmp_path, stall_timeout=0.5, evict_timeout=2) as site:
        async with client_of(site) as client:
            none = await figures(client)
            assert none["sessions"] == none["sessions_created_total"] == 0
            assert none["turns_total"] == none["evictions_total"] == 0
            first, second = await client.session(), await client.session()

            async with raw_stream(site, first, 0):  # nobody reads it
                assert await settled(client, first, "/chunks 7000 1000") == "turn_complete"
                await until(lambda: asked(client, "evictions_total"))
            told = await settled(client, first, "/write f.txt x", vote="allow-once")
            assert told == "turn_complete"
            answer = await client.prompt(second, "/sleep 60")
            async with client.events(second, answer["lastEventId"]) as stream:
                await stream.until(lambda: stream.has("session_update"))
                running = await figures(client)
                assert (running["turns_running"], running["turns_queued"]) == (1, 0)
                assert running.of("subscribers", transport="sse") == 1
                await client.ask("POST", f"/session/{second}/cancel", status=204)
                await stream.until(lambda: stream.has("turn_complete"))
            assert await settled(client, second, "/crash") == "turn_error"
            # The next prompt has it restored on a new process.
            await client.prompt(second, "/plan")
            await until(lambda: asked(client, "turns_total", 5))

            seen = await figures(client)
            status = await client.ask("GET", "/daemon/status?detail=full")
            assert (seen["sessions"], seen["sessions_created_total"]) == (2, 2)
            assert seen.of("sessions_created_total", agent="demo", how="new") == 2
            assert seen["sessions_ended_total"] == 0
            assert seen.of("turns_total", stop_reason="end_turn") == 3
            assert seen.of("turns_total", stop_reason="cancelled") == 1
            assert seen.of("turns_total", stop_reason="error") == 1
            assert seen["turns_total"] == seen["turn_duration_seconds_count"] == 5
            assert seen["turn_queue_wait_seconds_count"] == 5
            assert seen.of("turn_errors_total", kind="agent_exited") == 1
            assert seen["evictions_total"] == 1
            assert seen["permissions_asked_total"] == seen["permission_wait_seconds_count"] == 1
            settled_by = {"policy": "first-responder", "reason": "vote"}
            assert seen.of("permissions_settled_total", **settled_by) == 1
            assert seen.of("permission_votes_total", verdict="resolved") == 1
            assert seen["permissions_open"] == 0
            assert seen.of("agent_exits_total", reason="crashed") == 1
            assert seen["agent_exits_total"] == 1
            died = {"reason": "channel_closed", "recoverable": "true"}
            assert seen.of("sessions_died_total", **died) == 1
            assert seen["sessions_restored_total"] == 1
            assert seen["agent_processes"] == seen["agent_starts_total"] - 1
            states = [each["state"] for each in status["runtime"]["agents"]]
            assert states.count("leased") == seen.of("agent_processes", state="leased") == 2
            assert seen["agent_start_failures_total"] == 0

            # Every event is told once: those of the sessions, and the workspace's own.
            rows = status["full"]["sessions"]
            own = 2 + 1  # created, created, died
            assert seen["events_total"] == sum(row["lastEventId"] for row in rows) + own
            assert seen.of("events_total", kind="update") > 7000
            assert seen.of("events_total", kind="echo") == 5
            used = sum(row["usage"]["totalTokens"] for row in rows)
            assert used == status["runtime"]["usage"]["totalTokens"] > 0
            assert seen.of("tokens_total", type="output") == sum(
                row["usage"]["outputTokens"] for row in rows
            )
            assert seen.of("http_request_duration_seconds_count", route="/session") == 2
            prompts = {"route": "/session/{sessionId}/prompt", "method": "POST", "status": "2xx"}
            assert seen.of("http_request_duration_seconds_count", **prompts) == 5
            assert first not in seen.text and str(tmp_path) not in seen.text

            for session in (first, second):
                await client.ask("DELETE", f"/session/{session}", status=204)
            after = await figures(client)
            assert after["sessions"] == 0
            assert after.of("sessions_ended_total", agent="demo", reason="client_close") == 2
            fell = {
                key: (value, after.samples.get(key))
                for key, value in seen.rising().items()
                if after.samples.get(key, -1.0) < value
            }
            assert not fell
            # What the sessions had published is still there, and their two ends.
            assert after["events_total"] >= seen["events_total"] + 2


async def test_the_two_formats_tell_the_same(tmp_path: Path) -> None:
    with gateway(tmp_path) as site:
        async with client_of(site) as client:
            await client.say(await client.session(), "/plan")
            url = f"{site.url}/metrics"
            # What Prometheus sends.
            accept = (
                "application/openmetrics-text;version=1.0.0;q=0.5,"
                "text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
            )
            modern = await client.http.get(url, headers={"accept": accept})
            assert modern.headers["content-type"].startswith("application/openmetrics-text")
            told = {family.name: family for family in parse_open_metrics(modern.text)}
            assert modern.text.endswith("# EOF\n")
            plain = await client.http.get(url, headers={"accept": "text/plain, */*;q=0.1"})
            assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
            names = Figures(plain.text).kinds
            # A counter has its suffix in the one and not in the other.
            assert {name.removesuffix("_total") for name in names} == set(told)
            assert all(name.startswith("acp_gateway_") for name in told)
            for name, family in told.items():
                assert family.documentation
                assert family.type in ("counter", "gauge", "histogram")
                assert not family.unit or name.endswith(family.unit)
            for odd in ("application/openmetrics-text;version=9.x", "text/plain;version=x", ";;,"):
                assert (await client.http.get(url, headers={"accept": odd})).status_code == 200


async def test_the_page_lists_the_figures(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    with gateway(tmp_path) as site:
        async with client_of(site) as client:
            seen = await figures(client)
    listed = dict(re.findall(r"^\| `(acp_gateway_\w+)` \| (\w+) \|", page, re.MULTILINE))
    told = {
        f"{name}_total" if kind == "counter" and not name.endswith("_total") else name: kind
        for name, kind in seen.kinds.items()
    }
    assert listed == told
    status = schemas.load_document(schemas.OPENAPI)["components"]["schemas"]["DaemonStatus"]
    for member in status["properties"]["runtime"]["required"]:
        assert f"`{member}" in page, member


async def test_who_is_kept_out_is_counted_and_gets_no_figures(tmp_path: Path) -> None:
    with gateway(tmp_path, token="a-secret-of-the-tests") as site, trio.fail_after(DEADLINE):
        async with httpx2.AsyncClient(trust_env=False) as stranger:
            for path in ("/metrics", "/workspace/env", "/daemon/status", "/workspace/preflight"):
                answer = await stranger.get(site.url + path)
                assert answer.status_code == 401 and "acp_gateway_" not in answer.text
            page = {"origin": "http://elsewhere.example"}
            assert (await stranger.get(site.url + "/health", headers=page)).status_code == 403
            assert (await stranger.get(site.url + "/readyz")).status_code == 200
        headers = {"authorization": "Bearer a-secret-of-the-tests"}
        async with client_of(site, headers=headers) as client:
            seen = await figures(client)
            assert seen.of("refused_total", reason="auth_required") == 4
            assert seen.of("refused_total", reason="forbidden") == 1
            unauthorized = {"route": "/metrics", "status": "4xx"}
            assert seen.of("http_request_duration_seconds_count", **unauthorized) == 1
            told = await client.ask("GET", "/workspace/env")
            present = {each["name"]: each for each in told["cells"]}
            assert present["ACP_GATEWAY_TOKEN"]["present"] is True
            assert "a-secret-of-the-tests" not in str(told) + seen.text


async def test_paths_of_strangers_are_no_labels(tmp_path: Path) -> None:
    with gateway(tmp_path) as site:
        async with client_of(site) as client:
            before = len((await figures(client)).samples)
            for number in range(200):
                await client.http.get(f"{site.url}/no/such/path/{number}")
                await client.http.request(f"X{number}", f"{site.url}/session/{number}")
                await client.http.get(f"{site.url}/session/{number}/status")
            seen = await figures(client)
            routes = {
                dict(labels)["route"] for (_, labels) in seen.samples if "route" in dict(labels)
            }
            assert routes <= {"(other)", "/metrics", "/session/{sessionId}/status"}
            assert len(seen.samples) - before < 100


async def test_a_hundred_sessions_are_told_at_once(tmp_path: Path) -> None:
    args = ("--isolation", "shared", "--max-sessions", "120")
    with gateway(tmp_path, *args, sessions_per_agent=120) as site:
        async with client_of(site) as client:
            for _ in range(100):
                await client.session()
            took = []
            for _ in range(10):
                began = time.perf_counter()
                seen = await figures(client)
                took.append(time.perf_counter() - began)
            assert seen["sessions"] == 100 and seen["agent_processes"] == 1
            assert sorted(took)[5] < 0.25, took
            assert len(seen.text) < 64 * 1024
            status = await client.ask("GET", "/daemon/status")
            assert [each["code"] for each in status["issues"]] == ["session_capacity_high"]


# ---- health and status ---------------------------------------------------------------------------


async def test_readiness_follows_the_first_agent(tmp_path: Path) -> None:
    slow = tmp_path / "slow.sh"
    gate = tmp_path / "gate"
    slow.write_text(
        f"#!/bin/sh\nwhile [ ! -e '{gate}' ]; do sleep 0.05; done\n"
        'exec "$PYTHON" -P -m acp_gateway.demo_agent\n'
    )
    slow.chmod(0o755)
    config = tmp_path / "config.toml"
    config.write_text(
        'agent = ["slow"]\n[agents.slow]\n'
        f'command = ["{slow}"]\n[agents.slow.env]\n'
        f'PYTHON = "{sys.executable}"\nPYTHONPATH = "{ROOT}"\n'
    )
    with gateway(tmp_path, "--config", str(config), "--agent", "slow") as site:
        async with client_of(site) as client:
            assert await client.ask("GET", "/readyz", status=503) == {"status": "agent_starting"}
            assert await client.ask("GET", "/health")
            cells = (await client.ask("GET", "/workspace/preflight"))["cells"]
            asleep = {each["kind"]: each["status"] for each in cells if each["locality"] == "acp"}
            assert set(asleep.values()) == {"not_started"} and "auth" in asleep
            gate.touch()
            await until(lambda: ready(client, "ready"))
            assert await client.ask("GET", "/readyz") == {"status": "ready"}


async def test_an_agent_that_does_not_start_is_told_everywhere(tmp_path: Path) -> None:
    broken = tmp_path / "broken.sh"
    broken.write_text(
        "#!/bin/sh\necho 'error: the key api_key=sk-abcdefghijklmnop is bad' >&2\nexit 7\n"
    )
    broken.chmod(0o755)
    with gateway(tmp_path, "--agent", f"broken={broken}") as site:
        async with client_of(site) as client:
            await until(lambda: ready(client, "agent_failed"))
            assert await client.ask("GET", "/readyz", status=503) == {"status": "agent_failed"}
            status = await client.ask("GET", "/daemon/status?detail=full")
            assert status["status"] == "error"
            codes = [each["code"] for each in status["issues"]]
            assert codes == ["acp_channel_down", "preflight_error"]
            (row,) = status["runtime"]["agents"]
            assert (row["agent"], row["state"], row["pid"]) == ("broken", "failed", None)
            cells = (await client.ask("GET", "/workspace/preflight"))["cells"]
            (cell,) = [each for each in cells if each["kind"] == "agent"]
            assert (cell["status"], cell["errorKind"]) == ("error", "protocol_error")
            assert "sk-abcdefghijklmnop" not in str(status)
            seen = await figures(client)
            assert seen.of("agent_start_failures_total", agent="broken") >= 1
            assert seen["agent_starts_total"] == 0
            deep = await client.ask("GET", "/health?deep=1")
            assert deep["channelAlive"] is False


async def test_a_question_that_waits_is_an_issue(tmp_path: Path) -> None:
    with gateway(tmp_path) as site:
        async with client_of(site) as client:
            session = await client.session()
            await client.prompt(session, "/write f.txt x")
            await until(lambda: asked(client, "permissions_open"))
            deep = await client.ask("GET", "/health?deep=1")
            assert (deep["pendingPermissions"], deep["activePrompts"]) == (1, 1)
            assert deep["rateLimitHits"] == {"prompt": 0, "mutation": 0, "read": 0}
            status = await client.ask("GET", "/daemon/status")
            assert [each["code"] for each in status["issues"]] == ["pending_permissions"]
            assert status["status"] == "warning" and "full" not in status


async def test_processes_and_disks_are_told(tmp_path: Path) -> None:
    with gateway(tmp_path) as site:
        async with client_of(site) as client:
            await client.say(await client.session(), "/plan")
            runtime = (await client.ask("GET", "/daemon/status"))["runtime"]
            assert runtime["process"]["rss"] > 10_000_000 and runtime["process"]["openFds"] > 3
            leased = [each for each in runtime["agents"] if each["state"] == "leased"]
            (row,) = leased
            assert row["rssBytes"] > 1_000_000 and row["openFds"] >= 3 and row["processes"] >= 1
            assert row["bytesIn"] > 0 and row["uptimeMs"] >= 0 and row["restarts"] == 0
            places = {each["place"]: each for each in runtime["disk"]}
            assert places["workspace"]["path"] == str(workspace_of(tmp_path))
            assert places["state"]["freeBytes"] > 0


async def test_the_twins_on_acp_tell_the_same(tmp_path: Path) -> None:
    with gateway(tmp_path) as site, trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(client_of(site))
            ws = await stack.enter_async_context(ws_client(site.ws_url))
            for name in ("preflight", "env"):
                over_rest = await client.ask("GET", f"/workspace/{name}")
                over_acp = await ws.request(f"_qwen/workspace/{name}")
                kinds = lambda body: [(c["kind"], c.get("name")) for c in body["cells"]]  # noqa: E731
                assert kinds(over_rest) == kinds(over_acp)
            report = await ws.request("_qwen/daemon/status", {"detail": "full"})
            assert report["full"]["acpConnections"][0]["transport"] == "ws"
            assert (await ws.request("_qwen/health", {"deep": True}))["status"] == "ok"
            with pytest.raises(RpcError):
                await ws.request("_qwen/metrics")
            seen = await figures(client)
            assert seen.of("connections", transport="ws") == 1
            assert seen.of("acp_request_duration_seconds_count", method="_qwen/health") == 1
            assert seen.of("acp_request_duration_seconds_count", method="other") == 1
