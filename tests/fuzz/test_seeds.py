"""Every kept input, and some that hypothesis makes, through every fuzz target."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.targets import TARGETS

SEEDS = Path(__file__).parent / "seeds"


def test_each_target_has_seeds_of_its_own() -> None:
    assert {each.name for each in SEEDS.iterdir()} == set(TARGETS)
    assert all(any(each.iterdir()) for each in SEEDS.iterdir())


@pytest.mark.parametrize(
    "seed", [pytest.param(each, id=f"{each.parent.name}-{each.name}") for each in SEEDS.glob("*/*")]
)
def test_a_kept_input(seed: Path) -> None:
    TARGETS[seed.parent.name](seed.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@given(st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name](data)
