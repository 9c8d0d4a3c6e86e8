"""Scopes: what each row and each method asks for, and that no place can differ."""

from __future__ import annotations

import pytest

from acp_gateway.core.identity import (
    DAEMON,
    NOBODY,
    OPEN,
    WORDS,
    Identity,
    Kind,
    Scope,
    highest,
    required,
    required_by_acp,
)
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.extensions import OPERATIONS, Access
from acp_gateway.protocol.methods import METHODS

READS_THAT_ARE_NO_GET = {"session_load", "session_resume", "session_heartbeat", "session_detach"}
OPEN_ROWS = {"health", "readyz", "pair"}


def test_the_ladder() -> None:
    assert list(WORDS) == ["read", "prompt", "approve", "admin"]
    for scope in Scope:
        one = Identity(kind=Kind.NAMED, scope=scope)
        assert [each for each in Scope if one.may(each)] == list(Scope)[: scope.value]
        assert one.scopes == tuple(WORDS)[: scope.value]
    assert not any(NOBODY.may(scope) for scope in Scope) and NOBODY.may(None)
    assert all(each.may(Scope.ADMIN) for each in (OPEN, DAEMON))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["nothing"], None),
        (["read", "approve"], Scope.APPROVE),
        (["Admin"], None),
        (["prompt", "x"], Scope.PROMPT),
    ],
)
def test_of_several_the_highest_counts(words: list[str], expected: Scope | None) -> None:
    assert highest(words) is expected


def test_the_refusal_says_what_is_missing() -> None:
    with pytest.raises(GatewayError) as caught:
        Identity(kind=Kind.JWT, scope=Scope.READ).demand(Scope.ADMIN)
    assert caught.value.kind is ErrorKind.INSUFFICIENT_SCOPE
    status, body = caught.value.to_http()
    assert (status, body["required"], body["scopes"]) == (403, "admin", ["read"])
    error = caught.value.to_jsonrpc()
    assert error["code"] == -32602 and error["data"]["required"] == "admin"


@pytest.mark.parametrize("row", OPERATIONS.values(), ids=lambda row: row.name)
def test_what_a_row_asks_for(row: object) -> None:
    row = OPERATIONS[row.name]  # type: ignore[attr-defined]
    needed = required(row)
    if row.name in OPEN_ROWS:
        assert needed is None
    elif row.access is Access.STRICT or row.name == "permission_audit":
        assert needed is Scope.ADMIN
    elif "permission" in row.name or row.name == "session_approval_mode":
        assert needed is Scope.APPROVE
    elif row.method == "GET" or row.name in READS_THAT_ARE_NO_GET:
        assert needed is Scope.READ
    else:
        assert needed is Scope.PROMPT
    if row.rpc is not None:
        assert required_by_acp(row.rpc) is needed, "its twin"


def test_what_a_method_asks_for() -> None:
    found = {
        name: required_by_acp(name)
        for name, row in METHODS.items()
        if row.direction in ("to_agent", "both")
    }
    reads = {name for name, scope in found.items() if scope is Scope.READ}
    assert reads == {
        *("initialize", "session/load", "session/resume", "session/list"),
        "$/cancel_request",
    } & set(found)
    assert {name for name, scope in found.items() if scope is Scope.ADMIN} == {
        "authenticate",
        "logout",
    }
    assert {name for name, scope in found.items() if scope is Scope.APPROVE} == {
        "session/set_mode",
        "session/set_config_option",
    }
    # What nobody has thought of changes something.
    for name in ("_vendor/x", "session/new_thing", ""):
        assert required_by_acp(name) is Scope.PROMPT
    # An agent may know it, and then does what is a strict row here.
    assert required_by_acp("_qwen/no/such") is Scope.ADMIN


def test_an_identity_shows_no_secret() -> None:
    one = Identity(kind=Kind.NAMED, token_id="token:1", name="a", party="token:1")
    assert set(one.to_dict()) == {"kind", "scopes", "name"}
