"""Commands in a session's directory: what they tell, who may run them, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx2
import pytest
import trio
from agent_env import base_environment
from gateway_process import GatewayProcess, running_gateway
from support.acp_clients import RpcError, WsClient, ws_client
from support.event_schemas import validate_frame
from support.openapi import BY_NAME, validator
from support.processes import (
    eventually,
    gateway,
    rss,
    running,
    scripted_command,
    workspace_of,
)

TOKEN = "a-token-of-the-tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
BEARER = [(b"authorization", f"Bearer {TOKEN}".encode())]
DEADLINE = 30.0
SHELL_ON = ("--token", TOKEN, "--enable-session-shell")


@attrs.define
class Site:
    gateway: GatewayProcess
    http: httpx2.Client
    workspace: Path

    def session(self, **body: Any) -> Session:
        answer = self.http.post("/session", json={"sessionScope": "thread", **body})
        assert answer.status_code == 200, answer.text
        made = answer.json()
        return Session(self, made["sessionId"], made["clientId"])

    def features(self) -> list[str]:
        told: list[str] = self.http.get("/capabilities").json()["features"]
        return told


@attrs.define
class Session:
    site: Site
    id: str
    client: str

    def ask(self, command: Any, client: str | None = "mine", **more: Any) -> httpx2.Response:
        headers = {} if client is None else {"X-Qwen-Client-Id": client}
        if client == "mine":
            headers = {"X-Qwen-Client-Id": self.client}
        body = {} if command is ... else {"command": command}
        answer = self.site.http.post(f"/session/{self.id}/shell", json=body, headers=headers)
        documented = BY_NAME["session_shell"]
        assert answer.status_code in documented.responses, answer.text
        schema = documented.schema(answer.status_code)
        assert schema is not None
        validator(schema).validate(answer.json())
        return answer

    def run(self, command: str) -> dict[str, Any]:
        answer = self.ask(command)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def stop(self, shell_id: str) -> Any:
        path = f"/session/{self.id}/shell/{shell_id}/cancel"
        answer = self.site.http.post(path, json={}, headers={"X-Qwen-Client-Id": self.client})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self, last: int = 0) -> list[dict[str, Any]]:
        """What was published behind that id so far."""
        found = []
        headers = {"Last-Event-ID": str(last)}
        with self.site.http.stream("GET", f"/session/{self.id}/events", headers=headers) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    envelope = json.loads(line[6:])
                    if envelope["type"] == "replay_complete":
                        return found
                    validate_frame(envelope)
                    found.append(envelope)
        raise AssertionError("the stream ended")

    def shell_events(self) -> list[dict[str, Any]]:
        return [each for each in self.events() if is_shell(each)]

    def result_event(self, seconds: float = 10.0) -> dict[str, Any]:
        def result() -> dict[str, Any] | None:
            told = [each for each in self.events() if each["type"] == "user_shell_result"]
            return told[-1]["data"] if told else None

        found = eventually(result, seconds)
        assert found, "no result was told"
        return dict(found)

    def begin(self, command: str) -> Running:
        return Running(self, command)


class Running:
    """A command that runs while the test goes on."""

    def __init__(self, session: Session, command: str) -> None:
        self.session = session
        self.answer: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._run, args=(command,))
        self._thread.start()
        self.shell_id = ""

        def begun() -> Any:
            told = [e for e in session.shell_events() if e["data"].get("command") == command]
            return told and told[-1]["data"]["shellId"]

        self.shell_id = eventually(begun, 10)
        assert self.shell_id

    def _run(self, command: str) -> None:
        with httpx2.Client(
            base_url=self.session.site.gateway.url, headers=HEADERS, trust_env=False, timeout=60
        ) as http:
            site = attrs.evolve(self.session.site, http=http)
            self.answer = attrs.evolve(self.session, site=site).run(command)

    def output(self) -> str:
        return "".join(
            each["data"]["update"]["output"]
            for each in self.session.shell_events()
            if each["type"] == "session_update"
            and each["data"]["update"]["_meta"]["shellId"] == self.shell_id
        )

    def until(self, text: str) -> str:
        """Its output, when that is in it."""
        assert eventually(lambda: text in self.output(), 10), self.output()
        return self.output()

    def join(self) -> dict[str, Any]:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        return self.answer


def is_shell(envelope: dict[str, Any]) -> bool:
    if envelope["type"] == "session_update":
        return bool(envelope["data"]["update"]["sessionUpdate"] == "shell_output")
    return envelope["type"] in ("user_shell_command", "user_shell_result")


@contextlib.contextmanager
def site_at(base: Path, *args: str, **settings: Any) -> Iterator[Site]:
    workspace = workspace_of(base)
    workspace.mkdir(exist_ok=True)
    with (
        gateway(base, *args, **settings) as made,
        httpx2.Client(
            base_url=made.url, headers=HEADERS, trust_env=False, timeout=DEADLINE
        ) as http,
    ):
        yield Site(made, http, workspace)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("shell").resolve()
    with site_at(base, *SHELL_ON) as made:
        yield made


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With small limits."""
    base = tmp_path_factory.mktemp("tight").resolve()
    limits = {"shell_timeout": 1, "max_shell_commands": 2, "shell_output_bytes": 100_000}
    with site_at(base, *SHELL_ON, event_ring_size=8, **limits) as made:
        yield made


@pytest.fixture
def session(site: Site) -> Iterator[Session]:
    made = site.session()
    yield made
    site.http.delete(f"/session/{made.id}")


# ---- what it tells -------------------------------------------------------------------------------


def test_a_command_is_told_to_everybody_and_answered(session: Session) -> None:
    told = session.run("echo out; echo err >&2; pwd; exit 3")
    assert (told["exitCode"], told["aborted"], told["truncated"]) == (3, False, False)
    assert told["output"] == f"out\nerr\n{session.site.workspace}\n"
    first, *output, last = session.shell_events()
    assert first["type"] == "user_shell_command" and last["type"] == "user_shell_result"
    assert first["data"] == {
        "sessionId": session.id,
        "command": "echo out; echo err >&2; pwd; exit 3",
        "cwd": str(session.site.workspace),
        "shellId": told["shellId"],
    }
    assert "".join(each["data"]["update"]["output"] for each in output) == told["output"]
    for each in output:
        meta = each["data"]["update"]["_meta"]
        assert (meta["source"], meta["shellId"]) == ("user-shell", told["shellId"])
    assert {k: last["data"][k] for k in ("exitCode", "signal", "aborted")} == {
        "exitCode": 3,
        "signal": None,
        "aborted": False,
    }
    assert {each["originatorClientId"] for each in (first, *output, last)} == {session.client}


def test_output_comes_while_the_command_runs(session: Session) -> None:
    go = session.site.workspace / f"go-{session.id}"
    made = session.begin(f"echo first; until [ -e '{go}' ]; do sleep 0.05; done; echo second")
    assert made.until("first") == "first\n"
    go.touch()
    assert made.join()["output"] == "first\nsecond\n"


@pytest.mark.parametrize(
    ("command", "code", "output"),
    [
        ("exit 7", 7, ""),
        ("true", 0, ""),
        ("cat; read x || echo no input", 0, "no input\n"),
        (r"printf 'a\377\000\033[31mb\r\n'", 0, "a\ufffd\0\x1b[31mb\r\n"),
        ("head -c 300000 /dev/zero | tr '\\0' x", 0, "x" * 300_000),
        ("printf '\\342\\202'; sleep 0.2; printf '\\254'", 0, "€"),
        ("printf '\\342\\202'", 0, "\ufffd"),
        ("no-such-program-anywhere 2>/dev/null", 127, ""),
        ("exec 1>&- 2>&-; sleep 0.1; exit 5", 5, ""),
        ("echo 'déjà vu 🎉'", 0, "déjà vu 🎉\n"),
        ("tty", 1, "not a tty\n"),
    ],
)
def test_what_comes_out(session: Session, command: str, code: int, output: str) -> None:
    told = session.run(command)
    assert (told["exitCode"], told["output"], told["signal"]) == (code, output, None)
    assert not told["aborted"]


def test_a_signal_is_told(session: Session) -> None:
    told = session.run("kill -9 $$")
    assert (told["exitCode"], told["signal"], told["aborted"]) == (None, 9, False)
    assert session.result_event()["signal"] == 9


def test_what_it_leaves_behind_ends_with_it(session: Session) -> None:
    began = time.monotonic()
    told = session.run("sleep 1000 & echo $!; (trap '' TERM; sleep 1001) & sleep 0.2")
    assert time.monotonic() - began < 8
    left = int(told["output"])
    assert told["exitCode"] == 0 and not told["aborted"]
    assert eventually(lambda: not running(left), 5)
    assert eventually(lambda: not _find("sleep", "1001"), 5)


def test_what_left_its_group_holds_nobody_up(session: Session) -> None:
    began = time.monotonic()
    told = session.run("setsid sleep 1002 & sleep 0.3; echo done")
    try:
        assert told["output"] == "done\n" and time.monotonic() - began < 8
    finally:
        for pid in _find("sleep", "1002"):
            os.kill(pid, signal.SIGKILL)


def test_a_directory_that_has_gone(site: Site) -> None:
    gone = site.workspace / "gone"
    gone.mkdir()
    made = site.session(cwd=str(gone))
    gone.rmdir()
    answer = made.ask("pwd")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_params")
    gone.symlink_to("/etc")
    answer = made.ask("pwd")
    assert (answer.status_code, answer.json()["code"]) == (400, "workspace_mismatch")
    assert not made.shell_events()


def test_commands_stand_in_the_history_of_who_comes_late(tight: Site) -> None:
    """Also when they have left the ring."""
    made = tight.session()
    for number in range(6):
        made.run(f"echo number {number}; sleep 0.12; echo again {number}")
    headers = {"X-Qwen-Client-Id": made.client}
    told = tight.http.post(f"/session/{made.id}/load", json={}, headers=headers).json()
    history = [*told["compactedReplay"], *told["liveJournal"]]
    kinds = [each["type"] for each in history if is_shell(each)]
    assert kinds == ["user_shell_command", "session_update", "user_shell_result"] * 6
    texts = [
        e["data"]["update"]["output"] for e in history if is_shell(e) and "update" in e["data"]
    ]
    assert texts == [f"number {n}\nagain {n}\n" for n in range(6)]
    assert tight.http.get(f"/session/{made.id}/transcript").status_code == 200


# ---- who may -------------------------------------------------------------------------------------


def test_who_may_not(session: Session) -> None:
    answer = session.ask("touch no", client=None)
    assert (answer.status_code, answer.json()["code"]) == (403, "client_id_required")
    answer = session.ask("touch no", client="client_of-nobody")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_client_id")
    other = session.site.session()
    answer = session.ask("touch no", client=other.client)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_client_id")
    bare = httpx2.post(f"{session.site.gateway.url}/session/{session.id}/shell", trust_env=False)
    assert bare.status_code == 401
    assert not (session.site.workspace / "no").exists() and not session.shell_events()


@pytest.mark.parametrize(
    "command", [..., "", " \n", 5, None, ["ls"], "a\0b", "x" * 65_537, "\ud800"]
)
def test_what_is_no_command(session: Session, command: Any) -> None:
    if command == "\ud800":
        answer = session.site.http.post(
            f"/session/{session.id}/shell",
            content=b'{"command": "echo \\ud800"}',
            headers={"X-Qwen-Client-Id": session.client, "Content-Type": "application/json"},
        )
    else:
        answer = session.ask(command)
    assert answer.status_code == 400
    assert answer.json()["code"] in ("invalid_request", "parse_error")
    assert not session.shell_events()


def test_off_unless_asked_for(tmp_path: Path) -> None:
    with site_at(tmp_path, "--token", TOKEN) as made:
        assert "session_shell_command" not in made.features()
        answer = made.session().ask("true")
        assert (answer.status_code, answer.json()["code"]) == (403, "session_shell_disabled")


def test_ignored_without_a_token(tmp_path: Path) -> None:
    with site_at(tmp_path, "--enable-session-shell") as made:
        assert "session_shell_command" not in made.features()
        answer = made.session().ask("true")
        assert (answer.status_code, answer.json()["code"]) == (401, "token_required")
        assert "--enable-session-shell has no effect" in made.gateway.stderr_tail()


def test_on_where_the_machine_is_trusted(tmp_path: Path) -> None:
    with site_at(tmp_path, "--enable-session-shell", "--trust-loopback") as made:
        assert "session_shell_command" in made.features()
        assert made.session().run("echo yes")["output"] == "yes\n"
        assert "--enable-session-shell has no effect" not in made.gateway.stderr_tail()


# ---- how it ends ---------------------------------------------------------------------------------


def test_stopped_by_anybody_of_the_session(session: Session) -> None:
    made = session.begin("sleep 1003; echo not here")
    assert session.stop(made.shell_id) == {"cancelled": True}
    told = made.join()
    assert (told["aborted"], told["signal"], told["output"]) == (True, 15, "")
    assert session.client in told["error"]
    assert session.stop(made.shell_id) == {"cancelled": False, "reason": "not_found"}
    assert not _find("sleep", "1003")


def test_one_that_does_not_want_to_end(session: Session) -> None:
    made = session.begin("trap '' TERM; echo up; while :; do sleep 0.1; done")
    made.until("up")
    began = time.monotonic()
    session.stop(made.shell_id)
    told = made.join()
    assert (told["aborted"], told["signal"]) == (True, 9)
    assert time.monotonic() - began < 6


def test_one_that_ends_well_when_it_is_stopped(session: Session) -> None:
    command = "trap 'echo cleaned up; exit 4' TERM; echo up; while :; do sleep 0.1; done"
    made = session.begin(command)
    made.until("up")
    session.stop(made.shell_id)
    told = made.join()
    assert (told["aborted"], told["exitCode"]) == (True, 4)
    assert told["output"].startswith("up\n") and told["output"].endswith("cleaned up\n")


def test_its_deadline(tight: Site) -> None:
    began = time.monotonic()
    told = tight.session().run("sleep 1004")
    assert (told["aborted"], told["exitCode"], told["signal"]) == (True, None, 15)
    assert "1 s" in told["error"] and 1 <= time.monotonic() - began < 6


def test_so_many_at_once(tight: Site) -> None:
    made = tight.session()
    first, second = made.begin("sleep 0.8; echo 1"), made.begin("sleep 0.8; echo 2")
    answer = made.ask("echo 3")
    assert (answer.status_code, answer.json()["code"]) == (503, "request_limit_exceeded")
    assert int(answer.headers["retry-after"]) > 0
    assert tight.session().run("echo another session")["exitCode"] == 0
    assert (first.join()["output"], second.join()["output"]) == ("1\n", "2\n")
    assert made.run("echo 3")["output"] == "3\n"


def test_over_http_who_hangs_up_stops_it(session: Session) -> None:
    body = b'{"command": "sleep 1005"}'
    base = session.site.http.base_url
    head = (
        f"POST /session/{session.id}/shell HTTP/1.1\r\nHost: {base.netloc.decode()}\r\n"
        f"Authorization: Bearer {TOKEN}\r\nX-Qwen-Client-Id: {session.client}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    address = (base.host, base.port)
    with socket.create_connection(address, timeout=5) as peer:
        peer.sendall(head.encode() + body)
        assert eventually(lambda: _find("sleep", "1005"), 10)
    told = session.result_event()
    assert (told["aborted"], told["signal"]) == (True, 15)
    assert eventually(lambda: not _find("sleep", "1005"), 5)


def test_a_turn_goes_on_beside_it(session: Session) -> None:
    headers = {"X-Qwen-Client-Id": session.client}
    prompt = {"prompt": [{"type": "text", "text": "/sleep 2"}]}
    session.site.http.post(f"/session/{session.id}/prompt", json=prompt, headers=headers)
    assert session.run("echo beside")["output"] == "beside\n"
    made = session.begin("sleep 0.7; echo still here")
    session.site.http.post(f"/session/{session.id}/cancel", json={}, headers=headers)
    assert made.join()["output"] == "still here\n"


def test_a_flood_grows_nothing_and_holds_nobody_up(site: Site, session: Session) -> None:
    other = site.session()
    other.run("true")
    before = rss(site.gateway.process.pid)
    made = [session.begin(command) for command in ("yes", "cat /dev/zero")]
    slowest = 0.0
    for _ in range(20):
        began = time.monotonic()
        assert other.run("echo hello")["output"] == "hello\n"
        slowest = max(slowest, time.monotonic() - began)
    for each in made:
        session.stop(each.shell_id)
        told = each.join()
        assert told["aborted"] and told["truncated"]
        assert "bytes left out]" in told["output"] and len(told["output"]) < 600_000
    assert slowest < 3.0
    grown = rss(site.gateway.process.pid) - before
    assert grown < 60 << 20, grown


def test_of_a_long_output_the_beginning_and_the_end(tight: Site) -> None:
    told = tight.session().run("seq 1 100000")
    head, _, tail = told["output"].partition("\n[")
    left_out, _, tail = tail.partition(" bytes left out]\n")
    whole = "".join(f"{n}\n" for n in range(1, 100_001))
    assert told["truncated"] and whole.startswith(head) and whole.endswith(tail)
    assert len(head) + len(tail) + int(left_out) == len(whole)
    assert 90_000 < len(head) + len(tail) <= 100_000


# ---- over ACP ------------------------------------------------------------------------------------


async def _attached(client: WsClient, session: Session) -> str:
    """Attach over ACP; the client id there."""
    result = await client.load(session.site.workspace, session.id)
    return str(result["clientId"])


async def test_over_a_websocket(site: Site, session: Session) -> None:
    async with ws_client(site.gateway.ws_url, headers=BEARER) as client:
        mine = await _attached(client, session)
        params = {"sessionId": session.id, "command": "echo over acp; exit 2"}
        told = await client.request("_qwen/session/shell", params)
        assert (told["exitCode"], told["output"]) == (2, "over acp\n")
        (begun,) = client.notices(session.id, "user_shell_command")
        (ended,) = client.notices(session.id, "user_shell_result")
        assert begun["shellId"] == ended["shellId"] == told["shellId"]
        updates = [p["update"] for p in client.of(session.id)]
        outputs = [u["output"] for u in updates if u["sessionUpdate"] == "shell_output"]
        assert outputs == ["over acp\n"]
        assert session.shell_events()[0]["originatorClientId"] == mine
        with pytest.raises(RpcError) as caught:
            await client.request("_qwen/session/shell", {"sessionId": session.id})
        assert caught.value.error["code"] == -32600


async def test_a_request_that_is_taken_back_stops_it(site: Site, session: Session) -> None:
    async with ws_client(site.gateway.ws_url, headers=BEARER) as client:
        await _attached(client, session)
        params = {"sessionId": session.id, "command": "sleep 1006"}
        id = await client.start("_qwen/session/shell", params)
        await client.until(lambda: client.notices(session.id, "user_shell_command"))
        await client.notify("$/cancel_request", {"requestId": id})
        with pytest.raises(RpcError) as caught:
            await client.answer(id)
        assert caught.value.error["code"] == -32800
        await client.until(lambda: client.notices(session.id, "user_shell_result"))
        assert client.notices(session.id, "user_shell_result")[0]["aborted"]


async def test_a_websocket_that_breaks_does_not_stop_it(site: Site, session: Session) -> None:
    async with ws_client(site.gateway.ws_url, headers=BEARER) as client:
        await _attached(client, session)
        command = "sleep 1; echo went on"
        await client.start("_qwen/session/shell", {"sessionId": session.id, "command": command})
        await client.until(lambda: client.notices(session.id, "user_shell_command"))
        client.cut()
    told = await trio.to_thread.run_sync(session.result_event)
    assert (told["exitCode"], told["aborted"]) == (0, False)


async def test_with_its_session(site: Site) -> None:
    made = site.session()
    async with ws_client(site.gateway.ws_url, headers=BEARER) as client:
        await _attached(client, made)
        params = {"sessionId": made.id, "command": "trap '' TERM; sleep 1007"}
        id = await client.start("_qwen/session/shell", params)
        await client.until(lambda: client.notices(made.id, "user_shell_command"))
        await trio.to_thread.run_sync(lambda: eventually(lambda: _find("sleep", "1007"), 10))
        site.http.delete(f"/session/{made.id}")
        await client.until(lambda: client.notices(made.id, "session_closed"))
        kinds = [p["kind"] for p in client.of(made.id, "_qwen/notify")]
        assert kinds.index("user_shell_result") < kinds.index("session_closed")
        assert (await client.answer(id))["aborted"]
    assert eventually(lambda: not _find("sleep", "1007"), 8)


def test_with_the_daemon(tmp_path: Path) -> None:
    with site_at(tmp_path, *SHELL_ON) as made:
        session = made.session()
        command = "trap '' TERM; sleep 1008"
        thread = threading.Thread(target=_run_to_the_end, args=(session, command))
        thread.start()
        assert eventually(lambda: _find("sleep", "1008"), 10)
        assert made.gateway.stop() == 0
        thread.join(10)
    assert not _find("sleep", "1008")


def test_no_orphan_of_a_daemon_that_was_killed(tmp_path: Path) -> None:
    with site_at(tmp_path, *SHELL_ON) as made:
        session = made.session()
        command = "(trap '' TERM; sleep 1009) & sleep 1010"
        thread = threading.Thread(target=_run_to_the_end, args=(session, command))
        thread.start()
        assert eventually(lambda: _find("sleep", "1009") and _find("sleep", "1010"), 10)
        made.gateway.process.kill()
        thread.join(10)
        assert eventually(lambda: not _find("sleep", "1009") and not _find("sleep", "1010"), 5)


def _run_to_the_end(session: Session, command: str) -> None:
    with contextlib.suppress(httpx2.HTTPError, AssertionError):
        session.ask(command)


# ---- what children see ---------------------------------------------------------------------------

PLANTED = {
    "ACP_GATEWAY_TOKEN": TOKEN,
    "QWEN_SERVER_TOKEN": "planted-qwen",
    "QWEN_DAEMON_TOKEN": "planted-daemon",
    "LISTEN_FDS": "planted-fds",
    "NOTIFY_SOCKET": "/run/planted",
    "CREDENTIALS_DIRECTORY": "/run/planted-credentials",
    "GITHUB_TOKEN": "planted-github",
    "DATABASE_URL": "postgres://me:planted-pw@db/x",
    "NODE_AUTH_TOKEN": "planted-npm",
    "MY_PASSWORD": "planted-mine",
}


def test_no_child_sees_a_secret(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    env = base_environment(tmp_path / "home") | PLANTED
    env |= {"OPENAI_API_KEY": "key-of-a-model", "HARMLESS": "seen", "NVM_DIR": "/nvm"}
    args = ("--agent", f"mine={scripted_command('prints-environment')}", "--enable-session-shell")
    with running_gateway(workspace, env, args) as made:
        with httpx2.Client(
            base_url=made.url, headers=HEADERS, trust_env=False, timeout=DEADLINE
        ) as http:
            session = Site(made, http, workspace).session()
            shell = session.run("env; cat /proc/$PPID/environ | tr '\\0' '\\n'")["output"]
            prompt = {"prompt": [{"type": "text", "text": "x"}]}
            headers = {"X-Qwen-Client-Id": session.client}
            http.post(f"/session/{session.id}/prompt", json=prompt, headers=headers)
            agent = eventually(lambda: _chunks(session), 10)
        for value in PLANTED.values():
            assert value not in agent
        of_the_shell, _, _ = shell.partition("PYTHONPATH=")
        for name, value in PLANTED.items():
            assert f"{name}=" not in of_the_shell and value not in of_the_shell
        assert TOKEN not in shell and "planted-qwen" not in shell
        seen = json.loads(agent)
        assert seen["OPENAI_API_KEY"] == "key-of-a-model" and seen["HARMLESS"] == "seen"
        assert "NVM_DIR=/nvm" in of_the_shell and "OPENAI_API_KEY" not in of_the_shell


def _chunks(session: Session) -> str:
    told = session.events()
    if not any(each["type"] == "turn_complete" for each in told):
        return ""
    return "".join(
        each["data"]["update"]["content"]["text"]
        for each in told
        if each["type"] == "session_update"
        and each["data"]["update"]["sessionUpdate"] == "agent_message_chunk"
    )


def _find(*argv: str) -> list[int]:
    """Processes with exactly this command line."""
    wanted = "\0".join(argv).encode() + b"\0"
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                if (path / "cmdline").read_bytes() == wanted and running(int(path.name)):
                    found.append(int(path.name))
    return found
