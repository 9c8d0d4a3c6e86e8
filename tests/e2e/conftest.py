"""Helpers on the path, and a last-resort deadline for every test."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TEST_DEADLINE = 180


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    """A test that hangs fails."""

    def expired(*_: object) -> None:
        raise TimeoutError(f"the test took more than {TEST_DEADLINE} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(TEST_DEADLINE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
