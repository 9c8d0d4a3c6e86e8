"""The answer to initialize, held against the official package's model."""

from __future__ import annotations

from typing import Any

import pytest
from acp.schema import InitializeResponse

from acp_gateway import __version__
from acp_gateway.protocol.capabilities import initialize_result

FULL = {
    "protocolVersion": 1,
    "agentInfo": {"name": "theirs", "version": "9"},
    "agentCapabilities": {
        "loadSession": False,
        "promptCapabilities": {"image": True},
        "mcpCapabilities": {"http": True},
        "sessionCapabilities": {"list": None, "delete": {}, "fork": {"_meta": {}}, "other": {}},
        "auth": {"logout": {}},
        "_meta": {"theirs": 1},
    },
    "authMethods": [{"id": "login", "name": "Log in"}],
}


def answer(agent: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "connection_id": "c",
        "workspaces": ("/w", "/x"),
        "agents": ("demo", "qwen"),
        "profile": "demo",
    }
    return initialize_result(agent, **{**known, **changes})


@pytest.mark.parametrize(
    "agent",
    [
        None,
        {},
        FULL,
        {"agentCapabilities": None, "authMethods": None},
        {"agentCapabilities": [], "authMethods": {}, "agentInfo": "x"},
        {"agentCapabilities": {"sessionCapabilities": [], "promptCapabilities": 1, "auth": 2}},
        {"agentCapabilities": {"sessionCapabilities": {"fork": True, "delete": None}}},
    ],
)
def test_it_is_valid_whatever_the_agent_said(agent: dict[str, Any] | None) -> None:
    result = answer(agent)
    InitializeResponse.model_validate(result)
    assert result["protocolVersion"] == 1
    # What the gateway does by itself, it does for any agent.
    capabilities = result["agentCapabilities"]
    assert capabilities["loadSession"] is True
    assert {"list", "resume", "close"} <= set(capabilities["sessionCapabilities"])
    assert result["agentInfo"]["name"] == "acp-gateway"
    assert result["agentInfo"]["version"] == __version__


def test_the_agents_own_abilities_pass_and_others_are_not_claimed() -> None:
    capabilities = answer(FULL)["agentCapabilities"]
    assert capabilities["promptCapabilities"] == {"image": True}
    assert capabilities["mcpCapabilities"] == {"http": True}
    assert capabilities["auth"] == {"logout": {}}
    assert set(capabilities["sessionCapabilities"]) == {"list", "resume", "close", "delete", "fork"}
    assert answer(FULL)["authMethods"] == FULL["authMethods"]
    nothing = answer({})["agentCapabilities"]
    assert set(nothing["sessionCapabilities"]) == {"list", "resume", "close"}
    assert nothing["promptCapabilities"] == {} and "auth" not in nothing


def test_before_the_first_handshake_no_content_is_refused() -> None:
    prompt = answer(None)["agentCapabilities"]["promptCapabilities"]
    assert prompt == {"image": True, "audio": True, "embeddedContext": True}


def test_what_is_ours_stands_in_meta_beside_theirs() -> None:
    meta = answer(FULL)["agentCapabilities"]["_meta"]
    assert meta["theirs"] == 1
    assert meta["acp_gateway"] == {
        "connectionId": "c",
        "cursor": True,
        "agent": "demo",
        "agents": ["demo", "qwen"],
        "workspaces": ["/w", "/x"],
        "agentInfo": FULL["agentInfo"],
    }
    assert meta["qwen"]["workspaceCwd"] == "/w"
    assert answer(None, workspaces=())["agentCapabilities"]["_meta"]["qwen"]["workspaceCwd"] is None
