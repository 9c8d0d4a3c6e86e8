"""The client of the Qwen daemon, unchanged, with the demo agent, qwen and goose behind a gateway.

The steps are those of tests/peers/daemon_client.mjs; docs/daemon-client.md has what they find at
the real ``qwen serve``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_env import AGENTS
from conftest import Site
from fake_model import FakeModel
from gateway_process import running_gateway
from peers.daemon_runs import TOKEN, TRANSPORTS, Line, gateway_environment, run_driver
from peers_env import need

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: FakeModel
) -> Iterator[Site]:
    """A gateway with the settings that ``request.param`` adds: (agent, environment)."""
    agent, more = request.param
    need("node", "qwen-sdk", *AGENTS[agent].peers)
    base = tmp_path_factory.mktemp(f"daemon-{agent}").resolve()
    workspace = base / "workspace"
    workspace.mkdir()
    env = gateway_environment(agent, base / "home", model.url) | more
    with running_gateway(workspace, env, ["--agent", agent]) as gateway:
        yield Site(AGENTS[agent], gateway, workspace)


def _drive(site: Site, transport: str, cwd: Path, *only: str, events: int = 300) -> list[Line]:
    """Runs the driver; fails with the steps that went wrong."""
    lines = run_driver(
        site.gateway.url,
        transport,
        site.kind.name,
        cwd,
        token=TOKEN,
        only=only,
        extra=["--events", str(events)],
    )
    wrong = [f"{line['step']}: {line['detail']}" for line in lines if not line["ok"]]
    if wrong:
        stderr = ["the gateway's stderr:", site.gateway.stderr_tail()[-2000:]]
        pytest.fail(os.linesep.join([*wrong, *stderr]), pytrace=False)
    return lines


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("daemon", [(agent, {}) for agent in AGENTS], indirect=True, ids=AGENTS)
def test_steps(daemon: Site, transport: str) -> None:
    lines = _drive(daemon, transport, daemon.directory(transport))
    done = [line["step"] for line in lines if not line.get("skipped")]
    # A step may be skipped for want of a feature, but not the heart of the matter.
    needed = {"capabilities", "create", "text-turn", "permission-allow", "late-vote", "queue"}
    needed |= {"cancel-running", "load-history", "second-client", "vote-race", "delete"}
    if transport == "rest":
        needed |= {"reconnect-mid-turn", "close", "detach", "self-heal", "metadata", "idempotency"}
    assert needed <= set(done)


@pytest.mark.parametrize(
    "daemon", [("demo", {"ACP_GATEWAY_EVENT_RING_SIZE": "100"})], indirect=True, ids=["ring-100"]
)
def test_a_gap_of_the_ring_is_told_and_a_load_fills_it(daemon: Site) -> None:
    (line,) = _drive(daemon, "rest", daemon.directory("gap"), "ring-gap")
    assert not line.get("skipped")


@pytest.mark.parametrize(
    "daemon", [("demo", {"ACP_GATEWAY_PROMPT_DEADLINE": "20"})], indirect=True, ids=["deadline"]
)
def test_a_prompt_may_shorten_the_deadline_of_the_daemon(daemon: Site) -> None:
    steps = ("deadline", "capabilities")
    deadline, capabilities = _drive(daemon, "rest", daemon.directory("deadline"), *steps)
    assert not deadline.get("skipped") and not capabilities.get("skipped")


@pytest.mark.parametrize("daemon", [("demo", {})], indirect=True, ids=["long"])
@pytest.mark.parametrize("transport", ["rest", "acp-http"])
def test_prefixes_of_a_long_session(daemon: Site, transport: str) -> None:
    cwd = daemon.directory(f"prefixes-{transport}")
    (line,) = _drive(daemon, transport, cwd, "replay-prefixes", events=5000)
    assert not line.get("skipped")
