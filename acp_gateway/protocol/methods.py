"""The methods of ACP v1 as data: who may send each, what it carries, what gates it.

Source: ACP v1 schema and, for streams, the remote transport RFD. Not here: methods that begin with
``_`` and the private ones of an agent's own; they are passed on or refused by their own tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import attrs

from . import types as t

Direction = Literal["to_agent", "to_client", "both"]
Kind = Literal["request", "notification"]
Scope = Literal["connection", "session"]


@attrs.frozen
class Method:
    """One row of the table."""

    name: str
    direction: Direction
    kind: Kind
    scope: Scope
    """``session``: params name a session, and a strict ``/acp`` wants ``Acp-Session-Id``."""
    stream: Scope
    """Streamable HTTP: where the answer to a client goes, or where a message to a client is sent.
    A ``session`` message without a session (elicitation by request) is sent on the connection's."""
    params: type[t.Shape] | None = None
    """None: only relayed, never read whole."""
    result: type[t.Shape] = t.Shape
    """Of a notification, and where the gateway only relays the answer: `types.Shape`."""
    capability: str | None = None
    """Path into the answer (``agentCapabilities…``) or the params (``clientCapabilities…``) of
    ``initialize``. None: always there, or told in another way (modes and config options come with
    the session)."""


def _to_agent(
    name: str,
    scope: Scope,
    stream: Scope,
    params: type[t.Shape],
    result: type[t.Shape] = t.Shape,
    capability: str | None = None,
    kind: Kind = "request",
) -> Method:
    return Method(name, "to_agent", kind, scope, stream, params, result, capability)


def _to_client(
    name: str,
    params: type[t.Shape] | None,
    result: type[t.Shape] = t.Shape,
    capability: str | None = None,
    kind: Kind = "request",
) -> Method:
    return Method(name, "to_client", kind, "session", "session", params, result, capability)


_SESSION: Final = "agentCapabilities.sessionCapabilities."
_TERMINAL: Final = "clientCapabilities.terminal"

_TABLE: Final = (
    _to_agent("initialize", "connection", "connection", t.InitializeParams, t.InitializeResult),
    _to_agent("authenticate", "connection", "connection", t.AuthenticateParams),
    _to_agent(
        "logout", "connection", "connection", t.Shape, capability="agentCapabilities.auth.logout"
    ),
    _to_agent("session/new", "connection", "connection", t.NewSessionParams, t.NewSessionResult),
    _to_agent(
        "session/list",
        "connection",
        "connection",
        t.ListSessionsParams,
        t.ListSessionsResult,
        _SESSION + "list",
    ),
    # The RFD names the connection's stream for the answer to load. It says nothing of resume, fork
    # and delete; their clients have no open stream of that session, or will have none, so their
    # answers go where every client listens. A client that closes has one.
    _to_agent(
        "session/load",
        "session",
        "connection",
        t.LoadSessionParams,
        t.SessionState,
        "agentCapabilities.loadSession",
    ),
    _to_agent(
        "session/resume",
        "session",
        "connection",
        t.ResumeSessionParams,
        t.SessionState,
        _SESSION + "resume",
    ),
    _to_agent(
        "session/fork",
        "session",
        "connection",
        t.ForkSessionParams,
        t.NewSessionResult,
        _SESSION + "fork",
    ),
    _to_agent(
        "session/delete",
        "session",
        "connection",
        t.SessionIdParams,
        capability=_SESSION + "delete",
    ),
    _to_agent(
        "session/close", "session", "session", t.SessionIdParams, capability=_SESSION + "close"
    ),
    _to_agent("session/prompt", "session", "session", t.PromptParams, t.PromptResult),
    _to_agent("session/cancel", "session", "session", t.CancelParams, kind="notification"),
    _to_agent("session/set_mode", "session", "session", t.SetModeParams),
    _to_agent(
        "session/set_config_option",
        "session",
        "session",
        t.SetConfigOptionParams,
        t.SetConfigOptionResult,
    ),
    # Not in ACP v1, but most agents and their clients have it.
    _to_agent("session/set_model", "session", "session", t.SetModelParams),
    # The hot path: the line is peeked at and relayed.
    _to_client("session/update", None, kind="notification"),
    _to_client("session/request_permission", t.PermissionRequestParams, t.RequestPermissionResult),
    _to_client(
        "fs/read_text_file", t.ReadTextFileParams, capability="clientCapabilities.fs.readTextFile"
    ),
    _to_client(
        "fs/write_text_file",
        t.WriteTextFileParams,
        capability="clientCapabilities.fs.writeTextFile",
    ),
    _to_client("terminal/create", t.CreateTerminalParams, t.CreateTerminalResult, _TERMINAL),
    _to_client("terminal/output", t.TerminalParams, capability=_TERMINAL),
    _to_client("terminal/wait_for_exit", t.TerminalParams, capability=_TERMINAL),
    _to_client("terminal/kill", t.TerminalParams, capability=_TERMINAL),
    _to_client("terminal/release", t.TerminalParams, capability=_TERMINAL),
    # Each mode has its own gate: elicitation.form or elicitation.url.
    _to_client(
        "elicitation/create", t.ElicitationParams, capability="clientCapabilities.elicitation"
    ),
    Method(
        "elicitation/complete",
        "to_client",
        "notification",
        "connection",
        "connection",
        t.ElicitationIdParams,
        capability="clientCapabilities.elicitation.url",
    ),
    # To a client it follows the request that it withdraws; those go out on the session's stream.
    Method(
        "$/cancel_request",
        "both",
        "notification",
        "connection",
        "session",
        t.CancelRequestParams,
    ),
)

METHODS: Final[Mapping[str, Method]] = MappingProxyType({row.name: row for row in _TABLE})
"""Name on the wire -> row."""


# -- private members of _meta --------------------------------------------------------------------

PRIVATE_META_PREFIX: Final = "qwen.daemon."
"""What a daemon and its own child tell each other: retry, attachment references, deadlines…"""
PRIVATE_META_KEYS: Final = frozenset(
    {
        "qwen-code/invocation",
        "qwen-code/private-parent-capability",
        "qwen.channel.outputMode",
        "qwen.channel.prompt",
        "qwen.goalProposalApproval",
        "qwen.submittedPrompt",
        # Not privileges, but they make the agent answer a load in a form that only the gateway
        # asks for: history inside the result, or a part of it.
        "qwen.session.loadReplayMode",
        "qwen.session.loadReplayPageSize",
    }
)
"""A client that sets these would speak to the child in the gateway's name."""


def strip_private_meta(params: dict[str, Any]) -> dict[str, Any]:
    """``params`` without private members in ``_meta``; the same object when there are none.

    Never changes its argument. ``_meta`` itself goes when nothing is left in it.
    """
    meta = params.get("_meta")
    if not isinstance(meta, dict):
        return params
    kept = {
        key: value
        for key, value in meta.items()
        if key not in PRIVATE_META_KEYS and not key.startswith(PRIVATE_META_PREFIX)
    }
    if len(kept) == len(meta):
        return params
    stripped = {key: value for key, value in params.items() if key != "_meta"}
    if kept:
        stripped["_meta"] = kept
    return stripped
