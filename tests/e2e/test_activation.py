"""Started by a service manager: inherited sockets, signs of life, and what children see of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from agent_env import base_environment
from gateway_process import ROOT
from support.processes import TESTS, descendants, eventually
from websockets.sync.client import connect

DEADLINE = 20.0


class Started:
    """A daemon with sockets that it did not open; ``said`` is what it logged, parsed."""

    def __init__(
        self, base: Path, sockets: list[socket.socket], args: tuple[str, ...], env: dict[str, str]
    ) -> None:
        (base / "workspace").mkdir(exist_ok=True)
        fds = [each.fileno() for each in sockets]
        launcher = [sys.executable, str(TESTS / "support" / "activate.py")]
        names = ":".join(f"door{number}" for number in range(len(fds)))
        serve = [sys.executable, "-m", "acp_gateway", "serve", "--agent", "demo", *args]
        self.process = subprocess.Popen(
            [*launcher, ",".join(map(str, fds)), names, *serve],
            pass_fds=fds,
            cwd=base / "workspace",
            env=base_environment(base / "home") | {"PYTHONPATH": str(ROOT)} | env,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        with self.process.stderr as stderr:
            for line in stderr:
                self.lines.append(line)
                if '"event": "ready"' in line:
                    self.ready.set()

    def said(self, event: str) -> list[dict[str, Any]]:
        told = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [each for each in told if each["event"] == event]

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.reader.join(5)
        return self.process.returncode


@contextmanager
def started(base: Path, sockets: list[socket.socket], *args: str, **env: str) -> Iterator[Started]:
    made = Started(base, sockets, args, env)
    try:
        assert made.ready.wait(60), "".join(made.lines)
        yield made
    finally:
        made.end()


def tcp(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    return socket.create_server((host, port))


def unix(path: Path, mode: int = 0o600) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    path.chmod(mode)
    sock.listen(16)
    return sock


def test_several_sockets(tmp_path: Path) -> None:
    path = tmp_path / "s"
    sockets = [tcp(), tcp(), unix(path)]
    ports = [each.getsockname()[1] for each in sockets[:2]]
    # What the configuration asks for is not opened as well.
    with started(tmp_path, sockets, "--port", "1", "--unix-socket", str(tmp_path / "t")) as made:
        ready = made.said("ready")[0]
        assert ready["url"] == f"http://127.0.0.1:{ports[0]}"
        assert ready["unix_socket"] == str(path)
        assert not (tmp_path / "t").exists()
        for port in ports:
            url = f"http://127.0.0.1:{port}"
            assert httpx2.get(f"{url}/capabilities").status_code == 200
            own_page = {"Origin": url}
            assert httpx2.get(f"{url}/capabilities", headers=own_page).status_code == 200
            rebound = {"Host": f"evil.example:{port}"}
            assert httpx2.get(f"{url}/capabilities", headers=rebound).status_code == 403
            with connect(f"ws://127.0.0.1:{port}/acp"):
                pass
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path))) as http:
            assert http.get("http://x/capabilities").status_code == 200
        assert made.end() == 0
    assert path.exists(), "it belongs to the service manager"
    for each in sockets:
        each.close()


def test_a_unix_socket_alone(tmp_path: Path) -> None:
    with unix(tmp_path / "s") as sock, started(tmp_path, [sock]) as made:
        assert made.said("ready")[0]["url"] == f"unix:{tmp_path / 's'}"


@pytest.mark.parametrize("kind", ["wide", "loose", "abstract", "datagram", "connected"])
def test_sockets_that_are_refused(tmp_path: Path, kind: str) -> None:
    ends = socket.socketpair()
    if kind == "wide":
        sock = tcp("0.0.0.0")
    elif kind == "loose":
        sock = unix(tmp_path / "s", 0o666)
    elif kind == "abstract":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(f"\0acp-{os.getpid()}")
        sock.listen()
    elif kind == "datagram":
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    else:
        sock = ends[0]
    made = Started(tmp_path, [sock], (), {})
    try:
        assert made.process.wait(60) == 3
    finally:
        made.end()
    text = "".join(made.lines)
    assert "socket activation (door0, fd 3)" in text and "try:" in text
    if kind in ("wide", "loose", "abstract"):
        assert "token" in text
    for each in (sock, *ends):
        each.close()


def test_a_token_opens_wide_sockets(tmp_path: Path) -> None:
    with (
        unix(tmp_path / "s", 0o666) as sock,
        started(tmp_path, [sock], ACP_GATEWAY_TOKEN="sesame"),
        httpx2.Client(transport=httpx2.HTTPTransport(uds=str(tmp_path / "s"))) as http,
    ):
        assert http.get("http://x/capabilities").status_code == 401


def test_sockets_for_another_process_are_left_alone(tmp_path: Path) -> None:
    """A daemon that inherited the variables, but is not the one that is meant."""
    (tmp_path / "workspace").mkdir()
    env = base_environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
    env |= {"LISTEN_PID": "1", "LISTEN_FDS": "5"}
    done = subprocess.run(
        [sys.executable, "-m", "acp_gateway", "serve", "--agent", "demo", "--no-tcp"],
        env=env,
        cwd=tmp_path / "workspace",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3 and "nothing to listen on" in done.stderr


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    told: list[dict[str, str]] = []
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        tcp() as sock,
    ):
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)

        def hear(name: str) -> dict[str, str]:
            while True:
                lines = manager.recv(4096).decode().split("\n")
                told.append(dict(line.split("=", 1) for line in lines))
                if name in told[-1]:
                    return told[-1]

        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        with started(tmp_path, [sock], **env) as made:
            ready = hear("READY")
            assert ready["MAINPID"] == str(made.process.pid)
            hear("WATCHDOG")
            hear("WATCHDOG")
            made.process.send_signal(signal.SIGHUP)
            assert int(hear("RELOADING")["MONOTONIC_USEC"]) > 0
            hear("READY")
            assert eventually(lambda: bool(made.said("reloaded")), DEADLINE)
            # An agent and the watchdog are there by now: they know nothing of all this.
            httpx2.post(
                f"http://127.0.0.1:{sock.getsockname()[1]}/session",
                json={"cwd": str(tmp_path / "workspace")},
            ).raise_for_status()
            children = descendants(made.process.pid) - {made.process.pid}
            assert len(children) >= 2
            for pid in children:
                environ = Path(f"/proc/{pid}/environ").read_bytes()
                for name in (b"LISTEN_", b"NOTIFY_SOCKET", b"WATCHDOG_"):
                    assert name not in environ
                inode = os.stat(f"/proc/{made.process.pid}/fd/3").st_ino
                fds = Path(f"/proc/{pid}/fd")
                assert all(fd.stat().st_ino != inode for fd in fds.iterdir() if fd.exists())
            made.process.send_signal(signal.SIGTERM)
            hear("STOPPING")
            # No second signal: it would not wait.
            assert made.process.wait(DEADLINE) == 0


def test_systemd_s_own_tool(tmp_path: Path) -> None:
    tool = shutil.which("systemd-socket-activate")
    if tool is None:
        assert os.environ.get("CI") != "true", "apt-get install systemd"
        pytest.skip("systemd-socket-activate is not installed")
    (tmp_path / "workspace").mkdir()
    with tcp() as free:
        port = free.getsockname()[1]
    path = tmp_path / "s"
    env = base_environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
    passed = [word for name in env for word in ("-E", name)]
    serve = [sys.executable, "-m", "acp_gateway", "serve", "--agent", "demo"]
    process = subprocess.Popen(
        [tool, "-l", f"127.0.0.1:{port}", "-l", str(path), "--fdname=web:unix", *passed, *serve],
        cwd=tmp_path / "workspace",
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        umask=0o077,
        start_new_session=True,
    )
    try:
        assert eventually(path.exists, DEADLINE)
        # The first client waits in the backlog until the daemon that it started is there.
        answer = httpx2.get(f"http://127.0.0.1:{port}/health", timeout=60)
        assert answer.json()["status"] == "ok"
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path))) as http:
            assert http.get("http://x/health").status_code == 200
    finally:
        process.terminate()
        _, log = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, log
