"""What a sign-in granted, on disk: mode 0600, the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, Final

from acp_gateway.core.secret import Secret
from acp_gateway.private_file import replace_file
from acp_gateway.runtime.sign_in_providers import Provider

_QWEN: Final = ("access_token", "refresh_token", "token_type", "resource_url")


def credentials_text(
    provider: Provider, answer: dict[str, Any], expires_at: float | None, token_endpoint: str
) -> Secret:
    """The content of the file. ``answer`` is the token endpoint's, ``expires_at`` Unix time."""
    kept: dict[str, Any]
    if provider.shape == "qwen":
        kept = {key: answer[key] for key in _QWEN if answer.get(key) is not None}
        if expires_at is not None:
            kept["expiry_date"] = round(expires_at * 1000)
    else:
        kept = {
            **answer,
            **({} if expires_at is None else {"expires_at": round(expires_at)}),
            "client_id": provider.client_id,
            "token_endpoint": token_endpoint,
        }
    return Secret(json.dumps(kept, indent=2) + "\n")


def write_credentials(path: Path, text: Secret, aborted: threading.Event) -> bool:
    """Put the file in place, for a thread; False when it was ``aborted`` before it was there.

    A link is followed once, before anything is written. Raises `OSError`.
    """
    target = Path(os.path.realpath(path))
    # Only a directory that is made here gets a mode; an existing one is its owner's affair.
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    data = text.reveal().encode("utf-8", "surrogatepass")
    return replace_file(target, data, lambda: not aborted.is_set())
