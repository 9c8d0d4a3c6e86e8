"""Streamable HTTP: statuses, headers and bodies of single requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import trio

from conformance.context import Context
from conformance.http_link import HttpLink
from conformance.outcome import Failure, Skip, brief, check
from conformance.raw import RawHead
from conformance.registry import case
from conformance.steps import text_prompt

JSON = {"Content-Type": "application/json"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": 1, "clientCapabilities": {}},
}
LIST = {"jsonrpc": "2.0", "id": "list", "method": "session/list", "params": {}}
UNKNOWN = {"Acp-Connection-Id": "00000000-0000-4000-8000-00000000c0de"}
EVENTS = {"Accept": "text/event-stream"}


async def call(
    ctx: Context, method: str, headers: dict[str, str], body: Any = None, path: str = ""
) -> Any:
    """One request outside any link; the answer with its body read."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    async with ctx.client() as client:
        request = client.build_request(
            method, path or ctx.target.path, headers=headers, content=content
        )
        answer = await client.send(request, stream=True)
        try:
            # A stream that should not be there would never end.
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                return answer
            await answer.aread()
        finally:
            await answer.aclose()
        return answer


def status(answer: Any, *wanted: int) -> None:
    check(answer.status_code in wanted, f"{answer.status_code} instead of {wanted}")


def by_hand(link: HttpLink) -> dict[str, str]:
    return {"Acp-Connection-Id": link.connection_id or ""}


async def answered_while_sending(connection: Any, size: int) -> RawHead | None:
    """A server may refuse by the length alone, or only after it has read too much."""
    heads: list[RawHead | None] = []

    async with trio.open_nursery() as nursery:

        async def send() -> None:
            try:
                for _ in range(size // 65536):
                    await connection.send(b" " * 65536)
            except Failure:
                return

        nursery.start_soon(send)
        heads.append(await connection.head())
        nursery.cancel_scope.cancel()
    return heads[0]


@case("HTTP-001")
async def initialize(ctx: Context) -> None:
    answer = await call(ctx, "POST", JSON, INITIALIZE)
    status(answer, 200)
    kind = answer.headers.get("content-type", "")
    check(kind.split(";")[0] == "application/json", f"Content-Type: {kind}")
    check(answer.headers.get("acp-connection-id"), "no Acp-Connection-Id")
    check(answer.json()["id"] == 1 and "result" in answer.json(), brief(answer.text))
    await call(ctx, "DELETE", {"Acp-Connection-Id": answer.headers["acp-connection-id"]})


@case("HTTP-002")
async def content_type(ctx: Context) -> None:
    link = await ctx.http()
    for kind in ("text/plain", "application/json-patch+json", "application/x-ndjson", None):
        headers = by_hand(link) | ({"Content-Type": kind} if kind else {})
        answer = await call(ctx, "POST", headers, LIST)
        check(answer.status_code == 415, f"Content-Type {kind} was answered {answer.status_code}")


@case("HTTP-003")
async def charset(ctx: Context) -> None:
    link = await ctx.http()
    for kind in ("application/json; charset=utf-8", "Application/JSON;charset=UTF-8"):
        status(await call(ctx, "POST", {"Content-Type": kind, **by_hand(link)}, LIST), 202)


@case("HTTP-004")
async def accept(ctx: Context) -> None:
    link = await ctx.http()
    for kind in ("application/json", "text/html"):
        answer = await call(ctx, "GET", {"Accept": kind, **by_hand(link)})
        check(answer.status_code == 406, f"Accept {kind} was answered {answer.status_code}")


@case("HTTP-005", method="POST", headers=JSON, wanted=400)
@case("HTTP-006", method="POST", headers={**JSON, **UNKNOWN}, wanted=404)
@case("HTTP-007", method="GET", headers=EVENTS, wanted=400)
@case("HTTP-008", method="GET", headers={**EVENTS, **UNKNOWN}, wanted=404)
@case("HTTP-012", method="DELETE", headers={}, wanted=400)
@case("HTTP-013", method="DELETE", headers=UNKNOWN, wanted=404)
async def without_connection(
    ctx: Context, method: str, headers: dict[str, str], wanted: int
) -> None:
    status(await call(ctx, method, headers, LIST if method == "POST" else None), wanted)


@case("HTTP-011")
async def delete(ctx: Context) -> None:
    link = await ctx.http()
    stream = link.streams["connection"]
    status(await call(ctx, "DELETE", by_hand(link)), 202)
    await stream.over.wait()
    status(await call(ctx, "POST", {**JSON, **by_hand(link)}, LIST), 404)
    status(await call(ctx, "GET", {**EVENTS, **by_hand(link)}), 404)


@case("HTTP-014")
async def other_methods(ctx: Context) -> None:
    for method in ("PUT", "PATCH"):
        answer = await call(ctx, method, {**JSON, **UNKNOWN}, LIST)
        check(answer.status_code == 405, f"{method} was answered {answer.status_code}")


@case("HTTP-015")
async def accepted(ctx: Context) -> None:
    link = await ctx.http()
    for message in (
        LIST,
        {"jsonrpc": "2.0", "method": "_conformance/none"},
        {"jsonrpc": "2.0", "id": 99999, "result": {}},
        {"jsonrpc": "2.0", "id": "x", "method": "conformance/unknown"},
    ):
        answer = await link.post(message)
        status(answer, 202)
        check(answer.content == b"", f"body of a 202: {brief(answer.text)}")


@case("HTTP-016")
async def batch(ctx: Context) -> None:
    link = await ctx.http()
    for body in ([LIST], [LIST, LIST], []):
        status(await call(ctx, "POST", {**JSON, **by_hand(link)}, body), 501)
    status(await call(ctx, "POST", JSON, [INITIALIZE]), 501)
    await link.fence()
    check(not any(m.get("id") == "list" for m in link.messages()), "the batch was executed")


@case("HTTP-023")
async def foreign_host(ctx: Context) -> None:
    ctx.need_loopback()
    for host in ("evil.example", f"evil.example:{ctx.target.port}", "127.0.0.1.evil.example"):
        answer = await call(ctx, "POST", {**JSON, "Host": host}, INITIALIZE)
        check(answer.status_code == 403, f"Host {host} was answered {answer.status_code}")


@case("HTTP-024")
async def foreign_origin(ctx: Context) -> None:
    ctx.need_loopback()
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil"):
        answer = await call(ctx, "POST", {**JSON, "Origin": origin}, INITIALIZE)
        check(answer.status_code == 403, f"Origin {origin} was answered {answer.status_code}")


@case("HTTP-025")
async def own_origin(ctx: Context) -> None:
    ctx.need_loopback()
    answer = await call(ctx, "POST", {**JSON, "Origin": ctx.target.http_base}, INITIALIZE)
    status(answer, 200)
    await call(ctx, "DELETE", {"Acp-Connection-Id": answer.headers["acp-connection-id"]})


@case("HTTP-026", bodies=(b"{", b"", b"nonsense", b"\xff\xfe", b'{"a":1,}'))
@case("HTTP-027", bodies=(b"5", b'"x"', b"null", b"{}", b'{"jsonrpc":"1.0","id":1,"method":"x"}'))
async def bad_body(ctx: Context, bodies: tuple[bytes, ...]) -> None:
    link = await ctx.http()
    for body in bodies:
        answer = await call(ctx, "POST", {**JSON, **by_hand(link)}, body)
        check(answer.status_code == 400, f"{body!r} was answered {answer.status_code}")
    await link.fence()


@case("HTTP-028")
async def too_large(ctx: Context) -> None:
    link = await ctx.http()
    connection = await ctx.raw()
    size = 64 * 1024 * 1024
    headers = {
        "Host": ctx.target.authority,
        **ctx.target.auth_headers,
        **JSON,
        **by_hand(link),
        "Content-Length": str(size),
    }
    lines = [f"POST {ctx.target.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
    await connection.send("\r\n".join(lines).encode())
    head = await answered_while_sending(connection, size)
    check(head is not None and head.status == 413, f"answered {head and head.status}")
    await link.fence()


@case("HTTP-031")
async def contradiction(ctx: Context) -> None:
    link = await ctx.http()
    one, two = await ctx.session(link), await ctx.session(link)
    message = {
        "jsonrpc": "2.0",
        "id": "contradiction",
        "method": "session/prompt",
        "params": text_prompt(one, "/session"),
    }
    answer = await link.post(message, session=two)
    if answer.status_code == 202:
        reply = await link.expect(lambda m: m.get("id") == "contradiction")
        check("error" in reply, f"it was executed: {brief(reply)}")
    else:
        status(answer, 400, 404)


@case("HTTP-032")
async def initialize_again(ctx: Context) -> None:
    link = await ctx.http()
    answer = await call(ctx, "POST", {**JSON, **by_hand(link)}, INITIALIZE)
    status(answer, 200, 400)
    if answer.status_code == 200:
        other = answer.headers.get("acp-connection-id")
        check(other and other != link.connection_id, f"the connection id is {other}")
        await call(ctx, "DELETE", {"Acp-Connection-Id": other})
    await link.fence()


@case("HTTP-038")
async def error_bodies(ctx: Context) -> None:
    for method, headers, body, path in (
        ("GET", EVENTS, None, ""),
        ("GET", {**EVENTS, **UNKNOWN}, None, ""),
        ("PUT", JSON, LIST, ""),
        ("POST", JSON, b"{", ""),
        ("GET", {}, None, "/conformance/no/such/path"),
    ):
        answer = await call(ctx, method, headers, body, path)
        where = f"{method} {path or ctx.target.path} ({answer.status_code})"
        try:
            found = answer.json()
        except ValueError:
            raise Failure(f"{where}: no JSON: {brief(answer.text)}") from None
        nested = found.get("error")
        if isinstance(nested, dict):
            check(isinstance(nested.get("code"), int) and nested.get("message"), brief(found))
        else:
            check(nested and isinstance(nested, str) and found.get("code"), f"{where}: {found}")


@case("HTTP-039")
async def health(ctx: Context) -> None:
    for path in ("/health", "/status", "/readyz"):
        answer = await call(ctx, "GET", {}, None, path)
        check(answer.status_code == 200, f"{path} was answered {answer.status_code}")


@case("HTTP-040")
async def chunked(ctx: Context) -> None:
    link = await ctx.http()

    async def body() -> AsyncIterator[bytes]:
        data = json.dumps({**LIST, "id": "chunked"}).encode()
        yield data[:10]
        yield data[10:]

    answer = await link.client.post(
        ctx.target.path, content=body(), headers={**JSON, **by_hand(link)}
    )
    status(answer, 202)
    await link.expect(lambda m: m.get("id") == "chunked")


@case("HTTP-041")
async def garbage(ctx: Context) -> None:
    link = await ctx.http()
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"\0" * 64 + b"\r\n\r\n",
    ):
        connection = await ctx.raw()
        await connection.send(data)
        answer = await connection.head()
        check(answer is None or answer.status == 400, f"{data[:20]!r}: {answer and answer.status}")
    await link.fence()


@case("HTTP-043")
async def header_case(ctx: Context) -> None:
    if ctx.target.secure:
        raise Skip("raw requests are made without TLS only")
    link = await ctx.http()
    body = json.dumps(LIST).encode()
    for name in ("acp-connection-id", "ACP-CONNECTION-ID"):
        connection = await ctx.raw()
        answer = await connection.request(
            "POST",
            ctx.target.path,
            {
                "Host": ctx.target.authority,
                **ctx.target.auth_headers,
                **JSON,
                name: link.connection_id or "",
                "Content-Length": str(len(body)),
            },
            body,
        )
        check(answer is not None and answer.status == 202, f"{name}: {answer and answer.status}")
