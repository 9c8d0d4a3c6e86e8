"""The JSON-RPC link to one agent: calls out, answers in, and who gets the rest.

Knows nothing of processes: lines come in by `handle`, and go out by `write`, which its heir gives.
Everything here is synchronous and in wire order; nothing is awaited for an update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import msgspec
import structlog
import trio

from acp_gateway.protocol.errors import METHOD_NOT_FOUND, AgentError, ErrorKind, GatewayError
from acp_gateway.runtime.redact import redact, redact_value
from acp_gateway.wire.json_codec import JsonError, dumps, loads
from acp_gateway.wire.jsonrpc import (
    InvalidMessage,
    Line,
    notification_bytes,
    open_line,
    peek_updates,
    request_bytes,
)
from acp_gateway.wire.large_line import Pieces, peek_large, relay

log = structlog.get_logger("acp_gateway.agent")

GARBAGE_LOGGED: Final = 20
_OPENING: Final = frozenset({"session/new", "session/fork"})
EARLY_SESSIONS: Final = 64
EARLY_BYTES: Final = 8 * 1024 * 1024


class AgentLink(Protocol):
    """What a host tells a session; all calls are synchronous and in wire order."""

    def on_updates(self, lines: list[bytes], kind: str, now: float) -> None: ...
    def on_large_update(self, line: bytes | Pieces, kind: str, now: float) -> None: ...
    def on_agent_request(self, host: AgentRpc, id: bytes, method: str, params: Any) -> None: ...
    def on_agent_notification(self, method: str, params: dict[str, Any], line: bytes) -> None: ...
    def flush(self) -> None: ...
    async def flow(self) -> None: ...
    @property
    def over_flow(self) -> bool: ...


class Call:
    """A request to the agent that awaits its answer. ``on_reply`` runs in wire order."""

    __slots__ = ("_done", "error", "id", "method", "on_reply", "result")

    def __init__(self, id: int, method: str, on_reply: Callable[[Call], None] | None) -> None:
        self.id = id
        self.method = method
        self.on_reply = on_reply
        self.result: msgspec.Raw | None = None
        self.error: GatewayError | None = None
        self._done = trio.Event()

    def settle(self, result: msgspec.Raw | None, error: GatewayError | None) -> None:
        self.result = result
        self.error = error
        if self.on_reply is not None:
            self.on_reply(self)
        self._done.set()

    @property
    def settled(self) -> bool:
        return self._done.is_set()

    async def wait(self) -> msgspec.Raw:
        """The raw result. Raises `AgentError` or the host's reason for its end."""
        await self._done.wait()
        if self.error is not None:
            # A fresh traceback for each waiter.
            raise self.error.with_traceback(None)
        assert self.result is not None
        return self.result


class AgentRpc:
    def __init__(self, name: str) -> None:
        self.name = name
        """Of the agent, for errors and logs."""
        self.ending: GatewayError | None = None
        """Why the link ended or is about to."""
        self.sessions: dict[str, AgentLink] = {}
        self.last_used = 0.0
        self._calls: dict[int, Call] = {}
        self._next_id = 0
        self._early: dict[str, list[tuple[bytes, str]]] = {}
        self._early_bytes = 0
        self._garbage = 0

    @property
    def alive(self) -> bool:
        return self.ending is None

    def write(self, line: bytes) -> None:
        """Send one line. Never blocks."""
        raise NotImplementedError

    # ---- requests to the agent ------------------------------------------------------------------

    def call(
        self, method: str, params: Any, on_reply: Callable[[Call], None] | None = None
    ) -> Call:
        """Send a request. ``on_reply`` sees the answer (or the host's end) in wire order."""
        self._next_id += 1
        call = Call(self._next_id, method, on_reply)
        if not self.alive:
            call.settle(None, self.ending or self._gone())
            return call
        self._calls[call.id] = call
        self.write(request_bytes(call.id, method, params))
        self.last_used = trio.current_time()
        return call

    async def request(self, method: str, params: Any, *, timeout: float) -> Any:
        """Call and wait. Raises `AgentError`, ``agent_exited`` or ``agent_unresponsive``."""
        call = self.call(method, params)
        return loads(bytes(await self.wait(call, timeout)))

    async def wait(self, call: Call, timeout: float) -> msgspec.Raw:
        """The raw result of a call; a late answer is dropped."""
        with trio.move_on_after(timeout):
            return await call.wait()
        self._calls.pop(call.id, None)
        if call.method != "initialize":
            self.notify("$/cancel_request", {"requestId": call.id})
        raise GatewayError(
            ErrorKind.AGENT_UNRESPONSIVE,
            f"The agent {self.name} did not answer {call.method} within {timeout:g} s",
            remedy="try again; if it keeps happening, restart the agent",
            agent=self.name,
        )

    def forget(self, call: Call) -> None:
        """Nobody waits for this answer any more."""
        self._calls.pop(call.id, None)

    def notify(self, method: str, params: Any) -> None:
        if self.alive:
            self.write(notification_bytes(method, params))

    def respond(self, id: bytes, result: Any) -> None:
        """Answer a request of the agent; ``id`` is the raw JSON it used."""
        self.write(b'{"jsonrpc":"2.0","id":' + id + b',"result":' + dumps(result) + b"}")

    def respond_error(self, id: bytes, error: dict[str, Any]) -> None:
        self.write(b'{"jsonrpc":"2.0","id":' + id + b',"error":' + dumps(error) + b"}")

    def _gone(self) -> GatewayError:
        return GatewayError(ErrorKind.AGENT_EXITED, f"The agent {self.name} is gone")

    def fail_calls(self) -> None:
        """Settle whatever waits with the reason of the end."""
        assert self.ending is not None
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.settle(None, self.ending)

    # ---- messages of the agent ------------------------------------------------------------------

    def handle(self, lines: list[bytes]) -> set[AgentLink]:
        """Take in lines; returns the sessions that got something."""
        now = time.time()
        touched: set[AgentLink] = set()
        sessions = self.sessions
        for update, run in peek_updates(lines):
            if update is None:
                self._handle_other(run[0], now, touched)
                continue
            session_id, kind = update
            link = sessions.get(session_id)
            if link is None:
                self._keep_early(session_id, run, kind)
            else:
                link.on_updates(run, kind, now)
                touched.add(link)
        return touched

    def handle_large(self, parts: list[bytes]) -> Iterator[AgentLink | None]:
        """Take in one line of megabytes, step by step: others may have a turn after each.

        Gives the session that got something, if any did.
        """
        head = peek_large(parts)
        link = None if head is None else self.sessions.get(head.session_id)
        if head is None or link is None:
            yield from self.handle([b"".join(parts)])
            return
        now = time.time()
        try:
            for line in relay(parts, head):
                if line is None:
                    yield None
                else:
                    link.on_large_update(line, head.kind, now)
                    yield link
        except (InvalidMessage, JsonError, KeyError, TypeError):  # all but its head is unread
            self.log_garbage(parts[0])

    def _handle_other(self, line: bytes, now: float, touched: set[AgentLink]) -> None:
        if not line or line.isspace():
            return
        try:
            message = open_line(line)
        except InvalidMessage:
            self.log_garbage(line)
            return
        if not message.method:
            self._handle_response(message, line)
            return
        params = message.params_object()
        session_id = params.get("sessionId")
        link = self.sessions.get(session_id) if isinstance(session_id, str) else None
        if link is not None:
            touched.add(link)
        if message.id:
            if link is not None:
                link.on_agent_request(self, bytes(message.id), message.method, params)
            else:
                self.respond_error(
                    bytes(message.id),
                    {
                        "code": METHOD_NOT_FOUND,
                        "message": f"{message.method} needs a session that lives here",
                    },
                )
        elif message.method == "session/update":
            # Only the strict peek refused it (a lone surrogate, say).
            update = params.get("update")
            if link is not None and isinstance(update, dict):
                clean = dumps({"jsonrpc": "2.0", "method": "session/update", "params": params})
                link.on_updates([clean], str(update.get("sessionUpdate", "")), now)
        elif message.method == "$/cancel_request":
            for each in set(self.sessions.values()):
                each.on_agent_notification(message.method, params, line)
        elif link is not None:
            link.on_agent_notification(message.method, params, line)
        elif session_id is None and len(self.sessions) == 1:
            only = next(iter(self.sessions.values()))
            only.on_agent_notification(message.method, params, line)
            touched.add(only)

    def _handle_response(self, message: Line, line: bytes) -> None:
        try:
            id = loads(bytes(message.id)) if message.id else None
        except ValueError:
            id = None
        call = self._calls.pop(id, None) if type(id) is int else None
        if call is None:
            if not message.id or id is None:
                self.log_garbage(line)
            return
        if message.error and bytes(message.error) != b"null":
            # It goes to clients, events and the log: models' errors quote the key that was wrong.
            call.settle(None, AgentError(redact_value(message.error_object())))
        elif message.result:
            call.settle(message.result, None)
        else:
            call.settle(
                None, AgentError({"code": -32603, "message": "the agent's answer is empty"})
            )

    def _keep_early(self, session_id: str, lines: list[bytes], kind: str) -> None:
        # Updates of a session may come before the answer that names it. When none is awaited they
        # are of a session that has been closed.
        if not any(call.method in _OPENING for call in self._calls.values()):
            self._early.clear()
            self._early_bytes = 0
            return
        if len(self._early) >= EARLY_SESSIONS and session_id not in self._early:
            return
        for line in lines:
            if self._early_bytes + len(line) > EARLY_BYTES:
                return
            self._early_bytes += len(line)
            self._early.setdefault(session_id, []).append((line, kind))

    def adopt(self, session_id: str, link: AgentLink) -> None:
        """Route this session's messages to ``link``; what came before its answer is delivered."""
        self.sessions[session_id] = link
        now = time.time()
        for line, kind in self._early.pop(session_id, ()):
            self._early_bytes -= len(line)
            link.on_updates([line], kind, now)

    def release(self, session_id: str, link: AgentLink) -> None:
        if self.sessions.get(session_id) is link:
            del self.sessions[session_id]

    def log_garbage(self, line: bytes) -> None:
        """Note what is no message; the first few only."""
        self._garbage += 1
        if self._garbage <= GARBAGE_LOGGED:
            text = line[:200].decode(errors="replace")
            log.warning("agent_garbage", agent=self.name, line=redact(text))
