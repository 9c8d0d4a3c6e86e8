"""When a reader is too slow: warned at three quarters of its limits, evicted beyond them.

Counts what waits for a reader whose write is blocked; a burst in one tick is no lag. One warning
for each episode: it is armed again when little waits.
"""

from __future__ import annotations

from typing import Any, Final

WARN: Final = 0.75
REARM: Final = 0.375


class Lag:
    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self.max_frames = max_frames
        self.max_bytes = max_bytes
        self._warned = False

    def warning(self, frames: int, bytes: int, last_id: int) -> dict[str, Any] | None:
        """Data of a ``slow_client_warning`` that is due now."""
        few = frames <= REARM * self.max_frames and bytes <= REARM * self.max_bytes
        if few:
            self._warned = False
        many, heavy = frames >= WARN * self.max_frames, bytes >= WARN * self.max_bytes
        if self._warned or not (many or heavy):
            return None
        self._warned = True
        threshold = "frames_and_bytes" if many and heavy else "frames" if many else "bytes"
        return {**self._queue(frames, bytes), "lastEventId": last_id, "threshold": threshold}

    def eviction(self, frames: int, bytes: int, last_id: int) -> dict[str, Any] | None:
        """Data of the ``client_evicted`` for a reader that is over its limits."""
        if frames <= self.max_frames and (bytes <= self.max_bytes or frames <= 1):
            return None  # one that is too big alone is let in
        reason = "queue_overflow" if frames > self.max_frames else "queue_bytes_overflow"
        return {"reason": reason, "droppedAfter": last_id, **self._queue(frames, bytes)}

    def _queue(self, frames: int, bytes: int) -> dict[str, Any]:
        return {
            "queueSize": frames,
            "maxQueued": self.max_frames,
            "queuedBytes": bytes,
            "maxQueuedBytes": self.max_bytes,
        }
