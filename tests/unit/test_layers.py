"""The contracts between the layers (pyproject.toml), as a test; and that they would notice."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT = (
    "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
)


def lint(root: Path) -> tuple[int, str]:
    ran = subprocess.run(
        [sys.executable, "-c", LINT], cwd=root, capture_output=True, text=True, timeout=120
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_the_contracts_hold() -> None:
    status, text = lint(ROOT)
    assert status == 0, text


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report on a copy in which each contract is broken once."""
    root = tmp_path_factory.mktemp("spoilt")
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copytree(ROOT / "acp_gateway", root / "acp_gateway")
    for module, statement in {
        "wire/frames": "import acp_gateway.core.backoff",
        "core/backoff": "import time",
        "runtime/redact": "import http.client\nimport acp_gateway.config_load",
        "config": "import trio",
        "transports/guards": "import h11\nimport quart\nimport wsproto",
        "runtime/wakeup": (
            "import jsonrpcserver\nimport cattrs\nimport jwt\nimport watchfiles\n"
            "import opentelemetry"
        ),
        "transports/hub": "import click\nimport httpx2",
        "transports/figures": "import prometheus_client",
        "demo_agent/script": "import msgspec",
    }.items():
        with (root / "acp_gateway" / f"{module}.py").open("a") as file:
            file.write(f"\n{statement}\n")
    (root / "acp_gateway" / "new_module.py").write_text("")
    return lint(root)[1]


def contracts() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return [each["name"] for each in tomllib.load(file)["tool"]["importlinter"]["contracts"]]


@pytest.mark.parametrize("name", [name for name in contracts() if name != "layers"])
def test_each_contract_can_break(spoilt: str, name: str) -> None:
    assert f"{name} BROKEN" in spoilt, spoilt


def test_the_layers_can_break(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "acp_gateway", tmp_path / "acp_gateway")
    with (tmp_path / "acp_gateway/core/backoff.py").open("a") as file:
        file.write("\nimport acp_gateway.runtime.redact\n")
    status, text = lint(tmp_path)
    assert status == 1 and "layers BROKEN" in text, text


def test_a_new_module_must_find_its_layer(spoilt: str) -> None:
    assert "new_module" in spoilt
