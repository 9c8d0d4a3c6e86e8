"""Calls every operation of a gateway with a real agent, checks each answer against
schemas/openapi.json, and finds out who answered: the agent's pipes are tapped (`agent_tap`).

``python tests/support/rest_surface.py`` runs the calls with each agent and writes the table of
docs/rest-agents.md anew; it needs what tests/peers/README.md tells to install.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import attrs
import httpx2

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from agent_env import AGENTS  # noqa: E402
from fake_model import FakeModel  # noqa: E402
from gateway_process import ROOT, running_gateway  # noqa: E402
from support.auth_server import AuthServer, write_config  # noqa: E402
from support.event_reader import Frame, ids, parse  # noqa: E402
from support.event_schemas import faults  # noqa: E402
from support.openapi import BY_NAME, validator  # noqa: E402

from acp_gateway.protocol.extensions import OPERATIONS, Operation  # noqa: E402
from acp_gateway.protocol.methods import METHODS  # noqa: E402
from acp_gateway.runtime.agent_profile import KNOWN_AGENTS  # noqa: E402

DEADLINE = 20.0
TOKEN = "a-token-of-the-tests"
METHOD_NOT_FOUND = -32601
UNKNOWN = "00000000-0000-4000-8000-000000000000"
DOCS = ROOT / "docs" / "rest-agents.md"

# The demo agent's own words; the others take the fake model's.
WORDS: Mapping[str, str] = {"text": "/plan", "slow": "/sleep 30", "permission": "/write {cwd}/f x"}

BODIES: Mapping[str, dict[str, Any]] = {
    "session_rewind": {"promptId": "no-such-prompt"},
    "session_metadata": {"displayName": "a name"},
    "mid_turn_message": {"message": "and this", "messageId": "m1"},
    "session_approval_mode": {"mode": "default"},
    "session_btw": {"question": "what is this?"},
    "session_task_cancel": {"kind": "shell"},
    "session_shell": {"command": "echo seen"},
    "session_permission_vote": {"outcome": {"outcome": "cancelled"}},
    "permission_vote": {"outcome": {"outcome": "cancelled"}},
}
"""Bodies that are as they must be, where an operation wants one."""

IGNORED = frozenset({"initialize", "qwen/status/channel/ping"})
"""What the gateway sends on its own account."""

Cell = tuple[str, str]
"""Name of an operation, and the case where there are several."""


@attrs.frozen
class Answer:
    status: int
    body: Any

    @property
    def code(self) -> str:
        """The word of a refusal; empty for anything else."""
        code = self.body.get("code") if isinstance(self.body, dict) else None
        return code if self.status >= 400 and isinstance(code, str) else ""


@attrs.frozen
class Asked:
    """Something that the agent was sent."""

    pid: int
    method: str
    session: str | None
    unknown: bool
    """The agent answered that it has no such method."""


class Tap:
    """Reads what `agent_tap` notes."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def mark(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    def since(self, mark: int = 0) -> list[Asked]:
        """What the agents were sent, in order."""
        if not self._log.exists():
            return []
        text = self._log.read_bytes()[mark:]
        notes = [json.loads(line) for line in text.splitlines()]
        unknown = {
            (each["pid"], each["id"])
            for each in notes
            if each["to"] == "gateway" and each["error"] == METHOD_NOT_FOUND
        }
        return [
            Asked(
                each["pid"],
                each["method"] or "session/request_permission",
                each["session"],
                (each["pid"], each["id"]) in unknown and each["id"] is not None,
            )
            for each in notes
            if each["to"] == "agent" and (each["method"] or each["outcome"])
        ]

    def pid_of(self, session: str) -> int:
        """The process that was last sent something for the session."""
        return [each.pid for each in self.since() if each.session == session][-1]


def who(status: int, asked: list[Asked]) -> str:
    """The cell of the table: who answered, and the agent's methods that it took."""
    if status == 501:
        return "unsupported"
    used = [each.method for each in asked if each.method not in IGNORED and not each.unknown]
    if not used:
        return "gateway"
    kind = "acp" if all(method in METHODS for method in used) else "agent"
    return " ".join([kind, *(f"`{method}`" for method in dict.fromkeys(used))])


SEEN: Final = "seen.txt"
"""A file of the workspace."""
QUERIES: Final[Mapping[str, Mapping[str, str]]] = {
    "file_read": {"path": SEEN},
    "file_read_bytes": {"path": SEEN},
    "file_stat": {"path": SEEN},
    "file_list": {"path": "."},
    "file_glob": {"pattern": "*.txt"},
}


class Surface:
    """A gateway with one agent, and the calls."""

    def __init__(self, agent: str, http: httpx2.Client, workspace: Path, tap: Tap) -> None:
        self.agent = agent
        self.workspace = workspace
        self.tap = tap
        self.words = dict(AGENTS[agent].prompts) or WORDS
        self.bodies = {**BODIES, "session_prompt": self.blocks("text")}
        self.faults: list[str] = []
        """What was wrong with an answer; every call adds to it and none raises."""
        self.cells: dict[Cell, str] = {}
        self._http = http
        self._last: dict[str, int] = {}
        """Id of the newest event of a session that was looked at."""
        self._killed: set[int] = set()

    # -- calls ---------------------------------------------------------------------------------

    def call(
        self,
        name: str,
        session: str = "",
        *,
        client: str | None = None,
        body: Mapping[str, Any] | None = None,
        **path: str,
    ) -> Answer:
        """Calls an operation with JSON for an answer."""
        row = OPERATIONS[name]
        headers = {} if client is None else {"X-Qwen-Client-Id": client}
        content = body if body is not None else self.bodies.get(name, {})
        begun = time.monotonic()
        try:
            response = self._http.request(
                row.method,
                self._path(row, session, path),
                headers=headers,
                params=QUERIES.get(name),
                json=None if row.method in ("GET", "DELETE") else content,
            )
        except httpx2.TimeoutException:
            self.faults.append(f"{name}: no answer within {DEADLINE:g} s")
            return Answer(0, None)
        if time.monotonic() - begun > DEADLINE:
            self.faults.append(f"{name}: it took more than {DEADLINE:g} s")
        return self._checked(row, response)

    def _path(self, row: Operation, session: str, given: Mapping[str, str]) -> str:
        known = {"sessionId": session, "workspace": str(self.workspace), "promptId": "none"}
        known |= {"messageId": "none", "requestId": "none", "taskId": "none", "shellId": "none"}
        known |= given
        return row.path.format_map({key: quote(value, safe="") for key, value in known.items()})

    def _checked(self, row: Operation, response: httpx2.Response) -> Answer:
        operation, status = BY_NAME[row.name], response.status_code
        fault = f"{row.name}: {status} {response.text[:300]}"
        if status not in operation.responses:
            self.faults.append(f"{fault}: not documented")
            return Answer(status, None)
        schema = operation.schema(status)
        if schema is None:
            if response.content:
                self.faults.append(f"{fault}: a body")
            return Answer(status, None)
        media = response.headers.get("content-type", "").partition(";")[0]
        if media == "text/plain" and row.name == "metrics":
            return Answer(status, response.text)
        if media != "application/json":
            self.faults.append(f"{fault}: {media}")
            return Answer(status, None)
        answer = Answer(status, response.json())
        self.faults += [
            f"{fault}: {'/'.join(map(str, error.instance_path))}: {error.message[:300]}"
            for error in validator(schema).iter_errors(answer.body)
        ]
        documented = operation.responses[status]
        if answer.code and answer.code not in documented["x-codes"]:
            self.faults.append(f"{fault}: a word that is not documented")
        missing = {each.lower() for each in documented.get("headers", ())} - set(response.headers)
        if missing:
            self.faults.append(f"{fault}: without {', '.join(missing)}")
        return answer

    def stream(
        self,
        name: str,
        session: str = "",
        *,
        client: str | None = None,
        after: int = 0,
        until: str = "replay_complete",
    ) -> Answer:
        """Reads an event stream from behind an id to the first event ``until``.

        The answer's body is its frames.
        """
        row = OPERATIONS[name]
        headers = {"Last-Event-ID": str(after)}
        headers |= {} if client is None else {"X-Qwen-Client-Id": client}
        end = time.monotonic() + DEADLINE
        rest, frames = b"", list[Frame]()
        with self._http.stream("GET", self._path(row, session, {}), headers=headers) as response:
            if response.status_code != 200:
                response.read()
                return self._checked(row, response)
            needed = {each.lower() for each in BY_NAME[name].responses[200]["headers"]}
            media = response.headers["content-type"]
            if media != "text/event-stream" or needed - set(response.headers):
                self.faults.append(f"{name}: {response.headers}")
            with suppress(httpx2.TimeoutException):
                for data in response.iter_raw():
                    whole, found, rest = (rest + data).rpartition(b"\n\n")
                    new = parse(whole + found)
                    frames += new
                    if any(each.event == until for each in new) or time.monotonic() > end:
                        break
        if all(each.event != until for each in frames):
            told = [each.event for each in frames]
            self.faults.append(f"{name}: no {until} within {DEADLINE:g} s: {told}")
        for each in frames:
            if each.data is not None:
                self.faults += [f"{name}: {each.event}: {fault}" for fault in faults(each.data)]
        return Answer(200, frames)

    # -- sessions ------------------------------------------------------------------------------

    def opened(self) -> tuple[str, str]:
        """A session of its own that has had a turn: its id and the caller's."""
        made = self.call("session_create", body={"sessionScope": "thread"})
        assert made.status == 200, (made, self.faults)
        session, client = made.body["sessionId"], made.body["clientId"]
        self.prompt(session, client, "text")
        self.settle(session)
        models = self.call("session_context", session).body["state"]["models"]
        self.bodies["session_model"] = {"modelId": models["currentModelId"]}
        return session, client

    def blocks(self, word: str) -> dict[str, Any]:
        """The body of a prompt that says one of the agent's `words`."""
        text = self.words[word].format(cwd=self.workspace)
        return {"prompt": [{"type": "text", "text": text}]}

    def prompt(self, session: str, client: str, word: str) -> str:
        """Sends one of the agent's `words`; the prompt's id."""
        sent = self.call("session_prompt", session, client=client, body=self.blocks(word))
        assert sent.status == 202, (sent, self.faults)
        return str(sent.body["promptId"])

    def running(self, session: str, client: str) -> None:
        """Has a long turn run, and told by the agent so."""
        if not self.call("session_status", session).body["hasActivePrompt"]:
            mark = self.tap.mark()
            self.prompt(session, client, "slow")

            def begun() -> bool:
                if any(each.method == "session/prompt" for each in self.tap.since(mark)):
                    return True
                if not self.call("session_status", session).body["hasActivePrompt"]:
                    # It was given to an agent that was dying.
                    self.prompt(session, client, "slow")
                return False

            self._wait(begun, "the turn did not begin")

    def settle(self, session: str) -> None:
        """Waits until the session has nothing to do."""
        self._wait(
            lambda: not self.call("pending_prompts", session).body["pendingPrompts"],
            "the turns did not end",
        )

    def calm(self, session: str) -> None:
        """Ends whatever the session does."""
        self._wait(
            lambda: (
                self.call("session_cancel", session).status == 204
                and not self.call("pending_prompts", session).body["pendingPrompts"]
            ),
            "the turns did not end",
        )

    def asked(self, session: str) -> dict[str, Any]:
        """The open permission request of the session."""
        found: list[dict[str, Any]] = []

        def ask() -> bool:
            found[:] = self.call("session_status", session).body["pendingInteractions"]
            return bool(found)

        self._wait(ask, "no permission was asked")
        return found[0]

    def kill(self, session: str) -> bool:
        """Kills the session's agent; False when that was done before."""
        pid = self.tap.pid_of(session)
        if pid in self._killed:
            return False
        self._killed.add(pid)
        os.kill(pid, signal.SIGKILL)
        return True

    def killed(self, session: str) -> None:
        """The session's agent is dead, and everybody was told."""
        after = self._last.get(session, 0)
        frames = self.stream("session_events", session, after=after).body
        self._last[session] = max([after, *ids(frames)])
        if self.kill(session):
            self.stream("session_events", session, after=self._last[session], until="session_died")

    @staticmethod
    def _wait(done: Callable[[], bool], otherwise: str) -> None:
        end = time.monotonic() + DEADLINE
        while not done():
            assert time.monotonic() < end, otherwise
            time.sleep(0.05)

    # -- who answers ---------------------------------------------------------------------------

    def told(
        self,
        name: str,
        session: str = "",
        case: str = "",
        *,
        settle: bool = False,
        **given: Any,
    ) -> Answer:
        """A call whose answerer goes into the table; ``settle``: it is done when the turn is."""
        mark = self.tap.mark()
        if OPERATIONS[name].stream:
            answer = self.stream(name, session, **given)
        else:
            answer = self.call(name, session, **given)
        good = (
            (OPERATIONS[name].success, 201)
            if OPERATIONS[name].creates
            else (OPERATIONS[name].success,)
        )
        if answer.status not in (*good, 501):
            self.faults.append(f"{name} {case}: {answer}")
        if settle:
            self.settle(session)
        self.cells[name, case] = who(answer.status, self.tap.since(mark))
        return answer


@contextmanager
def surface(agent: str, base: Path, model_url: str) -> Iterator[Surface]:
    """A gateway with the tapped agent, for the length of a block."""
    workspace, log = base / "workspace", base / "tap.log"
    workspace.mkdir()
    (workspace / SEEN).write_text("seen\n")
    kind = AGENTS[agent]
    env = kind.environment(base / "home", model_url)
    env |= {"ACP_GATEWAY_TOKEN": TOKEN, "AGENT_TAP_LOG": str(log)}
    env["ACP_GATEWAY_ENABLE_SESSION_SHELL"] = "true"
    tap = [sys.executable, str(TESTS / "support" / "agent_tap.py")]
    # NAME=COMMAND keeps the habits that the gateway knows of NAME.
    command = f"{agent}={shlex.join([*tap, *KNOWN_AGENTS[agent].argv])}"
    headers = {"Authorization": f"Bearer {TOKEN}"}

    def signing_in(provider: AuthServer) -> dict[str, str]:
        # Also the known provider is this one: nothing goes to the internet.
        tables = {"local": provider.table(), "qwen-oauth": provider.table()}
        return write_config(base / "config.toml", tables)

    with (
        AuthServer() as provider,
        running_gateway(workspace, env | signing_in(provider), ["--agent", command]) as gateway,
        httpx2.Client(base_url=gateway.url, headers=headers, timeout=DEADLINE) as http,
    ):
        yield Surface(agent, http, workspace, Tap(log))


# ---- the run -------------------------------------------------------------------------------------


def run(on: Surface) -> dict[Cell, str]:
    """Every operation once, where it succeeds if it can; who answered each."""
    until = time.monotonic() + DEADLINE
    while on.call("readyz").status != 200 and time.monotonic() < until:
        time.sleep(0.1)
    for row in OPERATIONS.values():
        if row.scope == "daemon" and row.method == "GET":
            on.told(row.name)
    code = on.told("pair_code").body["code"]
    on.told("pair", body={"code": code})
    made = on.told("session_create", "", "new").body
    on.told("session_create", "", "open")
    session, client = made["sessionId"], made["clientId"]
    on.told("session_prompt", session, client=client, settle=True)
    for row in OPERATIONS.values():
        if row.scope == "workspace" and row.method == "GET" and "{id}" not in row.path:
            on.told(row.name)
        elif row.scope == "session" and row.method == "GET":
            on.told(row.name, session, client=client)
    flow = on.told("auth_device_flow_start", body={"providerId": "local"}).body
    for name in ("get", "cancel"):
        on.told(f"auth_device_flow_{name}", id=flow["deviceFlowId"])
    new = {"path": "new.txt", "content": "a", "mode": "create"}
    made = on.told("file_write", body=new).body
    change = {"path": "new.txt", "oldText": "a", "newText": "b", "expectedHash": made["hash"]}
    on.told("file_edit", body=change)
    for name in ("heartbeat", "metadata", "approval_mode", "recap", "btw", "task_cancel"):
        on.told(f"session_{name}", session, client=client)
    on.told("session_shell", session, client=client)
    on.told("session_shell_cancel", session, client=client)
    models = on.call("session_context", session).body["state"]["models"]
    on.told("session_model", session, client=client, body={"modelId": models["currentModelId"]})
    snapshots = on.call("session_rewind_snapshots", session).body["snapshots"]
    prompt = snapshots[0]["promptId"] if snapshots else "none"
    on.told("session_rewind", session, client=client, body={"promptId": prompt})
    on.told("workspace_reload", client=client)
    _votes(on, session, client)
    _turns(on, session, client)
    _life(on, session, client)
    return on.cells


def _votes(on: Surface, session: str, client: str) -> None:
    for name in ("session_permission_vote", "permission_vote"):
        on.prompt(session, client, "permission")
        question = on.asked(session)
        option = next(each for each in question["options"] if each["kind"] == "reject_once")
        vote = {"outcome": {"outcome": "selected", "optionId": option["optionId"]}}
        # Whose id it is stands in events, and is no proof.
        foreign = on.call(
            name, session, client="client_other", body=vote, requestId=question["requestId"]
        )
        assert foreign.code == "invalid_client_id", foreign
        on.told(
            name, session, client=client, body=vote, requestId=question["requestId"], settle=True
        )


def _turns(on: Surface, session: str, client: str) -> None:
    on.running(session, client)
    on.told("mid_turn_message", session, client=client)
    on.told("mid_turn_message_remove", session, client=client, messageId="m1")
    queued = on.prompt(session, client, "text")
    on.told("pending_prompt_remove", session, client=client, promptId=queued)
    on.told("session_cancel", session, client=client)
    on.calm(session)


def _life(on: Surface, session: str, client: str) -> None:
    on.told("session_load", session, "open", client=client)
    on.told("session_resume", session, "open", client=client)
    other = on.call("session_load", session).body["clientId"]
    on.told("session_detach", session, client=other)
    on.told("session_close", session, client=client)
    on.told("session_load", session, "stored")
    on.call("session_close", session)
    on.told("session_resume", session, "stored")
    branched = on.told("session_branch", session)
    if branched.status == 201:
        on.call("session_close", branched.body["sessionId"])
    on.call("session_close", session)
    on.told("sessions_delete", body={"sessionIds": [session]})
    own = on.told("session_create", "", "own id", body={"sessionId": UNKNOWN[:-1] + "1"})
    if own.status == 200:
        on.call("session_close", own.body["sessionId"])


# ---- docs/rest-agents.md -------------------------------------------------------------------------

HEAD = "| route | case | " + " | ".join(AGENTS) + " |"
_RULE = "|---" * (len(AGENTS) + 2) + "|"


def _row(cell: Cell, answers: Mapping[str, str]) -> str:
    operation = OPERATIONS[cell[0]]
    cells = (f"`{operation.method} {operation.path}`", cell[1], *map(answers.get, AGENTS))
    return "| " + " | ".join(str(each or "") for each in cells) + " |"


def table(found: Mapping[str, Mapping[Cell, str]]) -> str:
    """Markdown, from the cells of each agent; in the order of the table of operations."""
    order = list(OPERATIONS)
    cells = sorted(
        dict.fromkeys(cell for each in found.values() for cell in each),
        key=lambda cell: order.index(cell[0]),
    )
    rows = [_row(cell, {agent: found[agent].get(cell, "") for agent in found}) for cell in cells]
    return "\n".join([HEAD, _RULE, *rows])


def documented(agent: str) -> dict[Cell, str]:
    """The cells of an agent as the page has them."""
    names = {f"`{row.method} {row.path}`": row.name for row in OPERATIONS.values()}
    _, _, rest = DOCS.read_text(encoding="utf-8").partition(f"{HEAD}\n{_RULE}\n")
    found = {}
    for line in rest.splitlines():
        if not line.startswith("|"):
            break
        route, case, *cells = (each.strip() for each in line.strip("|").split("|"))
        found[names[route], case] = dict(zip(AGENTS, cells, strict=True))[agent]
    return found


def main() -> None:
    found: dict[str, Mapping[Cell, str]] = {}
    for agent in AGENTS:
        with tempfile.TemporaryDirectory() as base, FakeModel() as model:
            with surface(agent, Path(base).resolve(), model.url) as on:
                found[agent] = run(on)
            for fault in on.faults:
                print(f"{agent}: {fault}", file=sys.stderr)
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(HEAD)
    after = [line for line in rest.splitlines()[1:] if not line.startswith("|")]
    DOCS.write_text("\n".join([before + table(found), *after]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
