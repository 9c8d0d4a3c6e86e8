"""W3C Trace Context: the ``traceparent`` and ``tracestate`` of a request, read and written. Pure.

Level 1 of the recommendation, §3.2 and §3.3; a newer version is read as far as version 00 goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import attrs

_TRACEPARENT: Final = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]{0,256})?"
)
_MEMBER: Final = re.compile(
    r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
STATE_LIMIT: Final = 512
"""Characters of a ``tracestate`` that must be passed on; a longer one is left out."""
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
QWEN_TRACEPARENT: Final = "qwen.telemetry.traceparent"
QWEN_TRACESTATE: Final = "qwen.telemetry.tracestate"
META_KEYS: Final = frozenset({TRACEPARENT, TRACESTATE, QWEN_TRACEPARENT, QWEN_TRACESTATE})


@attrs.frozen
class TraceContext:
    """A place in a trace: what comes next is a child of ``span_id``. Ids are lower-case hex."""

    trace_id: str
    span_id: str
    sampled: bool = True
    state: str = ""
    """The ``tracestate`` of whoever began the trace, passed on as it is."""

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse_traceparent(text: Any, state: Any = None) -> TraceContext | None:
    """The context that a ``traceparent`` names; None for one that is not valid."""
    match = _TRACEPARENT.fullmatch(text.strip(" \t")) if _usable(text) else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None):
        return None
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1), _state(state))


def _usable(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= 1024


def _state(value: Any) -> str:
    """A valid ``tracestate``, else nothing: a wrong one says nothing about its traceparent."""
    if not isinstance(value, str) or len(value) > STATE_LIMIT:
        return ""
    members = [each.strip(" \t") for each in value.split(",")]
    members = [each for each in members if each]
    keys = [each.partition("=")[0] for each in members]
    if len(members) > 32 or len(set(keys)) != len(keys):
        return ""
    return ",".join(members) if all(map(_MEMBER.fullmatch, members)) else ""


def from_meta(meta: Any) -> tuple[TraceContext | None, bool]:
    """What a client's ``_meta`` names (the key of ACP, else that of Qwen), and whether it named
    something that is not valid."""
    if not isinstance(meta, dict):
        return None, False
    named = False
    for parent, state in ((TRACEPARENT, TRACESTATE), (QWEN_TRACEPARENT, QWEN_TRACESTATE)):
        if parent in meta:
            named = True
            context = parse_traceparent(meta[parent], meta.get(state))
            if context is not None:
                return context, False
    return None, named


def into_meta(meta: Any, context: TraceContext, *, qwen: bool) -> dict[str, Any]:
    """``_meta`` for an agent: the client's own trace keys are replaced by ``context``.

    ``qwen``: with the keys that Qwen reads as well.
    """
    kept = {
        key: value
        for key, value in (meta.items() if isinstance(meta, Mapping) else ())
        if key not in META_KEYS
    }
    kept[TRACEPARENT] = context.traceparent
    if context.state:
        kept[TRACESTATE] = context.state
    if qwen:
        kept[QWEN_TRACEPARENT] = context.traceparent
        if context.state:
            kept[QWEN_TRACESTATE] = context.state
    return kept
