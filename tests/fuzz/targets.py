"""What must hold for any bytes: one function for each parser, which raises when it does not.

A parser may refuse with the errors that it documents; everything else that comes out is a finding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from acp_gateway.core.envelope import sse_envelopes
from acp_gateway.core.event_ring import Kind, Record
from acp_gateway.core.path_boundary import absolute, client_path, inside
from acp_gateway.protocol.errors import ErrorKind, FileError, GatewayError
from acp_gateway.token_store import token_digest
from acp_gateway.transports.guards import OPEN_PATHS, Head, Policy, decide
from acp_gateway.wire import large_line
from acp_gateway.wire.json_codec import JsonError, dumps, loads, valid_utf8
from acp_gateway.wire.jsonrpc import (
    InvalidMessage,
    Notification,
    Request,
    classify,
    error_bytes,
    is_id,
    open_line,
    params_of,
    peek_update,
    result_bytes,
)
from acp_gateway.wire.ndjson import LineSplitter
from conformance.sse import SseParser

ROOT = PurePosixPath("/ws")
PORT = 4170
TOKEN = "let-me-in"
HEADERS = ("host", "origin", "authorization", "sec-websocket-protocol", "x-other")


def cut(data: bytes, sizes: bytes) -> Iterator[bytes]:
    """``data`` in pieces whose sizes these bytes tell."""
    at, turn = 0, 0
    while at < len(data):
        size = 1 + (sizes[turn % len(sizes)] if sizes else len(data))
        yield data[at : at + size]
        at += size
        turn += 1


def ndjson(data: bytes) -> None:
    """Any cut gives the same lines; what is too long is dropped and counted, and kept nowhere."""
    longest, sizes, text = 1 + data[0] % 32 if data else 1, data[1:4], data[4:]
    splitter = LineSplitter(longest)
    found: list[bytes] = []
    for piece in cut(text, sizes):
        found += splitter.feed(piece)
        assert sum(map(len, splitter._pieces)) <= longest
    *lines, rest = text.split(b"\n")
    assert found == [line for line in lines if len(line) <= longest]
    assert splitter.dropped == sum(len(line) > longest for line in (*lines, rest))
    assert splitter.rest() == (rest if len(rest) <= longest else b"")


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: numbers that no JSON can hold are null, and types count."""
    if isinstance(one, float) and not math.isfinite(one):
        return other is None
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def _decoded(line: bytes) -> Any:
    """By the standard library; `JsonError` when it is no JSON."""

    def constant(name: str) -> Any:
        raise JsonError(name)

    try:
        return json.loads(line.decode(), parse_constant=constant)
    except (ValueError, RecursionError) as exc:
        raise JsonError(str(exc)) from None


def json_rpc(data: bytes) -> None:
    """Values survive, messages are classified or refused, and a peek tells what the whole says."""
    line = data.replace(b"\n", b" ")
    try:
        value = loads(line)
    except JsonError:
        value = None
    else:
        assert same(value, loads(dumps(value)))
        assert b"\n" not in dumps(value)
        answer, refused = None, False
        try:
            message = classify(value)
        except InvalidMessage as exc:
            answer = loads(error_bytes(exc.id, {"code": -32600, "message": exc.reason}))
            refused = True
        else:
            assert not isinstance(message, Request) or loads(result_bytes(message.id, 1))
            if isinstance(message, Request | Notification):
                assert message.method == value["method"]
        assert not refused or (is_id(answer["id"]) and answer["error"]["message"])
    try:
        opened = open_line(line)
    except InvalidMessage:
        opened = None
    else:
        opened.params_object()
        opened.error_object()
    update = peek_update(line)
    if update is None:
        return
    line = valid_utf8(line)  # as the session does before it keeps a line
    assert opened is not None, "peeked at, but cannot be opened"
    assert opened.method == "session/update" and not bytes(opened.id)
    params = opened.params_object()
    assert (params.get("sessionId", ""), params["update"].get("sessionUpdate", "")) == update
    assert loads(params_of(line)) is not None
    try:
        whole = _decoded(line)
    except JsonError:
        return
    assert whole["params"].get("sessionId", "") == update[0], "another decoder reads another id"


@contextmanager
def small_pieces() -> Iterator[None]:
    """Lines are large, and texts are cut, at sizes that a search reaches."""
    known = {name: getattr(large_line, name) for name in ("SPLIT_BYTES", "_HEAD", "_NEAR")}
    try:
        large_line.SPLIT_BYTES, large_line._HEAD, large_line._NEAR = 48, 160, 24  # type: ignore[misc]
        yield
    finally:
        for name, value in known.items():
            setattr(large_line, name, value)


def large(data: bytes) -> None:
    """A line in pieces comes out whole or as texts that make up its own; or it is refused."""
    sizes, line = data[:4], data[4:].replace(b"\n", b" ")
    with small_pieces():
        parts = tuple(cut(line, bytes(size | 32 for size in sizes)))
        head = large_line.peek_large(parts)
        if head is None:
            return
        try:
            found = [each for each in large_line.relay(parts, head) if each is not None]
        except InvalidMessage:
            found = []
    joined = [each if isinstance(each, bytes) else each.join() for each in found]
    try:
        whole = _decoded(valid_utf8(line).replace(b"\r", b" "))
    except JsonError:
        return
    if len(joined) <= 1:
        assert not joined or same(loads(joined[0]), whole)
        return
    told = [loads(each) for each in joined]
    text = "".join(each["params"]["update"]["content"]["text"] for each in told)
    # Halves of a character may come to stand beside each other.
    assert dumps(text) == dumps(whole["params"]["update"]["content"]["text"])
    for each in told:
        each["params"]["update"]["content"]["text"] = None
    whole["params"]["update"]["content"]["text"] = None
    assert all(each == whole for each in told)


def sse(data: bytes) -> None:
    """Whatever an event holds, a strict reader gets each one, in order, wherever it is cut."""
    sizes, text = data[:3], data[3:]
    lines = [
        b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","text":%b}}'
        % dumps(each.decode(errors="surrogateescape"))
        for each in text.split(b"\0")
    ]
    records = [
        Record(Kind.UPDATE, "x", line, 1.5, "p\r\n" if number % 2 else None, None, None, number)
        for number, line in enumerate(lines, 1)
    ]
    stream = b"".join(sse_envelopes(records))
    parser = SseParser()
    events = [event for piece in cut(stream, sizes) for event in parser.feed(piece)]
    assert not parser.faults
    assert [event.id for event in events] == [str(each.id) for each in records]
    for event, line in zip(events, lines, strict=True):
        assert same(loads(event.data)["data"], loads(line)["params"])


def _head(data: bytes) -> Head:
    flags, path, query, *values = [*data.split(b"\n"), b"", b"", b""]
    headers = {
        name: value.decode("latin-1") for name, value in zip(HEADERS, values, strict=False) if value
    }
    method = "OPTIONS" if flags[:1] == b"O" else "GET"
    return Head(method, path.decode("latin-1"), query.decode("latin-1"), headers, b"u" in flags)


POLICIES = (
    Policy(port=PORT, loopback=True, bound_host="127.0.0.1", token_digest=token_digest(TOKEN)),
    Policy(
        port=PORT,
        loopback=False,
        bound_host="0.0.0.0",
        token_digest=token_digest(TOKEN),
        allow_origin=frozenset({"https://app.example"}),
    ),
)


def headers(data: bytes) -> None:
    """Nobody comes in without the token, by another name of the host, or from another's page."""
    head = _head(data)
    for policy in POLICIES:
        refusal = decide(head, policy)
        if refusal is not None:
            assert refusal.kind in (ErrorKind.AUTH_REQUIRED, ErrorKind.INVALID_REQUEST)
            assert refusal.remedy
            continue
        if policy.loopback:
            assert head.headers["host"].lower() in policy.hosts
        if "origin" in head.headers:
            host = head.headers["origin"].lower().rstrip("/").partition("://")[2]
            known = {*policy.hosts, "app.example", head.headers.get("host", "").lower()}
            assert host in known or f"{host}:{PORT}" in known
        if head.path not in OPEN_PATHS and head.method != "OPTIONS":
            said = [*head.headers.values(), head.query if head.upgrade else ""]
            # As it is, percent-encoded, or in base64.
            assert any(TOKEN in each or "%" in each or "bGV0LW1l" in each for each in said)


def path(data: bytes) -> None:
    """What is let through is an absolute, plain path; nothing is decoded on the way."""
    text = data.decode(errors="surrogateescape")
    for parse, error in ((absolute, GatewayError), (_of_client, FileError)):
        try:
            found = parse(text)
        except error:
            continue
        parts = found.parts
        assert parts[0] in ("/", "//") and ".." not in parts and "." not in parts
        assert "\0" not in str(found)
        assert set(parts[1:]) <= {*text.split("/"), *ROOT.parts}
        if inside(found, (ROOT,)) is not None:
            assert found == ROOT or str(found).startswith("/ws/")


def _of_client(text: str) -> PurePosixPath:
    return client_path(text, ROOT)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "ndjson": ndjson,
    "json_rpc": json_rpc,
    "large": large,
    "sse": sse,
    "headers": headers,
    "path": path,
}
