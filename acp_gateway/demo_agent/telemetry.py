"""One span for each prompt, sent as OTLP/HTTP JSON where ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set.

What a real agent does with a library, in the little that the standard library needs for it. The
span is a child of the ``traceparent`` in the prompt's ``_meta``; without a valid one there is none.
Sending is done by a thread, for a bounded number of spans, each with a deadline.
"""

from __future__ import annotations

import os
import threading
import time

from acp_gateway.demo_agent.link import encode, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_WAITING = 64
_DEADLINE = 2.0
_HEX = set("0123456789abcdef")


def context_of(params: dict[str, Any]) -> tuple[str, str] | None:
    """Trace id and parent span id of a prompt's params (W3C Trace Context, version 00)."""
    meta = params.get("_meta")
    value = meta.get("traceparent") if isinstance(meta, dict) else None
    parts = value.split("-") if isinstance(value, str) else []
    if len(parts) != 4 or [len(part) for part in parts] != [2, 32, 16, 2]:
        return None
    if parts[0] != "00" or not set("".join(parts)) <= _HEX:
        return None
    trace_id, span_id = parts[1], parts[2]
    return (trace_id, span_id) if trace_id.strip("0") and span_id.strip("0") else None


class Telemetry:
    """Sends spans to a collector; does nothing when there is none."""

    def __init__(self) -> None:
        endpoint = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
        self._url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint.startswith("http") else ""
        self._changed = threading.Condition()
        self._spans: list[dict[str, Any]] = []
        self._sending = 0
        self._thread: threading.Thread | None = None

    def span(
        self, context: tuple[str, str] | None, name: str, began: int, session_id: str, end: str
    ) -> None:
        """Queues a span that ends now; ``began`` is `time.time_ns`. Never blocks."""
        if not self._url or context is None:
            return
        span = {
            "traceId": context[0],
            "spanId": os.urandom(8).hex(),
            "parentSpanId": context[1],
            "name": name,
            "kind": 1,
            "startTimeUnixNano": str(began),
            "endTimeUnixNano": str(time.time_ns()),
            "attributes": [_attribute("session.id", session_id), _attribute("demo.end", end)],
            "status": {},
        }
        with self._changed:
            if len(self._spans) < _WAITING:
                self._spans.append(span)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def drain(self, seconds: float) -> None:
        """Waits until all are sent, for a bounded time."""
        with self._changed:
            self._changed.wait_for(lambda: not self._spans and not self._sending, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._spans)
                spans, self._spans = self._spans, []
                self._sending = len(spans)
            try:
                self._post(spans)
            except Exception as error:
                log(f"a span was not sent: {type(error).__name__}")
            with self._changed:
                self._sending = 0
                self._changed.notify_all()

    def _post(self, spans: list[dict[str, Any]]) -> None:
        import urllib.request

        resource = {"attributes": [_attribute("service.name", "acp-gateway-demo")]}
        scope = {"scope": {"name": "acp_gateway.demo_agent"}, "spans": spans}
        body = encode({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]})
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url, body, headers, method="POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=_DEADLINE) as answer:
            answer.read(4096)


def _attribute(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}
