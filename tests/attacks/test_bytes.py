"""Requests, frames and messages that no decent program sends."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import ExitStack, closing, suppress

import pytest
from support.attacked import DEADLINE, UPGRADE, Site, ask
from websockets.exceptions import ConnectionClosed

BODY = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":1}}'
SMUGGLED = b"GET /daemon/status HTTP/1.1\r\nHost: evil.example\r\n\r\n"

SMUGGLING: dict[str, tuple[str, ...]] = {
    "two lengths": (f"Content-Length: {len(BODY)}", "Content-Length: 0"),
    "two lengths in one": (f"Content-Length: {len(BODY)}, 0",),
    "a signed length": (f"Content-Length: +{len(BODY)}",),
    "a negative length": ("Content-Length: -1",),
    "a length in hex": ("Content-Length: 0x10",),
    "a length with a blank": ("Content-Length: 1 0",),
    "a huge length": ("Content-Length: 99999999999999999999999",),
    "length and chunked": ("Content-Length: 5", "Transfer-Encoding: chunked"),
    "chunked and length": ("Transfer-Encoding: chunked", "Content-Length: 5"),
    "chunked twice": ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "an unknown coding": ("Transfer-Encoding: xchunked",),
    "chunked, then identity": ("Transfer-Encoding: chunked, identity",),
    "chunked behind a tab": ("Transfer-Encoding:\tchunked", "Content-Length: 5"),
    "a blank before the colon": ("Transfer-Encoding : chunked", "Content-Length: 5"),
    "a folded header": ("X-A: b\r\n Transfer-Encoding: chunked", "Content-Length: 5"),
    "a bare CR": ("X-A: b\rTransfer-Encoding: chunked", "Content-Length: 5"),
    "a NUL": ("X-A: b\0c", "Content-Length: 5"),
}


@pytest.mark.parametrize("lines", SMUGGLING.values(), ids=SMUGGLING)
def test_smuggling(site: Site, lines: tuple[str, ...]) -> None:
    """Whatever the head says: one request, and what is behind it is never one more that is let
    in."""
    answer = site.raw(site.head("POST /acp HTTP/1.1", *lines), b"0\r\n\r\n" + SMUGGLED)
    statuses = site.statuses(answer)
    assert statuses[0] >= 400
    assert all(status >= 400 for status in statuses)
    assert b"workspaceCwd" not in answer


@pytest.mark.parametrize("token", ["h2c", "h2c, websocket", "TLS/1.3", "foo"])
def test_a_switch_to_something_that_a_proxy_cannot_see_into(site: Site, token: str) -> None:
    said = (f"Upgrade: {token}", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk")
    answer = site.raw(site.head("GET /daemon/status HTTP/1.1", *said))
    assert 101 not in site.statuses(answer), answer[:100]


CHUNKS: dict[str, bytes] = {
    "no size": b"\r\nabc\r\n",
    "not hex": b"zz\r\nabc\r\n",
    "a sign": b"-5\r\nabcde\r\n0\r\n\r\n",
    "a huge size": b"fffffffffffffffff\r\nabc",
    "too long an extension": b"5;" + b"x" * 200_000 + b"\r\nabcde\r\n0\r\n\r\n",
    "no end": b"5\r\nabcdeXX0\r\n\r\n",
    "endless trailers": b"0\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n",
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_chunks(site: Site, chunks: bytes) -> None:
    head = site.head("POST /acp HTTP/1.1", "Transfer-Encoding: chunked")
    answer = site.raw(head, chunks + SMUGGLED)
    assert all(status >= 400 for status in site.statuses(answer))
    assert b"workspaceCwd" not in answer


HEADS: dict[str, bytes] = {
    "nothing but blank lines": b"\r\n" * 10_000,
    "a long target": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
    "a method with a NUL": b"G\0T / HTTP/1.1\r\n\r\n",
    "an unknown version": b"GET / HTTP/9.9\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "TLS to a plain port": bytes.fromhex("16030100a5010000a10303") + os.urandom(160),
    "HTTP/2 with rubbish": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(2000),
    "HTTP/2 with a huge frame": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff" + bytes(6),
    "CONNECT": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nHost: localhost\r\nCookie: a=b\r\n\r\n",
    "a target that is no path": b"GET evil HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
}


@pytest.mark.parametrize("data", HEADS.values(), ids=HEADS)
def test_heads(site: Site, data: bytes) -> None:
    answer = site.raw(data)
    assert all(status >= 400 for status in site.statuses(answer))
    assert b"Traceback" not in answer


def test_slow_heads_bodies_and_frames(site: Site) -> None:
    """Hundreds that say a byte now and then: the user is served, and in the end they are gone."""
    upgrade = site.head("GET /acp HTTP/1.1", *UPGRADE)
    begun = {
        "heads": b"GET /daemon/status HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ",
        "bodies": site.head(
            "POST /acp HTTP/1.1", "Content-Length: 1000", "Content-Type: application/json"
        ),
        "frames": upgrade + b"\x81\xfe\x03\xe8\0\0\0\0{",
    }
    with ExitStack() as stack:
        streams = []
        for data in begun.values():
            for _ in range(60):
                stream = socket.create_connection(("127.0.0.1", site.port), DEADLINE)
                streams.append(stack.enter_context(closing(stream)))
                stream.sendall(data)
        for _ in range(3):
            site.turn()
            for stream in streams:
                try:
                    stream.sendall(b"a")
                except OSError:
                    continue


def test_a_head_that_never_ends_is_cut(site: Site) -> None:
    began = time.monotonic()
    answer = site.raw(b"GET / HTTP/1.1\r\nHost: loc", end=False, seconds=60)
    assert time.monotonic() - began < 30
    assert not answer or site.statuses(answer) == [408]


OVERSIZED = {
    "a body": ("POST /session", 11 * 1024 * 1024),
    "a message": ("POST /acp", 11 * 1024 * 1024),
    "a file": ("POST /file/write", 11 * 1024 * 1024),
}


@pytest.mark.parametrize(("line", "size"), OVERSIZED.values(), ids=OVERSIZED)
def test_oversized_bodies(site: Site, line: str, size: int) -> None:
    for said in ((f"Content-Length: {size}",), ("Transfer-Encoding: chunked",)):
        head = site.head(f"{line} HTTP/1.1", "Content-Type: application/json", *said)
        body = b"[" * size
        if "chunked" in said[0]:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
        answer = site.raw(head, body, end=False)
        assert site.statuses(answer) == [413], answer[:200]


@pytest.mark.parametrize("parts", [1, 12])
def test_an_oversized_message_in_frames(site: Site, parts: int) -> None:
    piece = "y" * ((12 << 20) // parts)
    with site.greeted() as ws:
        with suppress(ConnectionClosed):
            ws.send(piece if parts == 1 else [piece] * parts)
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(DEADLINE)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


FRAMES: dict[str, bytes] = {
    "unmasked": b"\x81\x02{}",
    "a reserved bit": b"\xf1\x80\0\0\0\0",
    "a reserved opcode": b"\x83\x80\0\0\0\0",
    "a control frame in parts": b"\x09\x80\0\0\0\0",
    "a long ping": b"\x89\xfe\x00\xff\0\0\0\0" + b"x" * 255,
    "a continuation of nothing": b"\x80\x80\0\0\0\0",
    "not UTF-8": b"\x81\x82\0\0\0\0\xff\xfe",
    "a frame of 2^63 bytes": b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
    "a length longer than needed": b"\x81\xfe\0\x02\0\0\0\0{}",
    "half a close": b"\x88\x81\0\0\0\0\x03",
    "a close code that no one may send": b"\x88\x82\0\0\0\0" + struct.pack("!H", 1006),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_frames(site: Site, frame: bytes) -> None:
    upgrade = site.head("GET /acp HTTP/1.1", *UPGRADE)
    answer = site.raw(upgrade, frame)
    assert site.statuses(answer) == [101]
    assert b'"result"' not in answer


def _deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


BOMBS: dict[str, bytes] = {
    "deep arrays": _deep(200_000),
    "deep objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "deep params": b'{"jsonrpc":"2.0","id":1,"method":"x","params":' + _deep(100_000) + b"}",
    "half a nest": b"[" * 1_000_000,
    "a number of a million digits": b'{"jsonrpc":"2.0","id":'
    + b"9" * 1_000_000
    + b',"method":"x"}',
    "a huge exponent": b'{"jsonrpc":"2.0","id":1e999999999,"method":"x"}',
    "a long fraction": b'{"jsonrpc":"2.0","id":0.' + b"1" * 1_000_000 + b',"method":"x"}',
    "the same key again and again": b'{"jsonrpc":"2.0",' + b'"id":1,' * 100_000 + b'"method":"x"}',
    "two methods": b'{"jsonrpc":"2.0","id":1,"method":"initialize","method":"session/list"}',
    "many keys": b"{%b}" % b",".join(b'"%d":0' % n for n in range(200_000)),
    "a lone surrogate": b'{"jsonrpc":"2.0","id":"\\ud83d","method":"\\udc00"}',
    "a surrogate in UTF-8": b'{"jsonrpc":"2.0","id":"\xed\xa0\x80","method":"x"}',
    "overlong UTF-8": b'{"jsonrpc":"2.0","id":1,"method":"\xc0\xaf"}',
    "not UTF-8": b"\xff\xfe{\0}\0",
    "NaN": b'{"jsonrpc":"2.0","id":NaN,"method":"x"}',
    "a comment": b'{"jsonrpc":"2.0"/**/,"id":1,"method":"x"}',
    "a batch": b"[%b]" % b",".join([BODY] * 1000),
    "an empty batch": b"[]",
    "an object as id": b'{"jsonrpc":"2.0","id":{"a":1},"method":"x"}',
    "prototype": b'{"__proto__":{"admin":true},"constructor":{"prototype":{}}}',
    "a NUL in the method": b'{"jsonrpc":"2.0","id":1,"method":"session/list\\u0000"}',
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_json_bombs(site: Site, bomb: bytes) -> None:
    """Refused on each way in; the connection that sent one goes on, where it can be told."""
    for path in ("/acp", "/session", "/file/write"):
        headers = {"content-type": "application/json"}
        answer = site.http.post(path, content=bomb, headers=headers)
        assert answer.status_code in (400, 200, 202, 422, 501), (path, answer.text[:300])
        assert answer.status_code != 200 or path == "/session" or b"initialize" in bomb
        assert "Traceback" not in answer.text
        if answer.status_code == 200 and path == "/session":
            site.http.delete(f"/session/{answer.json()['sessionId']}")
        if connection := answer.headers.get("acp-connection-id"):
            site.http.delete("/acp", headers={"acp-connection-id": connection})
    try:
        text = bomb.decode()
    except UnicodeDecodeError:
        return  # no text frame can carry it: see the frames
    with site.greeted() as ws:
        ws.send(text)
        assert isinstance(ask(ws, 7, "session/list", {})["sessions"], list)
