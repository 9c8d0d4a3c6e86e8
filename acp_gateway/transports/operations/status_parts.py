"""Parts of the daemon's status: sessions, agents, memory, speed, usage."""

from __future__ import annotations

import time
from typing import Any

import trio

from acp_gateway.core.tally import Histogram
from acp_gateway.core.usage import Usage
from acp_gateway.runtime.agent_host import AgentHost
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.session_catalog import iso
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.machine_watch import Machine


def live_sessions(hub: Hub) -> list[Session]:
    return [session for session in hub.manager.sessions.values() if session.over is None]


def activity(hub: Hub) -> dict[str, Any]:
    sessions = live_sessions(hub)
    busy = any(len(session.queue) for session in sessions)
    last = max((session.updated_at for session in sessions), default=None)
    return {
        "activePrompts": sum(session.queue.running is not None for session in sessions),
        "lastActivityAt": None if last is None else iso(last),
        "idleSinceMs": None if busy or last is None else max(0, int((time.time() - last) * 1000)),
    }


def session_row(session: Session) -> dict[str, Any]:
    title = session.title
    return {
        "sessionId": session.id,
        "workspaceCwd": str(session.cwd),
        "agent": session.profile.name,
        "createdAt": iso(session.created_at),
        **({} if title is None else {"displayName": title}),
        "clientCount": len(session.parties),
        "subscriberCount": len(session.subs),
        "attachCount": len(session.clients),
        "pendingPromptCount": len(session.queue),
        "pendingPermissionCount": len(session.questions),
        "hasActivePrompt": session.queue.running is not None,
        "lastEventId": session.ring.last_id,
        "ringBytes": session.ring.kept_bytes,
        "lastSeenAt": int(session.updated_at * 1000),
        "currentModelId": session.state.model,
        "currentApprovalMode": session.state.mode,
        "restarts": session.restores,
        "usage": session.usage.all.as_json(),
    }


def agent_rows(hub: Hub, machine: Machine) -> list[dict[str, Any]]:
    """One for each process, and one for each agent that has none and could not be started."""
    pool = hub.manager.pool
    rows = [_agent_row(host, machine) for host in sorted(pool.hosts, key=lambda host: host.began)]
    running = {host.profile.name for host in pool.hosts}
    for name, failure in pool.failures.items():
        if name not in running:
            rows.append({"agent": name, "pid": None, "state": "failed", "error": failure.message})
    return rows


def _agent_row(host: AgentHost, machine: Machine) -> dict[str, Any]:
    facts = machine.agents.get(host.pid or 0)
    sessions = [each for each in host.sessions.values() if isinstance(each, Session)]
    cpu = None if facts is None else facts.cpu_seconds
    return {
        "agent": host.profile.name,
        "pid": host.pid,
        "state": "stopping" if not host.alive else "leased" if host.leases else "spare",
        "sessions": len(host.sessions),
        "uptimeMs": int((trio.current_time() - host.began) * 1000),
        "restarts": max((each.restores for each in sessions), default=0),
        # None: the system does not tell.
        "rssBytes": None if facts is None else facts.rss_bytes,
        "cpuMs": None if cpu is None else round(cpu * 1000),
        "openFds": None if facts is None else facts.open_fds,
        "processes": None if facts is None else facts.processes,
        "diskReadBytes": None if facts is None else facts.disk_read,
        "diskWrittenBytes": None if facts is None else facts.disk_written,
        "bytesIn": host.read_bytes,
        "bytesOut": host.written_bytes,
    }


def memory(hub: Hub) -> dict[str, int]:
    """What events and history take, of the gateway's own memory."""
    return {
        "ringBytes": hub.manager.ring_bytes,
        "transcriptBytes": sum(each.transcript.size for each in hub.manager.sessions.values()),
        "waitingBytes": sum(each.waiting_bytes for each in hub.connections.values()),
    }


def perf(hub: Hub) -> dict[str, Any]:
    wait = hub.manager.ledger.queue_seconds
    read, written = hub.manager.pool.pipe_bytes
    lag = hub.lag.seconds
    return {
        "eventLoop": {
            "meanMs": _ms(lag.mean),
            "p50Ms": _ms(lag.quantile(0.5)),
            "p99Ms": _ms(lag.quantile(0.99)),
            "maxMs": _ms(lag.largest),
        },
        "promptQueueWait": {**_summary(wait), "lastMs": _ms(wait.last)},
        "pipe": {"inbound": {"totalBytes": read}, "outbound": {"totalBytes": written}},
    }


def _summary(of: Histogram) -> dict[str, float]:
    return {"count": of.count, "meanMs": _ms(of.mean), "maxMs": _ms(of.largest)}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def usage_totals(hub: Hub) -> dict[str, Any]:
    """What all turns since the start have used, together and by agent."""
    total = Usage()
    by_agent = hub.manager.ledger.usage
    for usage in by_agent.values():
        total.add(usage)
    return {
        **total.as_json(),
        "byAgent": {name: usage.as_json() for name, usage in by_agent.items()},
    }
