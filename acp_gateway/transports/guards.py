"""Who may come in: one pure function from a request's head to allow or refusal.

Order of the checks: Host, Origin, bearer. The HTTP side calls it in one ASGI middleware, the
WebSocket side on the request that the handshake parser delivered; nobody else decides.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qs, urlsplit

import attrs

from acp_gateway.protocol.errors import ErrorKind, GatewayError

BEARER_SUBPROTOCOL: Final = "qwen-bearer."
OPEN_PATHS: Final = frozenset({"/health", "/readyz"})
"""Answered without a token: they say nothing but that the gateway is there."""
_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]", "host.docker.internal")


@attrs.frozen
class Head:
    """The parts of a request that decide. Header names in lower case; the last of a name wins."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    upgrade: bool = False


@attrs.frozen
class Policy:
    """What this daemon demands."""

    port: int
    loopback: bool
    """Bound to loopback only: Host and Origin must be loopback names too (DNS rebinding)."""
    bound_host: str
    token_digest: bytes | None = attrs.field(default=None, repr=False)
    allow_origin: frozenset[str] = frozenset()

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
        bare = self.names if self.port in (80, 443) else ()
        return frozenset((*(f"{name}:{self.port}" for name in self.names), *bare))


def token_digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


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


class Refused(GatewayError):
    """403: the request came from where it must not."""

    def to_http(self) -> tuple[int, dict[str, object]]:
        _, body = super().to_http()
        return 403, {**body, "code": "forbidden"}


def _host(head: Head, policy: Policy) -> GatewayError | None:
    if not policy.loopback:
        return None
    if head.headers.get("host", "").lower() in policy.hosts:
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
    if origin in policy.allow_origin:
        return None
    if _is_own(origin, head, policy):
        return None
    return Refused(
        ErrorKind.INVALID_REQUEST,
        "Request denied by CORS policy",
        remedy="serve with --allow-origin for this page's origin",
    )


def _is_own(origin: str, head: Head, policy: Policy) -> bool:
    """Is it a page of this daemon: its port, and a name by which it is reached?"""
    try:
        parts = urlsplit(origin)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or port != policy.port:
        return False
    host = parts.hostname or ""
    if (f"[{host}]" if ":" in host else host) in policy.names:
        return True
    return not policy.loopback and head.headers.get("host", "").lower() == parts.netloc


def _bearer(head: Head, policy: Policy) -> GatewayError | None:
    if policy.token_digest is None or head.path in OPEN_PATHS:
        return None
    given = _token_of(head)
    if given is not None and hmac.compare_digest(token_digest(given), policy.token_digest):
        return None
    return GatewayError(
        ErrorKind.AUTH_REQUIRED,
        "Unauthorized",
        remedy="send the daemon's token as 'Authorization: Bearer TOKEN'",
    )


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
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
            except (binascii.Error, ValueError):
                return None
    tokens = parse_qs(head.query).get("token")
    return tokens[0] if tokens else None


@lru_cache(1024)
def is_loopback_address(host: str | None) -> bool:
    """Is this socket address of this machine? Headers of proxies are never read for it."""
    if not host:
        return False
    try:
        address = ipaddress.ip_address(host.split("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def subprotocol(offered: Iterable[str]) -> str | None:
    """The first offered subprotocol that is not a credential."""
    return next((each for each in offered if not each.startswith(BEARER_SUBPROTOCOL)), None)
