"""``acp-gateway token`` as a person uses it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from acp_gateway.token_store import TokenStore

ROOT = Path(__file__).resolve().parents[2]


class Shell:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        self.file = home / ".local" / "state" / "acp-gateway" / "tokens.json"

    def __call__(self, *args: str, status: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "acp_gateway", *args],
            env={**self.env, **env},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_create_list_revoke(shell: Shell) -> None:
    done = shell("token", "create", "laptop", "--scope", "read,approve", "--expires", "30d")
    token = done.stdout.strip()
    assert token.startswith("acpgw_") and token not in done.stderr, "stdout is the token alone"
    path = shell.file if shell.file.exists() else next(shell.home.rglob("tokens.json"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and token not in path.read_text()
    shown = json.loads(shell("token", "list", "--json").stdout)
    assert shown["file"] == str(path)
    (entry,) = shown["tokens"]
    assert (entry["name"], entry["scope"], entry["expired"]) == ("laptop", "approve", False)
    assert not {"token", "sha256"} & set(entry)
    assert "laptop" in shell("token", "list").stdout
    assert "already" in shell("token", "create", "laptop", status=1).stderr
    done = shell("token", "revoke", "laptop")
    assert "Revoked" in done.stdout and f"delete {path}" in " ".join(done.stderr.split())
    assert "no token" in shell("token", "revoke", "laptop", status=1).stderr
    assert json.loads(shell("token", "list", "--json").stdout)["tokens"] == []


def test_another_file_by_setting_and_by_flag(shell: Shell, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    shell("token", "create", "a", ACP_GATEWAY_TOKENS_FILE=str(one))
    shell("token", "create", "b", "--tokens-file", str(two), ACP_GATEWAY_TOKENS_FILE=str(one))
    assert [each.name for each in TokenStore(one).read()] == ["a"]
    assert [each.name for each in TokenStore(two).read()] == ["b"]
    # What `serve` would refuse to start with is no reason not to make a token.
    shell("token", "list", ACP_GATEWAY_HOST="0.0.0.0", ACP_GATEWAY_TOKENS_FILE=str(one))


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["a b"], "name"),
        (["a", "--scope", "root"], "scope"),
        (["a", "--scope", "promt"], "prompt"),
        (["a", "--expires", "yesterday"], "time to come"),
        (["a", "--expires", "2001-01-01"], "time to come"),
    ],
)
def test_what_is_refused(shell: Shell, args: list[str], word: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "acp_gateway", "token", "create", *args],
        env=shell.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0 and word in done.stderr and not done.stdout
    assert "Traceback" not in done.stderr
    assert not list(shell.home.rglob("tokens.json"))
