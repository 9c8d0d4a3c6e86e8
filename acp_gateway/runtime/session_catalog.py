"""What sessions there are: the live ones, and those that the agents have stored, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from acp_gateway.core.path_boundary import absolute
from acp_gateway.protocol.converter import read, read_result
from acp_gateway.protocol.errors import AgentError, ErrorKind, GatewayError
from acp_gateway.protocol.types import ListSessionsParams, ListSessionsResult
from acp_gateway.runtime.agent_host import AgentHost
from acp_gateway.runtime.agent_pool import AgentPool
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.workspace import Workspace
from acp_gateway.wire.json_codec import dumps

log = structlog.get_logger("acp_gateway.catalog")

AGENT: Final = "acp_gateway.agent"
"""Member of the rows here: the name of the agent that told it."""
REMEMBERED_LISTS: Final = 16
REMEMBERED_SESSIONS: Final = 1024
MAX_PAGES: Final = 20
"""Pages of an agent's list that are read for one of ours."""
LIST_TIMEOUT: Final = 5.0
"""A list is not worth waiting longer for an agent that is at work."""


def iso(moment: float) -> str:
    """Unix time in seconds as ISO 8601 with milliseconds, UTC."""
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


class _Ended(NamedTuple):
    cwd: str
    updated_at: str
    stored: bool
    """Its agent can load it again."""


class SessionCatalog:
    def __init__(
        self,
        sessions: Mapping[str, Session],
        profiles: Mapping[str, AgentProfile],
        pool: AgentPool,
        workspace: Workspace,
    ) -> None:
        self._sessions = sessions
        self._profiles = profiles
        self._pool = pool
        self._workspace = workspace
        self._listed: dict[tuple[str, bytes], dict[str, Any]] = {}
        self._ended: dict[tuple[str, str], _Ended] = {}
        """Sessions that were open here, by profile and the agent's id."""

    # ---- listing --------------------------------------------------------------------------------

    async def page(self, params: dict[str, Any], profile: AgentProfile) -> dict[str, Any]:
        """Live and stored sessions, each once; live ones stand on the first page."""
        wanted = read(ListSessionsParams, params)
        stored: list[Any] = []
        next_cursor = None
        cwd = (
            None if wanted.cwd is None else await self._workspace.real(absolute(wanted.cwd, "cwd"))
        )
        host = self._pool.any_host(profile)
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
            for session in self._sessions.values()
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
        title = session.title or info.get("title")
        if title is not None:
            info["title"] = title
        info["updatedAt"] = iso(session.updated_at)
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

    def remember(self, session: Session) -> None:
        """A session has ended."""
        self._ended[(session.profile.name, session.agent_id)] = _Ended(
            str(session.cwd), iso(session.updated_at), session.stored and session.prompted
        )
        while len(self._ended) > REMEMBERED_SESSIONS:
            del self._ended[next(iter(self._ended))]

    def forget(self, session_id: str, profile: AgentProfile) -> None:
        """Its agent has deleted it."""
        self._ended.pop((profile.name, session_id), None)

    async def in_directory(self, directory: Path) -> Sequence[Session | dict[str, Any]]:
        """Every session in a directory or below it, live or stored, each once; stored ones as
        their agent told them."""
        rows: list[Session | dict[str, Any]] = []
        stored: dict[str, dict[str, Any]] = {}
        for profile in self._profiles.values():
            rows += [
                each
                for each in self._sessions.values()
                if each.over is None
                and each.profile is profile
                and (each.cwd == directory or directory in each.cwd.parents)
            ]
            for asked in (str(directory), None):  # some agents tell only what is asked for
                with suppress(GatewayError):  # an agent that cannot tell has no stored ones
                    for info in await self._all_stored(profile, asked):
                        place = Path(str(info.get("cwd", directory)))
                        if place == directory or directory in place.parents:
                            stored.setdefault(info["sessionId"], self._aged(info, profile))
        return [*rows, *stored.values()]

    async def locate(
        self, session_id: str, first: AgentProfile, others: Sequence[AgentProfile]
    ) -> tuple[AgentProfile, str | None]:
        """The agent that has stored a session, and where it works; ``first`` and None when none
        has."""
        for profile in (first, *(each for each in others if each is not first)):
            directory = await self.directory_of(session_id, profile)
            if directory is not None:
                return profile, directory
        return first, None

    def _aged(self, info: dict[str, Any], profile: AgentProfile) -> dict[str, Any]:
        """``info`` with the time at which the session ended here: a row must not move down while
        somebody pages through the list."""
        ended = self._ended.get((profile.name, info["sessionId"]))
        info = {**info, AGENT: profile.name}
        return info if ended is None else {**info, "updatedAt": ended.updated_at}

    async def _all_stored(self, profile: AgentProfile, cwd: str | None) -> Sequence[dict[str, Any]]:
        """All pages of the agent's own list, without the live ones."""
        found: dict[str, dict[str, Any]] = {}
        params: dict[str, Any] = {} if cwd is None else {"cwd": cwd}
        for _ in range(MAX_PAGES):
            page = await self.page(params, profile)
            for info in page["sessions"]:
                session_id = info.get("sessionId")
                if isinstance(session_id, str) and session_id not in self._sessions:
                    found.setdefault(session_id, info)
            cursor = page.get("nextCursor")
            if not cursor:
                break
            params = {**params, "cursor": cursor}
        return list(found.values())

    async def directory_of(self, session_id: str, profile: AgentProfile) -> str | None:
        """Where a session that its agent has stored works; None when none is known.

        Starts an agent when none runs.
        """
        ended = self._ended.get((profile.name, session_id))
        if ended is not None and ended.stored:
            return ended.cwd
        with suppress(GatewayError):
            async with self._pool.borrow(profile):
                for info in await self._all_stored(profile, None):
                    if info.get("sessionId") == session_id:
                        cwd = info.get("cwd")
                        return cwd if isinstance(cwd, str) else str(self._workspace.roots[0])
        return None
