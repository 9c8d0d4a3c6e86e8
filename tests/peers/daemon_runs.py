"""Runs daemon_client.mjs against a daemon and writes what it found into a table.

``python tests/peers/daemon_runs.py --daemon qwen-serve`` starts the real ``qwen serve`` on the fake
model and drives it over each transport; ``--daemon demo`` (or ``qwen``, ``goose``) does the same
with a gateway that has that agent behind it. ``--table FILE`` fills the columns of that daemon in a
Markdown table and leaves the others as they are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import peers_env  # noqa: E402
from agent_env import AGENTS, base_environment, qwen_environment  # noqa: E402
from fake_model import FakeModel  # noqa: E402
from gateway_process import running_gateway  # noqa: E402

TRANSPORTS = ("rest", "acp-ws", "acp-http")
TOKEN = "a-token-of-the-tests"
COLUMNS = [f"{who} {how}" for who in ("qwen serve", "gateway") for how in TRANSPORTS]
RUN_TIMEOUT = 900
READY_TIMEOUT = 60

Line = dict[str, Any]
"""One line of the driver: step, ok, detail, ms and maybe skipped, better."""


def run_driver(
    base: str,
    transport: str,
    agent: str,
    cwd: Path,
    *,
    token: str | None = None,
    only: Sequence[str] = (),
    extra: Sequence[str] = (),
) -> list[Line]:
    """Every step's line. Raises `RuntimeError` when the driver dies before its last step."""
    with tempfile.TemporaryDirectory() as home:
        env = base_environment(Path(home))
        env["ACP_GATEWAY_PEERS"] = str(peers_env.modules_dir())
        argv = [str(peers_env.node()), str(HERE / "daemon_client.mjs"), "--base", base]
        argv += ["--transport", transport, "--agent", agent, "--cwd", str(cwd)]
        argv += ["--token", token] if token else []
        argv += ["--only", ",".join(only)] if only else []
        done = subprocess.run(
            [*argv, *extra], env=env, capture_output=True, text=True, timeout=RUN_TIMEOUT
        )
    lines: list[Line] = [json.loads(line) for line in done.stdout.splitlines()]
    if not lines or done.returncode != int(any(not line["ok"] for line in lines)):
        raise RuntimeError(f"the driver ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return lines


def gateway_environment(agent: str, home: Path, model_url: str) -> dict[str, str]:
    """The agent's environment and a gateway's settings for a run of the driver."""
    # Every step makes sessions of its own; what it leaves behind goes soon.
    settings = {"ACP_GATEWAY_LINGER": "5", "ACP_GATEWAY_LINGER_UNPROMPTED": "5"}
    settings["ACP_GATEWAY_ENABLE_SESSION_SHELL"] = "true"
    return AGENTS[agent].environment(home, model_url) | settings | {"ACP_GATEWAY_TOKEN": TOKEN}


@contextmanager
def qwen_serve(workspace: Path, env: Mapping[str, str], args: Sequence[str] = ()) -> Iterator[str]:
    """The base URL of a real ``qwen serve`` on a free port of loopback."""
    process = subprocess.Popen(
        ["qwen", "serve", "--port", "0", *args],
        cwd=workspace,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    found: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if match := re.search(r"listening on (http://\S+)", line):
                found.append(match[1])
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        if not ready.wait(READY_TIMEOUT) or not found:
            raise RuntimeError("qwen serve did not become ready")
        yield found[0]
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cell(line: Line) -> str:
    """``yes``, ``no``, ``sdk`` (the SDK cannot do it there) or ``-`` (not to be done there)."""
    if not line["ok"]:
        return "no"
    if line.get("skipped"):
        return "sdk" if line["detail"].startswith("the SDK") else "-"
    return "yes"


def fill(table: Path, daemon: str, runs: Mapping[str, list[Line]]) -> None:
    """Writes the columns of one daemon into the table of a Markdown file, rows in step order."""
    text = table.read_text(encoding="utf-8")
    head = "| step | " + " | ".join(COLUMNS) + " |"
    before, _, rest = text.partition(head)
    lines = rest.lstrip("\n").splitlines()
    table_lines = list(itertools.takewhile(lambda line: line.startswith("|"), lines))
    rows: dict[str, dict[str, str]] = {}
    for line in table_lines[1:]:
        name, *cells = (word.strip() for word in line.strip("|").split("|"))
        rows[name] = dict(zip(COLUMNS, cells, strict=True))
    for transport, found in runs.items():
        for one in found:
            row = rows.setdefault(one["step"], dict.fromkeys(COLUMNS, ""))
            row[f"{daemon} {transport}"] = cell(one)
    body = [head, "|---" * (len(COLUMNS) + 1) + "|"]
    body += [f"| {name} | " + " | ".join(row.values()) + " |" for name, row in rows.items()]
    table.write_text(
        before + "\n".join([*body, *lines[len(table_lines) :]]) + "\n", encoding="utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--daemon", choices=["qwen-serve", *AGENTS], required=True)
    parser.add_argument("--transport", action="append", choices=TRANSPORTS)
    parser.add_argument("--only", default="", help="steps, with commas between them")
    parser.add_argument("--table", type=Path, help="a Markdown file with the table to fill")
    options = parser.parse_args()
    real = options.daemon == "qwen-serve"
    agent = "qwen" if real else options.daemon
    runs: dict[str, list[Line]] = {}
    with tempfile.TemporaryDirectory() as directory, FakeModel() as model:
        base = Path(directory).resolve()
        workspace = base / "workspace"
        workspace.mkdir()
        if real:
            env = qwen_environment(base / "home", model.url)
            os.environ["PATH"] = env["PATH"]
            daemon = qwen_serve(workspace, env)
        else:
            env = gateway_environment(agent, base / "home", model.url)
            daemon = running_gateway(workspace, env, ["--agent", agent])
        with daemon as running:
            url, token = (running, None) if isinstance(running, str) else (running.url, TOKEN)
            only = [name for name in options.only.split(",") if name]
            for transport in options.transport or TRANSPORTS:
                lines = run_driver(url, transport, agent, workspace, token=token, only=only)
                runs[transport] = lines
                for line in lines:
                    better = " (better)" if line.get("better") else ""
                    print(
                        f"{transport} {line['step']}{better}: {cell(line)} {line['detail'][:200]}"
                    )
    if options.table:
        fill(options.table, "qwen serve" if real else "gateway", runs)


if __name__ == "__main__":
    main()
