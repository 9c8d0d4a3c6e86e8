"""Code publishes only event types of the closed list."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import acp_gateway
from acp_gateway.protocol.events import EVENTS

_PUBLISHERS = {"publish", "notice", "_tell", "synthetic", "_frame", "_queue_event", "Publish"}


def _published() -> Iterator[tuple[str, str]]:
    for path in Path(acp_gateway.__file__).parent.rglob("*.py"):
        if path.parent.name == "demo_agent":
            continue  # a program of its own
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else None
            name = function.id if isinstance(function, ast.Name) else name
            for argument in node.args if name in _PUBLISHERS else ():
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value, f"{path.name}:{node.lineno}"


def test_only_types_of_the_list_are_published() -> None:
    found = [(kind, where) for kind, where in _published() if not kind.startswith("_qwen/")]
    assert {kind for kind, _ in found} >= {"turn_complete", "session_closed", "replay_complete"}
    assert [each for each in found if each[0] not in EVENTS] == []


def test_every_type_that_is_published_is_marked_so() -> None:
    told = {kind for kind, _ in _published()}
    assert not {kind for kind in told if kind in EVENTS and not EVENTS[kind].published}
