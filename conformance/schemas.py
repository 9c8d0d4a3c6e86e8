"""The project's own JSON Schemas, for judging what a server sends."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs

from conformance.links import Link, Message
from conformance.outcome import brief, check

_DIRECTORY = Path(__file__).resolve().parent.parent / "schemas"

_EVENTS = "acp-gateway:events/"


@cache
def _definitions() -> dict[str, jsonschema_rs.Draft202012Validator]:
    """Validators by name: ``session/new.result``, ``session/update.params``, ``error``, and
    ``event:turn_complete`` for the data of an event…"""
    found = [json.loads(file.read_text()) for file in sorted(_DIRECTORY.rglob("*.json"))]
    found = [schema for schema in found if "$id" in schema]  # the OpenAPI document has none
    registry = jsonschema_rs.Registry([(schema["$id"], schema) for schema in found])
    names = {
        name: {"$ref": f"{schema['$id']}#/$defs/{name.replace('/', '~1')}"}
        for schema in found
        for name in schema.get("$defs", {})
        if "." in name
    }
    names["error"] = {"$ref": "acp-gateway:error"}
    events = [schema["$id"] for schema in found if schema["$id"].startswith(_EVENTS)]
    names |= {f"event:{id.removeprefix(_EVENTS)}": {"$ref": id} for id in events}
    return {
        name: jsonschema_rs.Draft202012Validator(schema, registry=registry)
        for name, schema in names.items()
    }


def check_schema(name: str, value: Any) -> None:
    """`Failure` unless ``value`` is valid by the definition ``name``."""
    for error in _definitions()[name].iter_errors(value):
        path = "/".join(str(part) for part in error.instance_path)
        check(False, f"{name} at /{path}: {error.message[:200]}; {brief(value, 200)}")


def check_event(envelope: Any) -> None:
    """`Failure` unless the envelope of an event and its data are valid; its type must be known."""
    check_schema("event:envelope", envelope)
    name = f"event:{envelope['type']}"
    check(name in _definitions(), f"an event of no known type: {brief(envelope)}")
    check_schema(name, envelope["data"])


def check_messages(link: Link, methods: dict[Any, str]) -> int:
    """Judge everything that came over a link; ``methods`` maps ids of requests to their methods.

    Returns how many messages had a definition.
    """
    judged = 0
    for message in link.messages():
        name, value = _part(message, methods)
        if name in _definitions():
            check_schema(name, value)
            judged += 1
    return judged


def _part(message: Message, methods: dict[Any, str]) -> tuple[str, Any]:
    if "method" in message:
        return f"{message['method']}.params", message.get("params")
    if "error" in message:
        return "error", message["error"]
    return f"{methods.get(message.get('id'), '')}.result", message.get("result") or {}
