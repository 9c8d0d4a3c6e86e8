"""``--trace-wire``: both sides, in order, no secret, bounded; and nothing of it when it is off."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from agent_env import base_environment
from gateway_process import GatewayProcess, running_gateway
from support import transport_imports  # noqa: F401
from websockets.sync.client import connect

from acp_gateway.core.identity import Scope
from acp_gateway.runtime.redact import REDACTED
from acp_gateway.runtime.wire_trace import FRAME_BYTES, Frame, render
from acp_gateway.token_store import TokenStore
from acp_gateway.transports.wire_tap import ws_payloads
from acp_gateway.wire.frames import ws_text

TOKEN = "the-very-own-token-of-this-daemon"
SECRET = "Zx81-abcdefghijklmnop_9"


def frames(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The trace of one gateway after a bit of everything."""
    here = tmp_path_factory.mktemp("wire")
    (here / "work").mkdir()
    (here / "sub").mkdir()
    path = here / "wire.jsonl"
    environment = base_environment(here / "home") | {"ACP_GATEWAY_TOKEN": TOKEN}
    arguments = ["--agent", "demo", "--trace-wire", str(path), "--workspace", str(here / "sub")]
    with running_gateway(here / "work", environment, arguments) as gateway:
        _ask(gateway, here / "work")
        _rest(gateway, here / "sub")
        assert gateway.stop() == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert SECRET not in text and TOKEN not in text
    return frames(path)


def _ask(gateway: GatewayProcess, workspace: Path) -> None:
    servers = [
        {
            "name": "tools",
            "command": "/bin/true",
            "args": ["--api-key", SECRET],
            "env": [{"name": "PLAIN_NAME", "value": SECRET}],
        },
        {
            "type": "http",
            "name": "web",
            "url": f"https://me:{SECRET}@host.example/mcp",
            "headers": [{"name": "X-Anything", "value": SECRET}],
        },
    ]
    headers = {"Authorization": f"Bearer {TOKEN}"}
    session_id = ""
    with connect(gateway.ws_url, proxy=None, additional_headers=headers) as socket:
        for number, (method, params) in enumerate(
            (
                ("initialize", {"protocolVersion": 1, "_meta": {"apiKey": SECRET}}),
                ("session/new", {"cwd": str(workspace), "mcpServers": servers}),
                ("session/prompt", {"prompt": [{"type": "text", "text": "/chunks 50 30"}]}),
                ("session/prompt", {"prompt": [{"type": "text", "text": f"token={SECRET}/size"}]}),
            )
        ):
            if number > 1:
                params["sessionId"] = session_id
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            socket.send(json.dumps(message))
            if number == 3:
                break
            while (told := json.loads(socket.recv(timeout=30))).get("id") != number:
                pass
            session_id = told["result"].get("sessionId") or session_id
        socket.send("{no json")
        while "error" not in json.loads(socket.recv(timeout=30)):
            pass


def _rest(gateway: GatewayProcess, workspace: Path) -> None:
    headers = {"authorization": f"Bearer {TOKEN}", "x-api-key": SECRET}
    with httpx2.Client(base_url=gateway.url, trust_env=False, timeout=30, headers=headers) as http:
        opened = http.post(f"/session?token={SECRET}", json={"cwd": str(workspace)}).json()
        prompt = [{"type": "text", "text": "/size 300000"}]
        http.post(f"/session/{opened['sessionId']}/prompt", json={"prompt": prompt})
        with http.stream(
            "GET", f"/session/{opened['sessionId']}/events", headers={"last-event-id": "0"}
        ) as stream:
            for row in stream.iter_lines():
                if "turn_complete" in row:
                    break


def test_both_sides_are_there_in_order(traced: list[dict[str, Any]]) -> None:
    numbers = [each["n"] for each in traced]
    assert numbers == list(range(1, len(traced) + 1))
    ws = [each for each in traced if each["peer"].startswith("websocket ")]
    head = ws[0]
    assert head["request"] == "GET /acp" and head["head"]["authorization"] == REDACTED
    asked = [each["frame"]["method"] for each in ws if each["dir"] == "in" and "frame" in each]
    assert asked == ["initialize", "session/new", "session/prompt", "session/prompt"]
    assert next(each for each in ws if "text" in each)["text"] == "{no json"
    chunks = {
        side: [
            each["frame"]["params"]["update"]["content"]["text"]
            for each in traced
            if each["side"] == side
            and each["dir"] == way
            and _update(each).get("sessionUpdate") == "agent_message_chunk"
            and _update(each)["content"]["text"].startswith("0000")
        ]
        for side, way in (("agent", "in"), ("client", "out"))
    }
    assert len(chunks["agent"]) == 50 and chunks["agent"] == chunks["client"]
    prompt = next(e for e in traced if e["side"] == "agent" and _method(e) == "session/prompt")
    came = next(e for e in traced if e["side"] == "client" and _method(e) == "session/prompt")
    answered = next(e for e in ws if e["dir"] == "out" and e.get("frame", {}).get("id") == 2)
    assert came["n"] < prompt["n"] < answered["n"]
    assert all(each["bytes"] > 0 for each in traced if "frame" in each)


def _method(each: dict[str, Any]) -> Any:
    frame = each.get("frame")
    return frame.get("method") if isinstance(frame, dict) else None


def _update(each: dict[str, Any]) -> dict[str, Any]:
    if _method(each) != "session/update":
        return {}
    return each["frame"]["params"]["update"]  # type: ignore[no-any-return]


def test_secrets_are_taken_out_by_the_names_of_members(traced: list[dict[str, Any]]) -> None:
    for side in ("client", "agent"):
        new = next(e for e in traced if e["side"] == side and _method(e) == "session/new")
        tools, web = new["frame"]["params"]["mcpServers"]
        assert tools["env"] == [{"name": "PLAIN_NAME", "value": REDACTED}]
        assert web["headers"] == [{"name": "X-Anything", "value": REDACTED}]
        assert web["url"] == f"https://me:{REDACTED}@host.example/mcp"


def test_requests_and_streams(traced: list[dict[str, Any]]) -> None:
    new = next(each for each in traced if each.get("request") == "POST /session")
    mine = [each for each in traced if each["peer"] == new["peer"]]
    assert [each["dir"] for each in mine] == ["in", "in", "out", "out"]
    assert new["head"]["x-api-key"] == REDACTED
    assert mine[1]["frame"].keys() == {"cwd"} and mine[3]["frame"]["sessionId"]
    stream = next(each for each in traced if str(each.get("request")).endswith("/events"))
    pieces = [e["text"] for e in traced if e["peer"] == stream["peer"] and "text" in e]
    assert any("turn_complete" in piece for piece in pieces)


def test_a_large_message_is_cut(traced: list[dict[str, Any]]) -> None:
    large = [each for each in traced if each.get("bytes", 0) > 300_000]
    assert {each["side"] for each in large} == {"agent", "client"}
    assert all(each["cut"] and len(each["text"]) <= FRAME_BYTES + 50 for each in large)


def test_a_file_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with pytest.raises(RuntimeError, match=r"wire trace .* cannot be written"):
        GatewayProcess(
            tmp_path / "work",
            base_environment(tmp_path / "home"),
            ["--agent", "demo", "--trace-wire", str(tmp_path / "work")],
        )


def test_off_it_is_not_even_imported(tmp_path: Path) -> None:
    code = (
        "import sys, acp_gateway.daemon, acp_gateway.transports.http_app\n"
        "import acp_gateway.transports.observed, acp_gateway.transports.listener\n"
        "names = ('wire_trace', 'wire_tap', 'opentelemetry')\n"
        "sys.exit(str([n for n in sys.modules if any(each in n for each in names)] or 0))"
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stderr.strip() in ("", "0"), done.stderr


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_000])
def test_payloads_of_frames(size: int) -> None:
    data = ws_text(b"x" * size) + ws_text(b"next")
    assert ws_payloads(data) == [b"x" * size, b"next"]


def test_a_line_shows_what_turns_text_round() -> None:
    data = json.dumps({"a": "b\u202ec\x1b"}).encode()
    line = render(Frame(1.0, 1, "client", "in", "x", len(data), data))
    assert b"\x1b" not in line and "\u202e".encode() not in line
    line = render(Frame(1.0, 1, "client", "in", "x", 9, b"\xff\x1b\xe2\x80\xaeabc"))
    assert line.isascii() or "\u202e" not in line.decode()
    assert b"\x1b" not in line and b"\n" not in line


def hidden(data: bytes, size: int = -1) -> dict[str, Any]:
    size = len(data) if size < 0 else size
    return dict(json.loads(render(Frame(1.0, 1, "client", "in", "x", size, data, "code"))))


def test_a_member_that_is_a_secret_only_there() -> None:
    told = hidden(b'{"c\\u006fde":"123456","name":"phone"}')
    assert told["frame"] == {"code": REDACTED, "name": "phone"}
    assert hidden(b'{"code":["1","2"]}')["frame"] == {"code": REDACTED}
    for odd in (b'"123456"', b"123456", b'[{"code":"123456"}]'):
        assert hidden(odd)["frame"] == REDACTED
    for odd in (b'{"code":"123456"', b"code=123456", b"\xff123456"):
        assert hidden(odd)["text"] == REDACTED
    assert hidden(b'{"code":"123456","x":"', 10**6)["text"] == REDACTED


def test_no_live_token_and_no_code_is_told(tmp_path: Path) -> None:
    """Neither in the log, nor on stderr, nor in the trace: of named tokens, of the one that the
    daemon made for itself, and of a pairing."""
    here, run = tmp_path.resolve(), tmp_path / "run"
    run.mkdir(mode=0o700)
    (here / "work").mkdir()
    trace, journal = here / "wire.jsonl", here / "log.jsonl"
    store = TokenStore(here / "tokens.json")
    named, _ = store.create("named", Scope.ADMIN)
    environment = base_environment(here / "home") | {"XDG_RUNTIME_DIR": str(run)}
    arguments = ["--agent", "demo", "--trace-wire", str(trace), "--log-file", str(journal)]
    arguments += ["--tokens-file", str(store.path), "--public-url", "https://gw.example/base"]
    secrets = [named]
    with running_gateway(here / "work", environment, arguments) as gateway:
        (info,) = run.rglob(f"{gateway.process.pid}.json")
        made = json.loads(info.read_text())["token"]
        headers = {"authorization": f"Bearer {made}"}
        with httpx2.Client(
            base_url=gateway.url, trust_env=False, timeout=30, headers=headers
        ) as http:
            secrets.append(made)
            for path in ("", "/base"):
                code = http.post(f"{path}/pair/code", json={"name": "phone"}).json()["code"]
                wrong = f"{(int(code) + 1) % 10**6:06}"
                assert http.post(f"{path}/pair", json={"code": wrong}).status_code == 403
                assert http.post(f"{path}/pair", content=f'{{"code":"{code}"').status_code == 400
                paired = http.post(f"{path}/pair", json={"code": code}).json()["token"]
                assert http.post(f"{path}/pair/code", json={"scope": "root"}).status_code == 400
                secrets += [code, wrong, paired]
            for token in (made, named, paired):
                assert http.get(f"/nothing/{token}").status_code == 404
                http.post("/session", json={"cwd": f"/{token}"})
        assert gateway.stop() == 0
        told = {"log": journal.read_text(), "stderr": gateway.stderr_tail()}
    told["trace"] = trace.read_text()
    for place, text in told.items():
        for secret in secrets:
            # Six digits may stand in a time as well.
            shown = f'"{secret}"' if secret.isdecimal() else secret
            assert shown not in text and f'\\"{secret}' not in text, place
    assert "/nothing/[redacted]" in told["log"] and "/nothing/[redacted]" in told["trace"]
    answers = [each["frame"] for each in frames(trace) if isinstance(each.get("frame"), dict)]
    assert [each for each in answers if each.get("name") == "phone" and "scope" in each]
    assert {"pairing_failed", "invalid_request"} <= {each.get("code") for each in answers}
