"""Every failure that a client can see, in one table.

Rule 1: a `GatewayError` is the only exception whose text reaches the wire; a foreign exception
becomes ``internal`` without its text. Rule 2: the kind decides the JSON-RPC code and the HTTP
status; nobody else does. Codes: ACP v1 "Error codes"; JSON-RPC 2.0 §5.1.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
AUTH_REQUIRED: Final = -32000
RESOURCE_NOT_FOUND: Final = -32002
REQUEST_CANCELLED: Final = -32800


class ErrorKind(Enum):
    """Closed set. Value: (word on the wire, JSON-RPC code, HTTP status, may a retry help).

    The codes stand as numbers: in this body a constant's name would mean the member above it.
    """

    PARSE_ERROR = ("parse_error", -32700, 400, False)
    INVALID_REQUEST = ("invalid_request", -32600, 400, False)
    NOT_INITIALIZED = ("not_initialized", -32600, 400, False)
    ALREADY_INITIALIZED = ("already_initialized", -32600, 400, False)
    BATCH_UNSUPPORTED = ("batch_unsupported", -32600, 501, False)
    METHOD_NOT_FOUND = ("method_not_found", -32601, 404, False)
    INVALID_PARAMS = ("invalid_params", -32602, 400, False)
    WORKSPACE_MISMATCH = ("workspace_mismatch", -32602, 400, False)
    SESSION_NOT_ATTACHED = ("session_not_attached", -32602, 403, False)
    SESSION_NOT_FOUND = ("session_not_found", -32002, 404, False)
    RESOURCE_NOT_FOUND = ("resource_not_found", -32002, 404, False)
    FILE_ERROR = ("file_error", -32603, 400, False)
    PATH_OUTSIDE_WORKSPACE = ("path_outside_workspace", -32602, 400, False)
    SYMLINK_ESCAPE = ("symlink_escape", -32602, 400, False)
    PATH_NOT_FOUND = ("path_not_found", -32002, 404, False)
    UNTRUSTED_WORKSPACE = ("untrusted_workspace", -32602, 403, False)
    PERMISSION_DENIED = ("permission_denied", -32602, 403, False)
    HASH_MISMATCH = ("hash_mismatch", -32602, 409, False)
    FILE_ALREADY_EXISTS = ("file_already_exists", -32602, 409, False)
    FILE_TOO_LARGE = ("file_too_large", -32602, 413, False)
    BINARY_FILE = ("binary_file", -32602, 422, False)
    TEXT_NOT_FOUND = ("text_not_found", -32602, 422, False)
    AMBIGUOUS_TEXT_MATCH = ("ambiguous_text_match", -32602, 422, False)
    IO_ERROR = ("io_error", -32603, 503, True)
    REQUEST_CANCELLED = ("request_cancelled", -32800, 499, False)
    AUTH_REQUIRED = ("auth_required", -32000, 401, False)
    RATE_LIMITED = ("rate_limit_exceeded", -32603, 429, True)
    HEADERS_TOO_LARGE = ("headers_too_large", -32600, 431, False)
    CONNECTION_NOT_FOUND = ("connection_not_found", -32600, 404, False)
    CONNECTION_LIMIT = ("connection_limit_exceeded", -32603, 503, True)
    SUBSCRIBER_LIMIT = ("subscriber_limit_exceeded", -32603, 429, True)
    REQUEST_LIMIT = ("request_limit_exceeded", -32603, 503, True)
    SESSION_LIMIT = ("session_limit_exceeded", -32603, 503, True)
    AGENT_LIMIT = ("agent_limit_exceeded", -32603, 503, True)
    PROMPT_QUEUE_FULL = ("prompt_queue_full", -32603, 503, True)
    SESSION_CLOSED = ("session_closed", -32002, 404, False)
    SESSION_WRITER_CONFLICT = ("session_writer_conflict", -32020, 409, False)
    AGENT_START_FAILED = ("agent_start_failed", -32603, 502, True)
    AGENT_EXITED = ("agent_exited", -32603, 502, True)
    AGENT_UNRESPONSIVE = ("agent_unresponsive", -32603, 504, True)
    AGENT_ERROR = ("agent_error", -32603, 502, False)
    UNSUPPORTED_BY_AGENT = ("unsupported_by_agent", -32601, 501, False)
    ROUTE_NOT_FOUND = ("route_not_found", -32601, 404, False)
    METHOD_NOT_ALLOWED = ("method_not_allowed", -32601, 405, False)
    NOT_ACCEPTABLE = ("not_acceptable", -32600, 406, False)
    PAYLOAD_TOO_LARGE = ("payload_too_large", -32600, 413, False)
    UNSUPPORTED_MEDIA_TYPE = ("unsupported_media_type", -32600, 415, False)
    TOKEN_REQUIRED = ("token_required", -32000, 401, False)
    INSUFFICIENT_SCOPE = ("insufficient_scope", -32602, 403, False)
    PAIRING_FAILED = ("pairing_failed", -32602, 403, False)
    PAIRING_LIMIT = ("pairing_limit_exceeded", -32603, 429, True)
    INVALID_TOKEN_NAME = ("invalid_token_name", -32602, 400, False)
    TOKEN_NAME_TAKEN = ("token_name_taken", -32602, 409, False)
    INVALID_CLIENT_ID = ("invalid_client_id", -32602, 400, False)
    INVALID_SESSION_SCOPE = ("invalid_session_scope", -32602, 400, False)
    INVALID_SESSION_ID = ("invalid_session_id", -32602, 400, False)
    INVALID_APPROVAL_MODE = ("invalid_approval_mode", -32602, 400, False)
    INVALID_PERMISSION_POLICY = ("invalid_permission_policy", -32602, 400, False)
    INVALID_METADATA = ("invalid_metadata", -32602, 400, False)
    INVALID_DEADLINE = ("invalid_deadline_ms", -32602, 400, False)
    INVALID_MAX_QUEUED = ("invalid_max_queued", -32602, 400, False)
    INVALID_CURSOR = ("invalid_cursor", -32602, 400, False)
    INVALID_DETAIL = ("invalid_detail", -32602, 400, False)
    INVALID_LIMIT = ("invalid_limit", -32602, 400, False)
    INVALID_OUTCOME = ("invalid_outcome", -32602, 400, False)
    INVALID_OPTION_ID = ("invalid_option_id", -32602, 400, False)
    INVALID_PERSIST_FLAG = ("invalid_persist_flag", -32602, 400, False)
    INVALID_REWIND_TARGET = ("invalid_rewind_target", -32602, 400, False)
    MISSING_PROMPT_ID = ("missing_prompt_id", -32602, 400, False)
    PERMISSION_NOT_FOUND = ("permission_not_found", -32602, 404, False)
    PERMISSION_ALREADY_RESOLVED = ("permission_already_resolved", -32602, 404, False)
    SESSION_SHELL_DISABLED = ("session_shell_disabled", -32602, 403, False)
    CLIENT_ID_REQUIRED = ("client_id_required", -32602, 403, False)
    PERMISSION_FORBIDDEN = ("permission_forbidden", -32602, 403, False)
    CANCEL_SENTINEL_COLLISION = ("cancel_sentinel_collision", -32602, 400, False)
    PROMPT_NOT_FOUND = ("prompt_not_found", -32602, 404, False)
    PROMPT_DEADLINE = ("prompt_deadline_exceeded", -32603, 504, False)
    IDEMPOTENCY_KEY_REUSED = ("idempotency_key_reused", -32602, 422, False)
    SESSION_CLOSING = ("session_closing", -32002, 404, True)
    SESSION_ID_CONFLICT = ("session_id_conflict", -32602, 409, False)
    SESSION_BUSY = ("session_busy", -32603, 409, True)
    BRANCH_WHILE_PROMPT_ACTIVE = ("branch_while_prompt_active", -32603, 409, True)
    INVALID_CONFIGURATION = ("invalid_configuration", -32603, 422, False)
    UNSUPPORTED_PROVIDER = ("unsupported_provider", -32602, 400, False)
    DEVICE_FLOW_NOT_FOUND = ("device_flow_not_found", -32602, 404, False)
    TOO_MANY_ACTIVE_FLOWS = ("too_many_active_flows", -32603, 409, False)
    UPSTREAM_ERROR = ("upstream_error", -32603, 502, True)
    SHUTTING_DOWN = ("shutting_down", -32603, 503, True)
    INTERNAL = ("internal", -32603, 500, False)

    def __init__(self, word: str, code: int, http_status: int, retryable: bool) -> None:
        self.word = word
        self.code = code
        self.http_status = http_status
        self.retryable = retryable


class GatewayError(Exception):
    """An expected failure.

    ``message`` is one sentence for a person; ``remedy`` says what to do about it; ``data`` are
    further members of the JSON-RPC ``error.data``.
    """

    def __init__(
        self, kind: ErrorKind, message: str, *, remedy: str | None = None, **data: Any
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.remedy = remedy
        self.data = data

    def to_jsonrpc(self) -> dict[str, Any]:
        """The JSON-RPC error object; ``data`` keeps the members that Qwen's SDK maps to HTTP."""
        data: dict[str, Any] = {
            "errorKind": self.kind.word,
            "code": self.kind.word,
            "httpStatus": self.kind.http_status,
            **self.data,
        }
        if self.kind.retryable:
            data.setdefault("retryable", True)
        if self.remedy:
            data["remedy"] = self.remedy
        return {"code": self.kind.code, "message": self.message, "data": data}

    def to_http(self) -> tuple[int, dict[str, Any]]:
        """Status and JSON body of the same failure over HTTP."""
        body: dict[str, Any] = {"error": self.message, "code": self.kind.word, **self.data}
        if self.remedy:
            body["remedy"] = self.remedy
        return self.kind.http_status, body


class FileError(GatewayError):
    """A failure about a file of the workspace.

    Its body has the members of the Qwen daemon's file errors too: ``errorKind``, ``status`` and
    ``hint`` (the remedy).
    """

    def to_jsonrpc(self) -> dict[str, Any]:
        error = super().to_jsonrpc()
        error["data"]["status"] = self.kind.http_status
        if self.remedy:
            error["data"]["hint"] = self.remedy
        if self.kind is ErrorKind.PARSE_ERROR:
            # The JSON was fine, a member is not.
            error["code"] = INVALID_PARAMS
        return error

    def to_http(self) -> tuple[int, dict[str, Any]]:
        status, body = super().to_http()
        # The one word that differs there.
        word = "internal_error" if self.kind is ErrorKind.INTERNAL else self.kind.word
        body |= {"errorKind": word, "status": status}
        if self.remedy:
            body["hint"] = self.remedy
        return status, body


def unsupported(exc: AgentError, agent: str, method: str) -> GatewayError:
    """``exc``, restated when all it says is that the agent has no such method."""
    if exc.error.get("code") != METHOD_NOT_FOUND:
        return exc
    return GatewayError(
        ErrorKind.UNSUPPORTED_BY_AGENT,
        f'The agent {agent} does not know "{method}"',
        method=method,
        agent=agent,
    )


class AgentError(GatewayError):
    """The agent answered a request with an error of its own; it is passed on unchanged."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(ErrorKind.AGENT_ERROR, str(error.get("message", "agent error")))
        self.error = error

    def to_jsonrpc(self) -> dict[str, Any]:
        return self.error

    def to_http(self) -> tuple[int, dict[str, Any]]:
        """The agent's own error: ``code`` is its number (the body shape that clients know)."""
        code = self.error.get("code")
        body = {
            "error": self.message,
            "code": code if isinstance(code, int) else INTERNAL_ERROR,
            **({"data": self.error["data"]} if self.error.get("data") is not None else {}),
        }
        return self.kind.http_status, body
