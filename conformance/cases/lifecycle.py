"""initialize, authenticate, logout."""

from __future__ import annotations

from typing import Any

from conformance.context import Context
from conformance.links import ABSENT
from conformance.outcome import Failure, brief, check
from conformance.registry import case

SPOKEN = (1, 2)
"""Protocol versions that exist."""
JUNK_VERSIONS: tuple[Any, ...] = ("banana", "1", -1, 1.5, True, None, [1], {}, 2**40, ABSENT)


@case("INIT-001")
async def version_one(ctx: Context) -> None:
    reply = await (await ctx.bare()).initialize(1)
    check(reply.result.get("protocolVersion") == 1, brief(reply.result))


@case("INIT-002", version=99)
@case("INIT-003", version=0)
async def other_version(ctx: Context, version: int) -> None:
    reply = await (await ctx.bare()).initialize(version)
    check(reply.result.get("protocolVersion") in SPOKEN, brief(reply.result))


@case("INIT-004")
async def version_two(ctx: Context) -> None:
    reply = await (await ctx.bare()).initialize(2)
    check(reply.result.get("protocolVersion") == 1, brief(reply.result))


@case("INIT-005")
async def junk_version(ctx: Context) -> None:
    for junk in JUNK_VERSIONS:
        link = await ctx.bare()
        params: dict[str, Any] = {"clientCapabilities": {}}
        if junk is not ABSENT:
            params["protocolVersion"] = junk
        reply = await link.request("initialize", params)
        if "error" in reply.message:
            reply.fails_with(-32602)
        else:
            version = reply.result.get("protocolVersion")
            check(version in SPOKEN, f"{junk!r} was answered with {version!r}")
        await link.close()


@case("INIT-006")
async def capability_types(ctx: Context) -> None:
    capabilities = (await (await ctx.bare()).initialize()).result.get("agentCapabilities")
    if not isinstance(capabilities, dict):
        raise Failure(f"agentCapabilities: {brief(capabilities)}")
    check(isinstance(capabilities.get("loadSession", False), bool), brief(capabilities))
    for group, names in {
        "promptCapabilities": ("image", "audio", "embeddedContext"),
        "mcpCapabilities": ("http", "sse"),
    }.items():
        flags = capabilities.get(group) or {}
        check(isinstance(flags, dict), f"{group}: {brief(flags)}")
        for name in names:
            check(isinstance(flags.get(name, False), bool), f"{group}.{name}: {brief(flags)}")
    markers = capabilities.get("sessionCapabilities") or {}
    check(isinstance(markers, dict), f"sessionCapabilities: {brief(markers)}")
    for name, marker in markers.items():
        check(marker is None or isinstance(marker, dict), f"sessionCapabilities.{name}: {marker!r}")


@case("INIT-007")
async def agent_info(ctx: Context) -> None:
    info = (await (await ctx.bare()).initialize()).result.get("agentInfo")
    good = isinstance(info, dict) and info.get("name") and info.get("version")
    check(good, f"agentInfo: {brief(info)}")


@case("INIT-008")
async def advertised(ctx: Context) -> None:
    capabilities = (await (await ctx.bare()).initialize()).result.get("agentCapabilities") or {}
    check(capabilities.get("loadSession") is True, "loadSession is not true")
    markers = capabilities.get("sessionCapabilities") or {}
    for name in ("list", "resume", "close"):
        check(isinstance(markers.get(name), dict), f"sessionCapabilities.{name} is missing")


@case("INIT-009")
async def auth_methods(ctx: Context) -> None:
    methods = (await (await ctx.bare()).initialize()).result.get("authMethods", [])
    check(isinstance(methods, list), f"authMethods: {brief(methods)}")
    for method in methods:
        check(isinstance(method.get("id"), str), f"no id: {brief(method)}")
        check(isinstance(method.get("name"), str), f"no name: {brief(method)}")


@case("INIT-010")
async def smallest(ctx: Context) -> None:
    link = await ctx.bare()
    reply = await link.request("initialize", {"protocolVersion": 1})
    check(reply.result.get("protocolVersion") == 1, brief(reply.result))
    await link.fence()


@case("INIT-011")
async def lenient(ctx: Context) -> None:
    link = await ctx.bare()
    reply = await link.initialize(
        clientCapabilities={"fs": "junk", "terminal": 7, "later": {"x": 1}},
        clientInfo={"name": 5},
        somethingNew=[1, {"a": None}],
        _meta={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
    )
    check(reply.result.get("protocolVersion") == 1, brief(reply.result))
    await link.fence()


@case("INIT-012")
async def before_initialize(ctx: Context) -> None:
    link = await ctx.bare()
    reply = await link.request("session/new", {"cwd": str(ctx.cwd), "mcpServers": []})
    reply.fails_with(-32600)


@case("INIT-013")
async def second_initialize(ctx: Context) -> None:
    link = await ctx.link()
    (await link.initialize()).fails_with(-32600, -32601)
    await link.fence()


@case("INIT-014")
async def unknown_auth_method(ctx: Context) -> None:
    link = await ctx.link()
    reply = await link.request("authenticate", {"methodId": "conformance-no-such-method"})
    reply.fails_with()


@case("INIT-015")
async def authenticate_without_method(ctx: Context) -> None:
    (await (await ctx.link()).request("authenticate", {})).fails_with(-32602)


@case("INIT-016")
async def logout(ctx: Context) -> None:
    link = await ctx.link()
    reply = await link.request("logout")
    if "error" in reply.message:
        reply.fails_with(-32601)
    await link.fence()
