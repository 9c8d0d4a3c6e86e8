"""The real web shell of the qwen package, served by ``--web``, in a real browser.

What it puts on the browser's console against us is compared with what it does against the server
that it was made for: a route that we lack shows as an error there.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from chromium import Browser, Page, running_browser

from agent_env import AGENTS, qwen_environment  # isort: skip  (chromium puts tests/ on the path)
from fake_model import FakeModel  # isort: skip
from gateway_process import running_gateway  # isort: skip
from peers_env import find, need, node  # isort: skip

pytestmark = pytest.mark.real

START_TIMEOUT = 60.0
FIELD = "[contenteditable=true], textarea"
ALLOW = "button:has-text('Yes, allow once')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    need("node", "qwen")
    with running_browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def model() -> Iterator[FakeModel]:
    with FakeModel() as server:
        yield server


def shell_directory() -> Path:
    return find("qwen").parent / "web-shell"


@contextmanager
def real_server(workspace: Path, env: Mapping[str, str]) -> Iterator[str]:
    """``qwen serve`` on a free port; gives its base URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    argv = [str(node()), str(find("qwen")), "serve", "--port", port, "--workspace", str(workspace)]
    process = subprocess.Popen(
        argv, env=env, cwd=workspace, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail("qwen serve did not start")
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def say(page: Page, text: str) -> None:
    page.click(FIELD)
    page.type(text)
    page.press("Enter")


def use(page: Page, url: str, prompt: str, answer: str, file: Path, shots: Path) -> None:
    """A person's way: menu of commands, a message, an approval, the answer, a reload."""
    assert page.goto(url) == 200
    page.wait(FIELD)
    page.click(FIELD)
    page.type("/")
    page.wait("text=Show help and commands")
    page.press("Backspace")
    say(page, prompt)
    page.wait(ALLOW)
    page.screenshot(shots / "question.png")
    assert not file.exists()
    page.click(ALLOW)
    page.wait(f"text={answer}")
    assert file.exists()
    page.screenshot(shots / "answer.png")
    page.reload()
    page.wait(f"text={answer}")
    page.wait(FIELD)
    page.wait("text=esc to cancel", "detached")  # the turn has ended for the shell too
    page.screenshot(shots / "reloaded.png")


def complaints(page: Page) -> set[str]:
    """The console's errors and warnings without what differs from run to run."""
    found = set()
    for line in page.noise():
        first = line.splitlines()[0]
        first = re.sub(r"http://127\.0\.0\.1:\d+", "", first)
        first = re.sub(r"/[^/ ]*%2F[^/ ]*", "/CWD", first)
        found.add(re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", first))
    return found


@pytest.fixture(scope="module")
def real_complaints(
    browser: Browser, model: FakeModel, tmp_path_factory: pytest.TempPathFactory
) -> set[str]:
    """What the shell complains of with the server that it was made for."""
    base = tmp_path_factory.mktemp("real")
    workspace = base / "workspace"
    workspace.mkdir()
    file = workspace / "written.txt"
    with real_server(workspace, qwen_environment(base / "home", model.url)) as url:
        page = browser.page()
        use(page, url, f"WRITE {file}", "The tool has answered.", file, base)
        return complaints(page)


@pytest.mark.parametrize("agent", ["qwen", "demo", "goose"])
def test_web_shell(
    agent: str, browser: Browser, model: FakeModel, real_complaints: set[str], tmp_path: Path
) -> None:
    kind = AGENTS[agent]
    need(*kind.peers)
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    file = workspace / kind.prompts.get("file", "acp-demo.txt")
    prompt, answer = f"WRITE {file}", "The tool has answered."
    if agent == "demo":
        prompt, answer = "hello there", "I wrote acp-demo.txt."
    env = kind.environment(tmp_path / "home", model.url)
    args = ["--agent", agent, "--web", str(shell_directory())]
    with running_gateway(workspace, env, args) as gateway:
        page = browser.page()
        use(page, gateway.url, prompt, answer, file, tmp_path)
        assert page.text(ALLOW) == []  # what was decided is not asked again
        assert complaints(page) <= real_complaints
        # Our own page is there beside it.
        assert page.goto(f"{gateway.url}/demo") == 200
        page.wait("#list .session")
