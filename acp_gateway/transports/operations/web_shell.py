"""What the Qwen web shell asks for on its way, answered with what the gateway knows.

Small reads without which it works but fills the browser's console with failures.
"""

from __future__ import annotations

from typing import Any

from acp_gateway.runtime.session_control import ask_qwen
from acp_gateway.transports.operations.call import Call
from acp_gateway.transports.operations.lists import workspace_of


async def brand(call: Call) -> Any:
    return {}


async def settings(call: Call) -> Any:
    """The gateway's settings are the operator's; a client can change none of them."""
    return {"v": 1, "settings": []}


async def models(call: Call) -> Any:
    """Models configured in the workspace: none, they are the agent's (see providers)."""
    return {"models": []}


async def git(call: Call) -> Any:
    """Branch of the workspace; told by no one here."""
    return {"v": 2, "workspaceCwd": str(await workspace_of(call)), "branch": None}


async def skills(call: Call) -> Any:
    """Skills are told by each session (its supported commands), not by the workspace."""
    cwd = str(await workspace_of(call))
    return {"v": 1, "workspaceCwd": cwd, "initialized": False, "skills": []}


async def goal(call: Call) -> Any:
    session = call.session()
    told = await ask_qwen(session, "qwen/control/session/goal/get", {})
    snapshot = None if told is None else told.get("snapshot")
    if not isinstance(snapshot, dict):
        snapshot = {"v": 2, "goal": None, "activity": "idle"}
    return {"snapshot": snapshot}


async def providers(call: Call) -> Any:
    """The models that the newest session's agent offers."""
    manager = call.manager
    live = [each for each in manager.sessions.values() if each.over is None]
    newest = max(live, key=lambda each: each.updated_at, default=None)
    body: dict[str, Any] = {
        "v": 1,
        "workspaceCwd": str(manager.workspace.roots[0]),
        "initialized": newest is not None,
        "acpChannelLive": manager.pool.alive,
        "providers": [],
    }
    offered = [] if newest is None else newest.state.offered_models
    if newest is None or not offered:
        return body
    current = newest.state.model
    agent = newest.profile.name
    body["current"] = {"authType": agent, "modelId": current}
    if newest.state.mode is not None:
        body["approvalMode"] = newest.state.mode
    body["providers"] = [
        {
            "kind": "model_provider",
            "status": "ok",
            "authType": agent,
            "current": True,
            "models": [
                {
                    "modelId": each["modelId"],
                    "baseModelId": each["modelId"],
                    "name": each.get("name") or each["modelId"],
                    "description": each.get("description"),
                    "isCurrent": each["modelId"] == current,
                    "isRuntime": False,
                }
                for each in offered
            ],
        }
    ]
    return body
