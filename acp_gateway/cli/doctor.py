"""``doctor``: what would keep a gateway from working here, and the command that fixes it."""

from __future__ import annotations

from typing import Any

import click

from acp_gateway.cli.base import command, json_option, print_json
from acp_gateway.cli.options import settings_options

_MARK = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@command("doctor")
@json_option()
@settings_options
def doctor(as_json: bool, **flags: Any) -> int:
    """Check this machine and the configuration. Takes the flags of `serve`.

    Exits with 1 when something would keep `serve` from working.
    """
    from acp_gateway.cli.checks import check_all
    from acp_gateway.runtime.redact import visible

    cells = []
    for cell in check_all(flags):
        cells.append(cell)
        if not as_json:
            mark, colour = _MARK[cell.status]
            click.echo(f"{click.style(mark, fg=colour)}  {cell.name}: {visible(cell.message)}")
            if cell.fix:
                click.echo(f"      fix: {cell.fix}")
    failed = any(cell.status == "fail" for cell in cells)
    if as_json:
        import attrs

        print_json({"ok": not failed, "checks": [attrs.asdict(cell) for cell in cells]})
    return 1 if failed else 0
