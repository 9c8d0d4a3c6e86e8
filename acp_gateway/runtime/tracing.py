"""Spans: what the gateway did and when, each in the trace of whoever asked for it.

Kept apart from any library: the ids are there, go to agents and into log lines, whether or not an
exporter is set (`runtime.otlp`). A span costs a few hundred bytes until its end. `current` is what
a task works for; it passes to the tasks that it starts, so whoever owns a long-lived task clears it
(`begin_task`). Nothing here is called for a streamed update.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from structlog.contextvars import bind_contextvars, clear_contextvars

from acp_gateway.core.trace_context import TraceContext, from_meta, parse_traceparent

PENDING: Final = 512
"""Ended spans that wait for an exporter that is still being imported."""
TEXT_LIMIT: Final = 256


class Span:
    """One piece of work. Attributes are strings, numbers and booleans; no text of a prompt."""

    __slots__ = (
        *("attributes", "began", "context", "ended", "error", "name", "parent"),
        "server",
    )

    def __init__(
        self,
        name: str,
        parent: TraceContext | None,
        attributes: dict[str, Any],
        *,
        server: bool = False,
    ) -> None:
        self.name = name
        self.parent = parent
        self.attributes = attributes
        self.server = server
        """It serves a request from outside."""
        self.began = time.time_ns()
        self.ended = 0
        self.error: str | None = None
        """The word of the error that ended it."""
        self.context = _child_of(parent)

    def continue_from(self, parent: TraceContext) -> None:
        """Its request turned out to belong to another trace. Only before it has children."""
        self.parent = parent
        self.context = TraceContext(
            parent.trace_id, self.context.span_id, parent.sampled, parent.state
        )

    def end(self, error: str | None = None, **attributes: Any) -> None:
        """Once; a second end changes nothing."""
        if self.ended:
            return
        self.ended = time.time_ns()
        self.error = error
        self.attributes.update(attributes)
        counters.spans += 1
        if tracing.on and self.context.sampled:
            tracing.export(self)


def _child_of(parent: TraceContext | None) -> TraceContext:
    span_id = os.urandom(8).hex()
    if parent is None:
        return TraceContext(os.urandom(16).hex(), span_id)
    return TraceContext(parent.trace_id, span_id, parent.sampled, parent.state)


class _Counters:
    def __init__(self) -> None:
        self.spans = 0
        """Spans that ended."""
        self.invalid = 0
        """Trace contexts of clients that were ignored."""
        self.dropped = 0
        """Spans that no exporter took."""


class _Tracing:
    """Where ended spans go."""

    def __init__(self) -> None:
        self.on = False
        """Somebody wants them: spans that serve nothing but an exporter are made."""
        self._take: Callable[[Span], None] | None = None
        self._pending: deque[Span] = deque()

    def export(self, span: Span) -> None:
        if self._take is not None:
            self._take(span)
        elif len(self._pending) < PENDING:
            self._pending.append(span)
        else:
            counters.dropped += 1

    def expect(self) -> None:
        """An exporter will come."""
        self.on = True

    def attach(self, take: Callable[[Span], None] | None) -> None:
        """The exporter is there (None: it could not be had, or is gone)."""
        self._take = take
        self.on = take is not None
        pending, self._pending = self._pending, deque()
        for span in pending if take is not None else ():
            self.export(span)


counters: Final = _Counters()
tracing: Final = _Tracing()
current: Final[ContextVar[Span | TraceContext | None]] = ContextVar(
    "acp_gateway_trace", default=None
)
"""The span, or the client's place in its trace, that the running task works for."""


def place() -> TraceContext | None:
    """Where a new span belongs."""
    found = current.get()
    return found.context if isinstance(found, Span) else found


def begin(name: str, parent: TraceContext | None = None, **attributes: Any) -> Span | None:
    """A span for the exporter alone: None while there is none. ``parent``: `place` by default."""
    if not tracing.on:
        return None
    return Span(name, parent or place(), attributes)


def finish(span: Span | None, error: str | None = None, **attributes: Any) -> None:
    if span is not None:
        span.end(error, **attributes)


def begin_task(**bound: Any) -> None:
    """The calling task lives on when what asked for it is over: it keeps none of its ids."""
    current.set(None)
    clear_contextvars()
    bind_contextvars(**bound)


# ---- requests ----------------------------------------------------------------------------------


def from_header(traceparent: str, tracestate: str | None) -> TraceContext | None:
    """A client's ``traceparent`` header; a wrong one is ignored and counted."""
    context = parse_traceparent(traceparent, tracestate)
    if context is None:
        counters.invalid += 1
    return context


def parent_for(meta: Any) -> TraceContext | None:
    """Where the work that a message asks for belongs: what its ``_meta`` names, else where it came.

    A request's own span that had no parent joins the trace of the ``_meta``.
    """
    named, wrong = from_meta(meta)
    counters.invalid += wrong
    here = current.get()
    if named is None:
        return place()
    if isinstance(here, Span) and here.parent is None and not here.ended:
        here.continue_from(named)
        return here.context
    return named


def text(value: Any) -> str:
    """An attribute that came from outside."""
    return str(value)[:TEXT_LIMIT]
