"""Take secrets out of text that leaves the process (logs, error tails)."""

from __future__ import annotations

import re
from typing import Final

# Every repetition is bounded or anchored: the text is an agent's, of any length.
_PATTERNS: Final = (
    # key=value and "key": "value" of names that sound secret, also inside a JSON string
    re.compile(
        r"(?i)((?:api[_-]?key|token|secret|password|passwd|authorization)"
        r"\\?[\"']?\s*[:=]\s*\\?[\"']?(?:(?:bearer|basic)\s+)?)([^\s\"',;&\\]{4,})"
    ),
    re.compile(r"(?i)(--[\w-]{0,40}(?:key|token|secret|password)\s+)([^\s\"']{4,})"),
    re.compile(r"(?i)(bearer\s+)([\w.~+/=-]{8,})"),
    re.compile(r"(://[^/\s:@]*:)([^/\s@]+)(?=@)"),
    re.compile(r"()\b((?:sk|pk|gh[opsu]|github_pat|glpat|hf|npm|xox[abeprs])[-_][\w-]{10,})"),
    re.compile(r"()\b(AIza[\w-]{20,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"),
)


def redact(text: str) -> str:
    """``text`` with what looks like a credential replaced by ``[redacted]``."""
    for pattern in _PATTERNS:
        text = pattern.sub(r"\1[redacted]", text)
    return text
