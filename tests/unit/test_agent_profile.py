"""Agent profiles: what a ``--agent`` value means, what an agent sees, and what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from acp_gateway.config import AgentNotFoundError, AgentSpec, ConfigError
from acp_gateway.runtime.agent_profile import (
    AUTO_ORDER,
    KNOWN_AGENTS,
    AgentProfile,
    Quirks,
    binary_stamp,
    find_agents,
    parse_agent_spec,
    resolve_agents,
)


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    path = tmp_path / "bin"
    path.mkdir()
    return path


def install(bin_dir: Path, *names: str) -> dict[str, str]:
    """Put programs that do nothing into ``bin_dir``; returns the environment that finds them."""
    for name in names:
        program = bin_dir / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    return {"PATH": str(bin_dir)}


def test_every_agent_of_the_automatic_order_is_known() -> None:
    assert set(AUTO_ORDER) == set(KNOWN_AGENTS) - {"demo"}
    for name in AUTO_ORDER:
        assert KNOWN_AGENTS[name].install, name


def test_a_known_name_is_its_profile() -> None:
    assert parse_agent_spec("qwen") == ("qwen", KNOWN_AGENTS["qwen"])
    assert KNOWN_AGENTS["goose"].argv == ("goose", "acp", "--with-builtin", "developer")


def test_a_command_is_split_as_a_shell_splits_words() -> None:
    name, profile = parse_agent_spec("node '/a b/agent.js' --flag=\"x y\"")
    assert name == profile.name == "node"
    assert profile.argv == ("node", "/a b/agent.js", "--flag=x y")
    assert profile.env_allow == ("*",)
    assert profile.quirks == Quirks()


def test_a_command_may_be_named() -> None:
    name, profile = parse_agent_spec("mine=python3 -m agent --key=value")
    assert (name, profile.argv) == ("mine", ("python3", "-m", "agent", "--key=value"))


def test_a_known_agent_may_be_served_under_another_name() -> None:
    name, profile = parse_agent_spec("second=qwen")
    assert (name, profile.name, profile.argv) == ("second", "second", ("qwen", "--acp"))
    assert profile.quirks == KNOWN_AGENTS["qwen"].quirks


@pytest.mark.parametrize("text", ["/opt/qwen --acp --model m", "qwen=node /opt/cli.js --acp"])
def test_a_command_of_a_known_agent_keeps_its_habits(text: str) -> None:
    name, profile = parse_agent_spec(text)
    known = KNOWN_AGENTS["qwen"]
    assert name == "qwen"
    assert profile.argv != known.argv
    assert profile.quirks == known.quirks
    assert profile.env_set == known.env_set
    assert profile.handshake_timeout == 20.0
    assert profile.env_allow == ("*",)


def test_a_program_that_happens_to_be_called_demo_is_not_the_demo_agent() -> None:
    assert parse_agent_spec("/opt/demo --acp")[1].title == "demo"


@pytest.mark.parametrize("text", ["", "   ", "name=", "'open quote", "''"])
def test_commands_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_agent_spec(text)


def test_tables_describe_new_agents_and_change_known_ones() -> None:
    specs = {
        "mine": AgentSpec(command=("prog", "-x"), env={"A": "1"}, quirks={"ignores_eof": True}),
        "qwen": AgentSpec(env={"B": "2"}, env_pass=("CORP_*",), handshake_timeout=60.0),
    }
    mine = parse_agent_spec("mine", specs)[1]
    assert (mine.argv, mine.quirks.ignores_eof) == (("prog", "-x"), True)
    assert mine.environment({"X": "y"}) == {"X": "y", "A": "1"}
    qwen = parse_agent_spec("qwen", specs)[1]
    assert qwen.argv == ("qwen", "--acp")
    assert qwen.handshake_timeout == 60.0
    seen = qwen.environment({"CORP_KEY": "k", "OTHER": "o"})
    assert (seen["B"], seen["CORP_KEY"], seen["QWEN_CODE_NO_RELAUNCH"]) == ("2", "k", "1")
    assert "OTHER" not in seen


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (AgentSpec(), "has no command"),
        (AgentSpec(command=("p",), quirks={"ignore_eof": True}), '"ignore_eof" is not a quirk'),
        (AgentSpec(command=("p",), quirks={"ignores_eof": "yes"}), "true or false"),
        (AgentSpec(command=("p",), quirks={"ping_method": 1}), "text"),
        (AgentSpec(command=("p",), quirks={"initialize_meta": 1}), "a table"),
    ],
)
def test_tables_that_cannot_be_used(spec: AgentSpec, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_agent_spec("mine", {"mine": spec})


def test_auto_takes_the_first_installed_and_says_so(bin_dir: Path) -> None:
    environ = install(bin_dir, "opencode", "goose")
    profiles = resolve_agents(["auto"], environ=environ)
    assert list(profiles) == ["goose"]
    assert profiles.default.argv[0] == str(bin_dir / "goose")
    assert "Goose" in str(profiles.note)


def test_auto_falls_back_to_the_demo_agent_and_says_so(bin_dir: Path) -> None:
    profiles = resolve_agents(["auto"], environ=install(bin_dir))
    assert profiles.default.name == "demo"
    assert profiles.default.argv[0] == sys.executable
    assert "demo agent" in str(profiles.note)


def test_several_agents_keep_their_order(bin_dir: Path) -> None:
    environ = install(bin_dir, "goose", "tool")
    profiles = resolve_agents(["demo", "goose", "t=tool --acp"], environ=environ)
    assert list(profiles) == ["demo", "goose", "t"]
    assert (profiles.default.name, profiles.note, len(profiles)) == ("demo", None, 3)
    assert profiles["t"].argv == (str(bin_dir / "tool"), "--acp")


def test_an_alternative_program_is_taken_when_the_first_is_missing(bin_dir: Path) -> None:
    environ = install(bin_dir, "claude-code-acp")
    assert resolve_agents(["claude"], environ=environ).default.argv == (
        str(bin_dir / "claude-code-acp"),
    )
    environ = install(bin_dir, "claude-agent-acp")
    assert resolve_agents(["claude"], environ=environ).default.argv == (
        str(bin_dir / "claude-agent-acp"),
    )


@pytest.mark.parametrize("texts", [["demo", "demo"], ["goose", "auto"], ["x=demo", "x=goose"]])
def test_two_agents_of_one_name_are_refused(bin_dir: Path, texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="Two agents are called") as caught:
        resolve_agents(texts, environ=install(bin_dir, "goose"))
    assert "NAME=" in str(caught.value.remedy)


def test_a_missing_agent_says_how_to_install_it(bin_dir: Path) -> None:
    with pytest.raises(AgentNotFoundError) as caught:
        resolve_agents(["qwen"], environ=install(bin_dir))
    assert "npm install -g @qwen-code/qwen-code" in str(caught.value.remedy)
    assert caught.value.exit_code == 5


def test_a_misspelt_agent_gets_a_suggestion(bin_dir: Path) -> None:
    with pytest.raises(AgentNotFoundError) as caught:
        resolve_agents(["gosse"], environ=install(bin_dir))
    assert caught.value.remedy == 'Did you mean "goose"?'


def test_a_program_that_may_not_be_executed_is_missing(bin_dir: Path) -> None:
    (bin_dir / "tool").write_text("")
    with pytest.raises(AgentNotFoundError):
        resolve_agents([str(bin_dir / "tool")], environ={"PATH": ""})


def test_known_agents_see_what_they_need_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "https_proxy": "p",
        "JAVA_HOME": "/j",
        "OPENAI_API_KEY": "k",
        "QWEN_X": "q",
        "GOOSE_MODE": "auto",
        "DATABASE_PASSWORD": "no",
        "ACP_GATEWAY_TOKEN": "no",
        "QWEN_SERVER_TOKEN": "no",
        "QWEN_CODE_PRIVATE_ACP_CAPABILITY": "no",
    }
    seen = KNOWN_AGENTS["qwen"].environment(environ)
    assert {"PATH", "LC_ALL", "https_proxy", "JAVA_HOME", "OPENAI_API_KEY", "QWEN_X"} <= set(seen)
    assert "no" not in seen.values()
    assert "GOOSE_MODE" not in seen
    assert "GOOSE_MODE" in KNOWN_AGENTS["goose"].environment(environ)
    assert "OPENAI_API_KEY" not in KNOWN_AGENTS["demo"].environment(environ)
    assert not seen["NODE_COMPILE_CACHE"].startswith("{cache}")
    assert seen["NODE_COMPILE_CACHE"].endswith("/node-compile-cache")


def test_a_users_command_sees_all_but_credentials_that_nobody_named() -> None:
    profile = parse_agent_spec("my-agent")[1]
    kept = {"A": "1", "OPENAI_API_KEY": "k"}
    secrets = {"ACP_GATEWAY_TOKEN": "t", "QWEN_SERVER_TOKEN": "t", "NODE_CHANNEL_FD": "3"}
    secrets |= {"DATABASE_PASSWORD": "p", "DATABASE_URL": "postgres://me:p@db/x"}
    assert profile.environment({**kept, **secrets}) == kept
    specs = {"mine": AgentSpec(command=("my-agent",), env_pass=("DATABASE_*",))}
    named = parse_agent_spec("mine", specs)[1].environment({**kept, **secrets})
    assert named == kept | {n: v for n, v in secrets.items() if n.startswith("DATABASE_")}


def test_find_agents_lists_known_and_own_ones(bin_dir: Path) -> None:
    environ = install(bin_dir, "goose")
    specs = {"mine": AgentSpec(command=("nowhere-to-be-found",))}
    paths = {agent.profile.name: agent.path for agent in find_agents(specs, environ)}
    assert list(paths) == [*KNOWN_AGENTS, "mine"]
    assert paths["goose"] == str(bin_dir / "goose")
    assert paths["demo"] == sys.executable
    assert paths["qwen"] is None
    assert paths["mine"] is None


def test_the_stamp_changes_when_the_program_is_replaced(bin_dir: Path) -> None:
    install(bin_dir, "real-1")
    link = bin_dir / "tool"
    link.symlink_to("real-1")
    profile = AgentProfile(name="t", title="t", argv=(str(link), "--acp"))
    before = binary_stamp(profile)
    assert before[0][0] == str(bin_dir / "real-1")
    assert binary_stamp(profile) == before
    # As a package manager does it: same size, same mtime, another file.
    status = (bin_dir / "real-1").stat()
    install(bin_dir, "new")
    os.utime(bin_dir / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (bin_dir / "new").replace(bin_dir / "real-1")
    assert binary_stamp(profile) != before
    link.unlink()
    assert binary_stamp(profile) == ()


def test_the_module_does_not_import_trio() -> None:
    code = "import sys, acp_gateway.runtime.agent_profile; sys.exit('trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
