"""What an operator should look at: the issues of the daemon's status.

``code`` is a stable word, ``severity`` is ``warning`` (it works, and will not for long or not for
all) or ``error`` (something does not work), ``section`` the part of the status that tells more.
docs/metrics.md has the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from acp_gateway.transports.hub import Hub
from acp_gateway.transports.machine_watch import Machine

HIGH: Final = 0.8
"""Of a limit."""
DISK_SHARE: Final = 0.05
DISK_BYTES: Final = 512 * 1024 * 1024
"""Less than both of these free is low."""

Issue = dict[str, str]


def worst(issues: list[Issue]) -> Literal["ok", "warning", "error"]:
    severities = {each["severity"] for each in issues}
    return "error" if "error" in severities else "warning" if severities else "ok"


def issues_of(hub: Hub, machine: Machine, sections: Mapping[str, Any]) -> list[Issue]:
    """``sections``: ``full.workspace`` of a detailed status, else empty."""
    return [
        *_capacity(hub),
        *_running(hub),
        *_machine(machine),
        *_workspace(sections),
        *_to_do(hub),
    ]


def _issue(code: str, severity: str, section: str, message: str) -> Issue:
    return {"code": code, "severity": severity, "section": section, "message": message}


def _capacity(hub: Hub) -> Iterator[Issue]:
    manager, settings = hub.manager, hub.settings
    sessions = sum(each.over is None for each in manager.sessions.values())
    for code, section, what, count, limit in (
        (
            "session_capacity_high",
            "runtime.sessions",
            "sessions are open",
            sessions,
            settings.max_sessions,
        ),
        (
            "connection_capacity_high",
            "runtime.transport",
            "/acp connections are open",
            len(hub.connections),
            settings.max_connections,
        ),
        (
            "connection_capacity_high",
            "runtime.transport",
            "sockets are open",
            hub.traffic.open_sockets,
            settings.max_tcp_connections,
        ),
        (
            "event_memory_high",
            "runtime.eventMemory",
            "bytes of events are kept",
            manager.ring_bytes,
            settings.total_ring_bytes,
        ),
    ):
        if limit and count >= HIGH * limit:
            yield _issue(code, "warning", section, f"{count} of {limit} {what}")


def _running(hub: Hub) -> Iterator[Issue]:
    manager = hub.manager
    waiting = len(manager.desk.pending())
    if waiting:
        yield _issue(
            "pending_permissions",
            "warning",
            "runtime.permissions",
            f"{waiting} permission requests wait for an answer",
        )
    alive = {host.profile.name for host in manager.pool.hosts if host.alive}
    for name, failure in manager.pool.failures.items():
        if name not in alive:
            yield _issue(
                "acp_channel_down",
                "error",
                "runtime.channel",
                f"No process of the agent {name} runs, and the last start failed: "
                f"{failure.message}",
            )
    hits = sum(hub.rate_limit_hits.values())
    if hits:
        yield _issue(
            "rate_limit_hits",
            "warning",
            "runtime.rateLimit",
            f"{hits} requests were over the rate limit since the start",
        )
    for problem in hub.log_health().get("logIssues", ()):
        yield _issue("daemon_log_degraded", "warning", "daemon.log", problem)


def _to_do(hub: Hub) -> Iterator[Issue]:
    """What only the operator can mend."""
    watch = hub.manager.workspace.watch
    if watch.problem is not None:
        yield _issue("file_watch_degraded", "warning", "runtime.fileWatch", watch.problem)
    told = None if hub.certificates is None else hub.certificates.issue()
    if told is not None:
        yield _issue(told[0], "warning", "security", told[1])
    if hub.live is not None and hub.live.pending:
        names = ", ".join(hub.live.pending)
        yield _issue(
            "restart_required",
            "warning",
            "daemon",
            f"The configuration has changed; to follow it, restart: {names}",
        )


def _machine(machine: Machine) -> Iterator[Issue]:
    for name, disk in machine.disks.items():
        free, total = disk.free_bytes, disk.total_bytes
        if free is not None and total and free < DISK_BYTES and free < DISK_SHARE * total:
            yield _issue(
                "disk_space_low",
                "warning",
                "runtime.disk",
                f"{free >> 20} MiB are free at {disk.path} ({name})",
            )


def _workspace(sections: Mapping[str, Any]) -> Iterator[Issue]:
    for name, section in sections.items():
        if section["status"] == "unavailable":
            yield _issue(
                "workspace_status_unavailable",
                "warning",
                f"workspace.{name}",
                section["error"]["message"],
            )
    if sections.get("preflight", {}).get("status") == "error":
        yield _issue(
            "preflight_error", "error", "preflight", "Workspace preflight reports an error."
        )
