"""Whose request it is: forwarded headers count only from proxies that the settings name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.transports.client_address import Client, Proxies, caller_key, client_of

PROXY = "127.0.0.1"
FAR = "203.0.113.7"


def seen(
    *headers: tuple[str, str], peer: str | None = PROXY, trusted: tuple[str, ...] = (PROXY,)
) -> Client:
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]
    plain = {name.lower(): value for name, value in headers}
    return client_of(peer, plain, raw, Proxies(trusted))


# ---- from anybody -------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.9.9.9"])
def test_a_program_of_this_machine(peer: str) -> None:
    assert seen(peer=peer, trusted=()).local


@pytest.mark.parametrize("peer", [FAR, "10.0.0.1", "2001:db8::1", None])
def test_somebody_else(peer: str | None) -> None:
    found = seen(peer=peer, trusted=())
    assert not found.local and found.address == peer


@pytest.mark.parametrize(
    "header",
    [
        ("X-Forwarded-For", FAR),
        ("x-forwarded-for", "127.0.0.1"),
        ("Forwarded", f"for={FAR}"),
        ("Forwarded", "nonsense"),
        ("X-Real-IP", FAR),
        ("X-Forwarded-Proto", "https"),
    ],
)
def test_headers_of_an_unnamed_proxy_say_only_that_there_is_one(header: tuple[str, str]) -> None:
    """A tunnel to loopback that nobody named must not make the whole world local."""
    found = seen(header, trusted=())
    assert found == Client("127.0.0.1", local=False)
    # And they lend nobody another's address.
    found = seen(header, peer=FAR, trusted=("10.0.0.0/8",))
    assert found == Client(FAR, local=False)


# ---- from a trusted proxy -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ([("X-Forwarded-For", FAR)], FAR),
        ([("X-Forwarded-For", f" {FAR} ")], FAR),
        ([("X-Forwarded-For", f"{FAR}:1234")], FAR),
        ([("X-Forwarded-For", "[2001:db8::1]:1234")], "2001:db8::1"),
        ([("X-Forwarded-For", "2001:DB8::1")], "2001:db8::1"),
        ([("X-Forwarded-For", "::ffff:203.0.113.7")], FAR),
        # What the client itself sent stands before what the proxy added.
        ([("X-Forwarded-For", f"127.0.0.1, {FAR}")], FAR),
        ([("X-Forwarded-For", f"' or 1=1, {FAR}")], FAR),
        ([("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-For", FAR)], FAR),
        ([("X-Forwarded-For", f"{FAR}, 127.0.0.1")], FAR),  # two proxies of ours
        ([("Forwarded", f"for={FAR}")], FAR),
        ([("Forwarded", f"FOR={FAR};proto=https")], FAR),
        ([("Forwarded", f'for="{FAR}:80"')], FAR),
        ([("Forwarded", 'for="[2001:db8::1]:80"')], "2001:db8::1"),
        ([("Forwarded", f'for=127.0.0.1;host="a,b", for={FAR}')], FAR),
        ([("Forwarded", "for=127.0.0.1"), ("Forwarded", f"for={FAR}")], FAR),
        # Both, and they agree.
        ([("Forwarded", f"for={FAR}"), ("X-Forwarded-For", FAR)], FAR),
    ],
)
def test_the_client_of_a_trusted_proxy(headers: list[tuple[str, str]], address: str) -> None:
    found = seen(*headers)
    assert (found.address, found.local) == (address, False)


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.1, 127.0.0.1", "::1"])
def test_a_local_client_of_a_local_proxy(text: str) -> None:
    assert seen(("X-Forwarded-For", text)).local
    assert not seen(("X-Forwarded-For", "192.168.0.3"), trusted=("127.0.0.0/8",)).local


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("X-Forwarded-For", "")],
        [("X-Forwarded-For", "unknown")],
        [("X-Forwarded-For", f"{FAR},")],
        [("X-Forwarded-For", f"{FAR}, localhost")],
        [("X-Forwarded-For", f"{FAR}:port")],
        [("X-Forwarded-For", f"[{FAR}")],
        [("X-Forwarded-For", f"{FAR}, unix")],
        [("X-Forwarded-For", "1." * 5000)],
        [("X-Forwarded-Proto", "https")],
        [("Forwarded", "proto=https")],
        [("Forwarded", "for=unknown")],
        [("Forwarded", "for=_hidden")],
        [("Forwarded", f"for={FAR},")],
        [("Forwarded", f"for={FAR};for=127.0.0.1")],
        [("Forwarded", f'for="{FAR}')],
        [("Forwarded", f"for = {FAR}")],
        [("Forwarded", "for=2001:db8::1")],  # must be quoted
        [("Forwarded", f"for={FAR} for=127.0.0.1")],
        # One of the two is the client's own invention, and it cannot be told which.
        [("Forwarded", "for=127.0.0.1"), ("X-Forwarded-For", FAR)],
        [("Forwarded", f"for={FAR}"), ("X-Forwarded-For", "127.0.0.1")],
        [("Forwarded", f"for={FAR}"), ("X-Forwarded-For", "nonsense")],
        [("Forwarded", "nonsense"), ("X-Forwarded-For", FAR)],
    ],
)
def test_what_cannot_be_told_leaves_the_client_unknown(headers: list[tuple[str, str]]) -> None:
    assert seen(*headers) == Client(PROXY, local=False)


@given(st.lists(st.tuples(st.sampled_from(["Forwarded", "X-Forwarded-For"]), st.text(max_size=40))))
def test_no_header_makes_a_remote_peer_local(headers: list[tuple[str, str]]) -> None:
    assert not seen(*headers, peer=FAR).local
    found = seen(*headers, ("X-Forwarded-For", FAR))
    assert not found.local and found.address in (FAR, PROXY)


def test_the_site_that_a_proxy_was_asked_for() -> None:
    base = ("X-Forwarded-For", FAR)
    both = [("X-Forwarded-Proto", "HTTPS"), ("X-Forwarded-Host", "Gw.Example:443")]
    assert seen(base, *both).site == "https://gw.example"
    forwarded = ("Forwarded", f'for={FAR};host="gw.example:8443";proto=https')
    assert seen(forwarded).site == "https://gw.example:8443"
    for bad in ("gw.example/x", "a@gw.example", "gw.example:99999", "", 'gw"', "gw .example"):
        assert seen(base, ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", bad)).site is None
    assert seen(base, ("X-Forwarded-Proto", "ws"), both[1]).site is None
    assert seen(base, both[1]).site is None


def test_proxies_are_addresses_ranges_and_unix() -> None:
    proxies = Proxies(("10.0.0.0/8", "2001:db8::/32", "unix"))
    for yes in ("10.1.2.3", "::ffff:10.1.2.3", "2001:db8:1::1", "unix", None):
        assert yes in proxies, yes
    for no in ("11.0.0.1", "2001:db9::1", "localhost", ""):
        assert no not in proxies, no
    assert None not in Proxies(("10.0.0.0/8",)) and "unix" not in Proxies(("10.0.0.0/8",))
    assert not Proxies()


def test_keys() -> None:
    assert caller_key("::ffff:1.2.3.4") == caller_key("1.2.3.4") == "1.2.3.4"
    # One customer has a whole network of IPv6: another address of it is not another caller.
    assert caller_key("2001:db8::1") == caller_key("2001:db8::ffff") == "2001:db8::/64"
    assert caller_key("2001:db8:0:1::1") != caller_key("2001:db8::1")
    assert caller_key("::1") == "::1"
    assert caller_key(None) != caller_key("unix")
    assert caller_key("1.2.3.4", "phone") != caller_key("1.2.3.4")
