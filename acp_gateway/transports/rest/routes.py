"""The REST routes: one for each row of `protocol.extensions` (with `http_app` the home of quart).

Bodies: what is no JSON object counts as ``{}``; only broken JSON and a body that claims to be
something else are errors. ``__proto__``, ``constructor`` and ``prototype`` are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import MethodNotAllowed
from werkzeug.routing import BaseConverter

from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.extensions import OPERATIONS, Access, Operation
from acp_gateway.transports.guards import is_loopback_address
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.operations.access import check_access
from acp_gateway.transports.operations.call import Call, Caller, Handler, Reply
from acp_gateway.transports.operations.table import HANDLERS
from acp_gateway.wire.json_codec import JsonError, dumps, loads

_PARAMETER: Final = re.compile(r"{(\w+)}")
_DROPPED: Final = ("__proto__", "constructor", "prototype")
_NO_JSON: Final = ("", "text/plain", "application/x-www-form-urlencoded")
"""What programs send that never meant to say what the body is."""
RETRY_AFTER: Final = "5"
"""Seconds after which a refusal for want of room is worth another try."""


class _Anything(BaseConverter):
    """A part of a path that may hold slashes: a directory, percent-encoded by the client."""

    regex = ".+?"
    part_isolating = False


def register(app: QuartTrio, hub: Hub) -> None:
    app.url_map.converters["anything"] = _Anything
    app.url_map.merge_slashes = False
    for row in OPERATIONS.values():
        rule = _PARAMETER.sub(_werkzeug_parameter, row.path)
        view = _only_get if row.stream else _view(row, HANDLERS[row.name], hub)
        app.add_url_rule(rule, row.name, view, methods=[row.method])


async def _only_get(**_: str) -> Response:
    """HEAD of a stream; its GET is served before the routes."""
    raise MethodNotAllowed(valid_methods=["GET"])


def _werkzeug_parameter(match: re.Match[str]) -> str:
    name = match[1]
    return f"<anything:{name}>" if name == "workspace" else f"<{name}>"


def _view(row: Operation, handler: Handler, hub: Hub) -> Callable[..., Awaitable[Response]]:
    async def view(**path: str) -> Response:
        check_access(row, hub)
        body = await _body() if row.method not in ("GET", "DELETE") else {}
        query = {} if row.method not in ("GET", "DELETE") else dict(request.args)
        caller = Caller(
            claimed=request.headers.get("x-qwen-client-id"),
            loopback=is_loopback_address((request.scope.get("client") or (None,))[0]),
        )
        call = Call(
            hub=hub,
            caller=caller,
            params={**body, **query, **path},
            idempotency_key=request.headers.get("idempotency-key"),
            reads=row.access is Access.READ,
        )
        return _response(row, await handler(call))

    return view


async def _body() -> dict[str, Any]:
    data = await request.get_data(cache=False)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if data and coding not in ("", "identity"):
        raise GatewayError(
            ErrorKind.UNSUPPORTED_MEDIA_TYPE,
            f"The body is encoded as {coding}",
            remedy="send it as it is, without Content-Encoding",
        )
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not data or media in _NO_JSON:
        return {}
    if media != "application/json" and not media.endswith("+json"):
        raise GatewayError(
            ErrorKind.UNSUPPORTED_MEDIA_TYPE,
            f"The body must be JSON, not {media}",
            remedy="send Content-Type: application/json",
        )
    try:
        value = loads(data)
    except JsonError:
        raise GatewayError(
            ErrorKind.PARSE_ERROR,
            "Invalid JSON in request body",
            remedy="send one JSON object, or no body at all",
        ) from None
    if not isinstance(value, dict):
        return {}
    return {key: item for key, item in value.items() if key not in _DROPPED}


def _response(row: Operation, answer: Any) -> Response:
    reply = answer if isinstance(answer, Reply) else Reply(body=answer)
    status = reply.status or row.success
    if status == 204:
        response = Response(b"", 204)
        del response.headers["content-type"]
    else:
        response = json_response(reply.body, status)
    for name, value in reply.headers.items():
        response.headers[name] = value
    return response


def json_response(body: Any, status: int = 200) -> Response:
    return Response(dumps(body), status, content_type="application/json; charset=utf-8")


def error_response(exc: GatewayError) -> Response:
    status, body = exc.to_http()
    response = json_response(body, status)
    for name, value in error_headers(exc):
        response.headers[name] = value
    return response


def error_headers(exc: GatewayError) -> list[tuple[str, str]]:
    """What the answer says beside its body: when to try again, how to sign in."""
    status, headers = exc.kind.http_status, []
    if status in (429, 503) or (status == 409 and exc.kind.retryable):
        headers.append(("retry-after", RETRY_AFTER))
    if exc.kind is ErrorKind.AUTH_REQUIRED:
        headers.append(("www-authenticate", "Bearer"))
    return headers
