"""Generated messages, judged three times: by the converter, by our schemas, and by the pydantic
models of the official Python package. All must accept or all must refuse, but for `LENIENCIES`.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, get_args

import attrs
import jsonschema_rs
import pytest
from acp import schema as official
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from acp_gateway.protocol import types as t
from acp_gateway.protocol.converter import read, read_protocol_version
from acp_gateway.protocol.errors import GatewayError
from acp_gateway.protocol.methods import METHODS
from acp_gateway.protocol.schema_files import load_schemas

# -- messages ------------------------------------------------------------------------------------

Strategy = st.SearchStrategy[Any]

TEXT = st.text(max_size=6)
UINT = st.integers(0, 5000)
# Whole floats are left out: JSON Schema calls 1.0 an integer, Python does not.
FLOAT = st.floats(-9, 9).filter(lambda number: not number.is_integer())
SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70000),
    FLOAT,
    TEXT,
    st.sampled_from(["1", "true", "text", "stdio", "selected", "boolean"]),
)
JUNK = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
META = st.none() | st.dictionaries(TEXT, SCALAR, max_size=2)


def obj(required: dict[str, Strategy], optional: dict[str, Strategy] | None = None) -> Strategy:
    extra = {"_meta": META, "unknownMember": JUNK}
    return st.fixed_dictionaries(required, optional={**extra, **(optional or {})})


def maybe(inner: Strategy) -> Strategy:
    return st.none() | inner


def some(inner: Strategy) -> Strategy:
    return st.lists(inner, max_size=3)


def const(value: Any) -> Strategy:
    return st.just(value)


IMPLEMENTATION = obj({"name": TEXT, "version": TEXT}, {"title": maybe(TEXT)})
MARKER = maybe(obj({}))
FLAG = st.booleans()
PAIR = obj({"name": TEXT, "value": TEXT})
MCP_SERVER = st.one_of(
    obj({"name": TEXT, "command": TEXT, "args": some(TEXT), "env": some(PAIR)}),
    obj(
        {
            "type": st.sampled_from(["http", "sse"]),
            "name": TEXT,
            "url": TEXT,
            "headers": some(PAIR),
        }
    ),
)
BLOCK = st.one_of(
    obj({"type": const("text"), "text": TEXT}),
    obj({"type": const("image"), "data": TEXT, "mimeType": TEXT}, {"uri": maybe(TEXT)}),
    obj({"type": const("audio"), "data": TEXT, "mimeType": TEXT}),
    obj({"type": const("resource_link"), "uri": TEXT, "name": TEXT}, {"size": maybe(UINT)}),
    obj(
        {
            "type": const("resource"),
            "resource": obj({"uri": TEXT, "text": TEXT}, {"mimeType": maybe(TEXT)})
            | obj({"uri": TEXT, "blob": TEXT}),
        }
    ),
)
TOOL_CALL = obj(
    {"toolCallId": TEXT},
    {
        "title": maybe(TEXT),
        "kind": st.sampled_from(["read", "edit", "other", None]),
        "status": st.sampled_from(["pending", "completed", None]),
        "content": maybe(
            some(
                obj({"type": const("content"), "content": BLOCK})
                | obj({"type": const("diff"), "path": TEXT, "newText": TEXT})
                | obj({"type": const("terminal"), "terminalId": TEXT})
            )
        ),
        "locations": maybe(some(obj({"path": TEXT}, {"line": maybe(UINT)}))),
        "rawInput": JUNK,
    },
)
SESSION = {"sessionId": TEXT}
SETUP = {"cwd": TEXT, "mcpServers": some(MCP_SERVER)}
ROOTS = {"additionalDirectories": some(TEXT)}
MODES = obj(
    {"currentModeId": TEXT, "availableModes": some(obj({"id": TEXT, "name": TEXT}))},
)
OPTION = obj({"value": TEXT, "name": TEXT})
CONFIG_OPTION = obj(
    {
        "id": TEXT,
        "name": TEXT,
        "type": const("select"),
        "currentValue": TEXT,
        "options": some(OPTION) | some(obj({"group": TEXT, "name": TEXT, "options": some(OPTION)})),
    }
) | obj({"id": TEXT, "name": TEXT, "type": const("boolean"), "currentValue": st.booleans()})
STATE = {"modes": maybe(MODES), "configOptions": maybe(some(CONFIG_OPTION))}
EMPTY = obj({})
EXIT = {"exitCode": maybe(UINT), "signal": maybe(TEXT)}
CHUNK = st.sampled_from(["user_message_chunk", "agent_message_chunk", "agent_thought_chunk"])


@attrs.frozen
class Case:
    """``model`` is the official one; None where that package has no such method."""

    shape: type[t.Shape] | None
    model: Any
    valid: Strategy


CASES: dict[str, Case] = {
    "initialize.params": Case(
        t.InitializeParams,
        official.InitializeRequest,
        obj(
            {"protocolVersion": st.integers(0, 65535)},
            {
                "clientInfo": maybe(IMPLEMENTATION),
                "clientCapabilities": obj(
                    {},
                    {
                        "fs": obj({}, {"readTextFile": FLAG, "writeTextFile": FLAG}),
                        "terminal": FLAG,
                        "auth": obj({}, {"terminal": FLAG}),
                        "elicitation": maybe(obj({}, {"form": MARKER, "url": MARKER})),
                    },
                ),
            },
        ),
    ),
    "initialize.result": Case(
        t.InitializeResult,
        official.InitializeResponse,
        obj(
            {"protocolVersion": st.integers(0, 65535)},
            {
                "agentInfo": maybe(IMPLEMENTATION),
                "authMethods": some(obj({"id": TEXT, "name": TEXT}, {"description": maybe(TEXT)})),
                "agentCapabilities": obj(
                    {},
                    {
                        "loadSession": FLAG,
                        "promptCapabilities": obj({}, {"image": FLAG, "embeddedContext": FLAG}),
                        "mcpCapabilities": obj({}, {"http": FLAG, "sse": FLAG}),
                        "sessionCapabilities": obj(
                            {},
                            dict.fromkeys(
                                (
                                    "list",
                                    "resume",
                                    "close",
                                    "delete",
                                    "fork",
                                    "additionalDirectories",
                                ),
                                MARKER,
                            ),
                        ),
                        "auth": obj({}, {"logout": MARKER}),
                    },
                ),
            },
        ),
    ),
    "authenticate.params": Case(
        t.AuthenticateParams, official.AuthenticateRequest, obj({"methodId": TEXT})
    ),
    "authenticate.result": Case(t.Shape, official.AuthenticateResponse, EMPTY),
    "logout.params": Case(t.Shape, official.LogoutRequest, EMPTY),
    "logout.result": Case(t.Shape, official.LogoutResponse, EMPTY),
    "session/new.params": Case(t.NewSessionParams, official.NewSessionRequest, obj(SETUP, ROOTS)),
    "session/new.result": Case(
        t.NewSessionResult, official.NewSessionResponse, obj(SESSION, STATE)
    ),
    "session/load.params": Case(
        t.LoadSessionParams, official.LoadSessionRequest, obj({**SESSION, **SETUP}, ROOTS)
    ),
    "session/load.result": Case(t.SessionState, official.LoadSessionResponse, obj({}, STATE)),
    "session/resume.params": Case(
        t.ResumeSessionParams, official.ResumeSessionRequest, obj({**SESSION, **SETUP}, ROOTS)
    ),
    "session/resume.result": Case(t.SessionState, official.ResumeSessionResponse, obj({}, STATE)),
    "session/fork.params": Case(
        t.ForkSessionParams, official.ForkSessionRequest, obj({**SESSION, **SETUP}, ROOTS)
    ),
    "session/fork.result": Case(
        t.NewSessionResult, official.ForkSessionResponse, obj(SESSION, STATE)
    ),
    "session/list.params": Case(
        t.ListSessionsParams,
        official.ListSessionsRequest,
        obj({}, {"cwd": maybe(TEXT), "cursor": maybe(TEXT)}),
    ),
    "session/list.result": Case(
        t.ListSessionsResult,
        official.ListSessionsResponse,
        obj(
            {
                "sessions": some(
                    obj(
                        {**SESSION, "cwd": TEXT},
                        {**ROOTS, "title": maybe(TEXT), "updatedAt": maybe(TEXT)},
                    )
                )
            },
            {"nextCursor": maybe(TEXT)},
        ),
    ),
    "session/close.params": Case(t.SessionIdParams, official.CloseSessionRequest, obj(SESSION)),
    "session/close.result": Case(t.Shape, official.CloseSessionResponse, EMPTY),
    "session/delete.params": Case(t.SessionIdParams, official.DeleteSessionRequest, obj(SESSION)),
    "session/delete.result": Case(t.Shape, official.DeleteSessionResponse, EMPTY),
    "session/prompt.params": Case(
        t.PromptParams, official.PromptRequest, obj({**SESSION, "prompt": some(BLOCK)})
    ),
    "session/prompt.result": Case(
        t.PromptResult,
        official.PromptResponse,
        obj({"stopReason": st.sampled_from(["end_turn", "cancelled", "refusal"])}),
    ),
    "session/cancel.params": Case(t.CancelParams, official.CancelNotification, obj(SESSION)),
    "session/update.params": Case(
        None,
        official.SessionNotification,
        obj(
            {
                **SESSION,
                "update": st.one_of(
                    obj({"sessionUpdate": CHUNK, "content": BLOCK}, {"messageId": maybe(TEXT)}),
                    st.builds(
                        lambda call: {**call, "sessionUpdate": "tool_call", "title": "t"}, TOOL_CALL
                    ),
                    st.builds(
                        lambda call: {**call, "sessionUpdate": "tool_call_update"}, TOOL_CALL
                    ),
                    obj(
                        {
                            "sessionUpdate": const("plan"),
                            "entries": some(
                                obj(
                                    {
                                        "content": TEXT,
                                        "priority": st.sampled_from(["high", "low"]),
                                        "status": st.sampled_from(["pending", "completed"]),
                                    }
                                )
                            ),
                        }
                    ),
                    obj(
                        {
                            "sessionUpdate": const("available_commands_update"),
                            "availableCommands": some(
                                obj(
                                    {"name": TEXT, "description": TEXT},
                                    {"input": maybe(obj({"hint": TEXT}))},
                                )
                            ),
                        }
                    ),
                    obj({"sessionUpdate": const("current_mode_update"), "currentModeId": TEXT}),
                    obj(
                        {
                            "sessionUpdate": const("config_option_update"),
                            "configOptions": some(CONFIG_OPTION),
                        }
                    ),
                    obj({"sessionUpdate": const("session_info_update")}, {"title": maybe(TEXT)}),
                    obj({"sessionUpdate": const("usage_update"), "used": UINT, "size": UINT}),
                ),
            }
        ),
    ),
    "session/set_mode.params": Case(
        t.SetModeParams, official.SetSessionModeRequest, obj({**SESSION, "modeId": TEXT})
    ),
    "session/set_mode.result": Case(t.Shape, official.SetSessionModeResponse, EMPTY),
    "session/set_config_option.params": Case(
        t.SetConfigOptionParams,
        official.SetSessionConfigOptionBooleanRequest
        | official.SetSessionConfigOptionSelectRequest,
        obj({**SESSION, "configId": TEXT, "value": TEXT})
        | obj(
            {**SESSION, "configId": TEXT, "value": st.booleans(), "type": const("boolean")},
        ),
    ),
    "session/set_config_option.result": Case(
        t.SetConfigOptionResult,
        official.SetSessionConfigOptionResponse,
        obj({"configOptions": some(CONFIG_OPTION)}),
    ),
    # Older than the stable schema: no model to compare with.
    "session/set_model.params": Case(t.SetModelParams, None, obj({**SESSION, "modelId": TEXT})),
    "session/set_model.result": Case(t.Shape, None, EMPTY),
    "session/request_permission.params": Case(
        t.PermissionRequestParams,
        official.RequestPermissionRequest,
        obj(
            {
                **SESSION,
                "toolCall": TOOL_CALL,
                "options": some(
                    obj(
                        {
                            "optionId": TEXT,
                            "name": TEXT,
                            "kind": st.sampled_from(
                                ["allow_once", "allow_always", "reject_once", "reject_always"]
                            ),
                        }
                    )
                ),
            }
        ),
    ),
    "session/request_permission.result": Case(
        t.RequestPermissionResult,
        official.RequestPermissionResponse,
        obj(
            {
                "outcome": obj({"outcome": const("cancelled")})
                | obj({"outcome": const("selected"), "optionId": TEXT})
            }
        ),
    ),
    "fs/read_text_file.params": Case(
        t.ReadTextFileParams,
        official.ReadTextFileRequest,
        obj({**SESSION, "path": TEXT}, {"line": maybe(UINT), "limit": maybe(UINT)}),
    ),
    "fs/read_text_file.result": Case(None, official.ReadTextFileResponse, obj({"content": TEXT})),
    "fs/write_text_file.params": Case(
        t.WriteTextFileParams,
        official.WriteTextFileRequest,
        obj({**SESSION, "path": TEXT, "content": TEXT}),
    ),
    "fs/write_text_file.result": Case(t.Shape, official.WriteTextFileResponse, EMPTY),
    "terminal/create.params": Case(
        t.CreateTerminalParams,
        official.CreateTerminalRequest,
        obj(
            {**SESSION, "command": TEXT},
            {
                "args": some(TEXT),
                "env": some(PAIR),
                "cwd": maybe(TEXT),
                "outputByteLimit": maybe(UINT),
            },
        ),
    ),
    "terminal/create.result": Case(
        t.CreateTerminalResult, official.CreateTerminalResponse, obj({"terminalId": TEXT})
    ),
    **{
        f"terminal/{verb}.params": Case(
            t.TerminalParams, model, obj({**SESSION, "terminalId": TEXT})
        )
        for verb, model in (
            ("output", official.TerminalOutputRequest),
            ("wait_for_exit", official.WaitForTerminalExitRequest),
            ("kill", official.KillTerminalRequest),
            ("release", official.ReleaseTerminalRequest),
        )
    },
    "terminal/output.result": Case(
        None,
        official.TerminalOutputResponse,
        obj({"output": TEXT, "truncated": FLAG}, {"exitStatus": maybe(obj({}, EXIT))}),
    ),
    "terminal/wait_for_exit.result": Case(
        None, official.WaitForTerminalExitResponse, obj({}, EXIT)
    ),
    "terminal/kill.result": Case(t.Shape, official.KillTerminalResponse, EMPTY),
    "terminal/release.result": Case(t.Shape, official.ReleaseTerminalResponse, EMPTY),
    # Forms are read by the client that shows them, so the official union does not compare.
    "elicitation/create.params": Case(
        t.ElicitationParams,
        None,
        obj(
            {
                **SESSION,
                "message": TEXT,
                "mode": const("form"),
                "requestedSchema": obj({"type": const("object")}),
            }
        )
        | obj(
            {
                "requestId": st.integers(0, 9) | TEXT,
                "message": TEXT,
                "mode": const("url"),
                "elicitationId": TEXT,
                "url": TEXT,
            }
        ),
    ),
    "elicitation/create.result": Case(
        None,
        None,
        obj({"action": st.sampled_from(["decline", "cancel"])})
        | obj({"action": const("accept"), "content": st.dictionaries(TEXT, TEXT | some(TEXT))}),
    ),
    "elicitation/complete.params": Case(
        t.ElicitationIdParams,
        official.CompleteElicitationNotification,
        obj({"elicitationId": TEXT}),
    ),
    "$/cancel_request.params": Case(
        t.CancelRequestParams,
        official.CancelRequestNotification,
        obj({"requestId": maybe(st.integers(0, 9) | TEXT)}),
    ),
}


def _paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield (*prefix, key)
        if isinstance(value[key], dict | list):
            yield from _paths(value[key], (*prefix, key))


@st.composite
def nearly(draw: st.DrawFn, valid: Strategy) -> Any:
    """A valid message with up to three members dropped or replaced."""
    message = copy.deepcopy(draw(valid))
    for _ in range(draw(st.integers(1, 3))):
        paths = list(_paths(message))
        if not paths:
            break
        *parents, key = draw(st.sampled_from(paths))
        target = message
        for parent in parents:
            target = target[parent]
        if draw(st.booleans()):
            del target[key]
        else:
            target[key] = draw(JUNK)
    return message


WRONG = (None, True, 0, -1, 1.5, 70000, "", "1", "true", [], {}, [1], {"a": 1})


def near_misses(message: Any) -> Iterator[Any]:
    """Every message that differs from ``message`` in one member, left out or wrong."""
    for *parents, key in _paths(message):
        for wrong in (..., *WRONG):
            other = copy.deepcopy(message)
            target = other
            for parent in parents:
                target = target[parent]
            if wrong is ...:
                del target[key]
            else:
                target[key] = copy.deepcopy(wrong)
            yield other


judge = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def for_all_messages(case: Case, check: Callable[[Any], None]) -> None:
    """Call ``check`` with messages of every kind: valid, wrong in one member, in more, junk."""

    @judge
    @given(message=case.valid)
    def systematic(message: Any) -> None:
        check(message)
        for other in near_misses(message):
            check(other)

    @judge
    @given(message=nearly(case.valid) | JUNK)
    def wild(message: Any) -> None:
        check(message)

    systematic()
    wild()


# -- where the official models are stricter than the gateway ---------------------------------------


def _set(name: str, value: Any) -> Callable[[Any], None]:
    def repair(message: Any) -> None:
        message[name] = value

    return repair


def _not_a_list(name: str, *, also_absent: bool = False) -> Callable[[Any], bool]:
    def applies(message: Any) -> bool:
        if name not in message:
            return also_absent
        return not isinstance(message[name], list)

    return applies


def _blocks(message: Any) -> list[Any]:
    prompt = message.get("prompt")
    return prompt if isinstance(prompt, list) else []


STOP_REASONS = get_args(official.StopReason)
BLOCK_TYPES = ("text", "image", "audio", "resource_link", "resource")


def _is_unknown_block(block: Any) -> bool:
    kind = block.get("type") if isinstance(block, dict) else None
    return isinstance(kind, str) and kind not in BLOCK_TYPES


def _replace_unknown_blocks(message: Any) -> None:
    message["prompt"] = [
        {"type": "text", "text": ""} if _is_unknown_block(block) else block
        for block in message["prompt"]
    ]


def _has_wrong_roots(session: Any) -> bool:
    return isinstance(session, dict) and _not_a_list("additionalDirectories")(session)


@attrs.frozen
class Leniency:
    """``repair`` turns a message that only we accept into one that the models read as we do."""

    reason: str
    where: tuple[str, ...]
    applies: Callable[[Any], bool]
    repair: Callable[[Any], None]
    example: Any


_SETUP_PARAMS = (
    "session/new.params",
    "session/load.params",
    "session/resume.params",
    "session/fork.params",
)
_STATE_RESULTS = tuple(name.replace("params", "result") for name in _SETUP_PARAMS)

LENIENCIES = (
    Leniency(
        "the schema marks mcpServers so that a wrong list counts as empty; the models only skip "
        "items, and want the member in new and load",
        _SETUP_PARAMS,
        _not_a_list("mcpServers", also_absent=True),
        _set("mcpServers", []),
        {"sessionId": "s", "cwd": "/", "mcpServers": 1},
    ),
    Leniency(
        "the same for additionalDirectories",
        _SETUP_PARAMS,
        _not_a_list("additionalDirectories"),
        _set("additionalDirectories", []),
        {"sessionId": "s", "cwd": "/", "mcpServers": [], "additionalDirectories": "/x"},
    ),
    Leniency(
        "the same for configOptions, which nothing in the gateway depends on",
        (*_STATE_RESULTS, "session/set_config_option.result"),
        _not_a_list("configOptions", also_absent=True),
        _set("configOptions", []),
        {"sessionId": "s", "configOptions": {}},
    ),
    Leniency(
        "the same for sessions",
        ("session/list.result",),
        _not_a_list("sessions", also_absent=True),
        _set("sessions", []),
        {},
    ),
    Leniency(
        "the same inside of each session, which the models leave out",
        ("session/list.result",),
        lambda message: any(map(_has_wrong_roots, message["sessions"])),
        lambda message: [
            session.update(additionalDirectories=[])
            for session in message["sessions"]
            if _has_wrong_roots(session)
        ],
        {"sessions": [{"sessionId": "s", "cwd": "/", "additionalDirectories": 1}]},
    ),
    Leniency(
        "the same for authMethods",
        ("initialize.result",),
        _not_a_list("authMethods"),
        _set("authMethods", []),
        {"protocolVersion": 1, "authMethods": {}},
    ),
    Leniency(
        "the same for args of a terminal",
        ("terminal/create.params",),
        _not_a_list("args"),
        _set("args", []),
        {"sessionId": "s", "command": "c", "args": "-v"},
    ),
    Leniency(
        "the same for env of a terminal",
        ("terminal/create.params",),
        _not_a_list("env"),
        _set("env", []),
        {"sessionId": "s", "command": "c", "env": {"A": "1"}},
    ),
    Leniency(
        "a tool call is relayed as it came; only its id is read",
        ("session/request_permission.params",),
        lambda message: (
            isinstance(message.get("toolCall"), dict)
            and any(
                not isinstance(message["toolCall"].get(name, []), list)
                for name in ("content", "locations")
            )
        ),
        lambda message: message.update(toolCall={"toolCallId": message["toolCall"]["toolCallId"]}),
        {"sessionId": "s", "options": [], "toolCall": {"toolCallId": "t", "content": "x"}},
    ),
    Leniency(
        "a content block of a type that v1 does not know is the agent's to judge",
        ("session/prompt.params",),
        lambda message: any(map(_is_unknown_block, _blocks(message))),
        _replace_unknown_blocks,
        {"sessionId": "s", "prompt": [{"type": "video"}]},
    ),
    Leniency(
        "a version that is not uint16 is read as one, as its sender gets version 1 in any case",
        ("initialize.params", "initialize.result"),
        lambda message: "protocolVersion" in message,
        lambda message: message.update(
            protocolVersion=read_protocol_version(message["protocolVersion"])
        ),
        {"protocolVersion": 65536},
    ),
    Leniency(
        "a turn with a stop reason that v1 does not know has ended all the same",
        ("session/prompt.result",),
        lambda message: (
            isinstance(message.get("stopReason"), str) and message["stopReason"] not in STOP_REASONS
        ),
        _set("stopReason", "end_turn"),
        {"stopReason": "pause"},
    ),
    Leniency(
        "a boolean value without its type is the agent's to judge",
        ("session/set_config_option.params",),
        lambda message: isinstance(message.get("value"), bool),
        _set("type", "boolean"),
        {"sessionId": "s", "configId": "c", "value": True},
    ),
    Leniency(
        "null params are empty params",
        tuple(CASES),
        lambda message: message is None,
        lambda message: None,
        None,
    ),
)


def repaired(name: str, message: Any) -> Any:
    message = {} if message is None else copy.deepcopy(message)
    if isinstance(message, dict):
        for leniency in LENIENCIES:
            if name in leniency.where and leniency.applies(message):
                leniency.repair(message)
    return message


# -- the three judges ------------------------------------------------------------------------------


def ours(shape: type[t.Shape], message: Any) -> t.Shape | None:
    try:
        return read(shape, message)
    except GatewayError:
        return None


@functools.cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def theirs(model: Any, message: Any, *, strict: bool = False) -> Any:
    adapter = _adapter(model)
    try:
        if strict:  # in Python mode, strict would want instances of the models
            return adapter.validate_json(json.dumps(message), strict=True)
        return adapter.validate_python(message)
    except ValidationError:
        return None


def _pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _soft_names(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_soft_names, value))
    if not isinstance(value, dict):
        return set()
    here = {
        name
        for name, schema in value.get("properties", {}).items()
        if isinstance(schema, dict) and schema.get("x-lenient") == "soft"
    }
    return here.union(*map(_soft_names, value.values()))


def _as_read(value: Any, soft: set[str]) -> Any:
    """The schema with its own marks of leniency carried out."""
    if isinstance(value, list):
        return [_as_read(item, soft) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get("x-lenient"):
        case None:
            read_as = {key: _as_read(inner, soft) for key, inner in value.items()}
            if isinstance(read_as.get("required"), list):
                read_as["required"] = [name for name in read_as["required"] if name not in soft]
            return read_as
        case "values":
            return {"type": "string"}
        case "default" | "soft" | "items" | "relayed":
            return True
        case other:
            raise AssertionError(f"unknown mark {other!r}")


SCHEMAS = load_schemas()
HOMES = {
    name: schema_id
    for schema_id, schema in SCHEMAS.items()
    for name in schema.get("$defs", {})
    if name.endswith((".params", ".result"))
}
AS_WRITTEN = jsonschema_rs.Registry(list(SCHEMAS.items()))
AS_READ = jsonschema_rs.Registry(
    [(key, _as_read(schema, _soft_names(schema))) for key, schema in SCHEMAS.items()]
)


def validator(name: str, registry: jsonschema_rs.Registry) -> Any:
    reference = {"$ref": f"{HOMES[name]}#/$defs/{_pointer(name)}"}
    return jsonschema_rs.Draft202012Validator(reference, registry=registry)


# -- tests -----------------------------------------------------------------------------------------

WITH_SHAPE = [name for name, case in CASES.items() if case.shape]
COMPARED = [name for name in WITH_SHAPE if CASES[name].model]


def test_every_method_has_cases_and_schemas() -> None:
    wanted = {f"{name}.params" for name in METHODS}
    wanted |= {f"{name}.result" for name, row in METHODS.items() if row.kind == "request"}
    assert wanted == set(CASES)
    assert wanted == set(HOMES)


def test_cases_use_the_shapes_of_the_method_table() -> None:
    for name, row in METHODS.items():
        assert CASES[f"{name}.params"].shape is row.params
        if row.kind == "request":
            # A relayed result is not read, though the table has the empty shape for it.
            assert CASES[f"{name}.result"].shape in (row.result, None)


@pytest.mark.parametrize("name", CASES)
def test_valid_messages_are_valid_everywhere(name: str) -> None:
    case, schema = CASES[name], validator(name, AS_WRITTEN)

    @settings(judge, max_examples=100)
    @given(message=case.valid)
    def check(message: Any) -> None:
        assert case.shape is None or ours(case.shape, message) is not None
        assert schema.is_valid(message)
        assert case.model is None or theirs(case.model, message) is not None

    check()


@pytest.mark.parametrize("name", COMPARED)
def test_converter_agrees_with_the_official_models(name: str) -> None:
    case = CASES[name]
    shape = case.shape
    assert shape

    def check(message: Any) -> None:
        mine = ours(shape, message)
        if mine is None:
            # Their default mode makes 1 of "1" and true of "yes"; ours never does.
            assert theirs(case.model, message, strict=True) is None
            return
        message = repaired(name, message)
        assert theirs(case.model, message) is not None
        exact = theirs(case.model, message, strict=True)
        if exact is not None:
            assert _differences(ours(shape, message), exact) == []

    for_all_messages(case, check)


def _differences(mine: Any, other: Any, path: str = "") -> list[str]:
    """Where the two read other values; raw parts are not compared."""
    if attrs.has(type(mine)):
        if other is None:  # a capability that is null
            return [] if mine == type(mine)() else [path]
        return [
            difference
            for field in attrs.fields(type(mine))
            if field.name != "meta" and hasattr(other, field.name)
            for difference in _differences(
                getattr(mine, field.name), getattr(other, field.name), f"{path}.{field.name}"
            )
        ]
    if isinstance(mine, tuple):
        if any(isinstance(item, dict) for item in mine):
            return []
        if len(mine) != len(other or ()):
            return [path]
        return [
            difference
            for i, item in enumerate(mine)
            for difference in _differences(item, other[i], f"{path}[{i}]")
        ]
    if isinstance(mine, bool) and not isinstance(other, bool):
        return [] if mine is (other is not None) else [path]  # a marker object
    if mine is None or isinstance(mine, str | int):
        return [] if mine == other else [path]
    return []


@pytest.mark.parametrize("name", WITH_SHAPE)
def test_schema_agrees_with_the_converter(name: str) -> None:
    case, schema = CASES[name], validator(name, AS_READ)
    shape = case.shape
    assert shape

    def check(message: Any) -> None:
        valid = schema.is_valid({} if message is None else message)
        assert (ours(shape, message) is not None) is valid

    for_all_messages(case, check)


@pytest.mark.parametrize(
    "name",
    [
        "fs/read_text_file.result",
        "terminal/output.result",
        "terminal/wait_for_exit.result",
    ],
)
def test_schema_of_relayed_results_agrees_with_the_official_models(name: str) -> None:
    case, schema = CASES[name], validator(name, AS_READ)

    def check(message: Any) -> None:
        if theirs(case.model, message, strict=True) is not None:
            assert schema.is_valid(message)
        if schema.is_valid(message):
            assert theirs(case.model, message) is not None

    for_all_messages(case, check)


@pytest.mark.parametrize("leniency", LENIENCIES, ids=lambda leniency: leniency.reason[:40])
def test_leniencies_are_real(leniency: Leniency) -> None:
    """Each is needed, and its repair is enough."""
    name = leniency.where[0] if leniency.example is not None else "logout.params"
    case = CASES[name]
    assert case.shape
    mine = ours(case.shape, leniency.example)
    other = theirs(case.model, leniency.example)
    assert mine is not None
    assert other is None or _differences(mine, other)
    message = repaired(name, leniency.example)
    assert _differences(ours(case.shape, message), theirs(case.model, message)) == []
