"""Clients that can only start a command, through ``acp-gateway connect``."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import RUN_TIMEOUT, SCENARIOS, Site, client_environment, run_client
from peers_env import find, need, node

pytestmark = pytest.mark.real

demo_only = pytest.mark.parametrize("site", ["demo"], indirect=True)


def bridge(url: str) -> str:
    """The command line that an editor would be given."""
    return shlex.join([sys.executable, "-m", "acp_gateway", "connect", url])


def _cases() -> list[tuple[str, str]]:
    some = ("permission-allow", "permission-reject", "cancel", "reload")
    return [("demo", s) for s in SCENARIOS] + [(a, s) for a in ("goose", "qwen") for s in some]


@pytest.mark.parametrize(("site", "scenario"), _cases(), indirect=["site"])
def test_python_stdio_client(site: Site, scenario: str) -> None:
    cwd = site.directory(f"stdio-{scenario}")
    target = ["--transport", "stdio", "--command", bridge(site.gateway.ws_url)]
    run_client(site, "py", scenario, cwd, target)


class CuttingProxy:
    """A TCP relay that cuts a connection once, after so many bytes from the server."""

    def __init__(self, port: int, cut_after: int) -> None:
        self.target = ("127.0.0.1", port)
        self.left = cut_after
        self.connections = 0
        self.cuts = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.sockets: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.target)
                self.connections += 1
                self.sockets += [near, far]
                for source, sink, down in ((near, far, False), (far, near, True)):
                    thread = threading.Thread(
                        target=self._relay, args=(source, sink, down), daemon=True
                    )
                    self.threads.append(thread)
                    thread.start()

    def _relay(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        # The gateway takes no request whose Host is another port than its own.
        near, far = (f"127.0.0.1:{port}".encode() for port in (self.port, self.target[1]))
        with suppress(OSError):
            while data := source.recv(65536):
                if not down:
                    data = data.replace(b"Host: " + near, b"Host: " + far)
                if down and not self.cuts:
                    self.left -= len(data)
                    if self.left <= 0:
                        self.cuts = 1
                        break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for end in self.sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(5)
        for end in self.sockets:
            end.close()


@contextmanager
def cutting_proxy(url: str, cut_after: int) -> Iterator[CuttingProxy]:
    port = urlsplit(url).port
    assert port is not None
    proxy = CuttingProxy(port, cut_after)
    try:
        yield proxy
    finally:
        proxy.close()


@demo_only
def test_a_cut_connection_neither_loses_nor_doubles(site: Site) -> None:
    """The connection breaks in the middle of a turn of 1 MB; the editor notices nothing."""
    cwd = site.directory("stdio-cut")
    with cutting_proxy(site.gateway.ws_url, cut_after=200_000) as proxy:
        target = ["--transport", "stdio"]
        target += ["--command", bridge(f"ws://127.0.0.1:{proxy.port}/acp")]
        target += ["--prompts", json.dumps({"burst": [5000, 10]})]
        run_client(site, "py", "burst", cwd, target)
        assert (proxy.cuts, proxy.connections) == (1, 2)


class Acpx:
    """acpx with the bridge as its agent; its output is the wire, one JSON message a line."""

    def __init__(self, site: Site, name: str) -> None:
        need("node", "acpx")
        self.cwd = site.directory(f"acpx-{name}")
        self.env = client_environment(site) | {"HOME": str(self.cwd / ".home")}
        Path(self.env["HOME"]).mkdir()
        # acpx is started by the node that it asks for, whatever the PATH has.
        self.argv = [str(node()), str(find("acpx")), "--agent", bridge(site.gateway.ws_url)]
        self.argv += ["--cwd", str(self.cwd), "--format", "json", "--json-strict", "--ttl", "1"]

    def start(self, *words: str, policy: str = "--approve-all") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.argv, policy, *words],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, policy: str = "--approve-all", status: int = 0) -> list[Any]:
        """The messages that it printed; its exit status must be ``status``."""
        with self.start(*words, policy=policy) as process:
            out, err = process.communicate(timeout=RUN_TIMEOUT)
        assert process.returncode == status, f"{words}: {process.returncode}\n{out}\n{err}"
        return [json.loads(line) for line in out.splitlines()]


def stop_reasons(messages: list[Any]) -> list[str]:
    results = [m["result"] for m in messages if isinstance(m.get("result"), dict)]
    return [r["stopReason"] for r in results if "stopReason" in r]


def said(messages: list[Any]) -> str:
    updates = [m["params"]["update"] for m in messages if m.get("method") == "session/update"]
    chunks = [u for u in updates if u["sessionUpdate"] == "agent_message_chunk"]
    return "".join(u["content"]["text"] for u in chunks)


@demo_only
@pytest.mark.parametrize(("policy", "status"), [("--approve-all", 0), ("--deny-all", 5)])
def test_acpx_permission(site: Site, policy: str, status: int) -> None:
    acpx = Acpx(site, policy)
    messages = acpx.run("exec", "please write the file", policy=policy, status=status)
    assert stop_reasons(messages) == ["end_turn"]
    asked = [m for m in messages if m.get("method") == "session/request_permission"]
    assert len(asked) == 1
    assert (acpx.cwd / "acp-demo.txt").exists() == (status == 0)


@demo_only
def test_acpx_comes_back_to_its_session(site: Site) -> None:
    """acpx keeps one process for a session and ends it (and the bridge) after 1 s without work;
    the next prompt starts another, which resumes the session.
    """
    acpx = Acpx(site, "resume")
    (created,) = acpx.run("sessions", "new")
    first = acpx.run("prompt", "/chunks 1000 50")
    deadline = time.monotonic() + 30
    while acpx.run("status")[0]["status"] == "alive":
        assert time.monotonic() < deadline, "acpx did not end its process"
    second = acpx.run("prompt", "/chunks 20 50")
    assert "session/resume" in [m.get("method") for m in second]
    for messages, count in ((first, 1000), (second, 20)):
        assert stop_reasons(messages) == ["end_turn"]
        assert [int(n) for n in re.findall(r"\d{6}", said(messages))] == list(range(count))
    sessions = {
        m["params"]["sessionId"] for m in first + second if "sessionId" in (m.get("params") or {})
    }
    assert sessions == {created["acpxSessionId"]}
    acpx.run("sessions", "close")


@demo_only
def test_acpx_cancel(site: Site) -> None:
    acpx = Acpx(site, "cancel")
    acpx.run("sessions", "new")
    with acpx.start("prompt", "/sleep 30") as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "agent_message_chunk" in line:
                break
        (result,) = acpx.run("cancel")
        out, err = process.communicate(timeout=RUN_TIMEOUT)
    messages = [json.loads(line) for line in [*lines, *out.splitlines()]]
    assert result["cancelled"] is True
    assert stop_reasons(messages) == ["cancelled"], err
    acpx.run("sessions", "close")
