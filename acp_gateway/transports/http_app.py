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

from acp_gateway import __version__
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.transports.acp_http import AcpHttp, Answer, plain_error
from acp_gateway.transports.acp_ws_fallback import serve_fallback
from acp_gateway.transports.guards import Head, decide, is_preflight
from acp_gateway.transports.hub import Hub
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


def _json(body: Any, status: int = 200) -> Response:
    return Response(dumps(body), status, content_type="application/json")


def make_app(hub: Hub, acp: AcpHttp) -> QuartTrio:
    """The Quart application with every route that is not a stream."""
    app = QuartTrio("acp_gateway", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = hub.settings.max_message_bytes
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["BODY_TIMEOUT"] = 60

    async def post() -> Response:
        body = await request.get_data(cache=False)
        return _response(await acp.post(request.path, _headers(), cast(bytes, body)))

    async def delete() -> Response:
        return _response(acp.delete(request.path, _headers()))

    async def upgrade() -> None:
        await serve_fallback(websocket, hub)

    for path in ("/acp", "/agents/<name>/acp"):
        app.add_url_rule(path, f"post {path}", _nameless(post), methods=["POST"])
        app.add_url_rule(path, f"delete {path}", _nameless(delete), methods=["DELETE"])
        app.add_websocket(path, f"websocket {path}", _nameless(upgrade))

    @app.get("/health")
    async def health() -> Response:
        return _json({"status": "ok", "version": __version__})

    @app.get("/readyz")
    async def readyz() -> Response:
        if hub.manager.draining:
            return _json({"status": "draining"}, 503)
        return _json({"status": "ready"})

    @app.get("/status")
    async def status() -> Response:
        # Goose Desktop asks here for a word; programs say what they want.
        if "application/json" in request.headers.get("accept", ""):
            return _json(status_body(hub))
        return Response("ok", content_type="text/plain; charset=utf-8")

    @app.errorhandler(HTTPException)
    async def http_error(exc: HTTPException) -> Response:
        return _response(_http_error(exc, hub))

    @app.errorhandler(GatewayError)
    async def gateway_error(exc: GatewayError) -> Response:
        status_code, body = exc.to_http()
        return _json(body, status_code)

    @app.errorhandler(Exception)
    async def failure(exc: Exception) -> Response:
        log.exception("route_failed", path=request.path, exc_info=exc)
        return _json({"error": "Internal error", "code": ErrorKind.INTERNAL.word}, 500)

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
    words = {
        404: ("not_found", f"There is nothing at {request.path}"),
        405: ("method_not_allowed", f"{request.method} is not allowed at {request.path}"),
    }
    word, text = words.get(code, ((exc.name or "error").lower().replace(" ", "_"), exc.name))
    answer = plain_error(code, word, text)
    allowed = getattr(exc, "valid_methods", None)
    if code == 405 and allowed:
        names = {*allowed} - {"OPTIONS", "HEAD"}
        if hub.profile_at(request.path) is not None:
            names.add("GET")
        headers = (*answer.headers, ("allow", ", ".join(sorted(names))))
        return Answer(answer.status, answer.body, headers)
    return answer


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
        if refusal is not None:
            status, body = refusal.to_http()
            await _send_answer(
                Answer(
                    status,
                    dumps(body),
                    (
                        ("content-type", "application/json"),
                        *((("www-authenticate", "Bearer"),) if status == 401 else ()),
                    ),
                ),
                send,
                websocket=is_websocket,
            )
        elif is_preflight(head):
            await _send_answer(Answer(204, b"", _PREFLIGHT), send)
        elif (
            not is_websocket and scope["method"] == "GET" and self._hub.profile_at(path) is not None
        ):
            await self._stream(headers, receive, send)
        else:
            await self._app(scope, receive, send)  # type: ignore[arg-type]

    async def _stream(self, headers: dict[str, str], receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:

            async def until_gone() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_gone)
            answer = await self._acp.stream(headers, send)
            if answer is not None:
                await _send_answer(answer, send)
            nursery.cancel_scope.cancel()


_PREFLIGHT = (
    ("access-control-allow-methods", "GET, POST, DELETE"),
    (
        "access-control-allow-headers",
        "authorization, content-type, accept, last-event-id, acp-connection-id, acp-session-id, "
        "acp-protocol-version",
    ),
    ("access-control-max-age", "600"),
)


def _with_cors(send: Send, origin: str | None) -> Send:
    """Let the page of ``origin`` read the answer (WHATWG Fetch, CORS protocol); None: refused."""
    headers = [(b"vary", b"Origin")]
    if origin is not None:
        headers += [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", b"acp-connection-id, acp-event-epoch"),
        ]

    async def with_headers(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return with_headers


async def _send_answer(answer: Answer, send: Send, *, websocket: bool = False) -> None:
    kind = "websocket.http.response" if websocket else "http.response"
    headers = [(name.encode(), value.encode()) for name, value in answer.headers]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": f"{kind}.start", "status": answer.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": answer.body, "more_body": False})
