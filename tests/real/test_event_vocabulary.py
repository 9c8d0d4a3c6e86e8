"""The Qwen daemon's SDK knows our events, and takes whatever our schemas allow."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers_env import modules_dir, need, node
from support.event_schemas import validator

from acp_gateway.protocol.events import EVENTS
from acp_gateway.protocol.schema_files import load_schemas

pytestmark = pytest.mark.real

SCRIPT = Path(__file__).resolve().parent.parent / "peers" / "event_names.mjs"

ONLY_OURS = {
    "agent_notification": "what agents other than qwen tell on their own account",
    "session_created": "of the workspace's stream, which the Qwen daemon has not",
    "workspace_files_changed": "as session_created; the Qwen daemon does not look at files",
}
ONLY_THEIRS = {
    "channel_delivery_result": "messengers, which the gateway has no part in",
    "git_branch_changed": "the daemon watches the repository; the gateway does not",
    "git_status_changed": "as git_branch_changed",
    "github_setup_completed": "a wizard of qwen",
}
NEVER_NARROWED = {
    # The SDK lists them, but asKnownDaemonEvent answers undefined whatever they hold.
    "prompt_cancelled": "clients read it from the raw envelope",
    "replay_complete": "as prompt_cancelled",
    "user_shell_command": "as prompt_cancelled",
    "user_shell_result": "as prompt_cancelled",
}
TAKEN = [name for name in EVENTS if name not in ONLY_OURS and name not in NEVER_NARROWED]
ODD: tuple[Any, ...] = (None, True, "", "x", -1, 0, 0.5, [], [1], {}, {"x": 1})


def examples(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = load_schemas()[f"acp-gateway:events/{name}"]["examples"]
    return found


def frame(name: str, data: Any) -> dict[str, Any]:
    return {"id": 7, "v": 1, "type": name, "data": data, "_meta": {"serverTimestamp": 1}}


def ask_sdk(frames: list[dict[str, Any]]) -> tuple[set[str], list[bool]]:
    """The types that the SDK lists, and which frames it takes."""
    need("node", "qwen-sdk")
    done = subprocess.run(
        [str(node()), str(SCRIPT)],
        input=json.dumps(frames),
        env={**os.environ, "ACP_GATEWAY_PEERS": str(modules_dir())},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    return set(told["known"]), told["taken"]


def test_the_names_are_the_same_but_for_those_with_a_reason() -> None:
    known, _ = ask_sdk([])
    assert set(EVENTS) - known == set(ONLY_OURS)
    assert known - set(EVENTS) == set(ONLY_THEIRS)


def test_examples_are_taken() -> None:
    frames = [frame(name, data) for name in EVENTS for data in examples(name)]
    _, taken = ask_sdk(frames)
    refused = {each["type"] for each, good in zip(frames, taken, strict=True) if not good}
    assert refused == {*ONLY_OURS, *NEVER_NARROWED}


def variants(value: Any) -> Iterator[Any]:
    """``value`` with one member, at any depth, left out or made odd."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        without = copy.copy(value)
        del without[key]
        yield without
        inner = value[key]
        changed = list(ODD)
        if isinstance(inner, (dict, list)):
            changed += variants(inner)
        for each in changed:
            other = copy.copy(value)
            other[key] = each
            yield other


def test_what_the_schemas_allow_is_taken() -> None:
    """A frame that misses something is dropped without a word, so no schema may allow one."""
    frames = [
        frame(name, data)
        for name in TAKEN
        for example in examples(name)
        for data in variants(example)
        if validator(name).is_valid(data)
    ]
    assert len(frames) > 300
    _, taken = ask_sdk(frames)
    assert [each for each, good in zip(frames, taken, strict=True) if not good] == []
