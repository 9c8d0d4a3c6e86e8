"""Tokens that real agents tell, from their own words to the figures."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from agent_env import AGENTS
from conftest import Site
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.real

TURNS = 2
# What tests/fake_model.py says of each call: 10 tokens in, 5 out.
CALL = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}


@pytest.mark.parametrize("site", ["qwen", "goose"], indirect=True)
def test_what_a_real_agent_used_is_told_everywhere(site: Site) -> None:
    with httpx2.Client(base_url=site.gateway.url, trust_env=False, timeout=60) as http:
        before = _tokens(http)
        cwd = str(site.directory("usage"))
        created = http.post("/session", json={"cwd": cwd, "sessionScope": "thread"}).json()
        session = created["sessionId"]
        for _ in range(TURNS):
            _turn(http, session, str(AGENTS[site.kind.name].prompts["text"]))
        used: dict[str, Any] = http.get(f"/session/{session}/status").json()["usage"]
        assert used["turns"] == TURNS
        calls = used["totalTokens"] // CALL["totalTokens"]
        # An agent may ask its model more than once for a turn.
        assert calls >= TURNS
        assert {name: used[name] for name in CALL} == {k: n * calls for k, n in CALL.items()}
        assert http.get(f"/session/{session}/stats").json()["usage"] == used
        report = http.get("/daemon/status?detail=full").json()
        (row,) = [each for each in report["full"]["sessions"] if each["sessionId"] == session]
        assert row["usage"] == used
        assert report["runtime"]["usage"]["byAgent"][site.kind.name]["turns"] >= TURNS
        http.delete(f"/session/{session}")
        after = _tokens(http)
        assert after["input"] - before.get("input", 0) == used["inputTokens"]
        assert after["output"] - before.get("output", 0) == used["outputTokens"]


def _turn(http: httpx2.Client, session: str, text: str) -> None:
    prompt = {"prompt": [{"type": "text", "text": text}]}
    answer = http.post(f"/session/{session}/prompt", json=prompt).json()
    headers = {"Last-Event-ID": str(answer["lastEventId"])}
    with http.stream("GET", f"/session/{session}/events", headers=headers) as stream:
        for line in stream.iter_lines():
            if line == "event: turn_complete":
                return
    raise AssertionError("the turn did not complete")


def _tokens(http: httpx2.Client) -> dict[str, float]:
    """By type, of all agents."""
    found = text_string_to_metric_families(http.get("/metrics").text)
    (family,) = [each for each in found if each.name == "acp_gateway_tokens"]
    return {each.labels["type"]: each.value for each in family.samples}
