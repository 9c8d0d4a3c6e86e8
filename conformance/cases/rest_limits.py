"""Rate limits and CORS: they need a server that was started with them.

RATE cases use up the reads of a whole window: run them alone (``--only RATE``). CORS cases need
``--origin``, an origin that the server allows.
"""

from __future__ import annotations

import time
from typing import Any

from conformance.cases.rest_errors import JSON, raw_status
from conformance.context import Context
from conformance.outcome import Failure, Skip, check
from conformance.registry import case
from conformance.rest.answer import Answer
from conformance.rest.api import Api, unknown_id

MOST_READS = 2000
"""More are not tried before the limit counts as absent."""
METHODS = {"GET", "POST", "PATCH", "DELETE", "OPTIONS"}
SENT = {"authorization", "content-type", "x-qwen-client-id", "last-event-id", "x-qwen-event-epoch"}
READ = {"retry-after", "x-qwen-event-epoch", "x-qwen-sse-stream-id"}


async def exhausted(ctx: Context) -> tuple[Api, Answer]:
    """The first read that is refused."""
    api = await ctx.rest()
    api.need("rate_limit")
    for _ in range(MOST_READS):
        answer = await api.call("GET", "/capabilities")
        if answer.status == 429:
            return api, answer
        check(answer.status == 200, f"{answer}")
        limits = [name for name in answer.headers if name.startswith("x-ratelimit")]
        check(not limits, f"headers {limits} on success")
    raise Failure(f"{MOST_READS} reads were not limited")


@case("RATE-001", timeout=60)
async def refusal(ctx: Context) -> None:
    _, answer = await exhausted(ctx)
    body = answer.refused(429)
    check(body.get("code") == "rate_limit_exceeded", f"code {body.get('code')!r}")
    check(body.get("tier") == "read", f"tier {body.get('tier')!r}")
    wait = body.get("retryAfterMs")
    check(isinstance(wait, int) and wait > 0, f"retryAfterMs {wait!r}")
    after = int(answer.headers.get("retry-after", "-1"))
    check(0 <= after * 1000 - int(wait or 0) < 1000, f"Retry-After {after} for {wait} ms")


@case("RATE-002", timeout=60)
async def headers(ctx: Context) -> None:
    _, answer = await exhausted(ctx)
    told = {name: answer.headers.get(f"x-ratelimit-{name}") for name in ("limit", "remaining")}
    check(told["remaining"] == "0" and int(told["limit"] or 0) > 0, f"{told}")
    reset = int(answer.headers.get("x-ratelimit-reset", "0"))
    wait = int(answer.headers.get("retry-after", "0"))
    check(abs(reset - time.time() - wait) < 5, f"X-RateLimit-Reset {reset}, Retry-After {wait}")


@case("RATE-003", timeout=60)
async def exempt(ctx: Context) -> None:
    api, _ = await exhausted(ctx)
    tries = (
        ("GET", "/health"),
        ("OPTIONS", "/capabilities"),
        ("POST", f"/session/{unknown_id()}/heartbeat"),
        ("GET", f"/session/{unknown_id()}/events"),
    )
    for method, path in tries:
        answer = await api.call(method, path)
        check(answer.status != 429, f"{method} {path} was limited")


@case("RATE-004", timeout=60)
async def unauthorized(ctx: Context) -> None:
    ctx.need_token()
    await exhausted(ctx)
    async with ctx.client(auth=False) as client:
        response = await client.get("/capabilities")
        check(response.status_code == 401, f"without a token: {response.status_code}")


@case("RATE-005", timeout=60)
async def another_tier(ctx: Context) -> None:
    api, _ = await exhausted(ctx)
    answer = await api.call("POST", f"/session/{unknown_id()}/prompt", {"prompt": []})
    if answer.status == 429:
        check(answer.body.get("tier") == "prompt", f"{answer}")


@case("RATE-006", timeout=60)
async def no_other_caller(ctx: Context) -> None:
    api, _ = await exhausted(ctx)
    for headers in ({"X-Qwen-Client-Id": "somebody-else"}, {"X-Forwarded-For": "192.0.2.1"}):
        answer = await api.call("GET", "/capabilities", headers=headers)
        check(answer.status == 429, f"with {headers}: {answer.status}")


# --- CORS


def allowed(ctx: Context) -> str:
    if ctx.target.origin is None:
        raise Skip("run with --origin, one that the server allows")
    return ctx.target.origin


def listed(answer: Any, name: str) -> set[str]:
    text = answer.headers.get(f"access-control-{name}", "")
    return {each.strip().lower() for each in text.split(",")}


def readable(answer: Any, origin: str, what: str) -> None:
    """Does the answer carry all that lets a page of the origin read it?"""
    told = answer.headers.get("access-control-allow-origin")
    check(told == origin, f"{what}: Access-Control-Allow-Origin {told!r}")
    vary = {each.strip().lower() for each in answer.headers.get("vary", "").split(",")}
    check("origin" in vary, f"{what}: Vary {vary}")
    methods = {each.upper() for each in listed(answer, "allow-methods")}
    check(methods >= METHODS, f"{what}: methods {methods}")
    check(listed(answer, "allow-headers") >= SENT, f"{what}: a header is not allowed")
    check(listed(answer, "expose-headers") >= READ, f"{what}: a header is not exposed")
    secret = "access-control-allow-credentials" in answer.headers
    check(not secret, f"{what}: credentials are allowed")


@case("CORS-001")
async def every_answer(ctx: Context) -> None:
    origin = allowed(ctx)
    api = await ctx.rest()
    tries: tuple[tuple[str, str, int], ...] = (
        ("GET", "/capabilities", 200),
        ("GET", f"/session/{unknown_id()}/status", 404),
    )
    for method, path, status in tries:
        answer = await api.call(method, path, headers={"Origin": origin})
        check(answer.status == status, f"{answer}")
        readable(answer, origin, f"{method} {path}")


@case("CORS-002")
async def preflight(ctx: Context) -> None:
    origin = allowed(ctx)
    await ctx.rest()
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    async with ctx.client(auth=False) as client:
        answer = await client.request("OPTIONS", "/session", headers=asks)
        check(answer.status_code == 204, f"answered {answer.status_code}")
        readable(answer, origin, "the preflight")


@case("CORS-003")
async def refusal_of_a_token(ctx: Context) -> None:
    origin = allowed(ctx)
    ctx.need_token()
    await ctx.rest()
    async with ctx.client(auth=False) as client:
        answer = await client.get("/capabilities", headers={"Origin": origin})
        check(answer.status_code == 401, f"answered {answer.status_code}")
        readable(answer, origin, "the 401")


@case("CORS-004")
async def null(ctx: Context) -> None:
    allowed(ctx)
    api = await ctx.rest()
    answer = await api.call("GET", "/capabilities", headers={"Origin": "null"})
    answer.refused(403)
    check("access-control-allow-origin" not in answer.headers, "null was allowed")


# --- the order of the checks


@case("GUARD-010")
async def host_and_origin_first(ctx: Context) -> None:
    token = ctx.need_token()
    ctx.need_loopback()
    await ctx.rest()
    for bearer in (f"Bearer {token}", "Bearer wrong"):
        for wrong in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            status = await raw_status(ctx, "GET", "/capabilities", **wrong, Authorization=bearer)
            check(status == 403, f"{wrong} with {bearer[:12]}: {status}")


@case("GUARD-011")
async def body_not_read(ctx: Context) -> None:
    ctx.need_token()
    await ctx.rest()
    size = {"Content-Length": str(20 * 1024 * 1024), **JSON}  # it never comes
    headers = {"Host": ctx.target.authority, **size}
    head = await (await ctx.raw()).request("POST", "/session", headers)
    check(head is not None and head.status == 401, f"answered {head and head.status}")
