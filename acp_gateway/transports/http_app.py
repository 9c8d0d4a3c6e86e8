"""The HTTP side: guards, routes, JSON errors (home of quart-trio).

`GatewayAsgi` is what the listener serves: one middleware with the guards, the ``/acp`` streams as
bare ASGI (a batch for each send), everything else through Quart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import structlog
import trio
from quart import Response, request, websocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.extensions import OPERATIONS
from acp_gateway.transports.acp_http import AcpHttp, Answer, plain_error
from acp_gateway.transports.acp_ws_fallback import serve_fallback
from acp_gateway.transports.guards import Head, decide, is_loopback_address, is_preflight
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.request_body import finishing
from acp_gateway.transports.rest.event_stream import EventStream
from acp_gateway.transports.rest.routes import (
    error_headers,
    error_response,
    json_response,
    register,
)
from acp_gateway.transports.status import status_body
from acp_gateway.wire.json_codec import dumps

log = structlog.get_logger("acp_gateway.http")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def _response(answer: Answer) -> Response:
    response = Response(answer.body, answer.status)
    del response.headers["content-type"]
    for name, value in answer.headers:
        response.headers[name] = value
    return response


def _headers() -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


def make_app(hub: Hub, acp: AcpHttp) -> QuartTrio:
    """The Quart application with every route that is not a stream."""
    app = QuartTrio("acp_gateway", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = hub.settings.max_message_bytes
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["BODY_TIMEOUT"] = 60

    async def post() -> Response:
        body = await request.get_data(cache=False)
        loopback = is_loopback_address((request.scope.get("client") or (None,))[0])
        return _response(
            await acp.post(request.path, _headers(), cast(bytes, body), loopback=loopback)
        )

    async def delete() -> Response:
        return _response(acp.delete(request.path, _headers()))

    async def upgrade() -> None:
        await serve_fallback(websocket, hub)

    for path in ("/acp", "/agents/<name>/acp"):
        app.add_url_rule(path, f"post {path}", _nameless(post), methods=["POST"])
        app.add_url_rule(path, f"delete {path}", _nameless(delete), methods=["DELETE"])
        app.add_websocket(path, f"websocket {path}", _nameless(upgrade))

    @app.get("/status")
    async def status() -> Response:
        # Goose Desktop asks here for a word; programs say what they want.
        if "application/json" in request.headers.get("accept", ""):
            return json_response(status_body(hub))
        return Response("ok", content_type="text/plain; charset=utf-8")

    register(app, hub)

    @app.errorhandler(HTTPException)
    async def http_error(exc: HTTPException) -> Response:
        return _response(_http_error(exc, hub))

    @app.errorhandler(GatewayError)
    async def gateway_error(exc: GatewayError) -> Response:
        return error_response(exc)

    @app.errorhandler(Exception)
    async def failure(exc: Exception) -> Response:
        log.exception("route_failed", path=request.path, exc_info=exc)
        return error_response(GatewayError(ErrorKind.INTERNAL, "Internal error"))

    return app


def _nameless(view: Callable[[], Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def wrapper(name: str | None = None) -> Any:
        return await view()

    return wrapper


def _http_error(exc: HTTPException, hub: Hub) -> Answer:
    code = exc.code or 500
    if isinstance(exc, RequestEntityTooLarge):
        limit = hub.settings.max_message_bytes
        answer = plain_error(
            413, "payload_too_large", f"Request body too large (max {limit} bytes)"
        )
        if request.scope["http_version"] == "2":
            return answer
        # Nobody reads the rest of the body: the connection cannot be used again (RFC 9112 §9.3).
        return Answer(413, answer.body, (*answer.headers, ("connection", "close")))
    if code == 404:
        return _error_answer(
            GatewayError(
                ErrorKind.ROUTE_NOT_FOUND,
                f"There is nothing at {request.path}",
                remedy="GET /openapi.json lists the routes",
            )
        )
    if code == 405:
        return _not_allowed(exc, hub)
    word = (exc.name or "error").lower().replace(" ", "_")
    return plain_error(code, word, exc.name)


def _not_allowed(exc: HTTPException, hub: Hub) -> Answer:
    names = {*(getattr(exc, "valid_methods", None) or ())} - {"OPTIONS", "HEAD"}
    if hub.profile_at(request.path) is not None:
        names.add("GET")
    allowed = ", ".join(sorted(names))
    answer = _error_answer(
        GatewayError(
            ErrorKind.METHOD_NOT_ALLOWED,
            f"{request.method} is not allowed at {request.path}",
            remedy=f"use {allowed}",
        )
    )
    return Answer(answer.status, answer.body, (*answer.headers, ("allow", allowed)))


def _error_answer(error: GatewayError) -> Answer:
    status, body = error.to_http()
    headers = (("content-type", "application/json; charset=utf-8"), *error_headers(error))
    return Answer(status, dumps(body), headers)


class GatewayAsgi:
    """See the module."""

    def __init__(self, hub: Hub, acp: AcpHttp) -> None:
        self._hub = hub
        self._acp = acp
        self._app = make_app(hub, acp)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)  # type: ignore[arg-type]
            return
        if scope["type"] == "http":
            receive, send = finishing(scope, receive, send)
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        if ":authority" in headers:
            headers.setdefault("host", headers[":authority"])
        is_websocket = scope["type"] == "websocket"
        if is_websocket:
            headers.setdefault("sec-websocket-protocol", ",".join(scope.get("subprotocols", ())))
        path = scope["path"]
        head = Head(
            scope.get("method", "GET"),
            path,
            scope.get("query_string", b"").decode("latin-1"),
            headers,
            upgrade=is_websocket,
        )
        refusal = decide(head, self._hub.policy)
        if not is_websocket and "origin" in headers:
            send = _with_cors(send, headers["origin"] if refusal is None else None)
        page = None
        # A page is no secret, and a browser's first request cannot carry a token.
        welcome = refusal is None or refusal.kind is ErrorKind.AUTH_REQUIRED
        if welcome and not is_websocket and scope["method"] in ("GET", "HEAD"):
            page = await self._page(path, headers)
        if page is not None:
            await _send_answer(page, send, head=scope["method"] == "HEAD")
        elif refusal is not None:
            await _send_answer(_error_answer(refusal), send, websocket=is_websocket)
        elif is_preflight(head):
            await _send_answer(Answer(204, b"", _PREFLIGHT), send)
        elif is_websocket or scope["method"] != "GET":
            await self._app(scope, receive, send)  # type: ignore[arg-type]
        elif self._hub.profile_at(path) is not None:
            await _until_gone(receive, send, lambda: self._acp.stream(headers, send))
        elif (feed_id := _event_path(path)) is not None:
            await _until_gone(receive, send, lambda: self._events(feed_id, head, send))
        else:
            await self._app(scope, receive, send)  # type: ignore[arg-type]

    async def _page(self, path: str, headers: dict[str, str]) -> Answer | None:
        """A file of the web client, if the path is one."""
        web, accept = self._hub.web, headers.get("accept", "")
        if not path.startswith("/"):
            return None
        api = path.split("/")[1] in _API
        if not web.reads_disk:
            file = web.get(path, accept)
        elif api and "text/html" not in accept:
            return None
        else:
            file = await trio.to_thread.run_sync(web.get, path, accept)
            if file is None and not api:
                file = await trio.to_thread.run_sync(web.fallback, accept)
        if file is None:
            return None
        file = file.unless_known(headers.get("if-none-match"))
        return Answer(file.status, file.body, file.headers)

    async def _events(self, session_id: str, head: Head, send: Send) -> Answer | None:
        """An event stream, or the refusal to send instead. An empty id: the workspace's."""
        manager = self._hub.manager
        try:
            feed = manager.get(session_id) if session_id else manager.feed
            stream = EventStream(self._hub, feed, head.headers, head.query)
        except GatewayError as exc:
            return _error_answer(exc)
        await stream.run(send)
        return None


async def _until_gone(
    receive: Receive, send: Send, serve: Callable[[], Awaitable[Answer | None]]
) -> None:
    """Serve a stream until it ends or the client has gone."""
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        answer = await serve()
        if answer is not None:
            await _send_answer(answer, send)
        nursery.cancel_scope.cancel()


def _event_path(path: str) -> str | None:
    """The session whose events a path names; empty for the workspace's, None for neither."""
    if path == "/workspace/events":
        return ""
    parts = path.split("/")
    if len(parts) == 4 and parts[1] == "session" and parts[2] and parts[3] == "events":
        return parts[2]
    return None


_API = frozenset(row.path.split("/")[1] for row in OPERATIONS.values()) | {"acp", "agents"}
"""First parts of the API's paths: no file of a page has such a name."""

_PREFLIGHT = (
    ("access-control-allow-methods", "GET, POST, PATCH, DELETE, OPTIONS"),
    (
        "access-control-allow-headers",
        "authorization, content-type, accept, last-event-id, acp-connection-id, acp-session-id, "
        "acp-protocol-version, x-qwen-client-id, x-qwen-event-epoch, idempotency-key",
    ),
    ("access-control-max-age", "600"),
)


def _with_cors(send: Send, origin: str | None) -> Send:
    """Let the page of ``origin`` read the answer (WHATWG Fetch, CORS protocol); None: refused."""
    headers = [(b"vary", b"Origin")]
    if origin is not None:
        headers += [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (
                b"access-control-expose-headers",
                b"acp-connection-id, acp-event-epoch, retry-after, x-qwen-event-epoch, "
                b"x-qwen-sse-stream-id",
            ),
        ]

    async def with_headers(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return with_headers


async def _send_answer(
    answer: Answer, send: Send, *, websocket: bool = False, head: bool = False
) -> None:
    kind = "websocket.http.response" if websocket else "http.response"
    headers = [(name.encode(), value.encode()) for name, value in answer.headers]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": f"{kind}.start", "status": answer.status, "headers": headers})
    body = b"" if head else answer.body
    await send({"type": f"{kind}.body", "body": body, "more_body": False})
