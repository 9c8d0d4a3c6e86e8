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
        help="Another Origin that browsers may connect from. May be repeated.",
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
