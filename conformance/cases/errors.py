"""Bad input: what is said, and that the server goes on."""

from __future__ import annotations

import json
from typing import Any

from conformance.context import Context
from conformance.http_link import HttpRefused
from conformance.links import Link, is_response
from conformance.outcome import Failure, brief, check
from conformance.registry import case
from conformance.steps import names_member, text_prompt
from conformance.ws_link import WsLink


async def refused(link: WsLink, text: str, code: int, *ids: Any) -> None:
    """Send ``text`` and expect an error of this code whose id is one of ``ids``."""
    start = len(link.log)
    await link.send_text(text)
    answer = await link.expect(lambda m: "method" not in m, after=start)
    error = answer.get("error")
    if not isinstance(error, dict):
        raise Failure(f"{text[:60]!r} was answered {brief(answer)}")
    check(error.get("code") == code, f"{text[:60]!r} was answered {brief(answer)}")
    check(answer.get("id") in ids, f"{text[:60]!r}: id {answer.get('id')!r}")


@case("ERR-001")
async def parse_error(ctx: Context) -> None:
    link = await ctx.ws()
    for text in ("{", "", "nonsense", '{"jsonrpc":"2.0","id":1,"method":"x",}', "{'a':1}", "\0"):
        await refused(link, text, -32700, None)
    await link.fence()


@case("ERR-002")
async def no_object(ctx: Context) -> None:
    link = await ctx.ws()
    for text in ("5", '"text"', "null", "true"):
        await refused(link, text, -32600, None)
    await link.fence()


@case("ERR-003")
async def batch(ctx: Context) -> None:
    link = await ctx.ws()
    request = '{"jsonrpc":"2.0","id":"b","method":"session/list"}'
    for text in (f"[{request}]", f"[{request},{request}]", "[]"):
        await refused(link, text, -32600, None)
    await link.fence()


@case("ERR-004")
async def bad_version(ctx: Context) -> None:
    link = await ctx.ws()
    for version in ('"jsonrpc":"1.0",', '"jsonrpc":2.0,', ""):
        text = "{" + version + '"id":"v","method":"session/list"}'
        await refused(link, text, -32600, "v", None)
    await link.fence()


@case("ERR-005")
async def bad_method(ctx: Context) -> None:
    link = await ctx.ws()
    for method in ("5", "null", '["session/list"]', "{}"):
        text = '{"jsonrpc":"2.0","id":"m","method":' + method + "}"
        await refused(link, text, -32600, "m", None)
    await link.fence()


@case("ERR-006")
async def nothing_in_it(ctx: Context) -> None:
    link = await ctx.ws()
    for text in ("{}", '{"jsonrpc":"2.0"}', '{"jsonrpc":"2.0","id":"n"}'):
        await refused(link, text, -32600, "n", None)
    await link.fence()


@case("ERR-007")
async def bad_id(ctx: Context) -> None:
    link = await ctx.ws()
    for bad in ("{}", "[1]", "true"):
        text = '{"jsonrpc":"2.0","id":' + bad + ',"method":"session/list"}'
        await refused(link, text, -32600, None)
    await link.fence()


@case("ERR-008")
async def deep(ctx: Context) -> None:
    link = await ctx.ws()
    start = len(link.log)
    deep_value = "[" * 100_000 + "]" * 100_000
    text = '{"jsonrpc":"2.0","id":"deep","method":"session/list","params":{"x":' + deep_value + "}}"
    await link.send_text(text)
    answer = await link.expect(is_response, after=start)
    error = answer.get("error")
    known = error is None or error.get("code") in (-32700, -32600, -32602)
    check(known, f"answered {brief(answer)}")
    await link.fence()
    await (await ctx.link()).fence()


async def invalid(link: Link, method: str, params: dict[str, Any], member: str = "") -> None:
    error = (await link.request(method, params)).fails_with(-32602)
    names_member(error, member)


@case("ERR-010")
async def no_cwd(ctx: Context) -> None:
    await invalid(await ctx.link(), "session/new", {"mcpServers": []}, "cwd")


@case("ERR-011")
async def cwd_type(ctx: Context) -> None:
    link = await ctx.link()
    values: list[Any] = [5, None, ["/"], {}]
    for value in values:
        await invalid(link, "session/new", {"cwd": value, "mcpServers": []}, "cwd")


@case("ERR-012")
async def relative_cwd(ctx: Context) -> None:
    link = await ctx.link()
    for value in ("relative/path", ".", ""):
        await invalid(link, "session/new", {"cwd": value, "mcpServers": []})


@case("ERR-013")
async def cwd_outside(ctx: Context) -> None:
    link = await ctx.link()
    for value in ("/", str(ctx.cwd / ".." / ".." / ".." / ".." / "..")):
        await invalid(link, "session/new", {"cwd": value, "mcpServers": []})


@case("ERR-014")
async def bad_additional_directory(ctx: Context) -> None:
    link = await ctx.link()
    for value in ("relative", "/"):
        params = {"cwd": str(ctx.cwd), "mcpServers": [], "additionalDirectories": [value]}
        await invalid(link, "session/new", params)


@case("ERR-015")
async def prompt_without_session(ctx: Context) -> None:
    params = {"prompt": [{"type": "text", "text": "hello"}]}
    try:
        await invalid(await ctx.link(), "session/prompt", params, "sessionId")
    except HttpRefused as refusal:
        # Without the member there is no Acp-Session-Id either, and that alone may be a 400.
        check(refusal.status == 400, str(refusal))


@case("ERR-016")
async def prompt_missing(ctx: Context) -> None:
    link = await ctx.link()
    await invalid(link, "session/prompt", {"sessionId": await ctx.session(link)}, "prompt")


@case("ERR-017")
async def prompt_type(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    for value in ("hello", 5, None, {"type": "text", "text": "hello"}):
        await invalid(link, "session/prompt", {"sessionId": session, "prompt": value})


@case("ERR-018")
async def mode_missing(ctx: Context) -> None:
    link = await ctx.link()
    await invalid(link, "session/set_mode", {"sessionId": await ctx.session(link)}, "modeId")


@case("ERR-019")
async def load_without_cwd(ctx: Context) -> None:
    link = await ctx.link()
    params = {"sessionId": await ctx.session(link), "mcpServers": []}
    await invalid(link, "session/load", params, "cwd")


@case("ERR-020")
async def error_data(ctx: Context) -> None:
    link = await ctx.link()
    for method, params in (
        ("session/new", {}),
        ("session/new", {"cwd": "relative"}),
        ("session/load", {"sessionId": "none", "cwd": str(ctx.cwd), "mcpServers": []}),
        ("conformance/unknown", {}),
    ):
        error = (await link.request(method, params)).error
        data = error.get("data") or {}
        check(isinstance(data.get("errorKind"), str), f"{method}: errorKind: {brief(error)}")
        check(isinstance(data.get("httpStatus"), int), f"{method}: httpStatus: {brief(error)}")


@case("ERR-021")
async def no_traceback(ctx: Context) -> None:
    link = await ctx.link()
    session = await ctx.session(link)
    attempts: list[tuple[str, Any]] = [
        ("session/new", {"cwd": {"a": "b"}}),
        ("session/new", {"cwd": "/\0"}),
        ("session/load", {"sessionId": 5}),
        ("session/load", {"sessionId": "../../etc/passwd", "cwd": str(ctx.cwd), "mcpServers": []}),
        ("session/prompt", {"sessionId": session, "prompt": [5]}),
        ("session/prompt", {"sessionId": session, "prompt": [{"type": "text"}]}),
        ("session/set_config_option", {"sessionId": session, "configId": 5, "value": {}}),
        ("session/list", {"cwd": "\0"}),
        ("session/close", "text"),
    ]
    for method, params in attempts:
        text = json.dumps((await link.request(method, params)).message)
        for bad in ("Traceback", 'File \\"', "Exception", "KeyError", "TypeError", "ValueError"):
            check(bad not in text, f"{method} shows {bad}: {brief(text)}")
    await link.fence()


@case("ERR-022")
async def empty_prompt(ctx: Context) -> None:
    link = await ctx.link()
    params = {**text_prompt(await ctx.session(link), ""), "prompt": []}
    await invalid(link, "session/prompt", params)
