"""Homes and environments that put real agents on the fake model, asking a person before writing.

An `AgentKind` says which peers an agent needs, how it is named to the gateway, and which prompts
make it do what the scenarios of tests/peers want.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers_env

# What a child of a test may see of the environment it runs in.
PASSED = ("LANG", "LC_ALL", "TMPDIR", "TZ", "VIRTUAL_ENV", "PYTHONPATH")

# The fake model's words (tests/fake_model.py).
FAKE_MODEL_PROMPTS: Mapping[str, Any] = {
    "text": "hello there",
    "permission": "WRITE {cwd}/written.txt",
    "file": "written.txt",
    "slow": "SLOW",
    "chunks": "CHUNKS {n}",
    "big": "BIG {n}",
    "big_echo": r"echo (\d+):",
    "burst": [1, 10, 100, 1000],
}


def base_environment(home: Path, *programs: Path) -> dict[str, str]:
    """A small environment: ``home`` as HOME, the directories of ``programs`` first on PATH."""
    home.mkdir(parents=True, exist_ok=True)
    path = [str(p.parent) for p in programs] + [os.environ.get("PATH", os.defpath)]
    passed = {name: os.environ[name] for name in PASSED if name in os.environ}
    return {**passed, "HOME": str(home), "PATH": os.pathsep.join(path)}


def _command_in(home: Path, name: str, target: Path) -> Path:
    """A link to ``target`` under the name that a person would type."""
    link = home / "bin" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(target)
    return link


def demo_environment(home: Path, model_url: str) -> dict[str, str]:
    """The demo agent has no model; it only gets a home of its own."""
    return base_environment(home)


def qwen_environment(home: Path, model_url: str) -> dict[str, str]:
    """``qwen --acp`` (0.24.4) and ``qwen serve`` on the model at ``model_url``.

    Its own default lets the model approve what it does; the settings file makes it ask.
    """
    link = _command_in(home, "qwen", peers_env.find("qwen"))
    env = base_environment(home, peers_env.node(), link)
    settings = {
        "tools": {"approvalMode": "default"},
        # Else it refuses a prompt of 3 MB before the model sees it.
        "model": {"generationConfig": {"contextWindowSize": 8_000_000}},
        # Nothing that would use the model or the network on its own account.
        "general": {"enableAutoUpdate": False},
        "telemetry": {"enabled": False},
        "privacy": {"usageStatisticsEnabled": False},
        "memory": {"enableManagedAutoMemory": False, "enableManagedAutoDream": False},
    }
    file = home / ".qwen" / "settings.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings), encoding="utf-8")
    return env | {
        "OPENAI_API_KEY": "x",
        "OPENAI_BASE_URL": f"{model_url}/v1",
        "OPENAI_MODEL": "fake",
        "QWEN_CODE_NO_RELAUNCH": "1",
    }


def goose_environment(home: Path, model_url: str) -> dict[str, str]:
    """``goose acp --with-builtin developer`` (1.52) and ``goose serve`` on the model."""
    link = _command_in(home, "goose", peers_env.find("goose"))
    return base_environment(home, link) | {
        "GOOSE_PROVIDER": "openai",
        "GOOSE_MODEL": "fake",
        "GOOSE_MODE": "approve",
        "GOOSE_DISABLE_KEYRING": "1",
        "OPENAI_API_KEY": "x",
        "OPENAI_HOST": model_url,
    }


@dataclass(frozen=True)
class AgentKind:
    """One agent that the scenarios run against."""

    name: str
    environment: Callable[[Path, str], dict[str, str]]
    peers: tuple[str, ...] = ()
    prompts: Mapping[str, Any] = field(default_factory=dict)
    """Replaces the clients' own prompts, which are the demo agent's."""


AGENTS = {
    kind.name: kind
    for kind in (
        AgentKind("demo", demo_environment),
        AgentKind("qwen", qwen_environment, ("node", "qwen"), FAKE_MODEL_PROMPTS),
        AgentKind("goose", goose_environment, ("goose",), FAKE_MODEL_PROMPTS),
    )
}
