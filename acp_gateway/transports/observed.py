"""Around the HTTP application: the access log, the figures, the trace that a request belongs to.

Sees the head of a request and of its response, and no body.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from acp_gateway.runtime.tracing import Span, current, from_header, tracing
from acp_gateway.transports.access_log import AccessLog
from acp_gateway.transports.client_address import CLIENT
from acp_gateway.transports.traffic import Traffic

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Asgi = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


class Observed:
    """``route_of`` gives the template of a path, never what stands in it, and whether the answer is
    a stream: such a request counts as long as it takes to begin."""

    def __init__(
        self,
        asgi: Asgi,
        access: AccessLog,
        traffic: Traffic,
        route_of: Callable[[str, str], tuple[str | None, bool]],
    ) -> None:
        self._asgi = asgi
        self._access = access
        self._traffic = traffic
        self._route_of = route_of

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._asgi(scope, receive, send)
            return
        began = time.perf_counter()
        status, to_begin = 0, 0.0
        span = _span_of(scope)

        async def sending(message: dict[str, Any]) -> None:
            nonlocal status, to_begin
            if message["type"] == "http.response.start":
                status = message["status"]
                to_begin = time.perf_counter() - began
            await send(message)

        try:
            await self._asgi(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - began
            method, path = scope["method"], scope["path"]
            route, streams = self._route_of(method, path)
            counted = to_begin if streams and status == 200 else seconds
            self._traffic.request(method, route, status, counted)
            told = {"path": path} if route is None else {}
            # 499: the client went away before there was an answer (a word of nginx).
            if span is not None:
                _finish(span, method, route, status)
            client = scope.get("extensions", {}).get(CLIENT)
            if client is not None:
                told["client"] = client.address
            found = current.get()
            if found is not None:
                context = found.context if isinstance(found, Span) else found
                told = {**told, "trace_id": context.trace_id, "span_id": context.span_id}
            self._access.request(method, route or "none", status or 499, seconds, told)


def _span_of(scope: dict[str, Any]) -> Span | None:
    """The span of a request. In the request's own task: what it does is in the same trace."""
    parent = None
    for name, value in scope["headers"]:
        if name == b"traceparent":
            states = [
                item.decode("latin-1") for key, item in scope["headers"] if key == b"tracestate"
            ]
            parent = from_header(value.decode("latin-1"), ",".join(states) or None)
            break
    if not tracing.on:
        if parent is not None:
            current.set(parent)
        return None
    span = Span("acp_gateway.request", parent, {}, server=True)
    current.set(span)
    return span


def _finish(span: Span, method: str, route: str | None, status: int) -> None:
    # Never the path itself: it may hold what is nobody's business.
    attributes = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status or None,
    }
    span.end(str(status) if status >= 500 else None, **attributes)
