"""JSON-RPC requests to handlers, through jsonrpcserver's inner dispatch (its only home).

Its `async_dispatch` cannot run on trio (it awaits asyncio); the coroutine inside it can. Its text
of foreign exceptions never reaches the wire: handlers are wrapped before it sees them.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import structlog
from jsonrpcserver.async_dispatcher import dispatch_request
from jsonrpcserver.dispatcher import create_request, to_response
from jsonrpcserver.exceptions import JsonRpcError
from jsonrpcserver.response import to_serializable_one
from jsonrpcserver.result import Result, Success
from jsonrpcserver.sentinels import NODATA

from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.wire.json_codec import JsonError, dumps
from acp_gateway.wire.jsonrpc import Request, error_bytes

log = structlog.get_logger("acp_gateway.rpc")

Handler: TypeAlias = Callable[[Any, dict[str, Any]], Awaitable[Any]]
"""``async (context, params) -> result``; the result may hold `msgspec.Raw`."""
Wrapped: TypeAlias = Callable[..., Awaitable[Result]]


class MethodTable(dict[str, Wrapped]):
    """Methods by name; ``fallback`` serves the names that start with ``_``."""

    def __init__(self, handlers: Mapping[str, Handler], fallback: Handler | None = None) -> None:
        super().__init__((name, _wrap(handler)) for name, handler in handlers.items())
        self._fallback = None if fallback is None else _wrap(fallback)

    def __missing__(self, name: str) -> Wrapped:
        if self._fallback is not None and name.startswith("_"):
            return self._fallback
        raise KeyError(name)


def _wrap(handler: Handler) -> Wrapped:
    async def method(context: Any, /, **params: Any) -> Result:
        try:
            return Success(await handler(context, params))
        except GatewayError as exc:
            error = exc.to_jsonrpc()
        except Exception:
            log.exception("handler_failed", handler=getattr(handler, "__name__", "?"))
            error = GatewayError(ErrorKind.INTERNAL, "Internal error").to_jsonrpc()
        data = error.get("data", NODATA)
        raise JsonRpcError(_code(error.get("code")), str(error.get("message", "")), data)

    # jsonrpcserver asks for it at each call; to make it anew takes longer than most handlers.
    method.__signature__ = _SIGNATURE  # type: ignore[attr-defined]
    return method


def _signature() -> inspect.Signature:
    async def method(context: Any, /, **params: Any) -> None: ...

    return inspect.signature(method)


_SIGNATURE = _signature()


def _code(value: Any) -> int:
    return value if isinstance(value, int) else ErrorKind.INTERNAL.code


async def dispatch(methods: MethodTable, context: Any, request: Request) -> bytes:
    """The response to a request, as JSON. Raises nothing but `trio.Cancelled`."""
    params = {} if request.params is None else request.params
    if not isinstance(params, dict):
        error = GatewayError(ErrorKind.INVALID_PARAMS, "params must be an object")
        return error_bytes(request.id, error.to_jsonrpc())
    if request.method not in methods and not request.method.startswith("_"):
        error = GatewayError(
            ErrorKind.METHOD_NOT_FOUND,
            f'Method not found: "{request.method}"',
            method=request.method,
        )
        return error_bytes(request.id, error.to_jsonrpc())
    envelope = {"jsonrpc": "2.0", "method": request.method, "params": params, "id": request.id}
    answered = await dispatch_request(methods, context, create_request(envelope))
    response = to_serializable_one(to_response(*answered))
    try:
        return dumps(response)
    except JsonError:
        log.exception("answer_not_json", method=request.method)
        error = GatewayError(ErrorKind.INTERNAL, "Internal error")
        return error_bytes(request.id, error.to_jsonrpc())
