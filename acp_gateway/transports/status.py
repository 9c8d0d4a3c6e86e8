"""What the daemon says of itself to a program: ``GET /status`` that accepts JSON."""

from __future__ import annotations

import os
from typing import Any

from acp_gateway import __version__
from acp_gateway.transports.hub import Hub


def status_body(hub: Hub) -> dict[str, Any]:
    manager, pool = hub.manager, hub.manager.pool
    return {
        "v": 1,
        "status": "draining" if manager.draining else "ok",
        "version": __version__,
        "pid": os.getpid(),
        "workspaces": [str(root) for root in manager.workspace.roots],
        "isolation": hub.settings.isolation,
        "agents": [_agent(hub, name) for name in manager.profiles],
        "processes": [
            {
                "agent": host.profile.name,
                "pid": host.pid,
                "sessions": len(host.sessions),
                "spare": host.leases == 0,
            }
            for host in pool.hosts
        ],
        "sessions": [
            {
                "sessionId": session.id,
                "agent": session.profile.name,
                "cwd": str(session.cwd),
                "clients": len(session.clients),
                "running": session.queue.running is not None,
                "queued": len(session.queue.waiting),
                "openPermissions": len(session.questions),
                "lastEventId": session.ring.last_id,
                "ringBytes": session.ring.kept_bytes,
            }
            for session in manager.sessions.values()
        ],
        "connections": [
            {
                "connection": connection.label,
                "transport": connection.kind,
                "client": connection.client_name,
                "identity": connection.identity.name,
                "sessions": list(connection.subs),
            }
            for connection in hub.connections.values()
        ],
        "limits": {
            "maxSessions": hub.settings.max_sessions,
            "maxConnections": hub.settings.max_connections,
            "maxAgents": pool.max_agents,
        },
    }


def _agent(hub: Hub, name: str) -> dict[str, Any]:
    pool = hub.manager.pool
    handshake = pool.handshakes.get(name)
    failure = pool.failures.get(name)
    return {
        "name": name,
        "ready": handshake is not None,
        "info": None if handshake is None else handshake.get("agentInfo"),
        "error": None if failure is None else failure.message,
    }
