"""One agent process: handshake, ladder, messages, end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from support.runtime_rig import (
    PYTHON,
    host,
    make_host,
    obedient,
    received,
    running,
    scripted,
    until,
)

from acp_gateway.protocol.errors import AgentError, ErrorKind, GatewayError
from acp_gateway.runtime import agent_host, agent_process
from acp_gateway.runtime.agent_host import AgentHost
from acp_gateway.runtime.agent_profile import Quirks
from acp_gateway.runtime.agent_rpc import Call
from acp_gateway.wire.large_line import Pieces

DEADLINE = 20.0


class Link:
    """Keeps what a host tells a session."""

    def __init__(self) -> None:
        self.updates: list[dict[str, Any]] = []
        self.requests: list[tuple[bytes, str, Any]] = []
        self.notifications: list[str] = []
        self.changed = trio.Event()
        self.over_flow = False

    def on_updates(self, lines: list[bytes], kind: str, now: float) -> None:
        self.updates += [json.loads(line)["params"]["update"] for line in lines]

    def on_large_update(self, line: bytes | Pieces, kind: str, now: float) -> None:
        self.on_updates([line if isinstance(line, bytes) else line.join()], kind, now)

    def on_agent_request(self, host: AgentHost, id: bytes, method: str, params: Any) -> None:
        self.requests.append((id, method, params))

    def on_agent_notification(self, method: str, params: dict[str, Any], line: bytes) -> None:
        self.notifications.append(method)

    def flush(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def flow(self) -> None:
        raise AssertionError("nobody is slow here")

    @property
    def text(self) -> str:
        return "".join(update["content"]["text"] for update in self.updates)


async def start_failure(profile: Any, root: Path, **changes: Any) -> GatewayError:
    """The error of a start that must fail; no process may be left."""
    made, books = make_host(profile, root, **changes)
    raised: GatewayError | None = None
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(made.run)
            except GatewayError as exc:
                raised = exc
            nursery.cancel_scope.cancel()
    assert raised is not None, "it started"
    assert made.exited.is_set() and not made.alive
    assert not books.listed
    assert not [pid for pid in books.seen if running(pid)]
    return raised


async def new_session(made: AgentHost, link: Link) -> str:
    result = await made.request("session/new", {"cwd": "/", "mcpServers": []}, timeout=DEADLINE)
    session_id: str = result["sessionId"]
    made.adopt(session_id, link)  # type: ignore[arg-type]
    return session_id


async def prompt(made: AgentHost, session_id: str, text: str = "go") -> Any:
    params = {"sessionId": session_id, "prompt": [{"type": "text", "text": text}]}
    return await made.request("session/prompt", params, timeout=DEADLINE)


# ---- handshake ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["polite", "wrong-version", "garbage"])
async def test_handshake(tmp_path: Path, mode: str) -> None:
    with trio.fail_after(DEADLINE):
        async with host(scripted(mode), tmp_path) as made:
            assert made.alive
            assert made.initialize_result["agentInfo"]["name"] == "scripted"
            assert made.can_load and made.can("close") and not made.can("list")
            link = Link()
            session_id = await new_session(made, link)
            assert await prompt(made, session_id) == {"stopReason": "end_turn"}
            assert link.text == "still here"


async def test_a_silent_agent_is_given_up(tmp_path: Path) -> None:
    error = await start_failure(scripted("hang-initialize"), tmp_path, handshake_timeout=0.5)
    assert error.kind is ErrorKind.AGENT_START_FAILED
    assert "did not answer initialize within 0.5 s" in error.message


async def test_the_profile_s_own_deadline_counts(tmp_path: Path) -> None:
    profile = scripted("hang-initialize", handshake_timeout=0.3)
    error = await start_failure(profile, tmp_path, handshake_timeout=60)
    assert "within 0.3 s" in error.message


async def test_an_agent_that_exits_says_why(tmp_path: Path) -> None:
    error = await start_failure(scripted("exit-initialize", install="npm i x"), tmp_path)
    assert error.kind is ErrorKind.AGENT_START_FAILED
    assert "exit status 3" in error.message and "no API key is set" in error.message
    assert error.remedy == "npm i x"


async def test_an_agent_that_refuses_says_why(tmp_path: Path) -> None:
    error = await start_failure(obedient(tmp_path / "log", "fail-start"), tmp_path)
    assert "refused initialize: no start today" in error.message


async def test_a_program_that_is_no_agent(tmp_path: Path) -> None:
    code = "print('hello', flush=True); import sys; sys.stdin.read()"
    profile = scripted("x", argv=(*PYTHON, "-c", code))
    error = await start_failure(profile, tmp_path, handshake_timeout=0.5)
    assert error.kind is ErrorKind.AGENT_START_FAILED


async def test_a_program_that_is_missing(tmp_path: Path) -> None:
    error = await start_failure(scripted("x", argv=(str(tmp_path / "missing"),)), tmp_path)
    assert error.kind is ErrorKind.AGENT_START_FAILED
    assert "No such file" in error.message


async def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    error = await start_failure(scripted("polite"), tmp_path / "missing")
    assert error.kind is ErrorKind.AGENT_START_FAILED


async def test_deep_nesting_is_garbage(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with host(obedient(tmp_path / "log", "deep"), tmp_path) as made:
            session_id = await new_session(made, Link())
            assert await prompt(made, session_id, "deep") == {"stopReason": "end_turn"}
            assert made.alive


# ---- the stop ladder ----------------------------------------------------------------------------


async def test_end_of_input_is_enough(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with host(scripted("polite"), tmp_path) as made:
            pass
    assert made.returncode == 0


async def test_ladder_goes_on_to_term(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with host(scripted("ignores-eof"), tmp_path) as made:
            pass
    assert made.returncode == -15


async def test_known_not_to_heed_eof_gets_term_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_process, "EOF_GRACE", DEADLINE * 2)
    profile = scripted("ignores-eof", quirks=Quirks(ignores_eof=True))
    with trio.fail_after(DEADLINE):
        async with host(profile, tmp_path) as made:
            pass
    assert made.returncode == -15


async def test_ladder_goes_on_to_kill(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with host(scripted("ignores-term"), tmp_path) as made:
            pass
    assert made.returncode == -9


@pytest.mark.parametrize("how", ["stop", "cancel", "killed"])
async def test_grandchildren_go_too(tmp_path: Path, how: str) -> None:
    made, books = make_host(scripted("forks-grandchild"), tmp_path)
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            await nursery.start(made.run)
            line = await until(lambda: next(iter(made.process._stderr), None))
            grandchild = int(line.split()[1])
            assert running(grandchild)
            if how == "stop":
                await made.stop()
            elif how == "cancel":
                nursery.cancel_scope.cancel()
            else:
                assert made.pid is not None
                os.kill(made.pid, 9)
                await made.exited.wait()
        await until(lambda: not running(grandchild))
        assert made.exited.is_set() and not books.listed


async def test_stop_gives_the_reason_to_whoever_waits(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with host(scripted("hang-prompt"), tmp_path) as made:
            session_id = await new_session(made, Link())
            call = made.call("session/prompt", {"sessionId": session_id, "prompt": []})
            reason = GatewayError(ErrorKind.AGENT_UNRESPONSIVE, "it was stopped")
            await made.stop(reason)
            with pytest.raises(GatewayError) as caught:
                await call.wait()
            assert caught.value is reason
            late = made.call("session/prompt", {})
            with pytest.raises(GatewayError):
                await late.wait()


# ---- the end ------------------------------------------------------------------------------------


async def test_an_exit_fails_the_calls_with_a_redacted_tail(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with host(obedient(tmp_path / "log"), tmp_path) as made:
            link = Link()
            session_id = await new_session(made, link)
            with pytest.raises(GatewayError) as caught:
                await prompt(made, session_id, "crash")
            await made.exited.wait()
    error = caught.value
    assert error.kind is ErrorKind.AGENT_EXITED
    assert "exit status 7" in error.message and error.data["exitCode"] == 7
    assert error.data["stderr"] == ["token=[redacted] went wrong"]
    assert "verysecret" not in json.dumps(error.to_jsonrpc())
    assert link.text == "started", "what it wrote before its end was lost"


@pytest.mark.parametrize("pipe", [0, 1])
async def test_an_agent_that_hangs_up_is_ended(
    tmp_path: Path, pipe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_host, "HANG_UP_GRACE", 0.1)
    answer = '{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":1}}'
    # Its input it closes before it answers: what is written into an open pipe is no error yet.
    steps = ["os.close(0)", f"os.write(1, b'''{answer}\\n''')", "os.close(1)"]
    steps = ["os.read(0, 9999)", *(steps[:2] if pipe == 0 else steps[1:]), "time.sleep(600)"]
    code = "import os, time; " + "; ".join(steps)
    with trio.fail_after(DEADLINE):
        async with host(scripted("x", argv=(*PYTHON, "-c", code)), tmp_path) as made:
            with pytest.raises(GatewayError) as caught:
                await made.request("session/new", {}, timeout=DEADLINE * 2)
    assert caught.value.kind is ErrorKind.AGENT_EXITED
    assert f"closed its {'output' if pipe else 'input'}" in caught.value.message


async def test_an_agent_that_does_not_read_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_host, "STDIN_STALL", 0.3)
    answer = '{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":1}}'
    code = f"import os, time; os.read(0, 9999); os.write(1, b'''{answer}\\n'''); time.sleep(600)"
    with trio.fail_after(DEADLINE):
        async with host(scripted("x", argv=(*PYTHON, "-c", code)), tmp_path) as made:
            with pytest.raises(GatewayError) as caught:
                await made.request("session/prompt", {"x": "y" * 400_000}, timeout=DEADLINE * 2)
    assert caught.value.kind is ErrorKind.AGENT_UNRESPONSIVE
    assert "does not read its input" in caught.value.message


async def test_stderr_is_read_however_much_it_is(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with host(scripted("stderr-flood", "20000"), tmp_path) as made:
            session_id = await new_session(made, Link())
            assert await prompt(made, session_id) == {"stopReason": "end_turn"}
            await made.stop()
            tail = made.stderr_tail()
    assert tail[-1] == "no line end" and tail[-2] == "log line 19999"


# ---- messages -----------------------------------------------------------------------------------


async def test_updates_before_the_answer_that_names_their_session(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with host(scripted("early-updates"), tmp_path) as made:
            link = Link()
            await new_session(made, link)
            assert [u["sessionUpdate"] for u in link.updates] == ["available_commands_update"]


async def test_updates_of_a_closed_session_take_no_room(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with host(obedient(tmp_path / "log"), tmp_path) as made:
            link = Link()
            session_id = await new_session(made, link)
            made.release(session_id, link)  # type: ignore[arg-type]
            await prompt(made, session_id, "chunks 1000 1000")
            assert not made._early and made._early_bytes == 0
            made.adopt(session_id, link)  # type: ignore[arg-type]
            assert link.updates == []


async def test_a_late_answer_is_dropped(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with host(obedient(tmp_path / "log"), tmp_path) as made:
            link = Link()
            session_id = await new_session(made, link)
            params = {"sessionId": session_id, "prompt": [{"type": "text", "text": "wait"}]}
            with pytest.raises(GatewayError) as caught:
                await made.request("session/prompt", params, timeout=0.3)
            assert caught.value.kind is ErrorKind.AGENT_UNRESPONSIVE
            made.notify("session/cancel", {"sessionId": session_id})
            assert await prompt(made, session_id) == {"stopReason": "end_turn"}
            assert not made._calls


async def test_an_error_of_the_agent_is_passed_on(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with host(scripted("polite"), tmp_path) as made:
            with pytest.raises(AgentError) as caught:
                await made.request("session/unknown", {}, timeout=DEADLINE)
    assert caught.value.to_jsonrpc() == {"code": -32601, "message": "no method session/unknown"}


async def test_replies_are_told_in_wire_order(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        async with host(obedient(tmp_path / "log"), tmp_path) as made:
            link = Link()
            session_id = await new_session(made, link)
            seen: list[tuple[int, int]] = []

            def replied(call: Call) -> None:
                seen.append((call.id, len(link.updates)))

            calls = []
            for _ in range(50):
                params = {"sessionId": session_id, "prompt": [{"type": "text", "text": "x"}]}
                calls.append(made.call("session/prompt", params, replied))
            for call in calls:
                await call.wait()
            # Each answer was told when exactly the updates before it had been.
            assert seen == [(call.id, n + 1) for n, call in enumerate(calls)]


async def test_a_line_of_64_mib(tmp_path: Path) -> None:
    size = (64 << 20) - 1000
    with trio.fail_after(60):
        async with host(scripted("big-line", str(size)), tmp_path) as made:
            link = Link()
            session_id = await new_session(made, link)
            assert await prompt(made, session_id) == {"stopReason": "end_turn"}
            assert len(link.text) == size


async def test_a_line_over_the_limit_is_skipped(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE):
        profile = scripted("big-line", str(1 << 20))
        async with host(profile, tmp_path, max_agent_line_bytes=100_000) as made:
            link = Link()
            session_id = await new_session(made, link)
            assert await prompt(made, session_id) == {"stopReason": "end_turn"}
            assert link.updates == []


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ('"result":{"a":1},"error":null', {"a": 1}),
        ('"result":null', None),
        ('"error":{"code":5,"message":"no"}', AgentError),
        ('"error":"text"', AgentError),
        ("", AgentError),
    ],
)
async def test_shapes_of_answers(tmp_path: Path, answer: str, result: Any) -> None:
    code = (
        "import os, sys\n"
        'def say(n, text): os.write(1, b\'{"jsonrpc":"2.0","id":%d%s}\\n\' % (n, text))\n'
        'sys.stdin.readline(); say(1, b\',"result":{"protocolVersion":1}\')\n'
        f"sys.stdin.readline(); say(2, b''',{answer}'''.rstrip(b','))\n"
        "sys.stdin.read()"
    )
    with trio.fail_after(DEADLINE):
        async with host(scripted("x", argv=(*PYTHON, "-c", code)), tmp_path) as made:
            asked = made.request("session/new", {}, timeout=DEADLINE)
            if result is AgentError:
                with pytest.raises(AgentError):
                    await asked
            else:
                assert await asked == result


async def test_a_request_without_a_session_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with trio.fail_after(DEADLINE):
        async with host(obedient(log), tmp_path) as made:
            session_id = await new_session(made, Link())
            line = (
                '{"jsonrpc":"2.0","id":"q","method":"fs/read_text_file","params":{"sessionId":1}}'
            )
            await prompt(made, session_id, f"raw {line}")
            answer = await until(
                lambda: [e for e in received(log) if e["message"].get("id") == "q"]
            )
            assert answer[0]["message"]["error"]["code"] == -32601


async def test_pings_that_stay_unanswered_end_the_agent(tmp_path: Path) -> None:
    quirks = Quirks(ping_method="_x/ping", initialize_meta={"ping": 1})
    # It promises pings in its _meta and then goes silent.
    code = (
        "import os, time; os.read(0, 9999); os.write(1, b'''"
        '{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":1,"_meta":{"ping":1}}}'
        "\\n'''); time.sleep(600)"
    )
    profile = scripted("x", argv=(*PYTHON, "-c", code), quirks=quirks)
    began = time.monotonic()
    with trio.fail_after(DEADLINE):
        async with host(profile, tmp_path, health_interval=0.05, handshake_timeout=1.0) as made:
            await made.exited.wait()
    assert made.ending is not None and made.ending.kind is ErrorKind.AGENT_UNRESPONSIVE
    assert time.monotonic() - began < DEADLINE
