"""``config show``: every setting, its value and where that came from."""

from __future__ import annotations

from typing import Any

import click

from acp_gateway.cli.base import command, json_option, print_json, print_table
from acp_gateway.cli.options import load, settings_options


@click.group("config")
def config() -> None:
    """Show the configuration."""


@command("show")
@json_option()
@settings_options
def show(as_json: bool, **flags: Any) -> None:
    """Print every setting with its value and origin. Takes the flags of `serve`."""
    import attrs

    from acp_gateway.config import SECRET_SETTINGS, default_config_file

    loaded = load(flags)
    values = attrs.asdict(loaded.settings)
    settings = {
        key: {
            "value": "***" if key in SECRET_SETTINGS and value is not None else _plain(value),
            "source": loaded.sources[key],
        }
        for key, value in values.items()
    }
    file = loaded.config_file
    agents = {
        # The variables of an agent are where people put its API key.
        name: {**_plain(attrs.asdict(spec)), "env": dict.fromkeys(spec.env, "***")}
        for name, spec in loaded.agents.items()
    }
    if as_json:
        file_name = str(file) if file else None
        print_json({"config_file": file_name, "settings": settings, "agents": agents})
        return
    click.echo(f"configuration file: {file or f'none ({default_config_file()} does not exist)'}\n")
    rows = [(key, _shown(item["value"]), item["source"]) for key, item in settings.items()]
    rows += [
        (f"agents.{name}.{key}", _shown(value), f"file {file}")
        for name, spec in agents.items()
        for key, value in spec.items()
        if value
    ]
    print_table(("SETTING", "VALUE", "FROM"), rows)


def _plain(value: Any) -> Any:
    """``value`` as JSON has it."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


config.add_command(show)
