"""Sends spans to an OpenTelemetry collector, OTLP over HTTP (home of opentelemetry).

The library's batch processor queues and sends in a thread of its own; a collector that is down or
slow costs spans, and nothing else. Imported only when an endpoint is set: the libraries are the
extra ``acp-gateway[otel]``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any, Final

from acp_gateway import __version__
from acp_gateway.config import ConfigError, Settings
from acp_gateway.runtime.tracing import Span, counters

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
SERVICE: Final = "acp-gateway"
QUEUE: Final = 2048
INTERVAL_MS: Final = 1000
EXPORT_TIMEOUT: Final = 5.0


def traces_url(settings: Settings, environ: Mapping[str, str] = os.environ) -> str | None:
    """Where spans go; None: nowhere. The setting beats OpenTelemetry's own variables."""
    if settings.otlp_endpoint is not None:
        return _with_path(settings.otlp_endpoint)
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return None
    if environ.get(TRACES_ENDPOINT):
        return environ[TRACES_ENDPOINT]
    base = environ.get(ENDPOINT)
    return _with_path(base) if base else None


def _with_path(base: str) -> str:
    return base if base.endswith("/v1/traces") else f"{base.rstrip('/')}/v1/traces"


def base_url(endpoint: str) -> str:
    """What ``OTEL_EXPORTER_OTLP_ENDPOINT`` is to be for other programs."""
    return endpoint.removesuffix("/v1/traces").rstrip("/")


def is_wanted(settings: Settings) -> bool:
    """Spans are to be sent, and can be."""
    return traces_url(settings) is not None and is_installed()


def is_installed() -> bool:
    try:
        return (
            importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
            and importlib.util.find_spec("opentelemetry.sdk") is not None
        )
    except ImportError:
        return False


def check_extra(settings: Settings) -> str | None:
    """Raises `ConfigError` when an endpoint was set and the libraries are missing.

    OpenTelemetry's variables may be meant for other programs: for them a sentence is given, to be
    told, and the gateway works without traces.
    """
    if traces_url(settings) is None or is_installed():
        return None
    message = "Traces need the OpenTelemetry libraries, which are not installed."
    if settings.otlp_endpoint is None:
        return message
    raise ConfigError(
        message,
        remedy="pip install 'acp-gateway[otel]', or leave --otlp-endpoint out.",
        source="otlp_endpoint",
    )


class Exporter:
    """``export`` takes an ended span, never blocks and never raises."""

    def __init__(self, url: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
        from opentelemetry.trace.span import TraceState

        defaults = {"service.name": os.environ.get("OTEL_SERVICE_NAME") or SERVICE}
        resource = Resource.create({**defaults, "service.version": __version__})
        scope = InstrumentationScope("acp_gateway", __version__)
        self._processor = BatchSpanProcessor(
            OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT),
            max_queue_size=QUEUE,
            schedule_delay_millis=INTERVAL_MS,
        )

        def context(trace_id: str, span_id: str, state: str, *, remote: bool) -> Any:
            return SpanContext(
                int(trace_id, 16),
                int(span_id, 16),
                remote,
                TraceFlags(TraceFlags.SAMPLED),
                TraceState.from_header([state]) if state else TraceState(),
            )

        def readable(span: Span) -> Any:
            own, parent = span.context, span.parent
            failed = span.error is not None
            attributes = {key: item for key, item in span.attributes.items() if item is not None}
            if failed:
                attributes["error.type"] = span.error
            return ReadableSpan(
                name=span.name,
                context=context(own.trace_id, own.span_id, own.state, remote=False),
                parent=None
                if parent is None
                else context(parent.trace_id, parent.span_id, parent.state, remote=span.server),
                resource=resource,
                attributes=attributes,
                kind=SpanKind.SERVER if span.server else SpanKind.INTERNAL,
                status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
                start_time=span.began,
                end_time=span.ended,
                instrumentation_scope=scope,
            )

        self._readable = readable

    def export(self, span: Span) -> None:
        try:
            self._processor.on_end(self._readable(span))
        except Exception:
            # Whatever the library has against it: the work that it tells of is done.
            counters.dropped += 1

    def close(self) -> None:
        """Send what is left. Blocks for `EXPORT_TIMEOUT` and some more at most."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]
