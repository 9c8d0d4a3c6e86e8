"""What authorization servers answer, whatever it is."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.device_effects import (
    Failure,
    Granted,
    Refused,
    SlowDown,
    Unreachable,
    Waiting,
)
from acp_gateway.runtime.device_flow import ProviderError
from acp_gateway.transports.oauth_answers import read_begun, read_metadata, read_token

GOOD = {"device_code": "d", "user_code": "u", "verification_uri": "https://x.example/d"}
SECRET = "SECRETtoken"


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_codes() -> None:
    begun, code = read_begun(200, body(GOOD | {"expires_in": "900", "interval": 3}))
    assert (begun.lifetime, begun.interval, code) == (900.0, 3.0, "d")
    assert begun.codes.verification_uri_complete is None
    begun, _ = read_begun(200, body(GOOD | {"verification_uri_complete": "javascript:x"}))
    assert begun.codes.verification_uri_complete is None
    old = {key: value for key, value in GOOD.items() if key != "verification_uri"}
    begun, _ = read_begun(200, body(old | {"verification_url": "https://y.example"}))
    assert begun.codes.verification_uri == "https://y.example"


@pytest.mark.parametrize("value", [None, True, [], {}, "x", "1e999", 10**400])
def test_numbers_that_are_none(value: Any) -> None:
    begun, _ = read_begun(200, body(GOOD | {"expires_in": value, "interval": value}))
    assert begun.lifetime is None and begun.interval is None


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, GOOD | {"error": "x"}),
        (400, GOOD),
        (302, GOOD),
        (200, []),
        (200, GOOD | {"device_code": 5}),
        (200, GOOD | {"user_code": " "}),
        (200, GOOD | {"user_code": "a\nb"}),
        (200, GOOD | {"verification_uri": "ftp://x"}),
        (200, GOOD | {"verification_uri": "https://x y"}),
        (200, GOOD | {"verification_uri": "https://" + "x" * 3000}),
    ],
)
def test_no_codes(status: int, answer: Any) -> None:
    with pytest.raises(ProviderError):
        read_begun(status, body(answer))


@pytest.mark.parametrize(
    ("status", "answer", "outcome"),
    [
        (400, {"error": "authorization_pending"}, Waiting()),
        (428, {"error": "authorization_pending"}, Waiting()),
        (200, {"error": "authorization_pending"}, Waiting()),  # GitHub
        (429, {"error": "slow_down"}, SlowDown()),  # Qwen
        (400, {"error": "slow_down"}, SlowDown()),
        (200, {"access_token": "t"}, Granted(None)),
        (200, {"access_token": "t", "expires_in": 60}, Granted(1060.0)),
        (200, {"access_token": "t", "expires_in": -60}, Granted(None)),
        (200, {"access_token": "t", "expires_in": 1e300}, Granted(None)),
        (200, {"access_token": "t", "expires_in": True}, Granted(None)),
    ],
)
def test_outcomes(status: int, answer: Any, outcome: Any) -> None:
    got, payload = read_token(status, body(answer), 1000.0)
    assert got == outcome
    assert (payload is not None) == isinstance(outcome, Granted)


@pytest.mark.parametrize(
    ("status", "answer", "failure"),
    [
        (400, {"error": "access_denied"}, Failure.ACCESS_DENIED),
        (403, {"error": "expired_token"}, Failure.EXPIRED_TOKEN),
        (400, {"error": "invalid_grant"}, Failure.INVALID_GRANT),
        (400, {"error": "invalid_client"}, Failure.UPSTREAM_ERROR),
        (500, {"error": "invalid_client"}, Failure.UPSTREAM_ERROR),
        (200, {"error": 5, "access_token": ""}, Failure.UPSTREAM_ERROR),
        (200, {"access_token": 5}, Failure.UPSTREAM_ERROR),
        (201, {"access_token": "t"}, Failure.UPSTREAM_ERROR),
        (302, {}, Failure.UPSTREAM_ERROR),
        (404, None, Failure.UPSTREAM_ERROR),
        (200, {"access_token": "t", "error": "access_denied"}, Failure.ACCESS_DENIED),
    ],
)
def test_refusals(status: int, answer: Any, failure: Failure) -> None:
    got, payload = read_token(status, body(answer), 0.0)
    assert isinstance(got, Refused) and got.failure is failure and payload is None


@pytest.mark.parametrize(("status", "data"), [(500, b"<html>"), (503, b""), (429, b"slow")])
def test_what_may_pass(status: int, data: bytes) -> None:
    assert isinstance(read_token(status, data, 0.0)[0], Unreachable)


@pytest.mark.parametrize("data", [f"<b>{SECRET}", f'{{"access_token":"{SECRET}"', f'["{SECRET}"]'])
def test_a_body_is_not_repeated(data: str) -> None:
    for status in (200, 400, 500):
        got, _ = read_token(status, data.encode(), 0.0)
        assert isinstance(got, Refused | Unreachable) and SECRET not in got.detail
        with pytest.raises(ProviderError) as problem:
            read_begun(status, data.encode())
        assert SECRET not in problem.value.detail


def test_metadata() -> None:
    ends = {"device_authorization_endpoint": "https://x/d", "token_endpoint": "https://x/t"}
    told = body(ends | {"issuer": "https://x/"})
    assert read_metadata(200, told, "https://x") == ("https://x/d", "https://x/t")
    for status, answer in [
        (200, ends),
        (200, ends | {"issuer": "https://y"}),
        (200, {"issuer": "https://x", "token_endpoint": "https://x/t"}),
        (404, ends | {"issuer": "https://x"}),
        (200, None),
    ]:
        with pytest.raises(ProviderError):
            read_metadata(status, body(answer), "https://x")


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
members = st.sampled_from(
    [*GOOD, "error", "error_description", "access_token", "expires_in", "interval", "issuer"]
)
answers = st.one_of(
    st.binary(max_size=64),
    st.dictionaries(members, values, max_size=6).map(
        lambda value: json.dumps(value).encode("utf-8", "surrogatepass")
    ),
)


@given(st.integers(100, 599), answers)
def test_any_answer(status: int, data: bytes) -> None:
    outcome, payload = read_token(status, data, 1.0)
    assert (payload is not None) == isinstance(outcome, Granted)
    if isinstance(outcome, Granted) and outcome.expires_at is not None:
        assert math.isfinite(outcome.expires_at)
    try:
        begun, code = read_begun(status, data)
    except ProviderError:
        pass
    else:
        assert code and begun.codes.user_code.isprintable()
