"""Start an agent, send it initialize, stop it: what ``doctor`` says about an agent.

Blocking and without the runtime on purpose: it must work when the runtime does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import attrs

from acp_gateway import __version__
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.redact import redact

_STOP_STEP: Final = 3.0
_TAIL: Final = 4096


@attrs.frozen(kw_only=True)
class Handshake:
    """The outcome. ``kind`` is ``ok`` or the name of what went wrong."""

    kind: str
    message: str
    seconds: float


def handshake(
    profile: AgentProfile, *, timeout: float, cwd: Path, environ: Mapping[str, str]
) -> Handshake:
    """Never raises for what the agent does. Ends everything that it started."""
    started = time.monotonic()

    def done(kind: str, message: str) -> Handshake:
        return Handshake(kind=kind, message=message, seconds=time.monotonic() - started)

    try:
        process = subprocess.Popen(
            profile.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=profile.cwd or cwd,
            env=profile.environment(environ),
            start_new_session=True,
        )
    except OSError as error:
        return done("agent_start_failed", f"It could not be started: {error.strerror or error}.")
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    tail = bytearray()
    assert process.stdin
    assert process.stdout
    assert process.stderr
    threads = [
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True),
        threading.Thread(target=_keep_tail, args=(process.stderr, tail), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        with contextlib.suppress(OSError):
            process.stdin.write(_initialize(profile))
            process.stdin.flush()
        while True:
            left = started + timeout - time.monotonic()
            try:
                line = lines.get(timeout=max(left, 0.001))
            except queue.Empty:
                return done(
                    "agent_handshake_timeout",
                    f"It did not answer initialize within {timeout:g} s.{_said(tail)}",
                )
            if line is None:
                threads[1].join(1)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1)
                return done(
                    "agent_exited",
                    f"It ended (status {process.returncode}) before it answered.{_said(tail)}",
                )
            if (answer := _answer(line)) is not None:
                return done(*_judge(answer))
    finally:
        _stop(process, ignores_eof=profile.quirks.ignores_eof)
        for thread in threads:
            thread.join(1)


def _initialize(profile: AgentProfile) -> bytes:
    quirks = profile.quirks
    params: dict[str, Any] = {
        "protocolVersion": 1,
        "clientCapabilities": {
            "fs": {
                "readTextFile": quirks.advertise_fs_read,
                "writeTextFile": quirks.advertise_fs_write,
            }
        },
        "clientInfo": {"name": "acp-gateway", "version": __version__},
    }
    if quirks.initialize_meta:
        params["_meta"] = dict(quirks.initialize_meta)
    message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    return json.dumps(message).encode() + b"\n"


def _answer(line: bytes) -> dict[str, Any] | None:
    """The response to our request; other messages and garbage are skipped."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    if isinstance(message, dict) and message.get("id") == 0 and "method" not in message:
        return message
    return None


def _judge(answer: dict[str, Any]) -> tuple[str, str]:
    result = answer.get("result")
    if not isinstance(result, dict):
        error = answer.get("error")
        said = error.get("message") if isinstance(error, dict) else "no result"
        return "agent_error", f"It answered initialize with an error: {redact(str(said))}."
    if result.get("protocolVersion") != 1:
        return "agent_version", f"It speaks ACP version {result.get('protocolVersion')}, not 1."
    info = result.get("agentInfo")
    info = info if isinstance(info, dict) else {}
    name = " ".join(str(info[key]) for key in ("name", "version") if info.get(key))
    return "ok", f"Handshake done{f': {name}' if name else ''}."


def _said(tail: bytearray) -> str:
    lines = bytes(tail).decode("utf-8", "replace").strip().splitlines()
    return f" It said: {redact(lines[-1].strip())[:300]}" if lines else ""


def _pump(stream: IO[bytes], lines: queue.SimpleQueue[bytes | None]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            lines.put(line)
    lines.put(None)


def _keep_tail(stream: IO[bytes], tail: bytearray) -> None:
    with contextlib.suppress(OSError, ValueError):
        while chunk := os.read(stream.fileno(), 65536):
            tail += chunk
            del tail[:-_TAIL]


def _stop(process: subprocess.Popen[bytes], *, ignores_eof: bool) -> None:
    """Close stdin, SIGTERM to the group, SIGKILL to the group; each with a deadline."""
    with contextlib.suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]
    if not ignores_eof:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        # The group also when its leader is gone: wrappers leave the real agent behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_STEP)
    for stream in (process.stdout, process.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.close()  # type: ignore[union-attr]
