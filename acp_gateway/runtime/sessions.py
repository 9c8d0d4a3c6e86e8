"""All sessions of the daemon: create, find, load, list, close; limits and the idle reaper.

The manager's nursery owns the sessions. Creating one is the manager's work: a client that goes away
meanwhile cancels the start, and the child goes with it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import structlog
import trio

from acp_gateway.config import Settings
from acp_gateway.protocol.converter import read, read_result
from acp_gateway.protocol.errors import (
    RESOURCE_NOT_FOUND,
    AgentError,
    ErrorKind,
    GatewayError,
    unsupported,
)
from acp_gateway.protocol.types import (
    ListSessionsParams,
    ListSessionsResult,
    LoadSessionParams,
    NewSessionParams,
)
from acp_gateway.runtime.agent_host import AgentHost
from acp_gateway.runtime.agent_pool import AgentPool
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.ring_budget import RingBudget
from acp_gateway.runtime.session import How, Opening, Session
from acp_gateway.runtime.workspace import Workspace
from acp_gateway.runtime.writer_lock import WriterLocks
from acp_gateway.wire.json_codec import dumps

log = structlog.get_logger("acp_gateway.sessions")

REAP_INTERVAL: Final = 5.0
REMEMBERED_STARTS: Final = 128
REMEMBERED_LISTS: Final = 16
LIST_TIMEOUT: Final = 5.0
"""A list is not worth waiting longer for an agent that is at work."""


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
        self._budget = RingBudget(settings.total_ring_bytes)
        self._locks = locks
        self._starting = 0
        self._loading: dict[str, trio.Event] = {}
        self._started_by_key: dict[str, str] = {}
        self._listed: dict[tuple[str, bytes], dict[str, Any]] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the sessions until cancelled; close those that nobody uses."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await trio.sleep(REAP_INTERVAL)
                self._reap()

    def _reap(self) -> None:
        now = trio.current_time()
        for session in tuple(self.sessions.values()):
            prompted = session.prompted
            linger = self.settings.linger if prompted else self.settings.linger_unprompted
            if session.idle and now - session.last_used > linger:
                log.info("session_reaped", session_id=session.id, idle=round(linger))
                session.begin_close("idle")

    async def close_all(self, reason: str, grace: float) -> None:
        """Close every session at once; bounded."""
        self.draining = True
        with trio.move_on_after(grace):
            async with trio.open_nursery() as nursery:
                for session in tuple(self.sessions.values()):
                    nursery.start_soon(session.close, reason)

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
        live = open_now + self._starting
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
        self, params: dict[str, Any], profile: AgentProfile, key: str | None = None
    ) -> Session:
        """A new session. ``key`` makes a repeated request find the session it made before."""
        known = self.sessions.get(self._started_by_key.get(key or "", ""))
        if known is not None:
            return known
        shape = read(NewSessionParams, params)
        opening = await self._opening("new", params, shape, None)
        session = await self._start(opening, profile)
        if key is not None:
            self._started_by_key[key] = session.id
            while len(self._started_by_key) > REMEMBERED_STARTS:
                del self._started_by_key[next(iter(self._started_by_key))]
        return session

    async def _start(self, opening: Opening, profile: AgentProfile) -> Session:
        assert self._nursery is not None
        self._admit()
        session = self._new(opening, profile)
        self._starting += 1
        try:
            if opening.session_id is not None:
                self._locks.acquire(profile.name, opening.session_id)
            try:
                await self._nursery.start(self._run, session)
            except GatewayError as exc:
                if exc.kind is not ErrorKind.AGENT_LIMIT or not self.make_room():
                    raise
                await self.pool.room()
                session = self._new(opening, profile)
                await self._nursery.start(self._run, session)
        finally:
            self._starting -= 1
        log.info("session_started", session_id=session.id, agent=profile.name, how=opening.how)
        return session

    def _new(self, opening: Opening, profile: AgentProfile) -> Session:
        session = Session(opening, profile, self.pool, self.settings, self._budget, self.workspace)
        session.name_for = self._north_name
        return session

    async def _run(self, session: Session, *, task_status: trio.TaskStatus[Session]) -> None:
        manager = self

        class Started:
            """Enter the session in the books in the moment it reports ready."""

            def started(self, value: Session) -> None:
                manager.sessions[session.id] = session
                try:
                    manager._locks.acquire(session.profile.name, session.agent_id)
                except GatewayError as exc:
                    log.warning("session_writer_conflict", session_id=session.id, error=exc.message)
                task_status.started(value)

        try:
            await session.run(task_status=Started())  # type: ignore[arg-type]
        finally:
            if self.sessions.get(session.id) is session:
                del self.sessions[session.id]
            self._locks.release(session.profile.name, session.agent_id)
            if session.id:
                reason = session.over.message if session.over else None
                log.info("session_ended", session_id=session.id, reason=reason)

    def _north_name(self, agent_id: str) -> str:
        """The agent's id, or an alias when a live session has it already."""
        if agent_id not in self.sessions:
            return agent_id
        return f"{agent_id}~{uuid.uuid4().hex[:8]}"

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

    # ---- listing --------------------------------------------------------------------------------

    async def list(self, params: dict[str, Any], profile: AgentProfile) -> dict[str, Any]:
        """Live and stored sessions, each once; live ones stand on the first page."""
        wanted = read(ListSessionsParams, params)
        stored: list[Any] = []
        next_cursor = None
        cwd = None if wanted.cwd is None else await self.workspace.real(wanted.cwd)
        host = self.pool.any_host(profile)
        if host is not None and host.can("list"):
            asked = {key: value for key, value in params.items() if value is not None}
            if cwd is not None:
                asked["cwd"] = str(cwd)
            result = await self._stored(host, asked)
            listed = result.get("sessions")
            stored = listed if isinstance(listed, list) else []
            next_cursor = result.get("nextCursor")
        elif wanted.cursor is not None:
            raise GatewayError(ErrorKind.INVALID_PARAMS, "The cursor is not valid", field="cursor")
        live = {
            session.id: session
            for session in self.sessions.values()
            if session.profile is profile and session.over is None
        }
        sessions: list[Any] = []
        if wanted.cursor is None:
            told = {info.get("sessionId"): info for info in stored if isinstance(info, dict)}
            sessions += [
                self._info(session, told.get(session.id))
                for session in sorted(live.values(), key=lambda each: -each.updated_at)
                if cwd is None or cwd == session.cwd
            ]
        aliased = {session.agent_id for session in live.values()}
        sessions += [
            info
            for info in stored
            if isinstance(info, dict)
            and info.get("sessionId") not in live
            and info.get("sessionId") not in aliased
        ]
        return {
            "sessions": sessions,
            **({"nextCursor": next_cursor} if next_cursor is not None else {}),
        }

    async def _stored(self, host: AgentHost, asked: dict[str, Any]) -> dict[str, Any]:
        """The agent's own list; its last answer to the same question when it is too busy."""
        key = (host.profile.name, dumps(asked))
        try:
            result = await host.request("session/list", asked, timeout=LIST_TIMEOUT)
        except AgentError:
            raise
        except GatewayError as exc:
            log.info("session_list_from_memory", agent=host.profile.name, error=exc.message)
            return self._listed.get(key, {})
        read_result(ListSessionsResult, result)
        answer: dict[str, Any] = result if isinstance(result, dict) else {}
        self._listed[key] = answer
        while len(self._listed) > REMEMBERED_LISTS:
            del self._listed[next(iter(self._listed))]
        return answer

    def _info(self, session: Session, told: dict[str, Any] | None) -> dict[str, Any]:
        info: dict[str, Any] = dict(told or {})
        info["sessionId"] = session.id
        info["cwd"] = str(session.cwd)
        title = session.state.title or info.get("title")
        if title is not None:
            info["title"] = title
        moment = datetime.fromtimestamp(session.updated_at, UTC)
        info["updatedAt"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        meta = info.get("_meta")
        info["_meta"] = {
            **(meta if isinstance(meta, dict) else {}),
            "acp_gateway": {
                "live": True,
                "clients": len(session.clients),
                "running": session.queue.running is not None,
            },
        }
        return info

    # ---- ending ---------------------------------------------------------------------------------

    async def delete(self, session_id: str, params: dict[str, Any], profile: AgentProfile) -> None:
        """Close a live session and have the agent forget it. Deleting twice succeeds (ACP v1)."""
        session = self.sessions.get(session_id)
        agent_id = session_id
        if session is not None:
            profile, agent_id = session.profile, session.agent_id
        async with self.pool.borrow(profile) as host:
            if not host.can("delete"):
                raise GatewayError(
                    ErrorKind.UNSUPPORTED_BY_AGENT,
                    f"The agent {profile.name} cannot delete stored sessions",
                    agent=profile.name,
                )
        if session is not None:
            await session.close("deleted")
        self._locks.acquire(profile.name, agent_id)
        try:
            # The host that answered above may have been the session's own.
            async with self.pool.borrow(profile) as host:
                await host.request(
                    "session/delete",
                    {**params, "sessionId": agent_id},
                    timeout=self.settings.agent_request_timeout,
                )
        except AgentError as exc:
            if exc.error.get("code") != RESOURCE_NOT_FOUND:
                raise
        finally:
            self._locks.release(profile.name, agent_id)

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
