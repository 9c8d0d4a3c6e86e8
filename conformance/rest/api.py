"""REST calls to the server under test, and the sessions that a case makes."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx2
import trio

from conformance.http_link import http_client
from conformance.outcome import Failure, Skip, brief
from conformance.rest.answer import Answer
from conformance.rest.events import EventStream
from conformance.rest.session import Session
from conformance.rest.words import WORDS, Words
from conformance.target import Target

CALL_TIMEOUT = 15.0
ABSENT: Any = object()


class Api:
    """Made by `Context.rest`; its sessions are deleted at the end of the case."""

    def __init__(self, nursery: trio.Nursery, target: Target, cwd: Path, agent: str) -> None:
        self.nursery = nursery
        self.target = target
        self.cwd = cwd
        self.agent = agent
        self.capabilities: dict[str, Any] = {}
        self._stack = AsyncExitStack()
        self._client: httpx2.AsyncClient
        self._made: list[str] = []

    async def open(self) -> None:
        """Raises `Skip` when the server has no REST surface."""
        self._client = await self._stack.enter_async_context(http_client(self.target))
        answer = await self.call("GET", "/capabilities")
        kind = answer.headers.get("content-type", "")
        if answer.status != 200 or not kind.startswith("application/json"):
            raise Skip(f"no REST surface: GET /capabilities was answered {answer.status}")
        self.capabilities = answer.body

    @property
    def features(self) -> list[str]:
        found = self.capabilities.get("features")
        return found if isinstance(found, list) else []

    def need(self, *features: str) -> None:
        for feature in features:
            if feature not in self.features:
                raise Skip(f"{feature} is not advertised")

    @property
    def words(self) -> Words:
        if self.agent not in WORDS:
            raise Skip(f"needs an agent that can be steered: --agent {' or '.join(WORDS)}")
        return WORDS[self.agent]

    async def limit(self, name: str) -> int:
        """A member of limits of GET /daemon/status; `Skip` when it is not told."""
        status = (await self.call("GET", "/daemon/status")).ok()
        value = (status.get("limits") or {}).get(name)
        if not isinstance(value, int):
            raise Skip(f"/daemon/status does not tell limits.{name}")
        return value

    # --- requests

    async def call(
        self,
        method: str,
        path: str,
        body: Any = ABSENT,
        *,
        client: str | None = None,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
    ) -> Answer:
        """One request; ``client`` goes into X-Qwen-Client-Id, ``body`` as JSON, ``content`` as it
        is (with a Content-Type only when ``headers`` has one)."""
        sent = {"Accept": "application/json", **(headers or {})}
        if client is not None:
            sent["X-Qwen-Client-Id"] = client
        if body is not ABSENT:
            content = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        what = f"{method} {path}"
        try:
            with trio.fail_after(CALL_TIMEOUT):
                response = await self._client.request(method, path, content=content, headers=sent)
        except httpx2.HTTPError as error:
            raise Failure(f"{what}: {error!r}") from None
        except trio.TooSlowError:
            raise Failure(f"{what} was not answered within {CALL_TIMEOUT:g} s") from None
        return Answer(what, response.status_code, response.headers, response.text)

    async def stream(
        self,
        path: str,
        *,
        last: int | str | None = None,
        epoch: str | None = None,
        client: str | None = None,
    ) -> EventStream:
        """An open GET; its ``answer`` may be a refusal."""
        headers = {"Last-Event-ID": None if last is None else str(last)}
        headers |= {"X-Qwen-Event-Epoch": epoch, "X-Qwen-Client-Id": client}
        sent = {name: value for name, value in headers.items() if value is not None}
        stream = EventStream(self._client, path, sent)
        await self.nursery.start(stream.run)
        return stream

    # --- sessions

    def made(self, session_id: str) -> str:
        """Have a session deleted at the end of the case."""
        self._made.append(session_id)
        return session_id

    async def create(self, *, client: str | None = None, **body: Any) -> Answer:
        """POST /session in the directory of this case, unless ``body`` says otherwise."""
        answer = await self.call("POST", "/session", {"cwd": str(self.cwd), **body}, client=client)
        if answer.status == 200 and isinstance(answer.body.get("sessionId"), str):
            self.made(answer.body["sessionId"])
        return answer

    async def session(self, **body: Any) -> Session:
        """A new session of its own that asks before it writes."""
        made = (await self.create(sessionScope="thread", **body)).ok()
        session, client = made.get("sessionId"), made.get("clientId")
        if not isinstance(session, str) or not isinstance(client, str):
            raise Failure(f"POST /session: no sessionId or clientId: {brief(made)}")
        return Session(self, session, client)

    def known(self, session_id: str, client: str) -> Session:
        """A session that was made in another way."""
        return Session(self, session_id, client)

    async def sessions(self, **query: Any) -> Answer:
        """The list of the workspace that the directory of the case belongs to."""
        tail = "&".join(f"{name}={quote(str(value))}" for name, value in query.items())
        return await self.call("GET", f"{self.sessions_path}?{tail}")

    @property
    def sessions_path(self) -> str:
        return f"/workspace/{quote(self.workspace, safe='')}/sessions"

    @property
    def workspace(self) -> str:
        return str(self.capabilities.get("workspaceCwd") or self.cwd)

    async def clean_up(self) -> None:
        for session_id in dict.fromkeys(self._made):
            await self.call("DELETE", f"/session/{session_id}")
        await self._stack.aclose()


def unknown_id() -> str:
    """A well-formed session id that no session has."""
    return str(uuid4())
