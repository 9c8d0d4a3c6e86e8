"""Requests to a gateway with the standard library only."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from acp_gateway.cli.base import say
from acp_gateway.config import unix_path

if TYPE_CHECKING:
    import http.client

    from acp_gateway.runtime.runtime_file import RuntimeInfo


def running(target: str | None) -> RuntimeInfo | None:
    """The gateway of this user that ``target`` means; None when there is none, which is said."""
    from acp_gateway.runtime.runtime_file import find

    info = find(target)
    if info is None and target:
        say(f"No gateway {target} is running.")
    elif info is None:
        say("No gateway is running. Start one with: acp-gateway serve")
    return info


def ask_own(
    info: RuntimeInfo, path: str, *, timeout: float, method: str = "GET", body: Any = None
) -> tuple[int, Any]:
    """`ask` a gateway of this user."""
    return ask(
        info.base, path, token=info.token, timeout=timeout, own=True, method=method, body=body
    )


def ask(
    base: str,
    path: str,
    *,
    token: str | None,
    timeout: float,
    own: bool = False,
    method: str = "GET",
    body: Any = None,
) -> tuple[int, Any]:
    """Status and body (JSON decoded, else text). Raises OSError when nobody answers.

    ``body`` is sent as JSON.

    ``base`` is ``http(s)://HOST:PORT`` or ``unix:PATH``. Proxies of the environment are not used:
    they would catch the loopback. ``own`` says that the peer is known by its runtime file: then its
    certificate, which is for another name than 127.0.0.1, is not checked.
    """
    import http.client
    from urllib.parse import urlsplit

    headers = {"Accept": "application/json"}
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    try:
        connection = _connection(base, timeout, own)
        try:
            target = "" if unix_path(base) is not None else urlsplit(base).path.rstrip("/")
            connection.request(method, target + path, body=data, headers=headers)
            with connection.getresponse() as response:
                status, answer = response.status, response.read(1 << 20)
        finally:
            connection.close()
    except (ValueError, http.client.HTTPException) as error:
        raise OSError(str(error) or type(error).__name__) from error
    try:
        return status, json.loads(answer)
    except ValueError:
        return status, answer.decode("utf-8", "replace").strip()


def _connection(base: str, timeout: float, own: bool) -> http.client.HTTPConnection:
    import http.client
    from urllib.parse import urlsplit

    socket_path = unix_path(base)
    if socket_path is not None:
        return _over_unix(socket_path, timeout)
    parts = urlsplit(base)
    if not parts.hostname or parts.scheme not in ("http", "https"):
        raise ValueError(f"{base} is not a URL of a gateway")
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    import ssl

    context = ssl.create_default_context()
    if own:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=context)


def _over_unix(path: str, timeout: float) -> http.client.HTTPConnection:
    import http.client
    import socket

    connection = http.client.HTTPConnection("localhost", timeout=timeout)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout)
    try:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
    except OSError:
        sock.close()
        raise
    connection.sock = sock
    return connection
