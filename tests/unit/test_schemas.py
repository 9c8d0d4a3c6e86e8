"""The schema files: valid, complete, resolvable, and the same as what the code has.

ACP messages are in test_schema_parity.
"""

from __future__ import annotations

import json
import pathlib
import typing
from pathlib import Path
from typing import Any

import attrs
import jsonschema_rs
import pytest

from acp_gateway.config import AgentSpec, Settings
from acp_gateway.protocol import schema_files
from acp_gateway.protocol import types as t
from acp_gateway.protocol.converter import read
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.schema_files import OPENAPI, load_schemas, schema_dir
from acp_gateway.runtime.runtime_file import RuntimeInfo

SCHEMAS = load_schemas()
REGISTRY = jsonschema_rs.Registry(list(SCHEMAS.items()))


def is_valid(reference: str, value: object) -> bool:
    schema = {"$ref": f"acp-gateway:{reference}"}
    return jsonschema_rs.Draft202012Validator(schema, registry=REGISTRY).is_valid(value)


def references(value: Any) -> typing.Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema_id", SCHEMAS)
def test_schemas_are_valid_2020_12(schema_id: str) -> None:
    schema = SCHEMAS[schema_id]
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema_rs.meta.validate(schema)


@pytest.mark.parametrize("schema_id", SCHEMAS)
def test_references_lead_somewhere(schema_id: str) -> None:
    resolver = REGISTRY.resolver(schema_id)
    for reference in references(SCHEMAS[schema_id]):
        assert resolver.lookup(reference).contents is not None


def test_ids_are_the_paths_of_the_files() -> None:
    root = Path(str(schema_dir()))
    found = {
        f"acp-gateway:{file.relative_to(root).as_posix()[:-5]}" for file in root.rglob("*.json")
    } - {f"acp-gateway:{OPENAPI[:-5]}"}
    assert found == set(SCHEMAS)
    assert {"acp-gateway:error", "acp-gateway:settings", "acp-gateway:runtime-file"} < found


def test_the_copy_in_the_package_comes_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_files, "files", lambda _: tmp_path)
    assert Path(str(schema_dir())).name == "schemas"
    (tmp_path / "schemas" / "acp").mkdir(parents=True)
    (tmp_path / "schemas" / "acp" / "x.json").write_text('{"$id": "acp-gateway:acp/x"}')
    (tmp_path / "schemas" / "README.md").write_text("not a schema")
    assert schema_dir() == tmp_path / "schemas"
    assert load_schemas() == {"acp-gateway:acp/x": {"$id": "acp-gateway:acp/x"}}


def test_an_installation_without_schemas_says_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_files, "files", lambda _: tmp_path)
    monkeypatch.setattr(schema_files, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(FileNotFoundError, match="reinstall"):
        schema_dir()


# -- errors ----------------------------------------------------------------------------------------


def test_error_kinds_are_all_in_the_schema() -> None:
    words = SCHEMAS["acp-gateway:error"]["$defs"]["errorKind"]["enum"]
    assert words == sorted(kind.word for kind in ErrorKind)


@pytest.mark.parametrize("kind", ErrorKind, ids=lambda kind: kind.word)
def test_errors_of_the_gateway_fit(kind: ErrorKind) -> None:
    for error in (
        GatewayError(kind, "It failed."),
        GatewayError(kind, "It failed.", remedy="Try again.", sessionId="s"),
    ):
        assert is_valid("error#/$defs/gateway", error.to_jsonrpc())
        assert is_valid("error#/$defs/httpBody", error.to_http()[1])


def test_errors_of_params_fit() -> None:
    with pytest.raises(GatewayError) as caught:
        read(t.PromptParams, {"prompt": [1]})
    assert is_valid("error#/$defs/gateway", caught.value.to_jsonrpc())
    assert is_valid("error#/$defs/httpBody", caught.value.to_http()[1])


def test_errors_of_agents_and_broken_errors() -> None:
    assert is_valid("error", {"code": -32000, "message": "m"})
    assert is_valid("error", {"code": 7, "message": "m", "data": "text"})
    assert not is_valid("error#/$defs/gateway", {"code": -32603, "message": "m"})
    assert not is_valid(
        "error#/$defs/gateway",
        {"code": -32603, "message": "m", "data": {"errorKind": "nonsense", "httpStatus": 500}},
    )
    for wrong in ({"code": 1.5, "message": "m"}, {"code": 2**31, "message": "m"}, {"code": 1}):
        assert not is_valid("error", wrong)


# -- settings --------------------------------------------------------------------------------------

PROPERTIES = SCHEMAS["acp-gateway:settings"]["properties"]
KINDS = typing.get_type_hints(Settings)


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _sample(kind: Any) -> tuple[Any, Any]:
    """A value of that type and one that is not."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return ["https://a"], [1]
    if origin is typing.Literal:
        return arguments[-1], "other"
    if origin is not None:  # X | None
        return _sample(arguments[0])
    samples: dict[Any, tuple[Any, Any]] = {
        bool: (True, 1),
        int: (1, 1.5),
        float: (0.5, "1"),
        str: ("x", 1),
        Path: ("/x", 1),
    }
    return samples[kind]


def test_settings_are_all_in_the_schema() -> None:
    assert set(PROPERTIES) - {"agents", "auth"} == {field.name for field in attrs.fields(Settings)}
    agent = SCHEMAS["acp-gateway:settings"]["$defs"]["agent"]["properties"]
    assert set(agent) == {field.name for field in attrs.fields(AgentSpec)}


@pytest.mark.parametrize("field", attrs.fields(Settings), ids=lambda field: field.name)
def test_settings_have_their_type_and_default(field: Any) -> None:
    schema = PROPERTIES[field.name]
    assert schema.get("default") == _json(field.default)
    if field.default is not None:
        assert is_valid("settings", {field.name: schema["default"]})
    right, wrong = _sample(KINDS[field.name])
    right = {"unix_socket_mode": "0660"}.get(field.name, right)
    pair = {"tls_cert": "tls_key", "tls_key": "tls_cert"}.get(field.name)
    companion = {pair: "/y"} if pair else {}
    assert is_valid("settings", {field.name: right, **companion})
    assert not is_valid("settings", {field.name: wrong, **companion})
    assert not is_valid("settings", {field.name: None, **companion})


def test_all_settings_have_a_description() -> None:
    assert [name for name, schema in PROPERTIES.items() if not schema.get("description")] == []


@pytest.mark.parametrize(
    "content",
    [
        {"prot": 1},
        {"port": 70000},
        {"port": -1},
        {"max_sessions": 0},
        {"linger": 0},
        {"token": "with space"},
        {"token": "t", "token_file": "/f"},
        {"tls_cert": "/c"},
        {"allow_origin": ["https://h/path"]},
        {"agents": {"0": {}}},
        {"agents": {"a": {"comand": "x"}}},
        {"agents": {"a": {"env": {"N": 1}}}},
    ],
    ids=str,
)
def test_wrong_settings_are_refused(content: dict[str, Any]) -> None:
    assert not is_valid("settings", content)


def test_a_whole_file_is_accepted() -> None:
    content = {
        "port": 0,
        "workspace": "/w",
        "agent": ["qwen", "mine=node /a.js"],
        "allow_origin": ["https://h:8443"],
        "tls_cert": "/c",
        "tls_key": "/k",
        "agents": {"mine": {"command": ["node", "/a.js"], "env": {"A": "1"}, "quirks": {"x": 1}}},
    }
    assert is_valid("settings", content)


# -- runtime file ----------------------------------------------------------------------------------

RUNTIME_FILE = json.loads(
    json.dumps(
        RuntimeInfo(
            pid=42,
            process_start="1",
            started_at=1.8e9,
            version="0.1.0",
            url="http://127.0.0.1:4170",
            ws_url="ws://127.0.0.1:4170/acp",
            workspace=("/w",),
            agents=("demo",),
            auth="none",
        ).to_dict()
    )
)


def test_runtime_files_are_what_the_daemon_writes() -> None:
    schema = SCHEMAS["acp-gateway:runtime-file"]
    assert set(schema["properties"]) == set(RUNTIME_FILE)
    optional = {name for name, value in RUNTIME_FILE.items() if value is None}
    assert set(schema["required"]) == set(RUNTIME_FILE) - optional
    assert is_valid("runtime-file", RUNTIME_FILE)
    assert is_valid("runtime-file", {**RUNTIME_FILE, "token": "t", "new": 1})


@pytest.mark.parametrize("name", RUNTIME_FILE)
def test_wrong_runtime_files_are_refused(name: str) -> None:
    assert not is_valid("runtime-file", {**RUNTIME_FILE, name: {}})
    without = {key: value for key, value in RUNTIME_FILE.items() if key != name}
    assert is_valid("runtime-file", without) is (RUNTIME_FILE[name] is None)
