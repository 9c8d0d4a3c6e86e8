"""Reading params and results: what is refused, where the error points, what stays as it came."""

from __future__ import annotations

from typing import Any

import pytest

from acp_gateway.protocol import types as t
from acp_gateway.protocol.converter import MAX_ERRORS, read, read_protocol_version, read_result
from acp_gateway.protocol.errors import ErrorKind, GatewayError


def refusal(cls: type[Any], value: object) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        read(cls, value)
    return caught.value


def paths(error: GatewayError) -> list[str]:
    return [problem["path"] for problem in error.data["errors"]]


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "value", "path", "message"),
    [
        (t.PromptParams, {"prompt": []}, "params.sessionId", "is required"),
        (
            t.PromptParams,
            {"sessionId": None, "prompt": []},
            "params.sessionId",
            "must be a string, not null",
        ),
        (
            t.PromptParams,
            {"sessionId": "s", "prompt": "hello"},
            "params.prompt",
            "must be an array, not a string",
        ),
        (
            t.PromptParams,
            {"sessionId": "s", "prompt": ["hello"]},
            "params.prompt[0]",
            "must be an object, not a string",
        ),
        (
            t.PromptParams,
            {"sessionId": "s", "prompt": [{"type": "text", "text": "a"}, {"type": 1}]},
            "params.prompt[1].type",
            "must be a string",
        ),
        (
            t.PromptParams,
            {"sessionId": "s", "prompt": [{"type": "image", "data": ""}]},
            "params.prompt[0].mimeType",
            "is required",
        ),
        (
            t.PromptParams,
            {"sessionId": "s", "prompt": [{"type": "resource"}]},
            "params.prompt[0].resource",
            "must be an object, not null",
        ),
        (
            t.PromptParams,
            {"sessionId": "s", "prompt": [{"type": "resource", "resource": {"uri": "u"}}]},
            "params.prompt[0].resource",
            "must have a string text or blob",
        ),
        (t.PromptParams, [], "params", "must be an object, not an array"),
        (t.PromptParams, "x", "params", "must be an object, not a string"),
        (
            t.PermissionRequestParams,
            {"sessionId": "s", "toolCall": {}, "options": []},
            "params.toolCall.toolCallId",
            "is required",
        ),
        (
            t.PermissionRequestParams,
            {
                "sessionId": "s",
                "toolCall": {"toolCallId": "t"},
                "options": [{"optionId": "a", "name": "A", "kind": "maybe"}],
            },
            "params.options[0].kind",
            "must be one of allow_once, allow_always, reject_once, reject_always",
        ),
        (
            t.SetConfigOptionParams,
            {"sessionId": "s", "configId": "c", "value": 1},
            "params.value",
            "must be a string or a boolean, not a number",
        ),
        (
            t.CancelRequestParams,
            {"requestId": True},
            "params.requestId",
            "must be a string, an integer or null, not a boolean",
        ),
        (t.CancelRequestParams, {}, "params.requestId", "is required"),
        (
            t.ListSessionsParams,
            {"cursor": 7},
            "params.cursor",
            "must be a string, not a number",
        ),
    ],
)
def test_errors_name_the_member(cls: type[Any], value: object, path: str, message: str) -> None:
    error = refusal(cls, value)
    assert error.kind is ErrorKind.INVALID_PARAMS
    assert error.data["errors"] == [{"path": path, "message": message}]
    assert error.message == f"Invalid params: {path} {message}."


def test_all_problems_are_told_and_the_first_is_in_the_message() -> None:
    error = refusal(
        t.PermissionRequestParams,
        {"toolCall": 1, "options": [{"optionId": 1, "name": "A"}, None]},
    )
    assert paths(error) == [
        "params.sessionId",
        "params.toolCall",
        "params.options[0].optionId",
        "params.options[0].kind",
        "params.options[1]",
    ]
    assert error.message == "Invalid params: params.sessionId is required."


def test_errors_are_few_and_do_not_repeat_values() -> None:
    error = refusal(t.PromptParams, {"sessionId": "s", "prompt": ["secret"] * 10_000})
    assert len(error.data["errors"]) == MAX_ERRORS
    assert "secret" not in str(error.to_jsonrpc())
    assert error.to_jsonrpc()["code"] == -32602


def test_a_wrong_answer_is_the_fault_of_the_agent() -> None:
    with pytest.raises(GatewayError) as caught:
        read_result(t.NewSessionResult, {"sessionId": 5})
    assert caught.value.kind is ErrorKind.AGENT_ERROR
    assert caught.value.data["errors"] == [
        {"path": "result.sessionId", "message": "must be a string, not a number"}
    ]


# -- leniency ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, {}])
def test_absent_params_and_null_results_are_empty_objects(value: object) -> None:
    assert read(t.ListSessionsParams, value) == t.ListSessionsParams()
    assert read_result(t.SessionState, value) == t.SessionState()


def test_wrong_optional_values_are_defaults() -> None:
    params = read(
        t.InitializeParams,
        {
            "protocolVersion": 1,
            "clientCapabilities": {
                "fs": {"readTextFile": "yes", "writeTextFile": True},
                "terminal": 1,
                "elicitation": {"form": {}, "url": True},
                "auth": 7,
            },
            "clientInfo": {"name": "c"},
            "_meta": "x",
        },
    )
    capabilities = params.client_capabilities
    assert capabilities.fs == t.FsCapabilities(write_text_file=True)
    assert capabilities.terminal is False
    assert capabilities.elicitation == t.ElicitationCapabilities(form=True)
    assert capabilities.auth == t.ClientAuthCapabilities()
    assert params.client_info is None
    assert params.meta is None


def test_wrong_items_are_dropped_where_the_schema_says_so() -> None:
    stdio = {"name": "a", "command": "/a", "args": [], "env": [{"name": "N", "value": "V"}]}
    http = {"type": "http", "name": "b", "url": "http://h", "headers": []}
    later = {"type": "acp", "name": "c"}
    wrong: list[object] = [
        None,
        {"name": "no command", "args": [], "env": []},
        {**stdio, "env": {"N": "V"}},
        {**stdio, "env": [{"name": "N"}]},
        {**stdio, "args": [1]},
        {"type": "sse", "name": "no url", "headers": []},
        {"type": "acp"},
    ]
    params = read(
        t.NewSessionParams,
        {
            "cwd": "/w",
            "mcpServers": [stdio, *wrong, http, later],
            "additionalDirectories": ["/x", 1],
        },
    )
    assert params.mcp_servers == (stdio, http, later)
    assert params.additional_directories == ("/x",)


@pytest.mark.parametrize("value", [{"cwd": "/w"}, {"cwd": "/w", "mcpServers": {"a": {}}}])
def test_missing_or_wrong_mcp_servers_are_none(value: object) -> None:
    assert read(t.NewSessionParams, value).mcp_servers == ()


def test_items_are_not_dropped_where_the_schema_is_strict() -> None:
    error = refusal(
        t.PermissionRequestParams,
        {"sessionId": "s", "toolCall": {"toolCallId": "t"}, "options": [{}]},
    )
    assert paths(error)[0] == "params.options[0].optionId"


def test_lines_are_not_negative_and_not_booleans() -> None:
    where = {"sessionId": "s", "path": "/f"}
    for wrong in (-1, True, "1", 1.5):
        assert read(t.ReadTextFileParams, {**where, "line": wrong}).line is None
    assert read(t.ReadTextFileParams, {**where, "line": 3, "limit": 0}).limit == 0


# -- values --------------------------------------------------------------------------------------


def test_raw_parts_are_the_objects_that_came_in() -> None:
    block = {"type": "text", "text": "x", "future": {"a": 1}}
    meta = {"traceparent": "00-"}
    params = read(t.PromptParams, {"sessionId": "s", "prompt": [block], "_meta": meta, "extra": 1})
    assert params.prompt[0] is block
    assert params.meta is meta

    capabilities = {"loadSession": True, "sessionCapabilities": {"list": {}, "close": None}}
    result = read_result(
        t.InitializeResult, {"protocolVersion": 1, "agentCapabilities": capabilities}
    )
    assert result.raw_capabilities is capabilities
    assert result.agent_capabilities.load_session
    assert result.agent_capabilities.session_capabilities == t.SessionCapabilities(list=True)


def test_each_default_dict_is_its_own() -> None:
    first = read_result(t.InitializeResult, {"protocolVersion": 1})
    first.raw_capabilities["x"] = 1
    second = read_result(t.InitializeResult, {"protocolVersion": 1, "agentCapabilities": 3})
    assert second.raw_capabilities == {}


@pytest.mark.parametrize("request_id", ["7", 7, 0, -1, 2**62, "", None])
def test_request_ids_keep_type_and_value(request_id: object) -> None:
    found = read(t.CancelRequestParams, {"requestId": request_id}).request_id
    assert found == request_id
    assert type(found) is type(request_id)


def test_permission_outcomes() -> None:
    def outcome(value: object) -> str | None:
        return read_result(t.RequestPermissionResult, {"outcome": value}).outcome.option_id

    assert outcome({"outcome": "selected", "optionId": "yes"}) == "yes"
    assert outcome({"outcome": "selected", "optionId": ""}) == ""
    assert outcome({"outcome": "cancelled", "optionId": "ignored"}) is None
    for wrong in (
        None,
        "cancelled",
        {"outcome": "selected"},
        {"outcome": "Cancelled"},
        {"outcome": "selected", "optionId": 1},
    ):
        with pytest.raises(GatewayError, match=r"^Invalid answer: result\.outcome"):
            outcome(wrong)
    answers = {"0": "B"}
    result = read_result(
        t.RequestPermissionResult, {"outcome": {"outcome": "cancelled"}, "answers": answers}
    )
    assert result.answers is answers


@pytest.mark.parametrize(
    ("value", "version"),
    [
        (1, 1),
        (0, 0),
        (2, 2),
        (65535, 65535),
        (65536, 65535),
        (10**30, 65535),
        (-4, 0),
        ("1", 1),
        ("99999999", 65535),
        ("9" * 5000, 1),
        ("2024-11-05", 1),
        ("", 1),
        (1.0, 1),
        (float("inf"), 1),
        (float("nan"), 1),
        (None, 1),
        ([], 1),
        ({}, 1),
    ],
)
def test_protocol_version_of_anything(value: object, version: int) -> None:
    assert read_protocol_version(value) == version
    assert read(t.InitializeParams, {"protocolVersion": value}).protocol_version == version


def test_protocol_version_must_be_there() -> None:
    assert paths(refusal(t.InitializeParams, {})) == ["params.protocolVersion"]
