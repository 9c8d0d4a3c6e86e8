"""The HTTP server on a socket pair: what is written when, and how a connection ends."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
import support.transport_imports  # noqa: F401
import trio
import trio.testing

from acp_gateway.transports.http_server import HttpServer, _Config, _Inbox
from acp_gateway.transports.patience import Patience
from acp_gateway.transports.peer_stream import PeerStream
from acp_gateway.transports.request_body import WHEN_GONE
from acp_gateway.wire.frames import Bytes

DEADLINE = 10.0
GET = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"
Asgi = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


class CountedPeer(PeerStream):
    """Counts what reaches the socket."""

    writes = 0

    def _write(self, parts: Iterable[Bytes]) -> Any:
        self.writes += 1
        return super()._write(list(parts))


class Site:
    def __init__(self, server: HttpServer, patience: Patience, peer: CountedPeer, fd: Any) -> None:
        self.server, self.patience, self.peer, self.client = server, patience, peer, fd
        self.over = trio.Event()

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next response, with a length or in chunks."""
        head, body = b"", b""
        while b"\r\n\r\n" not in head:
            head += await self._some()
        head, _, body = head.partition(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", head)
        while size and len(body) < int(size[1]):
            body += await self._some()
        while b"chunked" in head and not body.endswith(b"0\r\n\r\n"):
            body += await self._some()
        return int(head.split()[1]), body

    async def _some(self) -> bytes:
        data = bytes(await self.client.receive_some(65536))
        assert data, "the connection ended"
        return data

    async def ends(self) -> bool:
        return bytes(await self.client.receive_some(65536)) == b""


KEEP_ALIVE = 75.0


@asynccontextmanager
async def serving(app: Asgi, *, evict: float = 5) -> AsyncIterator[Site]:
    ours, theirs = (trio.socket.from_stdlib_socket(each) for each in socket.socketpair())
    patience = Patience()
    hub = SimpleNamespace(
        settings=SimpleNamespace(max_message_bytes=1 << 20, http_idle_timeout=KEEP_ALIVE),
        patience=patience,
    )
    server = HttpServer(app, cast(Any, hub), 65536)
    peer = CountedPeer(trio.SocketStream(ours), b"", evict)
    site = Site(server, patience, peer, trio.SocketStream(theirs))
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await server.serve(peer)
                site.over.set()

            nursery.start_soon(serve)
            yield site
            await site.client.aclose()
            await site.over.wait()


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def hello(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send(start((b"content-length", b"5")))
    await send(body(b"hello"))


async def test_a_response_is_one_write() -> None:
    async with serving(hello) as site:
        for count in (1, 2, 3):
            await site.client.send_all(GET)
            assert await site.answer() == (200, b"hello")
            assert site.peer.writes == count
        await site.client.send_all(GET * 2)  # pipelined: one after the other, both answered
        assert (await site.answer())[1][:5] == b"hello"
        await trio.testing.wait_all_tasks_blocked()
        assert site.peer.writes == 5


async def test_a_head_has_no_body() -> None:
    async with serving(hello) as site:
        await site.client.send_all(GET.replace(b"GET", b"HEAD"))
        await trio.testing.wait_all_tasks_blocked()
        got = await site._some()
        assert b"content-length: 5" in got and got.endswith(b"\r\n\r\n")


async def test_the_pieces_of_a_stream_go_out_at_once() -> None:
    go_on = trio.Event()

    async def stream(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send(start())
        await send(body(b"first", more=True))
        await go_on.wait()
        await send(body(memoryview(b"second"), more=True))  # type: ignore[arg-type]
        await send(body(b""))

    async with serving(stream) as site:
        await site.client.send_all(GET)
        await trio.testing.wait_all_tasks_blocked()
        assert site.peer.writes == 1
        assert (await site._some()).endswith(b"\r\n\r\n5\r\nfirst\r\n")
        go_on.set()
        rest = b""
        while not rest.endswith(b"0\r\n\r\n"):
            rest += await site._some()
        assert rest == b"6\r\nsecond\r\n0\r\n\r\n"


@pytest.mark.parametrize("begun", [False, True])
async def test_an_application_that_fails(begun: bool) -> None:
    async def fail(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if begun:
            await send(start((b"content-length", b"5")))
        raise RuntimeError("no")

    async with serving(fail) as site:
        await site.client.send_all(GET)
        got = await site._some()
        assert got.startswith(b"HTTP/1.1 200" if begun else b"HTTP/1.1 500")
        assert await site.ends()


# ---- the end of a connection --------------------------------------------------------------------


async def test_an_idle_connection_is_closed_after_its_time_and_not_before() -> None:
    async with serving(hello) as site:
        await site.client.send_all(GET)
        await site.answer()
        now = trio.current_time()
        site.patience.strike(now + KEEP_ALIVE - 1)
        await trio.testing.wait_all_tasks_blocked()
        assert not site.over.is_set()
        site.patience.strike(now + KEEP_ALIVE + 1)
        assert await site.ends()


class Slow:
    """Answers when told."""

    def __init__(self) -> None:
        self.asked, self.go_on, self.told = trio.Event(), trio.Event(), trio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        scope["extensions"][WHEN_GONE](self.told.set)
        self.asked.set()
        await self.go_on.wait()
        await hello(scope, receive, send)


async def test_a_busy_connection_is_not_idle() -> None:
    slow = Slow()
    async with serving(slow) as site:
        await site.client.send_all(GET)
        await slow.asked.wait()
        site.patience.strike(trio.current_time() + 2 * KEEP_ALIVE)
        await trio.testing.wait_all_tasks_blocked()
        slow.go_on.set()
        assert await site.answer() == (200, b"hello")


async def test_draining_ends_idle_connections_now_and_busy_ones_behind_their_answer() -> None:
    slow = Slow()
    async with serving(hello) as idle, serving(slow) as busy:
        await busy.client.send_all(GET)
        await slow.asked.wait()
        await idle.server.drain()
        await busy.server.drain()
        assert await idle.ends()
        slow.go_on.set()
        assert await busy.answer() == (200, b"hello")
        assert await busy.ends()


async def test_an_application_learns_that_its_client_has_gone() -> None:
    slow = Slow()
    async with serving(slow) as site:
        await site.client.send_all(GET)
        await slow.asked.wait()
        assert not slow.told.is_set()
        await site.client.aclose()
        await slow.told.wait()
        slow.go_on.set()


async def test_a_whole_answer_is_not_a_lost_client() -> None:
    slow = Slow()
    slow.go_on.set()
    async with serving(slow) as site:
        await site.client.send_all(GET)
        await site.answer()
        await trio.testing.wait_all_tasks_blocked()
        assert not slow.told.is_set()


async def test_a_body_that_nobody_reads_holds_up_no_end() -> None:
    slow = Slow()
    async with serving(slow) as site:

        async def post() -> None:
            head = GET.replace(b"GET", b"POST")[:-2] + b"content-length: 9000000\r\n\r\n"
            with suppress(trio.BrokenResourceError):
                await site.client.send_all(head + bytes(9_000_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(post)
            await trio.testing.wait_all_tasks_blocked()  # what may wait for the application does
            slow.go_on.set()
            await site.over.wait()


# ---- parts --------------------------------------------------------------------------------------


async def test_an_inbox_holds_up_its_sender_and_tells_the_end_for_ever() -> None:
    inbox, gone = _Inbox(2), trio.Event()
    put: list[int] = []

    async def sender() -> None:
        for number in range(4):
            await inbox.put({"type": "http.request", "body": bytes([number]), "more_body": True})
            put.append(number)
        await inbox.put({"type": "http.disconnect"})

    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender)
            await trio.testing.wait_all_tasks_blocked()
            assert put == [0, 1]
            got = [(await inbox.receive())["body"] for _ in range(4)]
            assert got == [b"\0", b"\1", b"\2", b"\3"]
            for _ in range(2):
                assert await inbox.receive() == {"type": "http.disconnect"}
        inbox.when_gone(gone.set)
        assert gone.is_set(), "who asks late is told at once"


def test_the_common_headers_are_of_their_second(monkeypatch: pytest.MonkeyPatch) -> None:
    config, now = _Config(), 1_000_000_000.5
    for module in ("acp_gateway.transports.http_server", "hypercorn.config"):
        monkeypatch.setattr(f"{module}.time", lambda: now)
    first = config.response_headers("h11")
    assert config.response_headers("h11") is first
    assert (b"date", b"Sun, 09 Sep 2001 01:46:40 GMT") in first
    now += 1
    assert (b"date", b"Sun, 09 Sep 2001 01:46:41 GMT") in config.response_headers("h11")


async def test_messages_in_parts_stay_whole_and_in_order() -> None:
    """Also with several writers, a full socket, and a writer that is cancelled."""
    ours, theirs = (trio.socket.from_stdlib_socket(each) for each in socket.socketpair())
    peer, client = PeerStream(trio.SocketStream(ours), b"", 5), trio.SocketStream(theirs)
    size, got = 100_000, bytearray()

    async def write(letter: bytes) -> None:
        await peer.send_at_once(letter * size, letter.upper() * size, letter)

    with trio.fail_after(DEADLINE):
        async with peer, client, trio.open_nursery() as nursery:
            for letter in (b"a", b"b", b"c"):
                nursery.start_soon(write, letter)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                while len(got) < 3 * (2 * size + 1):
                    got += await client.receive_some(65536)
    runs = [(match[0][:1], len(match[0])) for match in re.finditer(rb"(.)\1*", bytes(got))]
    whole = [[(each, size), (each.upper(), size), (each, 1)] for each in (b"a", b"b", b"c")]
    assert sorted(runs[at : at + 3] for at in (0, 3, 6)) == whole
