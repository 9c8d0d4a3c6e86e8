"""An OTLP/HTTP receiver for tests: takes protobuf and JSON, and keeps the spans."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from support.loopback import serving


@dataclass
class Received:
    """One span. Ids are lower-case hex; ``parent_id`` is empty for a root."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    error: bool
    encoding: str


@dataclass
class Receiver:
    url: str = ""
    spans: list[Received] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, enough: Callable[[list[Received]], Any], timeout: float = 20.0) -> Any:
        """What ``enough`` gives, once that is true."""
        deadline = time.monotonic() + timeout
        with self.changed:
            while not (found := enough(self.spans)):
                if not self.changed.wait(deadline - time.monotonic()):
                    names = [(each.name, each.trace_id[:8]) for each in self.spans]
                    raise AssertionError(f"the spans did not come: {names}")
            return found


def _from_json(body: bytes) -> list[Received]:
    found: list[Received] = []
    for resource in json.loads(body)["resourceSpans"]:
        service = _json_attributes(resource["resource"]["attributes"]).get("service.name", "")
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                received = Received(
                    span["name"],
                    service,
                    span["traceId"],
                    span["spanId"],
                    span.get("parentSpanId", ""),
                    _json_attributes(span.get("attributes", [])),
                    span.get("status", {}).get("code") == 2,
                    "json",
                )
                found.append(received)
    return found


def _json_attributes(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {item["key"]: next(iter(item["value"].values())) for item in items}


def _from_protobuf(body: bytes) -> list[Received]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    found: list[Received] = []
    for resource in request.resource_spans:
        service = _attributes(resource.resource.attributes).get("service.name", "")
        for scope in resource.scope_spans:
            for span in scope.spans:
                received = Received(
                    span.name,
                    service,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    _attributes(span.attributes),
                    span.status.code == 2,
                    "protobuf",
                )
                found.append(received)
    return found


def _attributes(items: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in items}


@contextmanager
def otlp_receiver(status: int = 200, stall: float = 0.0) -> Iterator[Receiver]:
    """Serves on a free port of loopback; ``status`` and ``stall`` are for collectors that fail."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if stall:
                time.sleep(stall)
            if status == 200 and self.path == "/v1/traces":
                is_json = self.headers["content-type"] == "application/json"
                spans = _from_json(body) if is_json else _from_protobuf(body)
                with receiver.changed:
                    receiver.spans += spans
                    receiver.changed.notify_all()
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as port:
        receiver.url = f"http://127.0.0.1:{port}"
        yield receiver
