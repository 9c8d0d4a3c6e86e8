"""``agents``: the known agents, which of them are installed, how to install the others, and what an
agent sees of the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from acp_gateway.cli.base import command, json_option, print_json, print_table, remember_debug

if TYPE_CHECKING:
    from acp_gateway.runtime.agent_profile import AgentProfile

VERSION_DEADLINE = 10.0
"""Seconds for ``PROGRAM --version``."""


_config_option = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Configuration file to read."
)


@click.group("agents", invoke_without_command=True)
@json_option()
@_config_option
@click.option(
    "--debug", is_flag=True, expose_value=False, callback=remember_debug, help="Show tracebacks."
)
@click.pass_context
def agents(ctx: click.Context, as_json: bool, config_file: Path | None) -> None:
    """List the agents that can be served; `agents show NAME` tells more of one."""
    if ctx.invoked_subcommand is None:
        _list(as_json, config_file)


def _list(as_json: bool, config_file: Path | None) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from acp_gateway.cli.options import load
    from acp_gateway.runtime.agent_profile import find_agents

    found = find_agents(load({"config_file": config_file}).agents)
    with ThreadPoolExecutor(2) as pool:
        versions = list(
            pool.map(lambda agent: agent_version(agent.profile) if agent.path else None, found)
        )
    rows: list[dict[str, Any]] = [
        {
            "name": agent.profile.name,
            "title": agent.profile.title,
            "installed": agent.path is not None,
            "path": agent.path,
            "command": list(agent.profile.argv),
            "version": version,
            "install": agent.profile.install,
        }
        for agent, version in zip(found, versions, strict=True)
    ]
    if as_json:
        print_json({"agents": rows})
        return
    print_table(
        ("NAME", "VERSION", "PATH", "INSTALL WITH"),
        [
            (
                row["name"],
                row["version"] or "-",
                row["path"] or "-",
                (row["install"] or "-") if not row["installed"] else "",
            )
            for row in rows
        ],
    )


@command("show")
@click.argument("name")
@json_option()
@_config_option
def show(name: str, as_json: bool, config_file: Path | None) -> None:
    """Show one agent and the names of the variables that it gets from this environment.

    NAME is a known agent, one of the configuration file, or a command. No value is printed.
    """
    from acp_gateway.cli.options import load
    from acp_gateway.runtime.agent_profile import parse_agent_spec
    from acp_gateway.runtime.child_environment import NEVER_PATTERNS, looks_secret, select

    environ = dict(os.environ)
    _, profile = parse_agent_spec(name, load({"config_file": config_file}).agents)
    passed = profile.environment(environ)
    kept = environ.keys() - passed.keys()
    never = kept - select(environ, (), tuple(kept)).keys()
    secret = {each for each in kept - never if looks_secret(each, environ[each])}
    told: dict[str, Any] = {
        "name": profile.name,
        "title": profile.title,
        "command": list(profile.argv),
        "environment": {
            "passed": sorted(passed.keys() & environ.keys() - profile.env_set.keys()),
            "set": sorted(profile.env_set),
            "credentials_kept": sorted(secret),
            "never": sorted(never),
            "other_kept": sorted(kept - never - secret),
        },
        "patterns": {
            "passed": list(profile.env_allow),
            "passed_with_credentials": list(profile.env_keys),
            "never": list(NEVER_PATTERNS),
        },
    }
    if as_json:
        print_json(told)
        return
    click.echo(f"{profile.title}: {' '.join(profile.argv)}")
    for key, text in _SHOWN.items():
        names = told["environment"][key]
        click.echo(f"\n{text} ({len(names)}):")
        click.echo(click.wrap_text(" ".join(names) or "-", 96, "  ", "  "))


_SHOWN = {
    "passed": "It gets",
    "set": "Set for it",
    "credentials_kept": "Kept from it, for they look like credentials; env_pass names exceptions",
    "never": "Kept from every child",
    "other_kept": "Kept from it, for nothing asks for them; env_pass names exceptions",
}

agents.add_command(show)


def agent_version(profile: AgentProfile) -> str | None:
    """The version of an installed agent, or None when it does not say.

    Programs from npm are not run for it (a second each): their package.json says it.
    """
    if profile.name == "demo":
        from acp_gateway import __version__

        return __version__
    if (version := _npm_version(Path(os.path.realpath(profile.argv[0])))) is not None:
        return version
    return _asked_version(profile) if profile.version_argv else None


def _npm_version(program: Path) -> str | None:
    import json

    for directory in list(program.parents)[:4]:
        try:
            package = json.loads((directory / "package.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(package, dict) and isinstance(package.get("version"), str):
            return str(package["version"])
    return None


def _asked_version(profile: AgentProfile) -> str | None:
    import contextlib
    import re
    import signal
    import subprocess

    try:
        process = subprocess.Popen(
            [profile.argv[0], *(profile.version_argv or ())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=profile.environment(os.environ),
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        output, _ = process.communicate(timeout=VERSION_DEADLINE)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()
    found = re.search(r"\d+\.\d+[\w.+-]*", output.decode("utf-8", "replace"))
    return found[0] if found else None
