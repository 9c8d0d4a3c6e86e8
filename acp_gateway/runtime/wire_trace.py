"""``--trace-wire FILE``: what goes over the wires, on both sides, one JSON object on a line.

``{t, n, side, dir, peer, bytes, frame | text, cut?}``: Unix time in seconds, a running number, side
``client`` or ``agent``, direction ``in`` or ``out`` as the gateway sees it, who it is, the size of
the message, and the message: as JSON with secrets taken out by the names of members and by their
look, or as text. The order is that in which the gateway took and gave them. Parsing, redaction and
writing are done by the writer's thread; what waits for it is bounded, and a line says where some
are missing. Nothing of this exists when the trace is off.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from acp_gateway.config import ConfigError
from acp_gateway.protocol.errors import GatewayError
from acp_gateway.runtime.agent_host import AgentHost
from acp_gateway.runtime.agent_rpc import AgentLink
from acp_gateway.runtime.line_writer import LineWriter
from acp_gateway.runtime.redact import REDACTED, cut, redact, redact_value, visible
from acp_gateway.runtime.rotating_file import RotatingFile
from acp_gateway.wire.json_codec import JsonError, dumps, loads

TRACE_BYTES: Final = 64 * 1024 * 1024
TRACE_ARCHIVES: Final = 3
QUEUE_BYTES: Final = 16 * 1024 * 1024
FRAME_BYTES: Final = 64 * 1024
"""Of a larger message the beginning is kept, as text."""
CLOSE_TIMEOUT: Final = 5.0


@attrs.frozen
class Frame:
    """One message, or what there is to say of one."""

    at: float
    number: int
    side: str
    direction: str
    peer: str
    size: int
    data: bytes | dict[str, Any]
    """The message, cut to `FRAME_BYTES`; or an object that is no message of the wire itself."""
    hidden: str | None = None
    """A member of the message that is a secret, though its name does not say so."""


class WireTrace:
    """Raises `ConfigError` when the file cannot be written."""

    def __init__(self, path: Path) -> None:
        try:
            file = RotatingFile(path, max_bytes=TRACE_BYTES, archives=TRACE_ARCHIVES)
        except OSError as exc:
            raise ConfigError(
                f"The wire trace {path} cannot be written: {exc.strerror or exc}.",
                remedy="Name another file, or leave --trace-wire out.",
                source="trace_wire",
            ) from exc
        self._numbers = itertools.count(1)
        self._writer = LineWriter(file, render, _lost_line, name="wire-trace", limit=QUEUE_BYTES)

    def frame(
        self,
        side: str,
        direction: str,
        peer: str,
        data: bytes,
        size: int = -1,
        hidden: str | None = None,
    ) -> None:
        """One message. ``size``: its bytes, where ``data`` is but a part of it; ``hidden``: see
        `Frame`."""
        full = len(data) if size < 0 else size
        self._put(side, direction, peer, full, data[:FRAME_BYTES], hidden)

    def note(self, side: str, direction: str, peer: str, told: dict[str, Any]) -> None:
        """Something else than a message: the head of a request, the end of a connection."""
        self._put(side, direction, peer, 0, told)

    def _put(
        self,
        side: str,
        direction: str,
        peer: str,
        size: int,
        data: bytes | dict[str, Any],
        hidden: str | None = None,
    ) -> None:
        frame = Frame(time.time(), next(self._numbers), side, direction, peer, size, data, hidden)
        self._writer.put(frame, 256 + (len(data) if isinstance(data, bytes) else 1024))

    def close(self) -> None:
        """Write what waits; bounded."""
        self._writer.close(CLOSE_TIMEOUT)


def render(frame: Frame) -> bytes:
    """The line of a frame."""
    told: dict[str, Any] = {
        "t": round(frame.at, 6),
        "n": frame.number,
        "side": frame.side,
        "dir": frame.direction,
        "peer": frame.peer,
    }
    data = frame.data
    if isinstance(data, dict):
        return dumps({**told, **redact_value(data, _text)})
    told["bytes"] = frame.size
    if frame.size <= len(data):
        try:
            value = loads(data)
        except JsonError:
            pass
        else:
            if frame.hidden is not None:
                # What is no object may be the secret with its name left out.
                known = isinstance(value, dict)
                value = {**value, frame.hidden: REDACTED} if known else REDACTED
            return dumps({**told, "frame": redact_value(value, _text)})
    if frame.hidden is not None:
        return dumps({**told, "text": REDACTED})  # where in it the secret is nobody can say
    # What is cut within a secret has lost its end, not its beginning.
    text = visible(redact(data.decode(errors="replace")))
    told["text"] = cut(text, FRAME_BYTES)
    if frame.size > len(data):
        told["cut"] = True
    return dumps(told)


def _text(text: str) -> str:
    """JSON escapes what a terminal would obey; characters that turn text round it does not."""
    text = redact(text)
    if text.isascii() or text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else visible(char) for char in text)


def _lost_line(count: int) -> bytes:
    return b'{"lost":%d}' % count


class TracedAgentHost(AgentHost):
    """An agent whose lines are traced."""

    wire: WireTrace
    """Set by who makes it."""
    _whole = False
    """The line that is being handled has been traced."""

    @property
    def _peer(self) -> str:
        return f"{self.name} {self.pid}"

    def write(self, line: bytes) -> None:
        self.wire.frame("agent", "out", self._peer, line)
        super().write(line)

    def handle(self, lines: list[bytes]) -> set[AgentLink]:
        if not self._whole:
            peer = self._peer
            for line in lines:
                self.wire.frame("agent", "in", peer, line)
        return super().handle(lines)

    def handle_large(self, parts: list[bytes]) -> Iterator[AgentLink | None]:
        size = sum(map(len, parts))
        self.wire.frame("agent", "in", self._peer, b"".join(parts[:2])[:FRAME_BYTES], size)
        self._whole = True
        try:
            yield from super().handle_large(parts)
        finally:
            self._whole = False

    def end(self, reason: GatewayError | None = None) -> None:
        if self.ending is None:
            told = {"event": "end", "reason": None if reason is None else reason.kind.word}
            self.wire.note("agent", "out", self._peer, told)
        super().end(reason)


def traced_hosts(wire: WireTrace) -> Callable[..., AgentHost]:
    """Makes hosts of which ``wire`` hears."""

    def make(*args: Any) -> AgentHost:
        host = TracedAgentHost(*args)
        host.wire = wire
        return host

    return make
