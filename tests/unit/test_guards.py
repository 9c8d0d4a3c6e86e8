"""Who may come in: Host, then Origin, then the token; nothing else and in no other order."""

from __future__ import annotations

import base64
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.config import is_loopback
from acp_gateway.config_access import public_url
from acp_gateway.protocol.errors import ErrorKind
from acp_gateway.token_store import token_digest
from acp_gateway.transports import guards
from acp_gateway.transports.guards import (
    OPEN_PATHS,
    Head,
    Policy,
    Refused,
    decide,
    is_preflight,
    subprotocol,
)

PORT = 4170
TOKEN = "s3cret-tökèn_-"
HOST = {"host": f"127.0.0.1:{PORT}"}


def policy(**changes: Any) -> Policy:
    known = {"port": PORT, "loopback": True, "bound_host": "127.0.0.1", "token_digest": None}
    return Policy(**{**known, **changes})


def head(headers: dict[str, str], **changes: Any) -> Head:
    known = {"method": "POST", "path": "/acp", "query": "", "upgrade": False}
    return Head(headers=headers, **{**known, **changes})


def why(head: Head, policy: Policy) -> str | None:
    """The word of the refusal."""
    refusal = decide(head, policy)
    if refusal is None:
        return None
    status, body = refusal.to_http()
    assert refusal.remedy and body["remedy"] == refusal.remedy
    if refusal.kind is ErrorKind.AUTH_REQUIRED:
        assert status == 401
        return "bearer"
    assert isinstance(refusal, Refused) and status == 403 and body["code"] == "forbidden"
    return "host" if "Host" in refusal.message else "origin"


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def offered(token: str) -> str:
    return "qwen-bearer." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


# ---- order --------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [True, False])
@pytest.mark.parametrize("origin", [True, False])
@pytest.mark.parametrize("token", [True, False])
def test_the_first_that_is_wrong_decides(host: bool, origin: bool, token: bool) -> None:
    headers = {
        "host": f"localhost:{PORT}" if host else "evil.example",
        "origin": f"http://localhost:{PORT}" if origin else "http://evil.example",
        **bearer(TOKEN if token else "wrong"),
    }
    expected = next(
        (name for name, ok in (("host", host), ("origin", origin), ("bearer", token)) if not ok),
        None,
    )
    assert why(head(headers), policy(token_digest=token_digest(TOKEN))) == expected


# ---- Host ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "ok"),
    [
        (f"127.0.0.1:{PORT}", True),
        (f"localhost:{PORT}", True),
        (f"LocalHost:{PORT}", True),
        (f"[::1]:{PORT}", True),
        (f"host.docker.internal:{PORT}", True),
        ("127.0.0.1", False),
        ("localhost", False),
        (f"127.0.0.1:{PORT + 1}", False),
        (f"127.0.0.1:{PORT}0", False),
        (f"evil.example:{PORT}", False),
        (f"localhost.evil.example:{PORT}", False),
        (f"evil.example@localhost:{PORT}", False),
        (f"localhost:{PORT}.", False),
        (f"127.0.0.2:{PORT}", False),
        (f"::1:{PORT}", False),
        (f" localhost:{PORT}", False),
        ("", False),
        (None, False),
    ],
)
def test_host_on_loopback(host: str | None, ok: bool) -> None:
    headers = {} if host is None else {"host": host}
    assert why(head(headers), policy()) == (None if ok else "host")
    # Bound to the network, any name may lead here.
    assert why(head(headers), policy(loopback=False)) is None


@pytest.mark.parametrize("port", [80, 443])
def test_a_default_port_may_be_left_out(port: int) -> None:
    assert why(head({"host": "localhost"}), policy(port=port)) is None
    assert why(head({"host": f"localhost:{port}"}), policy(port=port)) is None
    assert why(head({"host": "evil.example"}), policy(port=port)) == "host"


@pytest.mark.parametrize("bound", ["127.0.0.2", "::1", "fd00::1"])
def test_the_bound_address_is_a_name_too(bound: str) -> None:
    host = f"[{bound}]:{PORT}" if ":" in bound else f"{bound}:{PORT}"
    assert why(head({"host": host}), policy(bound_host=bound)) is None
    assert why(head({"host": host, "origin": f"http://{host}"}), policy(bound_host=bound)) is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True)),
        *(("localhost", True), ("LOCALHOST", True), ("0.0.0.0", False), ("::", False)),
        *(("", False), ("192.168.1.1", False), ("localhost.example", False)),
    ],
)
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


# ---- Origin -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "ok"),
    [
        (None, True),  # no browser
        (f"http://127.0.0.1:{PORT}", True),
        (f"http://localhost:{PORT}/", True),
        (f"HTTPS://LOCALHOST:{PORT}", True),
        (f"http://[::1]:{PORT}", True),
        ("https://app.example", True),  # allow-listed
        ("https://APP.example/", True),
        ("null", False),
        ("", False),
        ("http://localhost", False),
        (f"http://localhost:{PORT + 1}", False),
        (f"http://evil.example:{PORT}", False),
        (f"http://localhost.evil.example:{PORT}", False),
        (f"ftp://localhost:{PORT}", False),
        (f"file://localhost:{PORT}", False),
        (f"localhost:{PORT}", False),
        ("http://app.example", False),
        ("https://app.example:8443", False),
        ("https://app.example.evil", False),
        ("chrome-extension://abcdef", False),
        ("http://localhost:notaport", False),
        ("http://localhost:99999", False),
        ("http://[::1", False),
        ("http://[]:4170", False),
        ("http://[evil]:4170", False),
        ("\x00", False),
    ],
)
def test_origin_on_loopback(origin: str | None, ok: bool) -> None:
    headers = HOST if origin is None else {**HOST, "origin": origin}
    allowed = policy(allow_origin=frozenset({"https://app.example"}))
    assert why(head(headers), allowed) == (None if ok else "origin")


@pytest.mark.parametrize(
    ("host", "origin", "ok"),
    [
        (f"box.lan:{PORT}", f"http://box.lan:{PORT}", True),
        (f"BOX.lan:{PORT}", f"http://box.lan:{PORT}", True),
        (f"box.lan:{PORT}", f"http://other.lan:{PORT}", False),
        (f"box.lan:{PORT}", "http://box.lan:99", False),
        (f"box.lan:{PORT}", "null", False),
        (f"box.lan:{PORT}", f"http://localhost:{PORT}", True),
    ],
)
def test_on_the_network_a_page_of_this_host_is_its_own(host: str, origin: str, ok: bool) -> None:
    found = why(head({"host": host, "origin": origin}), policy(loopback=False))
    assert found == (None if ok else "origin")


@given(st.text(max_size=30))
def test_no_origin_or_host_makes_it_fail(text: str) -> None:
    for each in (policy(), policy(loopback=False)):
        assert why(head({**HOST, "origin": text}), each) in (None, "origin")
        assert why(head({"host": text, "origin": "http://" + text}), each) in (
            None,
            "host",
            "origin",
        )


@pytest.mark.parametrize(
    ("origin", "ok"),
    [
        ("https://any.example", True),
        ("chrome-extension://abc", True),
        ("null", False),
        ("NULL", False),
        ("null/", False),
        ("", False),
    ],
)
def test_every_origin_but_null(origin: str, ok: bool) -> None:
    found = why(head({**HOST, "origin": origin}), policy(allow_origin=frozenset({"*"})))
    assert found == (None if ok else "origin")
    # Also where null is written out.
    listed = policy(allow_origin=frozenset({"null", ""}))
    assert why(head({**HOST, "origin": "null"}), listed) == "origin"


# ---- the public URL -----------------------------------------------------------------------------


def public(**changes: Any) -> Policy:
    return policy(public=public_url("https://gw.example/base"), **changes)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/base/health", "/health"),
        ("/base", "/"),
        ("/base/", "/"),
        ("/base//x", "//x"),
        ("/base/base/x", "/base/x"),
        ("/basement", "/basement"),
        ("/Base/x", "/Base/x"),
        ("/x/base", "/x/base"),
        ("/health", "/health"),
        ("", ""),
        ("*", "*"),
    ],
)
def test_the_base_path_is_taken_off_once(path: str, route: str) -> None:
    assert public().route(path) == route
    assert policy().route(path) == path
    bare = policy(public=public_url("https://gw.example"))
    assert bare.route(path) == path


def test_what_a_proxy_says_of_the_host_only_takes_away() -> None:
    good = {"host": "gw.example"}
    assert why(head(good), public()) is None
    assert why(head(good, site="https://gw.example"), public()) is None
    assert why(head(good, site="https://evil.example"), public()) == "host"
    assert why(head({"host": "evil.example"}, site="https://gw.example"), public()) == "host"
    # On a wide bind it names the page's own origin, exactly.
    wide = policy(loopback=False)
    box = {"host": "10.0.0.1", "origin": "https://box.example"}
    assert why(head(box, site="https://box.example"), wide) is None
    assert why(head(box, site="http://box.example"), wide) == "origin"
    assert why(head(box), wide) == "origin"


# ---- bearer -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "query", "plain", "upgrade"),
    [
        # (what is sent) -> may a plain request, may an upgrade come in
        ({}, "", False, False),
        (bearer(TOKEN), "", True, True),
        ({"authorization": f"bearer   {TOKEN} "}, "", True, True),
        ({"authorization": TOKEN}, "", False, False),
        ({"authorization": f"Basic {TOKEN}"}, "", False, False),
        (bearer("wrong"), "", False, False),
        (bearer(TOKEN + "x"), "", False, False),
        (bearer(TOKEN[:-1]), "", False, False),
        ({"sec-websocket-protocol": offered(TOKEN)}, "", False, True),
        ({"sec-websocket-protocol": f"acp.v1, {offered(TOKEN)} ,x"}, "", False, True),
        ({"sec-websocket-protocol": offered(TOKEN) + "=="}, "", False, True),
        ({"sec-websocket-protocol": offered("wrong")}, "", False, False),
        ({"sec-websocket-protocol": "qwen-bearer." + TOKEN}, "", False, False),
        ({"sec-websocket-protocol": "qwen-bearer.!"}, "", False, False),
        ({"sec-websocket-protocol": "qwen-bearer._w"}, "", False, False),  # is not UTF-8
        ({}, "token=s3cret-t%C3%B6k%C3%A8n_-", False, True),
        ({}, "a=1&token=s3cret-t%C3%B6k%C3%A8n_-&token=x", False, True),
        ({}, "token=wrong", False, False),
        ({}, "token=", False, False),
        ({}, "Token=s3cret-t%C3%B6k%C3%A8n_-", False, False),
        # The header wins over the subprotocol, and that over the query, also when it is wrong.
        ({**bearer("wrong"), "sec-websocket-protocol": offered(TOKEN)}, "", False, False),
        (
            {"sec-websocket-protocol": offered("wrong")},
            "token=s3cret-t%C3%B6k%C3%A8n_-",
            False,
            False,
        ),
        (
            {"sec-websocket-protocol": "qwen-bearer.!"},
            "token=s3cret-t%C3%B6k%C3%A8n_-",
            False,
            False,
        ),
        # One that says nothing does not.
        ({"authorization": "", "sec-websocket-protocol": offered(TOKEN)}, "", False, True),
        ({"authorization": "Bearer ", "sec-websocket-protocol": offered(TOKEN)}, "", False, True),
        ({"authorization": "Bearer", "sec-websocket-protocol": ""}, "token=x", False, False),
        ({"sec-websocket-protocol": "acp.v1"}, "token=s3cret-t%C3%B6k%C3%A8n_-", False, True),
    ],
)
def test_where_a_token_may_stand(
    headers: dict[str, str], query: str, plain: bool, upgrade: bool
) -> None:
    demanded = policy(token_digest=token_digest(TOKEN))
    both = {**HOST, **headers}
    assert why(head(both, query=query), demanded) == (None if plain else "bearer")
    found = why(head(both, query=query, method="GET", upgrade=True), demanded)
    assert found == (None if upgrade else "bearer")
    # Without a token nobody is asked for one.
    assert why(head(both, query=query), policy()) is None


@pytest.mark.parametrize(
    "path", ["/health", "/readyz", "/status", "/acp", "/health/", "/healthx", "/"]
)
def test_two_paths_are_open(path: str) -> None:
    found = why(head(HOST, path=path), policy(token_digest=token_digest(TOKEN)))
    assert found == (None if path in ("/health", "/readyz") else "bearer")
    assert (found is None) == (path in OPEN_PATHS)
    # But not from anywhere.
    assert why(head({"host": "evil.example"}, path=path), policy()) == "host"


def test_a_preflight_needs_no_token_but_a_good_origin() -> None:
    demanded = policy(
        token_digest=token_digest(TOKEN), allow_origin=frozenset({"https://a.example"})
    )
    asks = {**HOST, "origin": "https://a.example", "access-control-request-method": "POST"}
    assert why(head(asks, method="OPTIONS"), demanded) is None
    assert (
        why(head({**asks, "origin": "https://b.example"}, method="OPTIONS"), demanded) == "origin"
    )
    for missing in ("origin", "access-control-request-method"):
        less = {name: value for name, value in asks.items() if name != missing}
        assert not is_preflight(head(less, method="OPTIONS"))
        assert why(head(less, method="OPTIONS"), demanded) == "bearer"
    assert why(head(asks, method="GET", upgrade=True), demanded) == "bearer"


@given(st.text(st.characters(codec="utf-8"), min_size=1).map(str.strip).filter(bool))
def test_any_token_comes_through_the_subprotocol(token: str) -> None:
    demanded = policy(token_digest=token_digest(token))
    headers = {**HOST, "sec-websocket-protocol": offered(token)}
    assert why(head(headers, upgrade=True), demanded) is None
    headers["sec-websocket-protocol"] = offered(token + "x")
    assert why(head(headers, upgrade=True), demanded) == "bearer"


def test_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(guards, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))
    demanded = policy(token_digest=token_digest(TOKEN))
    assert why(head({**HOST, **bearer("x")}), demanded) == "bearer"
    assert why(head({**HOST, **bearer(TOKEN)}), demanded) is None
    assert [len(a) for a, _ in compared] == [32, 32]
    assert compared[1][0] == compared[1][1] == token_digest(TOKEN)


def test_the_policy_does_not_print_its_secret() -> None:
    digest = token_digest(TOKEN)
    assert repr(digest) not in repr(policy(token_digest=digest)) and TOKEN.encode() not in digest


def test_a_credential_is_never_the_chosen_subprotocol() -> None:
    assert subprotocol([offered(TOKEN), "acp.v1", "other"]) == "acp.v1"
    assert subprotocol([offered(TOKEN)]) is None
    assert subprotocol([]) is None
