"""The REST routes: one for each row of `protocol.extensions`.

They need little of a request, `Asked`, so that a call costs no request object of the web framework;
the map of paths is the framework's own, and its application serves what the map refuses.

Bodies: what is no JSON object counts as ``{}``; only broken JSON and a body that claims to be
something else are errors. ``__proto__``, ``constructor`` and ``prototype`` are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl

import attrs
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter

from acp_gateway.core.identity import Identity
from acp_gateway.protocol.errors import ErrorKind, FileError, GatewayError
from acp_gateway.protocol.extensions import OPERATIONS, Access, Operation
from acp_gateway.transports.acp_http import Answer
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.operations.access import check_access
from acp_gateway.transports.operations.call import Call, Caller, Reply
from acp_gateway.transports.operations.files import HEADERS as FILE_HEADERS
from acp_gateway.transports.operations.pairing import check_limit
from acp_gateway.transports.operations.table import HANDLERS
from acp_gateway.wire.json_codec import JsonError, dumps, loads

_PARAMETER: Final = re.compile(r"{(\w+)}")
_DROPPED: Final = ("__proto__", "constructor", "prototype")
_NO_JSON: Final = ("", "text/plain", "application/x-www-form-urlencoded")
"""What programs send that never meant to say what the body is."""
JSON: Final = (("content-type", "application/json; charset=utf-8"),)
KNOWN_PATHS: Final = 512
KNOWN_LENGTH: Final = 256
RETRY_AFTER: Final = "5"
"""Seconds after which a refusal for want of room is worth another try."""

Found: TypeAlias = tuple[Operation, Mapping[str, Any]]


@attrs.define
class Asked:
    """What a route has to know of a request. Header names are in lower case."""

    headers: Mapping[str, str]
    query: bytes
    loopback: bool
    identity: Identity
    body: Callable[[], Awaitable[bytes]]


class _Anything(BaseConverter):
    """A part of a path that may hold slashes: a directory, percent-encoded by the client."""

    regex = ".+?"
    part_isolating = False


class Routes:
    """The rows in the map of an application, and the answers to them."""

    def __init__(
        self, app: QuartTrio, hub: Hub, view: Callable[[Operation], Callable[..., Any]]
    ) -> None:
        """``view`` makes what the application itself calls for a row."""
        self._hub = hub
        app.url_map.converters["anything"] = _Anything
        app.url_map.merge_slashes = False
        for row in OPERATIONS.values():
            rule = _PARAMETER.sub(_werkzeug_parameter, row.path)
            app.add_url_rule(rule, row.name, view(row), methods=[row.method])
        self._paths = app.url_map.bind("")
        self._find_known = lru_cache(KNOWN_PATHS)(self._find)

    def find(self, method: str, path: str) -> Found | None:
        """The row that a path and its very method name, and the path's parameters."""
        # Programs ask for the same few paths again and again.
        return (
            self._find_known(method, path) if len(path) < KNOWN_LENGTH else self._find(method, path)
        )

    def _find(self, method: str, path: str) -> Found | None:
        if not is_usual(path):
            return None
        try:
            name, parameters = self._paths.match(path, method)
        except HTTPException:
            return None
        row = OPERATIONS.get(name)
        return None if row is None or row.method != method else (row, parameters)

    async def answer(self, row: Operation, path: Mapping[str, Any], asked: Asked) -> Answer:
        """Raises `GatewayError`, and what ``asked.body`` raises."""
        identity = asked.identity
        params = dict(path)
        if row.method not in ("GET", "DELETE"):
            if row.name == "pair":
                check_limit(self._hub)  # a stranger who has to wait need not send anything
            params = {**_object(await asked.body(), asked.headers), **params}
            # A body may take its time, and its sender may have lost its token meanwhile.
            self._hub.policy.keyring.check(identity)
        elif asked.query:
            params = {**_query(asked.query), **params}
        check_access(row, self._hub, identity, local=asked.loopback)
        headers = asked.headers
        call = Call(
            hub=self._hub,
            caller=Caller(
                claimed=headers.get("x-qwen-client-id"),
                loopback=asked.loopback,
                identity=identity,
            ),
            params=params,
            idempotency_key=headers.get("idempotency-key"),
            accept=headers.get("accept", ""),
            reads=row.access is Access.READ,
        )
        told = await HANDLERS[row.name](call)
        reply = told if isinstance(told, Reply) else Reply(body=told)
        status = reply.status or row.success
        if status == 204:
            return Answer(204, b"", tuple(reply.headers.items()))
        if reply.raw is not None:
            return Answer(status, reply.raw, tuple(reply.headers.items()))
        return Answer(status, dumps(reply.body), (*JSON, *reply.headers.items()))


def is_usual(path: str) -> bool:
    """Does it begin with one slash? The map of paths does not look at how many there are, while
    guards and rate limits take a path as it is: what they do not know must not be served."""
    return path[:1] == "/" and path[1:2] != "/"


def _werkzeug_parameter(match: re.Match[str]) -> str:
    name = match[1]
    return f"<anything:{name}>" if name == "workspace" else f"<{name}>"


def _query(query: bytes) -> dict[str, str]:
    """The first value of each name."""
    text = query.decode(errors="replace")
    pairs = parse_qsl(text, keep_blank_values=True, errors="werkzeug.url_quote")
    return dict(reversed(pairs))


def _object(data: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    coding = headers.get("content-encoding", "identity").strip().lower()
    if data and coding not in ("", "identity"):
        raise GatewayError(
            ErrorKind.UNSUPPORTED_MEDIA_TYPE,
            f"The body is encoded as {coding}",
            remedy="send it as it is, without Content-Encoding",
        )
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
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


def error_answer(exc: GatewayError) -> Answer:
    """A REST error: JSON, when to try again, how to sign in."""
    status, body = exc.to_http()
    headers: tuple[tuple[str, str], ...] = JSON
    status_of_kind = exc.kind.http_status
    if status_of_kind in (429, 503) or (status_of_kind == 409 and exc.kind.retryable):
        headers += (("retry-after", RETRY_AFTER),)
    if exc.kind is ErrorKind.AUTH_REQUIRED:
        headers += (("www-authenticate", "Bearer"),)
    if isinstance(exc, FileError):
        headers += tuple(FILE_HEADERS.items())
    return Answer(status, dumps(body), headers)
