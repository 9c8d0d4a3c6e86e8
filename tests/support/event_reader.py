"""A reader of one event stream in the test's own process: an ASGI ``send``, and what it got."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import support.transport_imports  # noqa: F401
import trio

from acp_gateway.runtime.feed import Feed
from acp_gateway.runtime.sessions import SessionManager
from acp_gateway.transports.guards import Policy
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.rest.event_stream import EventStream


@attrs.frozen
class Frame:
    """One frame: a comment (``: …``, ``retry: …``) has neither an id nor data."""

    id: int | None
    event: str
    data: Any
    """The envelope."""

    @property
    def told(self) -> Any:
        return self.data["data"]


def parse(text: bytes) -> list[Frame]:
    """Whole frames only: what was cut off is dropped, as a client does."""
    frames = []
    for part in text.split(b"\n\n")[:-1]:
        id, event, data = None, part.decode(), None
        for line in part.split(b"\n"):
            name, _, value = line.partition(b": ")
            if name == b"id":
                id = int(value)
            elif name == b"event":
                event = value.decode()
            elif name == b"data":
                data = json.loads(value)
        frames.append(Frame(id, event, data))
    return frames


def ids(frames: list[Frame]) -> list[int]:
    return [each.id for each in frames if each.id is not None]


def hub_of(manager: SessionManager) -> Hub:
    policy = Policy(port=0, loopback=True, bound_host="127.0.0.1")
    return Hub(manager.settings, manager, policy)


async def at_once(data: bytes) -> None:
    """The socket takes everything."""


class Reader:
    """One connection. ``take`` is its socket: it returns when the bytes were taken."""

    def __init__(
        self,
        hub: Hub,
        feed: Feed,
        last: int | str | None = None,
        *,
        query: str = "",
        epoch: str | None = None,
        take: Callable[[bytes], Awaitable[None]] = at_once,
    ) -> None:
        headers = {} if last is None else {"last-event-id": str(last)}
        if epoch is not None:
            headers["x-qwen-event-epoch"] = epoch
        self.stream = EventStream(hub, feed, headers, query)
        self.got = bytearray()
        self.head: dict[str, Any] | None = None
        self.ended = False
        """The response has ended properly."""
        self.over = trio.Event()
        self._take = take
        self._frames: list[Frame] = []
        self._parsed = 0
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        with self._scope:
            await self.stream.run(self._send)
        self.over.set()

    def leave(self) -> None:
        self._scope.cancel()

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.head = message
            return
        body = message["body"]
        if body:
            await self._take(body)
            self.got += body
        self.ended = not message["more_body"]

    @property
    def frames(self) -> list[Frame]:
        end = self.got.rfind(b"\n\n") + 2
        if end > max(self._parsed, 1):
            self._frames += parse(bytes(self.got[self._parsed : end]))
            self._parsed = end
        return self._frames

    @property
    def last_id(self) -> int:
        """Of the newest whole frame; 0 before any."""
        return next((each.id for each in reversed(self.frames) if each.id is not None), 0)

    @property
    def ids(self) -> list[int]:
        return ids(self.frames)

    def of(self, event: str) -> list[Any]:
        """Data of the frames of this type."""
        return [each.told for each in self.frames if each.event == event]

    @property
    def events(self) -> list[str]:
        return [each.event for each in self.frames]
