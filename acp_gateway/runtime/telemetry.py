"""Logging: structlog to stderr and to a rotating file, one line for each happening.

The file has a JSON object on each line; stderr has the same or, on a terminal, text. Both are
written by threads of their own (`line_writer`). Ids of the session, the client, the connection and
the trace are structlog's context variables, bound by whoever owns the task.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from acp_gateway.config import ConfigError, Settings, state_directory
from acp_gateway.core.line_budget import LineBudget
from acp_gateway.runtime.line_writer import LineWriter
from acp_gateway.runtime.redact import clean, cut, redact, redact_value, visible
from acp_gateway.runtime.rotating_file import RotatingFile

LOG_BYTES: Final = 10 * 1024 * 1024
LOG_ARCHIVES: Final = 4
LINE_BYTES: Final = 256 * 1024
TEXT_LIMIT: Final = 1024
ROUTE_LIMIT: Final = 2048
ID_LIMIT: Final = 256
TRACEBACK_LIMIT: Final = 32 * 1024
CLOSE_TIMEOUT: Final = 2.0
"""Seconds that the last lines get."""
DAEMON_LOGS: Final = 32
"""Daemons of one user that can have a log file of the default name."""
NO_FILE: Final = "none"
FILE_ONLY: Final = "file_only"
"""Member of a line that stderr does not get: it has been told there in other words."""

_IDS: Final = frozenset(
    {
        *("session_id", "client_id", "connection", "prompt_id", "request_id", "trace_id"),
        *("span_id", "feed", "stream"),
    }
)
_SAFE: Final = frozenset({"timestamp", "level", "event", "trace_id", "span_id"})
"""Made by the gateway itself."""

Event = MutableMapping[str, Any]


class Logging:
    """The daemon's log while it is set up. `problems` is for the status."""

    def __init__(self, *, json_lines: bool, stderr_level: int, file_level: int) -> None:
        self.json_lines = json_lines
        self.path: Path | None = None
        """The file, if there is one."""
        self._stderr_level = stderr_level
        self._file_level = file_level
        self._file: RotatingFile | None = None
        self._to_file: LineWriter[str] | None = None
        self._to_stderr: LineWriter[str] | None = None
        self._init_problem: str | None = None
        self._console: Any = None
        if not json_lines:
            self._console = structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), pad_event_to=0
            )

    # ---- where lines go -------------------------------------------------------------------------

    def open_file(self, wanted: Path | None) -> None:
        """Raises `ConfigError` for a file that was asked for; the usual one is done without."""
        if wanted is not None and wanted.name == NO_FILE:
            return
        try:
            self._file = _named(wanted) if wanted is not None else _usual()
        except OSError as exc:
            reason = exc.strerror or str(exc)
            if wanted is not None:
                raise ConfigError(
                    f"The log file {wanted} cannot be written: {reason}.",
                    remedy="Name another file, or --log-file none.",
                ) from exc
            self._init_problem = reason
            return
        self.path = self._file.path
        self._to_file = LineWriter(self._file, str.encode, _lost_line, name="log-file")

    def begin(self) -> None:
        """From now on log lines are written."""
        if self._to_stderr is None:
            self._to_stderr = LineWriter(_Stderr(), str.encode, _lost_line, name="log-stderr")
        level = self._stderr_level
        if self._to_file is not None:
            level = min(level, self._file_level)
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                clean_event,
                self._deliver,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=structlog.ReturnLoggerFactory(),
            cache_logger_on_first_use=True,
        )
        _hear_libraries()
        if self._init_problem is not None:
            structlog.get_logger("acp_gateway").warning(
                "log_file_not_opened", error=self._init_problem
            )

    def _deliver(self, _logger: Any, _name: str, event: Event) -> str:
        level = _LEVELS.get(event.get("level", ""), logging.INFO)
        file_only = event.pop(FILE_ONLY, False)
        text: str | None = None
        if self._to_file is not None and level >= self._file_level:
            text = _json_line(event)
            self._to_file.put(text, len(text) + 1)
        if self._to_stderr is not None and level >= self._stderr_level and not file_only:
            if self.json_lines:
                text = text or _json_line(event)
            else:
                text = str(self._console(None, "", dict(event)))
            self._to_stderr.put(text, len(text) + 1)
        return ""

    # ---- for the status -------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What is wrong with the log, one sentence each; the first word is the code."""
        found = []
        if self._init_problem is not None:
            found.append(f"init_failed: {self._init_problem}")
        if self._file is not None and self._file.problem is not None:
            found.append(f"{self._file.problem} ({self._file.lost} lines lost)")
        lost = sum(each.lost for each in (self._to_file, self._to_stderr) if each is not None)
        if lost:
            found.append(f"queue_overflow: {lost} lines found no room")
        return found

    def health(self) -> dict[str, Any]:
        """For the daemon's status; see its ``daemon`` in the OpenAPI document."""
        problems = self.problems()
        told: dict[str, Any] = {
            "logMode": "stderr-only" if self.path is None else "stable",
            "logHealth": "degraded" if problems else "ok",
            "logIssues": problems,
        }
        return told if self.path is None else {**told, "logPath": str(self.path)}

    def close(self) -> None:
        """Write what waits; bounded."""
        for writer in (self._to_file, self._to_stderr):
            if writer is not None:
                writer.close(CLOSE_TIMEOUT)


def start_logging(settings: Settings) -> Logging:
    """Set up the log of this process. Raises `ConfigError`."""
    json_lines = settings.log_format == "json" or (
        settings.log_format == "auto" and not sys.stderr.isatty()
    )
    # A person at a terminal sees warnings only, so that what `serve` prints stays readable.
    chosen = _LEVELS.get(settings.log_level)
    started = Logging(
        json_lines=json_lines,
        stderr_level=chosen or (logging.INFO if json_lines else logging.WARNING),
        file_level=chosen or logging.INFO,
    )
    started.open_file(settings.log_file)
    started.begin()
    return started


_LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


def _named(path: Path) -> RotatingFile:
    return RotatingFile(path, max_bytes=LOG_BYTES, archives=LOG_ARCHIVES)


def _usual() -> RotatingFile:
    """``daemon.log``; where another daemon has it, ``daemon-2.log`` and so on."""
    directory = state_directory() / "log"
    for number in range(1, DAEMON_LOGS + 1):
        name = "daemon.log" if number == 1 else f"daemon-{number}.log"
        try:
            return _named(directory / name)
        except BlockingIOError:
            continue
    raise OSError(f"{DAEMON_LOGS} daemons have a log in {directory}")


class _Stderr:
    def write(self, lines: Sequence[bytes]) -> None:
        data = b"".join(lines)
        while data:
            try:
                data = data[os.write(2, data) :]
            except BlockingIOError:
                select.select((), (2,), (), 1.0)
            except OSError:
                return  # nobody listens there

    def close(self) -> None:
        pass


class _Library(logging.Handler):
    """What libraries say by way of the standard library, so that it is redacted as well."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._budget = LineBudget(20, 0.1, time.monotonic())

    def emit(self, record: logging.LogRecord) -> None:
        if not self._budget.take(record.name, time.monotonic()):
            return
        try:
            text = record.getMessage()
        except Exception:
            text = str(record.msg)
        structlog.get_logger("acp_gateway").warning("library", name=record.name, message=text)


def _hear_libraries() -> None:
    root = logging.getLogger()
    if not any(isinstance(each, _Library) for each in root.handlers):
        root.addHandler(_Library())


def _lost_line(count: int) -> bytes:
    return b'{"event":"log_lines_lost","level":"warning","count":%d}' % count


def _json_line(event: Event) -> str:
    line = json.dumps(event, default=str)
    if len(line) > LINE_BYTES:
        kept = {name: event[name] for name in ("timestamp", "level", "event") if name in event}
        line = json.dumps({**kept, "cut": len(line), "text": line[: LINE_BYTES // 2]})
    return line


# ---- what a line may hold ----------------------------------------------------------------------


def clean_event(_logger: Any, _name: str, event: Event) -> Event:
    """Secrets out, control and direction characters visible, everything cut to a size: a log line
    cannot forge another."""
    for key, value in event.items():
        if key in _SAFE or value is None or isinstance(value, bool | int | float):
            continue
        if key == "exception":
            event[key] = _traceback(str(value))
        elif isinstance(value, str):
            event[key] = clean(value, _limit(key))
        else:
            event[key] = redact_value(_plain(value), lambda text: clean(text, TEXT_LIMIT))
    return event


def _limit(key: str) -> int:
    if key in _IDS:
        return ID_LIMIT
    return ROUTE_LIMIT if key in ("path", "route") else TEXT_LIMIT


def _traceback(text: str) -> str:
    """Its lines stay lines, set in by two blanks, so that none looks like one of the log."""
    lines = cut(redact(text[-TRACEBACK_LIMIT:]), TRACEBACK_LIMIT).split("\n")
    return "\n".join("  " + visible(line) for line in lines)


def _plain(value: Any) -> Any:
    return value if isinstance(value, dict | list | tuple) else str(value)
