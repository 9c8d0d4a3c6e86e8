"""Event streams over real HTTP: replay, gaps, crowds, readers that stand still, and every end."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import trio
from gateway_process import GatewayProcess
from support.event_reader import Frame, ids, parse
from support.processes import gateway, workspace_of

DEADLINE = 60.0
EVENTS = 5000
# A stream that is left in the middle: httpcore2 does not close its own generator.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpcore2:ResourceWarning")


class Client:
    """A REST client of one gateway."""

    def __init__(self, http: httpx2.AsyncClient, site: GatewayProcess) -> None:
        self.http = http
        self.site = site

    async def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        answer = await self.http.request(method, self.site.url + path, json=body)
        assert answer.status_code == status, (answer.status_code, answer.text)
        return answer.json() if answer.content else None

    async def session(self) -> str:
        body = await self.ask("POST", "/session", {"sessionScope": "thread"})
        return str(body["sessionId"])

    async def prompt(self, session: str, text: str) -> dict[str, Any]:
        blocks = [{"type": "text", "text": text}]
        path = f"/session/{session}/prompt"
        answer: dict[str, Any] = await self.ask("POST", path, {"prompt": blocks}, 202)
        return answer

    async def say(self, session: str, text: str) -> int:
        """Prompt, and wait for the end; the id of the last event."""
        answer = await self.prompt(session, text)
        async with self.events(session, answer["lastEventId"]) as stream:
            await stream.until(lambda: stream.has("turn_complete"))
        return stream.last_id

    @asynccontextmanager
    async def events(
        self, session: str, last: int | None = None, query: str = "", epoch: str | None = None
    ) -> AsyncIterator[Stream]:
        headers = {} if last is None else {"Last-Event-ID": str(last)}
        if epoch is not None:
            headers["X-Qwen-Event-Epoch"] = epoch
        path = f"/session/{session}/events" if session else "/workspace/events"
        url = self.site.url + path + (f"?{query}" if query else "")
        async with self.http.stream("GET", url, headers=headers) as answer:
            assert answer.status_code == 200
            stream = Stream(answer)
            try:
                yield stream
            finally:
                await stream.pieces.aclose()


class Stream:
    def __init__(self, answer: httpx2.Response) -> None:
        self.answer = answer
        self.frames: list[Frame] = []
        self.ended = False
        self.pieces = answer.aiter_raw()
        self._rest = b""

    async def more(self) -> None:
        try:
            data = self._rest + await anext(self.pieces)
        except StopAsyncIteration:
            self.ended = True
            return
        whole, found, rest = data.rpartition(b"\n\n")
        self._rest = rest if found else data
        self.frames += parse(whole + found)

    async def until(self, what: Callable[[], Any]) -> None:
        while not what():
            assert not self.ended, f"it ended behind {self.names[-5:]}"
            await self.more()

    async def so_many_or_end(self, count: int) -> None:
        """``count`` frames, or the end of the turn."""
        await self.until(lambda: len(self.frames) >= count or self.has("turn_complete"))

    async def to_end(self) -> None:
        while not self.ended:
            await self.more()

    @property
    def names(self) -> list[str]:
        return [each.event for each in self.frames]

    @property
    def ids(self) -> list[int]:
        return ids(self.frames)

    @property
    def last_id(self) -> int:
        return next((each.id for each in reversed(self.frames) if each.id is not None), 0)

    def has(self, name: str) -> bool:
        return any(each.event == name for each in reversed(self.frames))

    def of(self, name: str) -> list[Any]:
        return [each.told for each in self.frames if each.event == name]


@asynccontextmanager
async def client_of(site: GatewayProcess, **how: Any) -> AsyncIterator[Client]:
    limits = httpx2.Limits(max_connections=None)
    with trio.fail_after(DEADLINE):
        async with httpx2.AsyncClient(
            trust_env=False, timeout=DEADLINE, limits=limits, **how
        ) as http:
            yield Client(http, site)


def text_of(frames: list[Frame]) -> str:
    return "".join(
        each.told["update"]["content"]["text"]
        for each in frames
        if each.event == "session_update"
        and each.told["update"]["sessionUpdate"] == "agent_message_chunk"
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway(tmp_path_factory.mktemp("events").resolve()) as made:
        yield made


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Keeps a hundred events, and lets three read."""
    home = tmp_path_factory.mktemp("small").resolve()
    with gateway(home, event_ring_size=100, max_subscribers=3) as made:
        yield made


# ---- replay -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["http/1.1", "h2c"])
async def test_a_reconnect_gets_exactly_the_suffix(site: GatewayProcess, how: str) -> None:
    h2 = how == "h2c"
    async with client_of(site, http1=not h2, http2=h2) as client:
        session = await client.session()
        last = await client.say(session, f"/chunks {EVENTS} 20")
        assert last > EVENTS
        async with client.events(session, 0) as whole:
            await whole.until(lambda: whole.has("replay_complete"))
            assert whole.answer.http_version == ("HTTP/2" if h2 else "HTTP/1.1")
            assert whole.answer.headers["content-type"] == "text/event-stream"
            assert whole.answer.headers["cache-control"] == "no-cache, no-transform"
            epoch = whole.answer.headers["x-qwen-event-epoch"]
        assert whole.ids == list(range(1, last + 1))
        assert whole.names[0] == "retry: 3000"
        numbered = {each.id: each.data for each in whole.frames if each.id is not None}
        for known in (1, 2, 63, 64, 2500, 4999, 5000, last - 1, last):
            async with client.events(session, known, epoch=epoch) as stream:
                await stream.until(lambda stream=stream: stream.has("replay_complete"))
            assert stream.ids == list(range(known + 1, last + 1))
            assert all(numbered[each.id] == each.data for each in stream.frames if each.id)
            assert stream.of("replay_complete")[0]["replayedCount"] == last - known
            assert "state_resync_required" not in stream.names
        # In the middle of a turn, cut off anywhere.
        answer = await client.prompt(session, "/chunks 3000 200")
        got: list[int] = []
        at = answer["lastEventId"]
        dice = random.Random(7)
        while not got or not stream.has("turn_complete"):
            # A new connection each time: this client never gives back the HTTP/2 window of what it
            # left unread.
            async with (
                client_of(site, http1=not h2, http2=h2) as fresh,
                fresh.events(session, at) as stream,
            ):
                stop = dice.randint(1, 400)
                await stream.until(
                    lambda stream=stream, stop=stop: (
                        len(stream.ids) >= stop or stream.has("turn_complete")
                    )
                )
            got += stream.ids
            at = max(at, stream.last_id)
        assert got == list(range(answer["lastEventId"] + 1, got[-1] + 1))
        await client.ask("DELETE", f"/session/{session}", status=204)


async def test_a_gap_is_told_and_a_load_closes_it(small: GatewayProcess) -> None:
    async with client_of(small) as client:
        session = await client.session()
        last = await client.say(session, "/chunks 3000 20")
        async with client.events(session, 7) as stream:
            await stream.until(lambda: stream.has("replay_complete"))
        # At least the newest hundred; more while somebody was still reading them.
        earliest = stream.ids[0]
        assert 8 < earliest <= last - 99
        assert stream.of("state_resync_required") == [
            {"reason": "ring_evicted", "lastDeliveredId": 7, "earliestAvailableId": earliest}
        ]
        assert stream.names.index("state_resync_required") == 1, "before the events"
        assert stream.ids == list(range(earliest, last + 1))
        body = await client.ask("POST", f"/session/{session}/load", {})
        told = [Frame(e.get("id"), e["type"], e) for e in body["compactedReplay"]]
        journal = [Frame(e.get("id"), e["type"], e) for e in body["liveJournal"]]
        text = text_of([*told, *journal])
        assert len(text) == 3000 * 20
        assert [text[n * 20 : n * 20 + 6] for n in range(3000)] == [f"{n:06d}" for n in range(3000)]
        assert body["lastEventId"] == last
        for known, epoch, reason in (
            (last + 5, None, "epoch_reset"),
            (last, "elsewhere", "epoch_reset"),
        ):
            async with client.events(session, known, epoch=epoch) as stream:
                await stream.until(lambda stream=stream: stream.has("replay_complete"))
            assert stream.of("state_resync_required")[0]["reason"] == reason
            assert stream.ids == list(range(earliest, last + 1))


async def test_the_workspace_has_a_stream_of_its_own(site: GatewayProcess) -> None:
    async with client_of(site) as client, client.events("", 0) as stream:
        session = await client.session()
        await stream.until(lambda: stream.last_id and stream.frames[-1].event == "session_created")
        await client.ask("DELETE", f"/session/{session}", status=204)
        mine = [each for each in stream.frames if each.id and each.told.get("sessionId") == session]
        while [each.event for each in mine] != ["session_created", "session_closed"]:
            await stream.more()
            mine = [e for e in stream.frames if e.id and e.told.get("sessionId") == session]
        assert stream.ids == list(range(1, stream.last_id + 1))


async def test_a_crowd_over_http(site: GatewayProcess) -> None:
    async with client_of(site) as client:
        session = await client.session()
        answer = await client.prompt(session, "/chunks 7000 50")
        first = answer["lastEventId"]
        seen: dict[int, list[int]] = {number: [] for number in range(12)}
        warned: list[str] = []

        async def visitor(number: int) -> None:
            dice, at = random.Random(number), first
            while True:
                async with client.events(session, at, "maxQueued=16") as stream:
                    await stream.so_many_or_end(dice.randint(1, 2000))
                seen[number] += stream.ids
                warned.extend({"client_evicted", "state_resync_required"} & set(stream.names))
                at = max(at, stream.last_id)
                if stream.has("turn_complete"):
                    return

        async with trio.open_nursery() as nursery:
            for number in seen:
                nursery.start_soon(visitor, number)
        assert not warned
        for got in seen.values():
            assert got == list(range(first + 1, got[-1] + 1)) and len(got) > 7000


# ---- slow readers -------------------------------------------------------------------------------


@asynccontextmanager
async def raw_stream(
    site: GatewayProcess, session: str, last: int, query: str = ""
) -> AsyncIterator[socket.socket]:
    """A connection with a small window, which nobody reads unless the test does."""
    port = int(site.url.rpartition(":")[2])
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    await sock.connect(("127.0.0.1", port))
    head = (
        f"GET /session/{session}/events?{query} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Last-Event-ID: {last}\r\n\r\n"
    )
    await sock.send(head.encode())
    try:
        yield sock  # type: ignore[misc]
    finally:
        sock.close()


def unchunked(data: bytes) -> bytes:
    """The body of a chunked response, as far as it came (RFC 9112 §7.1)."""
    _, _, rest = data.partition(b"\r\n\r\n")
    body = bytearray()
    while True:
        size, found, rest = rest.partition(b"\r\n")
        if not found or not size:
            return bytes(body)
        count = int(size, 16)
        body += rest[:count]
        if len(rest) < count + 2:
            return bytes(body)
        rest = rest[count + 2 :]


async def test_a_reader_that_stands_still_is_cut_off_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("stalled").resolve()
    with gateway(home, event_ring_size=100_000, stall_timeout=0.5) as site:
        async with client_of(site) as client:
            session = await client.session()
            # More than the sockets between us hold.
            answer = await client.prompt(session, "/chunks 24000 400")
            first = answer["lastEventId"]
            async with (
                raw_stream(site, session, first, "maxQueued=16") as stalled,
                client.events(session, first) as other,
            ):
                await other.until(lambda: other.has("turn_complete"))
                # Something has to be published once it has stood still for long enough.
                got = bytearray()
                cut_off = trio.Event()

                async def drain() -> None:
                    with trio.CancelScope() as scope:
                        await watch_status(client, session, scope)
                    while True:
                        try:
                            data = await stalled.recv(1 << 20)  # type: ignore[misc]
                        except OSError:
                            break
                        if not data:
                            break
                        got.extend(data)
                    cut_off.set()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(drain)
                    await cut_off.wait()
                assert not other.ended
            frames = parse(unchunked(bytes(got)))
            have = ids(frames)
            assert have == list(range(first + 1, have[-1] + 1))
            assert have[-1] < other.last_id, "it was never behind"
            # It comes back with what it has.
            while have[-1] < other.last_id:
                async with client.events(session, have[-1]) as back:
                    await back.until(lambda back=back: back.has("replay_complete"))
                assert back.ids, "no progress"
                have += back.ids
            assert have == list(range(first + 1, have[-1] + 1))
            whole = other.ids
            assert whole == list(range(first + 1, whole[-1] + 1))


async def watch_status(client: Client, session: str, scope: trio.CancelScope) -> None:
    """Publish until the daemon has let the stalled reader go."""
    while True:
        await client.ask("POST", f"/session/{session}/cancel", {}, 204)
        body = await client.ask("GET", "/daemon/status")
        if body_streams(body) <= 1:
            return
        await trio.sleep(0.05)


def body_streams(body: Any) -> int:
    found: list[int] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                if name == "restSseActive":
                    found.append(item)
                look(item)

    look(body)
    return found[0]


async def test_a_slow_reader_loses_nothing(site: GatewayProcess) -> None:
    async with client_of(site) as client:
        session = await client.session()
        answer = await client.prompt(session, "/chunks 30000 200")
        first = answer["lastEventId"]
        async with raw_stream(site, session, first, "maxQueued=16") as sock:
            got = bytearray()
            while b"event: turn_complete" not in got[-70_000:]:
                data = await sock.recv(64 * 1024)  # type: ignore[misc]
                assert data, "cut off"
                got += data
                await trio.sleep(0.002)  # it takes its time
        frames = parse(unchunked(bytes(got)))
        have = ids(frames)
        assert have == list(range(first + 1, have[-1] + 1)) and len(have) > 30_000
        assert "state_resync_required" not in [each.event for each in frames]


# ---- room ---------------------------------------------------------------------------------------


async def test_there_is_a_limit_of_readers(small: GatewayProcess) -> None:
    async with client_of(small) as client:
        session = await client.session()
        url = f"{small.url}/session/{session}/events"
        async with (
            client.events(session, 0),
            client.events(session, 0),
            client.events(session, 0) as third,
        ):
            refused = await client.http.get(url)
            assert refused.status_code == 429 and refused.headers["retry-after"] == "5"
            body = refused.json()
            assert (body["code"], body["limit"]) == ("subscriber_limit_exceeded", 3)
            # Opening a stream registers nobody.
            status = await client.ask("GET", f"/session/{session}/status")
            assert status["clientCount"] == 1
            await third.answer.aclose()
            while True:
                async with client.http.stream("GET", url) as again:
                    if again.status_code == 200:
                        break
                    assert again.status_code == 429


async def test_a_session_that_is_not_there(site: GatewayProcess) -> None:
    async with client_of(site) as client:
        body = await client.ask("GET", "/session/nope/events", status=404)
        assert body["code"] == "session_not_found"
        session = await client.session()
        for bad in ("15", "2049", "x"):
            path = f"/session/{session}/events?maxQueued={bad}"
            body = await client.ask("GET", path, status=400)
            assert body["code"] == "invalid_max_queued"


# ---- ends ---------------------------------------------------------------------------------------


async def test_the_snapshot_comes_first_on_a_live_stream(site: GatewayProcess) -> None:
    async with client_of(site) as client:
        session = await client.session()
        async with client.events(session, query="snapshot=1") as stream:
            await stream.until(lambda: stream.has("session_snapshot"))
            assert stream.names == ["retry: 3000", "session_snapshot"]
            (told,) = stream.of("session_snapshot")
            assert told["sessionId"] == session and told["recordingDegraded"] is False
            assert {"currentModelId", "currentApprovalMode"} <= told.keys()


@pytest.mark.parametrize("h2", [False, True], ids=["http/1.1", "h2c"])
@pytest.mark.parametrize("how", ["close", "delete", "death"])
async def test_the_last_frame_is_the_last(site: GatewayProcess, how: str, h2: bool) -> None:
    async with client_of(site, http1=not h2, http2=h2) as client:
        session = await client.session()
        await client.say(session, "/chunks 3 20")
        async with client.events(session, 0) as one, client.events(session) as two:
            await client.prompt(session, "/crash" if how == "death" else "/sleep 60")
            if how != "death":
                await one.until(lambda: "tick" in text_of(one.frames))
            if how == "close":
                await client.ask("DELETE", f"/session/{session}", status=204)
                await client.ask("DELETE", f"/session/{session}", status=404)
            elif how == "delete":
                body = await client.ask("POST", "/sessions/delete", {"sessionIds": [session]})
                assert body["removed"] == [session] and not body["errors"]
            for stream in (one, two):
                await stream.to_end()
                last = stream.frames[-1]
                assert last.event == ("session_died" if how == "death" else "session_closed")
                assert last.id == stream.last_id
                terminals = [n for n in stream.names if n in ("session_closed", "session_died")]
                assert len(terminals) == 1
            assert one.ids == list(range(1, one.last_id + 1))
            assert "turn_error" in two.names or how == "delete"
            if how == "death":
                assert last.told["reason"] == "channel_closed" and last.told["exitCode"] == 70
                body = await client.ask("POST", f"/session/{session}/load", {})
                assert body["lastEventId"] >= one.last_id
                await client.say(session, "/size 5")


async def test_a_shutdown_is_told_to_all(tmp_path_factory: pytest.TempPathFactory) -> None:
    with gateway(tmp_path_factory.mktemp("down").resolve()) as site:
        async with client_of(site) as client:
            session = await client.session()
            async with client.events(session, 0) as stream:
                await client.prompt(session, "/sleep 60")
                await stream.until(lambda: "tick" in text_of(stream.frames))
                site.process.send_signal(signal.SIGTERM)
                await stream.to_end()
            assert stream.frames[-1].event == "session_died"
            assert stream.frames[-1].told["reason"] == "daemon_shutdown"
            assert stream.of("turn_error")[0]["code"] == "daemon_shutdown"
            assert stream.ids == list(range(1, stream.last_id + 1))


async def test_after_a_crash_of_the_daemon_a_load_has_it_all(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("crash").resolve()
    with gateway(home) as site:
        async with client_of(site) as client:
            session = await client.session()
            for word in ("one", "two", "three"):
                last = await client.say(session, f"/size {len(word)}")
            async with client.events(session, 0) as stream:
                await stream.until(lambda: stream.has("replay_complete"))
                epoch = stream.answer.headers["x-qwen-event-epoch"]
                said = text_of(stream.frames)
        os.kill(site.process.pid, signal.SIGKILL)
        site.process.wait()
    with gateway(home) as site:
        async with client_of(site) as client:
            cwd = str(workspace_of(home))
            body = await client.ask("POST", f"/session/{session}/load", {"cwd": cwd})
            assert body["attached"] is False
            told = [Frame(e.get("id"), e["type"], e) for e in body["compactedReplay"]]
            journal = [Frame(e.get("id"), e["type"], e) for e in body["liveJournal"]]
            assert text_of([*told, *journal]) == said
            assert body["eventEpoch"] != epoch
            async with client.events(session, last, epoch=epoch) as stream:
                await stream.until(lambda: stream.has("replay_complete"))
            (gap,) = stream.of("state_resync_required")
            assert (gap["reason"], gap["detail"]) == ("epoch_reset", "epoch_mismatch")
            await client.say(session, "/size 6")
