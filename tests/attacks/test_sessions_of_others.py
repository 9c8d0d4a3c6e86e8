"""Sessions, votes, client ids and files that are not the attacker's; lines that forge a log."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support.attacked import DEADLINE, SECRET, TOKEN, Site, ask
from websockets.sync.client import ClientConnection

FORGED = (
    'x\n{"event": "forged"}',
    "x\r\nHTTP/1.1 200 OK",
    "x\x1b[2J\x1b[31mforged\x1b[0m",
    "x\u202egnp.exe",
    "x\u2066hidden\u2069",
    "x\u2028forged",
    "x\x85forged",
    "x\x00y",
    "x\ufeffy\u200b",
)


def new(site: Site, ws: ClientConnection) -> str:
    told = ask(ws, 101, "session/new", {"cwd": str(site.workspace), "mcpServers": []})
    session_id: str = told["sessionId"]
    return session_id


def refusal(ws: ClientConnection, method: str, params: dict[str, Any]) -> dict[str, Any]:
    with pytest.raises(RuntimeError) as refused:
        ask(ws, 102, method, params)
    error: dict[str, Any] = json.loads(str(refused.value))
    return error


def question(site: Site, ws: ClientConnection, session_id: str) -> dict[str, Any]:
    """The permission request of a turn that waits for it."""
    prompt = [{"type": "text", "text": "/write forbidden.txt x"}]
    params = {"sessionId": session_id, "prompt": prompt}
    ws.send(json.dumps({"jsonrpc": "2.0", "id": 103, "method": "session/prompt", "params": params}))
    while True:
        message: dict[str, Any] = json.loads(ws.recv(DEADLINE))
        if message.get("method") == "session/request_permission":
            return message


@pytest.mark.parametrize("case", ["other session", "no session", "made up", "answered over ACP"])
def test_votes_for_others(site: Site, case: str) -> None:
    """A vote counts only where the question was asked, and from whom it was asked."""
    with site.greeted() as ws, site.greeted() as other:
        session_id, stranger = new(site, ws), new(site, other)
        asked = question(site, ws, session_id)
        request_id = _asked(site, session_id)
        vote = {"outcome": {"outcome": "selected", "optionId": "allow-once"}}
        if case == "other session":
            answer = site.http.post(f"/session/{stranger}/permission/{request_id}", json=vote)
            assert answer.status_code == 404, answer.text
        elif case == "no session":
            answer = site.http.post(f"/session/nope/permission/{request_id}", json=vote)
            assert answer.status_code == 404
        elif case == "made up":
            answer = site.http.post("/permission/00000000-0000-4000-8000-000000000000", json=vote)
            assert answer.status_code == 404
        else:
            answer_id = asked["id"]
            other.send(json.dumps({"jsonrpc": "2.0", "id": answer_id, "result": vote}))
            ask(other, 5, "session/list", {})
        assert _waits(site, session_id), "the attacker's vote was counted"
        ask_result = {"outcome": {"outcome": "cancelled"}}
        ws.send(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": ask_result}))
        ask(ws, 6, "session/close", {"sessionId": session_id})
        ask(other, 7, "session/close", {"sessionId": stranger})
    assert not (site.workspace / "forbidden.txt").exists()


def _asked(site: Site, session_id: str) -> str:
    """The id of the question that waits, as the session's events tell it."""
    headers = {"last-event-id": "0"}
    with site.http.stream("GET", f"/session/{session_id}/events", headers=headers) as answer:
        for line in answer.iter_lines():
            event = json.loads(line[6:]) if line.startswith("data: ") else {}
            if event.get("type") == "permission_request":
                return str(event["data"]["requestId"])
    raise AssertionError("no question")


def _waits(site: Site, session_id: str) -> bool:
    told = site.http.get("/daemon/status", params={"detail": "full"}).json()["full"]["sessions"]
    (found,) = [each for each in told if each["sessionId"] == session_id]
    return bool(found["pendingPermissionCount"])


@pytest.mark.parametrize("how", ["minted for another", "never minted", "of a WebSocket"])
def test_forged_client_ids(site: Site, how: str) -> None:
    with site.greeted() as ws:
        session_id = new(site, ws)
        here = site.http.post(f"/session/{session_id}/load", json={"cwd": str(site.workspace)})
        assert here.is_success, here.text
        elsewhere = site.http.post(
            f"/session/{site.session}/load", json={"cwd": str(site.workspace)}
        )
        forged = {
            "minted for another": elsewhere.json()["clientId"],
            "never minted": "client_00000000-0000-4000-8000-000000000000",
            "of a WebSocket": "test-client",
        }[how]
        body = {"prompt": [{"type": "text", "text": "/chunks 1 1"}]}
        headers = {"x-qwen-client-id": forged}
        answer = site.http.post(f"/session/{session_id}/prompt", json=body, headers=headers)
        assert answer.status_code == 400, answer.text
        assert answer.json()["code"] == "invalid_client_id"
        ask(ws, 6, "session/close", {"sessionId": session_id})


@pytest.mark.parametrize("text", FORGED, ids=ascii)
def test_nothing_forges_a_line_of_the_log(site: Site, text: str) -> None:
    with site.greeted() as ws:
        for method, params in (
            ("session/prompt", {"sessionId": text, "prompt": []}),
            ("session/new", {"cwd": f"/{text}", "mcpServers": []}),
            (f"_x/{text}", {"sessionId": text}),
            ("session/load", {"sessionId": text, "cwd": str(site.workspace), "mcpServers": []}),
        ):
            error = refusal(ws, method, params)
            assert error["code"] in (-32600, -32601, -32602, -32002, -32603), error
            assert error["code"] != -32603 or error["data"]["errorKind"] != "internal", error
    for path in (f"/session/{quote(text)}/status", f"/nowhere/{quote(text)}"):
        answer = site.http.get(path)
        assert answer.status_code == 404
    site.http.get("/file", params={"path": text})
    for line in site.log().splitlines():
        said = json.loads(line)  # each line is one record
        assert said.get("event") != "forged"
    shown = site.log().replace("\n", "")
    assert shown.isprintable(), ascii([each for each in shown if not each.isprintable()])


PIECES = (TOKEN, SECRET)


def test_no_error_tells_a_secret(site: Site) -> None:
    """Neither the token, nor what is outside, nor how the program is built."""
    said = []
    for path, how in (
        ("/nowhere", {}),
        ("/session/x/status", {}),
        ("/file?path=../outside/secret", {}),
        (f"/file?path={site.outside}/secret", {}),
        ("/daemon/status?detail=full", {}),
        ("/capabilities", {}),
        ("/openapi.json", {}),
        ("/session/x/prompt", {"json": {"prompt": TOKEN}}),
        (f"/session/{site.session}/model", {"json": {"modelId": TOKEN}}),
    ):
        answer = site.http.request("POST" if how else "GET", path, **how)
        said.append(answer.text.replace(f'"{TOKEN}"', "") if how else answer.text)
        assert "server" not in answer.headers and "x-powered-by" not in answer.headers
    for text in said:
        assert all(piece not in text for piece in PIECES), text
        assert "Traceback" not in text and "site-packages" not in text


KINDS = ("fifo", "socket", "device", "directory", "proc")


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_none(site: Site, kind: str) -> None:
    """Nothing waits for a FIFO's other end, and no device is read without an end."""
    path = site.workspace / f"odd-{kind}"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "proc":
        path.symlink_to("/proc/self/environ")
    else:
        path.mkdir()
    try:
        for name in ("/file", "/file/bytes"):
            answer = site.http.get(name, params={"path": path.name})
            assert answer.status_code == 400, answer.text
        for mode in ("create", "replace"):
            body = {
                "path": path.name,
                "content": "x",
                "mode": mode,
                "expectedHash": "sha256:" + "0" * 64,
            }
            answer = site.http.post("/file/write", json=body)
            assert answer.status_code in (400, 409), answer.text
    finally:
        path.rmdir() if kind == "directory" else path.unlink()


def test_a_link_swapped_while_files_are_written(site: Site) -> None:
    inner, swapped = site.workspace / "swap-real", site.workspace / "swap"
    inner.mkdir()
    swapped.symlink_to(inner)
    over = threading.Event()

    def swap() -> None:
        spare = site.workspace / "swap-spare"
        while not over.is_set():
            for target in (site.outside, inner):
                spare.symlink_to(target)
                os.replace(spare, swapped)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        seen = set()
        for number in range(300):
            body = {"path": f"swap/{number}", "content": "x", "mode": "create"}
            seen.add(site.http.post("/file/write", json=body).status_code)
        assert seen <= {201, 400, 404, 409}
    finally:
        over.set()
        thread.join(DEADLINE)
    assert sorted(Path(site.outside).iterdir()) == [site.outside / "secret"]
    swapped.unlink()


@pytest.mark.parametrize(
    "cwd", ["/", "/etc", "..", "/proc/self/cwd/..", "\0", "a\0b", "\ud800", ""]
)
def test_sessions_elsewhere(site: Site, cwd: str) -> None:
    with site.greeted() as ws:
        for directory in (cwd, f"{site.workspace}/../{cwd}"):
            error = refusal(ws, "session/new", {"cwd": directory, "mcpServers": []})
            assert error["code"] == -32602, error
        error = refusal(ws, "session/list", {"cwd": f"{site.workspace}\0"})
        assert error["code"] == -32602, error


def test_more_connections_than_there_is_room_for(site: Site) -> None:
    """Strangers do not crowd the user out: without a token a socket holds no place at /acp."""
    import socket
    from contextlib import ExitStack, closing

    with ExitStack() as stack:
        for _ in range(300):
            stream = socket.create_connection(("127.0.0.1", site.port), DEADLINE)
            stack.enter_context(closing(stream))
        site.turn()
