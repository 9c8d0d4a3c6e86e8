"""From paths to files: links that stay inside work, nothing leads out, also while links change."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
import pytest

from acp_gateway.core.text_file import content_hash
from acp_gateway.protocol.errors import ErrorKind, FileError
from acp_gateway.runtime import beneath
from acp_gateway.runtime.beneath import place_of
from acp_gateway.runtime.workspace_files import (
    failures,
    opened,
    pread,
    read_for_agent,
    read_text,
)
from acp_gateway.runtime.workspace_search import RuleBook, list_directory, search
from acp_gateway.runtime.workspace_write import write_for_agent, write_text

INSIDE, OUTSIDE = "inside", "outside"
ROUNDS = 2_500
"""Swaps of a link in one race; there are several."""


@attrs.frozen
class Site:
    root: Path
    other: Path
    outside: Path

    @property
    def roots(self) -> tuple[Path, ...]:
        return (self.root, self.other)


@pytest.fixture(params=["kernel", "walk"])
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    if request.param == "walk":
        monkeypatch.setattr(beneath, "_openat2", None)
    elif beneath._openat2 is None:
        pytest.skip("this kernel has no openat2")
    base = tmp_path.resolve()
    made = Site(base / "ws", base / "other", base / "out")
    for directory in (made.root / "d" / "e", made.other, made.outside / "e"):
        directory.mkdir(parents=True)
    for path in (made.root / "a", made.root / "d/e/f", made.other / "o"):
        path.write_text(INSIDE)
    for path in (made.outside / "a", made.outside / "f", made.outside / "e/f"):
        path.write_text(OUTSIDE)
    return made


def led(site: Site, path: str) -> str:
    """Where a path leads: below the base of all, with + for a file that is there."""
    with place_of(PurePosixPath(os.path.normpath(site.root / path)), site.roots) as place:
        told = str(place.path.relative_to(site.root.parent))
        if place.status is not None:
            told += "+"
            here = os.stat(place.name, dir_fd=place.parent, follow_symlinks=False)
            assert os.path.samestat(here, place.status)
            assert os.path.samestat(os.stat(place.path), here)
        return told


LINKS = {
    "in": "d/e",
    "file": "./d//e/f",
    "abs": "{root}/d/e/f",
    "d/up": "..",
    "d/back": "../../ws/d",
    "d/e/physical": "../../in/../up/a",
    "far": "{other}/o",
    "over": "../other",
    "new": "d/new",
    "newdir": "d/none/x",
    "out": "../out",
    "outabs": "{outside}",
    "outnew": "{outside}/new",
    "outfile": "../out/a",
    "top": "/",
    "proc": "/proc/self/root{outside}",
    "loop": "loop",
    "loop2": "loop3/x",
    "loop3": "loop2",
    "deep": "../" * 50 + "etc",
    "alias": "{root}",
}
WAYS = {
    "a": "ws/a+",
    ".": "ws+",
    "d": "ws/d+",
    "none": "ws/none",
    "in": "ws/d/e+",
    "in/f": "ws/d/e/f+",
    "in/none": "ws/d/e/none",
    "file": "ws/d/e/f+",
    "abs": "ws/d/e/f+",
    "d/up/a": "ws/a+",
    "d/up/d/up/in/f": "ws/d/e/f+",
    "d/back/e/f": "ws/d/e/f+",
    "d/back/back/back/e": "ws/d/e+",
    "d/e/physical": "ws/a+",
    "far": "other/o+",
    "over/o": "other/o+",
    "over": "other+",
    "{other}/o": "other/o+",
    "new": "ws/d/new",
    "newdir": ErrorKind.PATH_NOT_FOUND,
    "none/x": ErrorKind.PATH_NOT_FOUND,
    "a/x": ErrorKind.PARSE_ERROR,
    "alias/alias/a": "ws/a+",
    "{base}/second/d/e/f": "ws/d/e/f+",
    "{base}/second": "ws+",
    "out": ErrorKind.SYMLINK_ESCAPE,
    "out/a": ErrorKind.SYMLINK_ESCAPE,
    "out/none/x": ErrorKind.SYMLINK_ESCAPE,
    "outabs/e/f": ErrorKind.SYMLINK_ESCAPE,
    "outnew": ErrorKind.SYMLINK_ESCAPE,
    "outfile": ErrorKind.SYMLINK_ESCAPE,
    "top/etc/passwd": ErrorKind.SYMLINK_ESCAPE,
    "proc/a": ErrorKind.SYMLINK_ESCAPE,
    "loop": ErrorKind.SYMLINK_ESCAPE,
    "loop/x": ErrorKind.SYMLINK_ESCAPE,
    "loop2": ErrorKind.SYMLINK_ESCAPE,
    "deep/passwd": ErrorKind.SYMLINK_ESCAPE,
    "d/up/../../../out/a": ErrorKind.PATH_OUTSIDE_WORKSPACE,
    "../out/a": ErrorKind.PATH_OUTSIDE_WORKSPACE,
    "/etc/passwd": ErrorKind.PATH_OUTSIDE_WORKSPACE,
    "/": ErrorKind.PATH_OUTSIDE_WORKSPACE,
    "{base}/wsx": ErrorKind.PATH_OUTSIDE_WORKSPACE,
}


@pytest.mark.parametrize("path", WAYS)
def test_where_a_path_leads(site: Site, path: str) -> None:
    names: dict[str, Any] = {name: getattr(site, name) for name in ("root", "other", "outside")}
    names["base"] = site.root.parent
    for name, target in LINKS.items():
        (site.root / name).symlink_to(target.format(**names))
    (site.root.parent / "second").symlink_to("ws")
    before, wanted = set(os.listdir("/dev/fd")), WAYS[path]
    if isinstance(wanted, str):
        assert led(site, path.format(**names)) == wanted
    else:
        with pytest.raises(FileError) as caught, failures(path):
            led(site, path.format(**names))
        assert caught.value.kind is wanted
        assert str(site.outside) not in str(caught.value.to_http())
    assert set(os.listdir("/dev/fd")) == before, "a descriptor was left open"


def test_links_that_lead_on_and_on(site: Site) -> None:
    for number in range(200):
        (site.root / f"l{number}").symlink_to(f"l{number + 1}")
    (site.root / "l200").write_text("end")
    assert led(site, "l170") == "ws/l200+"
    with pytest.raises(FileError) as caught:
        led(site, "l0")
    assert caught.value.kind is ErrorKind.SYMLINK_ESCAPE


def test_a_root_inside_a_root_that_becomes_a_link(site: Site) -> None:
    inner = site.root / "inner"
    inner.mkdir()
    (inner / "a").write_text(INSIDE)
    roots = (site.root, inner)
    assert read_for_agent(roots, inner / "a", None, None) == INSIDE
    (inner / "a").unlink()
    inner.rmdir()
    inner.symlink_to(site.outside)
    with pytest.raises(FileError) as caught:
        read_for_agent(roots, inner / "a", None, None)
    assert caught.value.kind is ErrorKind.SYMLINK_ESCAPE


def test_a_root_that_is_made_anew(site: Site) -> None:
    site.root.rename(site.root.parent / "old")
    with pytest.raises(FileError) as caught:
        read_for_agent(site.roots, site.root / "a", None, None)
    assert caught.value.kind is ErrorKind.PATH_NOT_FOUND
    site.root.mkdir()
    (site.root / "a").write_text("new")
    assert read_for_agent(site.roots, site.root / "a", None, None) == "new"


def test_the_root_of_all(site: Site) -> None:
    top = (Path("/"),)
    assert read_for_agent(top, site.root / "a", None, None) == INSIDE
    (site.root / "l").symlink_to("../" * 60 + str(site.outside)[1:])
    assert read_for_agent(top, site.root / "l" / "a", None, None) == OUTSIDE


# ---- races ---------------------------------------------------------------------------------------


@contextmanager
def swapping(swap: Callable[[int], None], rounds: int = ROUNDS) -> Iterator[threading.Event]:
    """Calls ``swap`` with 0, 1, 2… in a thread; the event is set when it is through."""
    over, wrong = threading.Event(), []

    def run() -> None:
        try:
            for number in range(rounds):
                swap(number)
        except Exception as exc:  # it must not hide in the thread
            wrong.append(exc)
        finally:
            over.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield over
    finally:
        thread.join(60)
    assert not wrong and not thread.is_alive()


def exchange(site: Site) -> Callable[[int], None]:
    """``d`` is in turns the directory and a link to the outside."""
    real, link = site.root / "d", site.root / "link"
    aside = site.root / "aside"

    def swap(number: int) -> None:
        link.symlink_to(site.outside if number % 2 else "../out")
        real.rename(aside)
        link.rename(real)
        real.unlink()
        aside.rename(real)

    return swap


OF_A_RACE = (
    ErrorKind.SYMLINK_ESCAPE,
    ErrorKind.PATH_NOT_FOUND,
    ErrorKind.PARSE_ERROR,
    ErrorKind.HASH_MISMATCH,
    ErrorKind.FILE_ALREADY_EXISTS,
)


def tried(work: Callable[..., Any], *args: Any, **how: Any) -> Any:
    """What came of it; None for a refusal that the race explains."""
    try:
        return work(*args, **how)
    except FileError as exc:
        if exc.kind not in OF_A_RACE:
            raise
        return None


def names_in(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def contents(directory: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_a_directory_that_becomes_a_link_while_it_is_read(site: Site) -> None:
    roots, path, good = site.roots, site.root / "d/e/f", 0
    how: dict[str, Any] = {"most": 100, "go_on": lambda: None}
    with swapping(exchange(site)) as over:
        while not over.is_set():
            found = tried(read_for_agent, roots, path, None, None)
            assert found in (None, INSIDE)
            good += found is not None
            text = tried(read_text, roots, path, "d/e/f")
            assert text is None or (text.content, text.path) == (INSIDE, path)
            rules = RuleBook()
            listed = tried(list_directory, roots, site.root / "d", "d", rules, ignored=True)
            assert listed is None or [each.name for each in listed.entries] == ["e"]
            hits = tried(search, roots, site.root, ".", "{d/**,**/f}", rules, ignored=True, **how)
            assert hits is None or all(site.root in each.parents for each in hits.paths)
    assert good, "no read was ever let through: the race proves nothing"


def test_a_directory_that_becomes_a_link_while_it_is_written(site: Site) -> None:
    roots, before, good, number = site.roots, contents(site.outside), 0, 0

    def write() -> bool:
        write_for_agent(roots, site.root / "d/e/agent", f"{number}")
        path = site.root / f"d/e/c{number}"
        made = write_text(roots, path, "c", f"{number}", expected=None)
        write_text(roots, path, "c", "again", expected=made.hash)
        return True

    with swapping(exchange(site), 10_000) as over:
        while not over.is_set():
            number += 1
            good += tried(write) is True
    assert good, "no write was ever let through: the race proves nothing"
    assert contents(site.outside) == before
    assert not [name for name in names_in(site.root) if ".tmp" in name]


def test_a_file_that_becomes_a_link_while_it_is_written(site: Site) -> None:
    """The file itself is in turns a file and a link to one outside."""
    path, link = site.root / "a", site.root / "link"
    before, good = contents(site.outside), 0
    expected = content_hash(INSIDE.encode())

    def swap(number: int) -> None:
        link.symlink_to("../out/a")
        link.rename(path)
        if number % 2:
            path.unlink(missing_ok=True)

    def write() -> bool:
        write_for_agent(site.roots, path, INSIDE)
        return True

    with swapping(swap) as over:
        while not over.is_set():
            good += tried(write) is True
            found = tried(read_for_agent, site.roots, path, None, None)
            assert found in (None, INSIDE)
            tried(write_text, site.roots, path, "a", INSIDE, expected=expected)
    assert good, "no write was ever let through: the race proves nothing"
    assert contents(site.outside) == before


def test_a_link_that_points_in_and_out_in_turns(site: Site) -> None:
    link, fresh = site.root / "link", site.root / "fresh"
    before, good = contents(site.outside), 0
    link.symlink_to("d")

    def swap(number: int) -> None:
        fresh.symlink_to("d" if number % 2 else "../out")
        fresh.rename(link)

    with swapping(swap) as over:
        while not over.is_set():
            found = tried(read_for_agent, site.roots, link / "e/f", None, None)
            assert found in (None, INSIDE)
            good += found is not None
            tried(write_for_agent, site.roots, link / "e/g", "x")
    assert good, "no read was ever let through: the race proves nothing"
    assert contents(site.outside) == before


def test_a_file_that_becomes_a_link_while_it_is_read(site: Site) -> None:
    path, fresh, kept = site.root / "a", site.root / "fresh", site.root / "kept"
    kept.hardlink_to(path)
    good = 0

    def swap(number: int) -> None:
        if number % 2:
            fresh.hardlink_to(kept)
        else:
            fresh.symlink_to("../out/a")
        fresh.rename(path)

    with swapping(swap, 10_000) as over:
        while not over.is_set():
            with suppress(FileError), failures("a"), place_of(path, site.roots) as place:
                with opened(place, "a") as fd:
                    assert pread(fd, 100) == INSIDE.encode()
                good += 1
    assert good, "no read was ever let through: the race proves nothing"
