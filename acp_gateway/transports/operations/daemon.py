"""Operations of the daemon itself."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any, Final

import trio

from acp_gateway import __version__
from acp_gateway.core.mediator import Policy
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.extensions import features
from acp_gateway.protocol.schema_files import OPENAPI, load_document
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.session_catalog import iso
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.operations.call import Call, Reply

NO_STORE: Final = {"cache-control": "no-store"}


def workspace_id(root: str) -> str:
    """16 hex digits that stand for a root in URLs."""
    return hashlib.sha256(root.encode()).hexdigest()[:16]


def _live(hub: Hub) -> list[Session]:
    return [session for session in hub.manager.sessions.values() if session.over is None]


def _activity(hub: Hub) -> dict[str, Any]:
    sessions = _live(hub)
    busy = any(len(session.queue) for session in sessions)
    last = max((session.updated_at for session in sessions), default=None)
    return {
        "activePrompts": sum(session.queue.running is not None for session in sessions),
        "lastActivityAt": None if last is None else iso(last),
        "idleSinceMs": None if busy or last is None else max(0, int((time.time() - last) * 1000)),
    }


async def health(call: Call) -> Any:
    deep = call.params.get("deep")
    if deep not in (True, "1", "true", ""):
        return {"status": "ok", "version": __version__}
    hub = call.hub
    sessions = _live(hub)
    activity = _activity(hub)
    return {
        "status": "ok",
        "version": __version__,
        "workspaceCount": len(hub.manager.workspace.roots),
        "sessions": len(sessions),
        "pendingPermissions": len(hub.manager.desk.pending()),
        "activeWork": activity["activePrompts"] > 0,
        "connectedClients": hub.event_streams,
        "channelAlive": hub.manager.pool.alive,
        **activity,
    }


async def readyz(call: Call) -> Any:
    if call.manager.draining:
        return Reply(body={"status": "draining"}, status=503)
    return {"status": "ready"}


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
                "allow_origin": bool(settings.allow_origin),
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
                "trusted": True,
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


async def status(call: Call) -> Any:
    detail = call.params.get("detail", "summary")
    if detail not in ("summary", "full"):
        raise GatewayError(
            ErrorKind.INVALID_DETAIL,
            "`detail` must be summary or full",
            allowed=["summary", "full"],
        )
    hub = call.hub
    settings, manager = hub.settings, hub.manager
    sessions = _live(hub)
    issues = _issues(hub, sessions)
    worst = {each["severity"] for each in issues}
    body: dict[str, Any] = {
        "v": 1,
        "detail": detail,
        "generatedAt": iso(time.time()),
        "status": "error" if "error" in worst else "warning" if worst else "ok",
        "issues": issues,
        "daemon": {
            "pid": os.getpid(),
            "version": __version__,
            "qwenCodeVersion": __version__,
            "uptimeMs": int((trio.current_time() - hub.began) * 1000),
            "mode": "http-bridge",
            "workspaceCwd": str(manager.workspace.roots[0]),
            "agents": list(manager.profiles),
        },
        "security": {
            "tokenConfigured": settings.token is not None,
            "requireAuth": settings.require_auth,
            "loopbackBind": hub.policy.loopback,
            "allowOriginConfigured": bool(settings.allow_origin),
            "trustLoopback": settings.trust_loopback,
        },
        "limits": {
            "maxSessions": settings.max_sessions,
            "maxPendingPromptsPerSession": settings.max_queued_prompts,
            "maxConnections": settings.max_connections,
            "listenerMaxConnections": settings.max_tcp_connections,
            "maxSubscribersPerSession": settings.max_subscribers,
            "eventRingSize": settings.event_ring_size,
            "eventRingBytes": settings.event_ring_bytes,
            "promptDeadlineMs": round(settings.prompt_deadline * 1000) or None,
            "permissionTimeoutMs": round(settings.permission_timeout * 1000),
            "writerIdleTimeoutMs": round(settings.evict_timeout * 1000),
            "sessionIdleTimeoutMs": round(settings.linger * 1000),
        },
        "capabilities": {
            "protocolVersions": {"current": "v1", "supported": ["v1"]},
            "features": (await capabilities(call))["features"],
        },
        "runtime": {
            "sessions": {"active": len(sessions), "admissionInFlight": manager.starting},
            "permissions": {
                "pending": len(manager.desk.pending()),
                "policy": settings.permission_policy,
            },
            "channel": {"live": manager.pool.alive},
            "process": {"tasks": trio.lowlevel.current_statistics().tasks_living},
            "transport": {
                "restSseActive": hub.event_streams,
                "acp": {"enabled": True, "connections": len(hub.connections)},
            },
            "activity": {
                **_activity(hub),
                "pendingPrompts": sum(len(session.queue) for session in sessions),
                "queuedPrompts": sum(len(session.queue.waiting) for session in sessions),
            },
        },
    }
    if detail == "full":
        body["full"] = {"sessions": [_session(session) for session in sessions]}
    return body


def _issues(hub: Hub, sessions: list[Session]) -> list[dict[str, str]]:
    issues = []
    limit = hub.settings.max_sessions
    if len(sessions) >= 0.8 * limit:
        issues.append(("session_capacity_high", f"{len(sessions)} of {limit} sessions are open"))
    limit = hub.settings.max_connections
    if len(hub.connections) >= 0.8 * limit:
        issues.append(
            ("connection_capacity_high", f"{len(hub.connections)} of {limit} connections are open")
        )
    waiting = len(hub.manager.desk.pending())
    if waiting:
        issues.append(("pending_permissions", f"{waiting} permission requests wait for an answer"))
    return [
        {"code": code, "severity": "warning", "section": "runtime", "message": message}
        for code, message in issues
    ]


def _session(session: Session) -> dict[str, Any]:
    return {
        "sessionId": session.id,
        "workspaceCwd": str(session.cwd),
        "agent": session.profile.name,
        "createdAt": iso(session.created_at),
        "clientCount": len(session.parties),
        "subscriberCount": len(session.subs),
        "pendingPromptCount": len(session.queue),
        "pendingPermissionCount": len(session.questions),
        "hasActivePrompt": session.queue.running is not None,
        "lastEventId": session.ring.last_id,
        "lastSeenAt": int(session.updated_at * 1000),
        "currentModelId": session.state.model,
        "currentApprovalMode": session.state.mode,
    }


async def openapi(call: Call) -> Any:
    return load_document(OPENAPI)
