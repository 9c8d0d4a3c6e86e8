"""The web page: our own small one, or the user's build of another (``--web DIR``).

Pure of any HTTP library: a path goes in, status, headers and body come out. Our own files are read
once and kept. Files of a user's directory are read at each request, so that a new build shows at
once: call `get` and `fallback` in a worker thread then (`reads_disk`).

Pages are public, because a browser's navigation carries no token: the page asks for it and sends it
with what it does. Nothing but files of the page is served here.
"""

from __future__ import annotations

import hashlib
import mimetypes
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import attrs

OWN_DIRECTORY: Final = Path(__file__).resolve().parent.parent / "web"
OWN_PAGE: Final = "/demo"
"""Always our own page; its files lie below."""
INDEX: Final = "index.html"
PAIRING: Final = "/pair"
"""Our own as well: where a device gives a code for a token."""

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_COMMON: Final = (
    ("cache-control", "no-cache"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
)
_OWN_CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@attrs.frozen
class WebFile:
    """An answer: header names in lower case, no content-length."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def unless_known(self, if_none_match: str | None) -> WebFile:
        """304 without a body when the client has this very file (RFC 9110 §13.1.2)."""
        etag = dict(self.headers)["etag"]
        known = [each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")]
        if etag not in known and "*" not in known:
            return self
        kept = tuple(each for each in self.headers if each[0] != "content-type")
        return WebFile(304, kept, b"")


class WebFiles:
    """``directory`` None: our own page at ``/`` and ``/demo``. Else the user's build at ``/``.

    Raises `ValueError` when the directory has no ``index.html``.
    """

    def __init__(self, directory: Path | None) -> None:
        self._own = {
            f"{OWN_PAGE}/{path.name}": _file(path.name, path.read_bytes(), _OWN_CSP)
            for path in sorted(OWN_DIRECTORY.iterdir())
            if path.suffix in _TYPES
        }
        self._own[OWN_PAGE] = self._own.pop(f"{OWN_PAGE}/{INDEX}")
        self._own[PAIRING] = self._own.pop(f"{OWN_PAGE}/pair.html")
        if directory is None:
            self._own["/"] = self._own[OWN_PAGE]
        self._directory = None if directory is None else directory.resolve()
        if self._directory is not None and not (self._directory / INDEX).is_file():
            raise ValueError(f"{directory} has no {INDEX}: name the directory of a built web page")

    @property
    def reads_disk(self) -> bool:
        """Do `get` and `fallback` read files? Then they belong in a worker thread."""
        return self._directory is not None

    def get(self, path: str, accept: str) -> WebFile | None:
        """The file of a GET or HEAD. ``path`` is decoded, without a query. None: not ours.

        Ask before the bearer check and before the API's routes: no file of a page may have the name
        of a route. A browser's reload at ``/session/ID`` is the page's, a program's GET is not.
        """
        if path == PAIRING and not _is_navigation(accept):
            return None  # a program's GET is the API's, which has only a POST there
        own = self._own.get(path)
        if own is not None or self._directory is None:
            return own
        if path == "/":
            return self._read(INDEX)
        if _is_navigation(accept) and path.startswith("/session/") and path.count("/") == 2:
            return self._read(INDEX)
        return self._read(path[1:])

    def fallback(self, accept: str) -> WebFile | None:
        """What a navigation gets where the API has nothing: the page finds its own way.

        Ask in place of a 404. None: it was no navigation, or the page is our own.
        """
        if self._directory is None or not _is_navigation(accept):
            return None
        return self._read(INDEX)

    def _read(self, name: str) -> WebFile | None:
        """A regular file inside the directory, also through links; no hidden ones."""
        assert self._directory is not None
        parts = name.split("/")
        if "\\" in name or any(not part or part.startswith(".") for part in parts):
            return None
        try:
            real = self._directory.joinpath(*parts).resolve(strict=True)
            if not real.is_relative_to(self._directory) or not real.is_file():
                return None
            if any(part.startswith(".") for part in real.relative_to(self._directory).parts):
                return None
            body = real.read_bytes()
        except (OSError, ValueError):
            return None
        return _file(name, body, _csp_for(body if real.suffix == ".html" else b""))


def _is_navigation(accept: str) -> bool:
    """Does a person's browser want a document? Programs ask for something else first."""
    return accept.strip().lower().startswith("text/html")


def _file(name: str, body: bytes, csp: str) -> WebFile:
    suffix = Path(name).suffix.lower()
    kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = (
        ("content-type", kind),
        ("etag", etag),
        ("content-security-policy", csp),
        *_COMMON,
    )
    return WebFile(200, headers, body)


def _csp_for(page: bytes) -> str:
    """A policy for a page that we did not write: its inline scripts by hash and no other.

    Styles may be inline, as component libraries insert them; a style runs nothing.
    """
    scripts = _InlineScripts()
    scripts.feed(page.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n"))
    scripts.close()
    hashes = "".join(f" '{each}'" for each in scripts.hashes)
    return (
        f"default-src 'none'; script-src 'self' 'wasm-unsafe-eval'{hashes}; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "media-src 'self' data: blob:; connect-src 'self'; worker-src 'self' blob:; "
        "frame-src blob:; manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'none'"
    )


class _InlineScripts(HTMLParser):
    """Source expressions (CSP3 §2.3.1, ``hash-source``) of the scripts without ``src``."""

    def __init__(self) -> None:
        super().__init__()
        self.hashes: list[str] = []
        self._text: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script" and "src" not in dict(attrs):
            self._text = []

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "script" and self._text is not None:
            digest = hashlib.sha256("".join(self._text).encode()).digest()
            self.hashes.append(f"sha256-{b64encode(digest).decode()}")
            self._text = None
