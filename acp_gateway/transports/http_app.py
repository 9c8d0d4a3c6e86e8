"""The HTTP side: guards, routes, JSON errors (home of quart-trio).

`GatewayAsgi` is what the listener serves: the guards, then what clients do all the time, as bare
ASGI: a row of the route table asked for by its very method, a message POSTed to ``/acp``, and the
streams (a batch for each send). Quart has the map of all routes and answers everything else: DELETE
of a connection, ``/status``, WebSockets that come to the HTTP server, HEAD, OPTIONS, 404 and 405.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, cast

import structlog
import trio
from quart import Response, request, websocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.extensions import OPERATIONS, Operation
from acp_gateway.transports.acp_http import AcpHttp, Answer, plain_error
from acp_gateway.transports.acp_ws_fallback import serve_fallback
from acp_gateway.transports.guards import Head, decide, is_loopback_address, is_preflight
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.request_body import BODY_TIMEOUT, WHEN_GONE, finishing, read_body
from acp_gateway.transports.rest.event_stream import EventStream
from acp_gateway.transports.rest.routes import JSON, Asked, Routes, error_answer
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


def _is_loopback(scope: Any) -> bool:
    return is_loopback_address((scope.get("client") or (None,))[0])


def make_app(hub: Hub, acp: AcpHttp) -> tuple[QuartTrio, Routes]:
    """The Quart application with every route that is not a stream, and the table's among them."""
    app = QuartTrio("acp_gateway", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = hub.settings.max_message_bytes
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["BODY_TIMEOUT"] = BODY_TIMEOUT

    async def body() -> bytes:
        return cast(bytes, await request.get_data(cache=False))

    async def post() -> Response:
        loopback = _is_loopback(request.scope)
        return _response(await acp.post(request.path, _headers(), await body(), loopback=loopback))

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
            return _response(Answer(200, dumps(status_body(hub)), JSON))
        return Response("ok", content_type="text/plain; charset=utf-8")

    def view(row: Operation) -> Callable[..., Awaitable[Response]]:
        async def operation(**parameters: str) -> Response:
            if row.stream:
                raise MethodNotAllowed(valid_methods=["GET"])
            loopback = _is_loopback(request.scope)
            asked = Asked(_headers(), request.query_string, loopback, body)
            return _response(await routes.answer(row, parameters, asked))

        return operation

    routes = Routes(app, hub, view)

    @app.errorhandler(Exception)
    async def failed(exc: Exception) -> Response:
        return _response(_failure(exc, request.path, request.scope, hub))

    return app, routes


def _nameless(view: Callable[[], Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def wrapper(name: str | None = None) -> Any:
        return await view()

    return wrapper


def _failure(exc: BaseException, path: str, scope: Any, hub: Hub) -> Answer:
    """What a request gets that ended with ``exc``."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    if isinstance(exc, GatewayError):
        return error_answer(exc)
    if not isinstance(exc, HTTPException):
        log.exception("route_failed", path=path, exc_info=exc)
        return error_answer(GatewayError(ErrorKind.INTERNAL, "Internal error"))
    code = exc.code or 500
    if isinstance(exc, RequestEntityTooLarge):
        limit = hub.settings.max_message_bytes
        answer = plain_error(
            413, "payload_too_large", f"Request body too large (max {limit} bytes)"
        )
        if scope["http_version"] == "2":
            return answer
        # Nobody reads the rest of the body: the connection cannot be used again (RFC 9112 §9.3).
        return Answer(413, answer.body, (*answer.headers, ("connection", "close")))
    if code == 404:
        return error_answer(
            GatewayError(
                ErrorKind.ROUTE_NOT_FOUND,
                f"There is nothing at {path}",
                remedy="GET /openapi.json lists the routes",
            )
        )
    if code == 405:
        return _not_allowed(exc, scope["method"], path, hub)
    word = (exc.name or "error").lower().replace(" ", "_")
    return plain_error(code, word, exc.name)


def _not_allowed(exc: HTTPException, method: str, path: str, hub: Hub) -> Answer:
    names = {*(getattr(exc, "valid_methods", None) or ())} - {"OPTIONS", "HEAD"}
    if hub.profile_at(path) is not None:
        names.add("GET")
    allowed = ", ".join(sorted(names))
    answer = error_answer(
        GatewayError(
            ErrorKind.METHOD_NOT_ALLOWED,
            f"{method} is not allowed at {path}",
            remedy=f"use {allowed}",
        )
    )
    return Answer(answer.status, answer.body, (*answer.headers, ("allow", allowed)))


class GatewayAsgi:
    """See the module."""

    def __init__(self, hub: Hub, acp: AcpHttp) -> None:
        self._hub = hub
        self._acp = acp
        self._app, self._routes = make_app(hub, acp)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)  # type: ignore[arg-type]
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        is_websocket = scope["type"] == "websocket"
        if is_websocket:
            headers.setdefault("sec-websocket-protocol", ",".join(scope.get("subprotocols", ())))
        else:
            receive, send = finishing(scope, headers, receive, send)
        path, method = scope["path"], scope.get("method", "GET")
        query = scope.get("query_string", b"").decode("latin-1")
        head = Head(method, path, query, headers, upgrade=is_websocket)
        refusal = decide(head, self._hub.policy)
        if not is_websocket and "origin" in headers:
            send = _with_cors(send, headers["origin"] if refusal is None else None)
        page = None
        # A page is no secret, and a browser's first request cannot carry a token.
        welcome = refusal is None or refusal.kind is ErrorKind.AUTH_REQUIRED
        if welcome and not is_websocket and method in ("GET", "HEAD"):
            page = await self._page(path, headers)
        if page is not None:
            await _send_answer(page, send, head=method == "HEAD")
        elif refusal is not None:
            await _send_answer(error_answer(refusal), send, websocket=is_websocket)
        elif is_preflight(head):
            await _send_answer(Answer(204, b"", _PREFLIGHT), send)
        elif is_websocket:
            await self._app(scope, receive, send)  # type: ignore[arg-type]
        elif method in ("GET", "POST") and self._hub.profile_at(path) is not None:
            if method == "GET":
                await _while_there(scope, send, self._acp.stream(headers, send))
            else:
                await _while_there(scope, send, self._post(headers, scope, receive))
        elif (found := self._routes.find(method, path)) is None:
            await self._app(scope, receive, send)  # type: ignore[arg-type]
        elif found[0].stream:
            await _while_there(scope, send, self._events(found[1].get("sessionId", ""), head, send))
        else:
            await _while_there(scope, send, self._operation(*found, headers, scope, receive))

    async def _post(
        self, headers: Mapping[str, str], scope: dict[str, Any], receive: Receive
    ) -> Answer:
        """One message of an ACP client."""
        try:
            body = await read_body(receive, headers, self._hub.settings.max_message_bytes)
            loopback = _is_loopback(scope)
            return await self._acp.post(scope["path"], headers, body, loopback=loopback)
        except Exception as exc:
            return _failure(exc, scope["path"], scope, self._hub)

    async def _operation(
        self,
        row: Operation,
        parameters: Mapping[str, Any],
        headers: Mapping[str, str],
        scope: dict[str, Any],
        receive: Receive,
    ) -> Answer:
        async def body() -> bytes:
            return await read_body(receive, headers, self._hub.settings.max_message_bytes)

        try:
            asked = Asked(headers, scope["query_string"], _is_loopback(scope), body)
            return await self._routes.answer(row, parameters, asked)
        except Exception as exc:
            return _failure(exc, scope["path"], scope, self._hub)

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
            return error_answer(exc)
        await stream.run(send)
        return None


async def _while_there(
    scope: dict[str, Any], send: Send, serving: Coroutine[Any, Any, Answer | None]
) -> None:
    """Serve until it ends or the client has gone; what it gives is sent."""
    with trio.CancelScope() as there:
        scope["extensions"][WHEN_GONE](there.cancel)
        answer = await serving
    if not there.cancelled_caught and answer is not None:
        await _send_answer(answer, send)


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
