"""One connection to the server under test, whatever carries it.

Rule 1: a link keeps every message it received, in order, in `Link.log`; cases look back in it and
never race the reader. Rule 2: requests of the server are given to ``handler`` in a task of their
own, so a slow answer never holds up the reading.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import trio

from conformance.outcome import Failure, LinkClosed, brief, check

Message = dict[str, Any]
Handler = Callable[["Link", Message], Awaitable[Message | None]]
ABSENT: Any = object()
"""Leave ``params`` (or ``id``) out of the message."""

CLIENT_INFO = {"name": "acp-conformance", "title": "ACP conformance suite", "version": "1"}


@dataclass(frozen=True)
class Received:
    """One message of the server.

    ``stream`` is ``ws``, ``post`` (the body of an HTTP answer), ``connection`` or a session id.
    """

    message: Message
    stream: str
    event_id: str | None = None


@dataclass(frozen=True)
class Reply:
    """The answer to a request and the messages that came between sending and it."""

    message: Message
    stream: str
    before: list[Message]
    index: int

    @property
    def result(self) -> dict[str, Any]:
        """The result; `Failure` when the server answered an error. null counts as {}."""
        check("result" in self.message, f"an error instead of a result: {brief(self.message)}")
        result = self.message["result"]
        check(result is None or isinstance(result, dict), f"result is no object: {brief(result)}")
        return result or {}

    def succeeds(self) -> None:
        """`Failure` unless the answer is a result."""
        _ = self.result

    @property
    def error(self) -> dict[str, Any]:
        """The error object; `Failure` when it is a result or not of the JSON-RPC shape."""
        error = self.message.get("error")
        check("result" not in self.message, f"a result instead of an error: {brief(self.message)}")
        if not isinstance(error, dict):
            raise Failure(f"error is no object: {brief(self.message)}")
        code, text = error.get("code"), error.get("message")
        check(isinstance(code, int) and not isinstance(code, bool), f"code: {brief(error)}")
        check(isinstance(text, str) and text != "", f"message: {brief(error)}")
        return error

    def fails_with(self, *codes: int) -> dict[str, Any]:
        """The error object, whose code must be one of ``codes`` (any when none is given)."""
        error = self.error
        check(not codes or error["code"] in codes, f"code is not one of {codes}: {brief(error)}")
        return error


async def allow(link: Link, request: Message) -> Message | None:
    """Answer a permission request with its first allow_once option, refuse anything else."""
    return _choose(request, "allow_once", "allow_always")


async def reject(link: Link, request: Message) -> Message | None:
    """Answer a permission request with its first reject_once option, refuse anything else."""
    return _choose(request, "reject_once", "reject_always")


async def leave_open(link: Link, request: Message) -> Message | None:
    """Answer nothing: the case does it later with `Link.answer`."""
    return None


def _choose(request: Message, *kinds: str) -> Message:
    if request["method"] != "session/request_permission":
        return {"error": {"code": -32601, "message": f"no {request['method']} here"}}
    return {"result": {"outcome": {"outcome": "selected", "optionId": option(request, *kinds)}}}


def option(request: Message, *kinds: str) -> str:
    """The optionId of the first option whose kind is one of ``kinds``."""
    for entry in request["params"]["options"]:
        if entry["kind"] in kinds:
            return str(entry["optionId"])
    raise Failure(f"no option of kind {kinds}: {brief(request['params']['options'])}")


def is_request(message: Message) -> bool:
    return "method" in message and "id" in message


def is_response(message: Message) -> bool:
    return "method" not in message and "id" in message


def same_id(left: Any, right: Any) -> bool:
    """Equal in type and value: 1 is neither "1" nor true nor 1.0."""
    return type(left) is type(right) and bool(left == right)


class Pending:
    """A request on its way."""

    def __init__(self, link: Link, request_id: Any, start: int) -> None:
        self.link = link
        self.id = request_id
        self.start = start

    @property
    def answered(self) -> bool:
        return any(self._answers(entry) for entry in self.link.log[self.start :])

    def _answers(self, entry: Received) -> bool:
        return is_response(entry.message) and same_id(entry.message["id"], self.id)

    async def reply(self) -> Reply:
        """Wait for the answer; `LinkClosed` when the server ends the connection first."""
        index = await self.link.find(self._answers, after=self.start)
        entry = self.link.log[index]
        before = [entry.message for entry in self.link.log[self.start : index]]
        return Reply(entry.message, entry.stream, before, index)


class Link(ABC):
    """What both transports offer. Made by `Context.link`, closed by it at the end of the case."""

    transport: ClassVar[str]

    def __init__(self, nursery: trio.Nursery, handler: Handler = allow) -> None:
        self.nursery = nursery
        self.handler = handler
        self.log: list[Received] = []
        self.closed: str | None = None
        """Why the connection is over, None while it stands."""
        self.connection_id: str | None = None
        self.sessions: set[str] = set()
        """Sessions that this link opened or attached to and did not close."""
        self._pulse = trio.Event()
        self._last_id = 0

    # --- to be provided by a transport

    @abstractmethod
    async def open(self) -> None:
        """Get to where initialize can be sent."""

    @abstractmethod
    async def send(self, message: Message) -> None:
        """Send one message as it is; raises `Failure` when the server refuses to take it."""

    @abstractmethod
    async def drop(self) -> None:
        """Vanish without a farewell, as a killed client does."""

    @abstractmethod
    async def close(self) -> None:
        """End the connection politely."""

    @abstractmethod
    async def attached(self, session_id: str) -> None:
        """Return when events of the session can arrive."""

    # --- sending

    async def start(self, method: str, params: Any = ABSENT, *, id: Any = ABSENT) -> Pending:
        """Send a request without waiting for its answer."""
        if id is ABSENT:
            self._last_id += 1
            id = self._last_id
        pending = Pending(self, id, len(self.log))
        message: Message = {"jsonrpc": "2.0", "id": id, "method": method}
        if params is not ABSENT:
            message["params"] = params
        await self.send(message)
        return pending

    async def request(self, method: str, params: Any = ABSENT, *, id: Any = ABSENT) -> Reply:
        """Send a request and wait for its answer."""
        pending = await self.start(method, params, id=id)
        reply = await pending.reply()
        self._track(method, params, reply.message.get("result"))
        return reply

    async def notify(self, method: str, params: Any = ABSENT) -> None:
        message: Message = {"jsonrpc": "2.0", "method": method}
        if params is not ABSENT:
            message["params"] = params
        await self.send(message)

    async def answer(self, request: Message, members: Message) -> None:
        """Answer a request of the server; ``members`` is {"result": …} or {"error": …}."""
        await self.send({"jsonrpc": "2.0", "id": request["id"], **members})

    async def initialize(self, version: Any = 1, **extra: Any) -> Reply:
        """Send initialize; ``extra`` are further members of its params."""
        params = {
            "protocolVersion": version,
            "clientCapabilities": {},
            "clientInfo": CLIENT_INFO,
            **extra,
        }
        return await self.request("initialize", params)

    async def fence(self) -> None:
        """A round trip: what the server had to say to earlier messages is in the log after it."""
        (await self.request("conformance/fence", {})).fails_with(-32601)

    # --- receiving

    def received(self, message: Any, stream: str, event_id: str | None = None) -> None:
        """Called by the transport for every message."""
        if not isinstance(message, dict):
            message = {"not an object": message}
        self.log.append(Received(message, stream, event_id))
        self._wake()
        if is_request(message):
            self.nursery.start_soon(self._handle, message)

    def ended(self, reason: str) -> None:
        """Called by the transport when no message can come any more."""
        if self.closed is None:
            self.closed = reason
        self._wake()

    def _wake(self) -> None:
        self._pulse.set()
        self._pulse = trio.Event()

    async def _handle(self, request: Message) -> None:
        members = await self.handler(self, request)
        if members is not None and self.closed is None:
            with suppress(LinkClosed):
                await self.answer(request, members)

    def _track(self, method: str, params: Any, result: Any) -> None:
        if not isinstance(result, dict):
            return
        if method in ("session/new", "session/fork"):
            self.sessions.add(str(result.get("sessionId")))
        elif method in ("session/load", "session/resume"):
            self.sessions.add(params["sessionId"])
        elif method in ("session/close", "session/delete"):
            self.sessions.discard(params["sessionId"])

    async def find(self, wanted: Callable[[Received], bool], *, after: int = 0) -> int:
        """Index in the log of the first wanted message at or after ``after``; waits for it."""
        index = after
        while True:
            while index < len(self.log):
                if wanted(self.log[index]):
                    return index
                index += 1
            if self.closed is not None:
                raise LinkClosed(f"the connection ended ({self.closed}) before the message came")
            await self._pulse.wait()

    async def expect(self, wanted: Callable[[Message], bool], *, after: int = 0) -> Message:
        """The first wanted message at or after ``after`` in the log; waits for it."""
        index = await self.find(lambda entry: wanted(entry.message), after=after)
        return self.log[index].message

    async def wait_closed(self) -> str:
        """Wait until the server ended the connection; why."""
        while self.closed is None:
            await self._pulse.wait()
        return self.closed

    async def question(self, session_id: str, *, after: int = 0) -> Message:
        """The next permission request of the session."""
        return await self.expect(
            lambda message: (
                message.get("method") == "session/request_permission"
                and message["params"].get("sessionId") == session_id
            ),
            after=after,
        )

    def messages(self, after: int = 0) -> list[Message]:
        return [entry.message for entry in self.log[after:]]


# --- reading updates


def updates(messages: Iterable[Message], session_id: str, *kinds: str) -> list[dict[str, Any]]:
    """``update`` objects of the session, all or of the given sessionUpdate kinds, in order."""
    return [
        message["params"]["update"]
        for message in messages
        if message.get("method") == "session/update"
        and message["params"].get("sessionId") == session_id
        and (not kinds or message["params"]["update"].get("sessionUpdate") in kinds)
    ]


def text_of(messages: Iterable[Message], session_id: str, kind: str = "agent_message_chunk") -> str:
    """The session's chunks of one kind, joined."""
    found = updates(messages, session_id, kind)
    return "".join(str(update["content"].get("text", "")) for update in found)
