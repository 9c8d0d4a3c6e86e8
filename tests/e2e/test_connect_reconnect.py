"""``acp-gateway connect`` across a lost network and a restarted gateway, seen from the editor."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

from tests.gateway_process import GatewayProcess

WAIT = 30.0
HOST = "127.0.0.2"
"""Where the gateway listens."""


class Network:
    """A TCP relay that can be cut and restored.

    It has the gateway's port on another loopback address: the port in the Host header must fit.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._listener = socket.create_server(("127.0.0.1", port))
        self._up = True
        self._pairs: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if not self._up:
                    raise OSError
                server = socket.create_connection((HOST, self.port))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._pairs += [client, server]
            for source, sink in ((client, server), (server, client)):
                thread = threading.Thread(target=self._copy, args=(source, sink), daemon=True)
                self._threads.append(thread)
                thread.start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        with self._lock:
            self._up = False
            pairs, self._pairs = self._pairs, []
            threads, self._threads = self._threads, []
        for each in pairs:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(5)
        for each in pairs:
            each.close()

    def restore(self) -> None:
        self._up = True

    def close(self) -> None:
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(5)


class Editor:
    """The editor's end of ``connect``: lines in, lines out."""

    def __init__(self, url: str, env: dict[str, str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "acp_gateway", "connect", url],
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.seen: list[dict[str, Any]] = []
        self._queue: Queue[dict[str, Any]] = Queue()
        self._stderr: list[bytes] = []
        self._next_id = 0
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._read, self._drain)
        ]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # Nothing but protocol: every line must be JSON.
            self._queue.put(json.loads(line))

    def _drain(self) -> None:
        assert self.process.stderr is not None
        self._stderr.extend(self.process.stderr)

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self.process.stdin.flush()

    def request(self, method: str, **params: Any) -> int:
        self._next_id += 1
        self.send({"id": self._next_id, "method": method, "params": params})
        return self._next_id

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read on until a message fits; all that came is kept in ``seen``."""
        deadline = time.monotonic() + WAIT
        while True:
            try:
                message = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                pytest.fail(f"nothing fitting came; last: {self.seen[-3:]}; {self._stderr[-5:]}")
            self.seen.append(message)
            if wanted(message):
                return message

    def answer(self, id: int) -> dict[str, Any]:
        return self.until(lambda m: "method" not in m and m.get("id") == id)

    def open(self, cwd: Path) -> str:
        assert "result" in self.answer(
            self.request("initialize", protocolVersion=1, clientCapabilities={})
        )
        result = self.answer(self.request("session/new", cwd=str(cwd), mcpServers=[]))["result"]
        return str(result["sessionId"])

    def prompt(self, session_id: str, text: str) -> int:
        return self.request(
            "session/prompt", sessionId=session_id, prompt=[{"type": "text", "text": text}]
        )

    def texts(self, kind: str = "agent_message_chunk") -> list[str]:
        updates = [m["params"]["update"] for m in self.seen if m.get("method") == "session/update"]
        return [u["content"]["text"] for u in updates if u["sessionUpdate"] == kind]

    def asked(self) -> list[dict[str, Any]]:
        return [m for m in self.seen if m.get("method") == "session/request_permission"]

    def close(self) -> int:
        with self.process as process:  # closes the pipes
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
            try:
                return process.wait(10)
            finally:
                process.kill()
                for thread in self._threads:
                    thread.join(5)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    run = tmp_path / "run"
    home.mkdir()
    run.mkdir(mode=0o700)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACP_", "XDG_"))}
    root = Path(__file__).resolve().parents[2]
    return {
        **kept,
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(run),
        "XDG_STATE_HOME": str(home / "state"),
        "PYTHONPATH": str(root),
    }


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace"
    path.mkdir()
    return path


@pytest.fixture
def gateway(workspace: Path, env: dict[str, str]) -> Iterator[GatewayProcess]:
    process = GatewayProcess(workspace, env, ["--agent", "demo", "--host", HOST])
    yield process
    process.stop()


@pytest.fixture
def network(gateway: GatewayProcess) -> Iterator[Network]:
    relay = Network(int(gateway.url.rsplit(":", 1)[1]))
    yield relay
    relay.close()


@pytest.fixture
def editor(network: Network, env: dict[str, str], workspace: Path) -> Iterator[Editor]:
    process = Editor(f"ws://127.0.0.1:{network.port}/acp", env, workspace)
    yield process
    assert process.close() == 0


def test_running_turn_goes_on(editor: Editor, network: Network, workspace: Path) -> None:
    session = editor.open(workspace)
    id = editor.prompt(session, "/sleep 3")
    editor.until(lambda m: m.get("method") == "session/update" and len(editor.texts()) >= 3)
    network.cut()
    network.restore()
    assert editor.answer(id)["result"]["stopReason"] == "end_turn"
    ticks = editor.texts()
    assert len(ticks) >= 20
    # What came in pieces over two connections is what the session's history says.
    history = Editor(f"ws://127.0.0.1:{network.port}/acp", editor_env(editor), workspace)
    try:
        history.answer(history.request("initialize", protocolVersion=1))
        history.answer(
            history.request("session/load", sessionId=session, cwd=str(workspace), mcpServers=[])
        )
        assert history.texts() == ticks
    finally:
        assert history.close() == 0


def editor_env(editor: Editor) -> dict[str, str]:
    pid = editor.process.pid
    raw = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(item.decode().split("=", 1) for item in raw if b"=" in item)


def test_open_question_is_asked_once(editor: Editor, network: Network, workspace: Path) -> None:
    session = editor.open(workspace)
    id = editor.prompt(session, "write it")
    question = editor.until(lambda m: m.get("method") == "session/request_permission")
    network.cut()
    network.restore()
    # The next answer shows that the bridge is back; no second question came before it.
    editor.answer(editor.request("session/list"))
    option = question["params"]["options"][0]["optionId"]
    outcome = {"outcome": {"outcome": "selected", "optionId": option}}
    editor.send({"id": question["id"], "result": outcome})
    assert editor.answer(id)["result"]["stopReason"] == "end_turn"
    assert len(editor.asked()) == 1
    assert (workspace / "acp-demo.txt").exists()


def test_answer_given_while_offline(editor: Editor, network: Network, workspace: Path) -> None:
    session = editor.open(workspace)
    id = editor.prompt(session, "write it")
    question = editor.until(lambda m: m.get("method") == "session/request_permission")
    network.cut()
    option = question["params"]["options"][0]["optionId"]
    outcome = {"outcome": {"outcome": "selected", "optionId": option}}
    editor.send({"id": question["id"], "result": outcome})
    network.restore()
    assert editor.answer(id)["result"]["stopReason"] == "end_turn"
    assert len(editor.asked()) == 1
    assert (workspace / "acp-demo.txt").exists()


def test_prompt_sent_while_offline_runs_once(
    editor: Editor, network: Network, workspace: Path
) -> None:
    session = editor.open(workspace)
    network.cut()
    id = editor.prompt(session, "/chunks 5 20")
    network.restore()
    assert editor.answer(id)["result"]["stopReason"] == "end_turn"
    assert [text[:6] for text in editor.texts()] == [f"{n:06}" for n in range(5)]


def test_restarted_gateway(
    editor: Editor,
    network: Network,
    gateway: GatewayProcess,
    workspace: Path,
    env: dict[str, str],
) -> None:
    session = editor.open(workspace)
    editor.answer(editor.prompt(session, "/chunks 3 20"))
    before = editor.texts()
    gateway.stop()
    args = ["--agent", "demo", "--host", HOST, "--port", str(network.port)]
    second = GatewayProcess(workspace, env, args)
    try:
        assert "result" in editor.answer(editor.prompt(session, "/chunks 2 30"))
        after = editor.texts()[len(before) :]
        # The agent's replay of the first turn is kept from an editor that has it.
        assert [text[:6] for text in after] == ["000000", "000001"]
    finally:
        second.stop()


def test_refusal_is_told(gateway: GatewayProcess, env: dict[str, str], workspace: Path) -> None:
    editor = Editor(gateway.ws_url + "/nowhere", env, workspace)
    answer = editor.answer(editor.request("initialize", protocolVersion=1))
    assert "404" in answer["error"]["message"]
    assert answer["error"]["data"]["remedy"]
    assert editor.process.wait(10) == 1
    editor.close()
