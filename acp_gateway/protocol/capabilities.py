"""What the gateway says of itself to a client: the answer to ``initialize``.

Prompt and MCP capabilities are the agent's own; what the gateway does by itself it says itself.
"""

from __future__ import annotations

from typing import Any

from acp_gateway import __version__


def initialize_result(
    agent: dict[str, Any] | None,
    *,
    connection_id: str,
    workspaces: tuple[str, ...],
    agents: tuple[str, ...],
    profile: str,
    methods: tuple[str, ...] = (),
    identity: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """``agent`` is the profile's last good handshake, None when there was none yet; ``methods``
    are the ``_qwen/*`` methods that work with it; ``identity`` is what the client came in as."""
    handshake = agent or {}
    theirs = _object(handshake.get("agentCapabilities"))
    sessions = _object(theirs.get("sessionCapabilities"))
    prompt = theirs.get("promptCapabilities")
    if agent is None:
        # Nothing is known: refuse no content here; the agent itself does.
        prompt = {"image": True, "audio": True, "embeddedContext": True}
    capabilities: dict[str, Any] = {
        # Attaching to a live session works for any agent.
        "loadSession": True,
        "promptCapabilities": _object(prompt),
        "mcpCapabilities": _object(theirs.get("mcpCapabilities")),
        "sessionCapabilities": {
            "list": {},
            "resume": {},
            "close": {},
            **{
                name: sessions[name]
                for name in ("delete", "fork", "additionalDirectories")
                if isinstance(sessions.get(name), dict)
            },
        },
        "_meta": {
            **_object(theirs.get("_meta")),
            "acp_gateway": {
                "connectionId": connection_id,
                "cursor": True,
                "agent": profile,
                "agents": list(agents),
                "workspaces": list(workspaces),
                "agentInfo": handshake.get("agentInfo"),
                **({} if identity is None else {"identity": identity}),
            },
            "qwen": {
                "connectionId": connection_id,
                "workspaceCwd": workspaces[0] if workspaces else None,
                "methods": list(methods),
            },
        },
    }
    if isinstance(theirs.get("auth"), dict):
        capabilities["auth"] = theirs["auth"]
    auth_methods = handshake.get("authMethods")
    return {
        "protocolVersion": 1,
        "agentCapabilities": capabilities,
        "agentInfo": {"name": "acp-gateway", "title": "ACP Gateway", "version": __version__},
        "authMethods": auth_methods if isinstance(auth_methods, list) else [],
    }


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
