"""A certificate that no client would take is refused at the start, not at the first connection."""

from __future__ import annotations

import time
from collections.abc import Mapping

from acp_gateway.config import ConfigError, Settings


def refuse_bad_tls(
    settings: Settings, sources: Mapping[str, str], now: float | None = None
) -> None:
    """Raises `ConfigError` when the pair does not fit, or is not of now (Unix time)."""
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None or key is None:
        return
    from acp_gateway.transports import tls_check

    source = sources["tls_cert"]
    try:
        begin, end = tls_check.validity(cert, key)
    except tls_check.TlsProblem as problem:
        raise ConfigError(
            f"The TLS certificate {cert} and its key cannot be used: {problem.message}",
            remedy=f"Try: {problem.remedy}",
            source=source,
        ) from None
    now = time.time() if now is None else now
    if now > end:
        raise ConfigError(
            f"The TLS certificate {cert} expired on {_day(end)}.",
            remedy="Renew it.",
            source=source,
        )
    if now < begin:
        raise ConfigError(
            f"The TLS certificate {cert} is not valid before {_day(begin)}.",
            remedy="Wait for that day, or check the clock of this machine.",
            source=source,
        )


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))
