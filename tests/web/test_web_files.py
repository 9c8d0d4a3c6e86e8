"""What is served of a page: our own, and a user's build of another."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from acp_gateway.transports.web_files import OWN_DIRECTORY, WebFile, WebFiles

DOCUMENT = "text/html,application/xhtml+xml,*/*;q=0.8"


def header(file: WebFile | None, name: str) -> str:
    assert file is not None
    return dict(file.headers)[name]


def test_own_page_and_all_that_it_names() -> None:
    files = WebFiles(None)
    page = files.get("/", DOCUMENT)
    assert page is not None and page.status == 200
    assert page == files.get("/demo", "*/*")
    policy = header(page, "content-security-policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert header(page, "x-content-type-options") == "nosniff"
    assert header(page, "referrer-policy") == "no-referrer"
    assert header(page, "x-frame-options") == "DENY"
    assert header(page, "cache-control") == "no-cache"
    assert files.get("/pair", "*/*") is None, "the API's"
    pairing = files.get("/pair", DOCUMENT)
    assert pairing is not None and header(pairing, "content-security-policy") == policy
    text = page.body.decode() + pairing.body.decode()
    # Relative, so that they are found below a base path too.
    named = {f"/{name}" for name in re.findall(r'(?:href|src)="(demo/[^"]*)"', text)}
    assert not re.findall(r'(?:href|src)="/', text)
    for module in OWN_DIRECTORY.glob("*.js"):
        named |= {f"/demo/{name}" for name in re.findall(r'from "\./([^"]+)"', module.read_text())}
    assert {"/demo/app.js", "/demo/style.css", "/demo/icon.svg"} < named
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for path in named:
        assert header(files.get(path, "*/*"), "content-type").startswith(kinds[Path(path).suffix])
    # Nothing is there that the page does not use.
    assert {f"/demo/{path.name}" for path in OWN_DIRECTORY.iterdir()} == named | {
        "/demo/index.html",
        "/demo/pair.html",
    }


def test_own_page_takes_nothing_from_elsewhere() -> None:
    for path in OWN_DIRECTORY.iterdir():
        text = path.read_text()
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text
        hosts = set(re.findall(r"https?://[\w.]+", text))
        assert hosts <= {"http://www.w3.org"}, path  # the name space of SVG


@pytest.mark.parametrize(
    "path", ["/demo/", "/demo/../config.py", "/demo/none.js", "/acp", "/x", ""]
)
def test_what_is_not_ours(path: str) -> None:
    files = WebFiles(None)
    assert files.get(path, DOCUMENT) is None
    assert files.fallback(DOCUMENT) is None


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A built page with what must not be served in it and beside it."""
    (tmp_path / "secret.txt").write_text("secret")
    root = tmp_path / "build"
    (root / "assets").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("secret")
    (root / ".env").write_text("secret")
    (root / "assets" / "app-1a2b.js").write_text("1")
    (root / "module.wasm").write_bytes(b"\0asm")
    (root / "index.html").write_text(
        "<!-- <script>no()</script> -->\r\n<script>one(\r\n'<b>')</script>"
        '<script src="/assets/app-1a2b.js"></script><script type="module">two()</script>',
        newline="",
    )
    (root / "out").symlink_to(tmp_path / "secret.txt")
    (root / "up").symlink_to(tmp_path)
    (root / "hidden").symlink_to(root / ".env")
    (root / "inside.js").symlink_to(root / "assets" / "app-1a2b.js")
    return root


def test_a_build_of_the_users(build: Path) -> None:
    files = WebFiles(build)
    page = files.get("/", "*/*")
    assert page is not None and b"one(" in page.body
    policy = header(page, "content-security-policy")
    script_src = next(part for part in policy.split("; ") if part.startswith("script-src"))
    sources = script_src.split()[1:]
    assert "'unsafe-inline'" not in sources and "'unsafe-eval'" not in sources
    # The browser hashes what the HTML parser gives: line ends are line feeds.
    for script in ("one(\n'<b>')", "two()"):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in sources
    assert sum(each.startswith("'sha256-") for each in sources) == 2
    assert header(files.get("/assets/app-1a2b.js", ""), "content-type").startswith("text/java")
    assert header(files.get("/module.wasm", ""), "content-type") == "application/wasm"
    inside = files.get("/inside.js", "")
    assert inside is not None and inside.body == b"1"
    # Our own page stays where it is.
    assert files.get("/demo", "") == WebFiles(None).get("/", "")
    assert files.get("/demo/app.js", "") == WebFiles(None).get("/demo/app.js", "")


@pytest.mark.parametrize(
    "path",
    [
        "/out",
        "/up/secret.txt",
        "/hidden",
        "/.env",
        "/.git/config",
        "/../secret.txt",
        "/assets/../../secret.txt",
        "/assets/..\\..\\secret.txt",
        "//etc/passwd",
        "/assets",
        "/assets/",
        "/assets/app-1a2b.js\0",
        "/" + "a" * 5000,
    ],
)
def test_nothing_but_the_build(build: Path, path: str) -> None:
    assert WebFiles(build).get(path, "*/*") is None


def test_a_navigation_that_nobody_knows_is_the_pages(build: Path) -> None:
    files = WebFiles(build)
    index = files.get("/", DOCUMENT)
    assert files.get("/session/abc", DOCUMENT) == index
    assert files.get("/session/abc", "application/json") is None
    assert files.get("/session/abc/events", DOCUMENT) is None
    assert files.get("/health", DOCUMENT) is None  # the API's, also for a person
    assert files.fallback(DOCUMENT) == index
    assert files.fallback("application/json") is None
    assert files.fallback("*/*") is None


def test_a_new_build_shows_at_once(build: Path) -> None:
    files = WebFiles(build)
    before = files.get("/", "")
    (build / "index.html").write_text("<script>three()</script>")
    after = files.get("/", "")
    assert header(before, "etag") != header(after, "etag")
    assert header(before, "content-security-policy") != header(after, "content-security-policy")
    (build / "index.html").unlink()
    assert files.get("/", DOCUMENT) is None


def test_a_directory_without_a_page_is_refused(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=r"has no index\.html"):
            WebFiles(directory)


def test_the_browser_has_it_already() -> None:
    page = WebFiles(None).get("/", "")
    assert page is not None
    etag = header(page, "etag")
    for known in (etag, f'W/{etag}, "other"', "*"):
        kept = page.unless_known(known)
        assert (kept.status, kept.body) == (304, b"")
        assert header(kept, "etag") == etag
        assert "content-type" not in dict(kept.headers)
    for other in (None, "", '"other"'):
        assert page.unless_known(other) is page
