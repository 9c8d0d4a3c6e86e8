"""What an authorization server answers, read: RFC 8628 §3.2 and §3.5, RFC 6749 §5, RFC 8414 §3.2.

Pure. A server may send anything; its text goes into no error that a client sees, and of its body
only the members that name an error go into a detail for the log.
"""

from __future__ import annotations

import math
from typing import Any, Final

from acp_gateway.core.device_effects import (
    Begun,
    Codes,
    Failure,
    Granted,
    Outcome,
    Refused,
    SlowDown,
    Unreachable,
    Waiting,
)
from acp_gateway.core.endpoint_rules import may_be_shown
from acp_gateway.runtime.device_flow import ProviderError
from acp_gateway.wire.json_codec import JsonError, loads

LONGEST_CODE: Final = 64
_FAILURES: Final = {
    each.word: each
    for each in (Failure.EXPIRED_TOKEN, Failure.ACCESS_DENIED, Failure.INVALID_GRANT)
}


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        value = loads(body)
    except JsonError:
        return None
    return value if isinstance(value, dict) else None


def _error(value: dict[str, Any]) -> str | None:
    """The members that name an error, as one text."""
    word, text = value.get("error"), value.get("error_description")
    if not isinstance(word, str):
        return None
    return f"error={word[:200]}" + (f" ({text[:600]})" if isinstance(text, str) else "")


def _number(value: Any) -> float | None:
    """Some servers send numbers as texts."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def _unusable(status: int, body: bytes) -> str:
    value = _object(body)
    if value is None:
        return f"status {status} with {len(body)} bytes that are no JSON object"
    return f"status {status}: {_error(value) or 'an answer without the members it needs'}"


def read_begun(status: int, body: bytes) -> tuple[Begun, str]:
    """The codes for a person, and the device code. Raises `ProviderError`."""
    value = _object(body) if status == 200 else None
    if value is None or "error" in value:
        raise ProviderError(_unusable(status, body))
    device_code, user_code = value.get("device_code"), value.get("user_code")
    link = value.get("verification_uri", value.get("verification_url"))
    complete = value.get("verification_uri_complete")
    if not isinstance(device_code, str) or not device_code:
        raise ProviderError("the answer has no device_code")
    if not isinstance(user_code, str) or not user_code.strip() or not _fits(user_code):
        raise ProviderError("the answer has no user_code that could be shown")
    if not isinstance(link, str) or not may_be_shown(link):
        raise ProviderError("the answer has no verification_uri that could be opened")
    shown = isinstance(complete, str) and may_be_shown(complete)
    codes = Codes(
        user_code=user_code,
        verification_uri=link,
        verification_uri_complete=complete if shown else None,
    )
    begun = Begun(
        codes=codes,
        lifetime=_number(value.get("expires_in")),
        interval=_number(value.get("interval")),
    )
    return begun, device_code


def _fits(code: str) -> bool:
    return len(code) <= LONGEST_CODE and code.isprintable()


def read_token(status: int, body: bytes, now: float) -> tuple[Outcome, dict[str, Any] | None]:
    """The outcome of a poll; with ``Granted`` the answer itself. ``now`` is Unix time."""
    value = _object(body)
    word = None if value is None else value.get("error")
    if value is not None and isinstance(word, str):
        # The word decides: servers send it with 400, and also with 200, 401, 403, 428 and 429.
        if word == "authorization_pending":
            return Waiting(), None
        if word == "slow_down":
            return SlowDown(), None
        failure = _FAILURES.get(word, Failure.UPSTREAM_ERROR)
        return Refused(failure, f"status {status}: {_error(value)}"), None
    if status == 200 and value is not None:
        token = value.get("access_token")
        if isinstance(token, str) and token:
            seconds = _number(value.get("expires_in"))
            lasts = seconds is not None and 0 < seconds < 1e10
            return Granted(now + seconds if lasts and seconds is not None else None), value
    if status == 429 or status >= 500:
        return Unreachable(_unusable(status, body)), None
    return Refused(Failure.UPSTREAM_ERROR, _unusable(status, body)), None


def read_metadata(status: int, body: bytes, issuer: str) -> tuple[str, str]:
    """(device authorization endpoint, token endpoint). Raises `ProviderError`."""
    value = _object(body) if status == 200 else None
    if value is None:
        raise ProviderError(_unusable(status, body))
    # RFC 8414 §3.3: metadata of another issuer must not be used.
    told = value.get("issuer")
    if not isinstance(told, str) or told.rstrip("/") != issuer.rstrip("/"):
        raise ProviderError("the metadata are of another issuer")
    found = (value.get("device_authorization_endpoint"), value.get("token_endpoint"))
    device, token = found
    if not isinstance(device, str) or not isinstance(token, str):
        raise ProviderError("the metadata name no device authorization or no token endpoint")
    return device, token
