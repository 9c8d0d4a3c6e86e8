"""Servers that single measurements start for themselves: without limits, or with real agents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import (
    ROOT,
    Express,
    Gateway,
    Peer,
    Qwen,
    Stdio,
    module,
    node,
)


class RoomyGateway(Gateway):
    """With room for many sessions, connections and prompts."""

    isolation = "shared"
    settings: Mapping[str, str] = {}
    """More of its settings, as environment variables."""

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        argv, env = super().command()
        return argv, {
            **env,
            "ACP_GATEWAY_ISOLATION": self.isolation,
            "ACP_GATEWAY_MAX_SESSIONS": "1000",
            "ACP_GATEWAY_MAX_AGENTS": "200",
            "ACP_GATEWAY_SESSIONS_PER_AGENT": "1000",
            "ACP_GATEWAY_MAX_CONNECTIONS": "2000",
            "ACP_GATEWAY_MAX_TCP_CONNECTIONS": "4000",
            "ACP_GATEWAY_MAX_SUBSCRIBERS": "1000",
            "ACP_GATEWAY_MAX_QUEUED_PROMPTS": "0",
            **self.settings,
        }


class AgentEach(RoomyGateway):
    """Every session has an agent of its own, as is the default."""

    isolation = "session"


class NoSpare(AgentEach):
    """No agent is kept warm for the next session."""

    settings: Mapping[str, str] = {"ACP_GATEWAY_SPARE_AGENTS": "0"}


class Transient(AgentEach):
    """What nobody uses any more goes in seconds; and clients may close sessions over REST."""

    settings: Mapping[str, str] = {
        "ACP_GATEWAY_LINGER": "5",
        "ACP_GATEWAY_LINGER_UNPROMPTED": "5",
        "ACP_GATEWAY_HTTP_CONNECTION_IDLE": "5",
        "ACP_GATEWAY_TRUST_LOOPBACK": "1",
    }


class RoomyQwen(Qwen):
    """The same of ``qwen serve``."""

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        argv, env = super().command()
        none = ("--max-sessions", "--max-connections", "--max-pending-prompts-per-session")
        return [*argv, *(word for flag in none for word in (flag, "0"))], env


ROOMY: Mapping[str, type[Peer]] = {
    "gateway": RoomyGateway,
    "qwen": RoomyQwen,
    "express": Express,
}


@dataclass(frozen=True)
class RealAgent:
    """A real agent and how it runs on `running_model`."""

    name: str
    program: str
    """Its file in the npm packages."""
    acp: Sequence[str]
    """Arguments that make it an ACP agent on stdio."""
    serve: Sequence[str]
    """Arguments that make it a server; a port follows."""
    environment: Mapping[str, str]
    """``{model}`` stands for the address of the model."""
    files: Mapping[str, str] = field(default_factory=dict)
    """What lies in its home."""

    def settle(self, home: Path, model: str) -> tuple[Path, dict[str, str]]:
        """Put its files and a link to it there; gives the link and its environment.

        Raises `NotInstalledError`.
        """
        link = home / "bin" / self.name
        link.parent.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(module(self.program))
        for name, text in self.files.items():
            (home / name).parent.mkdir(exist_ok=True)
            (home / name).write_text(text)
        path = os.pathsep.join([str(link.parent), str(node().parent), os.environ["PATH"]])
        values = {key: value.format(model=model) for key, value in self.environment.items()}
        return link, {"HOME": str(home), "PATH": path, **values}


QWEN = RealAgent(
    name="qwen",
    program="@qwen-code/qwen-code/cli-entry.js",
    acp=["--acp"],
    serve=["serve", "--port"],
    environment={
        "OPENAI_API_KEY": "x",
        "OPENAI_BASE_URL": "{model}/v1",
        "OPENAI_MODEL": "fast",
        "QWEN_CODE_NO_RELAUNCH": "1",
    },
    files={
        ".qwen/settings.json": json.dumps(
            {
                # Room for the long turns, and nothing that it does on its own account.
                "model": {"generationConfig": {"contextWindowSize": 8_000_000}},
                "general": {"enableAutoUpdate": False},
                "telemetry": {"enabled": False},
                "privacy": {"usageStatisticsEnabled": False},
                "memory": {"enableManagedAutoMemory": False, "enableManagedAutoDream": False},
            }
        )
    },
)
GOOSE = RealAgent(
    name="goose",
    program="@aaif/goose-binary-linux-x64/bin/goose",
    acp=["acp", "--with-builtin", "developer"],
    serve=["serve", "--dangerously-unauthenticated", "--with-builtin", "developer", "--port"],
    environment={
        "GOOSE_PROVIDER": "openai",
        "GOOSE_MODEL": "fast",
        "GOOSE_MODE": "auto",
        "GOOSE_DISABLE_KEYRING": "1",
        "OPENAI_API_KEY": "x",
        "OPENAI_HOST": "{model}",
    },
)


class _Real(Peer):
    """A variant that has a real agent."""

    def __init__(self, home: Path, port: int, agent: RealAgent, model: str) -> None:
        super().__init__(home, port)
        self.agent = agent
        self.program, self.settings = agent.settle(home, model)


class RealStdio(_Real, Stdio):
    """A real agent's own pipe."""

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        # The link starts it with nothing but its arguments.
        values = [f"{key}={value}" for key, value in self.settings.items()]
        return ["env", "-i", *values, str(self.program), *self.agent.acp], {}


class RealGateway(_Real, Gateway):
    """The gateway with a real agent behind it."""

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        argv = [sys.executable, "-m", "acp_gateway", "serve", "--port", str(self.port)]
        argv += ["--workspace", str(self.cwd), "--agent", self.agent.name]
        return argv, {**self.settings, "PYTHONPATH": str(ROOT)}


class RealServer(_Real):
    """A real agent's own server."""

    name = "server"

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        return [str(self.program), *self.agent.serve, str(self.port)], self.settings


@contextmanager
def running_model() -> Iterator[str]:
    """The model of fast_model.py in a process of its own; gives its address."""
    argv = [sys.executable, "-m", "benchmarks.fast_model"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()
