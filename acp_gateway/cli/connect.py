"""``connect``: stdio for editors that can only start a command. Protocol alone goes to stdout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit, urlunsplit

import click

from acp_gateway.cli.base import command

if TYPE_CHECKING:
    from acp_gateway.runtime.runtime_file import RuntimeInfo


@command("connect")
@click.option(
    "--token",
    envvar="ACP_GATEWAY_TOKEN",
    help="Token of the gateway [ACP_GATEWAY_TOKEN, else from its runtime file].",
)
@click.option("--token-file", metavar="FILE", help="File whose first line is the token.")
@click.option("--spawn", is_flag=True, help="Start a gateway when none serves the workspace.")
@click.option(
    "--workspace",
    default=".",
    metavar="DIR",
    help="With --spawn: the directory that must be served [current directory].",
)
@click.option(
    "--agent", multiple=True, metavar="AGENT", help="With --spawn: as for `acp-gateway serve`."
)
@click.option("--unix", metavar="PATH", help="Connect over this Unix socket: URL unix:PATH.")
@click.argument("url", required=False)
def connect(
    url: str | None,
    token: str | None,
    token_file: str | None,
    spawn: bool,
    workspace: str,
    agent: tuple[str, ...],
    unix: str | None,
) -> int:
    """Speak ACP on stdin and stdout, one message a line, with the gateway at URL.

    Without a URL the gateway of this user is taken: the only one, or the one that serves the
    current directory.
    """
    if unix:
        if url:
            raise click.UsageError("Give a URL or --unix, not both.")
        url = f"unix:{unix}"
    if spawn and url:
        raise click.UsageError("Give a URL or --spawn, not both.")
    from acp_gateway.config import ConfigError
    from acp_gateway.config_load import read_token
    from acp_gateway.runtime.runtime_file import find

    if token_file:
        token = read_token(Path(token_file).expanduser(), "flag --token-file")
    if spawn:
        from acp_gateway.cli.spawn import find_or_spawn

        info: RuntimeInfo | None = find_or_spawn(Path(workspace).resolve(), agent, token)
    else:
        info = find(url)
    if url is not None:
        target, url_token = endpoint(url)
        token = token or url_token
    elif info is not None:
        # The file's permissions are the better lock, and no certificate has to fit.
        target = f"unix:{info.unix_socket}" if info.unix_socket else info.ws_url
    else:
        raise ConfigError(
            "No gateway is running.",
            remedy="Start one with `acp-gateway serve`, or add --spawn, or name its URL.",
        )
    if token is None and info is not None:
        token = info.token
    from acp_gateway.transports.stdio_bridge import run_bridge

    return int(run_bridge(target, token) or 0)


def endpoint(url: str) -> tuple[str, str | None]:
    """The WebSocket URL that ``url`` means, and the token in its query.

    http, https and no scheme are taken too, and ``/acp`` may be left out. ``unix:PATH`` stays.
    """
    from acp_gateway.config import unix_path

    if (path := unix_path(url)) is not None:
        return f"unix:{path}", None
    parts = urlsplit(url if "://" in url else f"ws://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    try:
        usable = scheme in ("ws", "wss") and parts.hostname and (parts.port or 1)
    except ValueError:
        usable = None
    if not usable:
        raise click.UsageError(f"{url} is not a URL such as ws://127.0.0.1:4170/acp.")
    token = parse_qs(parts.query).get("token", [None])[0]
    path = "/acp" if parts.path in ("", "/") else parts.path
    return urlunsplit((scheme, parts.netloc, path, "", "")), token
