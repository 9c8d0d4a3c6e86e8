"""The conformance suite: its manifest holds together, and our own gateway passes it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from conformance.manifest import BY_ID, REQUIREMENTS
from conformance.registry import load_cases
from conformance.requirement import TRANSPORTS
from conformance.sse import SseParser
from conformance.target import Target

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT = 30.0
SUITE_TIMEOUT = 420.0
STOP_TIMEOUT = 20.0
TOKEN = "conformance-token"
# They need a timer, a token or a small ring.
SKIPPED = {"WS-011", "WS-020", "SSE-014", "REPLAY-016", "GUARD-007", "GUARD-008"}
SKIPPED |= {"GUARD-010", "GUARD-011"}
# They need the session shell, which is off.
SKIPPED |= {f"SHELL-{number:03}" for number in range(1, 15) if number != 11}


def test_ids_are_unique() -> None:
    twice = [id for id, count in Counter(row.id for row in REQUIREMENTS).items() if count > 1]
    assert twice == []


def test_every_requirement_has_a_case_and_every_case_a_requirement() -> None:
    proved = [case.requirement.id for case in load_cases()]
    assert sorted(proved) == sorted(BY_ID)


def test_transports_agree() -> None:
    for row in REQUIREMENTS:
        assert row.transports
        assert set(row.transports) <= set(TRANSPORTS)
        # What only one transport has is grouped under its name.
        prefix = row.id.split("-")[0]
        if prefix == "HTTP":
            assert row.transports == ("http",)
        elif prefix == "WS":
            assert row.transports == ("ws",)


def test_rows_can_be_read_by_a_person() -> None:
    for row in REQUIREMENTS:
        assert row.source
        assert 20 <= len(row.text) <= 90, row.id
        assert not row.text.endswith("."), row.id


def test_there_are_enough_cases() -> None:
    assert len(REQUIREMENTS) >= 500
    runs = Counter(transport for row in REQUIREMENTS for transport in row.transports)
    assert all(runs[transport] >= 150 for transport in TRANSPORTS), runs


def test_the_suite_is_a_black_box() -> None:
    for path in (ROOT / "conformance").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", [])]
            names.append(getattr(node, "module", None) or "")
            assert not [n for n in names if str(n).split(".")[0] == "acp_gateway"], path


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:4170", "http://127.0.0.1:4170/acp"),
        ("127.0.0.1:4170", "http://127.0.0.1:4170/acp"),
        ("wss://host.example/agents/x/acp", "https://host.example:443/agents/x/acp"),
        ("http://[::1]:99/", "http://[::1]:99/acp"),
    ],
)
def test_target(url: str, expected: str) -> None:
    assert Target.parse(url).http_url == expected


@pytest.mark.parametrize("url", ["ftp://host", "http://"])
def test_target_refuses(url: str) -> None:
    with pytest.raises(ValueError, match=r"use a http|host is missing"):
        Target.parse(url)


def test_sse_events_in_any_pieces() -> None:
    stream = b': hi\n\nid: 7\ndata: {"a":1}\n\nretry: 3000\n\ndata: \xc3\xa9\n\n'
    for size in range(1, len(stream) + 1):
        parser = SseParser()
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        events = [event for piece in pieces for event in parser.feed(piece)]
        assert [(event.data, event.id) for event in events] == [('{"a":1}', "7"), ("é", None)]
        assert parser.faults == []
        assert parser.comments == 1


@pytest.mark.parametrize("stream", [b"data: {\ndata: }\n\n", b"data: {}\r\n\ndata: {}\n\n"])
def test_sse_faults(stream: bytes) -> None:
    parser = SseParser()
    parser.feed(stream)
    assert parser.faults


# --- against our own gateway


def _environment(home: Path) -> dict[str, str]:
    # Nothing of the machine's own configuration may decide how the gateway behaves.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACP_", "XDG_"))}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**kept, "HOME": str(home), "PYTHONPATH": path}


@asynccontextmanager
async def _gateway(tmp_path: Path, *options: str) -> AsyncIterator[str]:
    """A running gateway with the demo agent; its URL. It must end well when told to."""
    home = tmp_path / "home"
    workspace = tmp_path / "workspace"
    for directory in (home, workspace):
        directory.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "acp_gateway", "serve", "--port", "0", "--agent", "demo"]
    process = await trio.lowlevel.open_process(
        [*command, "--workspace", str(workspace), *options],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_environment(home),
        cwd=workspace,
    )
    assert process.stderr is not None
    log: list[bytes] = []
    try:
        async with trio.open_nursery() as nursery:
            url = await nursery.start(_follow, process.stderr, log)
            yield url
            process.terminate()
            with trio.fail_after(STOP_TIMEOUT):
                assert await process.wait() == 0, b"".join(log).decode()
    finally:
        # Also when the test failed or was cancelled: the process must not outlive it.
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stderr.aclose()


async def _follow(
    stderr: trio.abc.ReceiveStream,
    log: list[bytes],
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Read stderr to its end, so that the gateway never waits for us; report its URL."""
    rest = b""
    ready = False
    with trio.CancelScope(deadline=trio.current_time() + START_TIMEOUT) as scope:
        async for chunk in stderr:
            log.append(bytes(chunk))
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                found = None if ready else _url(line)
                if found:
                    ready = True
                    scope.deadline = float("inf")
                    task_status.started(found)
    assert ready, f"no URL within {START_TIMEOUT} s: {b''.join(log).decode()}"


def _url(line: bytes) -> str | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    url = record.get("url") if isinstance(record, dict) else None
    return url if isinstance(url, str) else None


async def _suite(tmp_path: Path, url: str, *options: str) -> dict[str, Any]:
    """Run the suite as a person would; its report. Fails with what it printed."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "conformance", url, "--json", str(report)]
    with trio.fail_after(SUITE_TIMEOUT):
        done = await trio.run_process(
            [*command, "--cwd", str(tmp_path / "workspace"), *options],
            cwd=ROOT,
            env=_environment(tmp_path / "home"),
            capture_stdout=True,
            check=False,
        )
    printed = done.stdout.decode()
    bad = [line for line in printed.splitlines() if " pass " not in line and " skip " not in line]
    assert done.returncode == 0, "\n".join(bad)
    return dict(json.loads(report.read_text()))


async def test_our_gateway_passes(tmp_path: Path) -> None:
    async with _gateway(tmp_path) as url:
        report = await _suite(tmp_path, url)
    assert report["server"]["name"] == "acp-gateway"
    assert report["totals"]["fail"] == 0
    assert report["totals"]["pass"] >= 300
    skipped = {case["id"] for case in report["cases"] if case["verdict"] == "skip"}
    assert {id for id in skipped if not id.startswith(("AUTH-", "CORS-", "RATE-"))} <= SKIPPED
    assert list((tmp_path / "workspace").iterdir()) == []


async def test_our_gateway_with_a_token_passes(tmp_path: Path) -> None:
    only = ["--only", "AUTH", "INIT-001", "HTTP-001", "HTTP-022", "WS-001", "WS-007", "PERM-001"]
    only += ["GUARD", "CAP-001", "SSE-001", "TURN-001", "VOTE-001", "CROSS-004"]
    async with _gateway(tmp_path, "--token", TOKEN) as url:
        report = await _suite(tmp_path, url, "--token", TOKEN, *only)
    assert report["totals"]["skip"] == 0
    assert report["totals"]["fail"] == 0


async def test_our_gateway_with_limits_and_an_origin_passes(tmp_path: Path) -> None:
    origin = "https://app.example"
    flags = ("--token", TOKEN, "--allow-origin", origin, "--rate-limit", "--rate-limit-read", "40")
    async with _gateway(tmp_path, *flags, "--rate-limit-window", "7200") as url:
        asked = ("--token", TOKEN, "--origin", origin, "--transport", "rest", "--only")
        for group, cases in (("CORS", 4), ("RATE-001", 1)):
            report = await _suite(tmp_path, url, *asked, group)
            assert (report["totals"]["pass"], report["totals"]["fail"]) == (cases, 0)
    for number in range(2, 7):
        # Each uses up what there is.
        async with _gateway(tmp_path, *flags) as url:
            report = await _suite(tmp_path, url, *asked, f"RATE-00{number}")
        assert (report["totals"]["pass"], report["totals"]["fail"]) == (1, 0)
