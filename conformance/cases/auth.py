"""The bearer token and the ways to present it. Needs --token."""

from __future__ import annotations

import base64
import json

from conformance.context import Context
from conformance.outcome import check
from conformance.raw import RawHead
from conformance.registry import case

INITIALIZE = json.dumps(
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": 1, "clientCapabilities": {}},
    }
).encode()


async def knock(ctx: Context, authorization: str | None, query: str = "") -> RawHead | None:
    """Upgrade (ws) or POST initialize (http) with this Authorization header."""
    path = ctx.target.path + query
    if ctx.transport == "ws":
        return await ctx.upgrade(path, Authorization=authorization)
    headers = {
        "Host": ctx.target.authority,
        "Content-Type": "application/json",
        "Content-Length": str(len(INITIALIZE)),
    }
    if authorization is not None:
        headers["Authorization"] = authorization
    return await (await ctx.raw()).request("POST", path, headers, INITIALIZE)


def answered(head: RawHead | None, status: int) -> None:
    check(head is not None and head.status == status, f"{head and head.status} is not {status}")


@case("AUTH-001")
async def no_token(ctx: Context) -> None:
    ctx.need_token()
    answered(await knock(ctx, None), 401)


@case("AUTH-002")
async def wrong_token(ctx: Context) -> None:
    token = ctx.need_token()
    for wrong in (f"{token}x", token[:-1], "x"):
        answered(await knock(ctx, f"Bearer {wrong}"), 401)
    answered(await knock(ctx, f"Basic {token}"), 401)


@case("AUTH-003")
async def scheme(ctx: Context) -> None:
    token = ctx.need_token()
    for scheme in ("Bearer", "bearer", "BEARER"):
        answered(await knock(ctx, f"{scheme} {token}"), 101 if ctx.transport == "ws" else 200)


@case("AUTH-004")
async def subprotocol(ctx: Context) -> None:
    token = ctx.need_token()
    encoded = base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
    head = await ctx.upgrade(
        Authorization=None, Sec_WebSocket_Protocol=f"qwen-ws, qwen-bearer.{encoded}"
    )
    answered(head, 101)
    chosen = head.headers.get("sec-websocket-protocol") if head else None
    check(chosen == "qwen-ws", f"{chosen!r} was chosen")
    wrong = base64.urlsafe_b64encode(b"wrong").decode().rstrip("=")
    head = await ctx.upgrade(
        Authorization=None, Sec_WebSocket_Protocol=f"qwen-ws, qwen-bearer.{wrong}"
    )
    answered(head, 401)


@case("AUTH-005")
async def upgrade_query(ctx: Context) -> None:
    token = ctx.need_token()
    answered(await ctx.upgrade(f"{ctx.target.path}?token={token}", Authorization=None), 101)
    answered(await ctx.upgrade(f"{ctx.target.path}?token=wrong", Authorization=None), 401)


@case("AUTH-006")
async def request_query(ctx: Context) -> None:
    token = ctx.need_token()
    connection = await ctx.raw()
    head = await connection.request(
        "POST",
        f"{ctx.target.path}?token={token}",
        {
            "Host": ctx.target.authority,
            "Content-Type": "application/json",
            "Content-Length": str(len(INITIALIZE)),
        },
        INITIALIZE,
    )
    answered(head, 401)
