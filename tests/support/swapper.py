"""Swaps a link in and out: ``python swapper.py WHAT ROOT SWAPS``, WHAT is directory or file.

``ROOT/d`` is in turns the directory and a link to ``ROOT/../outside``; or ``ROOT/d/e/f`` is in
turns a file and a link to ``ROOT/../outside/e/f``. Prints how many swaps it made.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def pause(number: int) -> None:
    """Now and then, so that writers get through to either state."""
    if number % 10 == 0:
        time.sleep(0.0005)


def directory(root: Path, number: int) -> None:
    real, link, aside = root / "d", root / "link", root / "aside"
    link.symlink_to("../outside" if number % 2 else root.parent / "outside")
    real.rename(aside)
    link.rename(real)
    pause(number)
    real.unlink()
    aside.rename(real)
    pause(number)


def file(root: Path, number: int) -> None:
    path, link, fresh = root / "d/e/f", root / "link", root / "fresh"
    link.symlink_to("../../../outside/e/f" if number % 2 else root.parent / "outside/e/f")
    link.rename(path)
    pause(number)
    fresh.write_text("inside")
    fresh.rename(path)
    pause(number)


if __name__ == "__main__":
    what, root, swaps = sys.argv[1:]
    swap = {"directory": directory, "file": file}[what]
    for number in range(int(swaps)):
        swap(Path(root), number)
    print(swaps)
