"""Settings: who wins, what is refused, and whether an error says where a value came from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from acp_gateway.config import (
    AgentSpec,
    ConfigError,
    LoadedSettings,
    Settings,
    did_you_mean,
    is_loopback,
)
from acp_gateway.config_load import load_settings
from acp_gateway.core.identity import Scope
from acp_gateway.token_store import TokenStore

Load = Callable[..., LoadedSettings]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """``load(file text, environment, **flags)`` in an empty home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path)

    def load(toml: str | None = None, env: dict[str, str] | None = None, **flags: Any) -> Any:
        path = None
        if toml is not None:
            path = tmp_path / "config.toml"
            path.write_text(toml)
        return load_settings(flags, config_file=path, environ=env or {})

    return load


def test_without_anything_the_defaults_hold(load: Load, tmp_path: Path) -> None:
    loaded = load()
    assert attrs.evolve(loaded.settings, workspace=()) == Settings()
    assert loaded.settings.workspace == (tmp_path.resolve(),)
    assert set(loaded.sources.values()) == {"default"}
    assert set(loaded.sources) == {field.name for field in attrs.fields(Settings)}
    assert loaded.config_file is None


def test_flag_beats_environment_beats_file_beats_default(load: Load, tmp_path: Path) -> None:
    toml = "port = 1\nmax_sessions = 1\nhost = 'localhost'\nlinger = 5\n"
    env = {"ACP_GATEWAY_PORT": "2", "ACP_GATEWAY_MAX_SESSIONS": "2", "PORT": "9"}
    loaded = load(toml, env, port=3)
    settings, sources = loaded.settings, loaded.sources
    assert (settings.port, sources["port"]) == (3, "flag --port")
    assert settings.max_sessions == 2
    assert sources["max_sessions"] == "environment ACP_GATEWAY_MAX_SESSIONS"
    assert (settings.linger, sources["linger"]) == (5.0, f"file {tmp_path / 'config.toml'}")
    assert isinstance(settings.linger, float)
    assert sources["cancel_timeout"] == "default"


def test_flags_that_were_not_given_change_nothing(load: Load) -> None:
    loaded = load("agent = ['qwen', 'goose']", agent=(), port=None)
    assert loaded.settings.agent == ("qwen", "goose")
    assert loaded.settings.port == 4170


def test_the_users_own_file_is_read(load: Load, tmp_path: Path) -> None:
    path = tmp_path / ".config" / "acp-gateway" / "config.toml"
    if sys.platform == "darwin":
        path = tmp_path / "Library" / "Application Support" / "acp-gateway" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("port = 7")
    loaded = load()
    assert (loaded.settings.port, loaded.config_file) == (7, path)


def test_a_file_in_the_workspace_is_not_read(load: Load, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("port = 7")
    (tmp_path / "acp-gateway.toml").write_text("port = 7")
    assert load_settings({}, environ={}).settings.port == 4170


def test_the_environment_may_name_the_file(load: Load, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("port = 8")
    env = {"ACP_GATEWAY_CONFIG": str(tmp_path / "other.toml")}
    assert load(None, env).settings.port == 8


def test_hyphens_in_keys_are_underscores(load: Load) -> None:
    assert load("max-sessions = 3").settings.max_sessions == 3


def test_lists_in_the_environment(load: Load) -> None:
    assert load(None, {"ACP_GATEWAY_AGENT": "node a.js, x"}).settings.agent == ("node a.js, x",)
    assert load(None, {"ACP_GATEWAY_AGENT": '["a", "b"]'}).settings.agent == ("a", "b")
    with pytest.raises(ConfigError, match="JSON array"):
        load(None, {"ACP_GATEWAY_AGENT": "[a"})


@pytest.mark.parametrize(
    ("word", "value"),
    [("true", True), ("YES", True), ("1", True), ("off", False), ("0", False), ("No", False)],
)
def test_words_for_truth(load: Load, word: str, value: bool) -> None:
    assert load(None, {"ACP_GATEWAY_STRICT_ACP": word}).settings.strict_acp is value


def test_relative_paths_start_where_they_were_written(load: Load, tmp_path: Path) -> None:
    (tmp_path / "conf" / "repo").mkdir(parents=True)
    (tmp_path / "repo").mkdir()
    (tmp_path / "conf" / "c.toml").write_text("workspace = 'repo'")
    from_file = load_settings({}, config_file=tmp_path / "conf" / "c.toml", environ={})
    assert from_file.settings.workspace == (tmp_path / "conf" / "repo",)
    assert load(workspace=("repo",)).settings.workspace == (tmp_path / "repo",)
    assert load(workspace=("~/repo",)).settings.workspace == (tmp_path / "repo",)


def test_workspaces_are_canonical_and_named_once(load: Load, tmp_path: Path) -> None:
    for name in ("real", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("real")
    loaded = load(workspace=("link", "real/../other"))
    assert loaded.settings.workspace == (tmp_path / "real", tmp_path / "other")
    with pytest.raises(ConfigError, match="named twice"):
        load(workspace=("link", str(tmp_path / "real")))


def test_unknown_keys_are_refused_with_a_suggestion(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load("max_sesions = 3")
    assert '"max_sesions"' in caught.value.message
    assert caught.value.remedy == 'Did you mean "max_sessions"?'
    assert str(caught.value.source).endswith("config.toml")


def test_unknown_variables_are_refused_with_a_suggestion(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {"ACP_GATEWAY_PROT": "3"})
    assert caught.value.remedy == 'Did you mean "ACP_GATEWAY_PORT"?'
    with pytest.raises(ConfigError, match="ACP_GATEWAY_zzz is not"):
        load(None, {"ACP_GATEWAY_zzz": "3"})


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("port = 'x'", '"port" must be a whole number, not "x"'),
        ("port = 1.5", "whole number"),
        ("port = true", "whole number"),
        ("port = [1]", "whole number"),
        ("port = -1", "0 or more"),
        ("port = 65536", "a port from 0 to 65535"),
        ("max_sessions = 0", "more than 0"),
        ("linger = -1", "more than 0"),
        ("linger = nan", "a number"),
        ("linger = inf", "a number"),
        ("max_agents = -1", "0 or more"),
        ("open = 2", "true or false"),
        ("open = 'maybe'", "true or false"),
        ("isolation = 'both'", "session or shared"),
        ("isolation = []", "session or shared"),
        ("host = ''", "not empty"),
        ("host = 5", "text"),
        ("agent = [1]", "text"),
        ("allow_origin = 'https://*.a'", "an origin"),
        ("allow_origin = 'https://a/path'", "an origin"),
    ],
)
def test_bad_values_are_refused_and_the_file_is_named(load: Load, toml: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(toml)
    assert says in caught.value.message
    assert str(caught.value.source).startswith("file ")
    assert caught.value.remedy


def test_an_error_names_the_variable_or_the_flag(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {"ACP_GATEWAY_PORT": "x"})
    assert caught.value.source == "environment ACP_GATEWAY_PORT"
    with pytest.raises(ConfigError) as caught:
        load(port=70000)
    assert caught.value.source == "flag --port"


def test_zero_is_allowed_where_it_means_something(load: Load) -> None:
    settings = load("port = 0\nmax_agents = 0\nspare_agents = 0").settings
    assert (settings.port, settings.max_agents, settings.spare_agents) == (0, 0, 0)


@pytest.mark.parametrize("toml", ["port =", "\x00", "[[agents]]", "agents = 3", "agents.x = 3"])
def test_files_that_cannot_be_used(load: Load, toml: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(toml)
    assert str(caught.value.source).startswith("file ")


def test_a_named_file_must_exist(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_settings({}, config_file=tmp_path / "no.toml", environ={})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings({}, config_file=tmp_path, environ={})


@pytest.mark.parametrize("name", ["missing", "file"])
def test_workspace_must_be_a_directory(load: Load, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="workspace") as caught:
        load(workspace=(name,))
    assert caught.value.source == "flag --workspace"


def test_tls_needs_both_files_and_reads_them(load: Load, tmp_path: Path) -> None:
    (tmp_path / "c.pem").touch()
    with pytest.raises(ConfigError, match="tls_cert is set but tls_key is not"):
        load(tls_cert="c.pem")
    with pytest.raises(ConfigError, match="tls_key is set but tls_cert is not"):
        load(tls_key="c.pem")
    with pytest.raises(ConfigError, match=r"tls_key .*k\.pem cannot be read"):
        load(tls_cert="c.pem", tls_key="k.pem")
    (tmp_path / "k.pem").touch()
    settings = load(tls_cert="c.pem", tls_key="k.pem").settings
    assert (settings.tls_cert, settings.tls_key) == (tmp_path / "c.pem", tmp_path / "k.pem")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "127.example.org"])
def test_listening_widely_needs_a_token(load: Load, host: str) -> None:
    with pytest.raises(ConfigError, match="without a token"):
        load(host=host)
    assert load(host=host, token="t").settings.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_needs_none(load: Load, host: str) -> None:
    assert is_loopback(host)
    assert load(host=host).settings.token is None


def test_require_auth_needs_a_token(load: Load) -> None:
    with pytest.raises(ConfigError, match="there is no token"):
        load(require_auth=True)
    assert load(require_auth=True, token="t").settings.token == "t"


def test_the_token_file_is_read(load: Load, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("  secret \nsecond line\n")
    loaded = load(token_file="t")
    assert loaded.settings.token == "secret"
    assert loaded.sources["token"] == f"token file {tmp_path / 't'}"
    assert "secret" not in repr(loaded)


@pytest.mark.parametrize("content", [b"", b"\nsecret\n", b"  \n", b"\xff\xfe\n"])
def test_token_files_that_hold_none(load: Load, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ConfigError, match="token file"):
        load(token_file="t")


def test_two_tokens_of_one_place_are_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("from-file")
    with pytest.raises(ConfigError, match="Both a token and a token file"):
        load(token="a", token_file="t")
    with pytest.raises(ConfigError, match="Both a token and a token file"):
        load("token = 'a'\ntoken_file = 't'")


def test_the_nearer_token_wins_over_the_other_kind(load: Load, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("from-file")
    loaded = load("token_file = 't'", {"ACP_GATEWAY_TOKEN": "from-env"})
    assert (loaded.settings.token, loaded.settings.token_file) == ("from-env", None)
    loaded = load(None, {"ACP_GATEWAY_TOKEN": "from-env"}, token_file="t")
    assert loaded.settings.token == "from-file"


@pytest.mark.parametrize("token", ["two words", "tab\t", "caf\u00e9", "line\n"])
def test_tokens_that_no_header_can_carry(load: Load, token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {"ACP_GATEWAY_TOKEN": token})
    assert token.strip() not in caught.value.message


def test_an_empty_token_is_not_no_token(load: Load) -> None:
    with pytest.raises(ConfigError, match="token"):
        load(None, {"ACP_GATEWAY_TOKEN": ""})


def test_agent_tables(load: Load, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    loaded = load(
        """
        agent = "mine"
        [agents.mine]
        command = "node '/opt/my agent.js' --acp"
        env = { KEY = "secret" }
        env-pass = ["FOO_*"]
        cwd = "dir"
        handshake_timeout = 3
        quirks = { ignores_eof = true }
        [agents.qwen]
        title = "Ours"
        """
    )
    assert loaded.agents["mine"] == AgentSpec(
        command=("node", "/opt/my agent.js", "--acp"),
        env={"KEY": "secret"},
        env_pass=("FOO_*",),
        cwd=tmp_path / "dir",
        handshake_timeout=3.0,
        quirks={"ignores_eof": True},
    )
    assert loaded.agents["qwen"].command is None
    assert "secret" not in repr(loaded)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("[agents.x]\ncomand = 'a'", '"comand" is not a setting of an agent'),
        ("[agents.x]\ncommand = ''", "empty"),
        ('[agents.x]\ncommand = "\'a"', "quote"),
        ("[agents.x]\ncommand = [1]", "text"),
        ("[agents.x]\nenv = 'A=1'", "a table"),
        ("[agents.x]\nenv = { A = 1 }", "text"),
        ("[agents.x]\ncwd = 'nowhere'", "does not exist"),
        ("[agents.x]\nhandshake_timeout = 0", "more than 0"),
        ("[agents.'a/b']\ncommand = 'a'", "does not describe an agent"),
    ],
)
def test_bad_agent_tables(load: Load, table: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(table)
    assert says in caught.value.message
    assert "config.toml" in str(caught.value.source)


def test_suggestions_are_near_or_absent() -> None:
    assert did_you_mean("hots", ["host", "port"]) == 'Did you mean "host"?'
    assert did_you_mean("xyzzy", ["host", "port"]) == ""


def test_config_imports_no_runtime_and_typed_settings_late() -> None:
    code = (
        "import sys, json, acp_gateway.config, acp_gateway.config_load;"
        "print(json.dumps([n for n in sys.modules if n.split('.')[0] in "
        "('trio','typed_settings','cattrs','quart','hypercorn') "
        "or n.startswith(('acp_gateway.wire','acp_gateway.runtime','acp_gateway.transports'))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert json.loads(done.stdout) == []


def test_a_named_token_is_a_token(load: Load, tmp_path: Path) -> None:
    """Enough to listen to others and for require_auth; also when it has ended, as tokens are asked
    for until the file is deleted."""
    file = tmp_path / "tokens.json"
    store = TokenStore(file)
    for asked in ({"host": "0.0.0.0"}, {"require_auth": True}):
        with pytest.raises(ConfigError, match="token"):
            load(tokens_file=str(file), **asked)
        store.create("old", Scope.ADMIN, expires_at=1.0)
        assert load(tokens_file=str(file), **asked).settings.token is None
        store.revoke("old")
        assert load(tokens_file=str(file), **asked).settings.token is None
        file.unlink()


def test_an_issuer_needs_all_that_names_it(load: Load) -> None:
    whole = {"jwt_jwks": "https://i.example/k", "jwt_issuer": "i", "jwt_audience": "a"}
    assert load(host="0.0.0.0", **whole).settings.jwt_scope_claim == "scope"
    for missing in whole:
        with pytest.raises(ConfigError, match=missing):
            load(**{name: value for name, value in whole.items() if name != missing})
    with pytest.raises(ConfigError, match="plain http"):
        load(**{**whole, "jwt_jwks": "http://i.example/k"})
    assert load(**{**whole, "jwt_jwks": "http://127.0.0.1:1/k"})
    with pytest.raises(ConfigError, match="absolute path"):
        load("jwt_jwks = 'keys.json'\njwt_issuer = 'i'\njwt_audience = 'a'")
