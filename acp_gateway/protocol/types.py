"""The parts of ACP messages that the gateway reads, and no others.

Rule 1: a shape is read from, never written out. What goes on to an agent or a client is the
message that came in, so members that nobody here knows survive.
Rule 2: how strict a field is follows the markers of the ACP v1 schema. A field with a default takes
it when its value is absent, null or wrong, unless it is marked `STRICT`; a tuple with a default
drops wrong items. Everything else must be right. `converter.read` does it.
Rule 3: wire names are the camelCase of the attribute names (or the mark `KEY`); ``_meta`` is
``meta``.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import attrs

Raw = dict[str, Any]
"""A JSON object, kept as the very object that came in."""

UInt = Annotated[int, "integer >= 0"]
Marker = Annotated[bool, "marker object"]
"""True for an object (also ``{}``), False for anything else: ACP's way to say "supported"."""
ProtocolVersion = Annotated[int, "uint16"]
"""Any value can be read: see `converter.read_protocol_version`."""
RequestId = str | int | None
"""JSON-RPC id. A bool is not one, though Python calls it an int."""
ContentBlock = Annotated[dict[str, Any], "content block"]
"""An object with a string ``type``; the five types of ACP v1 must have their required members."""
McpServer = Annotated[dict[str, Any], "mcp server"]
AuthMethod = Annotated[dict[str, Any], "auth method"]
ToolCall = Annotated[dict[str, Any], "tool call update"]

STRICT: Final = "acp_gateway.strict"
KEY: Final = "acp_gateway.key"


@attrs.frozen(kw_only=True)
class Shape:
    """Base of all shapes; also the params of a method without any of its own (``logout``)."""

    meta: Raw | None = None


@attrs.frozen(kw_only=True)
class Implementation(Shape):
    """``clientInfo`` and ``agentInfo``."""

    name: str
    version: str
    title: str | None = None


# -- initialize and authentication ---------------------------------------------------------------


@attrs.frozen(kw_only=True)
class FsCapabilities(Shape):
    read_text_file: bool = False
    write_text_file: bool = False


@attrs.frozen(kw_only=True)
class ElicitationCapabilities(Shape):
    form: Marker = False
    url: Marker = False


@attrs.frozen(kw_only=True)
class ClientAuthCapabilities(Shape):
    terminal: bool = False


@attrs.frozen(kw_only=True)
class ClientCapabilities(Shape):
    fs: FsCapabilities = FsCapabilities()
    terminal: bool = False
    elicitation: ElicitationCapabilities = ElicitationCapabilities()
    auth: ClientAuthCapabilities = ClientAuthCapabilities()


@attrs.frozen(kw_only=True)
class InitializeParams(Shape):
    protocol_version: ProtocolVersion
    client_capabilities: ClientCapabilities = ClientCapabilities()
    client_info: Implementation | None = None


@attrs.frozen(kw_only=True)
class PromptCapabilities(Shape):
    image: bool = False
    audio: bool = False
    embedded_context: bool = False


@attrs.frozen(kw_only=True)
class McpCapabilities(Shape):
    http: bool = False
    sse: bool = False


@attrs.frozen(kw_only=True)
class SessionCapabilities(Shape):
    list: Marker = False
    resume: Marker = False
    close: Marker = False
    delete: Marker = False
    fork: Marker = False
    additional_directories: Marker = False


@attrs.frozen(kw_only=True)
class AgentAuthCapabilities(Shape):
    logout: Marker = False


@attrs.frozen(kw_only=True)
class AgentCapabilities(Shape):
    load_session: bool = False
    prompt_capabilities: PromptCapabilities = PromptCapabilities()
    mcp_capabilities: McpCapabilities = McpCapabilities()
    session_capabilities: SessionCapabilities = SessionCapabilities()
    auth: AgentAuthCapabilities = AgentAuthCapabilities()


@attrs.frozen(kw_only=True)
class InitializeResult(Shape):
    """An agent's answer to ``initialize``."""

    protocol_version: ProtocolVersion
    agent_capabilities: AgentCapabilities = AgentCapabilities()
    raw_capabilities: Raw = attrs.field(factory=dict, metadata={KEY: "agentCapabilities"})
    """All of ``agentCapabilities`` as it came, for what is passed on to clients."""
    auth_methods: tuple[AuthMethod, ...] = ()
    agent_info: Implementation | None = None


@attrs.frozen(kw_only=True)
class AuthenticateParams(Shape):
    method_id: str


# -- sessions ------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class NewSessionParams(Shape):
    """``mcp_servers`` holds the usable ones only; ACP asks for the member, agents may insist."""

    cwd: str
    mcp_servers: tuple[McpServer, ...] = ()
    additional_directories: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class LoadSessionParams(NewSessionParams):
    session_id: str


@attrs.frozen(kw_only=True)
class ResumeSessionParams(LoadSessionParams):
    """The same members as ``session/load``."""


@attrs.frozen(kw_only=True)
class ForkSessionParams(LoadSessionParams):
    """``session_id`` is the session to copy."""


@attrs.frozen(kw_only=True)
class SessionState(Shape):
    """What new, load, resume and fork answer beside an id; each part as it came."""

    modes: Raw | None = None
    config_options: tuple[Raw, ...] = ()
    models: Raw | None = None
    """Not in ACP v1, but most agents send it."""


@attrs.frozen(kw_only=True)
class NewSessionResult(SessionState):
    """Also the answer to ``session/fork``."""

    session_id: str


@attrs.frozen(kw_only=True)
class ListSessionsParams(Shape):
    cwd: str | None = attrs.field(default=None, metadata={STRICT: True})
    cursor: str | None = attrs.field(default=None, metadata={STRICT: True})


@attrs.frozen(kw_only=True)
class SessionInfo(Shape):
    session_id: str
    cwd: str
    additional_directories: tuple[str, ...] = ()
    title: str | None = None
    updated_at: str | None = None


@attrs.frozen(kw_only=True)
class ListSessionsResult(Shape):
    sessions: tuple[SessionInfo, ...] = ()
    next_cursor: str | None = None


@attrs.frozen(kw_only=True)
class SessionIdParams(Shape):
    """Params of every method that names a session and nothing else that we read."""

    session_id: str


@attrs.frozen(kw_only=True)
class CancelParams(SessionIdParams):
    """``session/cancel``."""


@attrs.frozen(kw_only=True)
class PromptParams(SessionIdParams):
    prompt: list[ContentBlock]


@attrs.frozen(kw_only=True)
class PromptResult(Shape):
    """``stop_reason`` may be a word that ACP v1 does not know: the turn has ended all the same."""

    stop_reason: str


@attrs.frozen(kw_only=True)
class SetModeParams(SessionIdParams):
    mode_id: str


@attrs.frozen(kw_only=True)
class SetModelParams(SessionIdParams):
    model_id: str


@attrs.frozen(kw_only=True)
class SetConfigOptionParams(SessionIdParams):
    config_id: str
    value: str | bool


@attrs.frozen(kw_only=True)
class SetConfigOptionResult(Shape):
    config_options: tuple[Raw, ...] = ()


@attrs.frozen(kw_only=True)
class CancelRequestParams(Shape):
    request_id: RequestId


# -- what an agent asks of its client ------------------------------------------------------------

PermissionOptionKind = Literal["allow_once", "allow_always", "reject_once", "reject_always"]


@attrs.frozen(kw_only=True)
class PermissionOption(Shape):
    option_id: str
    name: str
    kind: PermissionOptionKind


@attrs.frozen(kw_only=True)
class PermissionRequestParams(SessionIdParams):
    tool_call: ToolCall
    options: tuple[PermissionOption, ...]


@attrs.frozen
class PermissionOutcome:
    """``option_id`` of the choice, or None for ``cancelled``."""

    option_id: str | None


@attrs.frozen(kw_only=True)
class RequestPermissionResult(Shape):
    outcome: PermissionOutcome
    answers: Raw | None = None
    """Qwen's questions are answered here: question index as a string -> text."""


@attrs.frozen(kw_only=True)
class ReadTextFileParams(SessionIdParams):
    path: str
    line: UInt | None = None
    """First line, counted from 1."""
    limit: UInt | None = None


@attrs.frozen(kw_only=True)
class WriteTextFileParams(SessionIdParams):
    path: str
    content: str


@attrs.frozen(kw_only=True)
class EnvVariable(Shape):
    name: str
    value: str


@attrs.frozen(kw_only=True)
class CreateTerminalParams(SessionIdParams):
    command: str
    args: tuple[str, ...] = ()
    env: tuple[EnvVariable, ...] = ()
    cwd: str | None = None
    output_byte_limit: UInt | None = None


@attrs.frozen(kw_only=True)
class CreateTerminalResult(Shape):
    terminal_id: str


@attrs.frozen(kw_only=True)
class TerminalParams(SessionIdParams):
    terminal_id: str


@attrs.frozen(kw_only=True)
class ElicitationParams(Shape):
    """``elicitation/create``; the scope is a session or a request of the client."""

    mode: str
    message: str
    session_id: str | None = None
    request_id: RequestId = None
    elicitation_id: str | None = None


@attrs.frozen(kw_only=True)
class ElicitationIdParams(Shape):
    elicitation_id: str
