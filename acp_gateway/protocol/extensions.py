"""The daemon's operations beyond ACP, as data: one row serves a REST route and its JSON-RPC twin.

From this table come the REST routes, the ``_qwen/*`` methods, ``GET /capabilities`` and the checks
of the OpenAPI document. A feature tag means that the behaviour exists: every tag names the rows
that serve it, and every row has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, Literal

import attrs

Scope = Literal["daemon", "session", "workspace"]
_OF_WORKSPACE: Final = ("/workspace", "/sessions", "/file", "/stat", "/list", "/glob")


class Access(Enum):
    """What a caller needs beyond being let in."""

    READ = "read"
    MUTATE = "mutate"
    STRICT = "strict"
    """Wants a configured token, also on loopback (``--trust-loopback`` relaxes it)."""


@attrs.frozen(kw_only=True)
class Operation:
    """One row."""

    name: str
    """Key of its handler, and ``operationId`` of the OpenAPI document."""
    method: str
    path: str
    """With ``{name}`` parameters; ``{workspace}`` may hold slashes (a directory)."""
    tags: tuple[str, ...]
    """Features that it serves."""
    access: Access = Access.READ
    rpc: str | None = None
    """The ``_qwen/*`` twin."""
    success: int = 200
    creates: bool = False
    """Answers with 201 instead where it made something new."""
    needs_agent: bool = False
    """Only an agent with Qwen's extension methods can do it; the tags are advertised only then."""
    stream: bool = False
    """Answers with server-sent events."""

    @property
    def scope(self) -> Scope:
        if "{sessionId}" in self.path:
            return "session"
        return "workspace" if self.path.startswith(_OF_WORKSPACE) else "daemon"


def _op(
    name: str,
    route: str,
    tags: str,
    *,
    access: Access | None = None,
    rpc: str | None = None,
    success: int = 200,
    creates: bool = False,
    needs_agent: bool = False,
    stream: bool = False,
) -> Operation:
    method, _, path = route.partition(" ")
    return Operation(
        name=name,
        method=method,
        path=path,
        tags=tuple(tags.split()),
        access=access or (Access.READ if method == "GET" else Access.MUTATE),
        rpc=None if rpc is None else f"_qwen/{rpc}",
        success=success,
        creates=creates,
        needs_agent=needs_agent,
        stream=stream,
    )


_SESSION: Final = "/session/{sessionId}"
_SIGN_IN: Final = "auth_device_flow"

_TABLE: Final = (
    # -- the daemon
    _op("health", "GET /health", "health", rpc="health"),
    _op("readyz", "GET /readyz", "health"),
    _op("capabilities", "GET /capabilities", "capabilities"),
    _op("daemon_status", "GET /daemon/status", "daemon_status", rpc="daemon/status"),
    _op("openapi", "GET /openapi.json", "openapi"),
    _op("metrics", "GET /metrics", "metrics"),
    # -- who may come in
    _op("pair_code", "POST /pair/code", "device_pairing", access=Access.STRICT, success=201),
    _op("pair", "POST /pair", "device_pairing", success=201),
    # -- life of a session
    _op(
        "session_create",
        "POST /session",
        "session_create session_scope_override session_id_override client_identity "
        "session_permission_policy session_source_metadata",
    ),
    _op("session_load", f"POST {_SESSION}/load", "session_load"),
    _op("session_resume", f"POST {_SESSION}/resume", "session_resume unstable_session_resume"),
    _op("session_branch", f"POST {_SESSION}/branch", "session_branch", success=201),
    _op(
        "session_rewind_snapshots",
        f"GET {_SESSION}/rewind/snapshots",
        "session_rewind",
        rpc="session/rewind/snapshots",
        needs_agent=True,
    ),
    _op(
        "session_rewind",
        f"POST {_SESSION}/rewind",
        "session_rewind",
        rpc="session/rewind",
        access=Access.STRICT,
        needs_agent=True,
    ),
    _op(
        "session_detach",
        f"POST {_SESSION}/detach",
        "client_identity",
        rpc="session/detach",
        success=204,
    ),
    _op("session_close", f"DELETE {_SESSION}", "session_close", success=204),
    _op(
        "session_metadata",
        f"PATCH {_SESSION}/metadata",
        "session_metadata",
        rpc="session/update_metadata",
    ),
    _op(
        "session_heartbeat",
        f"POST {_SESSION}/heartbeat",
        "client_heartbeat",
        rpc="session/heartbeat",
    ),
    # -- turns
    _op(
        "session_prompt",
        f"POST {_SESSION}/prompt",
        "session_prompt non_blocking_prompt prompt_absolute_deadline prompt_idempotency_key",
        success=202,
    ),
    _op("session_cancel", f"POST {_SESSION}/cancel", "session_cancel", success=204),
    _op(
        "pending_prompts",
        f"GET {_SESSION}/pending-prompts",
        "session_pending_prompts",
        rpc="session/pending_prompts",
    ),
    _op(
        "pending_prompt_remove",
        f"DELETE {_SESSION}/pending-prompts/{{promptId}}",
        "session_pending_prompts",
        rpc="session/pending_prompts/remove",
    ),
    _op(
        "mid_turn_message",
        f"POST {_SESSION}/mid-turn-message",
        "session_mid_turn_message_mutation",
        rpc="session/mid_turn_message",
    ),
    _op(
        "mid_turn_message_remove",
        f"DELETE {_SESSION}/mid-turn-messages/{{messageId}}",
        "session_mid_turn_message_mutation",
        rpc="session/mid_turn_message/remove",
    ),
    _op(
        "mid_turn_messages",
        f"GET {_SESSION}/mid-turn-messages",
        "session_mid_turn_message_query",
        rpc="session/mid_turn_messages",
    ),
    _op("session_model", f"POST {_SESSION}/model", "session_set_model"),
    _op(
        "session_approval_mode",
        f"POST {_SESSION}/approval-mode",
        "session_approval_mode_control",
        rpc="session/approval_mode",
    ),
    _op(
        "session_recap",
        f"POST {_SESSION}/recap",
        "session_recap",
        rpc="session/recap",
        needs_agent=True,
    ),
    _op("session_btw", f"POST {_SESSION}/btw", "session_btw", rpc="session/btw", needs_agent=True),
    # -- commands of a user
    _op(
        "session_shell",
        f"POST {_SESSION}/shell",
        "session_shell_command",
        rpc="session/shell",
        access=Access.STRICT,
    ),
    _op(
        "session_shell_cancel",
        f"POST {_SESSION}/shell/{{shellId}}/cancel",
        "session_shell_command",
        rpc="session/shell/cancel",
        access=Access.STRICT,
    ),
    # -- what a session is
    _op("session_status", f"GET {_SESSION}/status", "session_status", rpc="session/status"),
    _op("session_context", f"GET {_SESSION}/context", "session_context", rpc="session/context"),
    _op(
        "session_context_usage",
        f"GET {_SESSION}/context-usage",
        "session_context_usage",
        rpc="session/context_usage",
    ),
    _op("session_stats", f"GET {_SESSION}/stats", "session_stats", rpc="session/stats"),
    _op(
        "session_supported_commands",
        f"GET {_SESSION}/supported-commands",
        "session_supported_commands",
        rpc="session/supported_commands",
    ),
    _op("session_tasks", f"GET {_SESSION}/tasks", "session_tasks", rpc="session/tasks"),
    _op(
        "session_task_cancel",
        f"POST {_SESSION}/tasks/{{taskId}}/cancel",
        "session_tasks",
        rpc="session/tasks/cancel",
        access=Access.STRICT,
    ),
    _op(
        "session_transcript",
        f"GET {_SESSION}/transcript",
        "session_transcript session_transcript_pagination",
        rpc="session/transcript",
    ),
    _op(
        "session_events",
        f"GET {_SESSION}/events",
        "session_events typed_event_schema slow_client_warning writer_idle_timeout",
        stream=True,
    ),
    # -- permissions
    _op(
        "session_permission_vote",
        f"POST {_SESSION}/permission/{{requestId}}",
        "session_permission_vote permission_mediation",
    ),
    _op("permission_vote", "POST /permission/{requestId}", "permission_vote"),
    _op(
        "permission_audit",
        "GET /workspace/permissions/audit",
        "permission_audit",
        rpc="workspace/permissions/audit",
    ),
    # -- the workspace
    _op(
        "session_list",
        "GET /workspace/{workspace}/sessions",
        "session_list",
    ),
    _op("session_list_plural", "GET /workspaces/{workspace}/sessions", "session_list"),
    _op(
        "workspace_reload",
        "POST /workspace/reload",
        "workspace_reload",
        rpc="workspace/reload",
        access=Access.STRICT,
    ),
    _op("workspace_providers", "GET /workspace/providers", "workspace_providers"),
    _op(
        "workspace_preflight",
        "GET /workspace/preflight",
        "workspace_preflight",
        rpc="workspace/preflight",
    ),
    _op("workspace_env", "GET /workspace/env", "workspace_env", rpc="workspace/env"),
    # -- its files
    _op(
        "file_read",
        "GET /file",
        "workspace_file_read workspace_file_read_cursor",
        rpc="file/read",
    ),
    _op("file_read_bytes", "GET /file/bytes", "workspace_file_bytes", rpc="file/read_bytes"),
    _op("file_stat", "GET /stat", "workspace_file_read", rpc="file/stat"),
    _op("file_list", "GET /list", "workspace_file_read", rpc="file/list"),
    _op("file_glob", "GET /glob", "workspace_file_read", rpc="file/glob"),
    _op(
        "file_write",
        "POST /file/write",
        "workspace_file_write",
        rpc="file/write",
        access=Access.STRICT,
        creates=True,
    ),
    _op(
        "file_edit",
        "POST /file/edit",
        "workspace_file_write",
        rpc="file/edit",
        access=Access.STRICT,
    ),
    # -- signing in
    _op("auth_status", "GET /workspace/auth/status", _SIGN_IN, rpc="workspace/auth/status"),
    _op(
        "auth_device_flow_start",
        "POST /workspace/auth/device-flow",
        _SIGN_IN,
        rpc="workspace/auth/device_flow/start",
        access=Access.STRICT,
        creates=True,
    ),
    _op(
        "auth_device_flow_get",
        "GET /workspace/auth/device-flow/{id}",
        _SIGN_IN,
        rpc="workspace/auth/device_flow/get",
        access=Access.STRICT,
    ),
    _op(
        "auth_device_flow_cancel",
        "DELETE /workspace/auth/device-flow/{id}",
        _SIGN_IN,
        rpc="workspace/auth/device_flow/cancel",
        access=Access.STRICT,
        success=204,
    ),
    # -- what the Qwen web shell asks on its way
    _op("brand", "GET /brand", "web_shell"),
    _op("workspace_settings", "GET /workspace/settings", "web_shell"),
    _op("workspace_models", "GET /workspace/models", "web_shell"),
    _op("workspace_git", "GET /workspaces/{workspace}/git", "web_shell"),
    _op("workspace_skills", "GET /workspaces/{workspace}/skills", "web_shell"),
    _op("session_goal", f"GET {_SESSION}/goal", "web_shell"),
    _op("sessions_delete", "POST /sessions/delete", "session_delete", rpc="sessions/delete"),
    _op(
        "workspace_events",
        "GET /workspace/events",
        "workspace_events workspace_file_events",
        stream=True,
    ),
)

OPERATIONS: Final[Mapping[str, Operation]] = MappingProxyType({row.name: row for row in _TABLE})
"""Name -> row, in the order in which features are told."""

RPC: Final[Mapping[str, Operation]] = MappingProxyType(
    {row.rpc: row for row in _TABLE if row.rpc is not None}
)
"""``_qwen/*`` method -> row."""


def features(*, agent_extensions: bool, flags: Mapping[str, bool]) -> list[str]:
    """The tags to advertise, each once. ``flags``: tags that hang on a setting or the agent."""
    tags: dict[str, None] = {}
    for row in _TABLE:
        if agent_extensions or not row.needs_agent:
            tags.update(dict.fromkeys(row.tags))
    tags.update(dict.fromkeys(flags))
    return [tag for tag in tags if flags.get(tag, True)]
