"""Where the JSON Schemas are: in the package of a wheel, in the repository of a checkout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

OPENAPI: Final = "openapi.json"


def schema_dir() -> Traversable:
    """The directory that holds ``error.json``, ``acp/`` and so on.

    Raises `FileNotFoundError` when the installation has no schemas.
    """
    packaged = files("acp_gateway") / "schemas"
    if packaged.is_dir():
        return packaged
    # An editable installation does not have the copy that the wheel is built with.
    checkout = Path(__file__).parents[2] / "schemas"
    if checkout.is_dir():
        return checkout
    raise FileNotFoundError(f"no schemas at {packaged} or {checkout}; reinstall acp-gateway")


def load_document(name: str) -> dict[str, Any]:
    """A document that is no schema itself: ``openapi.json``."""
    return _load(schema_dir() / name)


def load_schemas() -> dict[str, dict[str, Any]]:
    """All schemas by their ``$id`` (``acp-gateway:acp/session-prompt``)."""
    return {schema["$id"]: schema for schema in map(_load, _json_files(schema_dir()))}


def _json_files(directory: Traversable) -> Iterator[Traversable]:
    for entry in sorted(directory.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _json_files(entry)
        elif entry.name.endswith(".json") and entry.name != OPENAPI:
            yield entry


def _load(file: Traversable) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(file.read_bytes())
    return schema
