"""Reads schemas/openapi.json, and makes the tables of docs/rest.md.

``python tests/support/openapi.py`` prints them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import jsonschema_rs

from acp_gateway.protocol.extensions import OPERATIONS, Operation
from acp_gateway.protocol.schema_files import OPENAPI, load_document

DOCUMENT = load_document(OPENAPI)
_ID = "acp-gateway:openapi"


def followed(value: dict[str, Any]) -> dict[str, Any]:
    """``value``, or the component that it only refers to."""
    while "$ref" in value:
        found: Any = DOCUMENT
        for step in value["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        value = found
    return value


def validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    """Of a schema of the document, which may refer to its components."""
    whole = {"$id": _ID, "components": DOCUMENT["components"], **schema}
    return jsonschema_rs.Draft202012Validator(whole)


@attrs.frozen
class Documented:
    """One operation of the document."""

    method: str
    path: str
    raw: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.raw["operationId"])

    @property
    def responses(self) -> dict[int, dict[str, Any]]:
        return {int(status): followed(each) for status, each in self.raw["responses"].items()}

    @property
    def parameters(self) -> list[dict[str, Any]]:
        return [followed(each) for each in self.raw.get("parameters", ())]

    @property
    def codes(self) -> set[str]:
        """Words that an error of it may have."""
        return {code for each in self.responses.values() for code in each.get("x-codes", ())}

    @property
    def takes_body(self) -> bool:
        return "requestBody" in self.raw

    def schema(self, status: int) -> dict[str, Any] | None:
        """Of the body that it answers with."""
        content = self.responses[status].get("content")
        if content is None:
            return None
        (media,) = content.values()
        schema: dict[str, Any] = media["schema"]
        return schema


def operations() -> Iterator[Documented]:
    for path, item in DOCUMENT["paths"].items():
        for method, raw in item.items():
            yield Documented(method.upper(), path, raw)


BY_NAME = {each.name: each for each in operations()}


# ---- docs/rest.md --------------------------------------------------------------------------------


def _word(schema: dict[str, Any] | None) -> str:
    if schema is None:
        return ""
    return schema["$ref"].rsplit("/", 1)[1] if "$ref" in schema else "object"


def _errors(each: Documented) -> str:
    """Status and words, but for those that every operation has."""
    usual = {"auth_required", "forbidden", "insufficient_scope", "route_not_found"}
    if each.takes_body:
        usual |= BODY_CODES
    asks_agent = each.codes >= AGENT_CODES
    if asks_agent:
        usual |= AGENT_CODES
    parts = []
    for status, response in sorted(each.responses.items()):
        codes = [code for code in response.get("x-codes", ()) if code not in usual]
        if codes:
            parts.append(f"{status} " + ", ".join(f"`{code}`" for code in codes))
    return "; ".join([*parts, *(["the agent's"] if asks_agent else [])])


BODY_CODES = frozenset(
    {"parse_error", "request_timeout", "payload_too_large", "unsupported_media_type"}
)
"""What may be wrong with any body."""


AGENT_CODES = frozenset(
    {
        *("agent_error", "agent_exited", "agent_start_failed", "agent_unresponsive"),
        *("agent_limit_exceeded", "shutting_down"),
    }
)
"""What may become of a question to the agent."""


def _row(row: Operation) -> str:
    each = BY_NAME[row.name]
    body = ""
    if each.takes_body:
        body = _word(each.raw["requestBody"]["content"]["application/json"]["schema"])
    status = f"{row.success} or 201" if row.creates else row.success
    answer = f"{status} {_word(each.schema(row.success))}".strip()
    twin = f"`{row.rpc}`" if row.rpc else ""
    access = row.access.value + (" (agent)" if row.needs_agent else "")
    tags = " ".join(f"`{tag}`" for tag in row.tags)
    cells = (f"`{row.method} {row.path}`", each.raw["summary"], access, body, answer)
    return "| " + " | ".join((*cells, twin, tags, _errors(each))) + " |"


HEAD = (
    "| route | what it does | access | body | answers | JSON-RPC | tags | errors |\n"
    "|---|---|---|---|---|---|---|---|"
)


def tables() -> dict[str, str]:
    """Markdown by tag of the document."""
    parts: dict[str, list[str]] = {tag["name"]: [HEAD] for tag in DOCUMENT["tags"]}
    for row in OPERATIONS.values():
        parts[BY_NAME[row.name].raw["tags"][0]].append(_row(row))
    return {name: "\n".join(rows) for name, rows in parts.items()}


if __name__ == "__main__":
    for name, table in tables().items():
        print(f"## {name}\n\n{table}\n")
