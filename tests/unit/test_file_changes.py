"""From sightings to changes."""

from __future__ import annotations

import pytest

from acp_gateway.core.file_changes import (
    ADDED,
    DELETED,
    MAX_CHANGES,
    MAX_PATH_BYTES,
    MODIFIED,
    Bounds,
    by_path,
    settled,
)


@pytest.mark.parametrize(
    ("seen", "there", "directory", "kind"),
    [
        ({ADDED}, True, False, "created"),
        ({ADDED, MODIFIED}, True, False, "created"),
        ({MODIFIED}, True, False, "modified"),
        ({DELETED, ADDED}, True, False, "modified"),
        ({DELETED}, True, False, "modified"),
        ({DELETED}, False, False, "deleted"),
        ({ADDED}, False, False, "deleted"),
        ({ADDED}, True, True, "created"),
        ({MODIFIED}, True, True, None),
        ({DELETED}, False, True, "deleted"),
    ],
)
def test_what_became_of_a_path(
    seen: set[int], there: bool, directory: bool, kind: str | None
) -> None:
    assert settled(frozenset(seen), there=there, directory=directory) == kind


def test_sightings_of_a_path_come_together_in_order() -> None:
    seen = by_path({(ADDED, "b"), (DELETED, "b"), (MODIFIED, "a")})
    assert list(seen.items()) == [("a", {MODIFIED}), ("b", {ADDED, DELETED})]


def test_an_event_is_bounded_by_number_and_by_bytes() -> None:
    few = Bounds()
    assert all(few.take("a") for _ in range(MAX_CHANGES)) and not few.take("a")
    long = "é" * 2000
    bounds, taken = Bounds(), 0
    while bounds.take(long):
        taken += 1
    assert taken == MAX_PATH_BYTES // 4000
