"""``doctor``: each check says ok where all is well, and names the problem where it is not."""

from __future__ import annotations

import datetime
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
from conftest import Cli, make_info

from acp_gateway.cli.checks import check_all, tls_cells
from acp_gateway.cli.handshake import handshake
from acp_gateway.config import Settings
from acp_gateway.runtime import runtime_file
from acp_gateway.runtime.agent_profile import AgentProfile, parse_agent_spec, resolve_agents

KINDS = {"ok", "warn", "fail"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cells(cli: Cli, *argv: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = cli("doctor", "--json", *argv)
    report = done.json()
    assert report["ok"] is (done.status == 0)
    for cell in report["checks"]:
        assert set(cell) == {"name", "status", "kind", "message", "fix"}
        assert cell["status"] in KINDS
        assert (cell["kind"] == "ok") is (cell["status"] == "ok")
        assert cell["message"]
    return done.status, {cell["name"]: cell for cell in report["checks"]}


def test_all_is_well_with_the_demo_agent(cli: Cli, no_agents: Path, home: Path) -> None:
    port = free_port()
    status, found = cells(cli, "--agent", "demo", "--port", str(port))
    assert status == 0
    expected = ["python", "platform", "packages", "configuration", f"workspace {home}"]
    expected += ["runtime directory", f"port {port}", "proxies", "agent demo"]
    assert list(found) == expected
    assert {cell["status"] for name, cell in found.items() if name != "platform"} == {"ok"}
    assert "acp-gateway-demo" in found["agent demo"]["message"]


def test_the_report_for_people(cli: Cli, no_agents: Path) -> None:
    done = cli("doctor", "--port", str(free_port()), "--agent", "auto")
    assert done.status == 0
    assert "ok    agent demo: Handshake done" in done.out
    assert "warn  agent auto: No agent of qwen" in done.out
    assert "      fix: acp-gateway agents" in done.out


def test_a_missing_agent_fails_with_the_command_that_installs_it(cli: Cli, no_agents: Path) -> None:
    status, found = cells(cli, "--agent", "goose", "--port", "0")
    assert status == 1
    assert found["agent goose"]["kind"] == "agent_not_found"
    assert "download_cli.sh" in found["agent goose"]["fix"]


def test_a_broken_agent_that_is_not_served_is_a_warning(cli: Cli, no_agents: Path) -> None:
    (no_agents / "qwen").write_text("#!/bin/sh\nexit 1\n")
    (no_agents / "qwen").chmod(0o755)
    status, found = cells(cli, "--agent", "demo", "--port", "0")
    assert (status, found["agent qwen"]["status"]) == (0, "warn")
    status, found = cells(cli, "--agent", "qwen", "--port", "0")
    assert (status, found["agent qwen"]["status"]) == (1, "fail")


def test_bad_configuration_is_one_line_and_the_others_go_on(cli: Cli, no_agents: Path) -> None:
    status, found = cells(cli, "--agent", "demo", "--host", "0.0.0.0")
    assert status == 1
    assert found["configuration"]["kind"] == "config_error"
    assert "flag --host" in found["configuration"]["message"]
    assert found["configuration"]["fix"].startswith("Add --token-file")
    assert found["agent demo"]["status"] == "ok"


def test_a_port_that_another_program_has(cli: Cli, no_agents: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, found = cells(cli, "--agent", "demo", "--port", str(port))
        assert (status, found[f"port {port}"]["kind"]) == (1, "port_in_use")
        runtime_file.write(make_info(port=port))
        status, found = cells(cli, "--agent", "demo", "--port", str(port))
        assert (status, found[f"port {port}"]["kind"]) == (0, "port_used_by_gateway")


def test_an_address_that_is_not_ours(cli: Cli, no_agents: Path) -> None:
    # 192.0.2.0/24 is for documentation: nobody has it.
    argv = ("--agent", "demo", "--host", "192.0.2.1", "--token", "t", "--port", str(free_port()))
    status, found = cells(cli, *argv)
    assert status == 1
    assert "address_unusable" in {cell["kind"] for cell in found.values()}


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({"http_proxy": "http://p:1"}, "warn"),
        ({"ALL_PROXY": "socks5://p:1", "NO_PROXY": "example.org"}, "warn"),
        ({"http_proxy": "http://p:1", "no_proxy": "localhost"}, "warn"),
        ({"http_proxy": "http://p:1", "no_proxy": "localhost,127.0.0.1"}, "ok"),
        ({"http_proxy": "http://p:1", "NO_PROXY": "*"}, "ok"),
        ({"http_proxy": " "}, "ok"),
        ({}, "ok"),
    ],
)
def test_proxies(environ: dict[str, str], status: str, no_agents: Path) -> None:
    for cell in check_all({"agent": ("demo",), "port": 0}, environ):
        if cell.name == "proxies":
            assert cell.status == status
            assert "p:1" not in cell.message
            return
    pytest.fail("no such check")


class Tls:
    """Certificates in files."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.ca = trustme.CA()

    def issue(self, name: str, **times: Any) -> tuple[Path, Path]:
        issued = self.ca.issue_cert("localhost", **times)
        cert, key = self.where / f"{name}.crt", self.where / f"{name}.key"
        for n, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(cert, append=n > 0)
        issued.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        return cert, key


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


def tls_kinds(cert: Path, key: Path) -> list[str]:
    return [cell.kind for cell in tls_cells(Settings(tls_cert=cert, tls_key=key))]


def test_tls_without_files_is_no_check() -> None:
    assert list(tls_cells(Settings())) == []


def test_tls_pair(tls: Tls) -> None:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    cert, key = tls.issue("good", not_after=now + 90 * day)
    (cell,) = tls_cells(Settings(tls_cert=cert, tls_key=key))
    assert cell.kind == "ok"
    assert (now + 90 * day).strftime("%Y-%m-%d") in cell.message
    other = tls.issue("other")[1]
    assert tls_kinds(cert, other) == ["tls_pair_mismatch"]
    key.chmod(0o644)
    assert tls_kinds(cert, key) == ["ok", "tls_key_exposed"]
    assert tls_kinds(*tls.issue("old", not_after=now - day)) == ["tls_expired"]
    assert tls_kinds(*tls.issue("soon", not_after=now + 3 * day)) == ["tls_expires_soon"]


def test_tls_files_that_are_none(tls: Tls, tmp_path: Path) -> None:
    cert, key = tls.issue("good")
    (tmp_path / "junk").write_text("junk")
    assert tls_kinds(tmp_path / "junk", key) == ["tls_invalid"]
    assert tls_kinds(cert, tmp_path / "junk") == ["tls_invalid"]
    assert tls_kinds(cert, tmp_path / "missing") == ["tls_unreadable"]


def test_tls_key_with_a_passphrase_does_not_ask(tls: Tls, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as ser

    cert, key = tls.issue("good")
    private = ser.load_pem_private_key(key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        private.private_bytes(
            ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.BestAvailableEncryption(b"x")
        )
    )
    locked.chmod(0o600)
    assert tls_kinds(cert, locked) == ["tls_key_encrypted"]


def agent(tmp_path: Path, body: str) -> AgentProfile:
    script = tmp_path / "agent.py"
    script.write_text(f"import sys, json, os, time\n{body}")
    return parse_agent_spec(f"{sys.executable} {script}")[1]


ANSWER = "print(json.dumps({'jsonrpc': '2.0', 'id': 0, 'result': %s}), flush=True)\n"


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (
            "sys.stdin.readline(); print('hello'); print('[1]')\n"
            "print(json.dumps({'id': 0, 'method': 'x'}))\n"
            + ANSWER
            % "{'protocolVersion': 1, 'agentInfo': {'name': 'n', 'version': 2}}",
            "ok",
            "n 2",
        ),
        (ANSWER % "{'protocolVersion': 9}", "agent_version", "version 9"),
        ("print(json.dumps({'id': 0, 'error': {'message': 'no key'}}))", "agent_error", "no key"),
        ("print(json.dumps({'id': 0}))", "agent_error", "no result"),
        ("print('api_key=abcdefgh', file=sys.stderr); sys.exit(7)", "agent_exited", "status 7"),
        ("time.sleep(60)", "agent_handshake_timeout", "within 1.5 s"),
    ],
)
def test_handshakes(tmp_path: Path, body: str, kind: str, says: str) -> None:
    result = handshake(agent(tmp_path, body), timeout=1.5, cwd=tmp_path, environ={})
    assert result.kind == kind
    assert says in result.message
    assert "abcdefgh" not in result.message


def test_a_handshake_leaves_no_process(tmp_path: Path) -> None:
    """Neither the agent, which ignores SIGTERM, nor a grandchild that holds its pipes."""
    pids = tmp_path / "pids"
    body = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "if child:\n    " + ANSWER % "{'protocolVersion': 1}" + "time.sleep(60)\n"
    )
    result = handshake(agent(tmp_path, body), timeout=10, cwd=tmp_path, environ={})
    assert result.kind == "ok"
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) == 2
    assert [pid for pid in started if runtime_file.process_start(pid)] == []


def test_a_program_that_is_gone(tmp_path: Path) -> None:
    profile = AgentProfile(name="x", title="x", argv=(str(tmp_path / "none"),))
    assert handshake(profile, timeout=1, cwd=tmp_path, environ={}).kind == "agent_start_failed"


def test_the_demo_agent_is_ours_whatever_the_workspace_holds(home: Path) -> None:
    (home / "acp_gateway").mkdir()
    (home / "acp_gateway" / "__init__.py").write_text("raise SystemExit('hijacked')")
    profile = resolve_agents(["demo"]).default
    result = handshake(profile, timeout=20, cwd=home, environ=os.environ)
    assert result.kind == "ok"
