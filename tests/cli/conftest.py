"""A home of one's own for every CLI test, and a stand-in daemon."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from acp_gateway.cli import spawn
from acp_gateway.cli.app import run
from acp_gateway.runtime import runtime_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """HOME, the runtime directory and the current directory are empty and private."""
    for name in list(os.environ):
        if name.startswith(("ACP_GATEWAY_", "XDG_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    path = tmp_path / "home"
    path.mkdir()
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(path)
    yield path
    # A failed test must not leave its daemon behind.
    for process in spawn._spawned:
        process.kill()
        process.wait()
    spawn._spawned.clear()


@attrs.frozen
class Done:
    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Done]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """``cli("serve", "--port", "0")``: run a command in this process."""

    def call(*argv: str) -> Done:
        capfd.readouterr()
        status = run(argv)
        captured = capfd.readouterr()
        return Done(status, captured.out, captured.err)

    return call


@pytest.fixture
def no_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH without any agent; returns its only directory."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    return path


_STAND_IN = """
import http.server, os, signal, sys, types

def run(loaded, profiles, reread):
    from acp_gateway.runtime import runtime_file
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = b'{"status": "ok", "sessions": 0}'
            ok = self.headers["Authorization"] in (None, "Bearer t0p")
            self.send_response(200 if ok else 401)
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *args):
            pass
    settings = loaded.settings
    server = http.server.HTTPServer((settings.host, settings.port), Handler)
    port = server.server_address[1]
    runtime_file.write(runtime_file.RuntimeInfo.of_this_process(
        url=f"http://127.0.0.1:{port}", ws_url=f"ws://127.0.0.1:{port}/acp",
        workspace=settings.workspace, agents=profiles, auth="none", token=settings.token))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server.serve_forever()

module = types.ModuleType("acp_gateway.daemon")
module.run = run
sys.modules["acp_gateway.daemon"] = module
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes find a daemon that has a runtime file and answers, and no more."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{ROOT}")


def make_info(**changes: Any) -> runtime_file.RuntimeInfo:
    """The runtime file of a daemon that is this process."""
    port = changes.pop("port", 4170)
    info = runtime_file.RuntimeInfo.of_this_process(
        url=f"http://127.0.0.1:{port}",
        ws_url=f"ws://127.0.0.1:{port}/acp",
        workspace=[Path.cwd()],
        agents=["demo"],
        auth="a token is required",
        token="s3cret",
    )
    return attrs.evolve(info, **changes)
