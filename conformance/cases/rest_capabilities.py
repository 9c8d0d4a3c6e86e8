"""GET /capabilities, /health and /daemon/status."""

from __future__ import annotations

from collections import Counter

from conformance.context import Context
from conformance.outcome import Skip, brief, check
from conformance.registry import case
from conformance.rest.answer import members
from conformance.rest.api import ABSENT, Api, unknown_id

POLICIES = ("first-responder", "designated", "consensus", "local-only")
CORE = (
    "health",
    "capabilities",
    "session_create",
    "session_scope_override",
    "session_load",
    "session_resume",
    "session_list",
    "session_prompt",
    "non_blocking_prompt",
    "session_cancel",
    "session_events",
    "typed_event_schema",
    "client_identity",
    "session_permission_vote",
    "permission_vote",
    "permission_mediation",
    "session_close",
    "session_metadata",
)
# A route that exists answers these in another way than one that does not.
PROBES = {
    "health": "GET /health",
    "daemon_status": "GET /daemon/status",
    "session_load": "POST /session/{id}/load",
    "session_resume": "POST /session/{id}/resume",
    "unstable_session_resume": "POST /session/{id}/resume",
    "session_list": "GET /workspace/{workspace}/sessions",
    "session_prompt": "POST /session/{id}/prompt",
    "session_cancel": "POST /session/{id}/cancel",
    "session_events": "GET /session/{id}/events",
    "session_set_model": "POST /session/{id}/model",
    "client_heartbeat": "POST /session/{id}/heartbeat",
    "session_permission_vote": "POST /session/{id}/permission/x",
    "permission_vote": "POST /permission/x",
    "session_context": "GET /session/{id}/context",
    "session_context_usage": "GET /session/{id}/context-usage",
    "session_supported_commands": "GET /session/{id}/supported-commands",
    "session_tasks": "GET /session/{id}/tasks",
    "session_stats": "GET /session/{id}/stats",
    "session_status": "GET /session/{id}/status",
    "session_close": "DELETE /session/{id}",
    "session_metadata": "PATCH /session/{id}/metadata",
    "session_transcript": "GET /session/{id}/transcript",
    "session_approval_mode_control": "POST /session/{id}/approval-mode",
    "session_branch": "POST /session/{id}/branch",
    "session_rewind": "GET /session/{id}/rewind/snapshots",
    "session_turn_status": "GET /session/{id}/turns/current",
    "session_mid_turn_message_mutation": "POST /session/{id}/mid-turn-message",
    "session_recap": "POST /session/{id}/recap",
    "session_shell_command": "POST /session/{id}/shell",
    "workspace_mcp": "GET /workspace/mcp",
    "workspace_skills": "GET /workspace/skills",
    "workspace_providers": "GET /workspace/providers",
    "workspace_memory": "GET /workspace/memory",
    "workspace_agents": "GET /workspace/agents",
    "workspace_env": "GET /workspace/env",
    "workspace_preflight": "GET /workspace/preflight",
    "workspace_trust": "GET /workspace/trust",
    "workspace_settings": "GET /workspace/settings",
    "workspace_permissions": "GET /workspace/permissions",
    "workspace_file_read": "GET /file",
    "workspace_file_bytes": "GET /file/bytes",
}
BODIES = {
    "session_prompt": {"prompt": [{"type": "text", "text": "probe"}]},
    "session_set_model": {"modelId": "probe"},
    "session_metadata": {"displayName": "probe"},
    "session_approval_mode_control": {"mode": "default"},
    "session_mid_turn_message_mutation": {"message": "probe"},
    "session_shell_command": {"command": "true"},
    "session_permission_vote": {"outcome": {"outcome": "cancelled"}},
    "permission_vote": {"outcome": {"outcome": "cancelled"}},
}


@case("CAP-001")
async def shape(ctx: Context) -> None:
    body = (await ctx.rest()).capabilities
    check(body.get("v") == 1, f"v is {body.get('v')!r}")
    members(body, mode=str, features=list, protocolVersions=dict, workspaceCwd=str, limits=dict)


@case("CAP-002")
async def versions(ctx: Context) -> None:
    found = (await ctx.rest()).capabilities["protocolVersions"]
    check(found["current"] in found["supported"], brief(found))


@case("CAP-003")
async def unique_features(ctx: Context) -> None:
    features = (await ctx.rest()).capabilities["features"]
    odd = [f for f in features if not isinstance(f, str) or not f]
    check(not odd, f"no strings: {odd}")
    twice = [f for f, count in Counter(features).items() if count > 1]
    check(not twice, f"twice: {twice}")


@case("CAP-004")
async def workspaces(ctx: Context) -> None:
    body = (await ctx.rest()).capabilities
    check(body["workspaceCwd"].startswith("/"), f"workspaceCwd {body['workspaceCwd']!r}")
    for entry in body["workspaces"]:
        members(entry, id=str, cwd=str, primary=bool)
    primary = [entry["cwd"] for entry in body["workspaces"] if entry["primary"]]
    check(primary == [body["workspaceCwd"]], f"primary workspaces: {primary}")


@case("CAP-005")
async def policy(ctx: Context) -> None:
    found = (await ctx.rest()).capabilities["policy"]["permission"]
    check(found in POLICIES, f"policy {found!r}")


@case("CAP-006")
async def limits(ctx: Context) -> None:
    found = (await ctx.rest()).capabilities["limits"]
    members(found, maxPendingPromptsPerSession=int)
    bad = {k: v for k, v in found.items() if not isinstance(v, (int, float)) or v < 0}
    check(not bad, f"limits {bad}")


@case("CAP-007")
async def transports(ctx: Context) -> None:
    found = (await ctx.rest()).capabilities["transports"]
    check("rest" in found, f"transports {found}")


@case("CAP-008", timeout=60)
async def routes(ctx: Context) -> None:
    api = await ctx.rest()
    missing = [tag for tag in PROBES if tag in api.features and not await exists(api, tag)]
    check(not missing, f"advertised without a route: {missing}")


async def exists(api: Api, tag: str) -> bool:
    """A 404 of a route that is there has a code of its own, or names what it did not find."""
    method, _, path = PROBES[tag].partition(" ")
    workspace = api.sessions_path.split("/")[2]
    path = path.format(id=unknown_id(), workspace=workspace)
    answer = await api.call(method, path, ABSENT if method == "GET" else BODIES.get(tag, {}))
    if answer.status == 405:
        return False
    if answer.status != 404:
        return True
    if not answer.headers.get("content-type", "").startswith("application/json"):
        return False
    return "{id}" not in PROBES[tag] or "session" in str(answer.body.get("code"))


@case("CAP-009")
async def core(ctx: Context) -> None:
    features = (await ctx.rest()).features
    missing = [feature for feature in CORE if feature not in features]
    check(not missing, f"not advertised: {missing}")


@case("CAP-010")
async def acp_transports(ctx: Context) -> None:
    listed = (await ctx.rest()).capabilities["transports"]
    kinds = [kind.removeprefix("acp-") for kind in listed if kind in ("acp-ws", "acp-http")]
    if not kinds:
        raise Skip("no ACP transport is listed")
    for kind in kinds:
        await ctx.link(kind)


@case("CAP-011")
async def stable(ctx: Context) -> None:
    api = await ctx.rest()
    again = (await api.call("GET", "/capabilities")).ok()
    check(again == api.capabilities, "two answers differ")


@case("HEALTH-001")
async def health(ctx: Context) -> None:
    api = await ctx.rest()
    body = (await api.call("GET", "/health")).ok()
    check(body.get("status") == "ok", brief(body))


@case("HEALTH-002", query="1")
@case("HEALTH-003", query="true")
async def deep(ctx: Context, query: str) -> None:
    api = await ctx.rest()
    body = (await api.call("GET", f"/health?deep={query}")).ok()
    counts = ("sessions", "pendingPermissions", "activePrompts", "connectedClients")
    members(body, status=str, channelAlive=bool, **dict.fromkeys(counts, int))


async def depth(api: Api, name: str) -> int:
    return int((await api.call("GET", "/health?deep=1")).ok()[name])


@case("HEALTH-004")
async def counts_sessions(ctx: Context) -> None:
    api = await ctx.rest()
    before = await depth(api, "sessions")
    session = await api.session()
    check(await depth(api, "sessions") == before + 1, "the new session is not counted")
    (await session.delete()).empty()
    check(await depth(api, "sessions") == before, "the deleted session is counted")


@case("HEALTH-005")
async def counts_streams(ctx: Context) -> None:
    api = await ctx.rest()
    before = await depth(api, "connectedClients")
    session = await api.session()
    for _ in range(2):
        await session.events()
    seen = await depth(api, "connectedClients")
    check(seen == before + 2, f"{seen} clients after {before} and two streams")


@case("HEALTH-006")
async def counts_work(ctx: Context) -> None:
    api = await ctx.rest()
    session = await api.session()
    question = await session.question(await session.events())
    check(await depth(api, "activePrompts") >= 1, "the running prompt is not counted")
    check(await depth(api, "pendingPermissions") >= 1, "the permission is not counted")
    await question.settle()


@case("STATUS-001")
async def status(ctx: Context) -> None:
    api = await ctx.rest()
    body = (await api.call("GET", "/daemon/status")).ok()
    members(body, v=int, status=str, issues=list, limits=dict, security=dict, runtime=dict)
    members(body["limits"], eventRingSize=int, maxPendingPromptsPerSession=int)


@case("STATUS-002")
async def bad_detail(ctx: Context) -> None:
    api = await ctx.rest()
    (await api.call("GET", "/daemon/status?detail=everything")).refused(400, "invalid_detail")


@case("STATUS-003")
async def full_status(ctx: Context) -> None:
    api = await ctx.rest()
    session = await api.session()
    body = (await api.call("GET", "/daemon/status?detail=full")).ok()
    listed = [entry["sessionId"] for entry in body["full"]["sessions"]]
    check(session.id in listed, f"{session.id} is not among {listed}")
