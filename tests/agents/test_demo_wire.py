"""The demo agent on the wire: errors, order, cancellation, big lines, ends of the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from driver import ROOT, demo, texts


def test_errors_have_the_codes_of_the_protocol(tmp_path: Path) -> None:
    with demo(tmp_path) as agent:
        assert agent.error("session/list")[0] == -32600, "not initialized"
        assert agent.error("initialize", {"protocolVersion": "1"})[0] == -32602
        assert agent.result("initialize", {"protocolVersion": 99})["protocolVersion"] == 1
        assert agent.error("initialize", {"protocolVersion": 1})[0] == -32600
        assert agent.result("authenticate", {"methodId": "none"}) == {}
        assert agent.result("_demo/echo", {"a": [1, None, "ü\ud83d"]}) == {
            "a": [1, None, "ü\ud83d"]
        }
        for method in ("_x/unknown", "terminal/create", "nonsense"):
            assert agent.error(method)[0] == -32601
        code, sentence = agent.error("session/new", {"cwd": "relative", "mcpServers": []})
        assert (code, "absolute" in sentence) == (-32602, True)
        assert agent.error("session/new", [1])[0] == -32602
        unknown = {"sessionId": "nope", "cwd": str(tmp_path), "mcpServers": [], "prompt": []}
        for method in ("prompt", "load", "resume", "close", "fork", "set_mode"):
            assert agent.error(f"session/{method}", unknown)[0] == -32002, method
        assert agent.result("session/delete", unknown) == {}
        assert (
            agent.error("session/load", {**unknown, "sessionId": "../../etc/passwd"})[0] == -32002
        )
        assert agent.error("session/list", {"cursor": 5})[0] == -32602
        assert agent.error("session/list", {"cwd": "here"})[0] == -32602


def test_malformed_lines_are_answered_and_survived(tmp_path: Path) -> None:
    with demo(tmp_path) as agent:
        for line, code in (
            (b"{bad\n", -32700),
            (b"\xff\xfe\n", -32700),
            (
                b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":NaN}}\n',
                -32700,
            ),
            (b"[" * 100_000 + b"\n", -32700),
            (b"[]\n", -32600),
            (b'{"id":1,"method":"x"}\n', -32600),
            (b'{"jsonrpc":"2.0","id":true,"method":"x"}\n', -32600),
        ):
            agent.raw(b"\n" + line)
            answer = agent.message()
            assert (answer["id"], answer["error"]["code"]) == (None, code)
        # None of these may be answered: notifications, and responses to nothing.
        agent.send("session/cancel", params={"sessionId": "nope"})
        agent.send("_x/note")
        agent.send("$/unknown", params=[])
        agent.send(id=12345, result={})
        agent.send("initialize", id="é", params={"protocolVersion": 1})
        assert agent.message()["id"] == "é"
        agent.send("session/list", id=None)
        assert agent.message() == {"jsonrpc": "2.0", "id": None, "result": {"sessions": []}}


def test_the_answer_to_load_comes_after_the_history(tmp_path: Path) -> None:
    with demo(tmp_path / "home") as agent:
        session = agent.open(tmp_path)
        agent.answer(agent.prompt(session, "/chunks 100 20"))
    with demo(tmp_path / "home") as agent:
        agent.result("initialize", {"protocolVersion": 1})
        params = {"sessionId": session, "cwd": str(tmp_path), "mcpServers": []}
        response, before = agent.call("session/load", params)
        assert set(response["result"]) == {"modes", "models", "configOptions"}
        assert texts(before, "user_message_chunk") == ["/chunks 100 20"]
        assert "".join(texts(before)) == "".join(f"{n:06d} ".ljust(20, "x") for n in range(100))
        agent.until(lambda m: "available_commands_update" in json.dumps(m))
        assert agent.call("session/resume", params)[1] == []


def test_a_killed_process_leaves_a_loadable_session(tmp_path: Path) -> None:
    with demo(tmp_path / "home") as agent:
        session = agent.open(tmp_path)
        agent.prompt(session, "/crash")
        _, before = agent.until(lambda m: "Now I crash" in json.dumps(m))
        assert agent.line() == b""
        assert agent.wait() == 70
    history = tmp_path / "home" / f"{session}.history"
    with history.open("a") as file:
        file.write('\n{"sessionUpdate": "agent_mess')
    for count in (1, 2):
        with demo(tmp_path / "home") as agent:
            agent.result("initialize", {"protocolVersion": 1})
            params = {"sessionId": session, "cwd": str(tmp_path), "mcpServers": []}
            _, before = agent.call("session/load", params)
            expected = ["/crash", *["/help"] * (count - 1)]
            assert texts(before, "user_message_chunk") == expected
            agent.answer(agent.prompt(session, "/help"))


@pytest.mark.parametrize("command", ["/sleep 600", "/chunks 10000000 2000", "write it"])
@pytest.mark.parametrize("way", ["session/cancel", "$/cancel_request", "session/close"])
def test_every_kind_of_turn_can_be_cancelled(tmp_path: Path, command: str, way: str) -> None:
    with demo(tmp_path / "home") as agent:
        session = agent.open(tmp_path)
        turn = agent.prompt(session, command)
        wanted = "session/request_permission" if command == "write it" else "agent_message_chunk"
        agent.until(lambda m: wanted in json.dumps(m))
        if way == "session/close":
            agent.request(way, {"sessionId": session})
        else:
            agent.send(way, params={"sessionId": session, "requestId": turn})
        response, before = agent.answer(turn)
        assert response["result"]["stopReason"] == "cancelled"
        withdrawn = [
            m["params"]["requestId"] for m in before if m.get("method") == "$/cancel_request"
        ]
        assert len(withdrawn) == (1 if command == "write it" else 0)
        if way == "session/close":
            assert agent.message()["result"] == {}
        else:
            _, late = agent.call("_demo/echo", {})
            assert late == [], "nothing of a turn may follow its answer"


def test_a_busy_session_refuses_a_second_prompt(tmp_path: Path) -> None:
    with demo(tmp_path / "home") as agent:
        session = agent.open(tmp_path)
        first = agent.prompt(session, "/sleep 600")
        response, _ = agent.answer(agent.prompt(session, "too early"))
        assert response["error"]["code"] == -32600
        assert "busy" in response["error"]["message"]
        agent.send("session/cancel", params={"sessionId": session})
        agent.answer(first)
        response, before = agent.answer(agent.prompt(session, "/size 3000000"))
        assert response["result"]["stopReason"] == "end_turn"
        assert [len(t) for t in texts(before)] == [3_000_000]


@pytest.mark.parametrize(
    ("answer", "stop", "status"),
    [
        ({"result": {"outcome": {"outcome": "cancelled"}}}, "cancelled", "failed"),
        ({"result": {}}, "cancelled", "failed"),
        ({"error": {"code": -32601, "message": "no such method"}}, "end_turn", "failed"),
        (
            {"result": {"outcome": {"outcome": "selected", "optionId": "other"}}},
            "end_turn",
            "failed",
        ),
    ],
)
def test_odd_permission_answers_never_write(
    tmp_path: Path, answer: dict[str, Any], stop: str, status: str
) -> None:
    with demo(tmp_path / "home") as agent:
        session = agent.open(tmp_path)
        turn = agent.prompt(session, "write it")
        question, _ = agent.until(lambda m: m.get("method") == "session/request_permission")
        agent.send(id=question["id"], **answer)
        response, before = agent.answer(turn)
        assert response["result"]["stopReason"] == stop
        steps = [m for m in before if "tool_call_update" in json.dumps(m)]
        assert steps[-1]["params"]["update"]["status"] == status
        assert not (tmp_path / "acp-demo.txt").exists()


def test_it_writes_only_inside_the_roots_by_itself(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "link").symlink_to(tmp_path)
    with demo(tmp_path / "home") as agent:
        session = agent.open(work)
        agent.result("session/set_mode", {"sessionId": session, "modeId": "auto"})
        for path in ("../out.txt", "link/out.txt", str(tmp_path / "out.txt"), "a\0b", "\ud83d"):
            _, before = agent.answer(agent.prompt(session, f"/write {path} x"))
            assert "could not write" in "".join(texts(before))
        assert not (tmp_path / "out.txt").exists()


def test_boolean_options_are_for_clients_that_know_them(tmp_path: Path) -> None:
    knows: dict[str, Any] = {"session": {"configOptions": {"boolean": {}}}}
    with demo(tmp_path) as agent:
        session = agent.open(tmp_path, clientCapabilities=knows)
        option = {"sessionId": session, "configId": "verbose"}
        options = agent.result("session/set_config_option", {**option, "value": True})
        assert [o["currentValue"] for o in options["configOptions"]] == ["ask", "demo-fast", True]
        assert agent.error("session/set_config_option", {**option, "value": "yes"})[0] == -32602
        assert (
            agent.result("session/set_model", {"sessionId": session, "modelId": "demo-typing"})
            == {}
        )
        code, sentence = agent.error("session/set_model", {"sessionId": session, "modelId": "x"})
        assert (code, "demo-fast" in sentence) == (-32602, True)
    with demo(tmp_path) as agent:
        session = agent.open(tmp_path)
        option = {"sessionId": session, "configId": "verbose"}
        code, _ = agent.error("session/set_config_option", {**option, "value": True})
        assert code == -32602


def test_list_pages_and_filters(tmp_path: Path) -> None:
    with demo(tmp_path / "home") as agent:
        made = {agent.open(tmp_path)}
        params = {"cwd": str(tmp_path), "mcpServers": []}
        for _ in range(119):
            made.add(agent.result("session/new", params)["sessionId"])
        for live in (True, False):
            if not live:
                for session in made:
                    agent.result("session/close", {"sessionId": session})
            seen: list[str] = []
            cursor = None
            pages = 0
            while pages == 0 or cursor:
                page = agent.result("session/list", {"cwd": f"{tmp_path}/", "cursor": cursor})
                seen += [info["sessionId"] for info in page["sessions"]]
                cursor = page.get("nextCursor")
                pages += 1
            assert pages == 3
            assert len(seen) == len(made)
            assert set(seen) == made
        assert agent.result("session/list", {"cwd": "/"}) == {"sessions": []}
        for session in made:
            agent.result("session/delete", {"sessionId": session})
        assert agent.result("session/list") == {"sessions": []}
        assert os.listdir(tmp_path / "home") == []


def test_a_64_mib_line_goes_in_and_out(tmp_path: Path) -> None:
    with demo(tmp_path) as agent:
        agent.result("initialize", {"protocolVersion": 1})
        big = "x" * (64 << 20)
        assert agent.result("_demo/echo", {"big": big}) == {"big": big}


@pytest.mark.parametrize("way", ["eof", "term", "interrupt"])
def test_it_exits_with_0_and_cancels_what_runs(tmp_path: Path, way: str) -> None:
    with demo(tmp_path / "home") as agent:
        session = agent.open(tmp_path)
        turn = agent.prompt(session, "/sleep 600")
        agent.until(lambda m: texts([m]) == ["tick "])
        if way == "eof":
            agent.close_input()
        else:
            agent.signal(signal.SIGTERM if way == "term" else signal.SIGINT)
        response, _ = agent.answer(turn)
        assert response["result"]["stopReason"] == "cancelled"
        assert agent.line() == b""
        assert agent.wait() == 0


def test_it_exits_though_nobody_reads_its_output(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ACP_DEMO_HOME": str(tmp_path / "home")}
    with subprocess.Popen(
        [sys.executable, "-m", "acp_gateway.demo_agent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
    ) as child:
        assert child.stdin and child.stdout
        child.stdin.write(
            b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":1}}\n'
        )
        new = {"cwd": str(tmp_path), "mcpServers": []}
        child.stdin.write(
            json.dumps({"jsonrpc": "2.0", "id": 2, "method": "session/new", "params": new}).encode()
            + b"\n"
        )
        child.stdin.flush()
        child.stdout.readline()
        session = json.loads(child.stdout.readline())["result"]["sessionId"]
        prompt = [{"type": "text", "text": "/chunks 1000000 1000"}]
        params = {"sessionId": session, "prompt": prompt}
        child.stdin.write(
            json.dumps(
                {"jsonrpc": "2.0", "id": 3, "method": "session/prompt", "params": params}
            ).encode()
            + b"\n"
        )
        child.stdin.close()
        assert child.wait(20) == 0


def test_it_imports_only_quick_modules() -> None:
    code = (
        "import sys, acp_gateway.demo_agent.agent\n"
        "slow = {'asyncio', 'trio', 'attr', 'cattrs', 'typing', 'pathlib', 'inspect', 'socket'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    out = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert out.stdout.strip() == "[]"
