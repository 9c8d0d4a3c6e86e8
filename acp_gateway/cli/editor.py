"""``editor``: the settings snippet of editors that can only start a command."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Any

import click

from acp_gateway.cli.base import command, say

_WHERE = {
    "zed": "Put this into Zed's settings.json (command palette: `zed: open settings`). In an SSH "
    "project the command runs on the remote machine.",
    "jetbrains": "Put this into ~/.jetbrains/acp.json.",
}


@command("editor")
@click.option("--name", default="ACP Gateway", help="Name that the editor shows.")
@click.option("--token", help="Token of the gateway; it goes into the snippet's environment.")
@click.argument("editor", type=click.Choice(["zed", "jetbrains"]))
@click.argument("url", required=False)
def editor(editor: str, url: str | None, name: str, token: str | None) -> None:
    """Print the settings that let an editor use the gateway.

    With a URL the editor connects there; without one it uses the gateway of this machine that
    serves the project and starts one when there is none.
    """
    program, *first = own_command()
    server: dict[str, Any] = {"type": "custom"} if editor == "zed" else {}
    server["command"] = program
    server["args"] = [*first, "connect", *([url] if url else ["--spawn"])]
    server["env"] = {"ACP_GATEWAY_TOKEN": token} if token else {}
    if first:  # not installed as a command, so maybe not as a package either
        from acp_gateway.config import PACKAGE_PATH

        server["env"]["PYTHONPATH"] = PACKAGE_PATH
    say(_WHERE[editor])
    click.echo(json.dumps({"agent_servers": {name: server}}, indent=2, ensure_ascii=False))


def own_command() -> list[str]:
    """The command that starts this program from anywhere: an editor has another PATH."""
    script = sys.argv[0]
    if os.path.basename(script) != "acp-gateway":
        script = os.path.join(os.path.dirname(sys.executable), "acp-gateway")
    found = shutil.which(script)
    # -P: an editor starts it in the project, and -m would import from there first.
    return [os.path.abspath(found)] if found else [sys.executable, "-P", "-m", "acp_gateway"]
