"""Where an outside issuer's keys come from: a file, or a URL that is fetched with a deadline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import trio

from acp_gateway.config import ConfigError, Settings

if TYPE_CHECKING:
    from acp_gateway.runtime.jwt_issuer import JwtIssuer

MOST_BYTES: Final = 1024 * 1024
_MISSING: Final = "Install it: pip install 'acp-gateway[jwt]'"


def issuer_of(settings: Settings) -> JwtIssuer:
    """The issuer that the settings name. Raises `ConfigError`: a library is missing, or the file of
    keys is not usable. A URL that does not answer is tried again later."""
    place = settings.jwt_jwks or ""
    try:
        from acp_gateway.runtime.jwt_issuer import JwtIssuer, keys_of
    except ImportError as error:
        raise ConfigError(
            "jwt_jwks needs a library that is not installed (pyjwt).", remedy=_MISSING
        ) from error
    if urlsplit(place).scheme in ("http", "https"):
        try:
            import httpx2  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "jwt_jwks needs a library that is not installed (httpx2).", remedy=_MISSING
            ) from error
        load = _Url(place).load
    else:
        file = _File(Path(place).expanduser().absolute())
        load = file.load
        try:
            keys_of(file.read())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The file of keys {file.path} cannot be used: {error}.",
                remedy="jwt_jwks is a JWK set with the issuer's public keys, or its URL.",
            ) from error
    return JwtIssuer(
        load,
        issuer=settings.jwt_issuer or "",
        audience=settings.jwt_audience or "",
        scope_claim=settings.jwt_scope_claim,
    )


class _File:
    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        return data

    async def load(self) -> bytes:
        return await trio.to_thread.run_sync(self.read, abandon_on_cancel=True)


class _Url:
    def __init__(self, url: str) -> None:
        self._url = url

    async def load(self) -> bytes:
        import httpx2

        # No redirect is followed: the keys come from where the operator said, or not at all.
        try:
            async with (
                httpx2.AsyncClient(timeout=5.0, follow_redirects=False) as client,
                client.stream("GET", self._url, headers={"accept": "application/json"}) as answer,
            ):
                if answer.status_code != 200:
                    raise ValueError(f"{self._url} answered with status {answer.status_code}")
                data = bytearray()
                async for part in answer.aiter_bytes():
                    data += part
                    if len(data) > MOST_BYTES:
                        raise ValueError(f"{self._url} sends more than {MOST_BYTES} bytes")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise OSError(f"{self._url}: {type(error).__name__}") from error
        return bytes(data)
