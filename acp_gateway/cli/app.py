"""The command group."""

from __future__ import annotations

from collections.abc import Sequence

import click

from acp_gateway import __version__
from acp_gateway.cli import (
    agents,
    base,
    configuration,
    connect,
    daemons,
    doctor,
    editor,
    login,
    logs,
    serve,
)
from acp_gateway.cli import pair as pairing
from acp_gateway.cli import token as tokens

_COMPLETION = """\b
Shell completion, for the start-up file of your shell:
  bash  eval "$(_ACP_GATEWAY_COMPLETE=bash_source acp-gateway)"
  zsh   eval "$(_ACP_GATEWAY_COMPLETE=zsh_source acp-gateway)"
  fish  _ACP_GATEWAY_COMPLETE=fish_source acp-gateway | source
"""


@click.group(epilog=_COMPLETION, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=base.remember_debug,
    help="Show the traceback of an error.",
)
@click.version_option(__version__, message="%(version)s")
def group() -> None:
    """Put any ACP coding agent behind one port, for many clients at once."""


@base.command("version")
def version() -> None:
    """Print the versions of the gateway and of Python."""
    import platform

    click.echo(
        f"acp-gateway {__version__} (Python {platform.python_version()}, {platform.system()})"
    )


for _command in (
    serve.serve,
    connect.connect,
    editor.editor,
    agents.agents,
    doctor.doctor,
    daemons.list_command,
    daemons.status,
    daemons.stop,
    daemons.reload,
    login.login,
    logs.logs,
    configuration.config,
    tokens.token,
    pairing.pair,
    version,
):
    group.add_command(_command)


def run(argv: Sequence[str]) -> int:
    """Run a command line; returns the exit status and has printed every error."""
    base.debug_state["on"] = False
    try:
        status = group.main(list(argv), prog_name=base.PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        base.say("Interrupted.")
        return 130
    except Exception as error:
        return base.report(error)
    return int(status or 0)
