"""schemas/openapi.json: valid, the same as the table of operations, and true about the errors."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import openapi_spec_validator
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.openapi import (
    AGENT_CODES,
    BODY_CODES,
    BY_NAME,
    DOCUMENT,
    operations,
    tables,
    validator,
)

from acp_gateway.protocol.errors import ErrorKind
from acp_gateway.protocol.extensions import OPERATIONS, Access, Operation
from acp_gateway.transports.guards import OPEN_PATHS
from acp_gateway.transports.operations.table import HANDLERS

DOCS = Path(__file__).parents[2] / "docs" / "rest.md"
STATUS = {kind.word: kind.http_status for kind in ErrorKind} | {
    # Words of the HTTP layer alone.
    "forbidden": 403,
    "request_timeout": 408,
}
ROWS = list(OPERATIONS.values())
SCHEMAS = DOCUMENT["components"]["schemas"]


def name_of(row: Operation) -> str:
    return row.name


# -- the document ----------------------------------------------------------------------------------


def test_it_is_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(DOCUMENT, cls=openapi_spec_validator.OpenAPIV31SpecValidator)


def test_no_component_is_left_over() -> None:
    text = json.dumps(DOCUMENT)
    for kind, members in DOCUMENT["components"].items():
        if kind != "securitySchemes":
            unused = [name for name in members if f'"#/components/{kind}/{name}"' not in text]
            # The one that belongs to no operation: another method of a known path.
            assert unused == (["MethodNotAllowed"] if kind == "responses" else []), kind


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for each in schema.values():
            yield from objects(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from objects(each)


def test_schemas_require_members_that_they_have() -> None:
    for name, schema in SCHEMAS.items():
        for each in objects(schema):
            assert set(each.get("required", ())) <= set(each["properties"]), name


# -- the same as the table -------------------------------------------------------------------------


def test_it_has_the_operations_of_the_table_and_no_other() -> None:
    documented = {each.name: (each.method, each.path) for each in operations()}
    assert documented == {row.name: (row.method, row.path) for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_an_operation_is_its_row(row: Operation) -> None:
    each = BY_NAME[row.name]
    good = [row.success, *([201] if row.creates else [])]
    assert [status for status in each.responses if status < 400] == good
    assert len({each.schema(status) is None or str(each.schema(status)) for status in good}) == 1
    assert each.raw["x-feature-tags"] == list(row.tags)
    assert each.raw["x-access"] == row.access.value
    assert each.raw.get("x-jsonrpc") == row.rpc
    assert each.raw.get("x-needs-agent", False) == row.needs_agent
    (media,) = each.responses[row.success].get("content", {"application/json": {}})
    usual = "text/plain" if row.name == "metrics" else "application/json"
    assert media == ("text/event-stream" if row.stream else usual)
    assert (each.schema(row.success) is None) == (row.success == 204)
    assert each.takes_body == (row.method not in ("GET", "DELETE"))
    assert each.raw["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_parameters_are_those_of_the_path(row: Operation) -> None:
    told = [each["name"] for each in BY_NAME[row.name].parameters if each["in"] == "path"]
    assert told == re.findall(r"{(\w+)}", row.path)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_each_word_stands_under_its_status(row: Operation) -> None:
    for status, response in BY_NAME[row.name].responses.items():
        if status < 400 or (row.name, status) in (("readyz", 503), ("health", 503)):
            continue  # they say with 503 what they have to say
        assert response["x-codes"] == sorted(set(response["x-codes"]))
        assert {STATUS[code] for code in response["x-codes"]} == {status}
        of_agent = status == 502 and "upstream_error" not in response["x-codes"]
        shape = "AgentFailure" if of_agent else "Error"
        assert BY_NAME[row.name].schema(status) == {"$ref": f"#/components/schemas/{shape}"}
        headers = set(response.get("headers", ()))
        assert ("Retry-After" in headers) == (status in (429, 503))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_what_every_operation_may_refuse_is_there(row: Operation) -> None:
    each, codes = BY_NAME[row.name], BY_NAME[row.name].codes
    is_open = row.path in OPEN_PATHS
    assert "forbidden" in codes
    # Of health the numbers may need one.
    assert ("auth_required" in codes) == (not is_open or row.name == "health")
    assert each.raw.get("security", DOCUMENT["security"]) == ([] if is_open else [{"bearer": []}])
    assert ("token_required" in codes) == (row.access is Access.STRICT)
    # The file routes call a wrong parameter parse_error too.
    assert (codes >= BODY_CODES) == bool(codes - {"parse_error"} & BODY_CODES) == each.takes_body
    assert ("route_not_found" in codes) == ("{" in row.path)
    assert ("session_not_found" in codes) == (row.scope == "session")
    assert ("subscriber_limit_exceeded" in codes) == row.stream
    names = {parameter["name"] for parameter in each.parameters}
    assert ("invalid_client_id" in codes) == ("X-Qwen-Client-Id" in names)
    assert ("idempotency_key_reused" in codes) == ("Idempotency-Key" in names)
    assert (codes >= AGENT_CODES) == bool(codes & (AGENT_CODES - {"shutting_down"}))


def raised(function: FunctionType, seen: set[FunctionType]) -> Iterator[str]:
    """Names of the kinds that ``function`` raises, with the functions that it calls by name."""
    if function in seen:
        return
    seen.add(function)
    known = function.__globals__
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            kind = node.args[0] if node.func.id == "GatewayError" else None
            if isinstance(kind, ast.Attribute):
                yield kind.attr
        target = None
        if isinstance(node, ast.Name):
            target = known.get(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) == ("call", "session"):
                yield from ("SESSION_NOT_FOUND", "INVALID_CLIENT_ID")
            if (node.value.id, node.attr) == ("session", "request"):
                yield from ("SESSION_CLOSED", "AGENT_ERROR", "AGENT_EXITED", "AGENT_START_FAILED")
                yield from ("AGENT_UNRESPONSIVE", "AGENT_LIMIT", "SHUTTING_DOWN")
            target = getattr(known.get(node.value.id), node.attr, None)
        if isinstance(target, FunctionType) and target.__module__.startswith("acp_gateway."):
            yield from raised(target, seen)


CAUGHT = {
    # A mode or model that the new session refuses fails nothing: the answer says so.
    "session_create": {"session_closed"},
    # Over JSON-RPC only.
    "auth_device_flow_cancel": {"invalid_params"},
}


@pytest.mark.parametrize("name", HANDLERS)
def test_what_a_handler_raises_is_documented(name: str) -> None:
    handler = HANDLERS[name]
    assert isinstance(handler, FunctionType)
    words = {ErrorKind[kind].word for kind in raised(handler, set())}
    assert words - CAUGHT.get(name, set()) <= BY_NAME[name].codes


def test_the_reading_of_handlers_finds_something() -> None:
    """Else the test above would hold for anything."""
    found = {name: set(raised(HANDLERS[name], set())) for name in HANDLERS}  # type: ignore[arg-type]
    assert {"INVALID_SESSION_SCOPE", "INVALID_SESSION_ID"} <= found["session_create"]
    assert {"INVALID_REWIND_TARGET", "SESSION_BUSY", "AGENT_EXITED"} <= found["session_rewind"]
    assert {"PERMISSION_FORBIDDEN", "INVALID_OUTCOME"} <= found["permission_vote"]
    assert found["brand"] == set()


# -- a violation is seen ---------------------------------------------------------------------------


def schema(name: str) -> Any:
    return validator({"$ref": f"#/components/schemas/{name}"})


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("Error", {"error": "e", "code": "c"}, [{"error": "e"}, {"error": "e", "code": 1}]),
        ("AgentError", {"error": "e", "code": -32603}, [{"error": "e", "code": "c"}, {"code": 1}]),
        ("AgentFailure", {"error": "e", "code": 1}, [{"error": "e", "code": None}]),
        ("Prompt", {"prompt": [{"type": "new"}]}, [{}, {"prompt": []}, {"prompt": "p"}]),
        (
            "ContentBlock",
            {"type": "text", "text": ""},
            [{"type": "text"}, {"type": 1}, {"type": "image", "data": "d"}],
        ),
        ("Vote", {"outcome": {"outcome": "cancelled"}}, [{}, {"outcome": {"outcome": "selected"}}]),
        ("MidTurnAnswer", {"accepted": True, "messageId": "m"}, [{"accepted": True}]),
        ("Removed", {"removed": False}, [{}, {"removed": 0}]),
        ("Heartbeat", {"sessionId": "s", "lastSeenAt": 1}, [{"sessionId": "", "lastSeenAt": 1}]),
        (
            "Event",
            {"v": 1, "type": "t", "data": {}, "_meta": {"serverTimestamp": 1}},
            [{"v": 1, "type": "t", "data": {}, "_meta": {}}],
        ),
        ("CreateSession", {}, [{"cwd": "a"}, {"sessionScope": "both"}, {"sessionId": "1"}]),
    ],
)
def test_a_schema_tells_good_from_bad(name: str, good: Any, bad: list[Any]) -> None:
    checked = schema(name)
    checked.validate(good)
    for each in bad:
        assert not checked.is_valid(each), each


# -- docs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tables())
def test_the_page_has_the_tables(name: str) -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert tables()[name] in page, "put in what `python tests/support/openapi.py` prints"
