"""What all commands share: the command class, output, and the one place that prints errors."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

PROGRAM = "acp-gateway"


class Command(click.Command):
    """A command that takes ``--debug`` like the group does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                callback=remember_debug,
                help="Show the traceback of an error.",
            )
        )


def command(name: str) -> Callable[[Callable[..., Any]], Command]:
    """Decorator: a `Command`. Its function returns the exit status, None for 0."""
    return click.command(name, cls=Command)


def remember_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    debug_state["on"] = debug_state["on"] or value


debug_state = {"on": False}


@contextmanager
def without(module: str) -> Iterator[None]:
    """Imports in this block do not find an optional library that takes long to import."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def json_option() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their content, two blanks apart."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def say(text: str) -> None:
    """A sentence for a person, on stderr: stdout is for results."""
    click.echo(text, err=True)


def report(error: Exception) -> int:
    """Print an error (sentence, origin, remedy) to stderr; returns the exit status.

    An unexpected exception is a bug of ours: its traceback is printed with ``--debug`` only.
    """
    from acp_gateway.config import ConfigError
    from acp_gateway.protocol.errors import GatewayError

    if debug_state["on"]:
        traceback.print_exception(error)
    if isinstance(error, ConfigError):
        print_error(error.message, error.source, error.remedy)
        return error.exit_code
    if isinstance(error, GatewayError):
        print_error(error.message, None, error.remedy)
        return 5 if error.kind.word.startswith("agent_") else 1
    detail = str(error).strip().splitlines()
    print_error(
        f"Internal error: {type(error).__name__}{': ' + detail[0] if detail else ''}",
        None,
        "This is a bug. Run the command again with --debug and report what it prints.",
    )
    return 1


def print_error(message: str, source: str | None, remedy: str | None) -> None:
    """An error in the form that all commands have for it, on stderr."""
    from acp_gateway.runtime.redact import clean

    message, remedy = clean(message, 4096), remedy and clean(remedy, 4096)
    say(f"{PROGRAM}: {message}")
    if source:
        say(f"  from: {source}")
    if remedy:
        say(f"  try:  {remedy}")
