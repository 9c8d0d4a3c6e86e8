"""The list of event types, their schemas and docs/events.md: complete, and the same thing."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.event_schemas import faults, schema_of, tables, validate_frame, validator

from acp_gateway.protocol import events
from acp_gateway.protocol.events import EVENTS
from acp_gateway.protocol.schema_files import load_schemas

PREFIX = "acp-gateway:events/"
SCHEMAS = {
    id.removeprefix(PREFIX): schema
    for id, schema in load_schemas().items()
    if id.startswith(PREFIX)
}
EXAMPLES = [(name, example) for name in EVENTS for example in SCHEMAS[name]["examples"]]
DOCS = Path(__file__).parents[2] / "docs" / "events.md"


def frame(name: str, data: Any) -> dict[str, Any]:
    number = {"id": 7} if EVENTS[name].numbered else {}
    return {**number, "v": 1, "type": name, "data": data, "_meta": {"serverTimestamp": 1}}


def wrong_type(value: Any) -> Any:
    return [] if isinstance(value, dict) else {}


# -- the list --------------------------------------------------------------------------------------


def test_every_type_has_a_schema_and_every_schema_a_type() -> None:
    assert set(SCHEMAS) == {*EVENTS, "common", "envelope"}
    envelope = SCHEMAS["envelope"]["$defs"]
    assert envelope["type"]["enum"] == sorted(EVENTS)
    synthetic = sorted(name for name, event in EVENTS.items() if not event.numbered)
    assert envelope["synthetic"]["enum"] == synthetic


def test_schema_and_table_say_the_same() -> None:
    for name, event in EVENTS.items():
        assert SCHEMAS[name]["title"] == name
        assert SCHEMAS[name]["description"] == event.summary


def test_there_is_a_constant_for_what_is_published_and_for_nothing_else() -> None:
    constants = {key: value for key, value in vars(events).items() if isinstance(value, str)}
    names = {key: value for key, value in constants.items() if key.isupper()}
    assert names == {name.upper(): name for name, event in EVENTS.items() if event.published}


def test_the_page_has_the_tables() -> None:
    page = DOCS.read_text(encoding="utf-8")
    for table in tables():
        assert table in page, "put in what `python tests/support/event_schemas.py` prints"


# -- data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "data"), EXAMPLES)
def test_examples_are_valid(name: str, data: dict[str, Any]) -> None:
    validate_frame(frame(name, data))
    # Members that the gateway does not know come from agents, and from later versions.
    validate_frame(frame(name, {**data, "later": {"x": 1}}))


@pytest.mark.parametrize("name", EVENTS)
def test_examples_show_every_member(name: str) -> None:
    shown = {key for each, data in EXAMPLES if each == name for key in data}
    assert shown == set(schema_of(name)["properties"]) - {"_meta"}


def _broken(name: str, data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    schema = schema_of(name)
    for key in schema["required"]:
        yield f"no {key}", {other: value for other, value in data.items() if other != key}
    for key, value in data.items():
        if schema["properties"][key] is not True:  # it may be anything
            yield f"wrong {key}", {**data, key: wrong_type(value)}


@pytest.mark.parametrize(("name", "data"), EXAMPLES)
def test_broken_data_is_refused(name: str, data: dict[str, Any]) -> None:
    for what, broken in _broken(name, data):
        assert list(faults(frame(name, broken))), what


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("session_update", {"update": {"sessionUpdate": "agent_message_chunk"}}),
        ("permission_request", {"options": [{"optionId": "", "name": "n", "kind": "allow_once"}]}),
        ("permission_resolved", {"outcome": {"outcome": "selected"}}),
        ("permission_resolved", {"outcome": {"outcome": "selected", "optionId": ""}}),
        ("permission_resolved", {"reason": "refused"}),
        ("permission_partial_vote", {"quorum": 0}),
        ("permission_partial_vote", {"optionTallies": {"a": -1}}),
        ("turn_complete", {"stopReason": ""}),
        ("session_closed", {"reason": "idle"}),
        ("session_died", {"exitCode": "1"}),
        ("state_resync_required", {"reason": "schema_changed"}),
        ("memory_changed", {"scope": "managed"}),
        ("history_truncated", {"reason": "too_long"}),
    ],
    ids=str,
)
def test_wrong_words_and_numbers_are_refused(name: str, changed: dict[str, Any]) -> None:
    data = SCHEMAS[name]["examples"][0]
    assert not validator(name).is_valid({**data, **changed})


# -- envelope --------------------------------------------------------------------------------------


def test_examples_of_envelopes_are_valid() -> None:
    for example in SCHEMAS["envelope"]["examples"]:
        validate_frame(example)


@pytest.mark.parametrize("name", EVENTS)
def test_numbered_types_have_an_id_and_synthetic_ones_have_none(name: str) -> None:
    right = frame(name, SCHEMAS[name]["examples"][0])
    wrong = {**right, "id": 7}
    if EVENTS[name].numbered:
        del wrong["id"]
    validate_frame(right)
    assert list(faults(wrong))


@pytest.mark.parametrize(
    "changed",
    [
        {"id": 0},
        {"id": "7"},
        {"v": 2},
        {"type": "unheard_of"},
        {"data": None},
        {"promptId": ""},
        {"originatorClientId": None},
        {"_meta": {}},
        {"_meta": {"serverTimestamp": 1.5}},
    ],
    ids=str,
)
def test_wrong_envelopes_are_refused(changed: dict[str, Any]) -> None:
    example = copy.deepcopy(SCHEMAS["envelope"]["examples"][0])
    assert list(faults({**example, **changed}))


@pytest.mark.parametrize("member", ["v", "type", "data", "_meta"])
def test_an_envelope_has_all_its_members(member: str) -> None:
    example = {**SCHEMAS["envelope"]["examples"][0]}
    del example[member]
    assert list(faults(example))


def test_a_refusal_says_where() -> None:
    data = {**SCHEMAS["turn_error"]["examples"][0], "message": 1}
    with pytest.raises(AssertionError, match="turn_error: data/message: "):
        validate_frame(frame("turn_error", data))
    with pytest.raises(AssertionError, match="turn_error: v: "):
        validate_frame({**frame("turn_error", {}), "v": 2})
