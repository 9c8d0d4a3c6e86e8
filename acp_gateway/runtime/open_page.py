"""``--open``: the web page in the user's browser, signed in.

The command line of a browser is there for every user of the machine to read. So the browser is
given a private file instead, which sends it on to the page; behind the ``#`` the token goes to no
server.
"""

from __future__ import annotations

import html
import os
import tempfile
import webbrowser
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog
import trio

from acp_gateway.config import ConfigError
from acp_gateway.runtime.runtime_file import runtime_dir

log = structlog.get_logger("acp_gateway")

KEPT: Final = 30.0
"""Seconds that a browser gets to start and read the file."""


async def open_page(page: str, token: str | None) -> None:
    """Open ``page``; returns when the file is gone. What fails is logged."""
    path = None
    try:
        if token is not None:
            path = _way_to(f"{page}#token={quote(token, safe='')}")
        shown = page if path is None else path.as_uri()
        # A browser of the terminal stays for as long as its user likes.
        await trio.to_thread.run_sync(webbrowser.open, shown, abandon_on_cancel=True)
        if path is not None:
            await trio.sleep(KEPT)
    except (OSError, ConfigError, webbrowser.Error) as exc:
        log.warning("page_not_opened", error=str(exc), remedy=f"open {page} yourself")
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def _way_to(url: str) -> Path:
    """A file that sends a browser to ``url``, for nobody else to read."""
    fd, name = tempfile.mkstemp(prefix=f"{os.getpid()}-", suffix=".html", dir=runtime_dir())
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(
            '<!doctype html><meta charset="utf-8"><title>ACP Gateway</title>'
            f'<meta http-equiv="refresh" content="0; url={html.escape(url)}">'
        )
    return Path(name)
