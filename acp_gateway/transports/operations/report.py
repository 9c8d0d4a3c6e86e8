"""How the daemon is: health, readiness, status with its issues, figures, preflight, environment."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

import structlog
import trio

from acp_gateway import __version__
from acp_gateway.config_access import ANY_ORIGIN
from acp_gateway.core.identity import Kind, Scope
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.session_catalog import iso
from acp_gateway.transports.guards import unauthorized
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.operations import web_shell
from acp_gateway.transports.operations.call import NO_STORE, Call, Reply
from acp_gateway.transports.operations.daemon import capabilities
from acp_gateway.transports.operations.issues import issues_of, worst
from acp_gateway.transports.operations.status_parts import (
    activity,
    agent_rows,
    live_sessions,
    memory,
    perf,
    session_row,
    usage_totals,
)

log = structlog.get_logger("acp_gateway.report")

SECTION_TIMEOUT: Final = 10.0


# ---- health --------------------------------------------------------------------------------------


async def health(call: Call) -> Any:
    """Shallow: that the gateway answers at all. ``deep``: with counters, 503 when they fail.

    Raises ``auth_required`` and ``insufficient_scope`` for the counters, which tell what goes on:
    without a token they are for programs of this machine, and not with ``require_auth``.
    """
    deep = call.params.get("deep")
    if deep not in (True, "1", "true", ""):
        return {"status": "ok", "version": __version__}
    identity, hub = call.caller.identity, call.hub
    if hub.settings.require_auth or not hub.policy.loopback:
        if identity.kind is Kind.NOBODY:
            raise unauthorized()
        identity.demand(Scope.READ)
    try:
        return _deep_health(call.hub)
    except Exception:  # whatever it is, the answer to a probe says that something is wrong
        log.exception("health_failed")
        body = {"status": "degraded", "reason": "aggregation_failed"}
        return Reply(body=body, status=503, headers=NO_STORE)


def _deep_health(hub: Hub) -> dict[str, Any]:
    sessions = live_sessions(hub)
    doing = activity(hub)
    return {
        "status": "ok",
        "version": __version__,
        "workspaceCount": len(hub.manager.workspace.roots),
        "sessions": len(sessions),
        "pendingPermissions": len(hub.manager.desk.pending()),
        "activeWork": doing["activePrompts"] > 0,
        "connectedClients": hub.event_streams,
        "channelAlive": hub.manager.pool.alive,
        **doing,
        "rateLimitHits": hub.rate_limit_hits,
    }


async def readyz(call: Call) -> Any:
    """Can it take a session? What must be waited for, and what has failed, is a 503.

    A full gateway stays ready: its clients would lose their way to the sessions that they have.
    """
    manager = call.manager
    name = call.hub.default_profile.name
    if manager.draining:
        return _not_ready("draining")
    if not manager.pool.alive and name in manager.pool.failures:
        return _not_ready("agent_failed")
    if name not in manager.pool.handshakes:
        return _not_ready("agent_starting")
    return Reply(body={"status": "ready"}, headers=NO_STORE)


def _not_ready(word: str) -> Reply:
    return Reply(body={"status": word}, status=503, headers=NO_STORE)


# ---- figures -------------------------------------------------------------------------------------


async def metrics(call: Call) -> Any:
    """In the text format of Prometheus, or of OpenMetrics for who prefers it."""
    machine = await call.hub.look()
    # The library takes long to import; only who is scraped needs it.
    prometheus: Any = await trio.to_thread.run_sync(
        importlib.import_module, "acp_gateway.transports.prometheus"
    )
    body, media = prometheus.exposition(call.hub, machine, call.accept)
    return Reply(raw=body, headers={"content-type": media, **NO_STORE})


# ---- status --------------------------------------------------------------------------------------


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
    machine = await hub.look()
    sections = await _sections(call) if detail == "full" else {}
    sessions = live_sessions(hub)
    issues = issues_of(hub, machine, sections)
    log_health = hub.log_health()
    streams = [each.kind for each in hub.connections.values()]
    body: dict[str, Any] = {
        "v": 1,
        "detail": detail,
        "generatedAt": iso(time.time()),
        "status": worst(issues),
        "issues": issues,
        "daemon": {
            "pid": os.getpid(),
            "version": __version__,
            "qwenCodeVersion": __version__,
            "uptimeMs": int(hub.uptime * 1000),
            "mode": "http-bridge",
            "workspaceCwd": str(manager.workspace.roots[0]),
            "agents": list(manager.profiles),
            "daemonId": f"daemon:{os.getpid()}",
            # Where the log is and what is wrong with it is told in detail only.
            **{
                name: value
                for name, value in log_health.items()
                if detail == "full" or name in ("logMode", "logHealth")
            },
        },
        "security": {
            "tokenConfigured": hub.policy.token_digest is not None,
            "requireAuth": settings.require_auth,
            "loopbackBind": hub.policy.loopback,
            "allowOriginConfigured": bool(settings.allow_origin),
            "allowOriginMode": _origin_mode(settings.allow_origin),
            "trustLoopback": settings.trust_loopback,
            "sessionShellCommandEnabled": manager.shell_is_on,
            "workspaceTrusted": manager.workspace.trusted,
        },
        "limits": {
            "maxSessions": settings.max_sessions,
            "maxTotalSessions": settings.max_sessions,
            "maxPendingPromptsPerSession": settings.max_queued_prompts,
            "maxConnections": settings.max_connections,
            "acpConnectionCap": settings.max_connections,
            "listenerMaxConnections": settings.max_tcp_connections,
            "maxSubscribersPerSession": settings.max_subscribers,
            "maxAgents": manager.pool.max_agents,
            "eventRingSize": settings.event_ring_size,
            "eventRingBytes": settings.event_ring_bytes,
            "totalRingBytes": settings.total_ring_bytes,
            "compactedReplayMaxBytes": settings.transcript_bytes,
            "promptDeadlineMs": round(settings.prompt_deadline * 1000) or None,
            "permissionTimeoutMs": round(settings.permission_timeout * 1000),
            "writerIdleTimeoutMs": round(settings.evict_timeout * 1000),
            "sessionIdleTimeoutMs": round(settings.linger * 1000),
            "channelIdleTimeoutMs": round(settings.agent_idle * 1000),
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
            "channelWorker": {"enabled": False, "state": "disabled", "channels": []},
            "transport": {
                "restSseActive": hub.event_streams,
                "sockets": hub.traffic.open_sockets,
                "acp": {
                    "enabled": True,
                    "connections": len(hub.connections),
                    "connectionStreams": len(streams),
                    "sessionStreams": sum(len(each.subs) for each in hub.connections.values()),
                    "sseStreams": streams.count("http"),
                    "wsStreams": streams.count("ws"),
                    "pendingClientRequests": sum(
                        each.asked_count for each in hub.connections.values()
                    ),
                },
            },
            "fileWatch": {
                "enabled": manager.workspace.watch.enabled,
                "active": manager.workspace.watch.active,
                "directories": manager.workspace.watch.directories,
            },
            "rateLimit": _rate_limit(hub),
            "perf": perf(hub),
            "activity": {
                **activity(hub),
                "pendingPrompts": sum(len(session.queue) for session in sessions),
                "queuedPrompts": sum(len(session.queue.waiting) for session in sessions),
            },
            "usage": usage_totals(hub),
            "process": {
                "tasks": trio.lowlevel.current_statistics().tasks_living,
                "rss": machine.own.rss_bytes,
                "cpuMs": _ms(machine.own.cpu_seconds),
                "openFds": machine.own.open_fds,
                "maxFds": machine.max_fds,
            },
            "eventMemory": memory(hub),
            "agents": agent_rows(hub, machine),
            "disk": [
                {
                    "place": name,
                    "path": found.path,
                    "totalBytes": found.total_bytes,
                    "freeBytes": found.free_bytes,
                }
                for name, found in machine.disks.items()
            ],
        },
    }
    if detail == "full":
        body["full"] = {
            "sessions": [session_row(session) for session in sessions],
            "acpConnections": [
                {
                    "transport": each.kind,
                    "client": each.client_name,
                    "sessionCount": len(each.subs),
                    "initialized": each.initialized,
                }
                for each in hub.connections.values()
            ],
            "workspace": sections,
            "auth": hub.sign_ins.summary() if hub.sign_ins else {},
        }
    return Reply(body=body, headers=NO_STORE)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _rate_limit(hub: Hub) -> dict[str, Any]:
    if hub.limits is None:
        return {"enabled": False, "rejectedSinceStart": hub.rate_limit_hits}
    return hub.limits.snapshot()


def _origin_mode(allowed: Collection[str]) -> str:
    return "any" if ANY_ORIGIN in allowed else "list" if allowed else "none"


async def _sections(call: Call) -> dict[str, Any]:
    """``full.workspace``: each part by itself, so that one that fails takes nothing with it."""
    parts: dict[str, Callable[[Call], Awaitable[Any]]] = {
        "preflight": preflight,
        "env": env,
        "providers": web_shell.providers,
    }
    found: dict[str, Any] = {}

    async def run(name: str, part: Callable[[Call], Awaitable[Any]]) -> None:
        found[name] = await _section(name, part(call))

    async with trio.open_nursery() as nursery:
        for name, part in parts.items():
            nursery.start_soon(run, name, part)
    return {name: found[name] for name in parts}


async def _section(name: str, asking: Awaitable[Any]) -> dict[str, Any]:
    began = time.perf_counter()
    section: dict[str, Any] = {"status": "unavailable"}
    try:
        with trio.fail_after(SECTION_TIMEOUT):
            told = await asking
        data = told.body if isinstance(told, Reply) else told
        cells = data.get("cells", ())
        section = {"status": _rolled_up(cells), "summary": _summary(data), "data": data}
    except trio.TooSlowError:
        section["error"] = {"kind": "timeout", "message": f"{name} took too long"}
    except Exception:
        log.exception("status_section_failed", section=name)
        section["error"] = {"kind": "error", "message": f"{name} could not be collected"}
    section["durationMs"] = round((time.perf_counter() - began) * 1000)
    return section


def _rolled_up(cells: Any) -> str:
    states = {each.get("status") for each in cells}
    return "error" if "error" in states else "warning" if "warning" in states else "ok"


def _summary(data: dict[str, Any]) -> dict[str, Any]:
    """The flags, and how long each list is."""
    flags = {name: value for name, value in data.items() if isinstance(value, bool)}
    return flags | {f"{k}Count": len(v) for k, v in data.items() if isinstance(v, list)}


# ---- the workspace -------------------------------------------------------------------------------


def _head(hub: Hub) -> dict[str, Any]:
    return {
        "v": 1,
        "workspaceCwd": str(hub.manager.workspace.roots[0]),
        "initialized": True,
        "acpChannelLive": hub.manager.pool.alive,
    }


async def preflight(call: Call) -> Any:
    cells = await call.hub.preflight.cells()
    return Reply(body={**_head(call.hub), "cells": cells}, headers=NO_STORE)


async def env(call: Call) -> Any:
    from acp_gateway.runtime.preflight import env_cells

    profiles = tuple(call.manager.profiles.values())
    cells = await trio.to_thread.run_sync(env_cells, profiles, dict(os.environ))
    return Reply(body={**_head(call.hub), "cells": cells}, headers=NO_STORE)
