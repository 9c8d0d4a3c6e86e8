"""Bodies, paths and methods that are wrong, and who may ask at all."""

from __future__ import annotations

import json
from typing import Any

import trio

from conformance.cases.rest_prompt import joined
from conformance.context import Context
from conformance.outcome import Failure, brief, check
from conformance.registry import case
from conformance.rest.answer import Answer
from conformance.rest.api import unknown_id
from conformance.rest.session import Session

JSON = {"Content-Type": "application/json"}
TEN_MB = 10 * 1024 * 1024


async def raw_post(session: Session, tail: str, content: bytes, **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()} or JSON
    return await session.api.call("POST", session.path(tail), content=content, headers=sent)


@case("RERR-001", code=False)
@case("RERR-014", code=True)
async def broken(ctx: Context, code: bool) -> None:
    session, _ = await joined(ctx)
    for text in (b'{"prompt":', b"{'a':1}", b"\xff\xfe", b"{}{}"):
        body = (await raw_post(session, "prompt", text)).refused(400)
        check(not code or isinstance(body.get("code"), str), f"no code: {brief(body)}")


@case("RERR-002", code=False)
@case("RERR-013", code=True)
async def too_large(ctx: Context, code: bool) -> None:
    session, _ = await joined(ctx)
    text = json.dumps({"prompt": [{"type": "text", "text": "x" * TEN_MB}]}).encode()
    body = (await raw_post(session, "prompt", text)).refused(413)
    check(not code or isinstance(body.get("code"), str), f"no code: {brief(body)}")


@case("RERR-003")
async def text_plain(ctx: Context) -> None:
    session, _ = await joined(ctx)
    answer = await raw_post(session, "heartbeat", b"hello", Content_Type="text/plain")
    answer.ok()
    body = json.dumps({"prompt": [{"type": "text", "text": "x"}]}).encode()
    answer = await raw_post(session, "prompt", body, Content_Type="text/plain")
    answer.refused(400)


@case("RERR-004")
async def array(ctx: Context) -> None:
    session, _ = await joined(ctx)
    (await raw_post(session, "heartbeat", b"[1, 2]")).ok()
    (await raw_post(session, "prompt", b'[{"type": "text", "text": "x"}]')).refused(400)


@case("RERR-005")
async def prototype(ctx: Context) -> None:
    session, stream = await joined(ctx)
    for key in ("__proto__", "constructor", "prototype"):
        name = {"displayName": f"from {key}"}
        body = json.dumps({key: name, "displayName": f"kept beside {key}"}).encode()
        answer = await session.api.call(
            "PATCH", session.path("metadata"), content=body, headers=JSON
        )
        check(answer.ok()["displayName"] == f"kept beside {key}", brief(answer.text))
        only = json.dumps({key: name}).encode()
        answer = await session.api.call(
            "PATCH", session.path("metadata"), content=only, headers=JSON
        )
        check(answer.ok()["displayName"] == f"kept beside {key}", brief(answer.text))
    await session.fence(stream)


async def raw_status(ctx: Context, method: str, path: str, **changes: str) -> int:
    """The status of a request with exactly this path."""
    headers = {"Host": ctx.target.authority, **ctx.target.auth_headers}
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    if method != "GET":
        headers["Content-Length"] = "0"
    head = await (await ctx.raw()).request(method, path, headers)
    if head is None:
        raise Failure(f"{method} {path}: the connection was closed without an answer")
    return head.status


@case("RERR-006")
async def percent(ctx: Context) -> None:
    await ctx.rest()
    for path in ("/session/%zz/status", "/session/%/status", "/workspace/%ff%fe/sessions"):
        status = await raw_status(ctx, "GET", path)
        check(status in (400, 404), f"GET {path} was answered {status}")


@case("RERR-007")
async def odd_ids(ctx: Context) -> None:
    await ctx.rest()
    for id in ("%00", "..%2F..%2Fetc", "a%0Ab", "x" * 3000, "%F0%9F%98%80", "__proto__"):
        for method, tail in (("GET", "status"), ("GET", "events"), ("POST", "cancel")):
            status = await raw_status(ctx, method, f"/session/{id}/{tail}")
            check(status in (400, 404), f"{method} /session/{id[:40]}/{tail}: {status}")


@case("RERR-008")
async def head(ctx: Context) -> None:
    api = await ctx.rest()
    for path in ("/health", "/capabilities"):
        (await api.call("HEAD", path)).empty(200)


@case("RERR-009")
async def no_body(ctx: Context) -> None:
    session, stream = await joined(ctx)
    (await session.api.call("POST", session.path("cancel"))).empty()
    await stream.expect("prompt_cancelled")
    (await session.api.call("POST", session.path("heartbeat"))).ok()


@case("RERR-010")
async def encoding(ctx: Context) -> None:
    session, _ = await joined(ctx)
    answer = await raw_post(
        session, "heartbeat", b"{}", Content_Type="application/json", Content_Encoding="no-such"
    )
    check(answer.status == 415, f"{answer}")


@case("RERR-011")
async def unknown_route(ctx: Context) -> None:
    api = await ctx.rest()
    session = await api.session()
    paths = ("/no/such/route", session.path("no-such"), "/workspace/no-such")
    for path in paths:
        body = (await api.call("POST", path, {})).refused(404)
        check(isinstance(body.get("code"), str), f"no code: {brief(body)}")
        check(body["code"] != "session_not_found", f"{path}: {brief(body)}")


@case("RERR-012")
async def wrong_method(ctx: Context) -> None:
    api = await ctx.rest()
    session = await api.session()
    wrong = (
        ("PUT", session.path(), "DELETE"),
        ("GET", session.path("prompt"), "POST"),
        ("DELETE", "/capabilities", "GET"),
        ("PUT", session.path("metadata"), "PATCH"),
    )
    for method, path, right in wrong:
        answer = await api.call(method, path)
        body = answer.refused(405)
        allowed = {name.strip() for name in answer.headers.get("allow", "").split(",")}
        check(right in allowed, f"{method} {path}: Allow is {allowed}")
        check(isinstance(body.get("code"), str), f"no code: {brief(body)}")


@case("RERR-015")
async def openapi(ctx: Context) -> None:
    api = await ctx.rest()
    document = (await api.call("GET", "/openapi.json")).ok()
    check(str(document.get("openapi", "")).startswith("3.1"), f"openapi {document.get('openapi')}")
    described = {
        (method, _shape(path)) for path, item in document["paths"].items() for method in item
    }
    used = (
        "get /health",
        "get /capabilities",
        "post /session",
        "delete /session/{}",
        "post /session/{}/load",
        "post /session/{}/resume",
        "post /session/{}/prompt",
        "post /session/{}/cancel",
        "get /session/{}/events",
        "post /session/{}/permission/{}",
        "post /permission/{}",
        "patch /session/{}/metadata",
        "post /session/{}/heartbeat",
        "post /session/{}/detach",
        "get /workspace/{}/sessions",
        "post /sessions/delete",
    )
    missing = [row for row in used if tuple(row.split(" ")) not in described]
    check(not missing, f"not described: {missing}")


def _shape(path: str) -> str:
    """A path with its parameters as {}."""
    parts = path.split("/")
    return "/".join("{}" if part.startswith("{") else part for part in parts)


# --- who may ask


async def asked(ctx: Context, origin: str, method: str = "GET", **headers: str) -> Answer:
    api = await ctx.rest()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await api.call(method, "/capabilities", headers={"Origin": origin, **named})


@case("GUARD-001")
async def foreign_origin(ctx: Context) -> None:
    ctx.need_loopback()
    for origin in ("https://evil.example", "null", "http://localhost.evil.example"):
        answer = await asked(ctx, origin)
        answer.refused(403)
        told = [name for name in answer.headers if name.startswith("access-control-")]
        check(not told, f"CORS headers {told}")


@case("GUARD-002")
async def own_origin(ctx: Context) -> None:
    answer = await asked(ctx, ctx.target.http_base)
    answer.ok()


@case("GUARD-003", host="evil.example")
@case("GUARD-004", host="127.0.0.1:1")
async def foreign_host(ctx: Context, host: str) -> None:
    ctx.need_loopback()
    await ctx.rest()
    for path in ("/capabilities", f"/session/{unknown_id()}/events"):
        status = await raw_status(ctx, "GET", path, Host=host)
        check(status == 403, f"GET {path} with Host {host} was answered {status}")


@case("GUARD-005")
async def preflight(ctx: Context) -> None:
    ctx.need_loopback()
    answer = await asked(
        ctx, "https://evil.example", "OPTIONS", Access_Control_Request_Method="POST"
    )
    check(answer.status == 403, f"{answer}")
    check("access-control-allow-origin" not in answer.headers, "the origin was allowed")


@case("GUARD-006")
async def no_stream(ctx: Context) -> None:
    ctx.need_loopback()
    session, _ = await joined(ctx)
    answer = await session.api.call(
        "GET", session.path("events"), headers={"Origin": "https://evil.example"}
    )
    answer.refused(403)


@case("GUARD-007")
async def no_token(ctx: Context) -> None:
    ctx.need_token()
    await ctx.rest()
    async with ctx.client(auth=False) as client:
        for method, path in (("GET", "/capabilities"), ("POST", "/session")):
            with trio.fail_after(10):
                response = await client.request(method, path)
            answer = Answer(
                f"{method} {path}", response.status_code, response.headers, response.text
            )
            answer.refused(401)


@case("GUARD-008")
async def token_first(ctx: Context) -> None:
    ctx.need_token()
    await ctx.rest()
    tries: tuple[tuple[str, str, bytes, dict[str, Any]], ...] = (
        ("GET", "/no/such/route", b"", {}),
        ("GET", f"/session/{unknown_id()}/status", b"", {}),
        ("POST", "/session", b"{broken", JSON),
        ("POST", "/session", b"x" * 64, {"X-Qwen-Client-Id": "no spaces"}),
    )
    async with ctx.client(auth=False) as client:
        for method, path, content, headers in tries:
            with trio.fail_after(10):
                response = await client.request(method, path, content=content, headers=headers)
            check(response.status_code == 401, f"{method} {path}: {response.status_code}")


@case("GUARD-009")
async def localhost(ctx: Context) -> None:
    ctx.need_loopback()
    await ctx.rest()
    status = await raw_status(ctx, "GET", "/health", Host=f"localhost:{ctx.target.port}")
    check(status == 200, f"answered {status}")
