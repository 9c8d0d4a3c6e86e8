"""GET from a gateway with the standard library only."""

from __future__ import annotations

import json
from typing import Any


def get(url: str, *, token: str | None, timeout: float, own: bool = False) -> tuple[int, Any]:
    """Status and body (JSON decoded, else text). Raises OSError when nobody answers.

    Proxies of the environment are not used: they would catch the loopback. ``own`` says that the
    peer is known by its runtime file: then its certificate, which is for another name than
    127.0.0.1, is not checked.
    """
    import urllib.error
    import urllib.request

    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if url.startswith("https:") and own:
        import ssl

        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        handlers.append(urllib.request.HTTPSHandler(context=context))
    request = urllib.request.Request(url, headers={"Accept": "application/json"})
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as response:
            status, body = response.status, response.read(1 << 20)
    except urllib.error.HTTPError as error:
        with error:
            status, body = error.code, error.read(1 << 20)
    except (ValueError, OSError) as error:
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    try:
        return status, json.loads(body)
    except ValueError:
        return status, body.decode("utf-8", "replace").strip()
