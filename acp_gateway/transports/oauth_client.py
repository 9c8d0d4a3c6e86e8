"""Speaks HTTP to authorization servers: the one place where the daemon calls out.

Requests go only where `core.endpoint_rules` lets them; no redirect is followed, no cookie kept, and
of an answer only so much is read. httpx2 is imported with the first sign-in.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import secrets
import ssl
import time
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import trio

from acp_gateway import __version__
from acp_gateway.core.device_effects import Begun, Granted, Outcome, Refused
from acp_gateway.core.endpoint_rules import host_of, is_public, is_this_machine, problem_of
from acp_gateway.core.secret import Secret
from acp_gateway.runtime.credentials import credentials_text
from acp_gateway.runtime.device_flow import Grant, ProviderError, clean_detail
from acp_gateway.runtime.sign_in_providers import Provider
from acp_gateway.transports.oauth_answers import read_begun, read_metadata, read_token

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:device_code"
WELL_KNOWN: Final = ("oauth-authorization-server", "openid-configuration")
MOST_BYTES: Final = 256 * 1024
CONNECT_LIMIT: Final = 10.0
TOTAL_LIMIT: Final = 25.0
"""Below the machine's own limits, so that the log says what was slow."""
_HEADERS: Final = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": f"acp-gateway/{__version__}",
}


class OAuthClient:
    """`runtime.device_flow.ProviderCalls` over HTTP."""

    def __init__(self) -> None:
        self._tls: ssl.SSLContext | None = None

    # ---- the two calls of RFC 8628 --------------------------------------------------------------

    async def begin(self, provider: Provider) -> tuple[Begun, Grant]:
        device_endpoint, token_endpoint = await self._endpoints(provider)
        form = {"client_id": provider.client_id, **provider.parameters}
        if provider.scope is not None:
            form["scope"] = provider.scope
        verifier = None
        if provider.pkce:
            verifier = Secret(secrets.token_urlsafe(32))
            digest = hashlib.sha256(verifier.reveal().encode()).digest()
            form["code_challenge"] = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            form["code_challenge_method"] = "S256"
        status, body = await self._send(provider, device_endpoint, form)
        try:
            begun, device_code = read_begun(status, body)
        except ProviderError as exc:
            raise ProviderError(clean_detail(exc.detail, _secrets(provider, verifier))) from None
        return begun, Grant(
            device_code=Secret(device_code), verifier=verifier, token_endpoint=token_endpoint
        )

    async def poll(self, provider: Provider, grant: Grant) -> tuple[Outcome, Secret | None]:
        form = {
            "grant_type": GRANT_TYPE,
            "device_code": grant.device_code.reveal(),
            "client_id": provider.client_id,
        }
        if grant.verifier is not None:
            form["code_verifier"] = grant.verifier.reveal()
        status, body = await self._send(provider, grant.token_endpoint, form)
        outcome, answer = read_token(status, body, time.time())
        if isinstance(outcome, Granted) and answer is not None:
            return outcome, credentials_text(
                provider, answer, outcome.expires_at, grant.token_endpoint
            )
        if isinstance(outcome, Refused):
            # What a server says of an error may repeat what it was sent.
            said = clean_detail(outcome.detail, (*grant.secrets(), *_secrets(provider)))
            outcome = Refused(outcome.failure, said)
        return outcome, None

    # ---- where ----------------------------------------------------------------------------------

    async def _endpoints(self, provider: Provider) -> tuple[str, str]:
        device, token = provider.device_authorization_endpoint, provider.token_endpoint
        if device is not None and token is not None:
            return device, token
        issuer = provider.issuer
        assert issuer is not None
        parts = urlsplit(issuer)
        first, second = WELL_KNOWN
        path = parts.path.rstrip("/")
        # RFC 8414 puts it before the path, OpenID Connect behind it.
        places = (f"/.well-known/{first}{path}", f"{path}/.well-known/{second}")
        for place in places:
            url = urlunsplit((parts.scheme, parts.netloc, place, "", ""))
            status, body = await self._send(provider, url, None)
            if status != 404:
                break
        found = read_metadata(status, body, issuer)
        here = is_this_machine(issuer)
        for url in found:
            problem = problem_of(url, private=provider.allow_private, here=here)
            if problem is not None:
                raise ProviderError(f"an endpoint of the metadata {problem}")
        return device or found[0], token or found[1]

    async def _check_address(self, url: str, provider: Provider) -> None:
        """The name must not stand for an address of a private network.

        A name that changes its address between this look and the connection is met by the
        server's certificate: only https goes to other machines.
        """
        host = host_of(url)
        if provider.allow_private or is_this_machine(url):
            return
        try:
            found = await trio.socket.getaddrinfo(host, None)
        except OSError as exc:
            raise ProviderError(f"{host} has no address: {exc.strerror or exc}") from None
        for *_, address in found:
            if not is_public(str(address[0])):
                problem = f"{host} stands for an address of a private network"
                raise ProviderError(problem, final=True)

    # ---- how ------------------------------------------------------------------------------------

    async def _send(
        self, provider: Provider, url: str, form: dict[str, str] | None
    ) -> tuple[int, bytes]:
        """Status and body of a POST of ``form``, or of a GET. Raises `ProviderError`."""
        httpx2 = await trio.to_thread.run_sync(importlib.import_module, "httpx2")
        local = is_this_machine(url)
        if form is not None and provider.client_secret is not None:
            form = {**form, "client_secret": provider.client_secret.reveal()}
        try:
            with trio.fail_after(TOTAL_LIMIT):
                if self._tls is None:
                    self._tls = await trio.to_thread.run_sync(httpx2.create_ssl_context)
                if local or not _by_proxy(url):
                    await self._check_address(url, provider)
                async with httpx2.AsyncClient(
                    verify=self._tls,
                    headers=_HEADERS,
                    timeout=httpx2.Timeout(TOTAL_LIMIT, connect=CONNECT_LIMIT),
                    trust_env=not local,  # a proxy has no way to this machine
                    follow_redirects=False,
                ) as client:
                    return await _exchange(client, url, form)
        except trio.TooSlowError:
            raise ProviderError(f"{host_of(url)} took more than {TOTAL_LIMIT:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, ImportError, OSError, ValueError) as exc:
            raise ProviderError(f"{host_of(url)}: {type(exc).__name__}: {exc}") from None


def _secrets(provider: Provider, verifier: Secret | None = None) -> list[Secret]:
    return [each for each in (provider.client_secret, verifier) if each is not None]


async def _exchange(client: Any, url: str, form: dict[str, str] | None) -> tuple[int, bytes]:
    method = "GET" if form is None else "POST"
    body = bytearray()
    async with client.stream(method, url, data=form) as response:
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > MOST_BYTES:
                problem = f"{host_of(url)} sent more than {MOST_BYTES} bytes"
                raise ProviderError(problem, final=True)
        return response.status_code, bytes(body)


def _by_proxy(url: str) -> bool:
    """Does a proxy of the environment carry the request? Then it resolves the name."""
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    scheme = urlsplit(url).scheme
    return bool(proxies.get(scheme) or proxies.get("all")) and not proxy_bypass(host_of(url))
