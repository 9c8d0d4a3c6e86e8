"""Settings about who may come in: their forms, what refuses to start, and what only warns.

Every refusal is one sentence, the place that the value came from, and what to do (`ConfigError`).
`docs/security.md` has the table of them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

import attrs

from acp_gateway.config import ConfigError, Settings, is_loopback

ANY_ORIGIN: Final = "*"
UNIX_PEER: Final = "unix"
"""Stands for the address of whoever comes over a Unix socket; no header may put it there. As a
trusted proxy: all of them."""
DEFAULT_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443, "ws": 80, "wss": 443}
MAX_RING_SIZE: Final = 1_000_000
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_BASE: Final = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_ADD_TOKEN: Final = (
    "Add --token-file FILE (or --token), or create a token with `acp-gateway token create NAME`"
)


@attrs.frozen
class PublicUrl:
    """Where the daemon is reached from outside, through a proxy."""

    origin: str
    """``https://host[:port]``, as a browser's ``Origin`` has it."""
    base: str
    """Path in front of every route, as ``/gateway``; empty when there is none."""
    hosts: frozenset[str]
    """What a ``Host`` header may be."""

    @property
    def url(self) -> str:
        return self.origin + self.base

    @property
    def ws_url(self) -> str:
        """The WebSocket endpoint."""
        return "ws" + self.origin.removeprefix("http") + self.base + "/acp"

    @property
    def local(self) -> bool:
        return is_loopback(urlsplit(self.origin).hostname or "")


# ---- forms --------------------------------------------------------------------------------------


def canonical_origin(text: str) -> str | None:
    """The one form of an origin (RFC 6454 §6.2); None for what has none.

    Path, query, user information and a default port are left out of it.
    """
    parts = _split(text.strip())
    if parts is None or not parts.scheme or not parts.hostname:
        return None
    host = _ascii(parts.hostname)
    if host is None:
        return None
    port = "" if parts.port in (None, DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def public_url(text: str) -> PublicUrl | None:
    """None for what is no URL of a page: ``http(s)://host[:port][/base]`` and nothing else."""
    parts = _split(text.strip())
    origin = canonical_origin(text)
    if parts is None or origin is None or parts.scheme not in ("http", "https"):
        return None
    base = parts.path.rstrip("/")
    if parts.query or parts.fragment or "@" in parts.netloc or not _BASE.fullmatch(base):
        return None
    if any(part in (".", "..") for part in base.split("/")) or "?" in text or "#" in text:
        return None
    host = origin.partition("://")[2]
    default = DEFAULT_PORTS[parts.scheme]
    bare = parts.port in (None, default)
    return PublicUrl(origin, base, frozenset((host, f"{host}:{default}") if bare else (host,)))


def network(text: str) -> Network | None:
    """An address or a CIDR range; None for anything else, also for a range with host bits."""
    try:
        return ipaddress.ip_network(text.strip(), strict=True)
    except ValueError:
        return None


def _split(text: str) -> SplitResult | None:
    if re.search(r"[\s\\\x00-\x1f\x7f]", text):
        return None
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return None
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", parts.scheme):
        return None
    return parts


def _ascii(host: str) -> str | None:
    """As a browser sends it: lower case, punycode, an IPv6 address in brackets and short."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return f"[{address.compressed}]" if address.version == 6 else str(address)
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return None
    name = name.lower()
    return name if re.fullmatch(r"[a-z0-9._-]+", name) else None


# ---- refusals -----------------------------------------------------------------------------------


def checked(
    settings: Settings, sources: Mapping[str, str], has_other_tokens: Callable[[], bool]
) -> Settings:
    """``settings`` in canonical form. Raises `ConfigError` for what must not start.

    The token is in ``token`` already, whatever it came from; the workspace is canonical.
    ``has_other_tokens``: may somebody come in with another than that one?
    """
    settings = attrs.evolve(settings, host=_host(settings.host, sources["host"]))
    for origin in settings.allow_origin:
        _check_origin(origin, sources["allow_origin"])
    if settings.public_url is not None:
        _check_public_url(settings.public_url, sources["public_url"])
    for proxy in settings.trusted_proxy:
        _check_proxy(proxy, sources["trusted_proxy"])
    _check_roots(settings.workspace, sources["workspace"])
    if settings.event_ring_size > MAX_RING_SIZE:
        raise ConfigError(
            f'"event_ring_size" must be at most {MAX_RING_SIZE}, not {settings.event_ring_size}.',
            remedy="Correct it or leave it out.",
            source=sources["event_ring_size"],
        )
    _check_jwt(settings, sources)
    if settings.token is None and not has_other_tokens():
        _check_without_token(settings, sources)
    return settings


def _host(host: str, source: str) -> str:
    bare = host.strip()
    if re.fullmatch(r"\[[^\]]*\]", bare):
        return bare[1:-1]
    looks = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]+):\d*", bare)
    if looks or "/" in bare or any(mark in bare for mark in "[]@?#") or re.search(r"\s", bare):
        name = looks[1].strip("[]") if looks else None
        raise ConfigError(
            f'"host" must be an address alone, not {bare!r}.',
            remedy=(
                f"Write --host {name} and the port as --port."
                if name
                else "Write a name or an address such as 127.0.0.1, without port, scheme or path."
            ),
            source=source,
        )
    return bare


def _check_origin(origin: str, source: str) -> None:
    if origin == ANY_ORIGIN:
        return
    canonical = canonical_origin(origin)
    if canonical == origin:
        return
    shape = "an origin such as https://host:port"
    if canonical is None or "*" in origin:
        remedy = "Name each origin in full, or * for all of them."
    else:
        remedy = f"Write {canonical}, which is the form that browsers send."
    raise ConfigError(
        f'"allow_origin" must be {shape}, exactly as a browser sends it, not {origin!r}.',
        remedy=remedy,
        source=source,
    )


def _check_public_url(text: str, source: str) -> None:
    found = public_url(text)
    if found is None:
        raise ConfigError(
            f'"public_url" must be a URL such as https://host/base, not {text!r}.',
            remedy="Write scheme, host and, if there is one, port and path; no query, no user.",
            source=source,
        )
    first = found.base.split("/")[1] if found.base else None
    if first in _own_paths():
        raise ConfigError(
            f'The path of "public_url" begins with /{first}, which is a route of the gateway.',
            remedy="Choose another path, such as /gateway.",
            source=source,
        )


def _own_paths() -> frozenset[str]:
    from acp_gateway.protocol.extensions import OPERATIONS

    rows = {row.path.split("/")[1] for row in OPERATIONS.values()}
    return frozenset(rows) | {"acp", "agents", "demo", "status"}


def _check_proxy(text: str, source: str) -> None:
    if text == UNIX_PEER or network(text) is not None:
        return
    remedy = "Write an address, a range such as 10.0.0.0/8, or unix."
    with contextlib.suppress(ValueError):
        remedy = f"Write {ipaddress.ip_network(text, strict=False)}."
    raise ConfigError(
        f'"trusted_proxy" must be an address or a range of them, not {text!r}.',
        remedy=remedy,
        source=source,
    )


def _check_roots(roots: Iterable[Path], source: str) -> None:
    seen: list[Path] = []
    for root in roots:
        if not os.access(root, os.R_OK | os.X_OK):
            raise ConfigError(
                f"The workspace {root} may not be read.",
                remedy="Name a directory that you may list and enter.",
                source=source,
            )
        for other in seen:
            if root == other:
                raise ConfigError(
                    f"The workspace {root} is named twice.",
                    remedy="Name each directory once.",
                    source=source,
                )
            if root.is_relative_to(other) or other.is_relative_to(root):
                inner, outer = (root, other) if root.is_relative_to(other) else (other, root)
                raise ConfigError(
                    f"The workspace {inner} lies inside the workspace {outer}.",
                    remedy=f"Leave out {inner}: sessions may work in all of {outer}.",
                    source=source,
                )
        seen.append(root)


def _check_without_token(settings: Settings, sources: Mapping[str, str]) -> None:
    if settings.tcp and not is_loopback(settings.host):
        raise ConfigError(
            f"Listening on {settings.host} without a token would let anybody on the network "
            "run commands as you.",
            remedy=f"{_ADD_TOKEN}, or listen on 127.0.0.1.",
            source=sources["host"],
        )
    if settings.require_auth:
        raise ConfigError(
            "require_auth is set but there is no token.",
            remedy=f"{_ADD_TOKEN}.",
            source=sources["require_auth"],
        )
    public = public_url(settings.public_url) if settings.public_url else None
    if public is not None and not public.local:
        raise ConfigError(
            f"Being reached at {public.origin} without a token would let anybody who knows the "
            "address run commands as you.",
            remedy=f"{_ADD_TOKEN}.",
            source=sources["public_url"],
        )
    for origin in settings.allow_origin:
        if origin == ANY_ORIGIN:
            raise ConfigError(
                "Allowing every origin without a token would let every web page that you open "
                "run commands as you.",
                remedy=f"{_ADD_TOKEN}, or name the origins.",
                source=sources["allow_origin"],
            )
        parts = urlsplit(origin)
        if parts.scheme in ("http", "https") and not is_loopback(parts.hostname or ""):
            raise ConfigError(
                f"Allowing the origin {origin} without a token would let whoever writes that "
                "page run commands as you.",
                remedy=f"{_ADD_TOKEN}, or serve the page from this machine.",
                source=sources["allow_origin"],
            )


def _check_jwt(settings: Settings, sources: Mapping[str, str]) -> None:
    names = ("jwt_jwks", "jwt_issuer", "jwt_audience")
    given = [name for name in names if getattr(settings, name) is not None]
    missing = [name for name in names if name not in given]
    if given and missing:
        raise ConfigError(
            f"{given[0]} is set but {missing[0]} is not: without it tokens for others would do.",
            remedy=f"Set {', '.join(missing)} as well, or leave all of them out.",
            source=sources[given[0]],
        )
    if settings.jwt_jwks is None:
        return
    url = urlsplit(settings.jwt_jwks)
    is_file = url.scheme not in ("http", "https")
    if is_file and sources["jwt_jwks"].startswith("file ") and not url.path.startswith("/"):
        raise ConfigError(
            f'"jwt_jwks" must be a URL or an absolute path, not {settings.jwt_jwks!r}.',
            remedy="Correct it or leave it out.",
            source=sources["jwt_jwks"],
        )
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        raise ConfigError(
            "jwt_jwks is fetched over plain http: who is on the way could put in other keys.",
            remedy="Use an https URL or a file.",
            source=sources["jwt_jwks"],
        )


# ---- warnings -----------------------------------------------------------------------------------


def warnings(
    settings: Settings, sources: Mapping[str, str], has_other_tokens: Callable[[], bool]
) -> list[str]:
    """What may be meant, and is said at the start: one sentence each."""
    has_token = settings.token is not None or has_other_tokens()
    found = []
    if sources.get("token", "").startswith("flag"):
        found.append(
            "Other users can see --token in the process list; use --token-file FILE or "
            "ACP_GATEWAY_TOKEN."
        )
    if ANY_ORIGIN in settings.allow_origin:
        found.append(
            "--allow-origin * lets every web page ask for a token's worth of access; name the "
            "origins instead."
        )
    if settings.trust_loopback and not has_token:
        found.append(
            "--trust-loopback without a token lets every program on this machine change files and "
            "settings."
        )
    if settings.enable_session_shell and not (has_token or settings.trust_loopback):
        found.append(
            "--enable-session-shell has no effect without a token; add --token-file FILE, or "
            "--trust-loopback if everybody on this machine may run commands."
        )
    if settings.consensus_quorum and settings.permission_policy != "consensus":
        found.append(
            "--consensus-quorum has no effect: the permission policy is "
            f"{settings.permission_policy}."
        )
    wide = [
        str(each)
        for each in map(network, settings.trusted_proxy)
        if each is not None and each.prefixlen == 0
    ]
    if wide:
        found.append(
            f"--trusted-proxy {wide[0]} believes everybody's forwarded headers; name the proxy."
        )
    return found
