"""The table of failures: one word, one code, one status each; the same failure on both wires."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from acp_gateway.protocol import errors
from acp_gateway.protocol.errors import AgentError, ErrorKind, GatewayError
from acp_gateway.wire.json_codec import dumps, loads
from acp_gateway.wire.jsonrpc import classify, error_bytes

CODES = {
    getattr(errors, name)
    for name in (
        *("PARSE_ERROR", "INVALID_REQUEST", "METHOD_NOT_FOUND", "INVALID_PARAMS"),
        *("INTERNAL_ERROR", "AUTH_REQUIRED", "RESOURCE_NOT_FOUND", "REQUEST_CANCELLED"),
    )
}


def test_words_are_unique_and_plain() -> None:
    words = [kind.word for kind in ErrorKind]
    assert len(set(words)) == len(words) == len(ErrorKind.__members__)
    assert all(word.isascii() and word.replace("_", "").islower() for word in words)


@pytest.mark.parametrize("kind", ErrorKind)
def test_each_kind_has_a_code_of_the_protocol_and_a_status_of_http(kind: ErrorKind) -> None:
    # JSON-RPC reserves -32768..-32000; of the implementation's own range one code is used.
    assert type(kind.code) is int and (kind.code in CODES or -32099 <= kind.code <= -32000)
    assert kind.http_status == 499 or HTTPStatus(kind.http_status).value >= 400
    assert type(kind.retryable) is bool
    if kind.retryable:
        # Try again: it is not the request that is wrong, but the moment.
        assert kind.http_status >= 500 or kind.http_status in (404, 409, 429)
    assert (kind.http_status == 500) == (kind is ErrorKind.INTERNAL)  # 500 is a bug, nothing else


@pytest.mark.parametrize("kind", ErrorKind)
def test_both_wires_tell_the_same(kind: ErrorKind) -> None:
    error = GatewayError(kind, "It failed", remedy="do this", sessionId="s", limit=3)
    rpc, (status, body) = error.to_jsonrpc(), error.to_http()
    assert classify(loads(error_bytes(1, rpc))).error == rpc  # type: ignore[union-attr]
    assert (rpc["code"], rpc["message"]) == (kind.code, "It failed")
    assert rpc["data"]["errorKind"] == body["code"] == kind.word
    assert rpc["data"]["httpStatus"] == status == kind.http_status
    assert rpc["data"].get("retryable", False) == kind.retryable
    for data in (rpc["data"], body):
        assert (data["sessionId"], data["limit"], data["remedy"]) == ("s", 3, "do this")
    assert body["error"] == str(error) == "It failed"
    dumps(body)


def test_no_remedy_is_no_member() -> None:
    error = GatewayError(ErrorKind.INTERNAL, "x")
    assert "remedy" not in error.to_jsonrpc()["data"] and "remedy" not in error.to_http()[1]


def test_an_agents_error_passes_unchanged_and_is_its_own_fault_over_http() -> None:
    theirs = {"code": 17, "message": "mine", "data": {"x": 1}, "extra": True}
    error = AgentError(theirs)
    assert error.to_jsonrpc() is theirs
    assert error.to_http() == (502, {"error": "mine", "code": 17, "data": {"x": 1}})
    for odd in ({}, {"message": None}, {"message": 5}):
        assert isinstance(AgentError(odd).message, str)
