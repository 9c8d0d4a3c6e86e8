"""The Streamable HTTP link, with the habits of the clients that exist.

POST initialize, GET the connection stream, GET a session stream as soon as a result names a
session, POST everything else and expect 202 with an empty body.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack

import httpx2
import trio

from conformance.links import Handler, Link, Message, allow, is_request
from conformance.outcome import Failure, LinkClosed, brief, check
from conformance.sse import SseParser
from conformance.target import Target

ANSWER_TIMEOUT = 20.0


def http_client(target: Target, *, http2: bool = False, auth: bool = True) -> httpx2.AsyncClient:
    """A client for the target; ``http2`` means HTTP/2 with prior knowledge."""
    return httpx2.AsyncClient(
        base_url=target.http_base,
        headers=target.auth_headers if auth else {},
        http1=not http2,
        http2=http2,
        verify=target.secure,  # loading the certificates costs more than most cases
        timeout=httpx2.Timeout(ANSWER_TIMEOUT, read=None),
        trust_env=False,
    )


class HttpRefused(Failure):
    """The server answered a POST or GET with another status than it should."""

    def __init__(self, what: str, status: int, body: str) -> None:
        super().__init__(f"{what} was answered {status}: {brief(body)}")
        self.status = status
        self.body = body


class SseStream:
    """One open GET. ``ready`` is set when its head arrived, ``over`` when the server ended it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready = trio.Event()
        self.over = trio.Event()
        self.scope = trio.CancelScope()
        self.parser = SseParser()
        self.status = 0
        self.headers = httpx2.Headers()
        self.body = ""


class HttpLink(Link):
    """``session_header=False`` omits Acp-Session-Id, as two of the real clients do."""

    transport = "http"

    def __init__(
        self,
        nursery: trio.Nursery,
        target: Target,
        handler: Handler = allow,
        *,
        http2: bool = False,
        session_header: bool = True,
        open_streams: bool = True,
    ) -> None:
        super().__init__(nursery, handler)
        self._target = target
        self._http2 = http2
        self._session_header = session_header
        self._open_streams = open_streams
        self._stack = AsyncExitStack()
        self._came_on: dict[str, str] = {}
        self.client: httpx2.AsyncClient
        self.streams: dict[str, SseStream] = {}
        """The newest stream of each session id, and of ``connection``."""

    async def open(self) -> None:
        self.client = await self._stack.enter_async_context(
            http_client(self._target, http2=self._http2)
        )

    # --- POST

    async def post(
        self, message: Message, *, session: str | None = None, wait: float = ANSWER_TIMEOUT
    ) -> httpx2.Response:
        """POST one message; the answer whatever its status."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.connection_id and message.get("method") != "initialize":
            headers["Acp-Connection-Id"] = self.connection_id
        if session and self._session_header:
            headers["Acp-Session-Id"] = session
        try:
            with trio.fail_after(wait):
                return await self.client.post(
                    self._target.path,
                    content=json.dumps(message, ensure_ascii=False).encode(),
                    headers=headers,
                )
        except httpx2.HTTPError as error:
            raise LinkClosed(f"POST {message.get('method', 'response')}: {error!r}") from None
        except trio.TooSlowError:
            raise Failure(f"no answer to POST {message.get('method', 'response')}") from None

    async def send(self, message: Message) -> None:
        what = f"POST {message.get('method', 'response')}"
        answer = await self.post(message, session=self._session_of(message))
        if message.get("method") == "initialize" and "id" in message:
            if answer.status_code != 200:
                raise HttpRefused(what, answer.status_code, answer.text)
            self.connection_id = answer.headers.get("Acp-Connection-Id")
            reply = answer.json()
            self.received(reply, "post")
            if self._open_streams and self.connection_id and "result" in reply:
                await self.open_stream(None)
            return
        if answer.status_code != 202 and not self._refused_as_answer(message, answer):
            raise HttpRefused(what, answer.status_code, answer.text)

    def _refused_as_answer(self, message: Message, answer: httpx2.Response) -> bool:
        """A request that is refused with a JSON-RPC error in the body has its answer by that."""
        if not is_request(message) or answer.status_code not in (400, 404):
            return False
        try:
            body = answer.json()
        except ValueError:
            return False
        if not isinstance(body, dict) or not isinstance(body.get("error"), dict):
            return False
        self.received({**body, "id": message["id"]}, "post")
        return True

    def _session_of(self, message: Message) -> str | None:
        params = message.get("params")
        if isinstance(params, dict) and isinstance(params.get("sessionId"), str):
            return str(params["sessionId"])
        if "method" not in message:
            return self._came_on.get(json.dumps(message.get("id")))
        return None

    # --- GET

    async def open_stream(
        self, session: str | None, *, last_event_id: str | None = None
    ) -> SseStream:
        """Open (again) the connection stream (None) or a session's; `HttpRefused` unless 200."""
        stream = SseStream(session or "connection")
        self.streams[stream.name] = stream
        await self.nursery.start(self._read, stream, session, last_event_id)
        if stream.status != 200:
            raise HttpRefused(f"GET of stream {stream.name}", stream.status, stream.body)
        return stream

    async def _read(
        self,
        stream: SseStream,
        session: str | None,
        last_event_id: str | None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        headers = {"Accept": "text/event-stream", "Acp-Connection-Id": self.connection_id or ""}
        if session is not None:
            headers["Acp-Session-Id"] = session
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        try:
            with stream.scope:
                async with self.client.stream(
                    "GET", self._target.path, headers=headers
                ) as response:
                    stream.status, stream.headers = response.status_code, response.headers
                    if stream.status != 200:
                        stream.body = (await response.aread()).decode("utf-8", "replace")
                        return
                    stream.ready.set()
                    task_status.started()
                    async for chunk in response.aiter_raw():
                        for event in stream.parser.feed(chunk):
                            self._event(stream, event.data, event.id)
        except httpx2.HTTPError as error:
            stream.parser.faults.append(f"the stream broke: {error!r}")
        finally:
            stream.over.set()
            if not stream.ready.is_set():
                stream.ready.set()
                task_status.started()
            if session is None and self.streams.get("connection") is stream:
                self.ended("the connection stream ended")

    def _event(self, stream: SseStream, data: str, event_id: str | None) -> None:
        try:
            message = json.loads(data)
        except ValueError:
            message = {"not JSON": data[:200]}
        if isinstance(message, dict):
            if is_request(message) and stream.name != "connection":
                self._came_on[json.dumps(message["id"])] = stream.name
            result = message.get("result")
            if isinstance(result, dict) and isinstance(result.get("sessionId"), str):
                self._follow(result["sessionId"])
        self.received(message, stream.name, event_id)

    def _follow(self, session: str) -> None:
        if self._open_streams and session not in self.streams:
            stream = self.streams[session] = SseStream(session)
            self.nursery.start_soon(self._read, stream, session, None)

    async def attached(self, session_id: str) -> None:
        # Servers whose load result names no session need the GET without that hint.
        self._follow(session_id)
        stream = self.streams[session_id]
        await stream.ready.wait()
        if stream.status != 200:
            raise HttpRefused(f"GET of stream {session_id}", stream.status, stream.body)

    # --- end

    async def drop(self) -> None:
        self.ended("dropped by the case")
        for stream in self.streams.values():
            stream.scope.cancel()
        await self._stack.aclose()

    async def close(self) -> None:
        # Also after a drop, which leaves the connection with the server.
        self.ended("closed by the case")
        if self.connection_id:
            async with http_client(self._target, http2=self._http2) as client:
                answer = await client.delete(
                    self._target.path, headers={"Acp-Connection-Id": self.connection_id}
                )
            check(answer.status_code in (202, 404), f"DELETE was answered {answer.status_code}")
        await self.drop()
