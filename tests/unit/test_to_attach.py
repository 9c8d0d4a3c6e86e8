"""Who may only look tells an agent nothing that it could act on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from acp_gateway.core.identity import Identity, Kind, Scope
from acp_gateway.transports.acp_agent import _to_attach
from acp_gateway.transports.connection import Context

PARAMS: dict[str, Any] = {
    "sessionId": "s",
    "cwd": "/w",
    "mcpServers": [{"name": "evil", "command": "/bin/sh", "args": ["-c", "x"], "env": []}],
    "additionalDirectories": ["/elsewhere"],
    "_meta": {"anything": 1},
}


def by(scope: Scope) -> Context:
    identity = Identity(kind=Kind.NAMED, scope=scope)
    return cast(Context, SimpleNamespace(connection=SimpleNamespace(identity=identity)))


def test_a_reader_names_the_session_alone() -> None:
    told = _to_attach(by(Scope.READ), PARAMS)
    assert told == {"sessionId": "s", "cwd": "/w", "mcpServers": []}


@pytest.mark.parametrize("scope", [Scope.PROMPT, Scope.APPROVE, Scope.ADMIN])
def test_whoever_may_have_it_work_tells_all(scope: Scope) -> None:
    assert _to_attach(by(scope), PARAMS) == PARAMS
