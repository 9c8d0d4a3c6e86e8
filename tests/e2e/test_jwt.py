"""Tokens of an outside issuer against a live daemon: what comes in, and each known way to cheat."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
import trio
from agent_env import base_environment
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from gateway_process import ROOT, GatewayProcess
from support.acp_clients import INITIALIZE, RpcError, WsClient, http_client, ws_client
from support.loopback import serving
from support.processes import gateway

DEADLINE = 60.0
ISSUER, AUDIENCE = "https://issuer.example", "acp-gateway"
LEEWAY = 30.0


def public_jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    algorithms = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
    }
    kind = next(made for cls, made in algorithms.items() if isinstance(key, cls))
    data = json.loads(kind.to_jwk(key.public_key()))
    return {**data, **({} if kid is None else {"kid": kid}), **more}


RSA = rsa.generate_private_key(65537, 2048)
FOREIGN = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
ENCRYPTS = rsa.generate_private_key(65537, 2048)
NEWER = ec.generate_private_key(ec.SECP256R1())
KEYS = [
    public_jwk(RSA, "rsa", alg="RS256", use="sig"),
    public_jwk(EC, "ec"),
    public_jwk(ED, "ed"),
    public_jwk(ENCRYPTS, "enc", use="enc"),
    {"kty": "oct", "kid": "shared", "alg": "HS256"}
    | {"k": base64.urlsafe_b64encode(b"s" * 32).decode()},
]


class Issuer:
    """Publishes keys on loopback."""

    def __init__(self) -> None:
        self.keys = list(KEYS)
        self.asked = 0
        self.answer: Callable[[BaseHTTPRequestHandler], None] | None = None
        self.url = ""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += 1
                if issuer.answer is not None:
                    issuer.answer(self)
                    return
                body = json.dumps({"keys": issuer.keys}).encode()
                self.send_response(200)
                self.send_header("content-type", "application/jwk-set+json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@contextmanager
def published() -> Iterator[Issuer]:
    issuer = Issuer()
    with serving(issuer.handler()) as port:
        issuer.url = f"http://127.0.0.1:{port}/jwks.json"
        yield issuer


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with published() as made:
        yield made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[GatewayProcess]:
    base = tmp_path_factory.mktemp("jwt").resolve()
    with gateway(
        base, jwt_jwks=issuer.url, jwt_issuer=ISSUER, jwt_audience=AUDIENCE, max_sessions=50
    ) as made:
        yield made


def claims(**changes: Any) -> dict[str, Any]:
    now = time.time()
    made = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "scope": "openid prompt",
        "iat": int(now),
        "nbf": int(now),
        "exp": int(now) + 300,
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def signed(
    key: Any = RSA,
    algorithm: str = "RS256",
    kid: str | None = "rsa",
    headers: Any = None,
    **how: Any,
) -> str:
    extra = {**({} if kid is None else {"kid": kid}), **(headers or {})}
    return jwt.encode(claims(**how), key, algorithm, headers=extra)


def by_hand(header: dict[str, Any], body: dict[str, Any], secret: bytes | None = None) -> str:
    """Put together without a library that would object."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    text = f"{part(json.dumps(header).encode())}.{part(json.dumps(body).encode())}"
    mac = b"" if secret is None else hmac.digest(secret, text.encode(), hashlib.sha256)
    return f"{text}.{part(mac)}"


def ask(site: GatewayProcess, token: str, method: str = "GET", path: str = "/capabilities") -> int:
    with httpx2.Client(trust_env=False, timeout=20) as http:
        headers = {"Authorization": f"Bearer {token}"}
        return http.request(method, site.url + path, headers=headers).status_code


# ---- good ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA, "RS256", "rsa"), (EC, "ES256", "ec"), (ED, "EdDSA", "ed"), (ED, "EdDSA", None)],
    ids=["rsa", "ec", "ed", "the only one of its type"],
)
def test_a_good_one_comes_in(
    site: GatewayProcess, key: Any, algorithm: str, kid: str | None
) -> None:
    assert ask(site, signed(key, algorithm, kid)) == 200


def test_one_that_openssl_signed(site: GatewayProcess, issuer: Issuer, tmp_path: Path) -> None:
    """With a key and a signature that no Python library made."""
    key, message = tmp_path / "key.pem", tmp_path / "message"
    key.write_bytes(
        RSA.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    text = by_hand({"alg": "RS256", "kid": "rsa"}, claims()).rstrip(".")
    message.write_text(text)
    done = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", str(key), str(message)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    signature = base64.urlsafe_b64encode(done.stdout).rstrip(b"=").decode()
    assert ask(site, f"{text}.{signature}") == 200
    assert ask(site, f"{text}.{signature[:-8]}AAAAAAAA") == 401


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("read", [200, 403, 403]),
        ("prompt", [200, 400, 403]),
        (["admin"], [200, 400, 200]),
        ("email acp-gateway:admin", [200, 400, 200]),
        ("reads administrator", [403, 403, 403]),
        (None, [403, 403, 403]),
        ({"admin": True}, [403, 403, 403]),
        ([["admin"]], [403, 403, 403]),
    ],
)
def test_scopes_of_the_claim(site: GatewayProcess, scope: Any, expected: list[int]) -> None:
    token = signed(scope=scope)
    seen = [
        ask(site, token),
        ask(site, token, "POST", "/sessions/delete"),
        ask(site, token, "GET", "/workspace/permissions/audit"),
    ]
    assert seen == expected


async def test_without_a_scope_there_is_no_connection(site: GatewayProcess) -> None:
    """Over either transport."""
    offered = {"Authorization": f"Bearer {signed(scope=None)}"}
    pairs = [(key.encode(), value.encode()) for key, value in offered.items()]
    body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": INITIALIZE}
    with trio.fail_after(DEADLINE):
        async with ws_client(site.ws_url, headers=pairs, initialize=False) as client:
            with pytest.raises(RpcError) as caught:
                await client.request("initialize", INITIALIZE)
        async with httpx2.AsyncClient(headers=offered, trust_env=False, timeout=20) as http:
            answer = await http.post(site.http_url, json=body)
    assert answer.status_code == 403 and "acp-connection-id" not in answer.headers
    assert answer.json()["error"] == caught.value.error
    assert caught.value.error["data"]["errorKind"] == "insufficient_scope"


def test_an_audience_among_others(site: GatewayProcess) -> None:
    assert ask(site, signed(aud=["else", AUDIENCE])) == 200


def test_a_clock_that_is_a_little_off(site: GatewayProcess) -> None:
    now = int(time.time())
    assert ask(site, signed(exp=now - 5)) == 200
    assert ask(site, signed(nbf=now + 20)) == 200


# ---- bad -----------------------------------------------------------------------------------------


def _pem(key: Any) -> bytes:
    data: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data


ATTACKS: dict[str, Callable[[], str]] = {
    "no signature": lambda: by_hand({"alg": "none"}, claims()),
    "no signature, spelt otherwise": lambda: by_hand({"alg": "nOnE", "kid": "rsa"}, claims()),
    "no algorithm": lambda: by_hand({"kid": "rsa"}, claims()),
    "algorithm that is no text": lambda: by_hand({"alg": ["RS256"], "kid": "rsa"}, claims()),
    "public key as the secret": lambda: by_hand(
        {"alg": "HS256", "kid": "rsa"}, claims(), _pem(RSA)
    ),
    "published secret": lambda: by_hand({"alg": "HS256", "kid": "shared"}, claims(), b"s" * 32),
    "foreign key": lambda: signed(FOREIGN),
    "foreign key in the header": lambda: signed(
        FOREIGN, headers={"jwk": public_jwk(FOREIGN, "rsa")}
    ),
    "foreign key set in the header": lambda: signed(
        FOREIGN, headers={"jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/x"}
    ),
    "unknown kid": lambda: signed(kid="other"),
    "kid of another type": lambda: signed(kid="ec"),
    "kid that is no text": lambda: by_hand({"alg": "RS256", "kid": ["rsa"]}, claims()),
    "kid that is a path": lambda: by_hand({"alg": "RS256", "kid": "../../dev/null"}, claims()),
    "key for encryption": lambda: signed(ENCRYPTS, kid="enc"),
    "algorithm that the key is not for": lambda: signed(algorithm="RS512"),
    "curve of another algorithm": lambda: by_hand({"alg": "ES384", "kid": "ec"}, claims()),
    "crit": lambda: signed(headers={"crit": ["b64"], "b64": False}),
    "wrong audience": lambda: signed(aud="else"),
    "no audience": lambda: signed(aud=None),
    "audience that begins alike": lambda: signed(aud=AUDIENCE + "2"),
    "wrong issuer": lambda: signed(iss="https://issuer.example.evil"),
    "no issuer": lambda: signed(iss=None),
    "expired": lambda: signed(exp=int(time.time() - LEEWAY) - 5),
    "no expiry": lambda: signed(exp=None),
    "expiry that is no number": lambda: by_hand(
        {"alg": "RS256", "kid": "rsa"}, claims(exp="never")
    ),
    "not yet": lambda: signed(nbf=int(time.time() + LEEWAY) + 60),
    "no subject": lambda: signed(sub=None),
    "empty subject": lambda: signed(sub=""),
    "huge": lambda: signed(more="x" * 10_000),
    "parts missing": lambda: "eyJhbGciOiJSUzI1NiJ9.e30",
    "no base64": lambda: "eyJ!!!.???.***",
    "header that is no object": lambda: "eyJ" + "A" * 20 + ".e30.AAAA",
    "nested": lambda: by_hand({"alg": "RS256", "kid": "rsa", "x": [[[[]]]] * 50}, claims()),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_does_not_come_in(site: GatewayProcess, attack: str) -> None:
    token = ATTACKS[attack]()
    assert ask(site, token) == 401
    if token.isascii():
        assert token not in site.stderr_tail()


def test_a_changed_claim(site: GatewayProcess) -> None:
    head, body, signature = signed(scope="read").split(".")
    data = json.loads(base64.urlsafe_b64decode(body + "=="))
    changed = base64.urlsafe_b64encode(json.dumps({**data, "scope": "admin"}).encode())
    assert ask(site, f"{head}.{changed.rstrip(b'=').decode()}.{signature}") == 401


# ---- live connections ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ws", "http"])
async def test_its_expiry_closes_what_it_opened(site: GatewayProcess, kind: str) -> None:
    ends = int(time.time()) - LEEWAY + 3
    token = signed(exp=int(ends))
    offered = {"Authorization": f"Bearer {token}"}
    with trio.fail_after(DEADLINE):
        if kind == "ws":
            pairs = [(key.encode(), value.encode()) for key, value in offered.items()]
            manager: Any = ws_client(site.ws_url, headers=pairs)
        else:
            manager = http_client(site.http_url, headers=offered)
        async with manager as client:
            await client.until(lambda: client.closed)
            assert 0 <= time.time() - (int(ends) + LEEWAY) < 1.0
            if isinstance(client, WsClient):
                assert client.closed == (1008, "The token has expired")
    assert ask(site, token) == 401


async def test_a_newer_token_of_the_same_one_keeps_a_connection(site: GatewayProcess) -> None:
    """Streamable HTTP; a token of somebody else, or of another scope, does not."""
    ends = int(time.time()) - int(LEEWAY) + 3
    first = {"Authorization": f"Bearer {signed(exp=ends, sub='bob')}"}
    with trio.fail_after(DEADLINE):
        async with http_client(site.http_url, headers=first) as client:
            body = {"jsonrpc": "2.0", "id": 7, "method": "session/list", "params": {}}
            about = {"Acp-Connection-Id": client.connection_id}

            async def post(token: str) -> int:
                headers = {**about, "Authorization": f"Bearer {token}"}
                return (await client.http.post("/acp", json=body, headers=headers)).status_code

            client.http.base_url = httpx2.URL(site.url)
            assert await post(signed(sub="eve")) == 404
            assert await post(signed(sub="bob", scope="admin")) == 404
            assert await post(signed(sub="bob")) == 202
            await trio.sleep(ends + LEEWAY + 1.0 - time.time())
            assert not client.closed
            assert await post(signed(sub="bob")) == 202


# ---- keys ----------------------------------------------------------------------------------------


def started(base: Path, issuer: Issuer) -> Any:
    return gateway(base, jwt_jwks=issuer.url, jwt_issuer=ISSUER, jwt_audience=AUDIENCE)


def test_a_key_that_is_new_is_looked_for_and_not_too_often(tmp_path: Path) -> None:
    with published() as issuer, started(tmp_path.resolve(), issuer) as site:
        assert ask(site, signed()) == 200
        before = issuer.asked
        for number in range(20):
            assert ask(site, signed(FOREIGN, kid=f"made-up-{number}")) == 401
        assert issuer.asked <= before + 1, "who makes up keys makes the gateway ask"
        issuer.keys.append(public_jwk(NEWER, "newer"))
        token = signed(NEWER, "ES256", "newer")
        began = time.monotonic()
        while ask(site, token) != 200:
            assert time.monotonic() - began < 15, "the new key is never taken"
            time.sleep(0.5)
        # One that was withdrawn goes with the next look.
        issuer.keys = [public_jwk(NEWER, "newer")]
        began = time.monotonic()
        while ask(site, signed()) == 200:
            assert ask(site, signed(FOREIGN, kid="x")) == 401  # makes it look
            assert time.monotonic() - began < 15, "the old key is never dropped"
            time.sleep(0.5)
        assert ask(site, token) == 200


def test_an_issuer_that_is_down_or_broken(tmp_path: Path) -> None:
    """It keeps nobody from starting, answers 401 in time, and is tried again."""

    def stand_still(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(8)

    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("location", "/elsewhere")
        handler.send_header("content-length", "0")
        handler.end_headers()

    with published() as issuer:
        issuer.answer = stand_still
        with started(tmp_path.resolve(), issuer) as site:
            began = time.monotonic()
            assert ask(site, signed()) == 401
            assert time.monotonic() - began < 7
            with httpx2.Client(trust_env=False) as http:
                assert http.get(f"{site.url}/health", timeout=2).status_code == 200
            issuer.answer = redirect
            assert ask(site, signed()) == 401
            issuer.answer = None
            began = time.monotonic()
            while ask(site, signed()) != 200:
                assert time.monotonic() - began < 30, "the keys are never had"
                time.sleep(0.5)
            # From then on what it had is enough.
            issuer.answer = redirect
            assert ask(site, signed(sub="carol")) == 200


def refusal(base: Path, *args: str) -> str:
    """Why it does not start."""
    with pytest.raises(RuntimeError) as caught, gateway(base, *args):
        pass
    return str(caught.value)


def test_what_it_refuses_to_start_with(tmp_path: Path) -> None:
    base = tmp_path.resolve()
    keys = base / "keys.json"
    keys.write_text(json.dumps({"keys": KEYS}))
    whole = ("--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE)
    assert "jwt_audience is not" in refusal(base, "--jwt-jwks", str(keys), *whole[:2])
    assert "jwt_jwks is not" in refusal(base, *whole)
    assert "plain http" in refusal(base, "--jwt-jwks", "http://issuer.example/k", *whole)
    assert "cannot be used" in refusal(base, "--jwt-jwks", str(base / "none"), *whole)
    for content in ("", "[]", '{"keys": []}', json.dumps({"keys": KEYS[3:]}), "[" * 10_000):
        keys.write_text(content)
        assert "cannot be used" in refusal(base, "--jwt-jwks", str(keys), *whole)
    private = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC))
    keys.write_text(json.dumps({"keys": [private]}))
    assert "cannot be used" in refusal(base, "--jwt-jwks", str(keys), *whole)


def test_without_the_library_it_says_what_to_install(tmp_path: Path) -> None:
    base = tmp_path.resolve()
    hidden = base / "hidden"
    (hidden / "jwt").mkdir(parents=True)
    (hidden / "jwt" / "__init__.py").write_text("raise ImportError('not here')")
    code = (
        f"import sys; sys.path.insert(0, {str(hidden)!r}); "
        "from acp_gateway.cli import main; sys.argv = sys.argv[:1] + sys.argv[2:]; main()"
    )
    keys = base / "keys.json"
    keys.write_text(json.dumps({"keys": KEYS}))
    flags = ["--jwt-jwks", str(keys), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE]
    done = subprocess.run(
        [sys.executable, "-c", code, "x", "serve", "--agent", "demo", "--port", "0", *flags],
        env={**base_environment(base / "home"), "PYTHONPATH": str(ROOT)},
        cwd=base,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3, done.stderr
    assert "pip install 'acp-gateway[jwt]'" in done.stderr
