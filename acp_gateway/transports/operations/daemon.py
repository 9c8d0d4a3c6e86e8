"""Operations of the daemon itself."""

from __future__ import annotations

import hashlib
from typing import Any

from acp_gateway import __version__
from acp_gateway.core.mediator import Policy
from acp_gateway.protocol.extensions import features
from acp_gateway.protocol.schema_files import OPENAPI, load_document
from acp_gateway.transports.operations.call import Call
from acp_gateway.transports.operations.files import check_client


def workspace_id(root: str) -> str:
    """16 hex digits that stand for a root in URLs."""
    return hashlib.sha256(root.encode()).hexdigest()[:16]


async def capabilities(call: Call) -> Any:
    hub = call.hub
    settings = hub.settings
    roots = [str(root) for root in hub.manager.workspace.roots]
    profile = hub.default_profile
    return {
        "v": 1,
        "protocolVersions": {"current": "v1", "supported": ["v1"]},
        "gatewayVersion": __version__,
        "qwenCodeVersion": __version__,
        "mode": "http-bridge",
        "features": features(
            agent_extensions=profile.quirks.private_meta,
            flags={
                "session_id_override": profile.quirks.chosen_session_ids,
                "require_auth": settings.require_auth,
                "auth_device_flow": bool(hub.sign_ins and hub.sign_ins.providers),
                "allow_origin": bool(settings.allow_origin),
                "rate_limit": settings.rate_limit,
                "session_shell_command": hub.manager.shell_is_on,
                "workspace_file_events": settings.watch_files,
            },
        ),
        "transports": ["rest", "acp-ws", "acp-http"],
        "modelServices": [],
        "workspaceCwd": roots[0],
        "workspaces": [
            {
                "id": workspace_id(root),
                "cwd": root,
                "primary": index == 0,
                "trusted": hub.manager.workspace.trusted,
                "removable": False,
            }
            for index, root in enumerate(roots)
        ],
        "agents": list(hub.manager.profiles),
        "policy": {"permission": settings.permission_policy},
        "permissionPolicies": [each.value for each in Policy],
        "limits": {
            "maxPendingPromptsPerSession": settings.max_queued_prompts,
            "maxSessionsPerWorkspace": settings.max_sessions,
            "maxTotalSessions": settings.max_sessions,
            "sessionRestoreTimeoutMs": round(settings.agent_request_timeout * 1000),
        },
        "supportedLanguages": [],
    }


async def reload(call: Call) -> Any:
    """Read the configuration again. Who may is the row's business."""
    check_client(call)
    assert call.hub.reloader is not None, "the daemon sets it before it listens"
    return await call.hub.reloader.reload("request", call.caller.client_id)


async def openapi(call: Call) -> Any:
    return load_document(OPENAPI)
