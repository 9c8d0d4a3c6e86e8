"""What an operator sees: status, preflight, environment, readiness, figures."""

from __future__ import annotations

import re
from typing import Any

from conformance.context import Context
from conformance.outcome import brief, check
from conformance.registry import case
from conformance.rest.answer import members
from conformance.rest.api import Api

STATES = {"ok", "warning", "error", "disabled", "not_started", "unknown"}
SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)(\{(?:\w+="(?:[^"\\]|\\.)*",?)*\})? (\S+)')
"""Prometheus, text format 0.0.4: name, labels, value."""


@case("HEALTH-007")
async def last_activity(ctx: Context) -> None:
    api = await ctx.rest()
    await api.session()
    body = (await api.call("GET", "/health?deep=1")).ok()
    members(body, lastActivityAt=(str, type(None)), idleSinceMs=(int, type(None)))


@case("STATUS-004")
async def worst(ctx: Context) -> None:
    api = await ctx.rest()
    session = await api.session()
    question = await session.question(await session.events())
    body = (await api.call("GET", "/daemon/status")).ok()
    for each in body["issues"]:
        members(each, code=str, severity=str, message=str)
    severities = {each["severity"] for each in body["issues"]}
    wanted = "error" if "error" in severities else "warning" if severities else "ok"
    check(body["status"] == wanted, f"{body['status']} with {brief(body['issues'])}")
    check(wanted != "ok", "a permission request that waits is no issue")
    await question.settle()


@case("STATUS-005")
async def runtime(ctx: Context) -> None:
    api = await ctx.rest()
    session = await api.session()
    await session.events()
    told = (await api.call("GET", "/daemon/status")).ok()["runtime"]
    members(told, sessions=dict, permissions=dict, channel=dict, transport=dict, activity=dict)
    members(told, rateLimit=dict)
    check(told["sessions"]["active"] >= 1, brief(told["sessions"]))
    check(told["channel"]["live"] is True, brief(told["channel"]))
    check(told["transport"]["restSseActive"] >= 1, brief(told["transport"]))
    members(told["transport"]["acp"], enabled=bool, connections=int, wsStreams=int, sseStreams=int)
    members(told["activity"], activePrompts=int, pendingPrompts=int, queuedPrompts=int)
    members(told["rateLimit"], enabled=bool, rejectedSinceStart=dict)


@case("STATUS-006")
async def rows_of_sessions(ctx: Context) -> None:
    api = await ctx.rest()
    session = await api.session()
    await session.events()
    body = (await api.call("GET", "/daemon/status?detail=full")).ok()
    (row,) = [each for each in body["full"]["sessions"] if each["sessionId"] == session.id]
    counts = ("clientCount", "attachCount", "pendingPromptCount", "pendingPermissionCount")
    members(row, workspaceCwd=str, createdAt=str, hasActivePrompt=bool, lastEventId=int)
    members(row, **dict.fromkeys(counts, int))
    check(row["subscriberCount"] >= 1, brief(row))


@case("STATUS-007")
async def sections(ctx: Context) -> None:
    api = await ctx.rest()
    workspace = (await api.call("GET", "/daemon/status?detail=full")).ok()["full"]["workspace"]
    for name in ("preflight", "env"):
        members(workspace.get(name), status=str, durationMs=int)
        check(bool(workspace[name]["data"]["cells"]), f"no cells in {name}")


async def cells_of(api: Api, name: str) -> list[dict[str, Any]]:
    body = (await api.call("GET", f"/workspace/{name}")).ok()
    members(body, v=int, workspaceCwd=str, initialized=bool, acpChannelLive=bool, cells=list)
    cells: list[dict[str, Any]] = body["cells"]
    return cells


@case("PREFLIGHT-001")
async def preflight(ctx: Context) -> None:
    api = await ctx.rest()
    await api.session()
    body = (await api.call("GET", "/workspace/preflight")).ok()
    members(body, v=int, workspaceCwd=str, initialized=bool, cells=list)
    check(body["acpChannelLive"] is True, brief(body))


@case("PREFLIGHT-002")
async def states(ctx: Context) -> None:
    for cell in await cells_of(await ctx.rest(), "preflight"):
        members(cell, kind=str, status=str)
        check(cell["status"] in STATES, brief(cell))
        check(cell.get("locality") in ("daemon", "acp"), brief(cell))


@case("PREFLIGHT-003")
async def own_cells(ctx: Context) -> None:
    cells = await cells_of(await ctx.rest(), "preflight")
    own = {cell["kind"] for cell in cells if cell["locality"] == "daemon"}
    missing = {"cli_entry", "workspace_dir", "ripgrep", "git"} - own
    check(not missing, f"no cell for {sorted(missing)}")


@case("PREFLIGHT-004")
async def agent_cells(ctx: Context) -> None:
    cells = await cells_of(await ctx.rest(), "preflight")
    agents = {cell["kind"] for cell in cells if cell["locality"] == "acp"}
    missing = {"auth", "mcp_discovery", "skills", "providers", "tool_registry"} - agents
    check(not missing, f"no cell for {sorted(missing)}")


@case("PREFLIGHT-005")
async def wrong(ctx: Context) -> None:
    for cell in await cells_of(await ctx.rest(), "preflight"):
        if cell["status"] == "error":
            members(cell, error=str)


@case("ENV-001")
async def env(ctx: Context) -> None:
    cells = await cells_of(await ctx.rest(), "env")
    missing = {"runtime", "platform", "memory", "env_var"} - {cell["kind"] for cell in cells}
    check(not missing, f"no cell for {sorted(missing)}")
    for cell in cells:
        members(cell, kind=str, name=str, status=str)


@case("ENV-002")
async def presence(ctx: Context) -> None:
    variables = [c for c in await cells_of(await ctx.rest(), "env") if c["kind"] == "env_var"]
    names = {cell["name"] for cell in variables}
    check({"OPENAI_API_KEY", "ANTHROPIC_API_KEY"} <= names, f"{sorted(names)}")
    for cell in variables:
        members(cell, present=bool)
        check("value" not in cell, f"the value of {cell['name']} is told")


@case("ENV-003")
async def proxies(ctx: Context) -> None:
    told = [c for c in await cells_of(await ctx.rest(), "env") if c["kind"] == "proxy"]
    names = {cell["name"] for cell in told}
    check({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} <= names, f"{sorted(names)}")
    for cell in told:
        check("@" not in cell.get("value", ""), brief(cell))


@case("READY-001")
async def ready(ctx: Context) -> None:
    api = await ctx.rest()
    await api.session()
    body = (await api.call("GET", "/readyz")).ok()
    check(body.get("status") == "ready", brief(body))


# ---- figures -------------------------------------------------------------------------------------


async def text_of(api: Api, accept: str, media: str) -> str:
    answer = await api.call("GET", "/metrics", headers={"Accept": accept})
    check(answer.status == 200, str(answer))
    kind = answer.headers.get("content-type", "")
    check(kind.startswith(media), f"content-type {kind!r}")
    return answer.text


async def samples(api: Api) -> dict[str, float]:
    """Name with labels -> value."""
    found = {}
    for line in (await text_of(api, "text/plain", "text/plain")).splitlines():
        if line and not line.startswith("#"):
            match = SAMPLE.fullmatch(line)
            check(match is not None, f"no sample: {line!r}")
            assert match is not None
            found[match[1] + (match[2] or "")] = float(match[3])
    return found


@case("METRICS-001")
async def readable(ctx: Context) -> None:
    api = await ctx.rest()
    text = await text_of(api, "text/plain;version=0.0.4", "text/plain; version=0.0.4")
    check("# HELP " in text and "# TYPE " in text, text[:200])
    check(len(await samples(api)) > 50, "few samples")


@case("METRICS-002")
async def open_metrics(ctx: Context) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.3"
    text = await text_of(await ctx.rest(), accept, "application/openmetrics-text")
    check(text.endswith("# EOF\n"), f"ends with {text[-40:]!r}")


@case("METRICS-003")
async def counted(ctx: Context) -> None:
    def turns(of: dict[str, float]) -> float:
        return sum(value for name, value in of.items() if "_turns_total{" in name)

    api = await ctx.rest()
    before = await samples(api)
    session = await api.session()
    await session.turn(await session.events())
    seen = await samples(api)
    check(turns(seen) >= turns(before) + 1, f"{turns(before)}, then {turns(seen)}")
    (await session.delete()).empty()
    check(turns(await samples(api)) >= turns(seen), "a turn of an ended session is gone")


@case("METRICS-004")
async def no_ids(ctx: Context) -> None:
    api = await ctx.rest()
    session = await api.session()
    (await api.call("GET", f"/session/{session.id}/status")).ok()
    text = await text_of(api, "text/plain", "text/plain")
    check(session.id not in text, "a session id is a label")
    check(str(ctx.cwd) not in text, "a directory is a label")
