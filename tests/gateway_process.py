"""A gateway in a process of its own, for tests that look at it from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READY_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0


class GatewayProcess:
    """``python -m acp_gateway serve`` on a free port of loopback.

    Raises `RuntimeError` with the end of stderr when it does not become ready.
    """

    def __init__(
        self,
        workspace: Path,
        env: Mapping[str, str],
        args: Sequence[str] = (),
        program: Sequence[str] = ("-m", "acp_gateway"),
    ) -> None:
        argv = [sys.executable, *program, "serve", "--port", "0"]
        argv += ["--workspace", str(workspace), *args]
        self.process = subprocess.Popen(
            argv,
            cwd=workspace,
            env={**env, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.url = ""
        """Base URL, ``http://127.0.0.1:PORT``."""
        self.ws_url = ""
        """The WebSocket endpoint, ``ws://127.0.0.1:PORT/acp``."""
        self._tail: deque[str] = deque(maxlen=200)
        self._ready = threading.Event()
        # Reads to the end: a daemon that logs to a full pipe would stand still.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        deadline = time.monotonic() + READY_TIMEOUT
        while not self._ready.wait(0.1):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the gateway did not become ready:\n{self.stderr_tail()}")

    @property
    def http_url(self) -> str:
        """The Streamable HTTP endpoint."""
        return f"{self.url}/acp"

    def stderr_tail(self) -> str:
        return "".join(self._tail)

    def stop(self) -> int:
        """Ends it with SIGTERM, with SIGKILL when that is not enough; gives the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        return self.process.returncode

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                self._tail.append(line)
                if not self._ready.is_set():
                    self._look_for_ready(line)

    def _look_for_ready(self, line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            return
        if isinstance(event, dict) and event.get("event") == "ready":
            self.url = str(event["url"]).rstrip("/")
            self.ws_url = str(event["ws_url"])
            self._ready.set()


@contextmanager
def running_gateway(
    workspace: Path, env: Mapping[str, str], args: Sequence[str] = ()
) -> Iterator[GatewayProcess]:
    """A `GatewayProcess` for the length of a block."""
    gateway = GatewayProcess(workspace, env, args)
    try:
        yield gateway
    finally:
        gateway.stop()
