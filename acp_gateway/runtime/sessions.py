"""All sessions of the daemon: create, find, load, list, close; limits and the idle reaper.

The manager's nursery owns the sessions. Creating one is the manager's work: a client that goes away
meanwhile cancels the start, and the child goes with it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import attrs
import structlog
import trio

from acp_gateway.config import Settings
from acp_gateway.core.mediator import Rule
from acp_gateway.protocol.converter import read
from acp_gateway.protocol.errors import (
    RESOURCE_NOT_FOUND,
    AgentError,
    ErrorKind,
    GatewayError,
    unsupported,
)
from acp_gateway.protocol.types import (
    LoadSessionParams,
    NewSessionParams,
)
from acp_gateway.runtime.agent_pool import AgentPool
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.feed import Feed
from acp_gateway.runtime.ledger import EventTotals, Ledger
from acp_gateway.runtime.live_settings import LiveSettings
from acp_gateway.runtime.parties import ClientIds
from acp_gateway.runtime.permission_desk import PermissionDesk
from acp_gateway.runtime.ring_budget import RingBudget
from acp_gateway.runtime.session import How, Opening, Session
from acp_gateway.runtime.session_catalog import SessionCatalog, iso
from acp_gateway.runtime.workspace import Workspace
from acp_gateway.runtime.writer_lock import WriterLocks

log = structlog.get_logger("acp_gateway.sessions")

REAP_INTERVAL: Final = 5.0
REMEMBERED_STARTS: Final = 128


OWN_ID: Final = "qwen-code/sessionId"
"""Member of ``_meta`` in ``session/new``: the id that the session is to get."""


def checked_session_id(value: Any) -> str:
    """A UUID of version 1 to 5, in lower case. Raises ``invalid_session_id``."""
    if isinstance(value, str):
        with suppress(ValueError):
            parsed = uuid.UUID(value)
            if str(parsed) == value.lower() and parsed.version in (1, 2, 3, 4, 5):
                return str(parsed)
    raise GatewayError(ErrorKind.INVALID_SESSION_ID, "`sessionId` must be a UUID of version 1 to 5")


class SessionManager:
    def __init__(
        self,
        settings: Settings,
        pool: AgentPool,
        workspace: Workspace,
        profiles: Mapping[str, AgentProfile],
        locks: WriterLocks,
    ) -> None:
        self.sessions: dict[str, Session] = {}
        self.profiles = profiles
        self.pool = pool
        self.workspace = workspace
        self.settings = settings
        self.draining = False
        self.asks_for_token = False
        """Clients come in with a token. Set by whoever lets them in."""
        self.desk = PermissionDesk(settings, workspace.audit)
        self.client_ids = ClientIds()
        self._budget = RingBudget(settings.total_ring_bytes)
        self.ledger = Ledger()
        self.feed = Feed("workspace", settings, self._budget)
        """What happens to the workspace as a whole, also while no session is open."""
        self._locks = locks
        self.starting = 0
        """Sessions that are being opened."""
        self._defaults: dict[tuple[str, Path], str] = {}
        self._naming: set[str] = set()
        """Ids that sessions are being created with."""
        self._default_starting: dict[tuple[str, Path], trio.Event] = {}
        self._loading: dict[str, trio.Event] = {}
        self._started_by_key: dict[str, str] = {}
        self.catalog = SessionCatalog(self.sessions, profiles, pool, workspace)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the sessions until cancelled; close those that nobody uses."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await trio.sleep(REAP_INTERVAL)
                self._reap()

    @property
    def shell_is_on(self) -> bool:
        """May clients run commands? Only where somebody asks them who they are."""
        settings = self.settings
        return settings.enable_session_shell and (self.asks_for_token or settings.trust_loopback)

    def follow(self, live: LiveSettings) -> None:
        """Let everything below have changed settings."""
        self.desk.follow(live)
        self.pool.follow(live)
        live.when_changed(("total_ring_bytes",), self._set_budget)
        live.when_changed(("trust_workspace",), self._set_trust)

    def _set_trust(self) -> None:
        self.workspace.trusted = self.settings.trust_workspace

    def _set_budget(self) -> None:
        self._budget.max_bytes = self.settings.total_ring_bytes

    def tell_everywhere(
        self, kind: str, data: dict[str, Any], client: str | None, who: str | None = None
    ) -> None:
        """An event of the workspace, also on the streams of every live session."""
        self._tell(kind, data, client, who)
        for session in tuple(self.sessions.values()):
            if not session.halted:
                session.notice(kind, client=client, who=who, data=data)
                session.wake()

    def _reap(self) -> None:
        now = trio.current_time()
        for session in tuple(self.sessions.values()):
            if not session.streams:
                for client_id in session.parties.expire(time.time() - self.settings.linger):
                    session.desk.leave(session.id, client_id)
            linger = session.linger
            if session.idle and now - session.last_used > linger:
                log.info("session_reaped", session_id=session.id, idle=round(linger))
                session.begin_close("idle_timeout")

    async def close_all(self, reason: str, grace: float) -> None:
        """Close every session at once; bounded."""
        self.draining = True
        with trio.move_on_after(grace):
            async with trio.open_nursery() as nursery:
                for session in tuple(self.sessions.values()):
                    nursery.start_soon(session.close, reason)
        self.feed.over = GatewayError(ErrorKind.SHUTTING_DOWN, "The gateway is shutting down")
        self.feed.end()

    # ---- starting -------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Raises ``session_limit_exceeded`` when no idle session can give way."""
        if self.draining:
            raise GatewayError(
                ErrorKind.SHUTTING_DOWN,
                "The gateway is shutting down",
                remedy="reconnect when it is back",
            )
        open_now = sum(session.over is None for session in self.sessions.values())
        live = open_now + self.starting
        if live >= self.settings.max_sessions and not self.make_room():
            raise GatewayError(
                ErrorKind.SESSION_LIMIT,
                f"Session limit reached ({live} of {self.settings.max_sessions})",
                remedy="close a session, or raise --max-sessions",
                limit=self.settings.max_sessions,
                scope="workspace",
            )

    def make_room(self) -> bool:
        """Close the session that nobody has used for longest, if its agent can load it again."""
        idle = [
            session
            for session in self.sessions.values()
            if session.idle and session.over is None and session.restorable
        ]
        if not idle:
            return False
        oldest = min(idle, key=lambda session: session.last_used)
        log.info("session_made_room", session_id=oldest.id)
        oldest.begin_close("limit")
        return True

    async def _opening(
        self, how: How, params: dict[str, Any], shape: NewSessionParams, session_id: str | None
    ) -> Opening:
        cwd, root = await self.workspace.resolve_directory(shape.cwd, "cwd")
        roots = [cwd]
        for directory in shape.additional_directories:
            real, _ = await self.workspace.resolve_directory(directory, "additionalDirectories")
            roots.append(real)
        # What the session may touch is its workspace root; cwd is only where it starts.
        # Only usable servers go on: an agent may refuse the whole request for one bad item.
        clean = {**params, "cwd": str(cwd), "mcpServers": list(shape.mcp_servers)}
        if "additionalDirectories" in params:
            clean["additionalDirectories"] = [str(each) for each in roots[1:]]
        return Opening(
            how=how,
            params=clean,
            session_id=session_id,
            cwd=cwd,
            root=root,
            roots=(root, *(each for each in roots if root not in each.parents and each != root)),
        )

    async def create(
        self,
        params: dict[str, Any],
        profile: AgentProfile,
        key: str | None = None,
        rule: Rule | None = None,
    ) -> Session:
        """A new session. ``key`` makes a repeated request find the session it made before."""
        known = self.sessions.get(self._started_by_key.get(key or "", ""))
        if known is not None:
            return known
        shape = read(NewSessionParams, params)
        opening = attrs.evolve(await self._opening("new", params, shape, None), rule=rule)
        session = await self._start(opening, profile)
        if key is not None:
            self._started_by_key[key] = session.id
            while len(self._started_by_key) > REMEMBERED_STARTS:
                del self._started_by_key[next(iter(self._started_by_key))]
        return session

    async def create_or_attach(
        self,
        params: dict[str, Any],
        profile: AgentProfile,
        *,
        shared: bool,
        session_id: str | None,
        rule: Rule | None,
    ) -> tuple[Session, bool]:
        """The directory's default session (``shared``) or a new one; and whether it was there.

        Concurrent calls for the default session join. ``session_id``: the id that it must get.
        """
        if not shared:
            return await self.create_named(params, profile, session_id, rule), False
        cwd, _ = await self.workspace.resolve_directory(str(params.get("cwd")), "cwd")
        place = (profile.name, cwd)
        while (starting := self._default_starting.get(place)) is not None:
            await starting.wait()
        live = self.sessions.get(self._defaults.get(place, ""))
        if live is not None and live.over is None:
            return live, True
        self._default_starting[place] = done = trio.Event()
        try:
            session = await self.create(params, profile, rule=rule)
            self._defaults[place] = session.id
            return session, False
        finally:
            done.set()
            del self._default_starting[place]

    async def create_named(
        self,
        params: dict[str, Any],
        profile: AgentProfile,
        session_id: str | None,
        rule: Rule | None,
    ) -> Session:
        """A session with the id that the caller chose, where the agent takes one.

        Raises ``session_id_conflict``, ``unsupported_by_agent``.
        """
        if session_id is None:
            return await self.create(params, profile, rule=rule)
        if session_id in self._naming:
            raise self._taken(session_id, live=True)
        self._naming.add(session_id)
        try:
            if session_id in self.sessions or await self.catalog.directory_of(session_id, profile):
                raise self._taken(session_id, live=session_id in self.sessions)
            return await self._create_as(params, profile, session_id, rule)
        finally:
            self._naming.discard(session_id)

    def _taken(self, session_id: str, *, live: bool) -> GatewayError:
        session = self.sessions.get(session_id)
        return GatewayError(
            ErrorKind.SESSION_ID_CONFLICT,
            f'There is a session with id "{session_id}" already',
            remedy="load it, or choose another id",
            sessionId=session_id,
            conflict="live" if live else "persisted",
            **({} if session is None else {"liveWorkspaceCwd": str(session.cwd)}),
        )

    async def _create_as(
        self,
        params: dict[str, Any],
        profile: AgentProfile,
        session_id: str,
        rule: Rule | None,
    ) -> Session:
        meta = {**(params.get("_meta") or {}), OWN_ID: session_id}
        session = await self.create({**params, "_meta": meta}, profile, rule=rule)
        if session.id != session_id:
            await session.close("client_close")
            raise GatewayError(
                ErrorKind.UNSUPPORTED_BY_AGENT,
                f"The agent {profile.name} chooses the ids of its sessions itself",
                remedy="leave sessionId out",
                agent=profile.name,
                requestedSessionId=session_id,
                actualSessionId=session.id,
            )
        return session

    async def _start(self, opening: Opening, profile: AgentProfile) -> Session:
        assert self._nursery is not None
        self._admit()
        session = self._new(opening, profile)
        stored = opening.session_id
        if stored is not None:
            self._locks.acquire(profile.name, stored)  # its own from when it has reported ready
        self.starting += 1
        try:
            try:
                await self._nursery.start(self._run, session)
            except GatewayError as exc:
                if exc.kind is not ErrorKind.AGENT_LIMIT or not self.make_room():
                    raise
                await self.pool.room()
                session = self._new(opening, profile)
                await self._nursery.start(self._run, session)
        finally:
            self.starting -= 1
            if stored is not None:
                self._locks.release(profile.name, stored)
        log.info("session_started", session_id=session.id, agent=profile.name, how=opening.how)
        return session

    def _new(self, opening: Opening, profile: AgentProfile) -> Session:
        session = Session(
            opening,
            profile,
            self.pool,
            self.settings,
            self._budget,
            self.workspace,
            self.desk,
            self.ledger,
        )
        session.name_for = self._north_name
        session.tell_workspace = self._tell
        return session

    async def _run(self, session: Session, *, task_status: trio.TaskStatus[Session]) -> None:
        manager = self

        locked: list[bool] = []

        class Started:
            """Enter the session in the books in the moment it reports ready."""

            def started(self, value: Session) -> None:
                manager.sessions[session.id] = session
                manager.ledger.created.add(session.profile.name, session.opening.how)
                try:
                    manager._locks.acquire(session.profile.name, session.agent_id)
                    locked.append(True)
                except GatewayError as exc:
                    log.warning("session_writer_conflict", session_id=session.id, error=exc.message)
                manager._created(session)
                task_status.started(value)

        try:
            await session.run(task_status=Started())  # type: ignore[arg-type]
        finally:
            if self.sessions.get(session.id) is session:
                del self.sessions[session.id]
                self.ledger.session_ended(session)
                self.catalog.remember(session)
            session.let_go()
            if locked:
                self._locks.release(session.profile.name, session.agent_id)
            if session.id:
                reason = session.over.message if session.over else None
                log.info("session_ended", session_id=session.id, reason=reason)

    def _created(self, session: Session) -> None:
        data = {
            "sessionId": session.id,
            "workspaceCwd": str(session.cwd),
            "agent": session.profile.name,
            "createdAt": iso(session.created_at),
        }
        self._tell("session_created", data, None, None)

    def _tell(self, kind: str, data: dict[str, Any], client: str | None, who: str | None) -> None:
        """An event of the workspace as a whole."""
        self.feed.notice(kind, client=client, who=who, data=data)
        self.feed.wake()

    def _north_name(self, agent_id: str) -> str:
        """The agent's id, or an alias when a live session has it already."""
        if agent_id not in self.sessions:
            return agent_id
        return f"{agent_id}~{uuid.uuid4().hex[:8]}"

    @property
    def ring_bytes(self) -> int:
        """Bytes of events that all rings keep."""
        return self._budget.total

    def event_totals(self) -> EventTotals:
        """Of all sessions since the start, and of the workspace's own stream."""
        totals = EventTotals()
        totals.plus(self.ledger.events)
        for feed in (self.feed, *self.sessions.values()):
            totals.add(feed.ring)
        return totals

    # ---- finding --------------------------------------------------------------------------------

    def get(self, session_id: str) -> Session:
        """A live session. Raises ``session_not_found``."""
        session = self.sessions.get(session_id)
        if session is None or session.over is not None:
            raise self.not_found(session_id)
        return session

    @staticmethod
    def not_found(session_id: str) -> GatewayError:
        return GatewayError(
            ErrorKind.SESSION_NOT_FOUND,
            f'No session with id "{session_id}"',
            remedy="list the sessions, or start a new one",
            sessionId=session_id,
        )

    async def open(self, how: How, params: dict[str, Any], profile: AgentProfile) -> Session:
        """The live session of this id, or the stored one on a new child.

        Concurrent calls for one id join: the second finds what the first restored.
        """
        shape = read(LoadSessionParams, params)
        session_id = shape.session_id
        while True:
            live = self.sessions.get(session_id)
            if live is not None and live.over is None:
                await self.workspace.resolve_directory(shape.cwd, "cwd")
                return live
            if live is not None:
                # It is closing; its child has to let go of it first.
                with trio.move_on_after(self.settings.agent_request_timeout):
                    await live.ended.wait()
                continue
            loading = self._loading.get(session_id)
            if loading is None:
                break
            await loading.wait()
        # Entered before anything is awaited: the next call has to find it.
        self._loading[session_id] = done = trio.Event()
        try:
            opening = await self._opening(how, params, shape, session_id)
            return await self._start(opening, profile)
        except AgentError as exc:
            raise self._restated(exc, session_id) from None
        finally:
            done.set()
            del self._loading[session_id]

    def _restated(self, exc: AgentError, session_id: str) -> GatewayError:
        """Agents disagree on the code for an unknown session; clients get the standard one."""
        code, text = exc.error.get("code"), str(exc.error).lower()
        if code == RESOURCE_NOT_FOUND or "not found" in text or "no such session" in text:
            return self.not_found(session_id)
        return exc

    # ---- ending ---------------------------------------------------------------------------------

    async def delete(self, session_id: str, params: dict[str, Any], profile: AgentProfile) -> None:
        """Close a live session and have the agent forget it. Deleting twice succeeds (ACP v1)."""
        session = self.sessions.get(session_id)
        agent_id = session_id
        if session is not None:
            profile, agent_id = session.profile, session.agent_id
        params = {**params, "sessionId": agent_id}
        method = "session/delete"
        async with self.pool.borrow(profile) as host:
            if not host.can("delete"):
                if not profile.quirks.private_meta:
                    raise GatewayError(
                        ErrorKind.UNSUPPORTED_BY_AGENT,
                        f"The agent {profile.name} cannot delete stored sessions",
                        agent=profile.name,
                    )
                method = "deleteSession"
                cwd = None if session is None else str(session.cwd)
                params["cwd"] = cwd or await self.catalog.directory_of(session_id, profile)
        if session is not None:
            await session.close("deleted")
        self._locks.acquire(profile.name, agent_id)
        try:
            # The host that answered above may have been the session's own.
            async with self.pool.borrow(profile) as host:
                await host.request(method, params, timeout=self.settings.agent_request_timeout)
        except AgentError as exc:
            if exc.error.get("code") != RESOURCE_NOT_FOUND:
                raise
        finally:
            self._locks.release(profile.name, agent_id)
        self.catalog.forget(agent_id, profile)

    async def fork(self, params: dict[str, Any], profile: AgentProfile) -> Session:
        """A copy of a session, made by its agent and then opened on a child of its own."""
        shape = read(LoadSessionParams, params)
        source = self.get(shape.session_id)
        await self._opening("load", params, shape, None)
        self._admit()
        host = await source.agent()
        try:
            result = await host.request(
                "session/fork",
                {**params, "sessionId": source.agent_id},
                timeout=self.settings.agent_request_timeout,
            )
        except AgentError as exc:
            raise unsupported(exc, source.profile.name, "session/fork") from None
        forked = result.get("sessionId") if isinstance(result, dict) else None
        if not isinstance(forked, str):
            raise GatewayError(
                ErrorKind.AGENT_ERROR, "The agent's answer to session/fork has no sessionId"
            )
        if self.settings.isolation == "session" and host.can("close"):
            # The copy lives on in a child of its own.
            await host.request(
                "session/close", {"sessionId": forked}, timeout=self.settings.agent_request_timeout
            )
        return await self.open("load", {**params, "sessionId": forked}, source.profile)
