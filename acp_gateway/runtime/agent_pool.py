"""Lends running agents to sessions: a child for each session, or children that sessions share.

The pool's nursery owns every host. A host's failure is the result of its lease, never an exception
here. With ``session`` isolation a spare is kept warm for the default workspace root, from the first
client on until ten idle minutes have passed or the agent's binary changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from acp_gateway.config import MIB, Settings
from acp_gateway.core.backoff import Backoff
from acp_gateway.core.tally import SHORT, Counts, Histograms
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.agent_host import AgentHost
from acp_gateway.runtime.agent_profile import AgentProfile, binary_stamp
from acp_gateway.runtime.live_settings import LiveSettings
from acp_gateway.runtime.memory import available_memory
from acp_gateway.runtime.tracing import begin_task
from acp_gateway.runtime.watchdog import Watchdog

log = structlog.get_logger("acp_gateway.pool")

HANDSHAKE_WAIT: Final = 5.0
"""Longest that a client's initialize waits for an agent's first handshake."""
TICK: Final = 5.0
STOP_DEADLINE: Final = 12.0


class AgentTally:
    """What became of all processes since the start."""

    def __init__(self) -> None:
        self.starts = Counts()
        """(agent,): processes that answered initialize."""
        self.failed_starts = Counts()
        """(agent,)"""
        self.exits = Counts()
        """(agent, reason): of those that had started; see `AgentHost.end_word`."""
        self.start_seconds = Histograms((*SHORT[5:], 20.0, 30.0))
        """(agent,): from the start of the process to its handshake."""
        self.read_bytes = self.written_bytes = 0
        """Over the pipes of those that have ended."""

    def ended(self, host: AgentHost) -> None:
        self.exits.add(host.profile.name, host.end_word)
        self.read_bytes += host.read_bytes
        self.written_bytes += host.written_bytes


class _Spares:
    """The spare of one profile: at most one ready, at most one starting."""

    def __init__(self, profile: AgentProfile) -> None:
        self.profile = profile
        self.ready: AgentHost | None = None
        self.starting: trio.CancelScope | None = None
        self.changed = trio.Event()
        self.claimed = False
        """A session waits for the one that is starting."""
        self.backoff = Backoff(1.0, 60.0)
        self.retry_at = 0.0
        self.error: GatewayError | None = None
        self.outdated = False
        """The one that is starting must be started again: it does not know the new sign-in."""

    def notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class AgentPool:
    def __init__(
        self,
        profiles: Mapping[str, AgentProfile],
        settings: Settings,
        watchdog: Watchdog,
        root: Path,
        environ: Mapping[str, str],
    ) -> None:
        self.profiles = profiles
        self.hosts: set[AgentHost] = set()
        """Every host that has not ended, spares among them."""
        self.handshakes: dict[str, dict[str, Any]] = {}
        """The last good initialize result of each profile."""
        self.failures: dict[str, GatewayError] = {}
        """Why the last start of a profile failed; gone after a good one."""
        self.tally = AgentTally()
        self.make_host: Callable[..., AgentHost] = AgentHost
        """A class whose hosts do more, where that is wanted (`runtime.wire_trace`)."""
        self._settings = settings
        self.watchdog = watchdog
        self._root = root
        self.environ = environ
        """The daemon's own; each child gets a part of it."""
        self._spares = {name: _Spares(profile) for name, profile in profiles.items()}
        self._auth: dict[str, dict[str, Any]] = {}
        self._starting = 0
        self._wanted = False
        self._last_client = 0.0
        self._nursery: trio.Nursery | None = None
        self._closing = False
        self._left = trio.Event()
        memory = available_memory()
        self._memory_at_start = memory
        self.max_agents = settings.max_agents or self._fit(memory)

    def follow(self, live: LiveSettings) -> None:
        live.when_changed(("max_agents",), self._set_max_agents)

    def _set_max_agents(self) -> None:
        self.max_agents = self._settings.max_agents or self._fit(self._memory_at_start)

    def profiles_changed(self) -> None:
        """`profiles` has other agents now. Sessions keep the child that they have."""
        for name, profile in self.profiles.items():
            self._settle_spares(name, profile)
        for name in self._spares.keys() - self.profiles.keys():
            self._settle_spares(name, self._spares[name].profile, gone=True)
        self._set_max_agents()

    def _settle_spares(self, name: str, profile: AgentProfile, *, gone: bool = False) -> None:
        spares = self._spares.get(name)
        if spares is not None and spares.profile is profile and not gone:
            return
        if spares is not None:
            if spares.starting is not None:
                spares.starting.cancel()
            if spares.ready is not None:
                spares.ready.end()
                spares.ready = None
        self.handshakes.pop(name, None)
        self.failures.pop(name, None)
        if not gone:
            self._spares[name] = _Spares(profile)
            if self._wanted:
                self._warm(self._spares[name])

    def _fit(self, memory: int | None) -> int:
        if memory is None:
            return 64
        expected = max((p.expected_memory_mb for p in self.profiles.values()), default=100)
        return max(2, min(256, int(memory * 0.8) // (expected * MIB)))

    # ---- life -----------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the hosts until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            # The agent that is tried at the start waits for the first client as long as a spare.
            self._last_client = trio.current_time()
            task_status.started()
            while True:
                await trio.sleep(TICK)
                self._tend()

    async def close(self) -> None:
        """Stop every host at once, each by its ladder; bounded."""
        self._closing = True
        for spares in self._spares.values():
            if spares.starting is not None:
                spares.starting.cancel()
        with trio.move_on_after(STOP_DEADLINE):
            async with trio.open_nursery() as nursery:
                for host in tuple(self.hosts):
                    nursery.start_soon(host.stop)

    def _tend(self) -> None:
        now = trio.current_time()
        settings = self._settings
        idle = now - self._last_client > settings.spare_idle
        for spares in self._spares.values():
            spare = spares.ready
            if spare is not None:
                changed = binary_stamp(spares.profile) != spare.stamp
                if not spare.alive or changed or idle:
                    spares.ready = None
                    spare.end()
            if self._wanted and not idle:
                self._warm(spares)
        if settings.isolation == "shared":
            for host in self.hosts:
                # An outdated one may be about to be lent to whoever it was started for.
                most = settings.agent_request_timeout if host.outdated else settings.agent_idle
                if not host.leases and now - host.last_used > most:
                    host.end()

    # ---- clients --------------------------------------------------------------------------------

    def client_seen(self, profile: AgentProfile) -> None:
        """A client is here: from now on a spare is worth its memory."""
        self._wanted = True
        self._last_client = trio.current_time()
        self._warm(self._spares[profile.name])

    def _warm(self, spares: _Spares) -> None:
        if self.profiles.get(spares.profile.name) is not spares.profile:
            return  # no longer served; who still uses it starts its own
        # Of shared children the first is the warm one.
        if self._settings.isolation == "session" or self.any_host(spares.profile) is None:
            self._ensure_spare(spares)

    async def handshake(self, profile: AgentProfile) -> dict[str, Any] | None:
        """The profile's initialize result; waits at most five seconds for the first one."""
        self.client_seen(profile)
        known = self.handshakes.get(profile.name)
        if known is not None:
            return known
        spares = self._spares[profile.name]
        with trio.move_on_after(HANDSHAKE_WAIT):
            while spares.starting is not None and profile.name not in self.handshakes:
                await spares.changed.wait()
        return self.handshakes.get(profile.name)

    # ---- spares ---------------------------------------------------------------------------------

    def _ensure_spare(self, spares: _Spares, *, needed: bool = False) -> None:
        if (
            self._nursery is None
            or self._closing
            or (self._settings.spare_agents < 1 and not needed)
            or spares.ready is not None
            or spares.starting is not None
            or trio.current_time() < spares.retry_at
            or not self._room()
        ):
            return
        spares.starting = trio.CancelScope()
        self._nursery.start_soon(self._start_spare, spares)

    async def _start_spare(self, spares: _Spares) -> None:
        assert spares.starting is not None
        begin_task()  # whoever gets it, it is not for the request that was there when it began
        try:
            with spares.starting:
                host = await self._start(spares.profile, self._root)
                while spares.outdated:
                    spares.outdated = False
                    host.end()
                    host = await self._start(spares.profile, self._root)
                spares.ready = host
                spares.backoff.succeeded()
                spares.error = None
        except GatewayError as exc:
            spares.error = exc
            spares.retry_at = trio.current_time() + spares.backoff.failed()
            # The first failure has been told by whoever waited for it.
            (log.info if spares.backoff.failures == 1 else log.warning)(
                "agent_start_failed",
                agent=spares.profile.name,
                error=exc.message,
                remedy=exc.remedy,
                retry_in=round(spares.backoff.delay, 1),
            )
        finally:
            spares.starting = None
            spares.outdated = False
            spares.notify()

    def renew(self, profile: AgentProfile) -> None:
        """Lend no child that was started before now to a new session (after a sign-in)."""
        spares = self._spares[profile.name]
        spares.outdated = spares.starting is not None
        if spares.ready is not None:
            spares.ready.end()
            spares.ready = None
        for host in self.hosts:
            host.outdated = host.outdated or host.profile is profile
        if self._wanted:
            self._warm(spares)

    def retire_spares(self, profile: AgentProfile) -> None:
        """End the spare and forget its sign-in (after a logout)."""
        self._auth.pop(profile.name, None)
        spares = self._spares[profile.name]
        if spares.ready is not None:
            spares.ready.end()
            spares.ready = None

    async def authenticate(self, profile: AgentProfile, params: dict[str, Any]) -> Any:
        """Sign in on a spare; repeated on every child that starts later."""
        async with self.borrow(profile) as host:
            result = await host.request(
                "authenticate", params, timeout=self._settings.agent_request_timeout
            )
        self._auth[profile.name] = params
        return result

    # ---- starting -------------------------------------------------------------------------------

    def _room(self) -> bool:
        return len(self.hosts) + self._starting < self.max_agents

    def _admit(self, profile: AgentProfile) -> None:
        if self._closing:
            raise GatewayError(ErrorKind.SHUTTING_DOWN, "The gateway is shutting down")
        memory = available_memory()
        short = memory is not None and memory < profile.expected_memory_mb * MIB
        if self._room() and not short:
            return
        # An unused spare makes room: it is of another profile or for another directory.
        for spares in self._spares.values():
            if spares.ready is not None:
                spares.ready.end()
                spares.ready = None
                return
        raise GatewayError(
            ErrorKind.AGENT_LIMIT,
            f"No room for another agent process ({len(self.hosts)} of {self.max_agents} run)"
            if not short
            else "Not enough free memory for another agent process",
            remedy="close a session, or serve with --isolation shared",
            limit=self.max_agents,
        )

    async def _start(self, profile: AgentProfile, cwd: Path) -> AgentHost:
        assert self._nursery is not None
        self._admit(profile)
        spares = self._spares[profile.name]
        host = self.make_host(profile, self._settings, self.watchdog, cwd, self.environ)
        host.stamp = binary_stamp(profile)
        self._starting += 1
        began = trio.current_time()
        try:
            await self._nursery.start(self._run_host, host)
        except GatewayError as exc:
            self.failures[profile.name] = exc
            self.tally.failed_starts.add(profile.name)
            raise
        finally:
            self._starting -= 1
        self.failures.pop(profile.name, None)
        self.tally.start_seconds.observe(trio.current_time() - began, profile.name)
        if spares.profile is profile:
            self.handshakes[profile.name] = host.initialize_result
        spares.notify()
        auth = self._auth.get(profile.name)
        if auth is not None:
            try:
                await host.request(
                    "authenticate", auth, timeout=self._settings.agent_request_timeout
                )
            except GatewayError as exc:
                log.warning("authenticate_failed", agent=profile.name, error=exc.message)
            except trio.Cancelled:
                host.end()  # nobody will lease it
                raise
        return host

    async def _run_host(self, host: AgentHost, *, task_status: trio.TaskStatus[AgentHost]) -> None:
        class Started:
            """Enter the host in the pool's books in the moment it reports ready."""

            def started(_, value: AgentHost) -> None:
                self.hosts.add(host)
                self.tally.starts.add(host.profile.name)
                ready.append(value)
                task_status.started(value)

        ready: list[AgentHost] = []
        try:
            await host.run(task_status=Started())  # type: ignore[arg-type]
        except GatewayError:
            if not ready:
                raise
        except Exception:
            log.exception("agent_host_failed", agent=host.profile.name, pid=host.pid)
            if not ready:
                raise GatewayError(
                    ErrorKind.AGENT_START_FAILED,
                    f"The agent {host.profile.name} could not be started: internal error",
                    agent=host.profile.name,
                ) from None
        finally:
            if ready:
                self.tally.ended(host)
            self.hosts.discard(host)
            self._left.set()
            self._left = trio.Event()

    async def room(self) -> None:
        """Return when one more child may run, or after the time that a child has to end."""
        with trio.move_on_after(STOP_DEADLINE):
            while not self._room():
                await self._left.wait()

    # ---- lending --------------------------------------------------------------------------------

    @asynccontextmanager
    async def lease(self, profile: AgentProfile, cwd: Path) -> AsyncIterator[AgentHost]:
        """An agent for one session. Leaving the block stops an own child, gives back a shared one.

        Raises ``agent_start_failed`` or ``agent_limit_exceeded``.
        """
        self._last_client = trio.current_time()
        if self._settings.isolation == "shared":
            host = await self._shared_host(profile, cwd)
        else:
            host = await self._take_spare(profile, cwd) or await self._start(profile, cwd)
            self._warm(self._spares[profile.name])
        host.leases += 1
        try:
            yield host
        finally:
            host.leases -= 1
            host.last_used = trio.current_time()
            if self._settings.isolation == "session" or (host.outdated and not host.leases):
                # The pool's nursery carries the ladder out; nobody has to wait for it here.
                host.end()

    async def _take_spare(self, profile: AgentProfile, cwd: Path) -> AgentHost | None:
        if cwd != self._root:
            return None  # a child's working directory is fixed at its start
        spares = self._spares[profile.name]
        if spares.profile is not profile:
            return None  # a session that is restored keeps the agent that it had
        if spares.starting is not None and spares.ready is None and not spares.claimed:
            # One waits for it; the next would wait for the one after it, so it starts its own.
            spares.claimed = True
            try:
                while spares.starting is not None and spares.ready is None:
                    await spares.changed.wait()
            finally:
                spares.claimed = False
        spare, spares.ready = spares.ready, None
        if spare is not None and spare.alive and binary_stamp(profile) == spare.stamp:
            return spare
        if spare is not None:
            spare.end()
        return None

    async def _shared_host(self, profile: AgentProfile, cwd: Path) -> AgentHost:
        spares = self._spares[profile.name]
        while spares.starting is not None:
            await spares.changed.wait()
        if spares.ready is not None:
            spares.ready = None  # it is in `hosts` and is found there
        most = self._settings.sessions_per_agent
        fitting = [
            host
            for host in self.hosts
            if host.profile is profile
            and host.alive
            and not host.outdated
            and host.leases < most
            and host.cwd == cwd
        ]
        if fitting:
            return min(fitting, key=lambda host: host.leases)
        spares.starting = trio.CancelScope()
        try:
            return await self._start(profile, cwd)
        finally:
            spares.starting = None
            spares.notify()

    @property
    def starting(self) -> int:
        """Processes that have not answered initialize yet."""
        return self._starting

    @property
    def pipe_bytes(self) -> tuple[int, int]:
        """(read, written) over the pipes of all processes since the start."""
        tally = self.tally
        return (
            tally.read_bytes + sum(host.read_bytes for host in self.hosts),
            tally.written_bytes + sum(host.written_bytes for host in self.hosts),
        )

    @property
    def alive(self) -> bool:
        """Does any agent process live?"""
        return any(host.alive for host in self.hosts)

    def any_host(self, profile: AgentProfile) -> AgentHost | None:
        """A living host of a profile for questions beside the sessions: unlent ones come first,
        then the most recently used."""
        living = [host for host in self.hosts if host.profile is profile and host.alive]
        return max(living, key=lambda host: (host.leases == 0, host.last_used), default=None)

    @asynccontextmanager
    async def borrow(self, profile: AgentProfile) -> AsyncIterator[AgentHost]:
        """Any living host of a profile, without owning it; starts the spare when none lives."""
        host = self.any_host(profile)
        if host is None:
            spares = self._spares[profile.name]
            spares.retry_at = 0.0
            self._ensure_spare(spares, needed=True)
            while spares.starting is not None:
                await spares.changed.wait()
            host = self.any_host(profile)
            if host is None:
                raise spares.error or GatewayError(
                    ErrorKind.AGENT_LIMIT,
                    "No room for another agent process",
                    remedy="close a session, or serve with --isolation shared",
                )
        yield host
