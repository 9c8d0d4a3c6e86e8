"""The closed list of event types: what streams of a session and of the workspace carry.

``schemas/events/<name>.json`` is the schema of each one's ``data``, ``envelope.json`` of what is
around it; docs/events.md is the list for readers. Nothing else is published: a new type gets a row,
a constant and a schema first.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

import attrs

SESSION_UPDATE: Final = "session_update"
PROMPT_CANCELLED: Final = "prompt_cancelled"
PENDING_PROMPT_ADDED: Final = "pending_prompt_added"
PENDING_PROMPT_STARTED: Final = "pending_prompt_started"
PENDING_PROMPT_COMPLETED: Final = "pending_prompt_completed"
MID_TURN_MESSAGE_INJECTED: Final = "mid_turn_message_injected"
TURN_COMPLETE: Final = "turn_complete"
TURN_ERROR: Final = "turn_error"
FOLLOWUP_SUGGESTION: Final = "followup_suggestion"
AGENT_NOTIFICATION: Final = "agent_notification"
PERMISSION_REQUEST: Final = "permission_request"
PERMISSION_RESOLVED: Final = "permission_resolved"
PERMISSION_ALREADY_RESOLVED: Final = "permission_already_resolved"
PERMISSION_PARTIAL_VOTE: Final = "permission_partial_vote"
PERMISSION_FORBIDDEN: Final = "permission_forbidden"
MODEL_SWITCHED: Final = "model_switched"
MODEL_SWITCH_FAILED: Final = "model_switch_failed"
APPROVAL_MODE_CHANGED: Final = "approval_mode_changed"
SESSION_METADATA_UPDATED: Final = "session_metadata_updated"
SESSION_REWOUND: Final = "session_rewound"
SESSION_BRANCHED: Final = "session_branched"
SESSION_CLOSED: Final = "session_closed"
SESSION_DIED: Final = "session_died"
SESSION_SNAPSHOT: Final = "session_snapshot"
REPLAY_COMPLETE: Final = "replay_complete"
STATE_RESYNC_REQUIRED: Final = "state_resync_required"
SLOW_CLIENT_WARNING: Final = "slow_client_warning"
CLIENT_EVICTED: Final = "client_evicted"
STREAM_ERROR: Final = "stream_error"
HISTORY_TRUNCATED: Final = "history_truncated"
SESSION_CREATED: Final = "session_created"
USER_SHELL_COMMAND: Final = "user_shell_command"
USER_SHELL_RESULT: Final = "user_shell_result"
SETTINGS_RELOADED: Final = "settings_reloaded"
WORKSPACE_FILES_CHANGED: Final = "workspace_files_changed"
AUTH_DEVICE_FLOW_STARTED: Final = "auth_device_flow_started"
AUTH_DEVICE_FLOW_THROTTLED: Final = "auth_device_flow_throttled"
AUTH_DEVICE_FLOW_AUTHORIZED: Final = "auth_device_flow_authorized"
AUTH_DEVICE_FLOW_FAILED: Final = "auth_device_flow_failed"
AUTH_DEVICE_FLOW_CANCELLED: Final = "auth_device_flow_cancelled"


@attrs.frozen
class Event:
    """One type."""

    name: str
    summary: str
    """When it is published."""
    numbered: bool = True
    """Has an ``id`` and is replayed. Else it is synthetic: made for one reader."""
    scope: Literal["session", "workspace", "both"] = "session"
    """The streams that may carry it."""
    published: bool = True
    """False: clients know it, and nothing here publishes it yet."""


_ROWS: Final = (
    Event(
        SESSION_UPDATE,
        "Something in the conversation: a message chunk, a tool call, a plan, a mode; "
        "an ACP notification as it is.",
    ),
    Event(
        PROMPT_CANCELLED,
        "A cancel was asked for, the deadline has passed, or the agent failed; the "
        "envelope names the prompt, if one ran.",
    ),
    Event(PENDING_PROMPT_ADDED, "A prompt waits behind another."),
    Event(PENDING_PROMPT_STARTED, "A prompt that waited begins."),
    Event(
        PENDING_PROMPT_COMPLETED,
        "A prompt that waited is done (behind its turn_complete or turn_error), or was "
        "taken out (before it).",
    ),
    Event(
        MID_TURN_MESSAGE_INJECTED,
        "The agent took messages that were sent to it while it worked.",
    ),
    Event(
        TURN_COMPLETE,
        "A prompt ended with a stop reason; the last event of its turn but "
        "pending_prompt_completed and followup_suggestion.",
    ),
    Event(TURN_ERROR, "A prompt ended with an error, or with its session."),
    Event(FOLLOWUP_SUGGESTION, "What the user may want to say next, by the agent."),
    Event(
        AGENT_NOTIFICATION,
        "An extension notification of the agent that has no event type of its own.",
    ),
    Event(
        PERMISSION_REQUEST,
        "The agent asks for leave, or for an answer; the envelope names the client that prompted.",
    ),
    Event(
        PERMISSION_RESOLVED,
        "A request is settled; the envelope names the voter, as far as there is one.",
    ),
    Event(PERMISSION_ALREADY_RESOLVED, "A vote came too late."),
    Event(
        PERMISSION_PARTIAL_VOTE,
        "A vote counts, and more are needed; the envelope names the client that prompted.",
    ),
    Event(
        PERMISSION_FORBIDDEN,
        "The policy refused a vote; the envelope names the client that prompted.",
    ),
    Event(MODEL_SWITCHED, "The model changed."),
    Event(MODEL_SWITCH_FAILED, "The agent refused a model."),
    Event(APPROVAL_MODE_CHANGED, "The approval mode changed."),
    Event(SESSION_METADATA_UPDATED, "The title changed.", scope="both"),
    Event(SESSION_REWOUND, "The conversation went back to before an earlier prompt."),
    Event(SESSION_BRANCHED, "A new session was made from this one.", scope="both"),
    Event(SESSION_CLOSED, "The session was closed; the last event of its streams.", scope="both"),
    Event(
        SESSION_DIED,
        "The agent is gone, or the daemon ends; the last event of its event streams.",
        scope="both",
    ),
    Event(
        SESSION_SNAPSHOT,
        "Model and mode as they are; first on a stream that asked for it, or behind its replay.",
        numbered=False,
    ),
    Event(
        REPLAY_COMPLETE,
        "What was missed has been sent; what follows is new.",
        numbered=False,
        scope="both",
    ),
    Event(
        STATE_RESYNC_REQUIRED,
        "Events are missing between the last one that the client has and the next one "
        "here: load the session again.",
        numbered=False,
        scope="both",
    ),
    Event(
        SLOW_CLIENT_WARNING,
        "The client is slow: three quarters of what may wait for it is waiting.",
        numbered=False,
        scope="both",
    ),
    Event(
        CLIENT_EVICTED,
        "The client was too slow: its stream ends, and it may come back with the last "
        "id that it has.",
        numbered=False,
        scope="both",
    ),
    Event(
        STREAM_ERROR,
        "The stream ends because of an error of the gateway, or because its token has ended.",
        numbered=False,
        scope="both",
    ),
    Event(HISTORY_TRUNCATED, "First of a history whose beginning was dropped.", numbered=False),
    Event(SESSION_CREATED, "A session was opened.", scope="workspace"),
    Event(
        WORKSPACE_FILES_CHANGED,
        "Files were created, modified or deleted, by whomever; or so much may have changed that "
        "it is not told one by one.",
        scope="workspace",
    ),
    Event(
        USER_SHELL_COMMAND,
        "A client runs a command in the session's directory; what it writes comes as "
        "`session_update` with the update `shell_output`.",
    ),
    Event(USER_SHELL_RESULT, "That command ended; the last that is told of it."),
    Event("session_recording_degraded", "The history on disk has a hole.", published=False),
    Event("artifact_changed", "An artifact of the session changed.", published=False),
    Event("source_changed", "What the session was made from changed.", published=False),
    Event("memory_changed", "A memory file was written.", scope="both", published=False),
    Event("agent_changed", "The definition of a sub-agent changed.", scope="both", published=False),
    Event("tool_toggled", "A tool was turned on or off.", scope="both", published=False),
    Event("settings_changed", "A setting changed.", scope="both", published=False),
    Event(SETTINGS_RELOADED, "The settings were read again.", scope="both"),
    Event(
        "workspace_initialized",
        "The workspace's context file was made.",
        scope="both",
        published=False,
    ),
    Event(
        "trust_change_requested",
        "Somebody asks to trust the workspace, or no longer to.",
        scope="both",
        published=False,
    ),
    Event("extensions_changed", "Extensions of the agent changed.", scope="both", published=False),
    Event(
        "mcp_budget_warning",
        "Three quarters of the MCP servers that may run do.",
        scope="both",
        published=False,
    ),
    Event(
        "mcp_child_refused_batch",
        "MCP servers were not started: too many.",
        scope="both",
        published=False,
    ),
    Event("mcp_server_restarted", "An MCP server was started anew.", scope="both", published=False),
    Event(
        "mcp_server_restart_refused",
        "An MCP server was not started anew.",
        scope="both",
        published=False,
    ),
    Event(
        "mcp_server_changed",
        "An MCP server was approved, enabled, disabled or authenticated.",
        scope="both",
        published=False,
    ),
    Event(
        "mcp_server_added",
        "An MCP server was added while the daemon runs.",
        scope="both",
        published=False,
    ),
    Event("mcp_server_removed", "Such an MCP server was removed.", scope="both", published=False),
    Event(AUTH_DEVICE_FLOW_STARTED, "A sign-in at a provider began.", scope="both"),
    Event(AUTH_DEVICE_FLOW_THROTTLED, "The provider wants to be asked less often.", scope="both"),
    Event(AUTH_DEVICE_FLOW_AUTHORIZED, "The sign-in succeeded.", scope="both"),
    Event(AUTH_DEVICE_FLOW_FAILED, "The sign-in failed.", scope="both"),
    Event(AUTH_DEVICE_FLOW_CANCELLED, "The sign-in was given up.", scope="both"),
)

EVENTS: Final[Mapping[str, Event]] = MappingProxyType({row.name: row for row in _ROWS})
