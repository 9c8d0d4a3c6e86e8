"""Each operation's handler."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from acp_gateway.transports.operations import (
    daemon,
    files,
    lists,
    permissions,
    reads,
    sessions,
    turns,
    web_shell,
)
from acp_gateway.transports.operations.call import Handler

HANDLERS: Final[Mapping[str, Handler]] = MappingProxyType(
    {
        "health": daemon.health,
        "readyz": daemon.readyz,
        "capabilities": daemon.capabilities,
        "daemon_status": daemon.status,
        "openapi": daemon.openapi,
        "session_create": sessions.create,
        "session_load": sessions.load,
        "session_resume": sessions.resume,
        "session_branch": sessions.branch,
        "session_rewind_snapshots": sessions.rewind_snapshots,
        "session_rewind": sessions.rewind,
        "session_detach": sessions.detach,
        "session_close": sessions.close,
        "session_metadata": sessions.metadata,
        "session_heartbeat": sessions.heartbeat,
        "session_prompt": turns.prompt,
        "session_cancel": turns.cancel,
        "pending_prompts": turns.pending,
        "pending_prompt_remove": turns.pending_remove,
        "mid_turn_message": turns.mid_turn,
        "mid_turn_message_remove": turns.mid_turn_remove,
        "mid_turn_messages": turns.mid_turn_list,
        "session_model": turns.model,
        "session_approval_mode": turns.approval_mode,
        "session_recap": turns.recap,
        "session_btw": turns.btw,
        "session_status": reads.status,
        "session_context": reads.context,
        "session_context_usage": reads.context_usage,
        "session_stats": reads.stats,
        "session_supported_commands": reads.supported_commands,
        "session_tasks": reads.tasks,
        "session_task_cancel": reads.task_cancel,
        "session_transcript": reads.transcript,
        "session_permission_vote": permissions.vote,
        "permission_vote": permissions.vote_anywhere,
        "permission_audit": permissions.audit,
        "session_list": lists.listing,
        "session_list_plural": lists.listing,
        "workspace_providers": web_shell.providers,
        "file_read": files.read,
        "file_read_bytes": files.read_bytes,
        "file_stat": files.stat,
        "file_list": files.listing,
        "file_glob": files.glob,
        "file_write": files.write,
        "file_edit": files.edit,
        "brand": web_shell.brand,
        "workspace_settings": web_shell.settings,
        "workspace_models": web_shell.models,
        "workspace_git": web_shell.git,
        "workspace_skills": web_shell.skills,
        "session_goal": web_shell.goal,
        "sessions_delete": sessions.delete_many,
    }
)
"""Streams have none here: `transports.rest.event_stream` serves them."""
