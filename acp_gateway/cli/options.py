"""The flags that are settings, and what turns them into settings and agents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from acp_gateway.config import LoadedSettings
    from acp_gateway.runtime.agent_profile import Profiles


def _agent_names(_ctx: click.Context, _param: click.Parameter, start: str) -> list[str]:
    from acp_gateway.runtime.agent_profile import KNOWN_AGENTS

    return [name for name in ("auto", *KNOWN_AGENTS) if name.startswith(start)]


_NUMBER = click.IntRange(min=1)
_OPTIONS = (
    click.option("--host", help="Address to listen on [127.0.0.1]; another one needs a token."),
    click.option("--port", type=click.IntRange(0, 65535), help="TCP port [4170]; 0 takes any."),
    click.option(
        "--tcp/--no-tcp", default=None, help="Listen on TCP [yes], or on the Unix socket alone."
    ),
    click.option("--unix-socket", metavar="PATH", help="Listen on this Unix socket as well."),
    click.option(
        "--unix-socket-mode",
        metavar="MODE",
        help="Its mode [0600]; one that lets others in needs a token.",
    ),
    click.option(
        "--workspace",
        multiple=True,
        metavar="DIR",
        help="Root that sessions may work in [current directory]. May be repeated.",
    ),
    click.option(
        "--agent",
        multiple=True,
        metavar="AGENT",
        shell_complete=_agent_names,
        help="auto, a known NAME (see `acp-gateway agents`), 'COMMAND ARGS' or "
        "NAME='COMMAND ARGS' [auto]. May be repeated; the first is the default.",
    ),
    click.option(
        "--isolation",
        type=click.Choice(["session", "shared"]),
        help="A child process per session, or shared by sessions [session].",
    ),
    click.option("--max-sessions", type=_NUMBER, metavar="N", help="Live sessions [20]."),
    click.option(
        "--token",
        help="Token that clients must present. Other users can see it in the process list: "
        "prefer --token-file or ACP_GATEWAY_TOKEN.",
    ),
    click.option("--token-file", metavar="FILE", help="File whose first line is the token."),
    click.option(
        "--tokens-file",
        metavar="FILE",
        help="Named tokens, see `acp-gateway token` [in the state directory].",
    ),
    click.option(
        "--jwt-jwks",
        metavar="FILE|URL",
        help="Keys of an outside issuer whose JWTs let clients in (needs acp-gateway[jwt]).",
    ),
    click.option("--jwt-issuer", metavar="ISS", help="Who must have issued such a token."),
    click.option("--jwt-audience", metavar="AUD", help="For whom it must have been issued."),
    click.option("--jwt-scope-claim", metavar="CLAIM", help="Where its scopes are [scope]."),
    click.option(
        "--require-auth/--no-require-auth",
        default=None,
        help="Refuse to start without a token, also on loopback.",
    ),
    click.option(
        "--strict-acp/--no-strict-acp",
        default=None,
        help="Follow the transport specification to the letter; some real clients do not.",
    ),
    click.option(
        "--trust-loopback/--no-trust-loopback",
        default=None,
        help="Let clients on this machine use strict mutation routes without a token.",
    ),
    click.option(
        "--allow-origin",
        multiple=True,
        metavar="ORIGIN",
        help="Another Origin that browsers may connect from; * for any. May be repeated.",
    ),
    click.option(
        "--public-url",
        metavar="URL",
        help="Where a proxy serves this gateway: https://host[:port][/base].",
    ),
    click.option(
        "--trusted-proxy",
        multiple=True,
        metavar="ADDRESS",
        help="Believe the forwarded headers of this address or range. May be repeated.",
    ),
    click.option(
        "--rate-limit/--no-rate-limit", default=None, help="Limit the requests of each caller."
    ),
    click.option(
        "--rate-limit-prompt", type=_NUMBER, metavar="N", help="Prompts in a window [10]."
    ),
    click.option(
        "--rate-limit-mutation", type=_NUMBER, metavar="N", help="Other changes in a window [30]."
    ),
    click.option("--rate-limit-read", type=_NUMBER, metavar="N", help="Reads in a window [120]."),
    click.option(
        "--rate-limit-window",
        type=click.FloatRange(min=1),
        metavar="SECONDS",
        help="The window of the rate limits [60].",
    ),
    click.option(
        "--allow-private-auth-base-url/--no-allow-private-auth-base-url",
        default=None,
        help="Let sign-in providers be at addresses of a private network.",
    ),
    click.option(
        "--permission-timeout",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        help="An unanswered permission request is cancelled after this long; 0: never [300].",
    ),
    click.option(
        "--permission-policy",
        type=click.Choice(["first-responder", "designated", "consensus", "local-only"]),
        help="Who may answer a permission request: anybody, who sent the prompt, a majority, "
        "this machine [first-responder].",
    ),
    click.option(
        "--consensus-quorum",
        type=click.IntRange(min=0),
        metavar="N",
        help="Votes that the policy consensus needs [0: more than half of the clients].",
    ),
    click.option(
        "--permission-audit",
        metavar="FILE",
        help="Append one JSON line for each step of a permission request.",
    ),
    click.option(
        "--audit-log",
        metavar="FILE",
        help="Append one JSON line for each of those steps and for each access to a file.",
    ),
    click.option(
        "--audit-raw-paths/--no-audit-raw-paths",
        default=None,
        help="Name the files in it; without, a hash stands for each path.",
    ),
    click.option(
        "--trust-workspace/--no-trust-workspace",
        default=None,
        help="Whether files of the workspace may be changed through the gateway [they may].",
    ),
    click.option(
        "--watch-files/--no-watch-files",
        default=None,
        help="Whether readers of /workspace/events are told which files change [they are].",
    ),
    click.option(
        "--prompt-deadline",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        help="End a turn that runs for longer with an error [0: never].",
    ),
    click.option(
        "--max-queued-prompts",
        type=click.IntRange(min=0),
        metavar="N",
        help="Prompts of one session that may run or wait; 0: no limit [5].",
    ),
    click.option(
        "--enable-session-shell/--no-enable-session-shell",
        default=None,
        help="Let clients run commands in a session's directory; needs a token.",
    ),
    click.option("--tls-cert", metavar="FILE", help="Certificate chain, PEM."),
    click.option("--tls-key", metavar="FILE", help="Its private key, PEM."),
    click.option(
        "--event-ring-size",
        type=_NUMBER,
        metavar="N",
        help="Events kept per session for replay [8000].",
    ),
    click.option("--web", metavar="DIR", help="Serve your own build of a web client at /."),
    click.option(
        "--open/--no-open", default=None, help="Open the web page in a browser after start."
    ),
    click.option(
        "--log-format",
        type=click.Choice(["auto", "console", "json"]),
        help="Console lines or JSON lines [auto: console on a terminal].",
    ),
    click.option(
        "--log-file",
        metavar="FILE|none",
        help="Where the log goes besides stderr [log/daemon.log in the user's state directory].",
    ),
    click.option(
        "--log-level",
        type=click.Choice(["auto", "debug", "info", "warning", "error"]),
        help="Least important lines of the log [auto: info, on a terminal warning].",
    ),
    click.option(
        "--trace-wire",
        metavar="FILE",
        help="Append every message of clients and agents, with secrets redacted.",
    ),
    click.option(
        "--otlp-endpoint",
        metavar="URL",
        help="Send OpenTelemetry traces there, OTLP over HTTP [OTEL_EXPORTER_OTLP_ENDPOINT].",
    ),
    click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="TOML file to read instead of the user's own.",
    ),
)


def settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the function gets the flags as keywords that `load` takes."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def load(flags: dict[str, Any]) -> LoadedSettings:
    """Settings from `settings_options` flags. Raises `ConfigError`."""
    from acp_gateway.cli.base import without
    from acp_gateway.config_load import load_settings

    flags = dict(flags)
    with without("pydantic"):  # typed-settings would ask it about the type of every setting
        return load_settings(flags, config_file=flags.pop("config_file", None))


def resolve(loaded: LoadedSettings) -> Profiles:
    """The agents that the settings name. Raises `ConfigError` with the origin of the setting."""
    from acp_gateway.config import ConfigError
    from acp_gateway.runtime.agent_profile import resolve_agents

    try:
        return resolve_agents(loaded.settings.agent, loaded.agents)
    except ConfigError as error:
        if error.source == "agent":
            error.source = loaded.sources["agent"]
        raise
