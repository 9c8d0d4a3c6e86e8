"""What a case gets: links, sessions and directories that are cleaned up after it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import trio

from conformance.http_link import HttpLink, http_client
from conformance.links import Handler, Link, Reply, allow
from conformance.outcome import Failure, Skip, check
from conformance.raw import RawConnection, RawHead, RawWebSocket, upgrade_headers
from conformance.rest.api import Api
from conformance.target import Target
from conformance.ws_link import WsLink

CLEAN_UP_TIMEOUT = 8.0


class Context:
    """One run of one case over one transport."""

    def __init__(
        self, nursery: trio.Nursery, target: Target, transport: str, cwd: Path, agent: str
    ) -> None:
        self.nursery = nursery
        self.target = target
        self.transport = transport
        self.agent = agent
        self._root = cwd
        self._links: list[Link] = []
        self._raw: list[RawConnection] = []
        self._cwd: Path | None = None
        self._rest: Api | None = None

    @property
    def cwd(self) -> Path:
        """A directory of this run alone, inside the working directory given to the suite. For
        another server that directory itself: some take no other."""
        if self.agent != "demo":
            return self._root
        if self._cwd is None:
            self._cwd = Path(tempfile.mkdtemp(prefix="conformance-", dir=self._root))
        return self._cwd

    # --- links

    async def bare(
        self, transport: str | None = None, handler: Handler = allow, **options: Any
    ) -> Link:
        """An open link before initialize; ``transport`` None is the transport of this run."""
        kind = transport or self.transport
        link: Link
        if kind == "ws":
            link = WsLink(self.nursery, self.target, handler, **options)
        else:
            link = HttpLink(self.nursery, self.target, handler, **options)
        await link.open()
        self._links.append(link)
        return link

    async def link(
        self, transport: str | None = None, handler: Handler = allow, **options: Any
    ) -> Link:
        """An initialized link."""
        link = await self.bare(transport, handler, **options)
        (await link.initialize()).succeeds()
        return link

    async def http(self, **options: Any) -> HttpLink:
        """An initialized HTTP link, whose streams and POSTs a case may handle itself."""
        link = await self.link("http", **options)
        assert isinstance(link, HttpLink)
        return link

    async def ws(self, **options: Any) -> WsLink:
        """An initialized WebSocket link."""
        link = await self.link("ws", **options)
        assert isinstance(link, WsLink)
        return link

    # --- sessions

    async def session(self, link: Link, **params: Any) -> str:
        """A new session whose events this link receives."""
        reply = await link.request(
            "session/new", {"cwd": str(self.cwd), "mcpServers": [], **params}
        )
        session_id = reply.result.get("sessionId")
        if not isinstance(session_id, str):
            raise Failure(f"session/new gave no sessionId: {reply.result}")
        await link.attached(session_id)
        return session_id

    async def load(self, link: Link, session_id: str, method: str = "session/load") -> Reply:
        """Attach this link to a session; returns when its events can arrive."""
        params = {"sessionId": session_id, "cwd": str(self.cwd), "mcpServers": []}
        reply = await link.request(method, params)
        reply.succeeds()
        await link.attached(session_id)
        return reply

    async def require(self, link: Link, capability: str) -> None:
        """Skip unless the server advertises sessionCapabilities.<capability>."""
        init = next(entry.message for entry in link.log if "result" in entry.message)
        capabilities = init["result"].get("agentCapabilities") or {}
        if not isinstance((capabilities.get("sessionCapabilities") or {}).get(capability), dict):
            raise Skip(f"sessionCapabilities.{capability} is not advertised")

    # --- REST

    async def rest(self) -> Api:
        """The REST surface; `Skip` when the server has none."""
        if self._rest is None:
            api = Api(self.nursery, self.target, self.cwd, self.agent)
            self._rest = api
            await api.open()
        return self._rest

    # --- below the links

    def client(self, *, http2: bool = False, auth: bool = True) -> Any:
        """An httpx2 client for the server; to be used with ``async with``."""
        return http_client(self.target, http2=http2, auth=auth)

    async def raw(self) -> RawConnection:
        connection = await RawConnection.open(self.target)
        self._raw.append(connection)
        return connection

    async def upgrade(self, path: str | None = None, **changes: str | None) -> RawHead | None:
        """Try a WebSocket upgrade with changed headers; the head of the answer, None for a hang-up
        without one."""
        connection = await self.raw()
        headers = upgrade_headers(self.target, **changes)
        return await connection.request("GET", path or self.target.path, headers)

    async def raw_ws(self, *, initialize: bool = True, **changes: str | None) -> RawWebSocket:
        connection = await self.raw()
        headers = upgrade_headers(self.target, **changes)
        head = await connection.request("GET", self.target.path, headers)
        if head is None or head.status != 101:
            raise Failure(f"the upgrade was answered {head and head.status}")
        socket = RawWebSocket(connection, head)
        if initialize:
            answer = await socket.initialize()
            check("result" in answer, f"initialize failed: {answer}")
        return socket

    def need_loopback(self) -> None:
        if not self.target.loopback:
            raise Skip("Host and Origin rules are those of a loopback daemon")

    def need_token(self) -> str:
        if self.target.token is None:
            raise Skip("run with --token against a server that asks for one")
        return self.target.token

    # --- end

    async def clean_up(self) -> None:
        """Close every session and link of the case; errors do not matter any more."""
        with trio.move_on_after(CLEAN_UP_TIMEOUT, shield=True):
            open_sessions = {session for link in self._links for session in link.sessions}
            # The server must not think that a link that is over is still attached: then a close
            # by the others would only detach them.
            for link in self._links:
                if link.closed is not None:
                    await self._quietly(link.close)
            if self._rest is not None:
                await self._quietly(self._rest.clean_up)
            for link in self._links:
                for session in list(link.sessions):
                    if link.closed is None and await self._close_session(link, session):
                        open_sessions.discard(session)
            if open_sessions:
                await self._close_abandoned(open_sessions)
            for link in self._links:
                await self._quietly(link.close)
            for connection in self._raw:
                await connection.aclose()
        if self._cwd is not None:
            shutil.rmtree(self._cwd, ignore_errors=True)

    async def _close_session(self, link: Link, session: str) -> bool:
        try:
            await link.request("session/close", {"sessionId": session})
        except (Failure, OSError):
            return False
        return True

    async def _close_abandoned(self, sessions: set[str]) -> None:
        """Sessions whose links are gone: attach with a new one and close them, so that they do
        not fill the server's table."""
        try:
            janitor = await self.link("ws")
            for session in sessions:
                await self.load(janitor, session, "session/resume")
                await self._close_session(janitor, session)
        except (Failure, OSError):
            return

    async def _quietly(self, step: Any) -> None:
        try:
            await step()
        except Exception:  # a broken link cannot fail a case that is already judged
            return
