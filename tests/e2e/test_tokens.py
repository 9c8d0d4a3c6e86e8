"""Named tokens against a live daemon: what each may, and that a lost one is out within a second."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import trio
from agent_env import base_environment
from gateway_process import ROOT, GatewayProcess
from support.acp_clients import (
    AcpClient,
    HttpClient,
    RpcError,
    WsClient,
    http_client,
    rejection,
    ws_client,
)
from support.event_reader import parse
from support.processes import gateway, status

from acp_gateway.core.identity import Scope, required, required_by_acp
from acp_gateway.protocol.extensions import OPERATIONS, Operation
from acp_gateway.protocol.methods import METHODS
from acp_gateway.token_store import TokenStore

DEADLINE = 60.0
AT_ONCE = 1.0
"""The promise: a token that is taken away is out within this many seconds."""
DAEMON = "the-daemons-own-token"
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpcore2:ResourceWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens").resolve()


@pytest.fixture(scope="module")
def store(base: Path) -> TokenStore:
    return TokenStore(base / "tokens.json")


@pytest.fixture(scope="module")
def site(base: Path, store: TokenStore) -> Iterator[GatewayProcess]:
    flags = ("--max-sessions", "100", "--enable-session-shell")
    with gateway(base, *flags, token=DAEMON, tokens_file=store.path, max_connections=200) as made:
        yield made


@pytest.fixture
def cwd(base: Path, request: pytest.FixtureRequest) -> Path:
    path = base / "workspace" / "".join(c if c.isalnum() else "-" for c in request.node.name)
    path.mkdir(parents=True)
    return path


_count = 0


def made(store: TokenStore, scope: str = "approve", **how: Any) -> tuple[str, str]:
    """(name, token) of a new token."""
    global _count
    _count += 1
    token, _ = store.create(f"t{_count}", Scope[scope.upper()], **how)
    return f"t{_count}", token


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def rest(site: GatewayProcess, token: str | None) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {} if token is None else bearer(token)
    async with httpx2.AsyncClient(
        base_url=site.url, headers=headers, trust_env=False, timeout=DEADLINE
    ) as http:
        yield http


async def connect(
    stack: AsyncExitStack, site: GatewayProcess, kind: str, token: str
) -> WsClient | HttpClient:
    if kind == "ws":
        offered = [(b"Authorization", f"Bearer {token}".encode())]
        return await stack.enter_async_context(ws_client(site.ws_url, headers=offered))
    return await stack.enter_async_context(http_client(site.http_url, headers=bearer(token)))


def revoke_by_command(base: Path, store: TokenStore, name: str) -> float:
    """As a person does it; gives the time at which the command was done."""
    command = ["-m", "acp_gateway", "token", "revoke", name, "--tokens-file", str(store.path)]
    subprocess.run(
        [sys.executable, *command],
        env={**base_environment(base / "home"), "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        timeout=30,
    )
    return time.monotonic()


async def within(seconds: float, since: float, what: Callable[[], Any]) -> None:
    """``what`` becomes true before ``since + seconds``."""
    while not what():
        assert time.monotonic() - since < seconds, "too late"
        await trio.sleep(0.005)


# ---- taken away ----------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "streaming"])
@pytest.mark.parametrize("kind", ["ws", "http"])
async def test_a_revoked_token_is_out_at_once(
    base: Path, site: GatewayProcess, store: TokenStore, cwd: Path, kind: str, busy: bool
) -> None:
    name, token = made(store)
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            owner = await connect(stack, site, "ws", DAEMON)
            guest = await connect(stack, site, kind, token)
            session = await owner.new(cwd)
            await guest.load(cwd, session)
            if busy:
                await owner.begin(session, "/sleep 5")
                await guest.until(lambda: "tick" in guest.text(session))
            done = await trio.to_thread.run_sync(revoke_by_command, base, store, name)
            await within(AT_ONCE, done, lambda: guest.closed)
            if isinstance(guest, WsClient):
                assert guest.closed == (1008, "The token was revoked")
            seen = len(guest.messages)
            if busy:
                await owner.until(lambda: owner.text(session).endswith("slept 5 s"))
            assert len(guest.messages) == seen and not owner.closed
            async with rest(site, token) as http:
                for method, path in (("GET", "/capabilities"), ("POST", "/session")):
                    assert (await http.request(method, path)).status_code == 401
                about = {"Acp-Connection-Id": guest.connection_id or ""}
                body = {"jsonrpc": "2.0", "id": 9, "method": "session/list", "params": {}}
                answer = await http.post("/acp", json=body, headers=about)
                assert answer.status_code == 401
            offered = [(b"Authorization", f"Bearer {token}".encode())]
            refusal = await rejection(site.ws_url, headers=offered)
            assert refusal.status_code == 401


async def test_a_revoked_event_stream_says_so_and_ends(
    base: Path, site: GatewayProcess, store: TokenStore, cwd: Path
) -> None:
    name, token = made(store, "read")
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            owner = await connect(stack, site, "ws", DAEMON)
            session = await owner.new(cwd)
            await owner.begin(session, "/sleep 5")
            http = await stack.enter_async_context(rest(site, token))
            ended: dict[str, tuple[float, bytes]] = {}

            async def follow(path: str, *, task_status: trio.TaskStatus[None]) -> None:
                data = b""
                async with http.stream("GET", path) as answer:
                    assert answer.status_code == 200
                    task_status.started()
                    async for piece in answer.aiter_raw():
                        data += piece
                ended[path] = time.monotonic(), data

            paths = [f"/session/{session}/events", "/workspace/events"]
            async with trio.open_nursery() as nursery:
                for path in paths:
                    await nursery.start(follow, path)
                done = await trio.to_thread.run_sync(revoke_by_command, base, store, name)
            for path in paths:
                at, data = ended[path]
                assert at - done < AT_ONCE
                last = parse(data)[-1]
                assert last.event == "stream_error" and last.id is None
                assert last.told == {
                    "error": "The token was revoked",
                    "errorKind": "token_revoked",
                }
                assert (await http.get(path)).status_code == 401


@pytest.mark.parametrize("kind", ["ws", "http", "sse"])
async def test_who_reads_nothing_is_out_as_well(
    base: Path, site: GatewayProcess, store: TokenStore, cwd: Path, kind: str
) -> None:
    """A peer whose socket is full gets no goodbye, and nothing more of what it asked for."""
    name, token = made(store)
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            owner = await connect(stack, site, "ws", DAEMON)
            session = await owner.new(cwd)
            where = urlsplit(site.url)
            if kind == "ws":
                guest = await connect(stack, site, kind, token)
                assert isinstance(guest, WsClient)
                await guest.load(cwd, session)
                guest.reading = trio.Event()
                sock: Any = guest.socket._stream.socket
            else:
                path = "/acp" if kind == "http" else f"/session/{session}/events"
                head = f"GET {path} HTTP/1.1\r\nHost: {where.netloc}\r\n"
                head += f"Authorization: Bearer {token}\r\n"
                if kind == "http":
                    guest = await connect(stack, site, kind, token)
                    await guest.load(cwd, session)
                    head += f"Acp-Connection-Id: {guest.connection_id}\r\n"
                    head += f"Acp-Session-Id: {session}\r\nAccept: text/event-stream\r\n"
                sock = socket.socket()
                stack.callback(sock.close)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.connect((where.hostname, where.port))
                sock.sendall(f"{head}\r\n".encode())
                assert await trio.to_thread.run_sync(sock.recv, 64)
            await owner.begin(session, "/chunks 3000 4000")
            await owner.until(lambda: len(owner.of(session)) > 600)
            ends = where.port, sock.getsockname()[1]
            assert _established(*ends)
            done = await trio.to_thread.run_sync(revoke_by_command, base, store, name)
            await within(AT_ONCE, done, lambda: not _established(*ends))
            now = await trio.to_thread.run_sync(status, site, DAEMON)
            assert name not in [each["identity"] for each in now["connections"]]
            await owner.until(lambda: len(owner.of(session)) >= 3000)


def _established(port: int | None, peer: int) -> bool:
    """Does the daemon's end of a TCP connection stand? (proc(5): ``/proc/net/tcp``)"""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state = line.split()[:4]
        if (int(local[-4:], 16), int(remote[-4:], 16)) == (port, peer):
            return state == "01"
    return False


@pytest.mark.parametrize("kind", ["ws", "http"])
async def test_a_revoked_one_cannot_vote(
    base: Path, site: GatewayProcess, store: TokenStore, cwd: Path, kind: str
) -> None:
    name, token = made(store)
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            owner = await connect(stack, site, "ws", DAEMON)
            session = await owner.new(cwd)
            guest = await connect(stack, site, kind, token)
            await guest.load(cwd, session)
            await owner.begin(session, "/write note.txt hello")
            await guest.until(guest.questions)
            question = guest.questions()[0]["id"]
            await owner.until(lambda: owner.notices(session, "permission_request"))
            request_id = owner.notices(session, "permission_request")[0]["requestId"]
            store.revoke(name)
            # Not after a while, but in the very moment: the daemon has not looked yet.
            vote = {"outcome": {"outcome": "selected", "optionId": "allow-once"}}
            async with rest(site, token) as http:
                path = f"/session/{session}/permission/{request_id}"
                assert (await http.post(path, json=vote)).status_code == 401
                assert (await http.post(f"/permission/{request_id}", json=vote)).status_code == 401
            with suppress(Exception):  # closed already
                await guest.respond(question, vote)
            await guest.until(lambda: guest.closed)
            assert not owner.notices(session, "permission_resolved")
            assert not (cwd / "note.txt").exists()
            await owner.permit(option="reject-once")
            await owner.until(lambda: owner.notices(session, "turn_complete"))
            assert not (cwd / "note.txt").exists()


async def test_a_body_that_outlives_its_token_is_refused(
    site: GatewayProcess, store: TokenStore, cwd: Path
) -> None:
    name, token = made(store)
    where = urlsplit(site.url)
    body = json.dumps({"cwd": str(cwd), "sessionScope": "thread"}).encode()

    def slowly() -> bytes:
        with socket.create_connection((where.hostname, where.port), timeout=20) as sock:
            head = f"POST /session HTTP/1.1\r\nHost: {where.netloc}\r\n"
            head += f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\n"
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
            # The head has been let in when the daemon knows the request; then the token goes.
            time.sleep(0.3)
            store.revoke(name)
            sock.sendall(body[5:])
            return sock.recv(4096)

    with trio.fail_after(DEADLINE):
        answer = await trio.to_thread.run_sync(slowly)
    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_request_ends_with_its_token(
    base: Path, site: GatewayProcess, store: TokenStore, cwd: Path, how: str
) -> None:
    """However long it would take; what it began belongs to the gateway."""
    ends = time.time() + 2.0 if how == "expired" else None
    name, token = made(store, "admin", expires_at=ends)
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            owner = await connect(stack, site, "ws", DAEMON)
            http = await stack.enter_async_context(rest(site, token))
            body = {"cwd": str(cwd), "sessionScope": "thread"}
            opened = (await http.post("/session", json=body)).json()
            session, me = opened["sessionId"], {"X-Qwen-Client-Id": opened["clientId"]}
            await owner.load(cwd, session)
            path = f"/session/{session}"
            prompt = {"prompt": [{"type": "text", "text": "/sleep 3"}]}
            assert (await http.post(f"{path}/prompt", json=prompt, headers=me)).status_code == 202
            got: list[httpx2.Response] = []

            async def shell() -> None:
                command = {"command": "echo secret; sleep 6; echo secret"}
                got.append(await http.post(f"{path}/shell", json=command, headers=me))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(shell)
                await owner.until(lambda: owner.notices(session, "user_shell_command"))
                assert not got
                if ends is None:
                    done = await trio.to_thread.run_sync(revoke_by_command, base, store, name)
                else:
                    done = time.monotonic() + ends - time.time()
                await within(AT_ONCE + max(0, done - time.monotonic()), done, lambda: got)
            assert got[0].status_code == 401 and "secret" not in got[0].text
            assert got[0].json()["code"] == "auth_required"
            await owner.until(lambda: owner.notices(session, "turn_complete"))
            assert "slept 3 s" in owner.text(session)


async def test_an_answer_that_nobody_reads_ends_with_its_token(
    base: Path, site: GatewayProcess, store: TokenStore, cwd: Path
) -> None:
    name, token = made(store)
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            owner = await connect(stack, site, "ws", DAEMON)
            session = await owner.new(cwd)
            await owner.begin(session, "/chunks 2000 4000")
            await owner.until(lambda: owner.notices(session, "turn_complete"))
            where = urlsplit(site.url)
            sock = socket.socket()
            stack.callback(sock.close)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((where.hostname, where.port))
            head = f"POST /session/{session}/load HTTP/1.1\r\nHost: {where.netloc}\r\n"
            head += f"Authorization: Bearer {token}\r\nContent-Length: 0\r\n"
            sock.sendall(f"{head}\r\n".encode())
            first = await trio.to_thread.run_sync(sock.recv, 64)
            assert first.startswith(b"HTTP/1.1 200")
            ends = where.port, sock.getsockname()[1]
            assert _established(*ends)
            done = await trio.to_thread.run_sync(revoke_by_command, base, store, name)
            await within(AT_ONCE, done, lambda: not _established(*ends))


@pytest.mark.parametrize("kind", ["ws", "http"])
async def test_an_expired_token_is_out_as_well(
    site: GatewayProcess, store: TokenStore, cwd: Path, kind: str
) -> None:
    ends = time.time() + 2.0
    _, token = made(store, expires_at=ends)
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            guest = await connect(stack, site, kind, token)
            await guest.new(cwd)
            assert not guest.closed
            await guest.until(lambda: guest.closed)
            assert 0 <= time.time() - ends < AT_ONCE
            if isinstance(guest, WsClient):
                assert guest.closed == (1008, "The token has expired")
            async with rest(site, token) as http:
                assert (await http.get("/capabilities")).status_code == 401


async def test_a_damaged_file_lets_nobody_in(
    base: Path, site: GatewayProcess, store: TokenStore, cwd: Path
) -> None:
    _, token = made(store)
    kept = store.path.read_bytes()
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            guest = await connect(stack, site, "ws", token)
            http = await stack.enter_async_context(rest(site, token))
            try:
                store.path.write_bytes(kept[:-20])
                await guest.until(lambda: guest.closed)
                assert (await http.get("/capabilities")).status_code == 401
                async with rest(site, DAEMON) as own:
                    assert (await own.get("/capabilities")).status_code == 200
            finally:
                store.path.write_bytes(kept)
            assert (await http.get("/capabilities")).status_code == 200
            store.path.chmod(0o666)
            assert (await http.get("/capabilities")).status_code == 200, "not looked at again yet"
            store.path.write_bytes(kept + b"\n")
            assert (await http.get("/capabilities")).status_code == 401, "others may write it"
            store.path.chmod(0o600)
            store.path.write_bytes(kept)


@pytest.mark.parametrize("how", ["expired", "revoked"])
def test_the_last_token_ends_and_nothing_opens(tmp_path: Path, how: str) -> None:
    """The next start asks for a token as the one before did."""
    store = TokenStore(tmp_path / "tokens.json")
    name, token = made(store, "admin", expires_at=time.time() - 1 if how == "expired" else None)
    if how == "revoked":
        store.revoke(name)
    with gateway(tmp_path, tokens_file=store.path) as site:
        for given in (None, token, "anything"):
            headers = {} if given is None else bearer(given)
            with httpx2.Client(base_url=site.url, headers=headers, trust_env=False) as http:
                assert http.get("/capabilities").status_code == 401
                assert http.post("/session", json={}).status_code == 401
        # The commands of this user have the gateway's own.
        done = subprocess.run(
            [sys.executable, "-m", "acp_gateway", "pair", "--json", str(site.process.pid)],
            env={**base_environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        code = json.loads(done.stdout)["code"]
        with httpx2.Client(base_url=site.url, trust_env=False) as http:
            assert http.post("/pair", json={"code": code}).status_code == 201


# ---- scopes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(store: TokenStore, site: GatewayProcess) -> dict[Scope, str]:
    return {scope: made(store, scope.word)[1] for scope in Scope}


@pytest.mark.parametrize("row", OPERATIONS.values(), ids=lambda row: row.name)
async def test_every_row_asks_for_its_scope(
    site: GatewayProcess, tokens: dict[Scope, str], row: Operation
) -> None:
    needed = required(row)
    path = row.path
    for name in ("sessionId", "requestId", "promptId", "messageId", "taskId", "workspace"):
        path = path.replace(f"{{{name}}}", "%2Fnone" if name == "workspace" else "none")
    path = path.replace("{", "").replace("}", "")
    with trio.fail_after(DEADLINE):
        for scope, token in tokens.items():
            async with rest(site, token) as http, http.stream(row.method, path) as answer:
                code = answer.status_code
                if needed is not None and scope < needed:
                    await answer.aread()
                    body = answer.json()
                    assert (code, body["code"]) == (403, "insufficient_scope"), scope
                    assert body["required"] == needed.word
                    assert body["scopes"] == [each.word for each in Scope if each <= scope]
                    continue
                if not row.stream or code != 200:
                    await answer.aread()
                    refused = code == 403 and answer.json()["code"] == "insufficient_scope"
                    assert not refused, scope
        async with rest(site, None) as http:
            expected = needed is not None
            assert ((await http.request(row.method, path)).status_code == 401) is expected


ACP = sorted(
    {
        row.name
        for row in METHODS.values()
        if row.direction == "to_agent" and row.kind == "request" and row.name != "initialize"
    }
    | {row.rpc for row in OPERATIONS.values() if row.rpc}
    | {"session/permission", "_vendor/anything", "no/such/method"}
)


@pytest.mark.parametrize("kind", ["ws", "http"])
async def test_every_method_asks_for_the_same_scope(
    site: GatewayProcess, tokens: dict[Scope, str], cwd: Path, kind: str
) -> None:
    """Over both transports of ACP, and as the route of the same row."""
    with trio.fail_after(DEADLINE):
        for scope, token in tokens.items():
            async with AsyncExitStack() as stack:
                client = await connect(stack, site, kind, token)
                for method in ACP:
                    needed = required_by_acp(method)
                    try:
                        await client.request(method, {"sessionId": "none"})
                        data: Any = {}
                    except RpcError as exc:
                        data = exc.error.get("data") or {}
                    refused = needed is not None and scope < needed
                    assert (data.get("errorKind") == "insufficient_scope") is refused, (
                        method,
                        scope,
                    )
                    if refused:
                        assert (data["httpStatus"], data["required"]) == (403, needed.word)


async def test_only_an_admin_weakens_the_policy(tmp_path: Path) -> None:
    """Else whoever creates a session would decide who answers for it."""
    store = TokenStore(tmp_path / "tokens.json")
    (_, admin), (_, other) = made(store, "admin"), made(store)
    # (policy, quorum): may any token have it where the daemon says `consensus` of 2?
    wishes: dict[tuple[str | None, int | None], bool] = {
        ("first-responder", None): False,
        ("designated", None): False,
        ("consensus", 1): False,
        (None, 1): False,
        ("consensus", None): True,
        (None, 3): True,
        ("local-only", None): True,
    }
    settings = {"permission_policy": "consensus", "consensus_quorum": 2, "max_sessions": 50}
    with (
        gateway(tmp_path, tokens_file=store.path, **settings) as site,
        trio.fail_after(DEADLINE),
    ):
        for token in (admin, other):
            async with AsyncExitStack() as stack:
                http = await stack.enter_async_context(rest(site, token))
                peers = [await connect(stack, site, kind, token) for kind in ("ws", "http")]
                for (policy, quorum), free in wishes.items():
                    named = {"permissionPolicy": policy, "consensusQuorum": quorum}
                    rule = {name: value for name, value in named.items() if value is not None}
                    here = {"cwd": str(tmp_path / "workspace")}
                    answer = await http.post(
                        "/session", json={**here, **rule, "sessionScope": "thread"}
                    )
                    told = [answer.json()]
                    assert answer.status_code == (200 if free or token == admin else 403), rule
                    for peer in peers:
                        params = {**here, "mcpServers": [], "_meta": {"acp_gateway": rule}}
                        try:
                            told.append(await peer.request("session/new", params))
                        except RpcError as exc:
                            told.append(exc.error["data"])
                    for each in told:
                        assert ("sessionId" in each) is (free or token == admin), rule
                        assert each.get("required") == (None if free or token == admin else "admin")


@pytest.mark.parametrize("scope", ["prompt", "approve"])
async def test_a_mode_is_for_those_who_may_approve(
    site: GatewayProcess, tokens: dict[Scope, str], cwd: Path, scope: str
) -> None:
    """In some modes the agent asks nobody: who may not answer may not choose one either."""
    token, may = tokens[Scope[scope.upper()]], scope == "approve"
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(rest(site, token))
            peer = await connect(stack, site, "ws", token)
            session = await peer.new(cwd)
            option = {"sessionId": session, "configId": "mode", "value": "auto"}
            changes = {
                "session/set_mode": {"sessionId": session, "modeId": "auto"},
                "session/set_config_option": option,
                "_qwen/session/approval_mode": {"sessionId": session, "mode": "yolo"},
                "session/new": {**new(cwd), "approvalMode": "yolo"},
            }
            for method, params in changes.items():
                try:
                    await peer.request(method, params)
                    data: dict[str, Any] = {}
                except RpcError as exc:
                    data = exc.error["data"]
                assert data.get("required") == (None if may else "approve"), (method, data)
            posts = {
                f"/session/{session}/approval-mode": {"mode": "yolo"},
                "/session": {"cwd": str(cwd), "sessionScope": "thread", "approvalMode": "yolo"},
            }
            for path, body in posts.items():
                answer = await http.post(path, json=body)
                assert answer.status_code == (200 if may else 403), answer.text
                assert answer.json().get("required") == (None if may else "approve")
            # The model is everybody's who may prompt.
            answer = await http.post(f"/session/{session}/model", json={"modelId": "none"})
            assert answer.status_code != 403


async def test_a_reader_is_neither_asked_nor_heard(
    site: GatewayProcess, tokens: dict[Scope, str], cwd: Path
) -> None:
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            owner = await connect(stack, site, "ws", DAEMON)
            session = await owner.new(cwd)
            reader = await connect(stack, site, "ws", tokens[Scope.READ])
            prompter = await connect(stack, site, "http", tokens[Scope.PROMPT])
            approver = await connect(stack, site, "ws", tokens[Scope.APPROVE])
            for client in (reader, prompter, approver):
                await client.load(cwd, session)
            await owner.begin(session, "/write note.txt hello")
            await approver.until(approver.questions)
            await owner.until(lambda: owner.notices(session, "permission_request"))
            asked = owner.notices(session, "permission_request")[0]["requestId"]
            # They see that a question is open, and what becomes of it.
            for client in (reader, prompter):
                await client.until(
                    lambda client=client: client.notices(session, "permission_request")
                )
                assert not client.questions()
                # Ids of requests are easy to guess.
                for number in range(1, 6):
                    outcome = {"outcome": "selected", "optionId": "allow-once"}
                    await client.respond(f"acp_gateway_{number}", {"outcome": outcome})
                vote = {"requestId": asked, "outcome": {"outcome": "cancelled"}}
                with pytest.raises(RpcError, match="approve"):
                    await client.request("session/permission", vote)
            # A cancel of somebody who only reads is no cancel.
            await reader.notify("session/cancel", {"sessionId": session})
            with pytest.raises(RpcError, match="prompt"):
                await reader.request("session/prompt", {"sessionId": session, "prompt": []})
            assert not owner.notices(session, "permission_resolved")
            await approver.permit()
            await owner.until(lambda: owner.notices(session, "turn_complete"))
            assert (cwd / "note.txt").read_text() == "hello\n"


async def test_a_reader_that_leaves_last_closes_nothing(
    site: GatewayProcess, tokens: dict[Scope, str], cwd: Path
) -> None:
    with trio.fail_after(DEADLINE):
        async with rest(site, DAEMON) as own, rest(site, tokens[Scope.READ]) as reader:
            body = {"cwd": str(cwd), "sessionScope": "thread"}
            opened = (await own.post("/session", json=body)).json()
            session, mine = opened["sessionId"], opened["clientId"]
            loaded = await reader.post(f"/session/{session}/load", json={"cwd": str(cwd)})
            assert loaded.status_code == 200
            his = loaded.json()["clientId"]
            for http, client in ((own, mine), (reader, his)):
                who = {"X-Qwen-Client-Id": client}
                answer = await http.post(f"/session/{session}/detach", headers=who)
                assert answer.status_code == 204
            assert (await own.get(f"/session/{session}/status")).status_code == 200


# ---- identities ----------------------------------------------------------------------------------


async def test_the_name_is_on_everything(
    site: GatewayProcess, store: TokenStore, cwd: Path
) -> None:
    name, token = made(store)
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            named = await connect(stack, site, "ws", token)
            session = await named.new(cwd)
            await named.begin(session, "/write note.txt hello")
            await named.permit()
            await named.until(lambda: named.notices(session, "turn_complete"))
            http = await stack.enter_async_context(rest(site, token))
            # Without a client id of its own it goes by its identity.
            path = f"/session/{session}/prompt"
            blocks = {"prompt": [{"type": "text", "text": "/plan"}]}
            sent = (await http.post(path, json=blocks)).json()
            await named.until(lambda: len(named.notices(session, "turn_complete")) == 2)
            replay = {"Last-Event-ID": "0"}
            data = b""
            async with http.stream(
                "GET", f"/session/{session}/events?maxQueued=2048", headers=replay
            ) as answer:
                pieces = answer.aiter_raw()
                while b"replay_complete" not in data:
                    data += await anext(pieces)
                await pieces.aclose()
            events = [each for each in parse(data) if each.id is not None]
            caused = [each.data for each in events if "promptId" in each.data]
            assert caused and all(each["originatorName"] == name for each in caused)
            mine = [each for each in caused if each["promptId"] == sent["promptId"]]
            assert {each["originatorClientId"][:6] for each in mine} == {"token:"}
            resolved = next(each for each in events if each.event == "permission_resolved")
            assert resolved.told["voterName"] == name
            told = next(
                params
                for params in named.of(session, "_qwen/notify")
                if params["kind"] == "turn_complete"
            )
            assert told["originatorName"] == name
            async with rest(site, DAEMON) as own:
                audit = (await own.get(f"/workspace/permissions/audit?sessionId={session}")).json()
                live = (await own.get("/status", headers={"Accept": "application/json"})).json()
            kinds = {each["kind"]: each for each in audit["entries"]}
            assert kinds["permission.requested"]["originatorName"] == name
            assert kinds["permission.voted"]["tokenName"] == name
            assert kinds["permission.resolved"]["decisionReason"]["resolverName"] == name
            assert name in [each["identity"] for each in live["connections"]]
            assert token not in json.dumps([audit, live]) and token not in site.stderr_tail()


async def test_anothers_client_id_is_refused(
    site: GatewayProcess, store: TokenStore, cwd: Path
) -> None:
    (_, one), (_, two) = made(store, "admin"), made(store, "admin")
    with trio.fail_after(DEADLINE):
        async with rest(site, one) as mine, rest(site, two) as other, rest(site, DAEMON) as own:
            body = {"cwd": str(cwd), "sessionScope": "thread"}
            opened = (await mine.post("/session", json=body)).json()
            session, client = opened["sessionId"], opened["clientId"]
            blocks = {"prompt": [{"type": "text", "text": "/plan"}]}
            identity = (await mine.post(f"/session/{session}/heartbeat")).json()["clientId"]
            assert identity.startswith("token:")
            for stolen in (client, identity):
                who = {"X-Qwen-Client-Id": stolen}
                for http in (other, own):
                    for path in ("prompt", "heartbeat", "model", "cancel"):
                        answer = await http.post(
                            f"/session/{session}/{path}", json=blocks, headers=who
                        )
                        assert answer.status_code == 400, (path, answer.text)
                        assert answer.json()["code"] == "invalid_client_id"
                    answer = await http.post(
                        f"/session/{session}/rewind", json={"promptId": "x"}, headers=who
                    )
                    assert answer.json()["code"] == "invalid_client_id"
                assert (
                    await mine.post(f"/session/{session}/prompt", json=blocks, headers=who)
                ).status_code == 202


async def test_a_connection_id_opens_nothing_to_another_token(
    site: GatewayProcess, store: TokenStore, cwd: Path
) -> None:
    (_, one), (_, two) = made(store, "admin"), made(store, "admin")
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            mine = await connect(stack, site, "http", one)
            body = {"jsonrpc": "2.0", "id": 9, "method": "session/list", "params": {}}
            about = {"Acp-Connection-Id": mine.connection_id or "", "Accept": "text/event-stream"}
            for token in (two, DAEMON):
                async with rest(site, token) as other:
                    for answer in (
                        await other.post("/acp", json=body, headers=about),
                        await other.get("/acp", headers=about),
                        await other.delete("/acp", headers=about),
                    ):
                        assert answer.status_code == 404
                        assert answer.json()["error"]["data"]["errorKind"] == "connection_not_found"
            assert await mine.request("session/list", {})


async def test_a_client_key_is_its_identitys_alone(
    site: GatewayProcess, store: TokenStore, cwd: Path
) -> None:
    """Else who knows the name of another's client would be that client."""
    (_, one), (_, two) = made(store), made(store)
    with trio.fail_after(DEADLINE):
        ids = []
        for token in (one, one, two, DAEMON):
            offered = [(b"Authorization", f"Bearer {token}".encode())]
            meta = {"acp_gateway": {"clientKey": "editor"}}
            async with ws_client(site.ws_url, headers=offered, meta=meta) as client:
                ids.append((await client.request("session/new", new(cwd)))["clientId"])
        assert ids[0] == ids[1] and len(set(ids)) == 3


def new(cwd: Path) -> dict[str, Any]:
    return {"cwd": str(cwd), "mcpServers": []}


async def test_consensus_counts_identities(
    site: GatewayProcess, store: TokenStore, cwd: Path
) -> None:
    """Two tokens with two connections each, and a reader: two parties, and both must agree."""
    (_, one), (_, two), (_, looker) = made(store), made(store), made(store, "read")
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            clients: list[AcpClient] = [
                await connect(stack, site, "ws", token) for token in (one, one, two, two, looker)
            ]
            rule = {"acp_gateway": {"permissionPolicy": "consensus"}}
            opened = await clients[0].request("session/new", {**new(cwd), "_meta": rule})
            session = opened["sessionId"]
            for client in clients[1:]:
                await client.load(cwd, session)
            await clients[0].begin(session, "/write note.txt hello")
            await clients[0].permit()
            await clients[1].until(lambda: clients[1].notices(session, "permission_partial_vote"))
            partial = clients[1].notices(session, "permission_partial_vote")[0]
            assert (partial["quorum"], partial["votesReceived"]) == (2, 1)
            # The same party again, over its other connection and over REST: one vote it stays.
            await clients[1].permit()
            async with rest(site, one) as http:
                path = f"/permission/{partial['requestId']}"
                vote = {"outcome": {"outcome": "selected", "optionId": "allow-once"}}
                assert (await http.post(path, json=vote)).status_code == 200
            assert not clients[2].notices(session, "permission_resolved")
            assert not clients[4].questions()
            await clients[3].permit()
            await clients[0].until(lambda: clients[0].notices(session, "turn_complete"))
            assert len(clients[0].notices(session, "permission_partial_vote")) == 1
            assert (cwd / "note.txt").read_text() == "hello\n"


async def test_designated_is_the_identity_too(
    site: GatewayProcess, store: TokenStore, cwd: Path
) -> None:
    (_, one), (_, two) = made(store), made(store)
    with trio.fail_after(DEADLINE):
        async with AsyncExitStack() as stack:
            watch = await connect(stack, site, "ws", two)
            mine = await stack.enter_async_context(rest(site, one))
            body = {"cwd": str(cwd), "sessionScope": "thread", "permissionPolicy": "designated"}
            session = (await mine.post("/session", json=body)).json()["sessionId"]
            await watch.load(cwd, session)
            # Anonymous, but for its token: it was anybody's to decide without one.
            blocks = {"prompt": [{"type": "text", "text": "/write note.txt hello"}]}
            await mine.post(f"/session/{session}/prompt", json=blocks)
            await watch.until(lambda: watch.notices(session, "permission_request"))
            asked = watch.notices(session, "permission_request")[0]["requestId"]
            assert not watch.questions()
            vote = {"outcome": {"outcome": "selected", "optionId": "allow-once"}}
            for token in (two, DAEMON):
                async with rest(site, token) as http:
                    answer = await http.post(f"/permission/{asked}", json=vote)
                    assert (answer.status_code, answer.json()["reason"]) == (
                        403,
                        "designated_mismatch",
                    )
            assert (await mine.post(f"/permission/{asked}", json=vote)).status_code == 200
            await watch.until(lambda: watch.notices(session, "turn_complete"))
            assert (cwd / "note.txt").read_text() == "hello\n"
