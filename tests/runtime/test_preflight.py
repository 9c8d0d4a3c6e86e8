"""Cells of preflight and environment: what they tell, and what they never do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime import preflight
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.preflight import _agent_cell, daemon_cells, env_cells

STATES = {"ok", "warning", "error", "disabled", "not_started", "unknown"}


def profile(program: Path | str, **more: Any) -> AgentProfile:
    return AgentProfile(name="some", title="Some", argv=(str(program),), **more)


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def by_kind(cells: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert all(each["status"] in STATES for each in cells)
    return {each["kind"]: each for each in cells}


def test_tools_that_are_absent_warn_and_tools_that_answer_tell_their_version(
    tmp_path: Path,
) -> None:
    program = script(tmp_path / "agent", "#!/bin/sh\n")
    environ = {"PATH": str(tmp_path)}
    cells = by_kind(daemon_cells([tmp_path], [profile(program)], environ))
    assert set(cells) == {"python_version", "cli_entry", "workspace_dir", "ripgrep", "git"}
    for kind in ("ripgrep", "git"):
        assert (cells[kind]["status"], cells[kind]["errorKind"]) == ("warning", "missing_binary")
        assert cells[kind]["hint"]
    script(tmp_path / "git", "#!/bin/sh\necho git version 9.9\n")
    script(tmp_path / "rg", "#!/bin/sh\nexit 3\n")
    cells = by_kind(daemon_cells([tmp_path], [profile(program)], environ))
    assert cells["git"]["status"] == "ok"
    assert cells["git"]["detail"] == {"version": "git version 9.9"}
    assert (cells["ripgrep"]["status"], cells["ripgrep"]["errorKind"]) == ("warning", "stat_failed")
    assert all(each["locality"] == "daemon" for each in cells.values())


def test_node_is_asked_for_by_agents_that_need_it(tmp_path: Path) -> None:
    program = script(tmp_path / "agent", "#!/usr/bin/env node\n")
    link = tmp_path / "link"
    link.symlink_to(program)
    for each in (program, link, Path("/usr/bin/npx")):
        cells = by_kind(daemon_cells([tmp_path], [profile(each)], {"PATH": str(tmp_path)}))
        assert cells["node_version"]["status"] == "error"
        assert cells["node_version"]["errorKind"] == "missing_binary"


def test_a_workspace_that_is_gone(tmp_path: Path) -> None:
    cells = by_kind(daemon_cells([tmp_path / "gone"], [], {"PATH": ""}))
    told = cells["workspace_dir"]
    assert (told["status"], told["errorKind"]) == ("error", "missing_file")
    assert told["detail"] == {"path": str(tmp_path / "gone")}


def test_a_check_that_fails_is_a_cell_and_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise PermissionError(13, "a secret in the error", "/somewhere")

    monkeypatch.setattr(preflight, "_entry", broken)
    cells = by_kind(daemon_cells([tmp_path], [], dict(os.environ)))
    told = cells["cli_entry"]
    assert (told["status"], told["errorKind"]) == ("error", "stat_failed")
    assert "secret" not in str(told) and cells["python_version"]["status"] == "ok"


def test_agents(tmp_path: Path) -> None:
    program = script(tmp_path / "agent", "#!/bin/sh\n")
    told = {"some": {"agentInfo": {"name": "x", "version": "1.2"}}}
    cell = _agent_cell(profile(program), told, {})
    assert cell["status"] == "ok" and cell["detail"]["version"] == "1.2"
    program.chmod(0o644)
    if os.geteuid() != 0 or not os.access(program, os.X_OK):
        gone = _agent_cell(profile(program, install="npm i x"), told, {})
        assert (gone["status"], gone["errorKind"]) == ("error", "missing_binary")
        assert gone["hint"] == "npm i x"
    program.chmod(0o755)
    failure = GatewayError(ErrorKind.AGENT_START_FAILED, "It broke", remedy="mend it")
    failed = _agent_cell(profile(program), {}, {"some": failure})
    assert (failed["error"], failed["hint"]) == ("It broke", "mend it")
    assert failed["errorKind"] == "protocol_error" and failed["detail"]["started"] is False


SECRETS = {
    "OPENAI_API_KEY": "sk-very-secret-value",
    "ACP_GATEWAY_TOKEN": "token-very-secret-value",
    "OPENAI_BASE_URL": "http://user:very-secret-value@models.example/v1",
    "HTTPS_PROXY": "http://user:very-secret-value@proxy.example:8080/path?very-secret-value",
    "all_proxy": "user:very-secret-value@[::1]:1080",
    "HTTP_PROXY": "http://[very-secret-value",
    "NO_PROXY": "localhost,.internal,http://user:very-secret-value@x",
    "SANDBOX": "very-secret-value",
}


def test_no_value_of_the_environment_is_told() -> None:
    cells = env_cells([profile("/bin/x", env_allow=("MY_API_KEY", "*_API_KEY"))], SECRETS)
    assert "very-secret-value" not in str(cells)
    told = {each["name"]: each for each in cells}
    assert told["OPENAI_API_KEY"] == {
        "kind": "env_var",
        "name": "OPENAI_API_KEY",
        "status": "ok",
        "present": True,
    }
    assert told["ANTHROPIC_API_KEY"]["status"] == "disabled"
    assert told["MY_API_KEY"]["present"] is False and "*_API_KEY" not in told
    assert told["HTTPS_PROXY"]["value"] == "proxy.example:8080"
    assert told["ALL_PROXY"]["value"] == "[::1]:1080"
    assert told["HTTP_PROXY"]["value"] == "?"
    assert told["NO_PROXY"]["value"].startswith("localhost,.internal,")
    assert all("value" not in each for each in cells if each["kind"] == "env_var")
    assert told["rss"]["kind"] == "memory" and told["python"]["kind"] == "runtime"
    assert all(each["status"] in STATES for each in cells)
