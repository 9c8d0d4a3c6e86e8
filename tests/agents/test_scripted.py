"""The misbehaving agents do misbehave: each test of the gateway relies on that."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from queue import Empty

import driver
import pytest
from driver import Driver, scripted, texts
from scripted import MODES

CWD = Path("/")


def turn(agent: Driver, text: str = "go") -> tuple[str, list[str]]:
    """Stop reason and chunk texts of one prompt."""
    response, before = agent.answer(agent.prompt(agent.open(CWD), text))
    return response["result"]["stopReason"], texts(before)


@pytest.mark.parametrize("mode", ["polite", "pings", "no-load", "wrong-version", "stderr-flood"])
def test_modes_whose_turns_are_ordinary(mode: str) -> None:
    with scripted(mode) as agent:
        assert turn(agent) == ("end_turn", ["still here"])
        params = {"sessionId": "old", "cwd": "/", "mcpServers": []}
        assert ("error" in agent.call("session/load", params)[0]) == (mode == "no-load")
        assert ("result" in agent.call("_x/ping", {"n": 1})[0]) == (mode == "pings")
        agent.close_input()
        assert agent.wait() == 0
    assert (len(agent.stderr) > 1 << 20) == (mode == "stderr-flood")


def test_versions() -> None:
    for mode, version in (("polite", 1), ("wrong-version", 99)):
        with scripted(mode) as agent:
            answer = agent.result("initialize", {"protocolVersion": 1})
            assert answer["protocolVersion"] == version


def test_garbage_stands_between_the_messages() -> None:
    with scripted("garbage") as agent:
        agent.request("initialize", {"protocolVersion": 1})
        bad = 0
        while True:
            line = agent.line()
            try:
                message = json.loads(line)
            except ValueError:
                bad += 1
                continue
            if isinstance(message, dict) and message.get("id") == 1:
                break
        assert bad >= 3


@pytest.mark.parametrize("mode", ["hang-initialize", "hang-new", "hang-prompt"])
def test_silence(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(mode) as agent:
        if mode == "hang-prompt":
            session = agent.open(CWD)
            agent.prompt(session, "go")
            assert texts([agent.message()]) == ["started"]
            agent.send("session/cancel", params={"sessionId": session})
        elif mode == "hang-new":
            agent.result("initialize", {"protocolVersion": 1})
            agent.request("session/new", {"cwd": "/", "mcpServers": []})
        else:
            agent.request("initialize", {"protocolVersion": 1})
        monkeypatch.setattr(driver, "DEADLINE", 0.3)
        with pytest.raises(Empty):
            agent.line()


def test_flood_and_big_line() -> None:
    with scripted("flood", "20000") as agent:
        stop, chunks = turn(agent)
        assert stop == "end_turn"
        assert chunks == [f"{n:06d} " for n in range(20_000)]
    with scripted("big-line") as agent:
        assert [len(t) for t in turn(agent)[1]] == [20 << 20]


@pytest.mark.parametrize(("mode", "code"), [("exit-initialize", 3), ("exit-prompt", 4)])
def test_exits(mode: str, code: int) -> None:
    with scripted(mode) as agent:
        if mode == "exit-initialize":
            agent.request("initialize", {"protocolVersion": 1})
        else:
            agent.prompt(agent.open(CWD), "go")
            assert texts([agent.message()]) == ["started"]
        assert agent.line() == b""
        assert agent.wait() == code
    assert "scripted: " in agent.stderr


def test_stop_ladder() -> None:
    for mode, number in (("ignores-eof", signal.SIGTERM), ("ignores-term", signal.SIGKILL)):
        with scripted(mode) as agent:
            agent.open(CWD)
            agent.close_input()
            if number == signal.SIGKILL:
                agent.signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                agent.wait(0.3)
            agent.signal(number)
            assert agent.wait() == -number


def test_the_grandchild_stays_in_the_process_group() -> None:
    with scripted("forks-grandchild") as agent:
        agent.open(CWD)
        agent.close_input()
        assert agent.wait() == 0
        assert agent.line() == b""
    found = re.search(r"grandchild (\d+)", agent.stderr)
    assert found
    grandchild = int(found[1])
    try:
        assert os.getpgid(grandchild) == agent.pid
    finally:
        os.kill(grandchild, signal.SIGKILL)


@pytest.mark.parametrize("mode", ["hang-permission", "string-ids"])
def test_permission_is_waited_for_also_after_a_cancel(mode: str) -> None:
    with scripted(mode) as agent:
        session = agent.open(CWD)
        prompt = agent.prompt(session, "go")
        question = agent.message()
        assert isinstance(question["id"], str) == (mode == "string-ids")
        agent.send("session/cancel", params={"sessionId": session})
        # The answer to a later request shows that the cancel was read and nothing was sent.
        assert agent.call("session/close", {"sessionId": session})[1] == []
        agent.send(id=question["id"], result={"outcome": {"outcome": "cancelled"}})
        response, before = agent.answer(prompt)
        assert response["result"]["stopReason"] == "cancelled"
        assert json.loads(texts(before)[0]) == {"outcome": "cancelled"}


def test_end_turn_on_cancel() -> None:
    with scripted("end-turn-on-cancel") as agent:
        session = agent.open(CWD)
        prompt = agent.prompt(session, "go")
        agent.message()
        agent.send("session/cancel", params={"sessionId": session})
        assert agent.answer(prompt)[0]["result"]["stopReason"] == "end_turn"


def test_lone_surrogate() -> None:
    with scripted("lone-surrogate") as agent:
        agent.prompt(agent.open(CWD), "go")
        line = agent.line()
        assert rb"half \ud83d emoji" in line


def test_questions_to_the_client() -> None:
    for mode, method in (
        ("asks-drain", "craft/drainMidTurnQueue"),
        ("reads-fs", "fs/read_text_file"),
    ):
        with scripted(mode) as agent:
            session = agent.open(CWD)
            prompt = agent.prompt(session, "/some/file")
            question = agent.message()
            assert question["method"] == method
            assert question["params"]["sessionId"] == session
            error = {"code": -32601, "message": "no"}
            agent.send(id=question["id"], error=error)
            _, before = agent.answer(prompt)
            assert json.loads(texts(before)[0])["error"] == error


def test_early_updates() -> None:
    with scripted("early-updates") as agent:
        agent.result("initialize", {"protocolVersion": 1})
        response, before = agent.call("session/new", {"cwd": "/", "mcpServers": []})
        assert [m["params"]["sessionId"] for m in before] == [response["result"]["sessionId"]]


def test_its_environment_is_told() -> None:
    with scripted("prints-environment") as agent:
        agent.prompt(agent.open(CWD), "go")
        (told,) = texts([agent.message()])
    assert "PATH" in json.loads(told)


def test_every_mode_is_tried_here() -> None:
    source = Path(__file__).read_text()
    assert [mode for mode in MODES if f'"{mode}"' not in source] == []
