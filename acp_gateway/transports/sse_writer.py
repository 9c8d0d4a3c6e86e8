"""Writes an event stream through ASGI, and sees whether its peer still reads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from acp_gateway.transports.peer_stream import on_peer_progress

PIECE: Final = 64 * 1024

Send = Callable[[dict[str, Any]], Awaitable[None]]


class SseWriter:
    """Made in the task of the request. ``moved`` is called whenever the peer took bytes."""

    def __init__(self, send: Send, evict_timeout: float) -> None:
        self.moved: Callable[[], None] = _nothing
        self._send = send
        self._evict = evict_timeout
        self._lock = trio.Lock()
        self._scope = trio.CancelScope()
        # Over HTTP/1.1 the socket tells; a stream of HTTP/2 can stall alone, while its socket
        # moves, and counts piece by piece.
        self._in_pieces = not on_peer_progress(self._progressed)

    async def write(self, data: bytes) -> None:
        """Raises `trio.TooSlowError` when the peer takes nothing for ``evict_timeout``."""
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            if self._in_pieces:
                for start in range(0, len(data), PIECE):
                    await self._write(data[start : start + PIECE])
            else:
                await self._write(data)
        finally:
            self._lock.release()

    async def _write(self, data: bytes) -> None:
        with trio.CancelScope(deadline=trio.current_time() + self._evict) as self._scope:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        if self._scope.cancelled_caught:
            raise trio.TooSlowError
        self.moved()
        # After a client has gone hypercorn's send returns at once, without a checkpoint.
        await trio.lowlevel.checkpoint()

    def _progressed(self) -> None:
        self._scope.deadline = trio.current_time() + self._evict
        self.moved()


def _nothing() -> None:
    """Nobody listens yet."""
