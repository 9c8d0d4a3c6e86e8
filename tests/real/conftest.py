"""Gateways with real agents behind them, and the way to run a real client against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from agent_env import AGENTS, AgentKind, base_environment  # noqa: E402
from fake_model import FakeModel  # noqa: E402
from gateway_process import ROOT, GatewayProcess, running_gateway  # noqa: E402
from peers_env import modules_dir, need, node  # noqa: E402

# What tests/peers/*_client.* can do.
SCENARIOS = (
    "basic",
    "permission-allow",
    "permission-reject",
    "cancel",
    "interleave",
    "big",
    "reload",
    "close",
    "burst",
    "list",
)
# A client must be given up on later than it gives up by itself (twice its --timeout).
SCENARIO_TIMEOUT = 60
RUN_TIMEOUT = 3 * SCENARIO_TIMEOUT

# Sessions of finished tests go soon, so that few children run at once. The cap on sessions stays
# as it is: a client whose connection is not let go of fills it, and the tests fail.
SETTINGS = {"ACP_GATEWAY_LINGER": "5", "ACP_GATEWAY_LINGER_UNPROMPTED": "5"}


@dataclass
class Site:
    """One agent behind one gateway, and the directory that its sessions may work in."""

    kind: AgentKind
    gateway: GatewayProcess
    workspace: Path

    def directory(self, name: str) -> Path:
        """A fresh working directory, so that no test sees another's files or sessions."""
        path = self.workspace / "".join(c if c.isalnum() else "-" for c in name)
        path.mkdir()
        return path


@pytest.fixture(scope="session")
def model() -> Iterator[FakeModel]:
    with FakeModel() as server:
        yield server


@pytest.fixture(scope="session")
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: FakeModel
) -> Iterator[Site]:
    """The gateway of the agent that ``request.param`` names; one for all tests of that agent."""
    kind = AGENTS[request.param]
    need(*kind.peers)
    base = tmp_path_factory.mktemp(kind.name).resolve()
    workspace = base / "workspace"
    workspace.mkdir()
    env = kind.environment(base / "home", model.url) | SETTINGS
    with running_gateway(workspace, env, ["--agent", kind.name]) as gateway:
        yield Site(kind, gateway, workspace)


def run_client(site: Site, client: str, scenario: str, cwd: Path, target: Sequence[str]) -> None:
    """Runs one scenario of ``ts`` or ``py`` and fails with its report unless all is well."""
    if client == "ts":
        need("node", "sdk", "ws")
        argv = [str(node()), str(TESTS / "peers" / "ts_client.mjs")]
    else:
        argv = [sys.executable, str(TESTS / "peers" / "py_client.py")]
    argv += ["--scenario", scenario, "--cwd", str(cwd), "--timeout", str(SCENARIO_TIMEOUT)]
    argv += ["--prompts", json.dumps(dict(site.kind.prompts)), *target]
    done = subprocess.run(
        argv, env=client_environment(site), capture_output=True, text=True, timeout=RUN_TIMEOUT
    )
    try:
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        pytest.fail(f"{client} gave no report (status {done.returncode}):\n{done.stderr[-4000:]}")
    if not report["ok"]:
        pytest.fail(describe(report, done.stderr, site.gateway), pytrace=False)


def client_environment(site: Site) -> dict[str, str]:
    """What a client process sees: no agent's settings, a home of its own."""
    home = site.workspace.parent / "client-home"
    env = base_environment(home)
    return env | {"ACP_GATEWAY_PEERS": str(modules_dir()), "PYTHONPATH": str(ROOT)}


def describe(report: dict[str, Any], stderr: str, gateway: GatewayProcess) -> str:
    """A failed report in lines: what was wrong, then the last frames of each connection."""
    lines = [f"{report['client']} {report['transport']} {report['scenario']} failed"]
    if "error" in report:
        lines.append(f"error: {report['error']}")
    lines += [f"not so: {c['name']}: {c['detail']}" for c in report["checks"] if not c["ok"]]
    for number, frames in enumerate(report.get("wire", [])):
        lines += [f"connection {number}, last frames:", *frames]
    if stderr:
        lines += ["the client's stderr:", stderr[-2000:]]
    lines += ["the gateway's stderr:", gateway.stderr_tail()[-2000:]]
    return os.linesep.join(lines)
