"""Tokens of an outside issuer: JWTs (RFC 7519), checked with its published keys (home of pyjwt).

What a token says of itself decides nothing: the algorithms are a fixed list of asymmetric ones, the
key is one of the issuer's set (RFC 7517) and its type must be the algorithm's, headers that name a
key or a place of one (``jwk``, ``jku``, ``x5c``, ``x5u``) are not looked at, and a header that must
be understood (``crit``) refuses. ``iss``, ``aud``, ``sub`` and ``exp`` must be there, ``nbf`` and
``iat`` count where they are. RFC 8725 is the source of most of this.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import jwt
import structlog
import trio

from acp_gateway.core.identity import Identity, Kind, Scope, highest
from acp_gateway.wire.json_codec import JsonError, loads

log = structlog.get_logger("acp_gateway.tokens")

ALGORITHMS: Final = {
    "RS256": "RSA",
    "RS384": "RSA",
    "RS512": "RSA",
    "PS256": "RSA",
    "PS384": "RSA",
    "PS512": "RSA",
    "ES256": "EC",
    "ES384": "EC",
    "ES512": "EC",
    "EdDSA": "OKP",
}
"""Algorithm -> type of key. No ``none``, and none with a shared secret: with ``HS256`` the public
key itself would do as the secret."""
LEEWAY: Final = 30.0
"""Seconds that clocks may differ."""
LONGEST: Final = 8192
REMEMBERED: Final = 1024
RENEW_FLOOR: Final = 10.0
"""Seconds between two looks for new keys that unknown ones cause."""
RENEW_TIMEOUT: Final = 5.0
RENEW_ALWAYS: Final = 600.0
"""Seconds after which the keys are looked at anyway: a key that was withdrawn must go."""
MOST_KEYS: Final = 100
LONGEST_NUMBER: Final = 4096
"""Characters of a number of a key; RSA with 16384 bits has 2731."""
MOST_RSA_BITS: Final = 16384
"""OpenSSL verifies with no larger one."""
_PREFIX: Final = "acp-gateway:"
"""May stand before a scope, for issuers that serve others too."""

Load = Callable[[], Awaitable[bytes]]
"""Gives a JWK set as JSON. Raises `OSError` or `ValueError`."""


class JwtIssuer:
    """``load`` gets the keys; it is called in `renew` only."""

    def __init__(self, load: Load, *, issuer: str, audience: str, scope_claim: str) -> None:
        self._load = load
        self._issuer = issuer
        self._audience = audience
        self._claim = scope_claim
        self._keys: dict[str | None, list[jwt.PyJWK]] = {}
        self._known: OrderedDict[bytes, Identity] = OrderedDict()
        self._renewed_at = float("-inf")
        self._wanted = trio.Event()
        self._fetching = False
        self._fetched = trio.Event()

    # ---- tokens ---------------------------------------------------------------------------------

    def knows(self, token: str) -> bool:
        """Does it look like a JWT? (RFC 7515 §7.1: the header's JSON begins with ``{"``.)"""
        return token.startswith("eyJ") and token.count(".") == 2

    def identify(self, token: str, now: float) -> Identity | None:
        """Whose token it is, if it is good."""
        if len(token) > LONGEST:
            return None
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        known = self._known.get(digest)
        if known is None:
            known = self._verified(token, digest)
            if known is None:
                return None
            self._known[digest] = known
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return known if known.expires_at is not None and now < known.expires_at else None

    def _verified(self, token: str, digest: bytes) -> Identity | None:
        header = _header(token)
        key = None if header is None else self._key_for(header)
        if header is None or key is None:
            return None
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[header["alg"]],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            subject, expires = claims["sub"], float(claims["exp"]) + LEEWAY
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as exc:
            log.info("jwt_refused", reason=type(exc).__name__)
            return None
        if not isinstance(subject, str) or not 0 < len(subject) <= 256:
            return None
        party = hashlib.sha256(f"{self._issuer}\0{subject}".encode(errors="replace")).hexdigest()
        return Identity(
            kind=Kind.JWT,
            token_id=f"jwt:{digest.hex()[:24]}",
            name="".join(each if each.isprintable() else "?" for each in subject),
            scope=self._scope_of(claims),
            party=f"jwt:{party[:24]}",
            expires_at=expires,
        )

    def _scope_of(self, claims: Mapping[str, Any]) -> Scope | None:
        value: Any = claims.get(self._claim)
        if value is None:
            value = claims
            for part in self._claim.split("."):
                value = value.get(part) if isinstance(value, dict) else None
        words = value.split() if isinstance(value, str) else value
        if not isinstance(words, list):
            return None
        return highest(word.removeprefix(_PREFIX) for word in words if isinstance(word, str))

    def _key_for(self, header: Mapping[str, Any]) -> jwt.PyJWK | None:
        """The one key that the header names, of the algorithm's type; without a ``kid`` the only
        one of that type."""
        kid, algorithm = header.get("kid"), header["alg"]
        if kid is not None and not isinstance(kid, str):
            return None
        candidates = (
            self._keys.get(kid, [])
            if kid is not None
            else [key for keys in self._keys.values() for key in keys]
        )
        fitting = [key for key in candidates if _fits(key, algorithm)]
        return fitting[0] if len(fitting) == 1 else None

    # ---- keys -----------------------------------------------------------------------------------

    def unsure(self, token: str) -> bool:
        """Is it signed with a key that we do not have, and may we look for it now?"""
        if not self.knows(token) or len(token) > LONGEST:
            return False
        if self._fetching or trio.current_time() - self._renewed_at >= RENEW_FLOOR:
            header = _header(token)
            return header is not None and self._key_for(header) is None
        return False

    async def renew(self) -> None:
        """Return when `run` has looked for new keys, or failed to; bounded."""
        self._wanted.set()
        with trio.move_on_after(RENEW_TIMEOUT):
            await self._fetched.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the keys fresh until cancelled. No client's leaving can stop what all wait for."""
        task_status.started()
        while True:
            await self._fetch()
            with trio.move_on_after(RENEW_ALWAYS if self._keys else RENEW_FLOOR):
                await self._wanted.wait()

    async def _fetch(self) -> None:
        """Keys that cannot be had now stay as they are."""
        self._fetching, self._wanted = True, trio.Event()
        try:
            with trio.fail_after(RENEW_TIMEOUT):
                self._take(await self._load())
        except (OSError, ValueError, trio.TooSlowError) as exc:
            log.error("jwks_unavailable", error=str(exc) or type(exc).__name__)
        except Exception as exc:
            # What an issuer publishes is no reason to end the daemon, whatever a library makes of
            # it. (Cancellation is no `Exception`.)
            log.exception("jwks_unavailable", error=type(exc).__name__)
        finally:
            self._renewed_at = trio.current_time()
            self._fetching = False
            self._fetched.set()
            self._fetched = trio.Event()

    def _take(self, data: bytes) -> None:
        """Raises `ValueError`."""
        self._keys = keys_of(data)
        self._known.clear()
        log.info("jwks_loaded", keys=sum(map(len, self._keys.values())))


def keys_of(data: bytes) -> dict[str | None, list[jwt.PyJWK]]:
    """The usable keys of a JWK set by ``kid``: public, asymmetric, for signatures. Raises
    `ValueError` when there is none."""
    try:
        found = loads(data)
    except JsonError as exc:
        raise ValueError(f"no JSON: {exc}") from None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise ValueError("no JWK set: an object with a list `keys`")
    keys: dict[str | None, list[jwt.PyJWK]] = {}
    for entry in entries[:MOST_KEYS]:
        try:
            key = _usable(entry)
        except Exception as exc:
            # Of any member of any type; the libraries promise no particular error. It costs this
            # key and no other.
            log.warning("jwk_not_usable", error=type(exc).__name__)
            continue
        if key is not None:
            keys.setdefault(entry.get("kid"), []).append(key)
    if not keys:
        raise ValueError("a JWK set without a key for signatures that this gateway takes")
    return keys


def _usable(entry: Any) -> jwt.PyJWK | None:
    """The key, if it is one that this gateway takes. Raises anything for one that is broken."""
    if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    if entry.get("use", "sig") != "sig" or "d" in entry:
        return None  # for encryption; or a private key, which a set must not publish
    algorithm, kid = entry.get("alg"), entry.get("kid")
    if not isinstance(algorithm, str | None) or not isinstance(kid, str | None):
        return None  # RFC 7517 §4.4, §4.5
    if algorithm is not None and ALGORITHMS.get(algorithm) != entry["kty"]:
        return None
    if any(len(str(entry.get(name))) > LONGEST_NUMBER for name in ("n", "e", "x", "y")):
        return None  # the arithmetic with it would hold up everybody
    key = jwt.PyJWK.from_dict(entry)
    if entry["kty"] == "RSA" and not 2048 <= getattr(key.key, "key_size", 0) <= MOST_RSA_BITS:
        return None  # RFC 7518 §3.3
    return key


def _header(token: str) -> dict[str, Any] | None:
    """The header of a token that may be looked at."""
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS or "crit" in header:
        return None
    return header


_CURVES: Final = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}


def _fits(key: jwt.PyJWK, algorithm: str) -> bool:
    """Is the key one for this algorithm?"""
    data = key._jwk_data
    if data["kty"] != ALGORITHMS[algorithm] or data.get("alg", algorithm) != algorithm:
        return False
    return algorithm not in _CURVES or data.get("crv") == _CURVES[algorithm]
