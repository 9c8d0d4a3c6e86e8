"""W3C Trace Context, read and written; spans find their place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.config import ConfigError, Settings
from acp_gateway.core.trace_context import (
    STATE_LIMIT,
    TraceContext,
    from_meta,
    into_meta,
    parse_traceparent,
)
from acp_gateway.demo_agent.telemetry import context_of
from acp_gateway.runtime import otlp, tracing
from acp_gateway.runtime.tracing import Span, counters, current, parent_for
from acp_gateway.wire.json_codec import dumps, with_meta

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"


def test_a_valid_one() -> None:
    assert parse_traceparent(GIVEN) == TraceContext(TRACE, SPAN, True)
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-00") == TraceContext(TRACE, SPAN, False)
    assert parse_traceparent(f" {GIVEN}\t") == TraceContext(TRACE, SPAN, True)
    # A later version may have more, and is read as far as this one goes.
    assert parse_traceparent(f"cc-{TRACE}-{SPAN}-03-more") == TraceContext(TRACE, SPAN, True)


@pytest.mark.parametrize(
    "wrong",
    [
        *("", "00", GIVEN.upper(), GIVEN + "-more", GIVEN + "\n00", GIVEN[:-1], GIVEN + "0"),
        *(f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01"),
        *(f"00-{TRACE[:-1]}g-{SPAN}-01", f"00_{TRACE}_{SPAN}_01", f"cc-{TRACE}-{SPAN}-01x"),
        *(None, 7, [GIVEN], {"a": 1}, b"00", "0" * 5000, "\ud800"),
    ],
)
def test_a_wrong_one(wrong: Any) -> None:
    assert parse_traceparent(wrong) is None
    assert context_of({"_meta": {"traceparent": wrong}}) is None


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    found = parse_traceparent(text, text)
    assert found is None or parse_traceparent(found.traceparent) is not None


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("a=1,b=2", "a=1,b=2"),
        (" a=1 ,, b=2", "a=1,b=2"),
        ("t@v=x/y", "t@v=x/y"),
        ("a=1,a=2", ""),
        ("a", ""),
        ("A=1", ""),
        ("a=1\r\nx: y", ""),
        ("a=" + "x" * STATE_LIMIT, ""),
        (",".join(f"k{n}=1" for n in range(33)), ""),
        (7, ""),
        (None, ""),
    ],
)
def test_tracestate(state: Any, kept: str) -> None:
    found = parse_traceparent(GIVEN, state)
    assert found is not None and found.state == kept


def test_meta_of_a_client() -> None:
    context = TraceContext(TRACE, SPAN)
    assert from_meta(None) == (None, False)
    assert from_meta({"other": 1}) == (None, False)
    assert from_meta({"traceparent": GIVEN}) == (context, False)
    assert from_meta({"qwen.telemetry.traceparent": GIVEN}) == (context, False)
    assert from_meta({"traceparent": "no", "qwen.telemetry.traceparent": GIVEN})[0] == context
    assert from_meta({"traceparent": "no"}) == (None, True)


def test_meta_for_an_agent() -> None:
    context = TraceContext(TRACE, SPAN, state="a=1")
    given = {"mine": 1, "traceparent": "theirs", "qwen.telemetry.traceparent": "theirs"}
    plain = into_meta(given, context, qwen=False)
    assert plain == {"mine": 1, "traceparent": GIVEN, "tracestate": "a=1"}
    qwen = into_meta(None, context, qwen=True)
    assert qwen["qwen.telemetry.traceparent"] == GIVEN
    assert qwen["qwen.telemetry.tracestate"] == "a=1"
    assert given["traceparent"] == "theirs"


def test_meta_of_a_result() -> None:
    import msgspec

    raw = msgspec.Raw(b'{"stopReason":"end_turn","big":12345678901234567890.50,"_meta":{"a":1}}')
    told = dumps(with_meta(raw, {"b": 2}))
    assert told == (
        b'{"stopReason":"end_turn","big":12345678901234567890.50,"_meta":{"a":1,"b":2}}'
    )
    assert with_meta({"x": 1}, {"b": 2}) == {"x": 1, "_meta": {"b": 2}}
    for other in (None, 7, msgspec.Raw(b"[1]"), msgspec.Raw(b"nonsense")):
        assert with_meta(other, {"b": 2}) is other


# ---- spans -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_trace() -> Iterator[None]:
    token = current.set(None)
    yield
    current.reset(token)
    tracing.tracing.attach(None)


def test_a_request_joins_the_trace_that_its_message_names() -> None:
    request = Span("acp_gateway.request", None, {}, server=True)
    current.set(request)
    parent = parent_for({"traceparent": GIVEN})
    assert parent == request.context and request.parent == TraceContext(TRACE, SPAN)
    assert request.context.trace_id == TRACE and request.context.span_id != SPAN
    # One with a parent of its own stays where it is; the message is of another trace.
    current.set(Span("acp_gateway.request", TraceContext("a" * 32, "b" * 16), {}))
    assert parent_for({"traceparent": GIVEN}) == TraceContext(TRACE, SPAN)


def test_wrong_contexts_are_counted() -> None:
    before = counters.invalid
    assert parent_for({"traceparent": "no"}) is None
    assert tracing.from_header("no", None) is None
    assert counters.invalid == before + 2


def test_spans_wait_for_their_exporter_in_bounded_space() -> None:
    got: list[Span] = []
    tracing.tracing.expect()
    dropped = counters.dropped
    for _ in range(tracing.PENDING + 5):
        Span("x", None, {}).end()
    assert counters.dropped == dropped + 5
    tracing.tracing.attach(got.append)
    assert len(got) == tracing.PENDING
    span = Span("y", None, {})
    span.end("failed")
    span.end()
    assert got[-1] is span and span.error == "failed" and len(got) == tracing.PENDING + 1
    Span("z", TraceContext(TRACE, SPAN, sampled=False), {}).end()
    assert len(got) == tracing.PENDING + 1
    tracing.tracing.attach(None)
    assert tracing.begin("w") is None


# ---- where spans go ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "environ", "url"),
    [
        (None, {}, None),
        ("http://a:4318", {}, "http://a:4318/v1/traces"),
        ("http://a:4318/x/", {}, "http://a:4318/x/v1/traces"),
        ("http://a/v1/traces", {}, "http://a/v1/traces"),
        ("http://a", {otlp.ENDPOINT: "http://b"}, "http://a/v1/traces"),
        (None, {otlp.ENDPOINT: "http://b/"}, "http://b/v1/traces"),
        (None, {otlp.ENDPOINT: "http://b", otlp.TRACES_ENDPOINT: "http://c/t"}, "http://c/t"),
        (None, {otlp.ENDPOINT: "http://b", "OTEL_SDK_DISABLED": "true"}, None),
        (None, {otlp.ENDPOINT: "http://b", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_the_endpoint(endpoint: str | None, environ: dict[str, str], url: str | None) -> None:
    assert otlp.traces_url(Settings(otlp_endpoint=endpoint), environ) == url


def test_without_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "is_installed", lambda: False)
    monkeypatch.delenv(otlp.ENDPOINT, raising=False)
    assert otlp.check_extra(Settings()) is None
    with pytest.raises(ConfigError) as caught:
        otlp.check_extra(Settings(otlp_endpoint="http://a"))
    assert "acp-gateway[otel]" in str(caught.value.remedy)
    # A variable may be meant for other programs: a warning, and no traces.
    monkeypatch.setenv(otlp.ENDPOINT, "http://a")
    assert "not installed" in str(otlp.check_extra(Settings()))
    assert not otlp.is_wanted(Settings())
