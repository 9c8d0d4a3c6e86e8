"""The gateway's own page in a real browser, with the demo agent behind it."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from chromium import Browser, Page, running_browser

from agent_env import AGENTS  # isort: skip  (chromium puts tests/ on the path)
from gateway_process import GatewayProcess, running_gateway  # isort: skip

pytestmark = pytest.mark.real

ENDED = "document.querySelector('#stop').hidden"
READY = "document.body.dataset.connection === 'ready'"
NO_SIDEWAYS = "document.documentElement.scrollWidth <= innerWidth"
OWN_WORDS = "#entries .user"
ANSWERS = "#entries .agent"


@dataclass
class Site:
    browser: Browser
    gateway: GatewayProcess
    workspace: Path

    def open(self, width: int = 1280, height: int = 800, *, dark: bool = False) -> Page:
        page = self.browser.page(width, height, dark=dark)
        assert page.goto(self.gateway.url) == 200
        page.until(READY)
        return page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture
def site(browser: Browser, tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield start(stack, browser, tmp_path)


def start(
    stack: ExitStack,
    browser: Browser,
    base: Path,
    *args: str,
    settings: Mapping[str, str] | None = None,
) -> Site:
    workspace = base / "workspace"
    workspace.mkdir(exist_ok=True)
    env = AGENTS["demo"].environment(base / "home", "") | dict(settings or {})
    gateway = stack.enter_context(running_gateway(workspace, env, ["--agent", "demo", *args]))
    return Site(browser, gateway, workspace)


def new_session(page: Page) -> None:
    page.click("#new")
    page.wait("#prompt")


def send(page: Page, text: str) -> None:
    page.fill("#prompt", text)
    page.press("Enter")


@pytest.mark.parametrize(("width", "height", "dark"), [(1280, 800, False), (380, 740, True)])
def test_a_turn(site: Site, tmp_path: Path, width: int, height: int, dark: bool) -> None:
    page = site.open(width, height, dark=dark)
    page.screenshot(tmp_path / "1-start.png")
    if width < 760:
        page.click("#show-sessions")
        page.until("!document.querySelector('#sessions').inert")
        page.screenshot(tmp_path / "2-drawer.png")
    new_session(page)
    send(page, "Write **this** <img src=x onerror=alert(1)>")
    page.wait(".question")
    assert page.text(".question button") == [
        "1 Write it",
        "2 Write it, and do not ask again in this session",
        "3 Do not write",
    ]
    page.screenshot(tmp_path / "3-question.png")
    assert page.evaluate(NO_SIDEWAYS)
    assert not (site.workspace / "acp-demo.txt").exists()

    page.click(".question button")
    page.until(ENDED)
    page.wait(f"{ANSWERS} >> text=I wrote acp-demo.txt.")
    assert (site.workspace / "acp-demo.txt").read_text().startswith("Write **this**")
    assert page.text(".tool summary") == ["Write acp-demo.txt\ndone"]
    # The agent's words never become HTML.
    assert page.evaluate("document.querySelectorAll('#entries img, #entries script').length") == 0
    assert "<img src=x onerror=alert(1)>" in page.text(ANSWERS)[0]
    page.click("#show-events")
    page.screenshot(tmp_path / "4-events.png")
    assert page.evaluate(NO_SIDEWAYS)
    assert any("turn_complete" in line for line in page.text("#event-list li"))

    shown = page.text("#entries > *")
    page.reload()
    page.wait(f"{ANSWERS} >> text=I wrote acp-demo.txt.")
    page.screenshot(tmp_path / "5-reloaded.png")
    assert page.text("#entries > *") == shown
    assert page.noise() == []
    assert page.sockets() == 2  # one for each time that the page was loaded
    origins = {each["url"].split("/")[2] for each in page.requests()}
    assert origins == {site.gateway.url.split("/")[2]}


def test_keyboard_alone(site: Site) -> None:
    page = site.open()
    focused = "document.activeElement.id || document.activeElement.className"
    order = []
    for _ in range(4):
        page.press("Tab")
        order.append(page.evaluate(focused))
    assert order == ["skip", "show-events", "new", "refresh"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Shift+Tab", "Enter")
    page.until("document.activeElement.id === 'prompt'")

    page.until("document.querySelector('#options select') !== null")
    page.type("/sl")
    page.wait("#commands [aria-selected=true]:has-text('/sleep')")
    page.press("Tab")
    page.type("60")
    page.press("Enter")
    page.wait(f"{ANSWERS} >> text=tick")
    page.press("Escape")
    page.wait("#entries .note >> text=Stopped.")

    page.type("write it")
    page.press("Enter")
    # The card takes the focus, no button does: a key meant for the message approves nothing.
    page.until("document.activeElement.className === 'question'")
    page.press("Enter", "Space")
    assert not (site.workspace / "acp-demo.txt").exists()
    page.press("ArrowRight")
    page.until("document.activeElement.textContent.includes('Write it')")
    page.press("1")
    page.until("document.activeElement.id === 'prompt'")
    page.wait(f"{ANSWERS} >> text=I wrote acp-demo.txt.")
    page.until("document.querySelector('#spoken').textContent === 'I wrote acp-demo.txt.'")
    assert page.noise() == []


@pytest.mark.parametrize("kept", ["8000", "3"])
def test_a_lost_connection_in_a_turn(browser: Browser, tmp_path: Path, kept: str) -> None:
    """With room for three events the gateway has to tell everything anew."""
    settings = {"ACP_GATEWAY_EVENT_RING_SIZE": kept}
    with ExitStack() as stack:
        page = start(stack, browser, tmp_path, settings=settings).open()
        new_session(page)
        send(page, "/sleep 4")
        page.wait(f"{ANSWERS} >> text=tick")
        page.drop_sockets()
        page.wait("#banner >> text=lost")
        page.until(READY)
        page.wait("#banner", "hidden")
        page.wait(f"{ANSWERS} >> text=slept 4 s")
        page.until(ENDED)
        [own], [answer] = page.text(OWN_WORDS), page.text(ANSWERS)
        assert own == "/sleep 4"
        log = page.evaluate("document.querySelector('#event-list').textContent")
        assert ("state_resync_required" in log) == (kept == "3")
        page.reload()
        page.wait(f"{ANSWERS} >> text=slept 4 s")
        assert page.text(ANSWERS) == [answer]  # what the gateway kept: nothing lost or doubled
        assert page.text(OWN_WORDS) == [own]


def test_a_question_outlives_the_connection(site: Site) -> None:
    page = site.open()
    new_session(page)
    send(page, "write")
    page.wait(".question")
    page.drop_sockets()
    page.wait(".question", "detached")
    page.until(READY)
    page.wait(".question")
    page.click(".question button >> text=Do not write")
    page.wait(f"{ANSWERS} >> text=You said no")
    page.until(ENDED)
    assert len(page.text(OWN_WORDS)) == 1
    assert not (site.workspace / "acp-demo.txt").exists()


@pytest.mark.parametrize("ending", ["stopped", "killed"])
def test_the_gateway_starts_again(browser: Browser, tmp_path: Path, ending: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with ExitStack() as first:
        site = start(first, browser, tmp_path, "--port", port)
        page = site.open()
        new_session(page)
        send(page, "/plan")
        page.wait(f"{ANSWERS} >> text=This was a plan.")
        page.until(ENDED)
        send(page, "/sleep 60")
        page.wait(f"{ANSWERS} >> text=tick")
        if ending == "killed":
            site.gateway.process.kill()
    page.wait("#banner >> text=Trying again")
    page.screenshot(tmp_path / "banner.png")
    page.fill("#prompt", "a draft")
    # Nobody is there yet; and once the gateway is, the page finds it before anybody could press.
    page.click("#banner-button")
    page.wait("#banner >> text=Trying again")
    with ExitStack() as second:
        start(second, browser, tmp_path, "--port", port)
        page.until(READY)
        page.wait("#banner", "hidden")
        page.wait("#entries .note >> text=started anew")
        page.screenshot(tmp_path / "after.png")
        # Of the turn that went with the gateway the person is told; it is not run again.
        page.until(ENDED)
        assert page.text(OWN_WORDS) == ["/plan", "/sleep 60"]
        assert page.evaluate("document.querySelector('#prompt').value") == "a draft"
        send(page, "/plan")
        page.until(f"document.querySelectorAll('{OWN_WORDS}').length === 3")
        page.until(ENDED)
        assert page.text(ANSWERS)[-1] == "This was a plan."


def test_two_tabs_of_one_session(site: Site) -> None:
    one, two = site.open(), site.open()
    new_session(one)
    send(one, "write")
    one.wait(".question")
    two.click("#refresh")
    two.click(".session")
    two.wait(".question")
    assert two.text(OWN_WORDS) == ["write"]
    two.fill("#prompt", "/plan")
    two.press("Enter")
    two.wait("#waiting >> text=Is sent when")
    two.click(".question button")
    one.wait(".question", "detached")
    for page in (one, two):
        page.wait(f"{ANSWERS} >> text=I wrote acp-demo.txt.")
        page.wait(f"{ANSWERS} >> text=This was a plan.")
        page.until(ENDED)
        assert page.text(OWN_WORDS) == ["write", "/plan"]
        assert page.noise() == []


def test_settings_of_the_session(site: Site) -> None:
    page = site.open()
    new_session(page)
    page.wait("#options select")
    page.select("#options [data-setting=Mode]", "plan")
    page.until("document.querySelector('#event-list').textContent.includes('current_mode_update')")
    send(page, "write")
    page.wait(f"{ANSWERS} >> text=In plan mode I do not write")
    page.reload()
    page.wait("#options select")
    assert page.evaluate("document.querySelector('[data-setting=Mode]').value") == "plan"
    assert page.noise() == []


def test_an_error_says_what_to_do(site: Site) -> None:
    page = site.open()
    new_session(page)
    send(page, "/crash")
    page.wait("#entries .note.error")
    page.until(ENDED)
    send(page, "/plan")
    page.wait(f"{ANSWERS} >> text=This was a plan.")
    page.goto(f"{site.gateway.url}/#session=nothing")
    page.wait("#entries .note.error >> text=list the sessions")


def test_token(browser: Browser, tmp_path: Path) -> None:
    with ExitStack() as stack:
        site = start(stack, browser, tmp_path, "--token", "right-token")
        page = browser.page()
        page.goto(site.gateway.url)
        page.wait("#token-dialog")
        page.screenshot(tmp_path / "token.png")
        page.fill("#token", "wrong")
        page.press("Enter")
        page.wait("#token-title >> text=did not accept")
        page.fill("#token", "right-token")
        page.press("Enter")
        page.until(READY)
        page.reload()
        page.until(READY)
        assert page.evaluate("document.querySelector('#token-dialog').open") is False
        assert page.evaluate("localStorage.length + document.cookie.length") == 0
        fresh = browser.page()
        fresh.goto(f"{site.gateway.url}/#token=right%2Dtoken")
        fresh.until(READY)
        assert "token" not in fresh.evaluate("location.href")


def test_below_the_path_of_a_public_url(browser: Browser, tmp_path: Path) -> None:
    with ExitStack() as stack:
        flags = ("--public-url", "http://localhost:1/gate/way")
        site = start(stack, browser, tmp_path, *flags)
        for path in ("/gate/way", "/gate/way/demo"):
            page = browser.page()
            assert page.goto(site.gateway.url + path) == 200
            page.until(READY)
            new_session(page)
            send(page, "/chunks 3 10")
            page.wait(ANSWERS)
            page.until(ENDED)
            assert not page.noise()
