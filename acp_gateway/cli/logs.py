"""``logs``: what a running gateway has written to its log file."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from acp_gateway.cli.base import command, say

POLL: Final = 0.3
BLOCK: Final = 64 * 1024
ARCHIVES: Final = 9
_HEAD: Final = ("timestamp", "level", "event", "exception")
_COLOURS: Final = {"warning": "yellow", "error": "red", "critical": "red", "debug": "bright_black"}


@command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=50, metavar="N", help="Last lines [50]."
)
@click.option("--json", "as_json", is_flag=True, help="Print the lines as they are, JSON.")
@click.argument("target", required=False, metavar="[PID|URL]")
def logs(target: str | None, follow: bool, lines: int, as_json: bool) -> int:
    """Show the log of a running gateway.

    PID or URL may be left out when one gateway runs, or one that serves the current directory.
    """
    from acp_gateway.cli.http import running
    from acp_gateway.runtime.runtime_file import is_alive

    info = running(target)
    if info is None:
        return 1
    if info.log_file is None:
        say("This gateway has no log file: its log goes to stderr only.")
        return 1
    path = Path(info.log_file)
    show = _raw if as_json else _pretty
    try:
        follower = _Follower(path)
        for line in follower.last(lines):
            click.echo(show(line))
        if follow:
            sys.stdout.flush()
            _follow(follower, show, lambda: is_alive(info))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads on: no complaint at exit
            return 0
        say(f"The log {path} cannot be read: {error.strerror or error}.")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _follow(follower: _Follower, show: Callable[[bytes], str], alive: Callable[[], bool]) -> None:
    checked = time.monotonic()
    while True:
        found = False
        for line in follower.more():
            found = True
            click.echo(show(line))
        if found:
            sys.stdout.flush()
        elif time.monotonic() - checked > 1:
            checked = time.monotonic()
            if not alive():
                for line in follower.more():
                    click.echo(show(line))
                say("The gateway has ended.")
                return
        time.sleep(POLL)


class _Follower:
    """Reads a file that is rotated: by what the open file is, not by its name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._rest = b""

    def last(self, count: int) -> list[bytes]:
        """The last lines, also out of archives; reading goes on behind them."""
        size = os.fstat(self._file.fileno()).st_size
        found = _tail(self._path, count) if count else []
        self._file.seek(size)
        whole = size == 0 or self._ends_line(size)
        if not whole and found:
            self._rest = found.pop()
        archive = 1
        while len(found) < count and archive <= ARCHIVES:
            older = self._path.with_name(f"{self._path.name}.{archive}")
            if not older.exists():
                break
            found = _tail(older, count - len(found)) + found
            archive += 1
        return found

    def _ends_line(self, size: int) -> bool:
        return os.pread(self._file.fileno(), 1, size - 1) == b"\n"

    def more(self) -> Iterator[bytes]:
        """Whole lines that have come since."""
        while True:
            while data := self._file.read(BLOCK):
                *lines, self._rest = (self._rest + data).split(b"\n")
                yield from lines
            newer = self._renewed()
            if newer is None:
                return
            # The writer was done with the old one before it made the new one.
            if data := self._file.read():
                *lines, self._rest = (self._rest + data).split(b"\n")
                yield from lines
            self._file.close()
            self._file, self._rest = newer, b""

    def _renewed(self) -> Any:
        """The file of this name, where it is another one now; a truncated one begins anew."""
        here = os.fstat(self._file.fileno())
        try:
            there = self._path.stat()
            if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
                return self._path.open("rb")
        except OSError:
            return None  # just being rotated
        if there.st_size < self._file.tell():
            return self._path.open("rb")
        return None


def _tail(path: Path, count: int) -> list[bytes]:
    """The last lines of a file, reading no more of it than they are."""
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        data = b""
        while at > 0 and data.count(b"\n") <= count:
            step = min(BLOCK, at)
            at -= step
            file.seek(at)
            data = file.read(step) + data
    return [line for line in data.split(b"\n") if line][-count:]


def _raw(line: bytes) -> str:
    return line.decode(errors="replace")


def _pretty(line: bytes) -> str:
    """``12:34:56.789 warning event key=value …``; what is no JSON object stays, made visible."""
    from acp_gateway.runtime.redact import visible

    text = line.decode(errors="replace")
    try:
        told = json.loads(text)
        if not isinstance(told, dict):
            raise ValueError
    except ValueError:
        return visible(text)
    at, level = str(told.get("timestamp", "")), str(told.get("level", "info"))
    pairs = [
        f"{visible(name)}={_value(value)}"
        for name, value in told.items()
        if name not in _HEAD and value is not None
    ]
    head = f"{visible(at[11:23]):<12} {visible(level):<7} {visible(str(told.get('event', '')))}"
    shown = "  ".join((head, " ".join(pairs))) if pairs else head
    colour = _COLOURS.get(level)
    if colour is not None:
        shown = click.style(shown, fg=colour)
    exception = told.get("exception")
    if isinstance(exception, str):
        shown = "\n".join((shown, *map(visible, exception.split("\n"))))
    return shown


def _value(value: Any) -> str:
    from acp_gateway.runtime.redact import visible

    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = visible(text)
    if isinstance(value, str) and (not text or any(char in text for char in ' ="')):
        return json.dumps(text, ensure_ascii=False)
    return text
