"""Do a certificate and a key fit, and until when? With the standard library only."""

from __future__ import annotations

import ssl
from pathlib import Path


class TlsProblem(Exception):
    """``kind`` is a stable word, ``message`` a sentence, ``remedy`` what to do."""

    def __init__(self, kind: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.remedy = remedy


def expiry(cert: Path, key: Path) -> float:
    """Unix time at which the certificate ends. Raises `TlsProblem` when the pair is unusable."""
    return validity(cert, key)[1]


def validity(cert: Path, key: Path) -> tuple[float, float]:
    """Unix times between which the certificate is good. Raises `TlsProblem`."""
    for path in (cert, key):
        try:
            path.read_bytes()
        except OSError as error:
            raise TlsProblem(
                "tls_unreadable", f"{path} cannot be read: {error.strerror}.", f"ls -l '{path}'"
            ) from error
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without the callable OpenSSL would ask for the passphrase on the terminal.
        server.load_cert_chain(cert, key, password=_no_passphrase)
    except _EncryptedKey as error:
        raise TlsProblem(
            "tls_key_encrypted",
            "The key needs a passphrase.",
            f"openssl pkey -in '{key}' -out '{key}.plain'",
        ) from error
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        if reason == "KEY_VALUES_MISMATCH":
            raise TlsProblem(
                "tls_pair_mismatch", "The key does not belong to the certificate.", "Find its key."
            ) from error
        raise TlsProblem(
            "tls_invalid", f"The files are not a certificate and a key: {reason}.", "Use PEM files."
        ) from error
    begin, end = _dates(server, cert)
    return ssl.cert_time_to_seconds(begin), ssl.cert_time_to_seconds(end)


class _EncryptedKey(Exception):
    pass


def _no_passphrase() -> str:
    raise _EncryptedKey


def _dates(server: ssl.SSLContext, cert: Path) -> tuple[str, str]:
    """Shake hands in memory: ssl decodes only a certificate that a peer sent and that it trusts.

    An expired one is never trusted, so the client's clock check is turned off.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cert)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    client_in, client_out = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(client_in, client_out)
    far = server.wrap_bio(client_out, client_in, server_side=True)
    for side in (near, far, near, far):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            raise TlsProblem(
                "tls_invalid", f"The certificate cannot be used: {error.reason}.", "Make a new one."
            ) from error
    found = near.getpeercert() or {}
    return str(found.get("notBefore")), str(found.get("notAfter"))


_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which ssl has no name for."""
