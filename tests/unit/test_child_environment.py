"""What children may see: the daemon's own never, credentials where they are named."""

from __future__ import annotations

import os
import subprocess
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


VALUES = {
    "GIT_CONFIG_PARAMETERS": "'http.https://h/.extraheader=AUTHORIZATION: basic dXNlcjpodW50ZXIy'",
    "GIT_HTTP_USER_AGENT": "x Basic dXNlcjpodW50ZXIy",
    "PIP_EXTRA_INDEX_URL": "https://s3cr3t-t0ken@host.example/simple",
    "PIP_INDEX_URL": "HTTPS://s3cr3t-t0ken:@host.example/simple",
    "UV_INDEX": "git+https://s3cr3t@host.example/x",
    "OTEL_EXPORTER_OTLP_HEADERS": "x-honeycomb-team=s3cr3t",
    "OTEL_RESOURCE_ATTRIBUTES": "authorization=Bearer%20s3cr3t",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "authorization=Bearer s3cr3t-t0ken",
    "NODE_OPTIONS": "--require x --token=s3cr3t-t0ken",
    "NODE_NOTE": "PRIVATE-TOKEN: s3cr3t-t0ken",
    "npm_config_note": "bearer s3cr3t-t0ken",
    "POETRY_NOTE": "apikey: s3cr3t-t0ken",
}


@pytest.mark.parametrize("name", VALUES)
def test_a_credential_under_a_harmless_name(name: str) -> None:
    environ = {name: VALUES[name]}
    assert not select(environ, ("*", name)) and not shell_environment(environ).keys() & {name}
    for profile in KNOWN_AGENTS.values():
        assert name not in profile.environment(environ)
    assert select(environ, (), (name,)) == environ, "where it is named"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DOCKER_HOST", "ssh://me@build.example"),
        ("PIP_INDEX_URL", "https://host.example/simple"),
        ("PIP_INDEX_URL", "https://host.example/@scope/simple"),
        ("GIT_SSH_COMMAND", "ssh -i ~/.ssh/id me@host"),
        ("NODE_OPTIONS", "--max-http-header-size=16384 --max-old-space-size=4096"),
        ("XDG_NOTE", "basic settings, a bearer of news"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
        ("GIT_AUTHOR_EMAIL", "me@host.example"),
        ("GIT_CONFIG_KEY_0", "safe.directory"),
    ],
)
def test_values_that_only_look_alike(name: str, value: str) -> None:
    assert not looks_secret(name, value)


def test_proxies_pass_with_their_credentials() -> None:
    environ = {"HTTP_PROXY": "http://user:pw@host:1", "https_proxy": "http://t0ken@host:1"}
    for profile in KNOWN_AGENTS.values():
        assert environ.items() <= profile.environment(environ).items()
    assert environ.items() <= shell_environment(environ).items()


def test_what_is_left_of_gits_settings_is_whole(tmp_path: Path) -> None:
    """git refuses to do anything when one of the numbers has no key or no value."""
    pairs = [
        ("user.name", "Ann"),
        ("http.extraHeader", "AUTHORIZATION: basic dXNlcjpodW50ZXIy"),
        ("url.https://s3cr3t@host.example/.insteadOf", "https://host.example/"),
        ("http.https://host.example/.extraheader", "X-Anything: s3cr3t"),
        ("safe.directory", "*"),
    ]
    environ = {"GIT_CONFIG_COUNT": str(len(pairs)), "PATH": os.environ["PATH"]}
    for number, (key, value) in enumerate(pairs):
        environ |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    seen = shell_environment(environ) | {"HOME": str(tmp_path)}
    assert "s3cr3t" not in str(seen) and "dXNlc" not in str(seen)
    command = ["git", "config", "--list", "--name-only"]
    done = subprocess.run(command, env=seen, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["user.name", "safe.directory"]
    named = shell_environment(environ, ("GIT_CONFIG_*",))
    assert environ.items() <= named.items()


@pytest.mark.parametrize("count", ["", "x", "-1", "9999999999", "٣", "2"])
def test_odd_counts_of_gits_settings(count: str) -> None:
    environ = {"GIT_CONFIG_COUNT": count, "GIT_CONFIG_KEY_0": "a.b"}
    seen = select(environ, ("GIT_*",))
    assert seen == (environ if count != "2" else {"GIT_CONFIG_COUNT": "0"})


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
