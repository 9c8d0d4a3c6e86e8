"""A prompt's trace goes on in a real agent: qwen takes the context in the way that it reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agent_env import qwen_environment
from fake_model import FakeModel
from gateway_process import running_gateway
from peers_env import need
from support.otlp_receiver import otlp_receiver
from websockets.sync.client import connect

pytestmark = pytest.mark.real

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def test_qwen_goes_on_with_the_trace(tmp_path: Path) -> None:
    need("node", "qwen")
    workspace = tmp_path / "work"
    workspace.mkdir()
    outfile = tmp_path / "telemetry.log"
    with FakeModel() as model, otlp_receiver() as receiver:
        env = qwen_environment(tmp_path / "home", model.url) | {
            "QWEN_TELEMETRY_ENABLED": "1",
            "QWEN_TELEMETRY_TARGET": "local",
            "QWEN_TELEMETRY_OUTFILE": str(outfile),
        }
        settings = tmp_path / "home" / ".qwen" / "settings.json"
        wanted = json.loads(settings.read_text()) | {"telemetry": {"enabled": True}}
        settings.write_text(json.dumps(wanted))
        args = ["--agent", "qwen", "--otlp-endpoint", receiver.url]
        with running_gateway(workspace, env, args) as gateway:
            with connect(gateway.ws_url, proxy=None, max_size=None) as socket:
                session_id = ""
                for number, (method, params) in enumerate(
                    (
                        ("initialize", {"protocolVersion": 1}),
                        ("session/new", {"cwd": str(workspace), "mcpServers": []}),
                        (
                            "session/prompt",
                            {
                                "prompt": [{"type": "text", "text": "hello there"}],
                                "_meta": {"traceparent": TRACEPARENT},
                            },
                        ),
                    )
                ):
                    if session_id:
                        params = {**params, "sessionId": session_id}
                    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
                    socket.send(json.dumps(message))
                    while (told := json.loads(socket.recv(timeout=60))).get("id") != number:
                        pass
                    session_id = told["result"].get("sessionId") or session_id
            mine = receiver.wait(
                lambda spans: [
                    each
                    for each in spans
                    if each.trace_id == TRACE and each.name == "acp_gateway.prompt"
                ]
            )[0]
            assert told["result"]["_meta"]["traceparent"] == f"00-{TRACE}-{mine.span_id}-01"
            gateway.stop()
    text = outfile.read_text()
    # Its spans are in the trace of the client, and one of them is the child of the gateway's.
    assert TRACE in text
    assert mine.span_id in text
