"""One prompt is one trace: client, gateway and agent, on every transport, seen by a collector."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from agent_env import base_environment
from gateway_process import GatewayProcess, running_gateway
from support.otlp_receiver import Received, Receiver, otlp_receiver
from websockets.sync.client import ClientConnection, connect

CLIENT_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"
TRACEPARENT = f"00-{CLIENT_TRACE}-{CLIENT_SPAN}-01"
TEXT = [{"type": "text", "text": "/chunks 3 20"}]


class Site:
    def __init__(self, gateway: GatewayProcess, receiver: Receiver, workspace: Path) -> None:
        self.gateway = gateway
        self.receiver = receiver
        self.workspace = workspace
        self.http = httpx2.Client(base_url=gateway.url, trust_env=False, timeout=30)

    def log_lines(self) -> list[dict[str, Any]]:
        status = self.workspace.parent / "home/.local/state/acp-gateway/log/daemon.log"
        return [json.loads(line) for line in status.read_text().splitlines()]

    def log_line(self, event: str, **wanted: Any) -> dict[str, Any]:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for line in self.log_lines():
                if line["event"] == event and wanted.items() <= line.items():
                    return line
            threading.Event().wait(0.05)
        raise AssertionError(f"no line {event} {wanted}: {self.log_lines()}")

    def trace(self, trace_id: str, *names: str) -> dict[str, Received]:
        """The spans of a trace by name, once all of ``names`` are there."""

        def there(spans: list[Received]) -> dict[str, Received] | None:
            found = {each.name: each for each in spans if each.trace_id == trace_id}
            return found if found.keys() >= set(names) else None

        return self.receiver.wait(there)  # type: ignore[no-any-return]


@contextmanager
def site(tmp_path: Path, *args: str, env: dict[str, str] | None = None) -> Iterator[Site]:
    workspace = tmp_path / "work"
    workspace.mkdir()
    environment = base_environment(tmp_path / "home") | (env or {})
    with (
        otlp_receiver() as receiver,
        running_gateway(
            workspace,
            environment,
            ["--agent", "demo", "--otlp-endpoint", receiver.url, *args],
        ) as gateway,
    ):
        here = Site(gateway, receiver, workspace)
        try:
            yield here
        finally:
            here.http.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("traces")) as found:
        yield found


class Ws:
    """The least that an ACP client needs."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.number = 0
        self.heard: list[dict[str, Any]] = []

    def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self.number += 1
        message = {"jsonrpc": "2.0", "id": self.number, "method": method, "params": params}
        self.socket.send(json.dumps(message))
        while True:
            told = json.loads(self.socket.recv(timeout=30))
            if told.get("id") == self.number and "method" not in told:
                assert "error" not in told, told
                return told["result"]  # type: ignore[no-any-return]
            self.heard.append(told)

    def session(self, workspace: Path) -> str:
        self.request("initialize", {"protocolVersion": 1})
        opened = self.request("session/new", {"cwd": str(workspace), "mcpServers": []})
        return str(opened["sessionId"])


def check_prompt(site: Site, trace: dict[str, Received], traceparent: str, parent: str) -> None:
    """``traceparent`` is what the client was told; ``parent`` the span that its prompt is under."""
    prompt, child = trace["acp_gateway.prompt"], trace["demo.turn"]
    assert traceparent == f"00-{prompt.trace_id}-{prompt.span_id}-01"
    assert prompt.parent_id == parent
    assert (child.service, child.parent_id) == ("acp-gateway-demo", prompt.span_id)
    assert child.encoding == "json" and prompt.encoding == "protobuf"
    assert prompt.service == "acp-gateway"
    assert prompt.attributes["acp_gateway.stop_reason"] == "end_turn"
    assert prompt.attributes["acp_gateway.queue_wait_ms"] >= 0
    line = site.log_line("turn_ended", trace_id=prompt.trace_id)
    assert line["span_id"] == prompt.span_id
    assert line["prompt_id"] == prompt.attributes["acp_gateway.prompt_id"]
    assert "/chunks" not in repr(trace)


@pytest.mark.parametrize("key", ["traceparent", "qwen.telemetry.traceparent"])
def test_over_websocket(running: Site, key: str) -> None:
    given = TRACEPARENT.replace("4bf9", "aaa1" if key == "traceparent" else "aaa2")
    with connect(running.gateway.ws_url, proxy=None) as socket:
        ws = Ws(socket)
        session_id = ws.session(running.workspace)
        told = ws.request(
            "session/prompt", {"sessionId": session_id, "prompt": TEXT, "_meta": {key: given}}
        )
    spans = running.trace(given[3:35], "acp_gateway.prompt", "demo.turn")
    check_prompt(running, spans, told["_meta"]["traceparent"], CLIENT_SPAN)


def test_everybody_in_the_session_is_told_the_trace(running: Site) -> None:
    with (
        connect(running.gateway.ws_url, proxy=None) as first,
        connect(running.gateway.ws_url, proxy=None) as second,
    ):
        one, two = Ws(first), Ws(second)
        session_id = one.session(running.workspace)
        two.request("initialize", {"protocolVersion": 1})
        two.request(
            "session/load",
            {"sessionId": session_id, "cwd": str(running.workspace), "mcpServers": []},
        )
        told = one.request("session/prompt", {"sessionId": session_id, "prompt": TEXT})
        echo = next(
            each["params"]["update"]
            for each in _heard(two)
            if each.get("params", {}).get("update", {}).get("sessionUpdate") == "user_message_chunk"
        )
    # Without a context of the client's the trace is the gateway's own.
    assert echo["_meta"]["traceparent"] == told["_meta"]["traceparent"]
    trace_id = told["_meta"]["traceparent"][3:35]
    spans = running.trace(trace_id, "acp_gateway.prompt", "demo.turn")
    check_prompt(running, spans, told["_meta"]["traceparent"], "")


def _heard(ws: Ws) -> Iterator[dict[str, Any]]:
    while True:
        yield json.loads(ws.socket.recv(timeout=30))


def test_over_rest(running: Site) -> None:
    given = TRACEPARENT.replace("4bf9", "bbb1")
    opened = running.http.post("/session", json={"cwd": str(running.workspace)}).json()
    session_id = opened["sessionId"]
    answer = running.http.post(
        f"/session/{session_id}/prompt", json={"prompt": TEXT}, headers={"traceparent": given}
    )
    assert answer.status_code == 202
    spans = running.trace(given[3:35], "acp_gateway.request", "acp_gateway.prompt", "demo.turn")
    request = spans["acp_gateway.request"]
    assert request.parent_id == CLIENT_SPAN
    assert request.attributes["http.route"] == "/session/{sessionId}/prompt"
    assert request.attributes["http.response.status_code"] == 202
    assert session_id not in request.attributes["http.route"]
    check_prompt(running, spans, answer.json()["_meta"]["traceparent"], request.span_id)
    line = running.log_line("request", trace_id=given[3:35])
    assert (line["route"], line["status"]) == ("/session/{sessionId}/prompt", 202)


@pytest.mark.parametrize("way", ["header", "_meta"])
def test_over_streamable_http(running: Site, way: str) -> None:
    given = TRACEPARENT.replace("4bf9", "ccc1" if way == "header" else "ccc2")
    http = running.http
    answer = http.post(
        "/acp",
        json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 1}},
    )
    headers = {"acp-connection-id": answer.headers["acp-connection-id"]}
    results: dict[int, Any] = {}
    changed = threading.Condition()
    over = threading.Event()

    def read(more: dict[str, str]) -> None:
        accept = {**headers, **more, "accept": "text/event-stream"}
        own = httpx2.Client(base_url=running.gateway.url, trust_env=False, timeout=30)
        with own, own.stream("GET", "/acp", headers=accept) as stream:
            for row in stream.iter_lines():
                if row.startswith("data:") and "result" in (told := json.loads(row[5:])):
                    with changed:
                        results[told["id"]] = told["result"]
                        changed.notify_all()
                if over.is_set():
                    return

    def result(number: int) -> Any:
        with changed:
            assert changed.wait_for(lambda: number in results, 30)
            return results[number]

    readers = [threading.Thread(target=read, args=({},), daemon=True)]
    readers[0].start()
    params: dict[str, Any] = {"cwd": str(running.workspace), "mcpServers": []}
    new = {"jsonrpc": "2.0", "id": 2, "method": "session/new", "params": params}
    assert http.post("/acp", json=new, headers=headers).status_code == 202
    session_id = result(2)["sessionId"]
    readers.append(
        threading.Thread(target=read, args=({"acp-session-id": session_id},), daemon=True)
    )
    readers[1].start()
    params = {"sessionId": session_id, "prompt": TEXT}
    more = {"acp-session-id": session_id}
    if way == "header":
        more["traceparent"] = given
    else:
        params["_meta"] = {"traceparent": given}
    prompt = {"jsonrpc": "2.0", "id": 3, "method": "session/prompt", "params": params}
    assert http.post("/acp", json=prompt, headers={**headers, **more}).status_code == 202
    told = result(3)
    over.set()
    spans = running.trace(given[3:35], "acp_gateway.request", "acp_gateway.prompt", "demo.turn")
    request = spans["acp_gateway.request"]
    assert (request.parent_id, request.attributes["http.route"]) == (CLIENT_SPAN, "/acp")
    check_prompt(running, spans, told["_meta"]["traceparent"], request.span_id)
    http.delete("/acp", headers=headers)


def test_a_question_and_a_new_session_are_in_the_trace(running: Site) -> None:
    given = TRACEPARENT.replace("4bf9", "ddd1")
    here = running.workspace / "another"  # where there is no session yet to be joined
    here.mkdir()
    opened = running.http.post(
        "/session", json={"cwd": str(here)}, headers={"traceparent": given}
    ).json()
    spans = running.trace(given[3:35], "acp_gateway.request", "acp_gateway.session.new")
    new = spans["acp_gateway.session.new"]
    assert new.parent_id == spans["acp_gateway.request"].span_id
    assert new.attributes["session.id"] == opened["sessionId"]
    given = TRACEPARENT.replace("4bf9", "ddd2")
    running.http.post(
        f"/session/{opened['sessionId']}/prompt",
        json={"prompt": [{"type": "text", "text": "/write traced.txt"}]},
        headers={"traceparent": given},
    )
    with running.http.stream(
        "GET", f"/session/{opened['sessionId']}/events", headers={"last-event-id": "0"}
    ) as stream:
        for row in stream.iter_lines():
            if row.startswith("data:") and '"permission_request"' in row:
                asked = json.loads(row[5:])["data"]
                break
    option = asked["options"][0]["optionId"]
    running.http.post(
        f"/session/{opened['sessionId']}/permission/{asked['requestId']}",
        json={"outcome": {"outcome": "selected", "optionId": option}},
    )
    spans = running.trace(given[3:35], "acp_gateway.permission", "acp_gateway.prompt")
    question = spans["acp_gateway.permission"]
    assert question.parent_id == spans["acp_gateway.prompt"].span_id
    assert question.attributes["acp_gateway.request_id"] == asked["requestId"]
    running.receiver.wait(lambda all: [s for s in all if s.name == "acp_gateway.agent.initialize"])


@pytest.mark.parametrize(
    "wrong", ["", "00", f"ff-{CLIENT_TRACE}-{CLIENT_SPAN}-01", f"00-{'0' * 32}-{CLIENT_SPAN}-01", 7]
)
def test_a_wrong_context_is_ignored(running: Site, wrong: Any) -> None:
    with connect(running.gateway.ws_url, proxy=None) as socket:
        ws = Ws(socket)
        session_id = ws.session(running.workspace)
        meta = {"traceparent": wrong, "other": 1}
        told = ws.request(
            "session/prompt", {"sessionId": session_id, "prompt": TEXT, "_meta": meta}
        )
    trace_id = told["_meta"]["traceparent"][3:35]
    assert trace_id not in str(wrong)
    running.trace(trace_id, "acp_gateway.prompt", "demo.turn")


def test_what_the_client_does_not_sample_is_not_sent(running: Site) -> None:
    given = TRACEPARENT.replace("4bf9", "eee1")[:-2] + "00"
    with connect(running.gateway.ws_url, proxy=None) as socket:
        ws = Ws(socket)
        session_id = ws.session(running.workspace)
        meta = {"traceparent": given}
        told = ws.request(
            "session/prompt", {"sessionId": session_id, "prompt": TEXT, "_meta": meta}
        )
        assert told["_meta"]["traceparent"].startswith(given[:36])
        assert told["_meta"]["traceparent"].endswith("-00")
        after = ws.request("session/prompt", {"sessionId": session_id, "prompt": TEXT})
    running.trace(after["_meta"]["traceparent"][3:35], "acp_gateway.prompt")
    mine = [each for each in running.receiver.spans if each.trace_id == given[3:35]]
    assert [each.name for each in mine if each.service == "acp-gateway"] == []


@pytest.mark.parametrize("trouble", ["gone", "refuses", "stalls"])
def test_a_collector_that_fails_hurts_nobody(tmp_path: Path, trouble: str) -> None:
    workspace = tmp_path / "work"
    workspace.mkdir()
    with otlp_receiver(
        status=503 if trouble == "refuses" else 200, stall=30.0 if trouble == "stalls" else 0.0
    ) as receiver:
        url = "http://127.0.0.1:1" if trouble == "gone" else receiver.url
        args = ["--agent", "demo", "--otlp-endpoint", url]
        env = base_environment(tmp_path / "home")
        with running_gateway(workspace, env, args) as gateway:
            with connect(gateway.ws_url, proxy=None) as socket:
                ws = Ws(socket)
                session_id = ws.session(workspace)
                for _ in range(3):
                    ws.request("session/prompt", {"sessionId": session_id, "prompt": TEXT})
            began = time.monotonic()
            assert gateway.stop() == 0
            assert time.monotonic() - began < 12


def test_the_context_goes_to_the_agent_without_any_exporter(tmp_path: Path) -> None:
    workspace = tmp_path / "work"
    workspace.mkdir()
    trace = tmp_path / "wire.jsonl"
    args = ["--agent", "demo", "--trace-wire", str(trace)]
    with running_gateway(workspace, base_environment(tmp_path / "home"), args) as gateway:
        with connect(gateway.ws_url, proxy=None) as socket:
            ws = Ws(socket)
            session_id = ws.session(workspace)
            meta = {"traceparent": TRACEPARENT, "tracestate": "a=1,b=2", "mine": True}
            told = ws.request(
                "session/prompt", {"sessionId": session_id, "prompt": TEXT, "_meta": meta}
            )
        assert gateway.stop() == 0
    frames = [json.loads(line) for line in trace.read_text().splitlines()]
    sent = next(
        each["frame"]["params"]["_meta"]
        for each in frames
        if each["side"] == "agent" and each["frame"].get("method") == "session/prompt"
    )
    assert sent == {
        "mine": True,
        "traceparent": told["_meta"]["traceparent"],
        "tracestate": "a=1,b=2",
    }
    assert sent["traceparent"][3:35] == CLIENT_TRACE
