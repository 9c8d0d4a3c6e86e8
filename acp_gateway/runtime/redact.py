"""What may leave the process as text: no secret, no character that a terminal or a log obeys.

The one place for both. Whatever comes from outside (a client, an agent, an agent's stderr, an
error of a library) passes `redact` before it is written to stderr, a file, an error's text or an
event about the gateway itself, and `visible` before it is a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any, Final

REDACTED: Final = "[redacted]"

_NAME_PARTS: Final = (
    r"api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key|secret[_-]?key|account[_-]?key"
    r"|encryption[_-]?key|signing[_-]?key|token|secret|password|passwd|passphrase|pwd"
    r"|credentials?|(?:proxy-)?authorization|device[_-]?code|user[_-]?code"
    r"|code[_-]?verifier|session[_-]?key|acp-connection-id"
)
"""How the name of a secret ends, whatever stands before: ``refresh_token``, ``DB_PASSWORD``."""
_NAME: Final = f"(?:{_NAME_PARTS})"
_QUOTED_NAME: Final = f"(?:{_NAME_PARTS}|(?:set-)?cookie)"
_PLAIN: Final = (
    r"(?!(?:null|none|nil|true|false|undefined|required|missing|invalid|expired|empty|unset"
    r"|string|number|bool(?:ean)?|optional|str|int|any)(?![\w-])"
    r"|(?:(?:bearer|basic|digest|token|qqbot)\s{1,8})?\[redacted\])"
)
"""Words that say something about a secret and are none."""
_SCHEME: Final = r"(?:(?:bearer|basic|digest|token|qqbot)\s{1,8})?"
_DENSE: Final = r"(?=[\w.~+/=-]{0,128}?[\d_~+/=]|[\w.~+/=-]{24})"
"""No plain word follows: there is a digit in it, or it is long."""

_NAMES: Final = (
    *("key", "token", "secret", "pass", "pwd", "credential", "authoriz", "cookie"),
    *("_code", "-code", "ecode", "rcode", "verifier", "acp-connection-id"),
)
_LOOKS: Final = (
    *("sk-", "sk_", "rk-", "rk_", "pk-", "pk_", "gh", "github", "gl", "hf_", "hf-", "npm", "whsec"),
    *("shpat", "dop_v1", "xox", "xapp-", "pypi-", "ya29", "sg.", "aiza", "akia", "asia"),
    *("age-secret", "eyj"),
)


class _Rules:
    """Rules with the same hints. They are compiled when a text first has one of these: all of them
    take as long as a good part of the daemon's start."""

    def __init__(self, hints: tuple[str, ...], sources: Sequence[tuple[str, int]]) -> None:
        self.hints = hints
        self._sources = sources

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(pattern, flags) for pattern, flags in self._sources)


# Hints (in lower case: without one of them in the text the pattern is not tried), the pattern,
# flags. Rules that share their hints stand together.
# Every repetition is bounded, or of characters of which none can begin the pattern anew: the text
# is an agent's, of any length.
_RULES: Final = tuple(
    _Rules(hints, [(pattern, flags) for _, pattern, flags in rules])
    for hints, rules in groupby(
        (
            # A private key, its line ends as they are or escaped; a cut one to the end of the text.
            (
                ("-----begin",),
                r"(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)(?!\[redacted\])(.+?)"
                r"(?=-----END |\Z)",
                re.DOTALL,
            ),
            # "name": "the value, blanks and all", also as JSON within JSON
            (
                _NAMES,
                rf"({_QUOTED_NAME}\\{{0,7}}[\"']?\s{{0,8}}[:=]\s{{0,8}}\")({_PLAIN}"
                r"(?:[^\"\\\n]|\\[^\n]){1,8192})",
                re.I,
            ),
            (
                _NAMES,
                rf"({_QUOTED_NAME}\\{{1,7}}\"\s{{0,8}}[:=]\s{{0,8}}\\{{1,7}}\")({_PLAIN}[^\"\\\n]{{1,8192}})",
                re.I,
            ),
            (
                _NAMES,
                rf"({_NAME}\\{{0,7}}[\"']?\s{{0,8}}[:=]\s{{0,8}}')({_PLAIN}[^'\n]{{1,8192}})(?=')",
                re.I,
            ),
            # a cookie header, with all of its pairs
            (
                _NAMES,
                r"(\b(?:set-)?cookie\s{0,8}[:=]\s{0,8})(?!\[redacted\])"
                r"([^\s=;,\"']{1,256}=[^\r\n\"']{1,8192})",
                re.I,
            ),
            # name=value and name: value
            (
                _NAMES,
                rf"({_NAME}\\{{0,7}}[\"']?\s{{0,8}}[:=]\s{{0,8}}\\{{0,7}}[\"']?{_SCHEME})"
                rf"({_PLAIN}[^\s\"',;&\\]{{4,}})",
                re.I,
            ),
            (
                ("_key=", "_pat=", "_auth=", "_dsn="),
                rf"((?:_KEY|_PAT|_AUTH|_DSN)=[\"']?)({_PLAIN}[^\s\"'&;]{{8,}})",
                0,
            ),
            (
                ("--",),
                r"(--(?:[a-z0-9]{1,20}[-_]){0,3}(?:api-?)?(?:key|token|secret|password)\s{1,8}[\"']?)"
                rf"({_PLAIN}(?!-)[^\s\"']{{4,}})",
                re.I,
            ),
            (
                ("bearer", "qqbot"),
                rf"(\b(?:bearer|qqbot)\s{{1,8}}){_DENSE}([\w.~+/=-]{{8,}})",
                re.I,
            ),
            (("basic",), r"(\bbasic\s{1,8})([A-Za-z0-9+/]{6,}={1,2})", re.I),
            # scheme://user:password@
            (
                ("://",),
                r"(://[^/\s:@\"']{0,256}:)(?!\[redacted\]@)([^/\s?#\"']{1,1024})(?=@)",
                0,
            ),
            (
                ("sig", "x-amz-"),
                r"([?&](?:sig|x-amz-signature|x-amz-security-token)=)([^\s&\"']{8,})",
                re.I,
            ),
            # what is a secret by its look
            (
                _LOOKS,
                r"()(?<![A-Za-z0-9])((?:"
                r"(?:sk|rk|pk)[-_][\w-]{20,}"
                r"|(?:gh[oprsu]|github_pat|glpat|gldt|glrt|glcbt|glptt|glft|hf|npm|whsec|shpat|dop_v1)"
                r"[-_][\w-]{16,}"
                r"|xox[abeprs]-[\w-]{10,}|xapp-[\w-]{10,}|pypi-[\w-]{16,}|ya29\.[\w-]{16,}"
                r"|SG\.[\w-]{16,}\.[\w-]{16,}|AIza[\w-]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])"
                r"|AGE-SECRET-KEY-1[0-9A-Z]{20,}|eyJ[\w-]{10,2048}\.[\w-]{10,8192}\.[\w-]*"
                r"))",
                0,
            ),
            # a named token of this gateway (`token_store`), also as a part of something encoded
            (("acpgw_",), r"()(acpgw_[\w-]{16,})", 0),
            (("hooks.slack.com",), r"(hooks\.slack\.com/(?:services|workflows)/)([\w/-]{16,})", 0),
            ((":aa",), r"()(?<!\d)(\d{8,10}:AA[\w-]{33})", 0),
        ),
        lambda rule: rule[0],
    )
)
_REPLACEMENT: Final = rf"\1{REDACTED}"
_known: list[str] = []


def remember_secret(secret: str) -> None:
    """Take out this very text from now on, whatever it looks like. Short ones are not secrets."""
    if len(secret) >= 8 and secret not in _known:
        _known.append(secret)


def redact(text: str) -> str:
    """``text`` with what looks like a credential replaced by ``[redacted]``."""
    for secret in _known:
        if secret in text:
            text = text.replace(secret, REDACTED)
    lower = text.lower()
    for rules in _RULES:
        for hint in rules.hints:
            if hint in lower:
                for pattern in rules.patterns:
                    text = pattern.sub(_REPLACEMENT, text)
                break
    return text


def visible(text: str) -> str:
    """``text`` on one line: control, direction and other invisible characters as escapes.

    So a text cannot forge another line, move a terminal's cursor or turn round what is read.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return repr(char)[1:-1]


def cut(text: str, limit: int) -> str:
    """At most ``limit`` characters, and how many are missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit} more)"


_ANSI: Final = r"\x1b(?:\[[0-?]{0,32}[ -/]{0,4}[@-~]|\][^\x07\x1b]{0,256}(?:\x07|\x1b\\)?|[@-_])"


def without_colours(text: str) -> str:
    """``text`` without the escape sequences by which programs colour what they print."""
    return re.sub(_ANSI, "", text) if "\x1b" in text else text


def clean(text: str, limit: int = 1024) -> str:
    """An outside text for a line of a log or a terminal: cut, without secrets, visible."""
    # Cut last: half a secret looks like none. But not everything of a text of megabytes is read.
    if len(text) > 4 * limit + 4096:
        text = text[: 4 * limit + 4096]
    return visible(cut(redact(text), limit))


# ---- values ------------------------------------------------------------------------------------

_SECRET_KEY: Final = (
    rf"(?i)(?:^|[^a-z])(?:key|auth|pat)$|(?:{_QUOTED_NAME}|Key)$|^x-[\w-]*(?:key|auth)$"
    r"|^verification_?uri_?complete$"
)
_PAIRS: Final = frozenset({"env", "headers"})
"""Members whose values are secrets until known otherwise: an MCP server's, a request's."""
_HARMLESS: Final = frozenset(
    {
        *("content-type", "content-length", "accept", "host", "user-agent", "connection"),
        *("origin", "upgrade", "accept-encoding", "accept-language", "cache-control", "date"),
        *("transfer-encoding", "last-event-id", "acp-session-id", "acp-protocol-version"),
        *("traceparent", "tracestate", "vary", "retry-after", "allow", "x-accel-buffering"),
        *("x-qwen-client-id", "x-qwen-event-epoch", "x-qwen-sse-stream-id", "acp-event-epoch"),
        *("sec-websocket-version", "sec-fetch-site", "sec-fetch-mode", "content-encoding"),
    }
)
DEPTH: Final = 40


def redact_value(value: Any, text: Callable[[str], str] = redact, depth: int = 0) -> Any:
    """A JSON value with secrets taken out by the names of its members, and out of its texts.

    Every value of an ``env`` or ``headers`` member goes, in both forms that ACP has for them (an
    object, a list of ``{name, value}``), but of headers that say nothing.
    """
    if isinstance(value, str):
        return text(value)
    if depth > DEPTH:
        return "[too deep]"
    if isinstance(value, dict):
        return {
            text(key) if isinstance(key, str) else key: _member(key, item, text, depth)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            REDACTED
            if index and isinstance(item, str) and _is_secret_flag(value[index - 1])
            else redact_value(item, text, depth + 1)
            for index, item in enumerate(value)
        ]
    return value


def _is_secret_flag(word: Any) -> bool:
    """``--api-key`` as a word of a command: the next one is its value."""
    return isinstance(word, str) and word.startswith("-") and is_secret_name(word.lstrip("-"))


def _member(key: Any, value: Any, text: Callable[[str], str], depth: int) -> Any:
    if not isinstance(key, str):
        return redact_value(value, text, depth + 1)
    if key in _PAIRS:
        if isinstance(value, dict):
            return {name: redact_header(name, item) for name, item in value.items()}
        if isinstance(value, list):
            return [_pair(item, text, depth + 1) for item in value]
    if isinstance(value, str) and value and is_secret_name(key):
        return REDACTED
    return redact_value(value, text, depth + 1)


def _pair(item: Any, text: Callable[[str], str], depth: int) -> Any:
    if isinstance(item, dict) and isinstance(item.get("name"), str) and "value" in item:
        return {**item, "value": redact_header(item["name"], item["value"])}
    return redact_value(item, text, depth)


def redact_header(name: str, value: Any) -> Any:
    """A header's or variable's value; `REDACTED` unless its name is known to say nothing."""
    if isinstance(name, str) and name.lower() in _HARMLESS and isinstance(value, str):
        return redact(value)
    return REDACTED


@lru_cache(maxsize=1024)
def is_secret_name(name: str) -> bool:
    """Does a member of this name hold a secret, where it holds text?"""
    return len(name) <= 128 and re.search(_SECRET_KEY, name) is not None
