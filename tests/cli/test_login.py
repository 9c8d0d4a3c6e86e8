"""``acp-gateway login``, as a process of its own, with a gateway and a provider."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Cli

sys.path.insert(0, str(ROOT / "tests"))

from gateway_process import GatewayProcess, running_gateway
from support.auth_server import USER_CODE, AuthServer, write_config


@pytest.fixture
def server() -> Iterator[AuthServer]:
    with AuthServer() as running:
        yield running


@pytest.fixture
def gateway(home: Path, server: AuthServer, tmp_path: Path) -> Iterator[GatewayProcess]:
    env = dict(os.environ) | write_config(tmp_path / "config.toml", {"local": server.table()})
    with running_gateway(home, env, ["--agent", "demo", "--token", "t"]) as running:
        yield running


def started(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "acp_gateway", "login", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.usefixtures("gateway")
def test_a_sign_in(server: AuthServer, home: Path) -> None:
    server.answers = ["authorization_pending", "grant"]
    with started() as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"Enter  {USER_CODE}" in out and f"Open   {server.url}/open" in out
    assert out.endswith("Signed in at local.\n")
    kept = home / ".local/state/acp-gateway/credentials/local.json"
    assert json.loads(kept.read_text())["access_token"]


@pytest.mark.usefixtures("gateway")
def test_a_refusal_by_the_provider(server: AuthServer) -> None:
    server.answers = ["access_denied"]
    with started("local") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "refused at the provider" in err


def test_an_interrupt_gives_the_flow_up(server: AuthServer, gateway: GatewayProcess) -> None:
    with started() as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Waiting")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Cancelled." in err
    deadline = time.monotonic() + 10
    while '"cancelled"' not in gateway.stderr_tail():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.usefixtures("gateway")
def test_an_unknown_provider(cli: Cli) -> None:
    done = cli("login", "nope")
    assert done.status == 1 and "use one of: local" in done.err


def test_without_a_gateway(cli: Cli) -> None:
    done = cli("login")
    assert done.status == 1 and "No gateway is running" in done.err
