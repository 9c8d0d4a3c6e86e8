"""A headless Chromium that tests drive line by line (see chromium.mjs).

Chromium is looked for in ``CHROMIUM`` and on PATH; playwright-core comes from npm.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from peers_env import modules_dir, need, node  # noqa: E402

TIMEOUT = 20.0
"""Seconds for one thing to show."""


def need_browser() -> str:
    """Chromium's path. Skips the test where something is absent, fails it under ``CI=true``."""
    need("node")
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if not (modules_dir() / "playwright-core" / "package.json").exists():
        reason = "playwright-core is not installed; run `npm ci` in tests/peers"
    elif found is None:
        reason = "there is no Chromium; install the package chromium, or name one in CHROMIUM"
    else:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class Browser:
    """One browser process; `page` opens a tab with a storage of its own."""

    def __init__(self, chromium: str, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        env = {
            "HOME": str(home),
            "PATH": os.environ.get("PATH", os.defpath),
            "ACP_GATEWAY_PEERS": str(modules_dir()),
        }
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by close)
        self._process = subprocess.Popen(
            [str(node()), str(HERE / "chromium.mjs"), chromium],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._pages = 0

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def call(self, op: str, timeout: float = TIMEOUT, **fields: Any) -> Any:
        assert self._process.stdin is not None
        command = {"op": op, "timeout": timeout * 1000, **fields}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._lines.get(timeout=timeout + 60)
        if not line:
            self._stderr.seek(0)
            raise RuntimeError(f"the browser ended:\n{self._stderr.read()[-4000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise AssertionError(f"{op} {fields}: {answer['error']}")
        return answer["ok"]

    def page(self, width: int = 1280, height: int = 800, *, dark: bool = False) -> Page:
        self._pages += 1
        name = str(self._pages)
        self.call("open", page=name, width=width, height=height, dark=dark)
        return Page(self, name)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        self._process.stdout.close()
        self._stderr.close()


class Page:
    """One tab. Selectors are Playwright's; what does not come in time is an AssertionError."""

    def __init__(self, browser: Browser, name: str) -> None:
        self._browser = browser
        self._name = name

    def _call(self, op: str, **fields: Any) -> Any:
        return self._browser.call(op, page=self._name, **fields)

    def goto(self, url: str) -> int:
        """Gives the status."""
        return int(self._call("goto", url=url))

    def reload(self) -> None:
        self._call("reload")

    def click(self, selector: str) -> None:
        self._call("click", selector=selector)

    def fill(self, selector: str, text: str) -> None:
        self._call("fill", selector=selector, text=text)

    def press(self, *keys: str) -> None:
        for each in keys:
            self._call("press", keys=each)

    def type(self, text: str) -> None:
        self._call("type", text=text)

    def select(self, selector: str, value: str) -> None:
        self._call("select", selector=selector, value=value)

    def wait(self, selector: str, state: str = "visible", timeout: float = TIMEOUT) -> None:
        self._call("wait", selector=selector, state=state, timeout=timeout)

    def until(self, script: str, timeout: float = TIMEOUT) -> None:
        """Wait until the expression is true in the page."""
        self._call("until", script=script, timeout=timeout)

    def text(self, selector: str) -> list[str]:
        """What each element shows."""
        return list(self._call("text", selector=selector))

    def evaluate(self, script: str) -> Any:
        return self._call("evaluate", script=script)

    def screenshot(self, path: Path) -> None:
        self._call("screenshot", path=str(path))

    def drop_sockets(self) -> None:
        """End the WebSockets of the page, as a network would."""
        self._call("drop")

    def noise(self) -> list[str]:
        """Errors and warnings on the console, and exceptions, since the last `forget`."""
        return list(self._call("seen")["noise"])

    def requests(self) -> list[dict[str, Any]]:
        """What was asked since the last `forget`: method, url, status."""
        return list(self._call("seen")["requests"])

    def sockets(self) -> int:
        """How many WebSockets the tab has opened so far."""
        return int(self._call("seen")["sockets"])

    def forget(self) -> None:
        self._call("forget")


@contextmanager
def running_browser(home: Path) -> Iterator[Browser]:
    """Skips the test where there is no browser."""
    browser = Browser(need_browser(), home)
    try:
        yield browser
    finally:
        browser.close()
