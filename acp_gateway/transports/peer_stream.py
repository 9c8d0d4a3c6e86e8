"""A client's byte stream with what the servers above it lack: replay of bytes already read, one
writer at a time, and a deadline on every blocked write.

Both hypercorn and trio-websocket are handed one of these. hypercorn shields its sends, so a client
that stops reading would hold it for ever: here such a send fails once the socket has taken nothing
for ``evict_timeout``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

import trio

from acp_gateway.config_access import UNIX_PEER
from acp_gateway.wire.frames import Bytes, joined

READ: Final = 64 * 1024
LINGER: Final = 2.0
"""Seconds."""
BLOCK: Final = 512 * 1024
"""More is not joined for one write."""
PARTS: Final = 512
"""Systems take no more for one write (POSIX asks for 16, Linux and macOS have 1024)."""
TLS_PIECE: Final = 64 * 1024
_serving: ContextVar[PeerStream | None] = ContextVar("acp_gateway_peer", default=None)


def give_up_peer() -> None:
    """End the connection that the calling request came on, with whatever write is stuck in it."""
    peer = _serving.get()
    if peer is not None:
        peer.give_up()


def linger_at_close() -> None:
    """The calling request is answered before all of it came: let its peer read the answer."""
    peer = _serving.get()
    if peer is not None:
        peer.lingers = True


def on_peer_progress(told: Callable[[], None]) -> bool:
    """Be told when the peer of the calling request took bytes of a blocked write.

    False: nobody will be told, because the request shares its connection (HTTP/2).
    """
    peer = _serving.get()
    if peer is None:
        return False
    peer.on_progress = told
    return True


class PeerStream(trio.abc.HalfCloseableStream):
    """Over plain TCP. hypercorn reads `socket` and must see no ``do_handshake`` here."""

    def __init__(
        self, stream: trio.SocketStream | trio.SSLStream[Any], first: bytes, evict_timeout: float
    ) -> None:
        self._stream = stream
        self._first = first
        self._evict_timeout = evict_timeout
        self._lock = trio.StrictFIFOLock()
        self._broken = False
        self._rest: Sequence[Bytes] = ()
        """What `write_now` could not write."""
        self._more = False
        """The last read filled its buffer."""
        self.on_progress: Callable[[], None] | None = None
        """Called when the peer took bytes of a blocked write."""
        self.lingers = False
        """The peer still sends when it is told to stop."""
        self.on_stalled: Callable[[], None] | None = None
        """Called when it was given up because it took nothing."""

    @property
    def socket(self) -> trio.socket.SocketType:
        assert isinstance(self._stream, trio.SocketStream)
        return self._stream.socket

    @property
    def peer_host(self) -> str | None:
        """The address of the other end, `UNIX_PEER` on a Unix socket; None when it is gone."""
        try:
            if self.socket.family == trio.socket.AF_UNIX:
                return UNIX_PEER
            return str(self.socket.getpeername()[0])
        except (OSError, IndexError):
            return None

    @property
    def free_of_writes(self) -> bool:
        """Nobody writes, and nothing is left to be written."""
        return not (self._rest or self._lock.locked())

    def serve_here(self) -> None:
        """Requests of this connection run in tasks that the calling one starts."""
        _serving.set(self)

    def give_up(self) -> None:
        with suppress(OSError):
            stream = self._stream
            inner = stream if isinstance(stream, trio.SocketStream) else stream.transport_stream
            inner.socket.shutdown(trio.socket.SHUT_RDWR)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._first:
            await trio.lowlevel.checkpoint()
            size = len(self._first) if max_bytes is None else max_bytes
            data, self._first = self._first[:size], self._first[size:]
            return data
        return await self._receive(READ if max_bytes is None else max_bytes)

    async def _receive(self, max_bytes: int) -> bytes:
        # Mostly the next message is not there yet: to try first costs a call that fails.
        ready = self._more
        while True:
            if ready:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._fd)
            try:
                data = os.read(self._fd, max_bytes)
            except BlockingIOError:
                ready = False
            except OSError as exc:
                raise trio.BrokenResourceError(str(exc)) from None
            else:
                self._more = len(data) == max_bytes
                return data

    @property
    def _fd(self) -> int:
        """Asked anew after every wait: the number of a closed socket may be somebody else's."""
        fd = self.socket.fileno()
        if fd < 0:
            raise trio.ClosedResourceError
        return fd

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Raises `trio.BrokenResourceError` also when the peer stalls."""
        await self.send_parts((data,))

    async def send_parts(self, parts: Sequence[Bytes]) -> None:
        """`send_all` of them one behind the other, with no other write in between."""
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            if self._broken:
                raise trio.BrokenResourceError("an earlier write was cut short")
            # Half a frame on the wire makes the stream useless, whatever stopped the write.
            self._broken = True
            rest, self._rest = self._rest, ()
            for block in joined((*rest, *parts) if rest else parts, BLOCK):
                await self._send(memoryview(block))
            self._broken = False
        finally:
            self._lock.release()

    async def send_at_once(self, *parts: Bytes) -> None:
        """Like `send_all`, for a message in parts, but not to be cancelled. Nobody else gets a turn
        if the socket takes all.
        """
        rest: Sequence[Bytes] = parts
        if self.free:
            rest = self._write(parts)
        if rest:
            # The lock, being free, is taken before another task can write in between.
            with trio.CancelScope(shield=True):
                await self.send_all(rest[0] if len(rest) == 1 else b"".join(rest))

    def _write(self, parts: Sequence[Bytes]) -> Sequence[Bytes]:
        """Give the socket what it takes; gives back the rest."""
        try:
            sent = os.writev(self._fd, parts)
        except BlockingIOError:
            return parts
        except OSError as exc:
            raise trio.BrokenResourceError(str(exc)) from None
        if self.on_progress is not None:
            self.on_progress()
        for index, part in enumerate(parts):
            if sent < len(part):
                return [memoryview(part)[sent:], *parts[index + 1 :]]
            sent -= len(part)
        return ()

    @property
    def free(self) -> bool:
        """May `write_now` be called? Nobody writes, nothing waits."""
        return not (self._rest or self._broken or self._lock.locked())

    @property
    def unsent(self) -> bool:
        """Something of `write_now` waits for the next `send_parts`, which may be of nothing."""
        return bool(self._rest)

    def write_now(self, parts: Sequence[Bytes]) -> None:
        """Give the socket what it takes without waiting; the rest is sent before anything else."""
        self._rest = parts
        # Who sends the rest will find out.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._rest = (*self._write(parts[:PARTS]), *parts[PARTS:])

    async def _send(self, data: memoryview) -> None:
        await trio.lowlevel.checkpoint()
        rest: Sequence[Bytes] = [data]
        while rest := self._write(rest):
            with trio.move_on_after(self._evict_timeout) as scope:
                await trio.lowlevel.wait_writable(self._fd)
            if scope.cancelled_caught:
                raise self._given_up() from None

    def _given_up(self) -> trio.BrokenResourceError:
        if self.on_stalled is not None:
            self.on_stalled()
        # Its reader has to notice too: hypercorn would wait on for the next request.
        self.give_up()
        return trio.BrokenResourceError("the peer stopped reading")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        if isinstance(self._stream, trio.SocketStream):
            await self._stream.send_eof()

    async def aclose(self) -> None:
        if self.lingers:
            await self._linger()
        await self._stream.aclose()

    async def _linger(self) -> None:
        """Take what still comes, for a while: closed at once, the system would answer it with a
        reset, which can overtake the answer (RFC 9112 §9.6).
        """
        sock = self.socket
        with trio.move_on_after(LINGER), suppress(OSError):
            sock.shutdown(trio.socket.SHUT_WR)
            while await sock.recv(READ):
                pass


class TlsPeerStream(PeerStream):
    """Over TLS. hypercorn recognises it by ``do_handshake`` (done before, so a no-op)."""

    free = False
    """To encrypt may have to wait."""

    async def do_handshake(self) -> None:
        await trio.lowlevel.checkpoint()

    def selected_alpn_protocol(self) -> str | None:
        assert isinstance(self._stream, trio.SSLStream)
        chosen: str | None = self._stream.selected_alpn_protocol()
        return chosen

    @property
    def transport_stream(self) -> trio.SocketStream:
        assert isinstance(self._stream, trio.SSLStream)
        stream: trio.SocketStream = self._stream.transport_stream
        return stream

    @property
    def socket(self) -> trio.socket.SocketType:
        return self.transport_stream.socket

    async def _receive(self, max_bytes: int) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    def _write(self, parts: Sequence[Bytes]) -> Sequence[Bytes]:
        return parts

    async def _send(self, data: memoryview) -> None:
        for start in range(0, len(data), TLS_PIECE):
            with trio.move_on_after(self._evict_timeout) as scope:
                await self._stream.send_all(data[start : start + TLS_PIECE])
            if scope.cancelled_caught:
                raise self._given_up()
            if self.on_progress is not None:
                self.on_progress()

    async def aclose(self) -> None:
        if self.lingers:
            await self._linger()
        with trio.move_on_after(self._evict_timeout):
            await self._stream.aclose()

    async def send_eof(self) -> None:
        raise AttributeError  # TLS has no half-close; hypercorn expects it to be absent
