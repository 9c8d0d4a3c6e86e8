"""Everything that is told in numbers, as families of samples: read from its owners, when asked.

Nothing here is kept and nothing is counted. How the families are written down is another module's
business (`transports.prometheus`). docs/metrics.md has the table for readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Final, Literal, TypeAlias

import attrs

from acp_gateway import __version__
from acp_gateway.core.tally import Counts, Histogram, Histograms
from acp_gateway.core.usage import Usage
from acp_gateway.runtime.ledger import ENDINGS, STOP_REASONS
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.machine_watch import Machine

PREFIX: Final = "acp_gateway_"
EVICTIONS: Final = ("queue_overflow", "queue_bytes_overflow", "writer_idle_timeout")
"""Why readers are cut off."""

Value: TypeAlias = float | Histogram
Values: TypeAlias = Mapping[tuple[str, ...], float]
Sample: TypeAlias = tuple[tuple[str, ...], Value]


@attrs.frozen
class Family:
    """One metric. ``name`` has no prefix, and no ``_total`` for a counter."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]
    samples: Sequence[Sample]
    unit: str = ""
    """The base unit, which the name ends with."""


def counter(name: str, help: str, labels: str, counts: Values, *known: Iterable[str]) -> Family:
    """``known``: values of each label that are told from the start as 0, so that the first one is
    seen as a rise."""
    zero: dict[tuple[str, ...], float] = dict.fromkeys(product(*known), 0) if known else {}
    return Family(name, "counter", help, tuple(labels.split()), list((zero | {**counts}).items()))


def total(name: str, help: str, value: float, unit: str = "") -> Family:
    return Family(name, "counter", help, (), [((), value)], unit)


def gauge(name: str, help: str, value: float | None, unit: str = "") -> Family:
    """None: not known, so there is no sample."""
    return Family(name, "gauge", help, (), [] if value is None else [((), value)], unit)


def gauges(name: str, help: str, labels: str, values: Values, unit: str = "") -> Family:
    return Family(name, "gauge", help, tuple(labels.split()), list(values.items()), unit)


def histograms(name: str, help: str, labels: str, values: Histograms) -> Family:
    return Family(name, "histogram", help, tuple(labels.split()), list(values.items()), "seconds")


def histogram(name: str, help: str, value: Histogram) -> Family:
    return Family(name, "histogram", help, (), [((), value)], "seconds")


def families(hub: Hub, machine: Machine) -> Iterator[Family]:
    """All of them, in the order in which they are told. Synchronous: one moment's picture."""
    yield gauges("build_info", "What is running: always 1.", "version", {(__version__,): 1})
    yield from _sessions(hub)
    yield from _turns(hub)
    yield from _usage(hub)
    yield from _events(hub)
    yield from _readers(hub)
    yield from _permissions(hub)
    yield from _agents(hub, machine)
    yield from _requests(hub)
    yield from _process(hub, machine)


def _sessions(hub: Hub) -> Iterator[Family]:
    manager, ledger = hub.manager, hub.manager.ledger
    open_now = Counts({(name,): 0 for name in manager.profiles})
    for session in manager.sessions.values():
        open_now.add(session.profile.name)
    yield gauges("sessions", "Sessions that are open.", "agent", open_now)
    yield gauge("sessions_limit", "Sessions that may be open.", hub.settings.max_sessions)
    yield gauge("sessions_starting", "Sessions that are being opened.", manager.starting)
    yield counter(
        "sessions_created",
        "Sessions that were opened.",
        "agent how",
        ledger.created,
        manager.profiles,
        ("new", "load", "resume"),
    )
    yield counter(
        "sessions_ended",
        "Sessions that ended.",
        "agent reason",
        ledger.ended,
        manager.profiles,
        ENDINGS,
    )
    yield counter(
        "sessions_died",
        "Times that a session lost its agent or failed; recoverable ones live on.",
        "agent reason recoverable",
        ledger.died,
    )
    yield counter(
        "sessions_restored",
        "Times that a session went on with a new process of its agent.",
        "agent",
        ledger.restored,
        manager.profiles,
    )


def _turns(hub: Hub) -> Iterator[Family]:
    manager, ledger = hub.manager, hub.manager.ledger
    queues = [session.queue for session in manager.sessions.values()]
    running = sum(queue.running is not None for queue in queues)
    yield gauge("turns_running", "Prompts that an agent works on.", running)
    queued = sum(len(queue.waiting) for queue in queues)
    yield gauge("turns_queued", "Prompts that wait behind another.", queued)
    yield counter(
        "turns",
        "Prompts that ended, also those that never ran; error: see turn_errors.",
        "agent stop_reason",
        ledger.turns,
        manager.profiles,
        (*sorted(STOP_REASONS), "other", "error"),
    )
    yield counter(
        "turn_errors", "Prompts that ended with an error.", "agent kind", ledger.turn_errors
    )
    yield histograms(
        "turn_duration_seconds", "From a prompt's start to its end.", "agent", ledger.turn_seconds
    )
    yield histogram(
        "turn_queue_wait_seconds",
        "From the moment that a prompt came to its start.",
        ledger.queue_seconds,
    )


def _usage(hub: Hub) -> Iterator[Family]:
    used: Mapping[str, Usage] = hub.manager.ledger.usage
    tokens: Values = {
        (agent, kind): number
        for agent, usage in used.items()
        for kind, number in usage.tokens.items()
    }
    yield counter("tokens", "Tokens that agents said they used.", "agent type", tokens)
    costs: Values = {
        (agent, currency): amount
        for agent, usage in used.items()
        for currency, amount in usage.cost.items()
    }
    yield counter("cost", "What agents said that it cost.", "agent currency", costs)


def _events(hub: Hub) -> Iterator[Family]:
    manager, settings = hub.manager, hub.settings
    totals = manager.event_totals()
    yield counter("events", "Events that were published.", "kind", totals.kinds)
    yield total("events_bytes", "Bytes of events that were published.", totals.bytes, "bytes")
    yield total("events_evicted", "Events that rings no longer hold.", totals.evicted)
    yield gauge("ring_bytes", "Bytes of events that rings hold.", manager.ring_bytes, "bytes")
    yield gauge(
        "ring_limit_bytes",
        "Bytes of events that rings may hold together.",
        settings.total_ring_bytes,
        "bytes",
    )
    folded = sum(session.transcript.size for session in manager.sessions.values())
    yield gauge("transcript_bytes", "Bytes of folded history beside the rings.", folded, "bytes")


def _readers(hub: Hub) -> Iterator[Family]:
    manager, traffic = hub.manager, hub.traffic
    connections = Counts({("ws",): 0, ("http",): 0})
    readers = Counts({("ws",): 0, ("http",): 0, ("sse",): hub.event_streams})
    for each in hub.connections.values():
        connections.add(each.kind)
        readers.add(each.kind, by=len(each.subs))
    yield gauges(
        "connections",
        "Open /acp connections.",
        "transport",
        connections,
    )
    yield gauge(
        "connections_limit", "/acp connections that may be open.", hub.settings.max_connections
    )
    yield counter(
        "connections_opened",
        "/acp connections that were opened.",
        "transport",
        traffic.connections,
        ("ws", "http"),
    )
    yield gauge("sockets", "Open TCP connections.", traffic.open_sockets)
    yield total("sockets_accepted", "TCP connections that were accepted.", traffic.sockets)
    yield gauges("subscribers", "Readers of events.", "transport", readers)
    yield total("event_streams_opened", "Event streams that were opened.", traffic.event_streams)
    paused = manager.ledger.pauses
    lag = 0
    for session in manager.sessions.values():
        paused += session.pauses
        lag = max(lag, *(sub.lag_bytes for sub in session.subs), 0)
    yield gauge("lag_bytes", "Bytes that the slowest reader is behind.", lag, "bytes")
    yield total(
        "agent_pauses", "Times that an agent was not read for a slow reader's sake.", paused
    )
    yield total("slow_warnings", "Times that a reader was told it is slow.", traffic.slow_warnings)
    yield counter("evictions", "Readers that were cut off.", "reason", traffic.evictions, EVICTIONS)
    yield counter(
        "replays", "Readers that came back with their last event id.", "outcome", traffic.replays
    )
    resyncs = Counts(traffic.resyncs)
    resyncs.add("ring_evicted", by=manager.event_totals().missed)
    yield counter("resyncs", "Readers that were told to load anew.", "reason", resyncs)


def _permissions(hub: Hub) -> Iterator[Family]:
    desk = hub.manager.desk
    yield gauge("permissions_open", "Permission requests that wait.", len(desk.pending()))
    yield total("permissions_asked", "Permission requests of agents.", desk.tally.asked)
    yield counter(
        "permissions_settled",
        "Permission requests that are over, by what ended them.",
        "policy reason",
        desk.tally.outcomes,
    )
    yield counter("permission_votes", "Votes, by what became of them.", "verdict", desk.tally.votes)
    yield histogram(
        "permission_wait_seconds", "From a request to its end.", desk.tally.wait_seconds
    )


def _agents(hub: Hub, machine: Machine) -> Iterator[Family]:
    pool = hub.manager.pool
    states = Counts(
        {(name, state): 0 for name in hub.manager.profiles for state in ("leased", "spare")}
    )
    memory = Counts({(name,): 0 for name in hub.manager.profiles})
    for host in pool.hosts:
        states.add(host.profile.name, "leased" if host.leases else "spare")
        facts = machine.agents.get(host.pid or 0)
        if facts is not None and facts.rss_bytes is not None:
            memory.add(host.profile.name, by=facts.rss_bytes)
    yield gauges("agent_processes", "Agents that run.", "agent state", states)
    yield gauge("agent_processes_limit", "Agents that may run.", pool.max_agents)
    yield gauges(
        "agent_resident_memory_bytes",
        "Resident memory of agents and of what they started.",
        "agent",
        memory,
        "bytes",
    )
    yield counter(
        "agent_starts", "Agents that were started.", "agent", pool.tally.starts, pool.profiles
    )
    yield counter(
        "agent_start_failures",
        "Agents that did not answer initialize.",
        "agent",
        pool.tally.failed_starts,
        pool.profiles,
    )
    yield counter(
        "agent_exits",
        "Agents that ended.",
        "agent reason",
        pool.tally.exits,
        pool.profiles,
        ("crashed", "unresponsive", "stopped"),
    )
    yield histograms(
        "agent_start_duration_seconds",
        "From the start of an agent to its handshake.",
        "agent",
        pool.tally.start_seconds,
    )
    read, written = pool.pipe_bytes
    yield Family(
        "agent_pipe_bytes",
        "counter",
        "Bytes over the pipes of agents.",
        ("direction",),
        [(("in",), read), (("out",), written)],
        "bytes",
    )


def _requests(hub: Hub) -> Iterator[Family]:
    traffic = hub.traffic
    yield histograms(
        "http_request_duration_seconds",
        "HTTP requests; of a stream until it began.",
        "method route status",
        traffic.requests,
    )
    yield histograms(
        "acp_request_duration_seconds", "Requests on /acp.", "method", traffic.acp_requests
    )
    yield counter(
        "refused",
        "Requests that were not let in.",
        "reason",
        traffic.refused,
        ("auth_required", "connection_limit_exceeded"),
    )
    hits: dict[tuple[str, ...], float] = {(t,): n for t, n in hub.rate_limit_hits.items()}
    yield counter("rate_limited", "Requests over the rate limit.", "tier", hits)


def _process(hub: Hub, machine: Machine) -> Iterator[Family]:
    own = machine.own
    yield histogram(
        "event_loop_lag_seconds", "How late the event loop woke a sleeper.", hub.lag.seconds
    )
    yield gauge("uptime_seconds", "Time since the start.", hub.uptime, "seconds")
    if own.cpu_seconds is not None:
        yield total(
            "process_cpu_seconds", "CPU time of the gateway alone.", own.cpu_seconds, "seconds"
        )
    yield gauge(
        "process_resident_memory_bytes",
        "Resident memory of the gateway alone.",
        own.rss_bytes,
        "bytes",
    )
    yield gauge("process_open_fds", "Open file descriptors of the gateway.", own.open_fds)
    yield gauge("process_max_fds", "File descriptors that it may open.", machine.max_fds)
    disks = machine.disks.items()
    yield gauges(
        "disk_free_bytes",
        "Free space where the gateway keeps files, and of the workspaces.",
        "place",
        {(name,): disk.free_bytes for name, disk in disks if disk.free_bytes is not None},
        "bytes",
    )
    yield gauges(
        "disk_size_bytes",
        "Size of these file systems.",
        "place",
        {(name,): disk.total_bytes for name, disk in disks if disk.total_bytes is not None},
        "bytes",
    )
