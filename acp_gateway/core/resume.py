"""What a reader that comes back with its last event id is sent first: a pure function.

Order of the checks: the epoch, an id that was never given, an id that is no longer kept. Whatever
is missing is announced before the replay, so that the reader knows to load the whole history.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from acp_gateway.core.event_ring import EventRing

REPLAY_BYTES: Final = 8 * 1024 * 1024


def resync(reason: str, last: int, earliest: int, **more: Any) -> dict[str, Any]:
    """Data of ``state_resync_required``: the last id that the reader has, the next it can get."""
    return {"reason": reason, **more, "lastDeliveredId": last, "earliestAvailableId": earliest}


@attrs.frozen(kw_only=True)
class Replay:
    start: int
    """Replay begins behind this id,"""
    stop: int
    """and ends with this one."""
    resync: dict[str, Any] | None
    """Data of the ``state_resync_required`` that comes first."""
    cut: dict[str, Any] | None
    """Data of the one that comes behind a replay that was cut short."""
    complete: dict[str, Any]
    """Data of ``replay_complete``."""


def plan_replay(
    ring: EventRing, last: int, epoch: str | None, own_epoch: str, budget: int = REPLAY_BYTES
) -> Replay:
    """``last``: the id that the reader has; ``epoch``: the numbering that it means, if it says."""
    following, first = ring.last_id + 1, ring.first_id
    missed: dict[str, Any] | None = None
    start = last
    if epoch is not None and epoch != own_epoch:
        missed = resync("epoch_reset", last, first, detail="epoch_mismatch")
        start = first - 1
    elif last >= following:
        missed = resync("epoch_reset", last, first)
        start = first - 1
    elif first == following and last < following - 1:
        missed = resync("seeded_replay_not_in_ring", last, first)
        start = ring.last_id
    elif first > last + 1:
        missed = resync("ring_evicted", last, first)
        start = first - 1
    stop = ring.stop_within(start, budget)
    cut = None
    if stop < ring.last_id:
        cut = resync("replay_budget_exceeded", stop, stop + 1)
    complete: dict[str, Any] = {"replayedCount": stop - start}
    if stop > start:
        complete |= {"lastReplayedEventId": stop, "lastEventId": stop}
    return Replay(start=start, stop=stop, resync=missed, cut=cut, complete=complete)
