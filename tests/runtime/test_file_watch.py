"""Changes of files as events: by whomever, bounded, and nothing of what lies outside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from support.runtime_rig import until

from acp_gateway.config import Settings
from acp_gateway.core.file_audit import Who
from acp_gateway.core.outlet import Subscription
from acp_gateway.core.text_file import content_hash
from acp_gateway.protocol.events import WORKSPACE_FILES_CHANGED
from acp_gateway.runtime import file_watch, watch_plan
from acp_gateway.runtime.feed import Feed
from acp_gateway.runtime.file_watch import FileWatch
from acp_gateway.runtime.ring_budget import RingBudget
from acp_gateway.runtime.workspace import Workspace
from acp_gateway.runtime.workspace_write import write_text

Change = tuple[str, str]


@attrs.define
class Site:
    root: Path
    workspace: Workspace
    feed: Feed
    read: int = 0

    def join(self) -> Subscription:
        self.feed.admit_reader()
        sub = Subscription(self.feed.id, self.feed.ring, self.feed.ring.last_id)
        self.feed.subs.add(sub)
        return sub

    def events(self) -> list[dict[str, Any]]:
        """The data of all that were published since this was asked last."""
        ring = self.feed.ring
        records = ring.read(self.read, ring.last_id)
        self.read = ring.last_id
        assert all(each.name == WORKSPACE_FILES_CHANGED for each in records)
        return [json.loads(each.line)["params"]["data"] for each in records]

    async def truncated(self, reason: str) -> None:
        """The next event says that more may have changed, and why."""
        await until(lambda: self.feed.ring.last_id > self.read)
        events = self.events()
        assert [(each["truncated"], each.get("reason")) for each in events] == [(True, reason)]

    async def told(self, *wanted: Change) -> list[dict[str, Any]]:
        """Everything that is told until these changes were, and nothing else with them."""
        found: list[dict[str, Any]] = []

        def all_there() -> bool:
            for event in self.events():
                assert not event["truncated"], event
                found.extend(event["changes"])
            return {(each["path"], each["kind"]) for each in found} >= set(wanted)

        try:
            await until(all_there)
        finally:
            assert {(each["path"], each["kind"]) for each in found} == set(wanted)
        return found


@asynccontextmanager
async def watching(
    base: Path, *more: Path, join: bool = True, before: Callable[[Path], None] | None = None
) -> AsyncIterator[Site]:
    root = base / "ws"
    root.mkdir()
    if before is not None:
        before(root)
    workspace = Workspace((root, *more))
    feed = Feed("workspace", Settings(), RingBudget(1 << 30))
    site = Site(root, workspace, feed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(FileWatch(workspace, feed).run)
        await trio.testing.wait_all_tasks_blocked()
        if join:
            site.join()
            await site.truncated("started")
        yield site
        began = time.monotonic()
        nursery.cancel_scope.cancel()
    assert time.monotonic() - began < 3, "it was not stopped at once"
    assert not workspace.watch.active


async def test_what_happens_to_files(tmp_path: Path) -> None:
    def before(root: Path) -> None:
        (root / "old").write_text("x")
        (root / "d").mkdir()

    async with watching(tmp_path, before=before) as site:
        root = site.root
        (root / "new").write_text("x")
        (root / "old").write_text("xy")
        await site.told(("new", "created"), ("old", "modified"))
        (root / "old").unlink()
        (root / "new").rename(root / "d/moved")
        await site.told(("old", "deleted"), ("new", "deleted"), ("d/moved", "created"))
        (root / "tmp").write_text("z")
        (root / "tmp").rename(root / "d/moved")
        await site.told(("tmp", "deleted"), ("d/moved", "created"))
        os.symlink("nowhere", root / "link")
        os.mkfifo(root / "pipe")
        await site.told(("link", "created"), ("pipe", "created"))
        assert site.workspace.watch.directories == 2 and site.workspace.watch.problem is None


async def test_directories_that_come_and_go(tmp_path: Path) -> None:
    async with watching(tmp_path) as site:
        root = site.root
        (root / "a/b/c").mkdir(parents=True)
        (root / "a/b/c/f").write_text("x")
        await site.told(
            ("a", "created"), ("a/b", "created"), ("a/b/c", "created"), ("a/b/c/f", "created")
        )
        (root / "a/b/c/f").write_text("y")
        await site.told(("a/b/c/f", "modified"))
        (root / "a").rename(root / "z")
        await site.told(
            ("a", "deleted"),
            *((name, "created") for name in ("z", "z/b", "z/b/c", "z/b/c/f")),
        )
        (root / "z/b/c/f").write_text("z")
        await site.told(("z/b/c/f", "modified"))
        outside = root.parent / "outside"
        (root / "z/b").rename(outside)
        await site.told(("z/b", "deleted"))
        (outside / "c/f").write_text("nobody is told")
        (outside / "c/g").write_text("nobody is told")
        (root / "end").write_text("x")
        await site.told(("end", "created"))
        shutil.rmtree(root / "z")
        await site.told(("z", "deleted"))
        await until(lambda: site.workspace.watch.directories == 1)


async def test_directories_that_are_made_while_the_watch_begins(tmp_path: Path) -> None:
    over = threading.Event()

    def make(root: Path) -> None:
        number = 0
        while not over.is_set():
            (root / f"d{number}/e").mkdir(parents=True)
            number += 1
            time.sleep(0.02)

    thread: threading.Thread | None = None

    def before(root: Path) -> None:
        nonlocal thread
        thread = threading.Thread(target=make, args=(root,))
        thread.start()

    async with watching(tmp_path, before=before) as site:
        await trio.sleep(1)
        over.set()
        assert thread is not None
        await trio.to_thread.run_sync(thread.join)
        await trio.sleep(1.5)
        site.events()
        made = sorted(path.name for path in site.root.iterdir())
        assert len(made) > 10
        await trio.sleep(file_watch.WINDOW)
        for name in made:
            (site.root / name / "e/f").write_text("x")
        await site.told(*((f"{name}/e/f", "created") for name in made))


async def test_what_is_hidden_is_not_told(tmp_path: Path) -> None:
    def before(root: Path) -> None:
        (root / ".gitignore").write_text("*.log\nbuild/\n")
        for name in ("build/x", ".git/objects", "node_modules/m", "src/node_modules", "src/.git"):
            (root / name).mkdir(parents=True)

    async with watching(tmp_path, before=before) as site:
        root = site.root
        assert site.workspace.watch.directories == 2
        for name in (
            *("build/x/f", "build/f", ".git/index", ".git/objects/o", "node_modules/m/f"),
            *("src/node_modules/f", "src/a.log", ".acp-0123456789abcdef.tmp"),
        ):
            (root / name).write_text("x")
        shutil.rmtree(root / "build")
        shutil.rmtree(root / "src/.git")
        (root / "src/.git").write_text("gitdir: elsewhere")
        (root / "src/seen").write_text("x")
        await site.told(("src/seen", "created"))
        (root / ".gitignore").write_text("*.txt\n")
        await until(lambda: site.feed.ring.last_id >= site.read + 2)
        rule, again = site.events()
        assert rule["changes"] == [{"path": ".gitignore", "kind": "modified"}]
        assert again == {"changes": [], "truncated": True, "reason": "rules_changed"}
        (root / "src/b.txt").write_text("x")
        (root / "src/b.log").write_text("x")
        await site.told(("src/b.log", "created"))


async def test_nothing_of_the_outside_is_told(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)

    def before(root: Path) -> None:
        (root / "d").mkdir()
        (root / "link").symlink_to(outside)
        (root / "d/deep").symlink_to("../../outside/deep")
        (root / "top").symlink_to("/")

    async with watching(tmp_path, before=before) as site:
        root = site.root
        assert site.workspace.watch.directories == 2
        (outside / "secret").write_text("x")
        (outside / "deep/secret").write_text("x")
        (root / "link/through").write_text("x")
        # A directory becomes a link: what happens behind it is not told either.
        (root / "d").rename(root / "e")
        (root / "d").symlink_to(outside)
        (outside / "later").write_text("x")
        (root / "seen").write_text("x")
        found: set[Change] = set()

        def seen() -> bool:
            for event in site.events():
                found.update((each["path"], each["kind"]) for each in event["changes"])
            return ("seen", "created") in found and ("e", "created") in found

        await until(seen)
        (outside / "last").write_text("x")
        (root / "end").write_text("x")
        await until(lambda: seen() and ("end", "created") in found)
        names = {path for path, _ in found}
        assert names <= {"d", "e", "e/deep", "seen", "end"}, names


async def test_a_link_that_is_put_there_between_plan_and_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library follows it; what it tells then is not passed on."""
    outside = tmp_path / "outside"
    outside.mkdir()
    real, swapped = file_watch._open, False

    def swap(plan: watch_plan.Plan) -> Any:
        nonlocal swapped
        if not swapped:
            swapped = True
            (tmp_path / "ws/d").rmdir()
            (tmp_path / "ws/d").symlink_to(outside)
        return real(plan)

    monkeypatch.setattr(file_watch, "_open", swap)
    async with watching(tmp_path, before=lambda root: (root / "d").mkdir()) as site:
        (outside / "secret").write_text("x")
        (site.root / "seen").write_text("x")
        await site.told(("seen", "created"))


async def test_several_roots(tmp_path: Path) -> None:
    other, inner = tmp_path / "other", tmp_path / "ws/inner"
    other.mkdir()
    async with watching(
        tmp_path, other, inner, before=lambda root: (root / "inner").mkdir()
    ) as site:
        (other / "f").write_text("x")
        (inner / "f").write_text("x")
        await site.told((str(other / "f"), "created"), ("inner/f", "created"))


async def test_the_gateway_s_own_writes_name_the_writer(tmp_path: Path) -> None:
    async with watching(tmp_path) as site:
        workspace, root = site.workspace, site.root
        roots = workspace.roots
        await workspace.write_text(str(root / "a"), "agent", roots, Who(session="s1", client="c0"))
        made = await workspace.for_client(
            "write",
            "",
            write_text,
            "b",
            Who(client="c1", actor="phone"),
            content="1",
            expected=None,
        )
        await workspace.for_client("write", "", write_text, "c", content="anonymous", expected=None)
        found = await site.told(("a", "created"), ("b", "created"), ("c", "created"))
        assert {each["path"]: each["writer"] for each in found} == {
            "a": {"sessionId": "s1", "clientId": "c0"},
            "b": {"clientId": "c1", "name": "phone"},
            "c": {},
        }
        # Replaced by a rename, and yet not told as new.
        await workspace.for_client(
            "write", "", write_text, "b", Who(client="c2"), content="2", expected=made.hash
        )
        (change,) = await site.told(("b", "modified"))
        assert change["writer"] == {"clientId": "c2"}
        # The same content by another hand is another's.
        (root / "b").write_text("2")
        (change,) = await site.told(("b", "modified"))
        assert "writer" not in change
        assert content_hash(b"2") != made.hash


async def test_a_checkout_of_many_files_is_one_event(tmp_path: Path) -> None:
    number = 10_000
    checkout = (
        "import os, sys\n"
        "for each in range(100):\n"
        "    os.mkdir(f'{sys.argv[1]}/d{each}')\n"
        "    for name in range(100): open(f'{sys.argv[1]}/d{each}/{name}', 'w').close()\n"
    )

    async with watching(tmp_path) as site:
        began = time.monotonic()
        await trio.run_process([sys.executable, "-S", "-c", checkout, str(site.root)])
        took = time.monotonic() - began
        events: list[dict[str, Any]] = []
        await until(lambda: events.extend(site.events()) or any(e["truncated"] for e in events))
        await until(lambda: site.workspace.watch.directories == 101)
        await trio.sleep(1.5)  # what a slow machine had still to do
        events += site.events()
        told = [each for each in events if each["truncated"]]
        assert {"changes": [], "truncated": True, "reason": "too_many"} in told
        print(f"{number} files in {took:.1f} s, {len(events)} events, {len(told)} truncated")
        assert len(told) <= 2 + took / 5 and sum(len(each["changes"]) for each in events) <= 1500
        await until(lambda: site.workspace.watch.active)
        (site.root / "d7/end").write_text("x")
        await site.told(("d7/end", "created"))
        await trio.sleep(file_watch.WINDOW)
        await trio.to_thread.run_sync(shutil.rmtree, site.root / "d8")
        await site.told(("d8", "deleted"), *((f"d8/{name}", "deleted") for name in range(100)))


async def test_more_changes_than_one_event_takes(tmp_path: Path) -> None:
    async with watching(tmp_path) as site:
        for number in range(400):
            (site.root / (f"{number}" + "x" * 240)).touch()
        events: list[dict[str, Any]] = []
        await until(lambda: events.extend(site.events()) or any(e["truncated"] for e in events))
        assert 200 < len(events[-1]["changes"]) < 300 and events[-1]["reason"] == "too_many"


async def test_names_that_the_library_cannot_tell(tmp_path: Path) -> None:
    async with watching(tmp_path) as site:
        os.mkfifo(os.fsencode(site.root) + b"/\xff")
        await site.truncated("restarted")
        os.mkdir(os.fsencode(site.root) + b"/\xfe")
        await site.truncated("restarted")
        (site.root / "seen").touch()
        await site.told(("seen", "created"))


async def test_it_watches_only_while_somebody_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "LINGER", 0.3)
    monkeypatch.setattr(file_watch, "LOOK_MS", 200)
    async with watching(tmp_path, join=False) as site:
        (site.root / "unseen").touch()
        await trio.sleep(0.5)
        assert not site.workspace.watch.active and site.feed.ring.last_id == 0
        for _ in range(2):
            sub = site.join()
            await site.truncated("started")
            assert site.workspace.watch.active
            await trio.sleep(0.6)
            assert site.workspace.watch.active
            site.feed.subs.discard(sub)
            await until(lambda: not site.workspace.watch.active)
        (site.root / "unseen too").touch()
        await trio.sleep(0.5)
        assert site.events() == []


async def test_a_failure_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from watchfiles import _rust_notify

    real = _rust_notify.RustNotify
    monkeypatch.setattr(file_watch, "RETRY", 0.2)

    def full(*_: Any) -> Any:
        raise OSError("OS file watch limit reached.")

    monkeypatch.setattr(_rust_notify, "RustNotify", full)
    async with watching(tmp_path, join=False) as site:
        site.join()
        await site.truncated("failed")
        state = site.workspace.watch
        assert not state.active and state.problem is not None
        assert "limit reached" in state.problem and "max_user_watches" in state.problem
        await trio.sleep(0.5)
        assert site.events() == [], "told once"
        monkeypatch.setattr(_rust_notify, "RustNotify", real)
        await site.truncated("started")
        assert state.active and state.problem is None
        (site.root / "f").touch()
        await site.told(("f", "created"))


async def test_a_workspace_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "RETRY", 0.2)
    async with watching(tmp_path) as site:
        (site.root / "d").mkdir()
        await site.told(("d", "created"))
        shutil.rmtree(site.root)
        await until(lambda: site.workspace.watch.problem is not None)
        assert "gone" in (site.workspace.watch.problem or "")
        site.root.mkdir()
        await until(lambda: site.workspace.watch.active)
        site.events()
        (site.root / "f").touch()
        await site.told(("f", "created"))


async def test_more_directories_than_are_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_plan, "MAX_DIRECTORIES", 5)

    def before(root: Path) -> None:
        for number in range(4):
            (root / f"d{number}/deep").mkdir(parents=True)

    async with watching(tmp_path, before=before) as site:
        state = site.workspace.watch
        assert state.directories == 5 and state.problem is not None
        assert ".gitignore" in state.problem
        (site.root / "d3/f").touch()
        await site.told(("d3/f", "created"))


LIMITED = """
import sys
from pathlib import Path
from acp_gateway.runtime.file_watch import _Failed, _open
from acp_gateway.runtime.watch_plan import Plan, _Look
Path("/proc/sys/user/max_inotify_watches").write_text("5")
plan = Plan({path: _Look(0, 0) for path in Path(sys.argv[1]).rglob("*")})
try:
    _open(plan)
except _Failed as exc:
    print(exc)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="inotify")
def test_the_system_s_limit(tmp_path: Path) -> None:
    """The real one, in a user namespace of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare(1)")
    probe = subprocess.run(["unshare", "-Ur", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("no user namespaces")
    for number in range(20):
        (tmp_path / f"d{number}").mkdir()
    ran = subprocess.run(
        ["unshare", "-Ur", sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "limit" in ran.stdout and "max_user_watches" in ran.stdout, ran.stdout + ran.stderr


async def test_an_idle_watch_costs_next_to_nothing(tmp_path: Path) -> None:
    async with watching(tmp_path, before=lambda root: (root / "d").mkdir()):
        before, began = time.process_time(), time.monotonic()
        await trio.sleep(3)
        spent = (time.process_time() - before) / (time.monotonic() - began)
        print(f"idle watch: {spent * 1000:.2f} ms of processor time a second")
        # 1 ms is the aim on a free machine.
        assert spent < 0.005
