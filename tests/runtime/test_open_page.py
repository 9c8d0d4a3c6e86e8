"""``--open``: the token is in no command line, and its file does not stay."""

from __future__ import annotations

import html
import re
import stat
import webbrowser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import pytest
import trio
from trio.testing import MockClock

from acp_gateway.config import ConfigError
from acp_gateway.runtime import open_page as module
from acp_gateway.runtime.open_page import KEPT, open_page

PAGE, TOKEN = "http://127.0.0.1:4170/", "the-token&<\"'>%20;"


class Browser:
    """Reads what it is given at once."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.opened: list[str] = []
        self.sent_to = ""

    def open(self, url: str) -> bool:
        self.opened.append(url)
        if url.startswith("file:"):
            path = Path(url2pathname(urlsplit(url).path))
            assert path.parent == self.place and stat.S_IMODE(path.stat().st_mode) == 0o600
            (content,) = re.findall(r'content="(0;[^"]*)"', path.read_text())
            self.sent_to = html.unescape(content).removeprefix("0; url=")
        return True

    def left(self) -> list[Path]:
        return list(self.place.iterdir())


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Browser:
    made = Browser(tmp_path)
    monkeypatch.setattr(module, "runtime_dir", lambda: tmp_path)
    monkeypatch.setattr(webbrowser, "open", made.open)
    return made


async def test_a_private_file_sends_the_browser_on(
    browser: Browser, autojump_clock: MockClock
) -> None:
    began = trio.current_time()
    await open_page(PAGE, TOKEN)
    assert trio.current_time() - began >= KEPT and not browser.left()
    (url,) = browser.opened
    assert url.startswith("file:///") and "the-token" not in url
    page, _, token = browser.sent_to.partition("#token=")
    assert (page, unquote(token)) == (PAGE, TOKEN)


async def test_the_file_goes_with_the_daemon(browser: Browser) -> None:
    with trio.move_on_after(0.3) as scope:
        await open_page(PAGE, TOKEN)
    assert scope.cancelled_caught and browser.sent_to and not browser.left()


async def test_without_a_token_there_is_no_file(browser: Browser) -> None:
    await open_page(PAGE, None)
    assert browser.opened == [PAGE] and not browser.left()


@pytest.mark.parametrize("exc", [OSError("no room"), ConfigError("not private")])
async def test_what_fails_ends_nothing(
    browser: Browser, monkeypatch: pytest.MonkeyPatch, exc: Exception
) -> None:
    def broken() -> Path:
        raise exc

    monkeypatch.setattr(module, "runtime_dir", broken)
    await open_page(PAGE, TOKEN)
    assert browser.opened == []
