"""WebSocket: handshake, frames and close codes."""

from __future__ import annotations

import json

import trio

from conformance.context import Context
from conformance.outcome import Failure, Skip, check
from conformance.raw import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    RawConnection,
    RawWebSocket,
    upgrade_headers,
)
from conformance.registry import case

LIST = json.dumps({"jsonrpc": "2.0", "id": "list", "method": "session/list", "params": {}}).encode()
TOO_LARGE = 11 * 1024 * 1024
INITIALIZE_PATIENCE = 45.0
"""More than the 30 s that servers in the field leave for initialize."""


@case("WS-001")
async def connection_id(ctx: Context) -> None:
    ids = {(await ctx.raw_ws(initialize=False)).headers.get("acp-connection-id") for _ in range(2)}
    check(all(ids) and len(ids) == 2, f"Acp-Connection-Id of two connections: {ids}")


@case("WS-002")
async def binary(ctx: Context) -> None:
    socket = await ctx.raw_ws()
    await socket.frame(BINARY, LIST)
    await socket.frame(BINARY, b"\xff\x00\xfe")
    await socket.message({"jsonrpc": "2.0", "id": "after", "method": "conformance/fence"})
    answer = await socket.next_json()
    check(answer.get("id") == "after", f"a binary frame was answered: {answer}")


@case("WS-003")
async def fragments(ctx: Context) -> None:
    socket = await ctx.raw_ws()
    await socket.frame(TEXT, LIST[:7], fin=False)
    await socket.frame(0, LIST[7:20], fin=False)
    await socket.frame(0, b"", fin=False)
    await socket.frame(0, LIST[20:])
    await socket.answer_to("list")


@case("WS-004")
async def ping(ctx: Context) -> None:
    socket = await ctx.raw_ws()
    await socket.frame(PING, b"conformance \xff")
    opcode, payload = await socket.next_frame()
    check(opcode == PONG and payload == b"conformance \xff", f"opcode {opcode}, {payload!r}")


@case("WS-015")
async def ping_between_fragments(ctx: Context) -> None:
    socket = await ctx.raw_ws()
    await socket.frame(TEXT, LIST[:7], fin=False)
    await socket.frame(PING, b"x")
    opcode, payload = await socket.next_frame()
    check(opcode == PONG and payload == b"x", f"opcode {opcode}, {payload!r}")
    await socket.frame(0, LIST[7:])
    await socket.answer_to("list")


async def closes_with(socket: RawWebSocket, code: int) -> None:
    seen = await socket.close_code()
    check(seen == code, f"close code {seen} instead of {code}")


@case("WS-005")
async def too_large(ctx: Context) -> None:
    socket = await ctx.raw_ws()
    codes: list[int | None] = []

    async with trio.open_nursery() as nursery:

        async def send() -> None:
            try:
                await socket.frame(TEXT, b'"' + b"x" * TOO_LARGE + b'"')
            except Failure:
                return

        nursery.start_soon(send)
        codes.append(await socket.close_code())
        nursery.cancel_scope.cancel()
    check(codes == [1009], f"close code {codes[0]} instead of 1009")
    await (await ctx.link()).fence()


@case("WS-006")
async def no_key(ctx: Context) -> None:
    head = await ctx.upgrade(Sec_WebSocket_Key=None)
    check(head is not None and head.status == 400, f"answered {head and head.status}")


@case("WS-007")
async def subprotocol(ctx: Context) -> None:
    for offer, wanted in (
        ("acp.v1", ("acp.v1",)),
        ("acp.v1, other", ("acp.v1", "other")),
        ("qwen-ws, qwen-bearer.eA", ("qwen-ws",)),
    ):
        if "bearer" in offer and ctx.target.token:
            continue
        head = await ctx.upgrade(Sec_WebSocket_Protocol=offer)
        check(head is not None and head.status == 101, f"{offer}: {head and head.status}")
        chosen = head.headers.get("sec-websocket-protocol") if head else None
        check(chosen in wanted, f"{offer}: {chosen!r} was chosen")


@case("WS-008")
async def no_subprotocol(ctx: Context) -> None:
    socket = await ctx.raw_ws(initialize=False)
    chosen = socket.headers.get("sec-websocket-protocol")
    check(chosen is None, f"{chosen!r} was chosen")


@case("WS-009")
async def invalid_utf8(ctx: Context) -> None:
    socket = await ctx.raw_ws()
    await socket.frame(TEXT, b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}')
    await closes_with(socket, 1007)


@case("WS-010")
async def unmasked(ctx: Context) -> None:
    socket = await ctx.raw_ws()
    await socket.frame(TEXT, LIST, masked=False)
    await closes_with(socket, 1002)


@case("WS-021")
async def reserved(ctx: Context) -> None:
    socket = await ctx.raw_ws()
    await socket.frame(3, b"x")
    await closes_with(socket, 1002)
    socket = await ctx.raw_ws()
    await socket.frame(TEXT, LIST, rsv=2)
    await closes_with(socket, 1002)


@case("WS-011", slow=True, timeout=60)
async def no_initialize(ctx: Context) -> None:
    socket = await ctx.raw_ws(initialize=False)
    with trio.move_on_after(INITIALIZE_PATIENCE):
        await socket.close_code()
        return
    raise Failure(f"still open after {INITIALIZE_PATIENCE:g} s without initialize")


async def refused(ctx: Context, **changes: str | None) -> None:
    head = await ctx.upgrade(**changes)
    check(head is not None and head.status == 403, f"{changes} was answered {head and head.status}")


@case("WS-012")
async def foreign_host(ctx: Context) -> None:
    ctx.need_loopback()
    for host in ("evil.example", f"evil.example:{ctx.target.port}", "127.0.0.1.evil.example"):
        await refused(ctx, Host=host)


@case("WS-013")
async def foreign_origin(ctx: Context) -> None:
    ctx.need_loopback()
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        await refused(ctx, Origin=origin)


@case("WS-014")
async def own_origin(ctx: Context) -> None:
    ctx.need_loopback()
    socket = await ctx.raw_ws(Origin=ctx.target.http_base)
    await socket.fence()


@case("WS-016")
async def header_lists(ctx: Context) -> None:
    socket = await ctx.raw_ws(Upgrade="WebSocket", Connection="keep-alive, upgrade")
    await socket.fence()


@case("WS-017")
async def close(ctx: Context) -> None:
    socket = await ctx.raw_ws()
    await socket.frame(CLOSE, b"\x03\xe8bye")
    await closes_with(socket, 1000)


@case("WS-018")
async def one_message_a_frame(ctx: Context) -> None:
    socket = await ctx.raw_ws()
    for number in range(30):
        await socket.message({"jsonrpc": "2.0", "id": number, "method": "conformance/fence"})
    seen: set[int] = set()
    while len(seen) < 30:
        # A frame with two messages is no JSON, which fails here.
        message = await socket.next_json()
        check(message.get("jsonrpc") == "2.0", f"no JSON-RPC: {message}")
        if "method" not in message:
            seen.add(message["id"])


@case("WS-019")
async def query(ctx: Context) -> None:
    head = await ctx.upgrade(ctx.target.path + "?x=1&y=%2F")
    check(head is not None and head.status == 101, f"answered {head and head.status}")


@case("WS-020")
async def deflate(ctx: Context) -> None:
    offer = "permessage-deflate; client_max_window_bits"
    socket = await ctx.raw_ws(initialize=False, Sec_WebSocket_Extensions=offer)
    if socket.headers.get("sec-websocket-extensions"):
        raise Skip("the server compresses, which the suite does not read")
    await socket.initialize()
    await socket.fence()


@case("WS-022")
async def unknown_path(ctx: Context) -> None:
    head = await ctx.upgrade("/conformance/no/such/path")
    check(head is None or 400 <= head.status < 500, f"answered {head and head.status}")


@case("WS-023")
async def after_a_request(ctx: Context) -> None:
    connection: RawConnection = await ctx.raw()
    host = {"Host": ctx.target.authority, **ctx.target.auth_headers}
    first = await connection.request("GET", "/health", host)
    check(first is not None and first.status == 200, f"/health: {first and first.status}")
    head = await connection.request("GET", ctx.target.path, upgrade_headers(ctx.target))
    if head is None or head.status != 101:
        raise Failure(f"the upgrade was answered {head and head.status}")
    socket = RawWebSocket(connection, head)
    await socket.initialize()
    await socket.fence()
