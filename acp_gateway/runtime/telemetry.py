"""Logging: structlog to stderr, one line for each happening."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from acp_gateway.runtime.redact import redact


def configure_logging(json_lines: bool) -> None:
    """Set up structlog for the process: JSON lines, or text for a terminal.

    A person at a terminal sees warnings only, so that what `serve` prints stays readable.
    """
    renderer: Any
    if json_lines:
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _clean,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.INFO if json_lines else logging.WARNING
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _clean(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Secrets out, control and direction characters visible: a log line cannot forge another."""
    for key, value in event.items():
        if isinstance(value, str):
            text = redact(value)
            if not text.isprintable() and key != "exception":
                text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
            event[key] = text
    return event
