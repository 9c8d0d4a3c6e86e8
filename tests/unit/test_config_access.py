"""Forms of origins, public URLs and proxies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.config_access import canonical_origin, network, public_url


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("https://app.example", "https://app.example"),
        ("https://App.EXAMPLE/", "https://app.example"),
        ("HTTPS://app.example", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("http://app.example:443", "http://app.example:443"),
        ("http://app.example:80/path?x#y", "http://app.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("https://u:p@app.example", "https://app.example"),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://[2001:DB8:0:0::1]", "http://[2001:db8::1]"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("tauri://localhost", "tauri://localhost"),
        ("null", None),
        ("app.example", None),
        ("//app.example", None),
        ("https://", None),
        ("https://*.example", None),
        ("https://app example", None),
        ("https://app.example:x", None),
        ("https://app.example:99999", None),
        ("https://[::1", None),
        ("https:\\\\app.example", None),
        ("1http://a", None),
        ("", None),
    ],
)
def test_origins(text: str, canonical: str | None) -> None:
    assert canonical_origin(text) == canonical


@given(st.text(max_size=40))
def test_the_canonical_form_is_its_own(text: str) -> None:
    for each in (text, f"https://{text}"):
        found = canonical_origin(each)
        assert found is None or canonical_origin(found) == found


@pytest.mark.parametrize(
    ("text", "url", "ws", "hosts"),
    [
        ("https://gw.io", "https://gw.io", "wss://gw.io/acp", "gw.io gw.io:443"),
        ("https://GW.io:443/", "https://gw.io", "wss://gw.io/acp", "gw.io gw.io:443"),
        ("http://gw.io:80/a/b/", "http://gw.io/a/b", "ws://gw.io/a/b/acp", "gw.io gw.io:80"),
        ("http://gw.io:81/a", "http://gw.io:81/a", "ws://gw.io:81/a/acp", "gw.io:81"),
        ("http://[::1]:99/x", "http://[::1]:99/x", "ws://[::1]:99/x/acp", "[::1]:99"),
    ],
)
def test_public_urls(text: str, url: str, ws: str, hosts: str) -> None:
    found = public_url(text)
    assert found is not None
    assert (found.url, found.ws_url, found.hosts) == (url, ws, frozenset(hosts.split()))


@pytest.mark.parametrize(
    "text",
    [
        "gw.example",
        "ftp://gw.example",
        "wss://gw.example",
        "https://u@gw.example",
        "https://gw.example/?x",
        "https://gw.example/x?",
        "https://gw.example/#",
        "https://gw.example/a b",
        "https://gw.example/a//b",
        "https://gw.example/../b",
        "https://gw.example/./b",
        "https://gw.example/%2e",
        "https://gw.example/{x}",
        "",
    ],
)
def test_what_is_no_public_url(text: str) -> None:
    assert public_url(text) is None


def test_whether_it_is_of_this_machine() -> None:
    for text, local in (
        ("http://localhost:1", True),
        ("http://127.0.0.1", True),
        ("http://[::1]", True),
        ("http://gw.example", False),
        ("http://localhost.example", False),
    ):
        found = public_url(text)
        assert found is not None and found.local is local


def test_networks() -> None:
    for good in ("10.0.0.1", "10.0.0.0/8", "::1", "2001:db8::/32"):
        assert network(good) is not None
    for bad in ("10.0.0.1/8", "nginx", "unix", "", "10.0.0.0/33", "*"):
        assert network(bad) is None
