"""Who may come in: one pure function from a request's head to allow or refusal.

Order of the checks: Host, Origin, bearer. The HTTP side calls it in one ASGI middleware, the
WebSocket side on the request that the handshake parser delivered; nobody else decides.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qs, urlsplit

import attrs

from acp_gateway.config_access import ANY_ORIGIN, UNIX_PEER, PublicUrl
from acp_gateway.core.identity import DAEMON, NOBODY, OPEN, Identity
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.keyring import Keyring
from acp_gateway.token_store import token_digest

BEARER_SUBPROTOCOL: Final = "qwen-bearer."
FORWARDING: Final = frozenset(
    {"forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"}
)
"""Headers that only a proxy has reason to send."""
_ORIGIN: Final = re.compile(r"[!-~]+")
OPEN_PATHS: Final = frozenset({"/health", "/readyz", "/pair"})
"""Answered without a token: two say nothing but that the gateway is there (the figures of a deep
``/health`` are guarded by their handler), one gives a token for a code."""
_ONCE: Final = frozenset({b"host", b"origin", b"authorization"})
_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]", "host.docker.internal")


@attrs.frozen
class Head:
    """The parts of a request that decide. Header names in lower case; the last of a name wins."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    upgrade: bool = False
    site: str | None = None
    """``scheme://host`` that a trusted proxy was asked for (`client_address`)."""
    unix: bool = False
    """It came over a Unix socket: no name was looked up to get there, so `Host` says nothing,
    unless a proxy passed it on."""


@attrs.frozen
class Policy:
    """What this daemon demands."""

    port: int
    loopback: bool
    """Bound to loopback only: Host and Origin must be loopback names too (DNS rebinding)."""
    bound_host: str
    token_digest: bytes | None = attrs.field(default=None, repr=False)
    """Of the daemon's own token; None: nobody needs one."""
    more_ports: tuple[int, ...] = ()
    """Where it listens besides `port`."""
    keyring: Keyring = attrs.field(factory=lambda: Keyring(None), repr=False)
    """All other tokens."""
    allow_origin: frozenset[str] = frozenset()
    """``*``: any."""
    public: PublicUrl | None = None
    """Where a proxy serves this daemon: one more Host, Origin and base path."""

    names: frozenset[str] = attrs.field(init=False)
    """By which a gateway on loopback may be called."""
    hosts: frozenset[str] = attrs.field(init=False)
    """The same as a ``Host`` header has them."""

    @names.default
    def _names(self) -> frozenset[str]:
        bound = f"[{self.bound_host}]" if ":" in self.bound_host else self.bound_host
        return frozenset((*_LOOPBACK_NAMES, bound))

    @hosts.default
    def _hosts(self) -> frozenset[str]:
        ports = (self.port, *self.more_ports)
        bare = self.names if {80, 443}.intersection(ports) else ()
        public = () if self.public is None else self.public.hosts
        named = (f"{name}:{port}" for name in self.names for port in ports)
        return frozenset((*named, *bare, *public))

    def route(self, path: str) -> str:
        """``path`` without the base path of the public URL, which every route answers below too."""
        base = "" if self.public is None else self.public.base
        if not base or not path.startswith(base):
            return path
        rest = path[len(base) :]
        return rest if rest.startswith("/") else path if rest else "/"


def decide(head: Head, policy: Policy) -> GatewayError | None:
    """None: come in. Else the refusal (its kind gives 401 or 403)."""
    refusal = _host(head, policy) or _origin(head, policy)
    if refusal is None and not is_preflight(head):
        refusal = _bearer(head, policy)
    return refusal


def is_preflight(head: Head) -> bool:
    """A browser's question before a request from another origin; it never carries a token."""
    return (
        head.method == "OPTIONS"
        and "origin" in head.headers
        and "access-control-request-method" in head.headers
    )


def bad_head(
    target: int, headers: Sequence[tuple[bytes, bytes]], limit: int
) -> GatewayError | None:
    """Is it too large, or does it say a thing twice that decides?

    The parsers stop an endless head; this holds the limit for all of them alike. Of two values a
    proxy and this daemon might each take another. ``target`` is the length of path and query.
    """
    size, once = target, 0
    for name, value in headers:
        size += len(name) + len(value)
        if name in _ONCE or name.lower() in _ONCE:
            once += 1
    if size > limit:
        return GatewayError(
            ErrorKind.HEADERS_TOO_LARGE,
            f"The head of the request is too large (max {limit} bytes)",
            remedy="send less, or raise max_header_bytes",
            limit=limit,
        )
    if once > 1 and once != len({name.lower() for name, _ in headers} & _ONCE):
        return GatewayError(
            ErrorKind.INVALID_REQUEST,
            "A header that may stand once came twice",
            remedy="send Host, Origin and Authorization once",
        )
    return None


class Refused(GatewayError):
    """403: the request came from where it must not."""

    def to_http(self) -> tuple[int, dict[str, object]]:
        _, body = super().to_http()
        return 403, {**body, "code": "forbidden"}


def _host(head: Head, policy: Policy) -> GatewayError | None:
    if (head.unix and FORWARDING.isdisjoint(head.headers)) or not policy.loopback:
        return None
    # A page that names another host can make its browser send X-Forwarded-Host as well: what a
    # proxy says of the host never makes a wrong one right.
    site = None if head.site is None else head.site.partition("://")[2]
    if head.headers.get("host", "").lower() in policy.hosts and (
        site is None or site in policy.hosts or f"{site}:{policy.port}" in policy.hosts
    ):
        return None
    return Refused(
        ErrorKind.INVALID_REQUEST,
        "Invalid Host header",
        remedy=f"connect to 127.0.0.1:{policy.port} or localhost:{policy.port}",
    )


def _origin(head: Head, policy: Policy) -> GatewayError | None:
    origin = head.headers.get("origin")
    if origin is None:
        return None
    origin = origin.lower().rstrip("/")
    if _is_allowed(origin, policy) or _is_own(origin, head, policy):
        return None
    return Refused(
        ErrorKind.INVALID_REQUEST,
        "Request denied by CORS policy",
        remedy="serve with --allow-origin for this page's origin",
    )


def _is_allowed(origin: str, policy: Policy) -> bool:
    """Is it one of ``--allow-origin``? ``null`` may be anybody, and is never."""
    if origin in ("", "null"):
        return False
    return origin in policy.allow_origin or ANY_ORIGIN in policy.allow_origin


def _is_own(origin: str, head: Head, policy: Policy) -> bool:
    """Is it a page of this daemon: its port, and a name by which it is reached?"""
    if policy.public is not None and origin == policy.public.origin:
        return True
    if head.site is not None and not policy.loopback and origin == head.site:
        return True
    if not _ORIGIN.fullmatch(origin):
        return False  # the library would leave out what no browser sends
    try:
        parts = urlsplit(origin)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or port not in (policy.port, *policy.more_ports):
        return False
    host = parts.hostname or ""
    if (f"[{host}]" if ":" in host else host) in policy.names:
        return True
    return not policy.loopback and head.headers.get("host", "").lower() == parts.netloc


def _bearer(head: Head, policy: Policy) -> GatewayError | None:
    if head.path in OPEN_PATHS or _known(head, policy) is not None:
        return None
    return unauthorized()


def unauthorized() -> GatewayError:
    return GatewayError(
        ErrorKind.AUTH_REQUIRED,
        "Unauthorized",
        remedy="send the daemon's token as 'Authorization: Bearer TOKEN'",
    )


def identity_of(head: Head, policy: Policy) -> Identity:
    """Whose a request is that was let in."""
    return _known(head, policy) or NOBODY


async def renew_keys(head: Head, policy: Policy) -> None:
    """Before `decide`: get the newer keys of an outside issuer, if the token may be of one."""
    if policy.keyring.unsure(_token_of(head)):
        await policy.keyring.renew()


def _known(head: Head, policy: Policy) -> Identity | None:
    given, own = _token_of(head), policy.token_digest
    if given is not None and own is not None and hmac.compare_digest(token_digest(given), own):
        return DAEMON
    if given is not None and policy.keyring.claims(given):
        return policy.keyring.identify(given)
    return OPEN if own is None else None


def _token_of(head: Head) -> str | None:
    """Header before subprotocol before query; the last two on a WebSocket upgrade only.

    A browser cannot set headers on a WebSocket, so it sends ``qwen-bearer.<base64url>`` as a
    subprotocol; Goose Desktop sends ``?token=``.
    """
    scheme, _, value = head.headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    if not head.upgrade:
        return None
    for offered in head.headers.get("sec-websocket-protocol", "").split(","):
        offered = offered.strip()
        if offered.startswith(BEARER_SUBPROTOCOL):
            text = offered[len(BEARER_SUBPROTOCOL) :]
            try:
                padded = text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
                # A lax decoder would take more than one spelling of a token.
                return base64.b64decode(padded, altchars=b"-_", validate=True).decode()
            except (binascii.Error, ValueError):
                return None
    tokens = parse_qs(head.query).get("token")
    return tokens[0] if tokens else None


@lru_cache(1024)
def is_loopback_address(host: str | None) -> bool:
    """Is this socket address of this machine? Headers of proxies are never read for it."""
    if not host:
        return False
    if host == UNIX_PEER:
        return True
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def subprotocol(offered: Iterable[str]) -> str | None:
    """The first offered subprotocol that is not a credential."""
    return next((each for each in offered if not each.startswith(BEARER_SUBPROTOCOL)), None)
