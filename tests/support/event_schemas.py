"""Checks events against schemas/events, and makes the tables of docs/events.md.

``python tests/support/event_schemas.py`` prints them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema_rs

from acp_gateway.protocol.events import EVENTS, Event
from acp_gateway.protocol.schema_files import load_schemas


@cache
def _registry() -> jsonschema_rs.Registry:
    return jsonschema_rs.Registry(list(load_schemas().items()))


@cache
def validator(name: str) -> jsonschema_rs.Draft202012Validator:
    """Of ``envelope``, or of the ``data`` of an event type."""
    schema = {"$ref": f"acp-gateway:events/{name}"}
    return jsonschema_rs.Draft202012Validator(schema, registry=_registry())


def schema_of(name: str) -> dict[str, Any]:
    """The schema of the ``data`` of an event type, led on where it only refers to another."""
    schema = load_schemas()[f"acp-gateway:events/{name}"]
    while "properties" not in schema:
        base, _, pointer = schema["$ref"].partition("#")
        schema = load_schemas()[base]
        for step in pointer.split("/")[1:]:
            schema = schema[step.replace("~1", "/")]
    return schema


def faults(envelope: Any) -> Iterator[str]:
    """What is wrong with one event of a stream: ``path: message``."""
    wrong = False
    for error in validator("envelope").iter_errors(envelope):
        wrong = True
        yield f"{_path(error)}: {error.message}"
    if wrong:
        return
    for error in validator(envelope["type"]).iter_errors(envelope["data"]):
        yield f"{_path(error, 'data')}: {error.message}"


def _path(error: jsonschema_rs.ValidationError, root: str = "") -> str:
    return "/".join([root, *map(str, error.instance_path)]).lstrip("/") or "envelope"


def validate_frame(envelope: dict[str, Any]) -> None:
    """Fails unless ``envelope`` (the JSON behind ``data:``) is an event that may be published."""
    found = list(faults(envelope))
    assert not found, f"{envelope.get('type')}: " + "; ".join(found)


# ---- docs/events.md ------------------------------------------------------------------------------


def _members(event: Event) -> str:
    schema = schema_of(event.name)
    return ", ".join(
        f"`{name}`" if name in schema.get("required", ()) else f"`{name}`?"
        for name in schema["properties"]
        if name != "_meta"
    )


def _table(*, published: bool) -> Iterator[str]:
    yield "| type | stream | | data | when |"
    yield "|---|---|---|---|---|"
    for event in EVENTS.values():
        if event.published is published:
            number = "numbered" if event.numbered else "synthetic"
            yield (
                f"| `{event.name}` | {event.scope} | {number} | {_members(event)} "
                f"| {event.summary} |"
            )


def _words() -> Iterator[str]:
    yield "| type | member | values | meaning |"
    yield "|---|---|---|---|"
    for event in EVENTS.values():
        for name, member in schema_of(event.name)["properties"].items():
            if event.published and member is not True and "enum" in member:
                values = ", ".join(f"`{value}`" for value in member["enum"])
                yield f"| `{event.name}` | `{name}` | {values} | {member.get('description', '')} |"


def tables() -> tuple[str, ...]:
    """Markdown: the types that are published, their closed sets of words, the reserved types."""
    parts = (_table(published=True), _words(), _table(published=False))
    return tuple("\n".join(part) for part in parts)


if __name__ == "__main__":
    print("\n\n".join(tables()))
