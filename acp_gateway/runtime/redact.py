"""Take secrets out of text that leaves the process (logs, error tails)."""

from __future__ import annotations

import re
from typing import Final

_PATTERNS: Final = (
    # key=value and "key": "value" of names that sound secret
    re.compile(
        r"(?i)((?:[\w-]*(?:api[_-]?key|token|secret|password|passwd|authorization))"
        r"[\"']?\s*[:=]\s*[\"']?(?:bearer\s+)?)([^\s\"',;&]{4,})"
    ),
    re.compile(r"(?i)(bearer\s+)([\w.~+/=-]{8,})"),
    re.compile(r"()\b((?:sk|pk|ghp|gho|xox[abp])[-_][\w-]{10,})"),
    re.compile(r"()\b(AIza[\w-]{20,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"),
)


def redact(text: str) -> str:
    """``text`` with what looks like a credential replaced by ``[redacted]``."""
    for pattern in _PATTERNS:
        text = pattern.sub(r"\1[redacted]", text)
    return text
