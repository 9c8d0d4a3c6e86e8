"""The daemon's TLS certificate: in use, renewed while connections live on, told of before it ends.

A renewed pair makes a new context for connections that come from then on; those that are there keep
what they negotiated. A pair that does not load replaces nothing.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from acp_gateway.config import ConfigError, PortError, Settings
from acp_gateway.transports.sockets import tls_context
from acp_gateway.transports.tls_check import TlsProblem, expiry

log = structlog.get_logger("acp_gateway.tls")

WARN_BEFORE: Final = 21 * 86400.0
"""Seconds before its end from which on a certificate is an issue: renewals come 30 days ahead."""


class Certificates:
    def __init__(self, cert: Path, key: Path) -> None:
        """Raises `PortError` for a pair that cannot be used."""
        self.context: ssl.SSLContext
        self.not_after: float | None
        """Unix time; None when the certificate does not tell it."""
        self._digest = b""
        self._load(cert, key)()

    def prepare(self, settings: Settings) -> Callable[[], bool]:
        """Load the pair of new settings; what this gives puts it to use, and says whether it is
        another one. Raises `ConfigError`; the pair in use stays.
        """
        cert, key = settings.tls_cert, settings.tls_key
        if cert is None or key is None:
            return lambda: False  # TLS itself is switched by a restart
        try:
            return self._load(cert, key)
        except PortError as exc:
            raise ConfigError(exc.message, remedy=exc.remedy, source=f"tls_cert {cert}") from None

    def _load(self, cert: Path, key: Path) -> Callable[[], bool]:
        context = tls_context(cert, key)
        try:
            not_after: float | None = expiry(cert, key)
        except TlsProblem:
            not_after = None
        digest = hashlib.sha256(cert.read_bytes()).digest()

        def use() -> bool:
            changed = digest != self._digest
            if changed:
                self.context, self.not_after, self._digest = context, not_after, digest
            return changed

        return use

    def issue(self, now: float | None = None) -> tuple[str, str] | None:
        """(code, sentence) when the certificate has ended or soon will."""
        if self.not_after is None:
            return None
        left = self.not_after - (time.time() if now is None else now)
        if left <= 0:
            return "tls_certificate_expired", "The TLS certificate has expired: renew and reload"
        if left < WARN_BEFORE:
            return (
                "tls_certificate_expires",
                f"The TLS certificate ends in {left / 86400:.1f} days: renew and reload",
            )
        return None
