"""The file routes of a live daemon: what they answer, what they refuse, over REST and JSON-RPC."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import httpx2
import pytest
from gateway_process import GatewayProcess
from support.acp_clients import RpcError, ws_client
from support.openapi import BY_NAME, validator
from support.processes import gateway, workspace_of

from acp_gateway.core.text_file import content_hash

TOKEN = "a-token-of-the-tests"
SECRET = "nobody may read this"
DEADLINE = 20.0


@attrs.frozen
class Site:
    gateway: GatewayProcess
    http: httpx2.Client
    workspace: Path
    outside: Path

    def call(self, name: str, **params: Any) -> httpx2.Response:
        """An operation's answer, which is as it is documented."""
        row = BY_NAME[name]
        if row.method == "GET":
            answer = self.http.get(row.path, params=params)
        else:
            answer = self.http.post(row.path, json=params)
        check(name, answer)
        return answer

    def told(self, name: str, **params: Any) -> Any:
        answer = self.call(name, **params)
        assert answer.is_success, answer.text
        return answer.json()


def check(name: str, answer: httpx2.Response) -> None:
    documented = BY_NAME[name].responses
    assert answer.status_code in documented, answer.text
    schema = BY_NAME[name].schema(answer.status_code)
    assert schema is not None
    body = answer.json()
    validator(schema).validate(body)
    if answer.is_error:
        assert body["code"] in documented[answer.status_code]["x-codes"]
        assert SECRET not in answer.text
    else:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("files").resolve()
    outside = base / "outside"
    outside.mkdir()
    (outside / "secret").write_text(SECRET)
    workspace_of(base).mkdir()
    with gateway(base, "--token", TOKEN) as made:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx2.Client(
            base_url=made.url, headers=headers, trust_env=False, timeout=DEADLINE
        ) as http:
            yield Site(made, http, workspace_of(base), outside)


@pytest.fixture
def here(site: Site, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own, in the workspace."""
    name = "".join(each if each.isalnum() else "-" for each in request.node.name)
    path = site.workspace / name
    path.mkdir()
    return path


def named(site: Site, path: Path) -> str:
    return str(path.relative_to(site.workspace))


def test_from_nothing_to_an_edited_file(site: Site, here: Path) -> None:
    path = named(site, here / "a.txt")
    made = site.call("file_write", path=path, content="one\ntwo\n", mode="create")
    assert made.status_code == 201
    assert made.json() == {
        "kind": "file_write",
        "path": path,
        "mode": "create",
        "created": True,
        "sizeBytes": 8,
        "hash": content_hash(b"one\ntwo\n"),
        "encoding": "utf-8",
        "bom": False,
        "lineEnding": "lf",
        "matchedIgnore": None,
    }
    read = site.told("file_read", path=path)
    assert read == {
        "kind": "file",
        "path": path,
        "content": "one\ntwo\n",
        "encoding": "utf-8",
        "bom": False,
        "lineEnding": "lf",
        "sizeBytes": 8,
        "returnedBytes": 8,
        "truncated": False,
        "hash": content_hash(b"one\ntwo\n"),
        "matchedIgnore": None,
        "originalLineCount": 3,
        "nextCursor": None,
        "hasMore": False,
    }
    edited = site.told(
        "file_edit", path=path, oldText="two", newText="zwei", expectedHash=read["hash"]
    )
    assert edited["replacements"] == 1 and edited["hash"] == content_hash(b"one\nzwei\n")
    again = site.call(
        "file_write", path=path, content="x", mode="replace", expectedHash=edited["hash"]
    )
    assert again.status_code == 200 and again.json()["created"] is False
    assert (here / "a.txt").read_text() == "x"
    stale = site.call(
        "file_write", path=path, content="y", mode="replace", expectedHash=edited["hash"]
    )
    assert stale.status_code == 409
    body = stale.json()
    assert (body["errorKind"], body["code"], body["status"]) == ("hash_mismatch",) * 2 + (409,)
    assert body["hint"] == body["remedy"]
    status = site.told("file_stat", path=path)
    assert (status["type"], status["sizeBytes"]) == ("file", 1)
    assert abs(status["modifiedMs"] - (here / "a.txt").stat().st_mtime * 1000) < 1
    listed = site.told("file_list", path=named(site, here))
    assert listed["entries"] == [{"name": "a.txt", "kind": "file", "ignored": False}]
    found = site.told("file_glob", pattern="**/a.txt", cwd=named(site, here))
    assert (found["matches"], found["count"], found["truncated"]) == ([path], 1, False)


def test_pages_and_bytes(site: Site, here: Path) -> None:
    text = "".join(f"{number}\n" for number in range(100_000))
    (here / "long").write_text(text)
    path = named(site, here / "long")
    assert site.call("file_read", path=path).json()["errorKind"] == "file_too_large"
    pages, cursor = [], {}
    while True:
        told = site.told("file_read", path=path, limit=2000, **cursor)
        pages.append(told["content"])
        if not told["hasMore"]:
            break
        cursor = {"cursor": told["nextCursor"]}
    assert "".join(pages) == text and len(pages) == 50
    told = site.told("file_read_bytes", path=path, offset=10, maxBytes=5)
    assert base64.b64decode(told["contentBase64"]) == text.encode()[10:15]
    assert told["truncated"] and "hash" not in told
    assert site.told("file_read_bytes", path=path)["returnedBytes"] == 65536
    (here / "long").write_text("other")
    assert site.call("file_read", path=path, **cursor).json()["errorKind"] == "hash_mismatch"


TRAVERSALS = (
    "../outside/secret",
    "./../outside/secret",
    "x/../../outside/secret",
    "../workspace/../outside/secret",
    "{outside}/secret",
    "{workspace}/../outside/secret",
    "//{outside}/secret",
    "/proc/self/root{outside}/secret",
    "....//outside/secret",
    "..;/outside/secret",
    "..\\outside\\secret",
    "..%2foutside%2fsecret",
    "%2e%2e/outside/secret",
    "%252e%252e%252foutside%252fsecret",
    "..%c0%afoutside%c0%afsecret",
    "\uff0e\uff0e/outside/secret",
    "\u2024\u2024/outside/secret",
    "..\u2215outside\u2215secret",
    "../outside/secret\0.txt",
    "../outside/secret.",
    "../outside/secret ",
    "file://{outside}/secret",
    "~/../outside/secret",
    "link/secret",
    "link/../outside/secret",
    "link/../link/secret",
    "deep/link/secret",
    "chain/secret",
    "direct",
    "C:/outside/secret",
    "NUL/../../outside/secret",
    "com1.txt",
    "x/aux",
    ".. /outside/secret",
    "x/. ./../outside/secret",
    ". ./outside/secret",
    "..\u200b/outside/secret",
    "..\uff0foutside\uff0fsecret",
    "..%ef%bc%8foutside%ef%bc%8fsecret",
    "%c0%ae%c0%ae/outside/secret",
    "%u002e%u002e/outside/secret",
    "\\\\?\\outside\\secret",
)


@pytest.fixture(scope="module")
def traps(site: Site) -> None:
    (site.workspace / "link").symlink_to("../outside")
    (site.workspace / "chain").symlink_to("link")
    (site.workspace / "direct").symlink_to(site.outside / "secret")
    (site.workspace / "deep").mkdir()
    (site.workspace / "deep/link").symlink_to(site.outside)
    (site.workspace / "x").mkdir()


@pytest.mark.usefixtures("traps")
@pytest.mark.parametrize("spelling", TRAVERSALS)
def test_no_spelling_leads_out(site: Site, spelling: str) -> None:
    path = spelling.format(outside=site.outside, workspace=site.workspace)
    escapes = "../outside" in path or path.startswith("/")
    old = content_hash(SECRET.encode())
    answers = [site.call(name, path=path) for name in ("file_read", "file_read_bytes", "file_stat")]
    answers += [site.call("file_list", path=os.path.dirname(path) or path)]
    answers += [site.call("file_glob", pattern="*", cwd=os.path.dirname(path) or path)]
    answers += [
        site.call("file_write", path=path, content="x", mode="create"),
        site.call("file_write", path=path, content="x", mode="replace", expectedHash=old),
        site.call("file_edit", path=path, oldText="n", newText="x", expectedHash=old),
    ]
    raw = site.http.get(f"/file?path={quote(path, safe='%')}")
    answers.append(raw)
    for answer in answers:
        if answer.is_success:
            # A name like any other, which the write has made: below the workspace.
            assert answer.json()["kind"] in ("glob", "list", "file_write", "file")
            assert not escapes or answer.json()["kind"] in ("glob", "list")
        else:
            assert answer.status_code in (400, 404, 409), answer.text
        assert SECRET not in answer.text
        assert base64.b64encode(SECRET.encode()).decode() not in answer.text
    assert os.listdir(site.outside) == ["secret"]
    assert (site.outside / "secret").read_text() == SECRET


@pytest.mark.usefixtures("traps")
@pytest.mark.parametrize(
    "target",
    [
        "/file/../../outside/secret",
        "/file/%2e%2e/%2e%2e/outside/secret",
        "/../outside/secret",
        "/file?path=../outside/secret&path=x",
        "/file?path=..%2Foutside%2Fsecret",
        "/file?path=%2E%2E/outside/secret",
        "/file?path=..%5Coutside%5Csecret",
        "/file?path=x%00/../../outside/secret",
        "/file?path=%ff%fe../outside/secret",
        "/file?path[]=../outside/secret",
        "/file?path=%252e%252e%252foutside%252fsecret",
        "/file?path=%c0%ae%c0%ae%c0%afoutside%c0%afsecret",
        "/file?path=%e0%80%ae%e0%80%ae/outside/secret",
        "/file?path=..%00/../outside/secret",
        "/file?path=..%20/outside/secret",
        "/file?path=..%ef%bc%8foutside%ef%bc%8fother",
        "/file?PATH=../outside/secret",
    ],
)
def test_no_target_leads_out(site: Site, target: str) -> None:
    """On a socket of its own: a client library would tidy the path up."""
    host = site.gateway.url.removeprefix("http://")
    name, _, port = host.partition(":")
    with socket.create_connection((name, int(port)), timeout=DEADLINE) as raw:
        raw.sendall(
            f"GET {target} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {TOKEN}\r\n"
            "connection: close\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.split(b" ", 2)[1] in (b"400", b"404"), answer
    assert SECRET.encode() not in answer


@pytest.mark.usefixtures("traps")
def test_nothing_of_the_outside_is_listed(site: Site) -> None:
    for pattern in ("**/secret", "link/*", "*/*/secret", "deep/link/*", "**"):
        told = site.told("file_glob", pattern=pattern, includeIgnored="1")
        for each in told["matches"]:
            assert site.workspace in (site.workspace / each).resolve().parents, each
            assert each not in ("link", "chain", "direct", "deep/link")
    entries = {each["name"]: each["kind"] for each in site.told("file_list", path=".")["entries"]}
    assert entries["link"] == entries["direct"] == "symlink"


WRONG = (
    ("file_read", {}, "path"),
    ("file_read", {"path": ""}, "path"),
    ("file_read", {"path": "a", "line": "0"}, "line"),
    ("file_read", {"path": "a", "line": "1.0"}, "line"),
    ("file_read", {"path": "a", "line": "+1"}, "line"),
    ("file_read", {"path": "a", "line": "١"}, "line"),
    ("file_read", {"path": "a", "limit": "2001"}, "limit"),
    ("file_read", {"path": "a", "maxBytes": "262145"}, "maxBytes"),
    ("file_read", {"path": "a", "maxBytes": "9" * 5000}, "maxBytes"),
    ("file_read", {"path": "a", "cursor": "x"}, "cursor"),
    ("file_read", {"path": "a", "cursor": ""}, "cursor"),
    ("file_read", {"path": "a", "cursor": "e30", "line": "1"}, "cursor"),
    ("file_read_bytes", {"path": "a", "offset": "-1"}, "offset"),
    ("file_stat", {}, "path"),
    ("file_list", {}, "path"),
    ("file_glob", {}, "pattern"),
    ("file_glob", {"pattern": "../*"}, "pattern"),
    ("file_glob", {"pattern": "*", "maxResults": "0"}, "maxResults"),
    ("file_write", {"content": "x", "mode": "create"}, "path"),
    ("file_write", {"path": 7, "content": "x", "mode": "create"}, "path"),
    ("file_write", {"path": "a", "mode": "create"}, "content"),
    ("file_write", {"path": "a", "content": "x"}, "mode"),
    ("file_write", {"path": "a", "content": "x", "mode": "append"}, "mode"),
    ("file_write", {"path": "a", "content": "x", "mode": "replace"}, "expectedHash"),
    ("file_write", {"path": "a", "content": "x", "mode": "create", "bom": 1}, "bom"),
    ("file_write", {"path": "a", "content": "x", "mode": "create", "encoding": "x"}, "encoding"),
    ("file_write", {"path": "a", "content": "x", "mode": "create", "lineEnding": 1}, "lineEnding"),
    ("file_edit", {"path": "a", "oldText": "x", "newText": "y"}, "expectedHash"),
    ("file_edit", {"path": "a", "oldText": "x", "expectedHash": content_hash(b"")}, "newText"),
)


@pytest.mark.parametrize(("name", "params", "member"), WRONG, ids=range(len(WRONG)))
def test_wrong_parameters(site: Site, name: str, params: dict[str, Any], member: str) -> None:
    answer = site.call(name, **params)
    body = answer.json()
    assert (answer.status_code, body["errorKind"]) == (400, "parse_error")
    assert f"`{member}`" in body["error"]


def test_errors_are_no_pages_either(site: Site) -> None:
    for name, params in (("file_read", {"path": "none"}), ("file_stat", {})):
        answer = site.call(name, **params)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
    long = site.call("file_stat", path="x" * 300)
    assert long.status_code == 503 and long.headers["retry-after"]
    assert long.headers["x-content-type-options"] == "nosniff"


def test_a_client_that_names_itself_must_be_known(site: Site, here: Path) -> None:
    path = named(site, here / "a")
    body = {"path": path, "content": "x", "mode": "create"}
    for client in ("client_nobody", "not valid!"):
        answer = site.http.post("/file/write", json=body, headers={"X-Qwen-Client-Id": client})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_client_id")
    assert not (here / "a").exists()
    session = site.http.post("/session", json={"sessionScope": "thread"}).json()
    client = session["clientId"]
    answer = site.http.post("/file/write", json=body, headers={"X-Qwen-Client-Id": client})
    assert answer.status_code == 201
    site.http.delete(f"/session/{session['sessionId']}")


def test_writing_wants_a_token_and_reading_what_the_gateway_wants(
    site: Site, tmp_path: Path
) -> None:
    with httpx2.Client(base_url=site.gateway.url, trust_env=False, timeout=DEADLINE) as http:
        for row in ("/file", "/file/bytes", "/stat", "/list", "/glob"):
            assert http.get(row, params={"path": ".", "pattern": "*"}).status_code == 401
        for row in ("/file/write", "/file/edit"):
            assert http.post(row, json={}).status_code == 401
    with gateway(tmp_path) as made:
        (workspace_of(tmp_path) / "a").write_text("open")
        with httpx2.Client(base_url=made.url, trust_env=False, timeout=DEADLINE) as http:
            assert http.get("/file", params={"path": "a"}).json()["content"] == "open"
            body = {"path": "b", "content": "x", "mode": "create"}
            answer = http.post("/file/write", json=body)
            assert (answer.status_code, answer.json()["code"]) == (401, "token_required")
            assert not (workspace_of(tmp_path) / "b").exists()


async def test_the_same_over_json_rpc(site: Site, here: Path) -> None:
    path = named(site, here / "a")
    headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
    async with ws_client(site.gateway.ws_url, headers=headers) as ws:
        made = await ws.request(
            "_qwen/file/write", {"path": path, "content": "1\n2\n", "mode": "create"}
        )
        assert made["created"] is True and made["path"] == path
        read = await ws.request("_qwen/file/read", {"path": path, "line": 2, "limit": 1})
        assert read["content"] == "2\n" and read["hash"] == made["hash"]
        await ws.request(
            "_qwen/file/edit",
            {"path": path, "oldText": "1", "newText": "x", "expectedHash": made["hash"]},
        )
        assert (here / "a").read_text() == "x\n2\n"
        told = await ws.request("_qwen/file/read_bytes", {"path": path, "maxBytes": 1})
        assert told["contentBase64"] == base64.b64encode(b"x").decode()
        assert (await ws.request("_qwen/file/stat", {"path": path}))["sizeBytes"] == 4
        assert (await ws.request("_qwen/file/list", {"path": named(site, here)}))["entries"]
        assert (await ws.request("_qwen/file/glob", {"pattern": path}))["matches"] == [path]
        for params, code, word, status in (
            ({"path": f"{path}none"}, -32002, "path_not_found", 404),
            ({"path": "../x"}, -32602, "path_outside_workspace", 400),
            ({"path": path, "line": True}, -32602, "parse_error", 400),
        ):
            with pytest.raises(RpcError) as caught:
                await ws.request("_qwen/file/read", params)
            error = caught.value.error
            assert (error["code"], error["data"]["errorKind"]) == (code, word)
            assert error["data"]["httpStatus"] == status


def test_it_is_advertised(site: Site) -> None:
    features = set(site.http.get("/capabilities").json()["features"])
    assert features >= {
        "workspace_file_read",
        "workspace_file_read_cursor",
        "workspace_file_bytes",
        "workspace_file_write",
    }


def test_a_pipe_stops_nobody(site: Site, here: Path) -> None:
    os.mkfifo(here / "pipe")
    path = named(site, here / "pipe")
    for name in ("file_read", "file_read_bytes"):
        assert site.call(name, path=path).json()["errorKind"] == "parse_error"
    assert site.told("file_stat", path=path)["type"] == "other"
    with suppress(FileNotFoundError):
        (here / "pipe").unlink()
