"""JSON-RPC dispatch: what reaches the wire of a handler's failure."""

from __future__ import annotations

import json
import warnings
from typing import Any

import msgspec
import pytest
import trio

from acp_gateway.protocol.errors import AgentError, ErrorKind, GatewayError
from acp_gateway.wire.jsonrpc import Request

with warnings.catch_warnings():
    # jsonrpcserver reads its schema in a way that some Pythons call old.
    warnings.simplefilter("ignore", DeprecationWarning)
    from acp_gateway.runtime.rpc import MethodTable, dispatch

SECRET = "postgres://user:hunter2@db/x"


async def foreign(context: Any, params: dict[str, Any]) -> Any:
    raise RuntimeError(SECRET)


async def group(context: Any, params: dict[str, Any]) -> Any:
    raise ExceptionGroup(SECRET, [ValueError(SECRET)])


async def type_error(context: Any, params: dict[str, Any]) -> Any:
    raise TypeError(SECRET)


async def not_json(context: Any, params: dict[str, Any]) -> Any:
    return {"bad": object(), SECRET: 1}


async def expected(context: Any, params: dict[str, Any]) -> Any:
    raise GatewayError(
        ErrorKind.SESSION_LIMIT, "Too many", remedy="close one", limit=3, errors=[{"path": "a"}]
    )


async def agents_own(context: Any, params: dict[str, Any]) -> Any:
    raise AgentError({"code": 4711, "message": "no", "data": {"x": [1]}, "extra": 1})


async def odd_error(context: Any, params: dict[str, Any]) -> Any:
    raise AgentError({"code": "x", "message": None})


async def echo(context: Any, params: dict[str, Any]) -> Any:
    return {"context": context, "params": params}


async def raw(context: Any, params: dict[str, Any]) -> Any:
    return msgspec.Raw(b'{"kept":  "as it came"}')


async def hangs(context: Any, params: dict[str, Any]) -> Any:
    await trio.sleep_forever()


METHODS = MethodTable(
    {
        each.__name__: each
        for each in (
            *(foreign, group, type_error, not_json, expected, agents_own, odd_error),
            *(echo, raw, hangs),
        )
    },
    fallback=echo,
)


async def call(method: str, params: Any = None, id: Any = 1) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await dispatch(METHODS, "c", Request(id, method, params)))
    assert answer["jsonrpc"] == "2.0" and answer["id"] == id
    return answer


@pytest.mark.parametrize("method", ["foreign", "group", "type_error", "not_json"])
async def test_foreign_text_never_reaches_the_wire(method: str) -> None:
    answer = await call(method)
    assert SECRET not in json.dumps(answer) and "hunter2" not in json.dumps(answer)
    assert answer["error"]["code"] == -32603
    assert answer["error"]["message"] == "Internal error"
    assert answer["error"]["data"]["errorKind"] == "internal"


async def test_expected_errors_keep_their_data() -> None:
    error = (await call("expected"))["error"]
    assert error["code"] == ErrorKind.SESSION_LIMIT.code and error["message"] == "Too many"
    assert error["data"]["errorKind"] == "session_limit_exceeded"
    assert error["data"]["limit"] == 3 and error["data"]["errors"] == [{"path": "a"}]
    assert error["data"]["remedy"] == "close one" and error["data"]["retryable"] is True


async def test_an_agent_s_error_is_passed_on() -> None:
    error = (await call("agents_own"))["error"]
    assert (error["code"], error["message"], error["data"]) == (4711, "no", {"x": [1]})


async def test_an_agent_s_odd_error_becomes_a_valid_one() -> None:
    error = (await call("odd_error"))["error"]
    assert isinstance(error["code"], int) and isinstance(error["message"], str)


@pytest.mark.parametrize("id", ["a", "", 0, -1, 1.5, None, 2**53])
async def test_ids_come_back_as_they_are(id: Any) -> None:
    assert (await call("echo", {"a": 1}, id))["result"] == {"context": "c", "params": {"a": 1}}
    assert (await call("foreign", None, id))["error"]


@pytest.mark.parametrize("params", [[], [1], "x", 7, False])
async def test_params_must_be_an_object(params: Any) -> None:
    assert (await call("echo", params))["error"]["code"] == -32602


async def test_names_of_parameters_are_free() -> None:
    params = {"context": 1, "self": 2, "params": 3, "method": 4, "0": 5, "": 6}
    assert (await call("echo", params))["result"]["params"] == params


async def test_unknown_methods() -> None:
    error = (await call("no/such"))["error"]
    assert error["code"] == -32601 and error["data"]["method"] == "no/such"
    assert (await call("_ext", {"a": 1}))["result"]["params"] == {"a": 1}
    answer = await dispatch(MethodTable({}), None, Request(1, "_ext", {}))
    assert json.loads(answer)["error"]["code"] == -32601


async def test_a_raw_result_is_spliced_in() -> None:
    assert b'{"kept":  "as it came"}' in await dispatch(METHODS, None, Request(1, "raw"))


async def test_a_cancel_passes_through() -> None:
    with trio.move_on_after(0) as scope:
        await dispatch(METHODS, None, Request(1, "hangs"))
    assert scope.cancelled_caught
