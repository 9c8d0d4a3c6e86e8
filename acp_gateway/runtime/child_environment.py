"""What a child process may see of the daemon's environment: names, as data.

Rules, in this order: what is the daemon's own never passes; what looks like a credential passes
where a pattern of a child's ``keys`` names it (a bare ``*`` names nothing); anything else passes
where a pattern of ``keys`` or ``allow`` matches. docs/agents-environment.md is made of the tables
here.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple


class Group(NamedTuple):
    """Variables that are passed, or kept, for one reason. ``*`` matches any characters."""

    reason: str
    patterns: tuple[str, ...]


NEVER: Final = (
    Group(
        "settings and secrets of the gateway, and of clients that speak to it",
        ("ACP_GATEWAY_*", "QWEN_SERVER_TOKEN", "QWEN_DAEMON_TOKEN"),
    ),
    Group(
        # A qwen child that finds its parent's capability refuses initialize without it in _meta.
        "what a Qwen daemon shares with its own children",
        ("QWEN_CODE_EXTERNAL_TOOL_GUARD_TOKEN", "QWEN_CODE_PRIVATE_*"),
    ),
    Group(
        "file descriptors, sockets and directories that the service manager gave the daemon",
        (
            *("LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID", "NOTIFY_SOCKET"),
            *("CREDENTIALS_DIRECTORY", "WATCHDOG_PID", "WATCHDOG_USEC", "FDSTORE"),
            *("JOURNAL_STREAM", "INVOCATION_ID", "MEMORY_PRESSURE_*"),
        ),
    ),
    Group(
        "the channel of a Node.js program that started the daemon",
        ("NODE_CHANNEL_FD", "NODE_CHANNEL_SERIALIZATION_MODE", "NODE_UNIQUE_ID"),
    ),
)
"""No child sees these, whatever its profile says."""

USUAL: Final = (
    Group(
        "who and where",
        ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TZ", "TMPDIR", "TMP", "TEMP", "XDG_*"),
    ),
    Group("language", ("LANG", "LANGUAGE", "LC_*", "__CF_USER_TEXT_ENCODING")),
    Group(
        "terminal and editor",
        (
            *("TERM", "TERMINFO*", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "CLICOLOR*", "CI"),
            *("EDITOR", "VISUAL", "PAGER"),
        ),
    ),
    Group("desktop", ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "DBUS_SESSION_BUS_ADDRESS")),
    Group(
        "certificates",
        ("SSL_CERT_*", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE"),
    ),
    Group(
        # The agent signs in its user's name anyway: it reads the same home directory.
        "git and ssh, with the socket of the key agent",
        ("GIT_*", "SSH_AUTH_SOCK", "GPG_TTY"),
    ),
    Group(
        "node",
        ("NODE_*", "NPM_CONFIG_*", "npm_config_*", "NVM_*", "FNM_*", "VOLTA_*", "BUN_INSTALL"),
    ),
    Group(
        "python",
        ("PYTHON*", "VIRTUAL_ENV", "CONDA_*", "UV_*", "PIP_*", "PYENV_*", "POETRY_*"),
    ),
    Group(
        "other tools, which find their parts by such names",
        (
            *("*_HOME", "*PATH", "MAKEFLAGS", "CC", "CXX", "GOROOT", "HOMEBREW_*", "NIX_*"),
            *("ASDF_*", "MISE_*", "DOCKER_HOST", "DOCKER_CONTEXT"),
        ),
    ),
)
"""What every child of a known kind gets: never a credential."""

PROXIES: Final = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
)
"""They are named: their value may hold a password, and nothing gets out without them."""

MODELS: Final = (
    *("OPENAI_*", "ANTHROPIC_*", "GEMINI_*", "GOOGLE_*", "AZURE_*", "AWS_*", "DASHSCOPE_*"),
    *("OPENROUTER_*", "DEEPSEEK_*", "MISTRAL_*", "GROQ_*", "XAI_*", "OLLAMA_*", "DATABRICKS_*"),
    *("*_API_KEY", "*_BASE_URL"),
)
"""Keys and addresses of model providers, for agents that take any."""

USUAL_PATTERNS: Final = tuple(pattern for group in USUAL for pattern in group.patterns)
NEVER_PATTERNS: Final = tuple(pattern for group in NEVER for pattern in group.patterns)

_CREDENTIAL_NAME: Final = re.compile(
    r"(?i)(?:^|[_.:/-])_*(?:api|access|secret|private|auth|o)?"
    r"(?:tokens?|secrets?|passwords?|passwd|passphrase|pass|keys?|credentials?|creds?"
    r"|cookies?|auth|auth_config|pat|pin|dsn)(?:[_-]?(?:id|value|base64|b64|hash|\d+))?$"
    r"|(?:token|secret|password|passwd|apikey|api_key|private_key|credential)s?(?![a-z])"
    r"|_pwd$|_headers$"
)
"""Names that end in a word for a credential, or hold one that is nothing else. Headers that a
program adds to its requests are there to say who asks."""
_CREDENTIAL_VALUE: Final = re.compile(
    r"://[^/\s:@]*:[^/\s@]+@|(?i:https?)://[^/\s@]+@"
    r"|(?i:authorization|token|api-?key)\s{0,8}[:=]\s{0,8}[^\s,;]{4}"
    r"|(?i:\bbearer)\s{1,8}\S{8}"
    r"|(?i:\bbasic)\s{1,8}(?=[a-z+/]{0,64}[A-Z0-9=])[A-Za-z0-9+/]{6}"
)
"""A URL with a password, or of HTTP with a name, which is a token there (of SSH it is a user); a
header or an option that says who asks."""
_GIT_KEY: Final = re.compile(r"GIT_CONFIG_KEY_[0-9]+")
"""Key of a setting of git, not a key."""


def looks_secret(name: str, value: str = "") -> bool:
    """Does this variable hold a credential, as far as one can see?"""
    named = _CREDENTIAL_NAME.search(name) is not None and _GIT_KEY.fullmatch(name) is None
    return named or _CREDENTIAL_VALUE.search(value[:8192]) is not None


def select(
    environ: Mapping[str, str], allow: Iterable[str], keys: Iterable[str] = ()
) -> dict[str, str]:
    """The variables of ``environ`` that pass; see the module."""
    never = _matcher(NEVER_PATTERNS)
    allowed = _matcher(tuple(allow))
    named = _matcher((*(each for each in keys if each.strip("*")), *PROXIES))
    chosen = {}
    for name, value in environ.items():
        if never(name):
            continue
        if named(name) or (allowed(name) and not looks_secret(name, value)):
            chosen[name] = value
    return _with_whole_git_settings(chosen, named)


def _with_whole_git_settings(chosen: dict[str, str], named: _Matches) -> dict[str, str]:
    """``GIT_CONFIG_{COUNT,KEY_n,VALUE_n}``: git ends where the key or the value of a number is
    missing, so what passes is numbered anew. Headers are left out as those of others are."""
    count = chosen.get("GIT_CONFIG_COUNT", "")
    if not re.fullmatch(r"[0-9]{1,3}", count):
        return chosen
    whole = []
    for number in range(int(count)):
        key = chosen.pop(f"GIT_CONFIG_KEY_{number}", None)
        value = chosen.pop(f"GIT_CONFIG_VALUE_{number}", None)
        if key is None or value is None:
            continue
        if named(f"GIT_CONFIG_VALUE_{number}") or not key.lower().endswith(".extraheader"):
            whole.append((key, value))
    chosen["GIT_CONFIG_COUNT"] = str(len(whole))
    for number, (key, value) in enumerate(whole):
        chosen[f"GIT_CONFIG_KEY_{number}"] = key
        chosen[f"GIT_CONFIG_VALUE_{number}"] = value
    return chosen


def shell_environment(environ: Mapping[str, str], passed: Iterable[str] = ()) -> dict[str, str]:
    """For a command of a user: what every child gets, and the names that the settings pass.

    No keys of models: what the command prints goes to every client and into a history.
    """
    passed = tuple(passed)
    chosen = select(environ, (*USUAL_PATTERNS, *passed), passed)
    # Nobody can answer a pager or a prompt.
    silent = {"PAGER": "cat", "GIT_PAGER": "cat", "GIT_TERMINAL_PROMPT": "0"}
    return {"TERM": "dumb", **chosen, **silent}


def own_helpers(environ: Mapping[str, str]) -> dict[str, str]:
    """For a helper process of the gateway itself."""
    return select(environ, ("PATH", "HOME", "LANG", "LC_*", "*PATH", "TMPDIR"))


@lru_cache(maxsize=64)
def _matcher(patterns: tuple[str, ...]) -> _Matches:
    return _Matches(patterns)


class _Matches:
    def __init__(self, patterns: tuple[str, ...]) -> None:
        # Together they are one expression; none matches nothing.
        each = "|".join(fnmatch.translate(pattern) for pattern in patterns)
        self._match = re.compile(each or r"(?!)").match

    def __call__(self, name: str) -> bool:
        return self._match(name) is not None
