"""What children may see: the daemon's own never, credentials where they are named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.environment_docs import tables

from acp_gateway.runtime.agent_profile import KNOWN_AGENTS
from acp_gateway.runtime.child_environment import (
    NEVER,
    USUAL,
    looks_secret,
    select,
    shell_environment,
)

ROOT = Path(__file__).resolve().parents[2]
PLANTED = (
    *("ACP_GATEWAY_TOKEN", "ACP_GATEWAY_TOKEN_FILE", "ACP_GATEWAY_PORT", "QWEN_SERVER_TOKEN"),
    *("QWEN_DAEMON_TOKEN", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"),
    *("QWEN_CODE_PRIVATE_ACP_CAPABILITY", "WATCHDOG_USEC"),
)
CREDENTIALS = (
    *("GITHUB_TOKEN", "GH_PAT", "NPM_TOKEN", "NODE_AUTH_TOKEN", "npm_config__auth", "PGPASSWORD"),
    *("DATABASE_PASSWORD", "MYSQL_PWD", "SENTRY_DSN", "SECRET_KEY_BASE", "XDG_SESSION_COOKIE"),
    *("UV_PUBLISH_TOKEN", "PIP_PASSWORD", "GIT_TOKEN", "VAULT_SECRET_ID", "STRIPE_KEY"),
    *("DOCKER_AUTH_CONFIG", "npm_config_//registry.example/:_authToken", "MY_PRIVATE_KEY_B64"),
)
HARMLESS = (
    *("PATH", "PWD", "OLDPWD", "KEYBOARD", "MONKEY", "SPIN", "COMPASS", "SSH_AUTH_SOCK", "GPG_TTY"),
    *("GIT_ASKPASS", "TOKENIZERS_PARALLELISM", "JAVA_HOME", "XAUTHORITY", "SSL_CERT_FILE"),
)


@pytest.mark.parametrize("name", [*PLANTED])
def test_nothing_passes_what_is_the_daemons_own(name: str) -> None:
    environ = {name: "planted"}
    assert not select(environ, ("*", name), (name, "*"))
    assert "planted" not in shell_environment(environ, (name,)).values()
    for profile in KNOWN_AGENTS.values():
        assert "planted" not in profile.environment(environ).values()


@pytest.mark.parametrize("name", CREDENTIALS)
def test_credentials_pass_only_where_they_are_named(name: str) -> None:
    environ = {name: "planted"}
    assert not select(environ, ("*", name)) and not select(environ, ("*",), ("*", "**"))
    assert select(environ, (), (name,)) == environ
    for profile in KNOWN_AGENTS.values():
        assert name not in profile.environment(environ)
    assert name not in shell_environment(environ)
    assert shell_environment(environ, (name,))[name] == "planted"


@pytest.mark.parametrize("name", HARMLESS)
def test_names_that_only_sound_alike_are_no_credentials(name: str) -> None:
    assert not looks_secret(name, "/some/value")


def test_a_url_with_a_password_is_a_credential_unless_it_is_a_proxy() -> None:
    environ = {"DATABASE_URL": "postgres://me:pw@db/x", "HTTPS_PROXY": "http://me:pw@proxy:3128"}
    assert set(select(environ, ("*",))) == {"HTTPS_PROXY"}


def test_a_shell_has_what_tools_need_and_no_keys_of_models() -> None:
    environ = {
        "PATH": "/bin",
        "HOME": "/h",
        "LC_ALL": "C",
        "SSH_AUTH_SOCK": "/s",
        "NVM_DIR": "/n",
        "VIRTUAL_ENV": "/v",
        "UV_CACHE_DIR": "/u",
        "OPENAI_API_KEY": "k",
        "OTHER": "o",
    }
    seen = shell_environment(environ, ("OTHER",))
    assert set(environ) - set(seen) == {"OPENAI_API_KEY"}
    assert seen["PAGER"] == "cat" and seen["TERM"] == "dumb"


def test_each_agent_gets_the_keys_of_its_provider_and_no_other() -> None:
    keys = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN")
    environ = dict.fromkeys(keys, "k")

    def seen(name: str) -> set[str]:
        return set(KNOWN_AGENTS[name].environment(environ)) & set(keys)

    assert seen("claude") == {"ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"}
    assert seen("gemini") == {"GEMINI_API_KEY"}
    assert seen("qwen") == seen("goose") == seen("opencode") == set(keys[:3])
    assert seen("demo") == set()


def test_the_tables_say_each_thing_once() -> None:
    patterns = [pattern for group in (*NEVER, *USUAL) for pattern in group.patterns]
    assert len(patterns) == len(set(patterns))
    assert all(group.reason for group in (*NEVER, *USUAL))


@pytest.mark.parametrize("table", tables())
def test_the_page_has_the_tables(table: str) -> None:
    page = (ROOT / "docs" / "agents-environment.md").read_text(encoding="utf-8")
    assert table in page, "put in what `python tests/support/environment_docs.py` prints"
