"""Writes an event stream through ASGI, and sees whether its peer still reads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import trio

from acp_gateway.transports.peer_stream import BLOCK, on_peer_progress
from acp_gateway.wire.frames import Bytes, joined

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
        self._piece = BLOCK if on_peer_progress(self._progressed) else PIECE

    async def write(self, parts: Sequence[bytes]) -> None:
        """Raises `trio.TooSlowError` when the peer takes nothing for ``evict_timeout``."""
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            for piece in joined(parts, self._piece):
                await self._write(piece)
        finally:
            self._lock.release()

    async def _write(self, data: Bytes) -> None:
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
