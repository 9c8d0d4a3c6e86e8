"""Named tokens: a private file of their hashes, which commands write and the daemon reads.

A token is 256 random bits behind a prefix that scanners and people recognise. The file keeps its
SHA-256: a slow hash protects a secret that can be guessed, and nobody guesses 256 bits; a fast one
lets every request be checked without being remembered. The file is JSON,
``{"v": 1, "tokens": [{id, name, scope, kind, sha256, created_at, expires_at}]}``, times in Unix
seconds. It is replaced whole, under a lock, with mode 0600.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs

from acp_gateway.config import ConfigError, state_directory
from acp_gateway.core.identity import WORDS, Identity, Kind, Scope
from acp_gateway.private_file import lock, replace_file
from acp_gateway.protocol.errors import ErrorKind, GatewayError

FORMAT: Final = 1
PREFIX: Final = "acpgw_"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MOST: Final = 1000
"""Tokens in one file; expired ones make room."""
MOST_BYTES: Final = 1024 * 1024
LOCK_TIMEOUT: Final = 5.0
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def token_digest(token: str) -> bytes:
    """What is kept of a token, and compared."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


@attrs.frozen(kw_only=True)
class NamedToken:
    """One token, without the token."""

    id: str
    name: str
    scope: Scope
    kind: Kind
    """`Kind.NAMED` or `Kind.PAIRED`."""
    sha256: bytes = attrs.field(repr=False)
    created_at: float
    expires_at: float | None = None

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    @property
    def identity(self) -> Identity:
        known = f"token:{self.id}"
        return Identity(
            kind=self.kind,
            token_id=known,
            name=self.name,
            scope=self.scope,
            party=known,
            expires_at=self.expires_at,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "scope": self.scope.word,
            "kind": self.kind.value,
            "sha256": self.sha256.hex(),
            "created_at": self.created_at,
            "expires_at": self.expires_at,
        }

    @classmethod
    def from_dict(cls, data: Any) -> NamedToken:
        """Raises KeyError, TypeError or ValueError for something else."""
        kind, expires = Kind(data["kind"]), data["expires_at"]
        token_id, name, hashed = data["id"], data["name"], bytes.fromhex(data["sha256"])
        if kind not in (Kind.NAMED, Kind.PAIRED) or len(hashed) != 32:
            raise ValueError("not a named token")
        if not NAME.fullmatch(name) or not NAME.fullmatch(token_id):
            raise ValueError("not a name")
        return cls(
            id=token_id,
            name=name,
            scope=WORDS[data["scope"]],
            kind=kind,
            sha256=hashed,
            created_at=float(data["created_at"]),
            expires_at=None if expires is None else float(expires),
        )


class TokenFileError(ConfigError):
    """The tokens file cannot be used as it is."""

    kind = "tokens_file_error"


def checked_name(name: object) -> str:
    """Raises ``invalid_token_name``."""
    if isinstance(name, str) and NAME.fullmatch(name):
        return name
    raise GatewayError(
        ErrorKind.INVALID_TOKEN_NAME,
        "The name of a token has 1 to 64 letters, digits, dots, dashes and underscores",
        remedy="begin it with a letter or a digit, for example phone or ci-2",
    )


def parse_expiry(text: str, now: float) -> float:
    """Unix time of ``30d``, ``12h``, ``90m``, ``45s``, ``2w`` from now, or of an ISO 8601 date or
    time (of this machine's zone where it names none). Raises `ConfigError`."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text.strip().lower())
    if match is not None:
        at = now + int(match[1]) * _UNITS[match[2]]
    else:
        try:
            at = datetime.fromisoformat(text.strip()).timestamp()
        except (ValueError, OverflowError, OSError):
            at = -1.0
    if not now < at < 1e11:
        raise ConfigError(
            f"{text!r} is no time to come.",
            remedy="Write a length such as 30d, 12h or 90m, or a date such as 2031-12-31.",
            source="--expires",
        )
    return at


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


Fingerprint = tuple[int, int, int] | None
"""Changes whenever the file does; None without a file."""


class TokenStore:
    """The file. Reads and writes it at each call; `MOST_BYTES` bounds what that costs."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = state_directory() / "tokens.json" if path is None else path

    def fingerprint(self) -> Fingerprint:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size

    @property
    def there(self) -> bool:
        """Has somebody made tokens here? Also when none of them is good any more: a gateway that
        was closed must not open because its last token has ended. Only to delete the file does."""
        return os.path.lexists(self.path)  # a link to nothing is not the absence of a wish

    def read(self) -> tuple[NamedToken, ...]:
        """All, the expired among them; none without a file. Raises `TokenFileError`."""
        try:
            with open(self.path, "rb") as file:
                self._check(os.fstat(file.fileno()))
                data = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise TokenFileError(
                f"The tokens file {self.path} cannot be read: {error.strerror or error}.",
                remedy="It must be a file that you may read.",
            ) from error
        try:
            content = json.loads(data)
            if content["v"] != FORMAT or len(data) > MOST_BYTES:
                raise ValueError
            return tuple(NamedToken.from_dict(each) for each in content["tokens"])
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
            # Without the text of the error: it may quote the file.
            raise TokenFileError(
                f"The tokens file {self.path} is damaged or of another version.",
                remedy="Move it away and create the tokens anew.",
            ) from None

    def _check(self, status: os.stat_result) -> None:
        problem = None
        if not stat.S_ISREG(status.st_mode):
            problem = "is not a regular file"
        elif status.st_uid not in (os.geteuid(), 0):
            problem = "belongs to another user"
        elif status.st_mode & 0o022:
            problem = "can be written by other users"
        if problem is not None:
            raise TokenFileError(
                f"The tokens file {self.path} {problem}.",
                remedy=f"Nobody else may add tokens: chmod 600 {self.path}",
            )

    def create(
        self,
        name: str,
        scope: Scope,
        *,
        expires_at: float | None = None,
        kind: Kind = Kind.NAMED,
        another_name: bool = False,
    ) -> tuple[str, NamedToken]:
        """A new token and what is kept of it. ``another_name``: a number is added to a taken name.

        Raises ``invalid_token_name``, ``token_name_taken``, `TokenFileError`.
        """
        checked_name(name)
        token = PREFIX + secrets.token_urlsafe(32)
        now = time.time()
        with self._locked():
            kept = [each for each in self.read() if not each.expired(now)]
            names = {each.name for each in kept}
            if another_name:
                name = _free(name, names)
            if name in names:
                raise GatewayError(
                    ErrorKind.TOKEN_NAME_TAKEN,
                    f'There is a token "{name}" already',
                    remedy=f"use another name, or revoke it: acp-gateway token revoke {name}",
                )
            if len(kept) >= MOST:
                raise TokenFileError(
                    f"There are {MOST} tokens already.", remedy="Revoke those that nobody uses."
                )
            made = NamedToken(
                id=secrets.token_hex(8),
                name=name,
                scope=scope,
                kind=kind,
                sha256=token_digest(token),
                created_at=now,
                expires_at=expires_at,
            )
            self._write([*kept, made])
        return token, made

    def revoke(self, name: str) -> NamedToken | None:
        """Take a token away; None when there is none of that name. Raises `TokenFileError`."""
        with self._locked():
            tokens = self.read()
            gone = next((each for each in tokens if each.name == name), None)
            if gone is not None:
                self._write([each for each in tokens if each.name != name])
        return gone

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.path.with_name(self.path.name + ".lock")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            if not lock(fd, LOCK_TIMEOUT):
                raise TokenFileError(
                    f"Another program has held the lock {path} for {LOCK_TIMEOUT:g} s.",
                    remedy="Try again, or end that program.",
                )
            yield
        finally:
            os.close(fd)

    def _write(self, tokens: list[NamedToken]) -> None:
        content = {"v": FORMAT, "tokens": [each.to_dict() for each in tokens]}
        try:
            replace_file(self.path, json.dumps(content, indent=1).encode())
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> TokenFileError:
        return TokenFileError(
            f"The tokens file {self.path} cannot be written: {error.strerror or error}.",
            remedy="Name a file of yours with --tokens-file.",
        )


def _free(name: str, taken: set[str]) -> str:
    number = 2
    made = name
    while made in taken:
        made = f"{name[:58]}-{number}"
        number += 1
    return made
