"""Changes of the workspace's files, by whomever, as events of the workspace's stream.

``workspace_files_changed``: {changes: [{path, kind, writer?}], truncated, reason?}. Paths are told
as the file routes tell them. ``truncated``: more may have changed than is told, so look again;
``reason`` says why: the watch has begun (``started``: what was before is not known), too much
changed at once (``too_many``), the ignore rules changed (``rules_changed``), the library stumbled
and was started again (``restarted``: over a name that is no UTF-8, for one), or files cannot be
watched for now (``failed``).

Somebody must listen: files are watched from the first reader of the stream until `LINGER` after
the last one. On Linux every directory is watched for itself, because the library, asked to do it
for a whole tree, follows links out of it and watches what the ignore rules hide; elsewhere the
system watches trees and follows no links. Nothing is polled.

watchfiles has its home here. It is asked in a thread, which the task that waits for it stops.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import structlog
import trio

from acp_gateway.core.file_changes import ADDED, MAX_CHANGES, Bounds
from acp_gateway.protocol.events import WORKSPACE_FILES_CHANGED
from acp_gateway.runtime.feed import Feed
from acp_gateway.runtime.watch_plan import MAX_DIRECTORIES, Change, Plan, Watched
from acp_gateway.runtime.workspace import Workspace

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

log = structlog.get_logger("acp_gateway.file_watch")

T = TypeVar("T")
Reason = Literal["started", "too_many", "rules_changed", "restarted", "failed"]
Sightings = set[tuple[int, str]]

LINGER: Final = 60.0
"""Seconds for which files are watched without a listener."""
RETRY: Final = 60.0
"""Seconds until it is tried again after a failure."""
STEP_MS: Final = 100
"""Changes that follow each other so fast go into one event. The library looks this often whether
it is to stop, for half a millisecond of processor time a second."""
DEBOUNCE_MS: Final = 500
"""The longest time that changes are gathered for one event."""
LOOK_MS: Final = 5_000
"""After this long without changes it is looked whether anybody listens."""
MAX_SIGHTINGS: Final = 2000
"""Beyond, they are not looked at one by one."""
WINDOW: Final = 5.0
"""Seconds in which at most `MAX_CHANGES` are told; what is more is a flood, told in one event."""
CALM_MS: Final = 1000
MAX_FLOOD: Final = 10.0
"""Seconds for which a flood of changes is waited out."""
PACE: Final = 3
MAX_PAUSE: Final = 10.0
"""Behind a new beginning, which looks at every directory, comes a pause of `PACE` times its length,
up to this many seconds: whatever makes one necessary again does not keep the processor busy."""
SETTLING: Final = 5
"""How often directories are looked for that were made while the watch began."""
_BY_DIRECTORY: Final = sys.platform == "linux"


class _Failed(Exception):
    """Files cannot be watched; the text says why, and what to do."""


class FileWatch:
    def __init__(self, workspace: Workspace, feed: Feed) -> None:
        self._workspace = workspace
        self._feed = feed
        self._state = workspace.watch
        self._state.enabled = True
        self._watched = Watched(workspace.roots, workspace.rules, workspace.records.writes)
        self._reader_came = trio.Event()
        self._alone_since: float | None = None
        self._window_began = float("-inf")
        self._told_in_window = 0
        self._limiter = trio.CapacityLimiter(2)
        feed.on_reader = self._on_reader

    def _on_reader(self) -> None:
        self._reader_came.set()

    async def run(self) -> None:
        """Watch while somebody listens, until cancelled."""
        while not self._feed.sealed:
            await self._reader_came.wait()
            reason: Reason | None = "started"
            while reason is not None:
                # What ended one watch is told by the next.
                reason = await self._watch_or_fail(reason)

    def _listened_to(self) -> bool:
        now = trio.current_time()
        if self._feed.subs:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        if self._alone_since is not None and now - self._alone_since >= LINGER:
            self._reader_came = trio.Event()
            self._alone_since = None
            return False
        return True

    async def _watch_or_fail(self, reason: Reason) -> Reason | None:
        """Why to begin anew; None when nobody listens any more."""
        try:
            return await self._watch(reason)
        except _Failed as exc:
            problem, self._state.problem = self._state.problem, str(exc)
            if problem != str(exc):
                log.warning("files_not_watched", problem=str(exc))
                self._announce([], "failed")
        await trio.sleep(RETRY)
        return "started" if self._listened_to() else None

    async def _watch(self, reason: Reason) -> Reason | None:
        began = trio.current_time()
        plan, notify = await self._in_thread(self._begin)
        try:
            self._ready(plan)
            self._announce([], reason)
            roots = await self._in_thread(self._watched.identities)
            pause = min((trio.current_time() - began) * PACE, MAX_PAUSE)
            while self._listened_to():
                seen = await self._interruptible(partial(_look, notify))
                if seen is None:
                    await trio.sleep(pause)
                    return "restarted"
                if not seen and await self._in_thread(self._watched.identities) != roots:
                    # A root that is somebody's current directory goes without a sound.
                    return "restarted"
                changes = await self._changes(seen, plan)
                if changes is None:
                    await self._interruptible(partial(_wait_for_calm, notify))
                    return "too_many"
                self._announce(changes)
                if any(self._watched.is_rule(each.path) for each in changes):
                    await trio.sleep(pause)
                    return "rules_changed"
                moved = [each for each in changes if each.directory]
                if not moved or not _BY_DIRECTORY:
                    continue
                began = trio.current_time()
                notify, new = await self._in_thread(partial(self._follow, notify, plan, moved))
                self._ready(plan)
                changes = await self._changes(new, plan)
                if changes is None:
                    await self._interruptible(partial(_wait_for_calm, notify))
                    return "too_many"
                self._announce(changes)
                await trio.sleep(min((trio.current_time() - began) * PACE, MAX_PAUSE))
            return None
        finally:
            self._state.active = False
            notify.close()

    async def _changes(self, seen: Sightings, plan: Plan) -> list[Change] | None:
        """What became of what was seen; None for more than may be told in `WINDOW`."""
        if len(seen) > MAX_SIGHTINGS:
            return None
        changes = await self._in_thread(partial(self._watched.changes, seen, plan))
        now = trio.current_time()
        if now - self._window_began > WINDOW:
            self._window_began, self._told_in_window = now, 0
        self._told_in_window += len(changes)
        return None if self._told_in_window > MAX_CHANGES else changes

    def _ready(self, plan: Plan) -> None:
        self._state.active = True
        self._state.directories = len(plan.directories)
        problem = None
        if not plan.complete:
            problem = (
                f"The workspace has more than {MAX_DIRECTORIES} directories: changes in the "
                "deepest ones are not told. Name large directories that do not matter in "
                ".gitignore or .qwenignore, or serve a smaller --workspace."
            )
            if self._state.problem != problem:
                log.warning("files_not_all_watched", problem=problem)
        self._state.problem = problem

    def _announce(self, changes: list[Change], reason: Reason | None = None) -> None:
        if not changes and reason is None:
            return
        told: list[dict[str, Any]] = []
        bounds = Bounds()
        for each in changes:
            path = self._workspace.told(each.path)
            if not bounds.take(path):
                reason = "too_many"
                break
            change: dict[str, Any] = {"path": path, "kind": each.kind}
            if each.writer is not None:
                who = each.writer.who
                writer = {"clientId": who.client, "sessionId": who.session, "name": who.actor}
                change["writer"] = {name: value for name, value in writer.items() if value}
            told.append(change)
        data: dict[str, Any] = {"changes": told, "truncated": reason is not None}
        if reason is not None:
            data["reason"] = reason
        self._feed.notice(WORKSPACE_FILES_CHANGED, data=data)
        self._feed.wake()

    # ---- in threads -----------------------------------------------------------------------------

    def _begin(self) -> tuple[Plan, RustNotify]:
        go_on = trio.from_thread.check_cancelled
        plan = self._watched.plan(go_on) if _BY_DIRECTORY else self._watched.roots_only()
        return plan, self._settled(plan, _open(plan), set())

    def _follow(
        self, notify: RustNotify, plan: Plan, moved: list[Change]
    ) -> tuple[RustNotify, Sightings]:
        """Directories came and went: watch those that are there now. Also what is in the new
        ones by now, which nobody has seen coming, and what was seen last."""
        plan.forget({each.path for each in moved if each.kind == "deleted"})
        new: Sightings = set()
        starts = [each.path for each in moved if each.kind == "created"]
        for path in self._watched.below(plan, starts, trio.from_thread.check_cancelled):
            new.add((ADDED, str(path)))
        newer = _open(plan)
        new |= _rest(notify)
        return self._settled(plan, newer, new), new

    def _settled(self, plan: Plan, notify: RustNotify, new: Sightings) -> RustNotify:
        """What was made between a look at a directory and the watch on it is looked for."""
        try:
            for _ in range(SETTLING if _BY_DIRECTORY else 0):
                missed = self._watched.missed(plan, trio.from_thread.check_cancelled)
                if not missed:
                    break
                new.update((ADDED, str(path)) for path in missed)
                newer = _open(plan)
                new |= _rest(notify)
                notify = newer
        except BaseException:
            notify.close()
            raise
        return notify

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    async def _interruptible(self, work: Callable[[threading.Event], T]) -> T:
        """``work`` ends soon when the event is set."""
        stop = threading.Event()

        async def guard() -> None:
            try:
                await trio.sleep_forever()
            finally:
                stop.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(guard)
            result = await self._in_thread(partial(work, stop))
            nursery.cancel_scope.cancel()
        return result


def _open(plan: Plan) -> RustNotify:
    from watchfiles._rust_notify import RustNotify

    for _ in range(SETTLING):
        paths = plan.names()
        if not paths:
            raise _Failed("Files cannot be watched: the workspace is gone, or cannot be read.")
        try:
            # Told to pass over what is forbidden, it would pass over the system's limit too.
            return RustNotify(paths, False, False, 0, not _BY_DIRECTORY, False)
        except (FileNotFoundError, PermissionError):
            plan.prune()
        except (OSError, RuntimeError) as exc:
            raise _Failed(
                f"Files cannot be watched ({exc}; {len(paths)} directories). Raise "
                "fs.inotify.max_user_watches and fs.inotify.max_user_instances, name large "
                "directories that do not matter in .gitignore or .qwenignore, or serve a smaller "
                "--workspace."
            ) from None
    raise _Failed("Files cannot be watched: directories of the workspace come and go too fast.")


def _look(notify: RustNotify, stop: threading.Event) -> Sightings | None:
    """What was seen; nothing, after a while; None when the library gave up."""
    try:
        seen = notify.watch(DEBOUNCE_MS, STEP_MS, LOOK_MS, stop)
    except RuntimeError as exc:
        log.info("watch_stumbled", error=str(exc))
        return None
    return seen if isinstance(seen, set) else set()


def _rest(notify: RustNotify) -> Sightings:
    """What it has seen and not told; it is closed."""
    try:
        seen = notify.watch(1, 1, 1, None)
    except RuntimeError:
        return set()
    finally:
        notify.close()
    return seen if isinstance(seen, set) else set()


def _wait_for_calm(notify: RustNotify, stop: threading.Event) -> None:
    end = time.monotonic() + MAX_FLOOD
    try:
        while time.monotonic() < end and not stop.is_set():
            if not isinstance(notify.watch(DEBOUNCE_MS, STEP_MS, CALM_MS, stop), set):
                return
    except RuntimeError:
        return
