"""The commands: what they import, print and exit with."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import Cli, make_info

from acp_gateway import __version__
from acp_gateway.cli import base
from acp_gateway.cli.app import group
from acp_gateway.cli.connect import endpoint
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime import runtime_file

SLOW = ("quart", "quart_trio", "hypercorn", "trio", "trio_websocket", "typed_settings", "cattrs")


def assert_not_imported(code: str, modules: tuple[str, ...]) -> None:
    """In a process of its own, ``code`` leaves these out."""
    code += (
        f"\nimport sys\nfound = sorted(set({modules!r}) & set(sys.modules))\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "argv", [["--help"], ["serve", "--help"], ["--version"], ["list"], ["logs", "--help"]]
)
def test_quick_commands_import_nothing_slow(argv: list[str]) -> None:
    assert_not_imported(f"from acp_gateway.cli.app import run\nassert run({argv!r}) == 0", SLOW)


def test_the_port_opens_before_the_slow_libraries_are_imported() -> None:
    slow = ("quart", "quart_trio", "werkzeug", "hypercorn", "trio_websocket", "jsonrpcserver")
    assert_not_imported("import acp_gateway.cli.serve, acp_gateway.daemon", slow)


def test_an_optional_library_is_left_out_for_a_while() -> None:
    name = "this_is_no_module"
    with base.without(name), pytest.raises(ImportError):
        importlib.import_module(name)
    assert name not in sys.modules
    with base.without("json"):
        assert importlib.import_module("json") is json


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "acp_gateway", "--version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.strip() == __version__


def test_completion_works() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "acp_gateway"],
        env={
            **os.environ,
            "_ACP_GATEWAY_COMPLETE": "bash_complete",
            "COMP_WORDS": "acp-gateway serve --agent g",
            "COMP_CWORD": "3",
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert [line.split(",")[1] for line in done.stdout.split()] == ["goose", "gemini"]


def test_every_command_has_help_and_debug() -> None:
    def check(command: click.Command) -> None:
        assert command.help, command.name
        if isinstance(command, click.Group):
            for child in command.commands.values():
                check(child)
        else:
            assert any("--debug" in param.opts for param in command.params), command.name

    check(group)


def fake_daemon(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    module = types.ModuleType("acp_gateway.daemon")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "acp_gateway.daemon", module)


def test_serve_hands_settings_and_agents_to_the_daemon(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    got: list[Any] = []

    def run(loaded: Any, profiles: Any, reread: Any) -> int:
        got.extend([loaded, profiles])
        return 4

    fake_daemon(monkeypatch, run)
    (home / "token").write_text("s3cret\n")
    done = cli(
        *("serve", "--port", "0", "--agent", "demo", "--agent", "x=sh -c 'exit 1'"),
        *("--workspace", ".", "--isolation", "shared", "--max-sessions", "7", "--strict-acp"),
        *("--token-file", "token", "--require-auth", "--trust-loopback", "--no-open"),
        *("--permission-timeout", "1.5", "--max-queued-prompts", "2", "--event-ring-size", "9"),
        *("--log-format", "json"),
    )
    assert done.status == 4
    loaded, profiles = got
    settings = loaded.settings
    assert (settings.port, settings.isolation, settings.max_sessions) == (0, "shared", 7)
    assert (settings.token, settings.permission_timeout, settings.open) == ("s3cret", 1.5, False)
    assert loaded.sources["open"] == "flag --open"
    assert loaded.sources["host"] == "default"
    assert settings.workspace == (home,)
    assert list(profiles) == ["demo", "x"]
    assert profiles["x"].argv[1:] == ("-c", "exit 1")


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        (["nonsense"], 2, "No such command"),
        (["serve", "--port", "x"], 2, "--port"),
        (["serve", "--port", "65536"], 2, "65535"),
        (["serve", "--max-sessions", "0"], 2, "--max-sessions"),
        (["serve", "--prot", "1"], 2, "--port"),
        (["serve", "--host", "0.0.0.0"], 3, "from: flag --host"),
        (["serve", "--workspace", "nowhere"], 3, "from: flag --workspace"),
        (["serve", "--require-auth"], 3, "try:  Add --token-file"),
        (["serve", "--config", "nowhere.toml"], 3, "does not exist"),
        (["serve", "--agent", "demo", "--agent", "demo"], 3, "Two agents"),
        (["serve", "--agent", "no-such-program"], 5, "from: flag --agent"),
        (["connect"], 3, "acp-gateway serve"),
        (["connect", "ftp://x"], 2, "ws://127.0.0.1:4170/acp"),
        (["connect", "--spawn", "ws://x"], 2, "not both"),
        (["stop"], 1, "No gateway"),
        (["stop", "1"], 1, "No gateway 1"),
        (["status"], 1, "No gateway is running"),
    ],
)
def test_exit_status_and_what_it_says(cli: Cli, argv: list[str], status: int, says: str) -> None:
    done = cli(*argv)
    assert done.status == status
    assert says in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_a_setting_from_the_environment_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACP_GATEWAY_AGENT", "no-such-program")
    assert "from: environment ACP_GATEWAY_AGENT" in cli("serve").err


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (GatewayError(ErrorKind.AGENT_START_FAILED, "no agent", remedy="fix it"), 5, "fix it"),
        (GatewayError(ErrorKind.SHUTTING_DOWN, "busy"), 1, "busy"),
        (ValueError("oops\nmore"), 1, "Internal error: ValueError: oops\n"),
    ],
)
def test_errors_of_the_daemon(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, says: str
) -> None:
    def run(*_: Any) -> int:
        raise error

    fake_daemon(monkeypatch, run)
    done = cli("serve", "--agent", "demo")
    assert done.status == status
    assert says in done.err
    assert "Traceback" not in done.err
    for argv in (["--debug", "serve"], ["serve", "--debug"]):
        assert "Traceback" in cli(*argv, "--agent", "demo").err
    assert "Traceback" not in cli("serve", "--agent", "demo").err


def test_an_interrupt_is_no_bug(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> int:
        raise KeyboardInterrupt

    fake_daemon(monkeypatch, run)
    assert cli("serve", "--agent", "demo").status == 130


def test_config_show_masks_secrets(cli: Cli, home: Path) -> None:
    (home / "c.toml").write_text(
        'token = "s3cret"\nport = 0\n[agents.mine]\ncommand = "a b"\nenv = { KEY = "s3cret" }\n'
    )
    done = cli("config", "show", "--config", "c.toml", "--linger", "1")
    assert done.status == 2  # --linger is a setting of the file only
    done = cli("config", "show", "--config", "c.toml", "--max-sessions", "3")
    assert "s3cret" not in done.out
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in done.out.splitlines()[3:]}
    assert rows["token"] == ["***", f"file {home / 'c.toml'}"]
    assert rows["max_sessions"] == ["3", "flag --max-sessions"]
    assert rows["host"] == ["127.0.0.1", "default"]
    done = cli("config", "show", "--json", "--config", "c.toml")
    assert "s3cret" not in done.out
    shown = done.json()
    assert shown["config_file"] == str(home / "c.toml")
    assert shown["settings"]["port"] == {"value": 0, "source": f"file {home / 'c.toml'}"}
    assert shown["settings"]["workspace"]["value"] == [str(home)]
    assert shown["agents"]["mine"]["command"] == ["a", "b"]
    assert shown["agents"]["mine"]["env"] == {"KEY": "***"}


@pytest.mark.parametrize("editor", ["zed", "jetbrains"])
def test_editor_snippets_are_json(cli: Cli, editor: str) -> None:
    done = cli("editor", editor)
    server = done.json()["agent_servers"]["ACP Gateway"]
    assert server["args"][-2:] == ["connect", "--spawn"]
    assert os.path.isabs(server["command"])
    assert os.access(server["command"], os.X_OK)
    assert server.get("type") == ("custom" if editor == "zed" else None)
    assert editor in done.err.lower()
    url = "ws://127.0.0.1:4170/acp"
    server = cli("editor", editor, url, "--token", "t", "--name", "N").json()["agent_servers"]["N"]
    assert server["args"][-2:] == ["connect", url]
    assert server["env"]["ACP_GATEWAY_TOKEN"] == "t"


def test_the_snippets_command_starts_this_program(cli: Cli, home: Path) -> None:
    """In a project that has a package of the same name, which must not be imported."""
    (home / "acp_gateway").mkdir()
    (home / "acp_gateway" / "__init__.py").write_text("raise SystemExit('hijacked')")
    server = cli("editor", "zed").json()["agent_servers"]["ACP Gateway"]
    argv = [server["command"], *server["args"][: server["args"].index("connect")], "--version"]
    done = subprocess.run(
        argv,
        env={"PATH": os.environ["PATH"], **server["env"]},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.strip() == __version__


def test_agents_tells_what_is_installed(cli: Cli, no_agents: Path) -> None:
    goose = no_agents / "goose"
    goose.write_text("#!/bin/sh\necho ' goose 1.2.3'\n")
    goose.chmod(0o755)
    package = no_agents / "lib"
    package.mkdir()
    (package / "package.json").write_text('{"name": "q", "version": "9.8.7"}')
    (package / "cli.js").write_text("#!/bin/sh\nexit 1\n")
    (package / "cli.js").chmod(0o755)
    (no_agents / "qwen").symlink_to("lib/cli.js")
    done = cli("agents", "--json")
    assert done.status == 0
    rows = {row["name"]: row for row in done.json()["agents"]}
    assert (rows["goose"]["version"], rows["goose"]["path"]) == ("1.2.3", str(goose))
    assert (rows["qwen"]["version"], rows["qwen"]["installed"]) == ("9.8.7", True)
    assert (rows["demo"]["version"], rows["demo"]["installed"]) == (__version__, True)
    assert rows["codex"]["path"] is None
    assert rows["codex"]["version"] is None
    assert rows["codex"]["install"].startswith("npm install")
    text = cli("agents").out
    assert "npm install -g @google/gemini-cli" in text
    assert "npm install -g @qwen-code/qwen-code" not in text


def test_an_agent_is_shown_with_the_names_that_it_gets(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"ACP_GATEWAY_TOKEN": "v-1", "OPENAI_API_KEY": "v-2", "GITHUB_TOKEN": "v-3"}
    for name, value in (secrets | {"OTHER_THING": "v-4", "CORP_TOKEN": "v-5"}).items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "c.toml"
    file.write_text('[agents.qwen]\nenv_pass = "CORP_*"\nenv = { MINE = "v-6" }\n')
    done = cli("agents", "show", "qwen", "--json", "--config", str(file))
    assert done.status == 0 and "v-" not in done.out
    told = done.json()["environment"]
    assert {"PATH", "OPENAI_API_KEY", "CORP_TOKEN"} <= set(told["passed"])
    assert told["set"] == ["MINE", "NODE_COMPILE_CACHE", "QWEN_CODE_NO_RELAUNCH"]
    assert "GITHUB_TOKEN" in told["credentials_kept"] and "OTHER_THING" in told["other_kept"]
    assert "ACP_GATEWAY_TOKEN" in told["never"]
    text = cli("agents", "show", "qwen").out
    assert "GITHUB_TOKEN" in text and "v-" not in text
    own = cli("agents", "show", "my-agent --flag", "--json").json()
    assert own["command"] == ["my-agent", "--flag"]
    assert "OTHER_THING" in own["environment"]["passed"]
    assert "CORP_TOKEN" in own["environment"]["credentials_kept"]


@pytest.mark.parametrize(
    ("given", "url", "token"),
    [
        ("ws://h:1/acp", "ws://h:1/acp", None),
        ("wss://h", "wss://h/acp", None),
        ("http://h:1/", "ws://h:1/acp", None),
        ("https://h/agents/x/acp", "wss://h/agents/x/acp", None),
        ("h:1", "ws://h:1/acp", None),
        ("ws://[::1]:1/acp?token=a%20b", "ws://[::1]:1/acp", "a b"),
    ],
)
def test_urls_to_connect_to(given: str, url: str, token: str | None) -> None:
    assert endpoint(given) == (url, token)


@pytest.mark.parametrize("given", ["", "ws://", "ws://h:x", "file:///x"])
def test_urls_that_are_none(given: str) -> None:
    with pytest.raises(click.UsageError):
        endpoint(given)


@pytest.fixture
def bridged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What ``connect`` asks the bridge for."""
    calls: list[tuple[str, str | None]] = []

    def run_bridge(url: str, token: str | None) -> int:
        calls.append((url, token))
        return 0

    module = types.ModuleType("acp_gateway.transports.stdio_bridge")
    module.run_bridge = run_bridge  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "acp_gateway.transports.stdio_bridge", module)
    return calls


def test_connect_finds_url_and_token(
    cli: Cli, bridged: list[Any], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    runtime_file.write(make_info())
    assert cli("connect").status == 0
    cli("connect", "http://localhost:4170")
    cli("connect", "ws://other:1/acp")
    cli("connect", "--token", "t")
    cli("connect", "ws://127.0.0.1:4170/acp?token=q")
    monkeypatch.setenv("ACP_GATEWAY_TOKEN", "env")
    cli("connect")
    (home / "t").write_text("file\n")
    done = cli("connect", "--token-file", "t")
    assert bridged == [
        ("ws://127.0.0.1:4170/acp", "s3cret"),
        ("ws://localhost:4170/acp", "s3cret"),
        ("ws://other:1/acp", None),
        ("ws://127.0.0.1:4170/acp", "t"),
        ("ws://127.0.0.1:4170/acp", "q"),
        ("ws://127.0.0.1:4170/acp", "env"),
        ("ws://127.0.0.1:4170/acp", "file"),
    ]
    assert (done.out, done.err) == ("", "")


def test_list_shows_no_token(cli: Cli) -> None:
    assert cli("list", "--json").json() == {"gateways": []}
    runtime_file.write(make_info())
    done = cli("list", "--json")
    (shown,) = done.json()["gateways"]
    assert shown["url"] == "http://127.0.0.1:4170"
    assert "token" not in shown
    assert "s3cret" not in done.out + cli("list").out


def test_status_of_one_that_does_not_answer(cli: Cli) -> None:
    runtime_file.write(make_info(port=1))
    done = cli("status", "--json")
    assert done.status == 1
    assert done.json()["running"] is False
    assert "does not answer" in done.json()["problem"]
    assert "s3cret" not in done.out


def test_json_is_printed_for_machines_when_none_runs(cli: Cli) -> None:
    done = cli("status", "--json")
    assert (done.status, done.json()["running"]) == (1, False)


def test_tables_align(capsys: pytest.CaptureFixture[str]) -> None:
    base.print_table(("A", "B"), [("long", "x"), ("s", "y")])
    assert capsys.readouterr().out == "A     B\nlong  x\ns     y\n"


def test_print_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    base.print_json({"a": "\u00e9"})
    assert json.loads(capsys.readouterr().out) == {"a": "\u00e9"}
