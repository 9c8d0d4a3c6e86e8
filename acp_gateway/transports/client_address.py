"""Whose request is it? The socket's address, or what a trusted proxy says of the client.

Forwarded headers (RFC 7239 ``Forwarded``, and ``X-Forwarded-For/-Proto/-Host``) are read only when
the socket's other end is a proxy that the settings name; from anybody else they say nothing, but
that the request was passed on, so that it does not count as one of this machine.

Each hop appends to the list, hence it is read from its end: the first address that is no trusted
proxy is the client's. What stands before it may be anybody's invention and is never looked at. A
list that cannot be read, that is missing, or two headers that disagree leave the client unknown:
the proxy's own address counts then, and the client is not local.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

import attrs

from acp_gateway.config_access import UNIX_PEER, canonical_origin, network
from acp_gateway.transports.guards import FORWARDING, is_loopback_address

MAX_LIST: Final = 8192
"""Characters of one list that are read."""
CLIENT: Final = "acp_gateway.client"
"""Extension of the ASGI scope: the `Client`."""
UNKNOWN_KEY: Final = "local socket"

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR: Final = re.compile(rf'\s*({_TOKEN})=(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")\s*')
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


@attrs.frozen
class Client:
    """Who sent a request, as far as that can be known."""

    address: str | None
    """None: no address, as on a Unix socket."""
    local: bool
    """A program of this machine."""
    site: str | None = None
    """``scheme://host[:port]`` that a trusted proxy was asked for."""

    @property
    def key(self) -> str:
        """What limits count by: the address, of IPv6 the network that one customer gets."""
        return caller_key(self.address)


class Proxies:
    """The trusted ones: addresses, ranges, and ``unix`` for the peers of a Unix socket."""

    def __init__(self, named: Iterable[str] = ()) -> None:
        named = tuple(named)
        self._networks = tuple(net for net in map(network, named) if net is not None)
        self._unix = UNIX_PEER in named
        self._trusts = lru_cache(1024)(self._look_up)

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def __contains__(self, address: str | None) -> bool:
        return self._trusts(address)

    def _look_up(self, address: str | None) -> bool:
        if address is None or address == UNIX_PEER:
            return self._unix
        found = _address(address)
        return found is not None and any(
            found.version == net.version and found in net for net in self._networks
        )


def client_of(
    peer: str | None,
    headers: Mapping[str, str],
    raw: Iterable[tuple[bytes, bytes]],
    proxies: Proxies,
) -> Client:
    """``peer`` is the socket's address. ``headers`` has names in lower case; ``raw`` has every
    header, also those that came twice, in order."""
    plain = normal(peer)
    passed_on = not FORWARDING.isdisjoint(headers)
    if not proxies or peer not in proxies:
        return Client(plain, is_loopback_address(peer) and not passed_on)
    told: dict[str, list[str]] = {}
    if passed_on:
        for name, value in raw:
            told.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    forwarded = _elements(told.get("forwarded"))
    by_for = _client([each.get("for") for each in forwarded or ()], proxies)
    by_x = _client(_list(told.get("x-forwarded-for")), proxies)
    if forwarded is None or (by_for and by_x and by_for != by_x):
        return Client(plain, local=False)
    both = "forwarded" in told and "x-forwarded-for" in told
    found = (by_for and by_x) if both else (by_for or by_x)
    if not found:
        return Client(plain, local=False)
    last = forwarded[-1] if forwarded else {}
    host = last.get("host") or (_list(told.get("x-forwarded-host")) or [None])[-1]
    scheme = last.get("proto") or (_list(told.get("x-forwarded-proto")) or [None])[-1]
    return Client(found, is_loopback_address(found), _site(scheme, host))


def _client(hops: list[str | None], proxies: Proxies) -> str | None:
    """The first hop from the end that is no proxy of ours; None: it cannot be told."""
    known = None
    for hop in reversed(hops):
        known = _node(hop)
        if known is None or known not in proxies:
            break
    return known


def _list(values: list[str] | None) -> list[str | None]:
    text = ",".join(values or ())
    if not text or len(text) > MAX_LIST:
        return [None] if text else []
    return [each.strip() for each in text.split(",")]


def _elements(values: list[str] | None) -> list[dict[str, str]] | None:
    """RFC 7239 §4: the elements of ``Forwarded``; None when it is not written as that says."""
    text = ",".join(values or ())
    if len(text) > MAX_LIST:
        return None
    elements: list[dict[str, str]] = []
    current: dict[str, str] = {}
    at = 0
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None or pair[1].lower() in current:
            return None
        quoted = pair[3]
        current[pair[1].lower()] = (
            pair[2] if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
        )
        at = pair.end()
        if at < len(text) and text[at] not in ";,":
            return None
        if at == len(text) or text[at] == ",":
            elements.append(current)
            current = {}
        at += 1
    return None if text.rstrip().endswith((",", ";")) else elements


def _node(text: str | None) -> str | None:
    """RFC 7239 §6: an address, perhaps with a port; names that hide one tell nothing."""
    if not text:
        return None
    if text.startswith("["):
        host, closing, port = text[1:].partition("]")
        if not closing or (port and not re.fullmatch(r":\d{1,5}", port)):
            return None
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        if not re.fullmatch(r"\d{1,5}", port):
            return None
    else:
        host = text
    return None if _address(host) is None else normal(host)


def _site(scheme: str | None, host: str | None) -> str | None:
    if scheme is None or host is None or scheme.lower() not in ("http", "https"):
        return None
    if not _HOST_NAME.fullmatch(host):
        return None
    return canonical_origin(f"{scheme.lower()}://{host}")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


@lru_cache(4096)
def normal(text: str | None) -> str | None:
    """One spelling of an address; IPv4 inside IPv6 (``::ffff:…``) as IPv4."""
    if text is None:
        return None
    found = _address(text)
    return text if found is None else found.compressed


@lru_cache(4096)
def caller_key(address: str | None, name: str | None = None) -> str:
    """Whose bucket a request of this address takes from; ``name`` is its token's."""
    found = None if address is None else _address(address)
    if found is None:
        key = address or UNKNOWN_KEY
    elif found.version == 6 and not found.is_loopback:
        key = str(ipaddress.ip_network((found, 64), strict=False))
    else:
        key = found.compressed
    return key if name is None else f"{key} {name}"
