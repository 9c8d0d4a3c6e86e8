"""Keys of an outside issuer: an odd one costs itself, and nothing that comes ends the task."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from acp_gateway.runtime import jwt_issuer
from acp_gateway.runtime.jwt_issuer import JwtIssuer, keys_of

EC = json.loads(
    jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key())
)
RSA = json.loads(
    jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key())
)
GOOD = {**EC, "kid": "good"}
NESTED: Any = []
for _ in range(100):
    NESTED = [NESTED]

ODD = {
    "alg a list": {**EC, "kid": "odd", "alg": ["ES256"]},
    "alg an object": {**EC, "kid": "odd", "alg": {}},
    "alg a number": {**EC, "kid": "odd", "alg": 1},
    "alg of another type": {**EC, "kid": "odd", "alg": "RS256"},
    "kid a list": {**EC, "kid": ["odd"]},
    "kid an object": {**EC, "kid": {"a": 1}},
    "kty a list": {**EC, "kid": "odd", "kty": ["EC"]},
    "kty null": {**EC, "kid": "odd", "kty": None},
    "no kty": {"kid": "odd"},
    "crv a list": {**EC, "kid": "odd", "crv": []},
    "crv an object": {**EC, "kid": "odd", "crv": {}},
    "x a number": {**EC, "kid": "odd", "x": 5},
    "x an object": {**EC, "kid": "odd", "x": {"a": [1]}},
    "x nested": {**EC, "kid": "odd", "x": NESTED},
    "x not ASCII": {**EC, "kid": "odd", "x": "ä" * 43},
    "not on the curve": {**EC, "kid": "odd", "x": EC["y"]},
    "n empty": {**RSA, "kid": "odd", "n": ""},
    "n a list": {**RSA, "kid": "odd", "n": [1]},
    "n huge": {**RSA, "kid": "odd", "n": "x" * 500_000},
    "e huge": {**RSA, "kid": "odd", "e": "x" * 500_000},
    "e nothing": {**RSA, "kid": "odd", "e": "AA"},
    "oth a number": {**RSA, "kid": "odd", "oth": 7, "n": None},
    "use a list": {**EC, "kid": "odd", "use": ["sig"]},
    "no object": 7,
    "a list": [EC],
    "null": None,
    "text": "key",
    "empty": {},
}


def published(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_an_odd_key_costs_itself(odd: Any) -> None:
    for keys in ((odd, GOOD), (GOOD, odd)):
        assert list(keys_of(published(*keys))) == ["good"]
    with pytest.raises(ValueError, match="without a key"):
        keys_of(published(odd))


def test_a_key_needs_no_name_and_no_algorithm() -> None:
    assert {name: len(keys) for name, keys in keys_of(published(EC, GOOD, EC)).items()} == {
        None: 2,
        "good": 1,
    }


async def test_no_set_of_keys_ends_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys stay as they were, and the next ones are taken."""
    answers: list[Any] = [published(GOOD), RuntimeError("odd"), TypeError(), RecursionError(), b"{"]
    answers.append(published({**EC, "kid": "newer"}))

    async def load() -> bytes:
        told = answers.pop(0)
        if isinstance(told, Exception):
            raise told
        return bytes(told)

    issuer = JwtIssuer(load, issuer="i", audience="a", scope_claim="scope")
    async with trio.open_nursery() as nursery:
        await nursery.start(issuer.run)
        with trio.fail_after(5):
            while len(answers) > 1:
                await issuer.renew()
                assert list(issuer._keys) == ["good"]
            await issuer.renew()
            await trio.testing.wait_all_tasks_blocked()
        assert list(issuer._keys) == ["newer"]
        nursery.cancel_scope.cancel()


async def test_to_be_cancelled_is_no_failure() -> None:
    issuer = JwtIssuer(trio.sleep_forever, issuer="i", audience="a", scope_claim="scope")  # type: ignore[arg-type]
    with trio.move_on_after(0.05) as scope:
        await issuer.run()
    assert scope.cancelled_caught and jwt_issuer.RENEW_TIMEOUT > 0.05
