"""A command of a user with a real agent behind: where it is taken, the model sees what it wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from agent_env import AGENTS
from fake_model import FakeModel
from gateway_process import GatewayProcess, running_gateway
from peers_env import need
from support.processes import eventually

pytestmark = pytest.mark.real

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def model(tmp_path: Path) -> Iterator[FakeModel]:
    with FakeModel() as server:
        server.log_path = str(tmp_path / "model.log")
        yield server


def asked(model: FakeModel) -> list[str]:
    """The requests that the model got, as text."""
    log = Path(str(model.log_path))
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


@pytest.mark.parametrize("agent", ["qwen", "goose"])
def test_the_next_prompt_knows_what_was_written(
    agent: str, tmp_path: Path, model: FakeModel
) -> None:
    kind = AGENTS[agent]
    need(*kind.peers)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    env = kind.environment(tmp_path / "home", model.url) | {"ACP_GATEWAY_TOKEN": TOKEN}
    args = ["--agent", agent, "--enable-session-shell"]
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with (
        running_gateway(workspace, env, args) as gateway,
        httpx2.Client(base_url=gateway.url, headers=headers, trust_env=False, timeout=60) as http,
    ):
        made = http.post("/session", json={}).json()
        session, mine = f"/session/{made['sessionId']}", {"X-Qwen-Client-Id": made["clientId"]}
        command = {"command": "echo unmistakable-$((40 + 2)); seq 1 20000; exit 9"}
        told = http.post(f"{session}/shell", json=command, headers=mine).json()
        assert (told["exitCode"], told["injected"]) == (9, agent == "qwen")
        _say(http, session, mine, "hello there")
        requests = eventually(lambda: [each for each in asked(model) if "hello there" in each], 30)
        assert requests, gateway.stderr_tail()
        seen = ["unmistakable-42" in each for each in requests]
        assert any(seen) == (agent == "qwen")
        if agent == "qwen":
            request = requests[seen.index(True)]
            assert "unmistakable-$((40 + 2))" in request and "20000" in request
            assert "\\n9000\\n" not in request, "the output was not cut"
        _ended(http, session, gateway)


def _say(http: httpx2.Client, session: str, headers: dict[str, str], text: str) -> None:
    prompt: dict[str, Any] = {"prompt": [{"type": "text", "text": text}]}
    answer = http.post(f"{session}/prompt", json=prompt, headers=headers)
    assert answer.status_code == 202, answer.text


def _ended(http: httpx2.Client, session: str, gateway: GatewayProcess) -> None:
    def idle() -> bool:
        told: dict[str, Any] = json.loads(http.get(f"{session}/status").text)
        return not told["hasActivePrompt"]

    assert eventually(idle, 30), gateway.stderr_tail()
