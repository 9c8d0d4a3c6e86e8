"""What a turn leaves behind in the trace and in the log.

One prompt is one trace: it continues what its client named, its span is the parent of whatever the
agent does, and the line that tells of its end carries the trace's id.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import structlog

from acp_gateway.core.trace_context import TRACEPARENT, into_meta
from acp_gateway.core.turn_queue import Turn
from acp_gateway.protocol.errors import GatewayError
from acp_gateway.runtime.tracing import Span, parent_for
from acp_gateway.wire.json_codec import JsonError, loads

if TYPE_CHECKING:
    from acp_gateway.runtime.session_turns import SessionTurns

log = structlog.get_logger("acp_gateway.turn")


def prompt_span(session: SessionTurns, turn: Turn) -> Span:
    """The span of a prompt, from its admission to its end."""
    attributes = {
        "session.id": session.id,
        "acp_gateway.prompt_id": turn.prompt_id,
        "acp_gateway.client_id": turn.client,
        "acp_gateway.agent": session.profile.name,
    }
    return Span("acp_gateway.prompt", parent_for(turn.params.get("_meta")), attributes)


def turn_ids(turn: Turn) -> dict[str, str]:
    """For the log lines of whoever works on this turn."""
    context = turn.span.context
    return {
        "prompt_id": turn.prompt_id,
        "trace_id": context.trace_id,
        "span_id": context.span_id,
    }


def with_trace(turn: Turn, *, qwen: bool) -> dict[str, Any]:
    """The params of ``session/prompt`` for the agent: its work is a child of the turn's span."""
    params = turn.params
    return {**params, "_meta": into_meta(params.get("_meta"), turn.span.context, qwen=qwen)}


def told_meta(turn: Turn) -> dict[str, str]:
    """The member of ``_meta`` by which clients find the trace of a turn."""
    return {TRACEPARENT: turn.span.context.traceparent}


def turn_ended(session: SessionTurns, turn: Turn, outcome: Any, flushed: str | None) -> None:
    """The turn is settled: its span ends, and the log has a line about it."""
    now = time.time()
    span: Span = turn.span
    began = turn.began_at or now
    error: str | None = None
    stop: str | None = None
    if isinstance(outcome, GatewayError):
        error = outcome.kind.word
    elif flushed is not None:
        error = flushed
    else:
        stop = _stop_reason(outcome)
    queued = max(0, round((began - turn.asked_at) * 1000))
    span.end(
        error,
        **{"acp_gateway.queue_wait_ms": queued, "acp_gateway.stop_reason": stop},
    )
    log.info(
        "turn_ended",
        session_id=session.id,
        client_id=turn.client,
        agent=session.profile.name,
        stop_reason=stop,
        error=error,
        duration_ms=max(0, round((now - began) * 1000)),
        queued_ms=queued,
        **turn_ids(turn),
    )


def _stop_reason(outcome: Any) -> str:
    try:
        result = outcome if isinstance(outcome, dict) else loads(bytes(outcome))
    except (JsonError, TypeError):
        return "end_turn"
    stop = result.get("stopReason") if isinstance(result, dict) else None
    return stop[:64] if isinstance(stop, str) and stop else "end_turn"
