"""The servers that can be reached over TLS, with a certificate made for the run."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.peers import Gateway, NotInstalledError, Peer, Qwen


def certificate(folder: Path) -> tuple[Path, Path, ssl.SSLContext]:
    """A new certificate for 127.0.0.1, its key, and a context that trusts it.

    Raises `NotInstalledError` without the ``openssl`` program.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        raise NotInstalledError("no openssl; install it from your system's packages")
    cert, key = folder / "cert.pem", folder / "key.pem"
    argv = [openssl, "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    argv += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1"]
    argv += ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(argv, check=True, capture_output=True)
    return cert, key, ssl.create_default_context(cafile=str(cert))


class _Encrypted(Peer):
    """A variant of a server that takes ``--tls-cert`` and ``--tls-key``."""

    def __init__(self, home: Path, port: int) -> None:
        super().__init__(home, port)
        self._cert, self._key, self.tls = certificate(home)

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        argv, env = super().command()  # type: ignore[safe-super]
        return [*argv, "--tls-cert", str(self._cert), "--tls-key", str(self._key)], env


class EncryptedGateway(_Encrypted, Gateway):
    """The gateway over TLS."""


class EncryptedQwen(_Encrypted, Qwen):
    """``qwen serve`` over TLS."""


ENCRYPTED: Mapping[str, type[Peer]] = {"gateway": EncryptedGateway, "qwen": EncryptedQwen}
