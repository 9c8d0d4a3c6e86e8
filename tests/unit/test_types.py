"""The shapes keep the rules at the top of `acp_gateway.protocol.types`."""

from __future__ import annotations

import inspect
import subprocess
import sys

import attrs
import pytest

from acp_gateway.protocol import types as t

SHAPES = [cls for _, cls in inspect.getmembers(t, attrs.has)]


@pytest.mark.parametrize("cls", SHAPES)
def test_shapes_are_frozen_and_have_slots(cls: type) -> None:
    assert "__slots__" in vars(cls)
    name = attrs.fields(cls)[0].name
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(object.__new__(cls), name, None)


@pytest.mark.parametrize("cls", SHAPES)
def test_optional_tuples_are_empty_and_nothing_mutable_is_shared(cls: type) -> None:
    for field in attrs.fields(cls):
        assert not isinstance(field.default, list | dict | set), field.name
        if str(field.type).startswith("tuple") and field.default is not attrs.NOTHING:
            assert field.default == (), field.name


def test_only_the_filters_of_session_list_are_optional_and_strict() -> None:
    strict = {
        (cls.__name__, field.name)
        for cls in SHAPES
        for field in attrs.fields(cls)
        if t.STRICT in field.metadata
    }
    assert strict == {("ListSessionsParams", "cwd"), ("ListSessionsParams", "cursor")}


def test_shapes_do_not_load_the_converter() -> None:
    code = "import sys, acp_gateway.protocol.types; sys.exit('cattrs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
