"""The page at /pair in a real browser: a code in the address, and digits typed by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, running_browser

from agent_env import AGENTS  # isort: skip  (chromium puts tests/ on the path)
from gateway_process import ROOT, GatewayProcess, running_gateway  # isort: skip

from acp_gateway.token_store import TokenStore

pytestmark = pytest.mark.real

READY = "document.body.dataset.connection === 'ready'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


def code_of(gateway: GatewayProcess, home: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "acp_gateway", "pair", "--json", str(gateway.process.pid)],
        env={**AGENTS["demo"].environment(home, ""), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, str] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("typed", [False, True], ids=["scanned", "typed"])
def test_a_device_pairs_and_goes_on(browser: Browser, tmp_path: Path, typed: bool) -> None:
    workspace, home = tmp_path / "workspace", tmp_path / "home"
    workspace.mkdir()
    tokens = tmp_path / "tokens.json"
    env = AGENTS["demo"].environment(home, "") | {"ACP_GATEWAY_TOKENS_FILE": str(tokens)}
    args = ["--agent", "demo", "--token", "right-token"]
    with running_gateway(workspace, env, args) as gateway:
        told = code_of(gateway, home)
        page = browser.page(380, 740)
        if typed:
            page.goto(f"{gateway.url}/pair")
            page.fill("#name", "my-phone")
            page.fill("#code", "000 000" if told["code"] != "000000" else "1")
            page.click("#send")
            page.wait("#told >> text=not good")
            page.screenshot(tmp_path / "pair.png")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.fill("#code", f"{told['code'][:3]} {told['code'][3:]}")
            page.click("#send")
        else:
            page.goto(told["url"])
        page.until(READY)
        href = page.evaluate("location.href")
        assert href.startswith(f"{gateway.url}/demo") and told["code"] not in href
        (kept,) = TokenStore(tokens).read()
        assert kept.name == ("my-phone" if typed else "linux")
        # And out again: the page asks for another token.
        TokenStore(tokens).revoke(kept.name)
        page.wait("#token-dialog[open]")
