"""Who is not let in: strange hosts, pages of others, wrong and stolen tokens."""

from __future__ import annotations

import base64
import json
import re

import pytest
from support.attacked import TOKEN, UPGRADE, Site
from websockets.exceptions import InvalidStatus

from acp_gateway.protocol.extensions import OPERATIONS

INITIALIZE = json.dumps(
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 1}}
).encode()
OPEN = {"/health", "/readyz", "/pair"}

STRANGE_HOSTS = (
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1",
    "127.0.0.1:1",
    "127.0.0.1.evil.example:{port}",
    "localhost.evil.example:{port}",
    "127.0.0.1:{port}.evil.example",
    "127.0.0.1:{port}@evil.example",
    "2130706433:{port}",
    "0x7f.1:{port}",
    "[::ffff:7f00:1]:{port}",
    "",
)
STRANGE_ORIGINS = (
    "https://evil.example",
    "http://evil.example:{port}",
    "http://127.0.0.1:1",
    "http://127.0.0.1",
    "null",
    "file://",
    "http://127.0.0.1:{port}.evil.example",
    "http://evil.example/http://127.0.0.1:{port}",
    "http://127.0.0.1:{port}@evil.example",
    "chrome-extension://abcdefgh",
    "http://127.0.0.1:{port}, https://evil.example",
)


@pytest.mark.parametrize("host", STRANGE_HOSTS)
@pytest.mark.parametrize("way", ["rest", "acp", "websocket"])
def test_dns_rebinding(site: Site, host: str, way: str) -> None:
    line = {"rest": "GET /daemon/status", "acp": "POST /acp", "websocket": "GET /acp"}[way]
    more = UPGRADE if way == "websocket" else ("Content-Length: 0",)
    said = f"Host: {host.format(port=site.port)}"
    (status,) = site.statuses(site.raw(site.head(f"{line} HTTP/1.1", said, *more)))
    assert status in (400, 403)


@pytest.mark.parametrize("origin", STRANGE_ORIGINS)
@pytest.mark.parametrize("way", ["rest", "acp", "sse", "websocket"])
def test_a_page_of_somebody_else(site: Site, origin: str, way: str) -> None:
    """With the right token even: the browser's user has signed in here."""
    line = {
        "rest": "POST /session",
        "acp": "POST /acp",
        "sse": f"GET /session/{site.session}/events",
        "websocket": "GET /acp",
    }[way]
    more = UPGRADE if way == "websocket" else ("Content-Length: 0",)
    said = f"Origin: {origin.format(port=site.port)}"
    answer = site.raw(site.head(f"{line} HTTP/1.1", said, *more))
    (status,) = site.statuses(answer)
    assert status == 403
    assert b"access-control-allow-origin" not in answer.lower()


def test_two_origins(site: Site) -> None:
    own = f"Origin: http://127.0.0.1:{site.port}"
    for pair in ((own, "Origin: https://evil.example"), ("Origin: https://evil.example", own)):
        statuses = site.statuses(site.raw(site.head("GET /daemon/status HTTP/1.1", *pair)))
        assert statuses in ([403], [400])


def test_two_hosts(site: Site) -> None:
    own = f"Host: 127.0.0.1:{site.port}"
    for pair in ((own, "Host: evil.example"), ("Host: evil.example", own)):
        for more in ((), UPGRADE):
            target = "/acp" if more else "/daemon/status"
            answer = site.raw(site.head(f"GET {target} HTTP/1.1", *pair, *more))
            assert site.statuses(answer) in ([403], [400])


def test_an_absolute_target_does_not_replace_the_host(site: Site) -> None:
    target = f"http://127.0.0.1:{site.port}/daemon/status"
    answer = site.raw(site.head(f"GET {target} HTTP/1.1", "Host: evil.example"))
    assert site.statuses(answer) in ([403], [400], [404])


def _wrong_tokens() -> list[str | None]:
    return [
        None,
        "",
        "x",
        TOKEN[:-1],
        TOKEN + "x",
        TOKEN.upper(),
        f"{TOKEN}\x00",
        f"Bearer {TOKEN}",
    ]


@pytest.mark.parametrize("token", _wrong_tokens(), ids=range(len(_wrong_tokens())))
def test_wrong_tokens_at_every_route(site: Site, token: str | None) -> None:
    """Also where nothing is: an attacker learns no path."""
    targets = [
        f"{row.method} " + re.sub(r"[{}]", "", row.path.replace("{sessionId}", site.session))
        for row in OPERATIONS.values()
        if row.path not in OPEN
    ]
    targets += [
        "POST /acp",
        "GET /acp",
        "DELETE /acp",
        "GET /status",
        "GET /nowhere",
        "POST /pairs",
    ]
    for target in targets:
        answer = site.raw(site.head(f"{target} HTTP/1.1", "Content-Length: 0", token=token))
        assert site.statuses(answer) in ([401], [400]), (target, answer)
        assert b"sessionId" not in answer and b"workspaceCwd" not in answer


@pytest.mark.parametrize(
    "said",
    [
        f"Authorization: Basic {base64.b64encode(f'x:{TOKEN}'.encode()).decode()}",
        f"Authorization: {TOKEN}",
        f"Cookie: token={TOKEN}",
        f"X-Token: {TOKEN}",
        f"Proxy-Authorization: Bearer {TOKEN}",
        f"Sec-WebSocket-Protocol: qwen-bearer.{base64.urlsafe_b64encode(TOKEN.encode()).decode()}",
    ],
    ids=["basic", "bare", "cookie", "header", "proxy", "subprotocol"],
)
def test_the_token_in_the_wrong_place(site: Site, said: str) -> None:
    answer = site.raw(site.head("GET /daemon/status HTTP/1.1", said, token=None))
    assert site.statuses(answer) == [401]


@pytest.mark.parametrize("target", ["/daemon/status", "/acp", "/session/x/events", "/file"])
def test_the_token_in_a_query(site: Site, target: str) -> None:
    """It would be in histories and logs; only a WebSocket upgrade may."""
    answer = site.raw(site.head(f"GET {target}?token={TOKEN} HTTP/1.1", token=None))
    assert site.statuses(answer) == [401]
    body = f"POST {target}?token={TOKEN} HTTP/1.1"
    answer = site.raw(site.head(body, f"Content-Length: {len(INITIALIZE)}", token=None), INITIALIZE)
    assert site.statuses(answer)[0] == 401


def test_a_websocket_without_a_token(site: Site) -> None:
    offers: tuple[dict[str, object], ...] = (
        {"headers": {}},
        {"headers": {"Authorization": "Bearer x"}},
        {"headers": {}, "url": f"{site.gateway.ws_url}?token=x"},
        {"headers": {}, "subprotocols": ["acp", "qwen-bearer.eA"]},
        {"headers": {}, "subprotocols": ["qwen-bearer.%%%"]},
        # Only the very text: what a lax decoder leaves out is not left out.
        {"headers": {}, "subprotocols": ["qwen-bearer." + _loose(TOKEN)]},
    )
    for offer in offers:
        with pytest.raises(InvalidStatus) as refused, site.websocket(**offer):
            pass
        assert refused.value.response.status_code in (400, 401)


def _loose(token: str) -> str:
    text = base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
    return f"{text[:4]}!{text[4:]}"


def test_a_large_body_of_a_stranger_is_not_read(site: Site) -> None:
    head = site.head("POST /session HTTP/1.1", "Content-Length: 20000000", token=None)
    answer = site.raw(head, end=False)
    assert site.statuses(answer) == [401]


def test_a_preflight_of_somebody_else(site: Site) -> None:
    ask = "Access-Control-Request-Method: POST"
    said = ("Origin: https://evil.example", ask, "Access-Control-Request-Headers: authorization")
    answer = site.raw(site.head("OPTIONS /session HTTP/1.1", *said, token=None))
    assert site.statuses(answer) == [403]
    assert b"access-control-allow" not in answer.lower()
