"""A last-resort deadline for each test of a directory: import `deadline` in its conftest."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

TEST_DEADLINE = 180


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """A test that hangs fails, also under a clock that stands still."""

    def expired(*_: object) -> None:
        raise TimeoutError(f"the test took more than {TEST_DEADLINE} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(TEST_DEADLINE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
