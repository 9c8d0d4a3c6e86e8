"""A link as a QR code on the terminal (home of segno)."""

from __future__ import annotations

import sys

from acp_gateway.cli.base import say


def draw(link: str) -> None:
    """Print it to stdout; a terminal that lacks the characters is told so."""
    import segno

    code = segno.make(link, error="l", micro=False)
    try:
        code.terminal(out=sys.stdout, compact=True, border=2)
    except UnicodeEncodeError:
        say("(This terminal cannot show a QR code.)")
