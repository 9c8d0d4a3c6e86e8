"""Where the server under test is and how to be let in."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import trio

SCHEMES = {"http": False, "ws": False, "https": True, "wss": True}


@dataclass(frozen=True)
class Target:
    """One ACP endpoint; ``path`` starts with a slash, ``token`` is the bearer token or None."""

    secure: bool
    host: str
    port: int
    path: str
    token: str | None = None
    origin: str | None = None
    """An origin that the server allows besides its own."""

    @classmethod
    def parse(cls, url: str, token: str | None = None) -> Target:
        """Accept http, https, ws and wss URLs; without a path ``/acp`` is meant.

        Raises ValueError with a sentence that says what is wrong.
        """
        if "//" not in url:
            url = f"http://{url}"
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise ValueError(f"{url!r}: use a http, https, ws or wss URL")
        if not parts.hostname:
            raise ValueError(f"{url!r}: the host is missing")
        secure = SCHEMES[parts.scheme]
        path = parts.path if parts.path not in ("", "/") else "/acp"
        return cls(secure, parts.hostname, parts.port or (443 if secure else 80), path, token)

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def http_base(self) -> str:
        """``scheme://host:port``; also the server's own Origin."""
        return f"http{'s' if self.secure else ''}://{self.authority}"

    @property
    def http_url(self) -> str:
        return self.http_base + self.path

    @property
    def ws_url(self) -> str:
        return f"ws{'s' if self.secure else ''}://{self.authority}{self.path}"

    @property
    def loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def auth_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def with_origin(self, origin: str | None) -> Target:
        return replace(self, origin=origin)

    def with_token(self, token: str | None) -> Target:
        return replace(self, token=token)

    async def connect(self) -> trio.abc.Stream:
        """A bare byte stream to the server (inside TLS for https)."""
        if self.secure:
            context = ssl.create_default_context()
            return await trio.open_ssl_over_tcp_stream(
                self.host, self.port, ssl_context=context, https_compatible=True
            )
        return await trio.open_tcp_stream(self.host, self.port)
