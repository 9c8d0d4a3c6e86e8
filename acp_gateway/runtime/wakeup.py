"""A flag that one task waits for: any number of `set` calls wake it once, and none is lost."""

from __future__ import annotations

from typing import Any

import trio


class Wakeup:
    def __init__(self) -> None:
        self._set = False
        self._task: trio.lowlevel.Task | None = None

    def set(self) -> None:
        """Never blocks; callable from any task of the loop."""
        self._set = True
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Return once the flag was set since the last return. Always a checkpoint."""
        if self._set:
            await trio.lowlevel.checkpoint()
        else:
            if self._task is not None:
                raise trio.BusyResourceError("another task waits here")
            self._task = trio.lowlevel.current_task()

            def abort(_: Any) -> trio.lowlevel.Abort:
                self._task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        self._set = False
