"""Settings: every number and switch of the daemon, and where its value came from.

Precedence: flag > environment ``ACP_GATEWAY_*`` > TOML file > default. The file is
``acp-gateway/config.toml`` in the user's configuration directory, or the one that ``--config`` or
``ACP_GATEWAY_CONFIG`` names; it is never looked for in a workspace: a repository must not choose
the command that runs. Settings are keys at the root of the file, ``-`` and ``_`` are the same in
them, relative paths start at the file's directory; ``[agents.NAME]`` tables describe agents
(`AgentSpec`), ``[auth.NAME]`` tables whom one can sign in at. In the environment a setting with
several values is one value or a JSON array.

This module holds the shapes and the errors; `acp_gateway.config_load` reads and checks.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import attrs

APP_NAME: Final = "acp-gateway"
ENV_PREFIX: Final = "ACP_GATEWAY_"
CONFIG_VARIABLE: Final = "ACP_GATEWAY_CONFIG"
PACKAGE_PATH: Final = str(Path(__file__).resolve().parents[1])
"""Directory to import this package from. Every Python that is started in somebody's workspace gets
it as PYTHONPATH and runs with -P: without that, -m would import from the workspace first.
"""
SECRET_SETTINGS: Final = frozenset({"token"})
"""Settings whose value is never printed."""

KIB = 1024
MIB = 1024 * KIB

Isolation = Literal["session", "shared"]
LogFormat = Literal["auto", "console", "json"]
LogLevel = Literal["auto", "debug", "info", "warning", "error"]
PermissionPolicy = Literal["first-responder", "designated", "consensus", "local-only"]


@attrs.frozen(kw_only=True)
class Settings:
    """All settings. Times are seconds, sizes are bytes."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs a token."""
    port: int = 4170
    """TCP port; 0 takes any free one."""
    tcp: bool = True
    """Listen on TCP; without it on the Unix socket alone."""
    unix_socket: Path | None = None
    """Unix socket to listen on beside TCP."""
    unix_socket_mode: str = "0600"
    """Its mode, octal; more than the owner's needs a token."""
    workspace: tuple[Path, ...] = ()
    """Roots that sessions may work in; the current directory when empty."""
    agent: tuple[str, ...] = ("auto",)
    """Agents to serve: NAME, 'COMMAND ARGS' or NAME=COMMAND. The first is the default."""
    isolation: Isolation = "session"
    """``session``: a child process for each session. ``shared``: sessions share children."""
    max_sessions: int = 20
    token: str | None = attrs.field(default=None, repr=False)
    """Bearer token that clients must present."""
    token_file: Path | None = None
    """File whose first line is the token."""
    tokens_file: Path | None = None
    """File of the named tokens (``acp-gateway token``); in the state directory when absent."""
    jwt_jwks: str | None = None
    """File or URL of the keys (JWK set) of an outside issuer whose JWTs let clients in."""
    jwt_issuer: str | None = None
    """``iss`` that its tokens must have."""
    jwt_audience: str | None = None
    """``aud`` that its tokens must have or hold."""
    jwt_scope_claim: str = "scope"
    """Claim with the scopes: a list, or words in a text; dots lead into objects."""
    require_auth: bool = False
    """Refuse to start without a token, also on loopback."""
    strict_acp: bool = False
    """Follow the remote transport RFD to the letter where real clients need leniency."""
    trust_loopback: bool = False
    """Let clients use strict mutation routes although no token is configured."""
    allow_origin: tuple[str, ...] = ()
    """Extra Origins (scheme://host[:port]) that browsers may connect from; ``*``: any, which needs
    a token."""
    public_url: str | None = None
    """Where a proxy serves the gateway: ``https://host[:port][/base]``."""
    trusted_proxy: tuple[str, ...] = ()
    """Addresses and ranges (or ``unix``) whose forwarded headers are believed."""
    rate_limit: bool = False
    """Limit the requests of each caller."""
    rate_limit_prompt: int = 10
    """Prompts of one caller in a window."""
    rate_limit_mutation: int = 30
    """Other requests of one caller that change something, in a window."""
    rate_limit_read: int = 120
    """Requests of one caller that only read, in a window."""
    rate_limit_window: float = 60.0
    """The window of the rate limits."""
    permission_timeout: float = 300.0
    """An unanswered permission request is answered ``cancelled`` after this long; 0: never."""
    permission_policy: PermissionPolicy = "first-responder"
    """Who may answer a permission request: ``first-responder``, ``designated`` (who sent the
    prompt), ``consensus`` (a majority of the clients), ``local-only`` (this machine)."""
    consensus_quorum: int = 0
    """Votes that ``consensus`` needs; 0: more than half of the clients."""
    permission_audit: Path | None = None
    """File that gets one JSON line for each step of a permission request."""
    audit_log: Path | None = None
    """File that gets one JSON line for each of those steps and for each access to a file."""
    audit_raw_paths: bool = False
    """Name files in it, and what was wrong with them; else only a hash of the path."""
    trust_workspace: bool = True
    """False: files of the workspace can be read through the gateway, and not be changed."""
    watch_files: bool = True
    """Tell readers of the workspace's events which files change."""
    max_queued_prompts: int = 5
    """Prompts of one session that may run or wait; 0: no limit."""
    prompt_deadline: float = 0.0
    """A turn that runs for longer is ended with an error; 0: never."""
    web: Path | None = None
    """Directory with a user's own build of a web client, served at ``/``."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    event_ring_size: int = 8000
    """Events kept per session for replay."""
    event_ring_bytes: int = 32 * MIB
    """Bytes of events kept per session for replay."""
    total_ring_bytes: int = 256 * MIB
    """Bytes of events kept by all sessions together."""
    transcript_bytes: int = 8 * MIB
    """Bytes of compacted history kept per session beside the ring."""
    open: bool = False
    """Open the web page in a browser after start."""
    log_format: LogFormat = "auto"
    """``auto``: console on a terminal, else JSON lines."""
    log_file: Path | None = None
    """File that the log goes to besides stderr; ``none``: no file. Else ``log/daemon.log`` in the
    user's state directory."""
    log_level: LogLevel = "auto"
    """Least important lines of the log. ``auto``: ``info``, and ``warning`` on a terminal."""
    trace_wire: Path | None = None
    """File that gets every message of clients and agents, secrets redacted."""
    otlp_endpoint: str | None = None
    """Base URL of an OpenTelemetry collector that traces are sent to (OTLP over HTTP)."""

    handshake_timeout: float = 10.0
    """Time an agent has to answer initialize (a profile may ask for more)."""
    agent_request_timeout: float = 60.0
    """Time an agent has to answer anything but a prompt."""
    cancel_timeout: float = 10.0
    """Time an agent has to end a cancelled turn before it is stopped."""
    stall_timeout: float = 2.0
    """A subscriber whose socket took nothing for this long no longer holds up its session."""
    evict_timeout: float = 10.0
    """A peer whose socket took nothing for this long is disconnected."""
    initialize_timeout: float = 30.0
    """Time a new connection has to send initialize."""
    linger: float = 1800.0
    """An unattached, idle session is closed after this long."""
    linger_unprompted: float = 60.0
    """The same for a session that was never prompted."""
    http_connection_idle: float = 300.0
    """A Streamable HTTP connection without an open stream ends after this long."""
    shutdown_grace: float = 10.0
    """Time that SIGTERM leaves for running turns and agents to end."""
    max_connections: int = 64
    """``/acp`` connections, WebSocket and HTTP together."""
    max_tcp_connections: int = 512
    """Sockets of any kind."""
    max_peer_connections: int = 128
    """Sockets from one address, not of this machine or a trusted proxy; 0: no limit."""
    max_requests_in_flight: int = 256
    """Requests of one ``/acp`` connection that are not answered yet."""
    max_header_bytes: int = 64 * KIB
    """Largest head of an HTTP request."""
    header_timeout: float = 10.0
    """Time a new connection has to send the head of a request, and for its TLS handshake."""
    body_timeout: float = 60.0
    """Time a request has to send its body."""
    http_idle_timeout: float = 75.0
    """A connection that has nothing to ask is closed after this long."""
    max_subscribers: int = 64
    """Subscribers of one session."""
    max_message_bytes: int = 10 * MIB
    """Largest message accepted from a client."""
    max_agent_line_bytes: int = 64 * MIB
    """Largest line accepted from an agent."""
    flow_pause_bytes: int = 4 * MIB
    """A progressing subscriber this far behind pauses the reading of its agent."""
    allow_private_auth_base_url: bool = False
    """Sign-in providers may be at addresses of a private network."""
    spare_agents: int = 1
    """Agents kept started ahead of need (``session`` isolation)."""
    spare_idle: float = 600.0
    """An unused spare is stopped after this long without clients."""
    max_agents: int = 0
    """Agent processes at once; 0 derives it from the memory available at start."""
    sessions_per_agent: int = 20
    """Sessions that one child carries (``shared`` isolation)."""
    agent_idle: float = 600.0
    """A shared agent without sessions is stopped after this long."""
    health_interval: float = 15.0
    """Time between health checks of agents that can answer one."""
    enable_session_shell: bool = False
    """Let clients run commands in a session's directory. Ignored without a token, unless
    ``trust_loopback`` is set."""
    shell_timeout: float = 120.0
    """A command of a client that runs for longer is ended."""
    shell_output_bytes: int = 512 * KIB
    """Output of one command that is told; of more the beginning and the end."""
    max_shell_commands: int = 4
    """Commands of one session at once."""
    shell_env: tuple[str, ...] = ()
    """Further variables of the daemon that commands may see; ``*`` matches any characters."""


@attrs.frozen(kw_only=True)
class AgentSpec:
    """One ``[agents.NAME]`` table: a new agent, or changes to the known one of that name."""

    command: tuple[str, ...] | None = None
    """Words of the command; a string in the file is split as a shell splits words."""
    title: str | None = None
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Variables set for the agent."""
    env_pass: tuple[str, ...] = ()
    """Further variables of the daemon that the agent may see; ``*`` matches any characters."""
    cwd: Path | None = None
    """Directory the agent is started in; the session's workspace when absent."""
    handshake_timeout: float | None = None
    """Seconds; ``Settings.handshake_timeout`` when absent."""
    quirks: Mapping[str, Any] = attrs.field(factory=dict)
    """Fields of ``runtime.agent_profile.Quirks``."""


@attrs.frozen(kw_only=True)
class LoadedSettings:
    """What `load_settings` found."""

    settings: Settings
    sources: Mapping[str, str]
    """For each setting ``flag --port``, ``environment ACP_GATEWAY_PORT``, ``file PATH`` or
    ``default``."""
    agents: Mapping[str, AgentSpec] = attrs.field(factory=dict)
    """The ``[agents.NAME]`` tables of the file."""
    config_file: Path | None = None
    """The file that was read, if there was one."""
    warnings: tuple[str, ...] = ()
    """What may be meant, one sentence each."""
    auth: Mapping[str, Any] = attrs.field(factory=dict)
    """The ``[auth.NAME]`` tables of the file, unread: see ``runtime.sign_in_providers``."""


class ConfigError(Exception):
    """The configuration cannot be used. Nothing was started.

    ``message`` is one sentence, ``source`` says where the value came from (as in
    `LoadedSettings.sources`), ``remedy`` what to do. ``exit_code`` is the command's status.
    """

    exit_code: ClassVar[int] = 3
    kind: ClassVar[str] = "config_error"

    def __init__(
        self, message: str, *, remedy: str | None = None, source: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.source = source


class PortError(ConfigError):
    """The address cannot be listened on."""

    exit_code = 4
    kind = "port_unavailable"


class AgentNotFoundError(ConfigError):
    """An agent was asked for that is unknown or not installed."""

    exit_code = 5
    kind = "agent_not_found"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``Did you mean "port"?`` or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'Did you mean "{near[0]}"?' if near else ""


def is_loopback(host: str) -> bool:
    """True where only this machine can connect. Names but ``localhost`` count as public."""
    name = host.strip("[]").split("%")[0]
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def secret_line(path: Path, what: str, source: str) -> str:
    """The first line of a file, stripped. ``what`` is the file, for the `ConfigError`."""
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline(65536).strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The {what} {path} cannot be read: {error}.",
            remedy="Check that the file exists and that you may read it.",
            source=source,
        ) from error
    if not line:
        raise ConfigError(
            f"The first line of the {what} {path} is empty.",
            remedy="Put the secret there, and nothing before it.",
            source=source,
        )
    return line


def unix_path(target: str) -> str | None:
    """The absolute path that ``unix:PATH`` names; None for anything else.

    ``unix:///PATH`` is taken too.
    """
    if not target.lower().startswith("unix:"):
        return None
    path = target[len("unix:") :]
    path = path[2:] if path.startswith("//") else path
    return path if path.startswith("@") else os.path.abspath(os.path.expanduser(path))


def default_config_file() -> Path:
    """Where the user's file is looked for."""
    import platformdirs

    return platformdirs.user_config_path(APP_NAME, appauthor=False) / "config.toml"


def state_directory() -> Path:
    """Where this user's gateways keep what they need after their end; it may not be there yet."""
    import platformdirs

    return platformdirs.user_state_path(APP_NAME, appauthor=False)


AGENT_NAME: Final = r"[A-Za-z][A-Za-z0-9_-]{0,63}"
"""A name that can stand in a URL path."""


def split_command(text: str, source: str | None = None) -> tuple[str, ...]:
    """Words of a command line, split as a POSIX shell splits them. Raises `ConfigError`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(
            f"The command {text!r} has a quote that is never closed.",
            remedy="Close the quote, or escape it with a backslash.",
            source=source,
        ) from error
    if not words or not words[0]:
        raise ConfigError(
            "The command of an agent is empty.", remedy="Name a program.", source=source
        )
    return tuple(words)
