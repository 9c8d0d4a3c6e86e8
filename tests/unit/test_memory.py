"""Memory that streams left free goes back to the system."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from acp_gateway.runtime.memory import available_memory, give_back

BLOCK = 2048
MIB = 1024 * 1024


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_told() -> None:
    assert (available_memory() or 0) > 16 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_what_lies_free_between_used_blocks_goes_back() -> None:
    give_back()
    blocks = [bytearray(BLOCK) for _ in range(64 * MIB // BLOCK)]
    del blocks[:-1:2], blocks[: len(blocks) // 2]
    kept = blocks[-1]
    before = resident()
    give_back()
    after = resident()
    assert kept is blocks[-1]
    assert after <= before
    del blocks
    give_back()
    assert resident() < before - 8 * MIB
