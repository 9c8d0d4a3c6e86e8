"""What a browser is told about the pages that may read our answers (WHATWG Fetch, CORS protocol).

Only for origins that the guards let in. Never ``Allow-Credentials``: there are no cookies here, and
a page sends its token by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

Send = Callable[[dict[str, Any]], Awaitable[None]]

METHODS: Final = "GET, POST, PATCH, DELETE, OPTIONS"
REQUEST_HEADERS: Final = (
    "Authorization, Content-Type, X-Qwen-Client-Id, Last-Event-ID, X-Qwen-Event-Epoch, Accept, "
    "Acp-Connection-Id, Acp-Session-Id, Acp-Protocol-Version, Idempotency-Key"
)
RESPONSE_HEADERS: Final = (
    "Retry-After, X-Qwen-Event-Epoch, X-Qwen-SSE-Stream-Id, Acp-Connection-Id, Acp-Event-Epoch, "
    "X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset"
)
MAX_AGE: Final = "86400"

_VARY: Final = (b"vary", b"Origin")
_FIXED: Final = (
    (b"access-control-allow-methods", METHODS.encode()),
    (b"access-control-allow-headers", REQUEST_HEADERS.encode()),
    (b"access-control-max-age", MAX_AGE.encode()),
    (b"access-control-expose-headers", RESPONSE_HEADERS.encode()),
)


def with_cors(send: Send, origin: str | None) -> Send:
    """Let the page of ``origin`` read the answer; None: no page."""
    headers = [_VARY]
    if origin is not None:
        headers += [(b"access-control-allow-origin", origin.encode("latin-1")), *_FIXED]

    async def with_headers(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return with_headers
