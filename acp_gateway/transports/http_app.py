"""The HTTP side: guards, routes, JSON errors (home of quart-trio).

`GatewayAsgi` is what the listener serves: the guards, then what clients do all the time, as bare
ASGI: a row of the route table asked for by its very method, a message POSTed to ``/acp``, and the
streams (a batch for each send). Quart has the map of all routes and answers everything else: DELETE
of a connection, ``/status``, WebSockets that come to the HTTP server, HEAD, OPTIONS, 404 and 405.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import copy_context
from functools import partial
from typing import Any, cast

import structlog
import trio
from quart import Response, request, websocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from acp_gateway.config import Settings
from acp_gateway.config_access import UNIX_PEER
from acp_gateway.core.identity import NOBODY, Identity, Scope, required
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.extensions import OPERATIONS, Operation
from acp_gateway.runtime.keyring import End, Keyring, refusal_of
from acp_gateway.transports.acp_http import AcpHttp, Answer, plain_error
from acp_gateway.transports.acp_ws_fallback import serve_fallback
from acp_gateway.transports.client_address import CLIENT, Client, caller_key, client_of
from acp_gateway.transports.cors import with_cors
from acp_gateway.transports.guards import (
    OPEN_PATHS,
    Head,
    bad_head,
    decide,
    identity_of,
    is_preflight,
    renew_keys,
)
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.peer_stream import give_up_peer
from acp_gateway.transports.rate_limits import RateLimitExceeded
from acp_gateway.transports.request_body import (
    OPEN_LIMIT,
    OPEN_TIMEOUT,
    WHEN_GONE,
    BodyTooLarge,
    clipped,
    finishing,
    read_body,
)
from acp_gateway.transports.rest.event_stream import EventStream
from acp_gateway.transports.rest.routes import JSON, Asked, Routes, error_answer, is_usual
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


def _client(scope: Any) -> Client:
    found: Client = scope["extensions"][CLIENT]
    return found


def _is_loopback(scope: Any) -> bool:
    return _client(scope).local


def _caller(scope: Any) -> str:
    """Whose bucket of the rate limits a request counts against."""
    return caller_key(_client(scope).address, _identity(scope).party)


def _identity(scope: Any) -> Identity:
    identity = scope.get(_WHO, NOBODY)
    return identity if isinstance(identity, Identity) else NOBODY


def _body_limits(row: Operation | None, settings: Settings) -> tuple[int, float]:
    """(bytes, seconds) of a body. Small where no token is asked for: the limits of everybody else
    would let a stranger fill the memory. None: no row of the table."""
    if row is not None and required(row) is None:
        return OPEN_LIMIT, min(OPEN_TIMEOUT, settings.body_timeout)
    return settings.max_message_bytes, settings.body_timeout


def make_app(hub: Hub, acp: AcpHttp) -> tuple[QuartTrio, Routes]:
    """The Quart application with every route that is not a stream, and the table's among them."""
    app = QuartTrio("acp_gateway", static_folder=None)

    def limit_bodies() -> None:
        app.config["MAX_CONTENT_LENGTH"] = hub.settings.max_message_bytes

    limit_bodies()
    if hub.live is not None:
        hub.live.when_changed(("max_message_bytes",), limit_bodies)
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["BODY_TIMEOUT"] = hub.settings.body_timeout

    async def body(row: Operation | None = None) -> bytes:
        limit, seconds = _body_limits(row, hub.settings)
        request.body_timeout = seconds  # type: ignore[assignment]  # Quart takes parts of them too
        data = cast(bytes, await request.get_data(cache=False))
        if len(data) > limit:
            raise BodyTooLarge(limit)
        return data

    async def post() -> Response:
        scope: Any = request.scope
        return _response(
            await acp.post(
                request.path,
                _headers(),
                await body(),
                loopback=_is_loopback(scope),
                caller=_caller(scope),
                identity=_identity(scope),
            )
        )

    async def delete() -> Response:
        return _response(acp.delete(request.path, _headers(), _identity(request.scope)))

    async def upgrade() -> None:
        await serve_fallback(websocket, hub, _identity(websocket.scope))

    for path in ("/acp", "/agents/<name>/acp"):
        app.add_url_rule(path, f"post {path}", _nameless(post), methods=["POST"])
        app.add_url_rule(path, f"delete {path}", _nameless(delete), methods=["DELETE"])
        app.add_websocket(path, f"websocket {path}", _nameless(upgrade))

    @app.get("/status")
    async def status() -> Response:
        _identity(request.scope).demand(Scope.READ)
        # Goose Desktop asks here for a word; programs say what they want.
        if "application/json" in request.headers.get("accept", ""):
            return _response(Answer(200, dumps(status_body(hub)), JSON))
        return Response("ok", content_type="text/plain; charset=utf-8")

    def view(row: Operation) -> Callable[..., Awaitable[Response]]:
        async def operation(**parameters: str) -> Response:
            if row.stream:
                raise MethodNotAllowed(valid_methods=["GET"])
            scope: Any = request.scope
            loopback, identity = _is_loopback(scope), _identity(scope)
            asked = Asked(_headers(), request.query_string, loopback, identity, partial(body, row))
            answering = routes.answer(row, parameters, asked)
            return _response(await _while_good(hub.policy.keyring, identity, answering))

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
        limit = exc.limit if isinstance(exc, BodyTooLarge) else hub.settings.max_message_bytes
        answer = plain_error(
            413, "payload_too_large", f"Request body too large (max {limit} bytes)"
        )
        if scope["http_version"] == "2":
            return answer
        # Nobody reads the rest of the body: the connection cannot be used again (RFC 9112 §9.3).
        return Answer(413, answer.body, (*answer.headers, ("connection", "close")))
    if code == 404:
        return _nothing_at(path)
    if code == 405:
        return _not_allowed(exc, scope["method"], path, hub)
    word = (exc.name or "error").lower().replace(" ", "_")
    return plain_error(code, word, exc.name)


def _nothing_at(path: str) -> Answer:
    return error_answer(
        GatewayError(
            ErrorKind.ROUTE_NOT_FOUND,
            f"There is nothing at {path}",
            remedy="GET /openapi.json lists the routes",
        )
    )


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
        hub, method = self._hub, scope.get("method", "GET")
        path = scope["path"] = hub.policy.route(full := scope["path"])
        query = scope.get("query_string", b"").decode("latin-1")
        peer = (scope.get("client") or (None,))[0]
        client = client_of(peer, headers, scope["headers"], hub.proxies)
        scope["extensions"][CLIENT] = client
        head = Head(
            method,
            path,
            query,
            headers,
            upgrade=is_websocket,
            site=client.site,
            unix=peer == UNIX_PEER,
        )
        target = len(scope["raw_path"]) + len(query)
        refusal = bad_head(target, scope["headers"], hub.settings.max_header_bytes)
        if refusal is None:
            await renew_keys(head, hub.policy)
            refusal = decide(head, hub.policy)
        hub.traffic.refuse(refusal)
        scope[_WHO] = NOBODY if refusal is not None else identity_of(head, hub.policy)
        if not is_websocket and ("origin" in headers or hub.policy.allow_origin):
            send = with_cors(send, _reader(headers, refusal))
        limited = None
        page = None
        # A page is no secret, and a browser's first request cannot carry a token.
        welcome = refusal is None or refusal.kind is ErrorKind.AUTH_REQUIRED
        if welcome and not is_websocket and method in ("GET", "HEAD"):
            page = await self._page(path, headers)
            if page is not None and path == "/" and not full.endswith("/"):
                # Relative links of a page start at the last slash of its address.
                page = Answer(307, b"", (("location", f"{full}/"),))
        if refusal is None and page is None and hub.limits is not None and not is_websocket:
            limited = hub.limits.refuse_request(method, path, _caller(scope))
        if page is not None:
            await _send_answer(page, send, head=method == "HEAD")
        elif refusal is not None:
            await _send_answer(error_answer(refusal), send, websocket=is_websocket)
        elif is_preflight(head):
            await _send_answer(Answer(204), send)
        elif limited is not None:
            await _send_answer(_too_many(limited), send)
        elif not is_usual(path):
            await _send_answer(_nothing_at(path), send, websocket=is_websocket)
        elif is_websocket:
            await self._app(scope, receive, send)  # type: ignore[arg-type]
        elif method in ("GET", "POST") and self._hub.profile_at(path) is not None:
            if method == "GET":
                await _while_there(scope, send, self._acp.stream(headers, send, _identity(scope)))
            else:
                await self._answer(scope, send, self._post(headers, scope, receive))
        elif (found := self._routes.find(method, path)) is None:
            if path in OPEN_PATHS:
                receive = clipped(receive, OPEN_LIMIT)
            await self._app(scope, receive, send)  # type: ignore[arg-type]
        elif found[0].stream:
            events = self._events(*found, head, send, _identity(scope))
            await _while_there(scope, send, events)
        else:
            await self._answer(scope, send, self._operation(*found, headers, scope, receive))

    async def _answer(
        self, scope: dict[str, Any], send: Send, serving: Coroutine[Any, Any, Answer]
    ) -> None:
        """Serve and send while the client is there and its token is good."""
        keyring, identity = self._hub.policy.keyring, _identity(scope)
        if not identity.token_id:  # of what never ends
            await _while_there(scope, send, serving)
            return
        context = copy_context()

        def stop(end: End, sentence: str) -> None:
            # A slow reader would get the rest all the same; the sweep's own peer is nobody.
            context.run(give_up_peer)

        async def sending(message: dict[str, Any]) -> None:
            with keyring.holding(identity, stop):
                await send(message)

        await _while_there(scope, sending, _while_good(keyring, identity, serving))

    async def _body(
        self, headers: Mapping[str, str], receive: Receive, row: Operation | None = None
    ) -> bytes:
        return await read_body(receive, headers, *_body_limits(row, self._hub.settings))

    def route_of(self, method: str, path: str) -> tuple[str | None, bool]:
        """(template of the route, does it answer with a stream?) for log and figures; None for what
        is nowhere in the API."""
        found = self._routes.find(method, path)
        if found is not None:
            return found[0].path, found[0].stream
        if self._hub.profile_at(path) is not None:
            return ("/acp" if path == "/acp" else "/agents/{name}/acp"), method == "GET"
        return (path if path in _PLAIN_PATHS else None), False

    async def _post(
        self, headers: Mapping[str, str], scope: dict[str, Any], receive: Receive
    ) -> Answer:
        """One message of an ACP client."""
        try:
            body = await self._body(headers, receive)
            path = scope["path"]
            return await self._acp.post(
                path,
                headers,
                body,
                loopback=_is_loopback(scope),
                caller=_caller(scope),
                identity=_identity(scope),
            )
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
            return await self._body(headers, receive, row)

        try:
            loopback, identity = _is_loopback(scope), _identity(scope)
            asked = Asked(headers, scope["query_string"], loopback, identity, body)
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

    async def _events(
        self,
        row: Operation,
        parameters: Mapping[str, Any],
        head: Head,
        send: Send,
        identity: Identity,
    ) -> Answer | None:
        """An event stream, or the refusal to send instead. Without an id: the workspace's."""
        manager = self._hub.manager
        session_id = parameters.get("sessionId", "")
        try:
            identity.demand(required(row))
            feed = manager.get(session_id) if session_id else manager.feed
            stream = EventStream(self._hub, feed, head.headers, head.query, identity)
        except GatewayError as exc:
            return error_answer(exc)
        await stream.run(send)
        return None


async def _while_good(
    keyring: Keyring, identity: Identity, serving: Coroutine[Any, Any, Answer]
) -> Answer:
    """What ``serving`` gives, or at once a 401 when the token of the request ends before.

    It is cancelled as it is when the client hangs up: what it had started goes on, where that
    belongs to the gateway.
    """
    if not identity.token_id:
        return await serving
    ends: list[End] = []

    def stop(end: End, sentence: str) -> None:
        ends.append(end)
        there.cancel()

    with trio.CancelScope() as there, keyring.holding(identity, stop):
        answer = await serving
    return error_answer(refusal_of(ends[0])) if ends else answer


async def _while_there(
    scope: dict[str, Any], send: Send, serving: Coroutine[Any, Any, Answer | None]
) -> None:
    """Serve until it ends or the client has gone; what it gives is sent."""
    with trio.CancelScope() as there:
        scope["extensions"][WHEN_GONE](there.cancel)
        answer = await serving
    if not there.cancelled_caught and answer is not None:
        await _send_answer(answer, send)


_WHO = "acp_gateway.identity"
"""Key of the scope: whose request it is."""
_API = frozenset(row.path.split("/")[1] for row in OPERATIONS.values()) | {"acp", "agents"}
"""First parts of the API's paths: no file of a page has such a name."""

_PLAIN_PATHS = frozenset({"/", "/status"})


def _reader(headers: Mapping[str, str], refusal: GatewayError | None) -> str | None:
    """The page that may read the answer, also where the answer is a 401."""
    origin = headers.get("origin")
    if origin is None or (refusal is not None and refusal.kind is not ErrorKind.AUTH_REQUIRED):
        return None
    # A page that asks its own server needs no leave.
    own = origin.partition("://")[2] == headers.get("host")
    return None if own else origin


def _too_many(limited: RateLimitExceeded) -> Answer:
    status, body = limited.to_http()
    return Answer(status, dumps(body), (*JSON, *limited.headers))


async def _send_answer(
    answer: Answer, send: Send, *, websocket: bool = False, head: bool = False
) -> None:
    kind = "websocket.http.response" if websocket else "http.response"
    headers = [(name.encode(), value.encode()) for name, value in answer.headers]
    if answer.status != 204:  # RFC 9110 §8.6
        headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": f"{kind}.start", "status": answer.status, "headers": headers})
    body = b"" if head else answer.body
    await send({"type": f"{kind}.body", "body": body, "more_body": False})
