"""A live daemon keeps to schemas/openapi.json whatever is asked of it.

schemathesis runs as a program: its pytest plugin and the project's strict warnings stay apart.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from agent_env import base_environment
from gateway_process import ROOT, GatewayProcess, running_gateway
from support.openapi import BY_NAME, Documented, validator

pytestmark = pytest.mark.real

TESTS = Path(__file__).resolve().parent.parent
TOKEN = "a-token"
TIME = 180.0
EXAMPLES = 20
CONFIG = """
hooks = "support.schemathesis_hooks"
request-timeout = 30.0

[checks]
# Documented refusals: the agent cannot, the agent failed, no room, the agent is silent.
not_a_server_error.expected-statuses = ["2xx", "4xx", "501", "502", "503", "504"]
# Bodies are read as leniently as the clients of the Qwen daemon are used to.
negative_data_rejection.enabled = false
# Ids that are well-formed and unknown are refused with 400, as those clients expect.
positive_data_acceptance.enabled = false
# No header is required but the token, and that is checked as such.
missing_required_header.enabled = false
ignored_auth.enabled = %s
# Whatever is closed here can be loaded again, and every attach makes the session anew.
use_after_free.enabled = false
ensure_resource_availability.enabled = false

[[operations]]
# They do not end; see below.
include-path-regex = "/events$"
enabled = false
"""


@contextmanager
def daemon(base: Path, *args: str, **settings: str) -> Iterator[tuple[GatewayProcess, Path]]:
    workspace = base / "workspace"
    workspace.mkdir()
    env = base_environment(base / "home") | settings
    argv = ["--agent", "demo", "--isolation", "shared", *args]
    with running_gateway(workspace, env, argv) as gateway:
        yield gateway, workspace


def schemathesis(base: Path, gateway: GatewayProcess, workspace: Path, token: str | None) -> None:
    """Fails with the report of a run over all phases; deterministic."""
    if importlib.util.find_spec("schemathesis") is None:
        problem = "schemathesis is not installed: pip install -e '.[dev]'"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    run = base / "run"
    run.mkdir()
    (run / "schemathesis.toml").write_text(
        CONFIG % str(token is not None).lower(), encoding="utf-8"
    )
    argv = [sys.executable, "-m", "schemathesis.cli", "run"]
    argv += [str(ROOT / "schemas" / "openapi.json"), "--url", gateway.url, "--no-color"]
    argv += ["--phases", "examples,coverage,fuzzing,stateful", "--continue-on-failure"]
    argv += ["--generation-deterministic"]
    argv += ["--max-examples", str(EXAMPLES), "--suppress-health-check", "all"]
    argv += ["--header", f"Authorization: Bearer {token}"] if token else []
    env = base_environment(base / "client-home")
    env |= {"PYTHONPATH": os.pathsep.join((str(TESTS), str(ROOT)))}
    env |= {"ACP_TEST_WORKSPACE": str(workspace)} | ({"ACP_TEST_TOKEN": token} if token else {})
    done = subprocess.run(argv, cwd=run, env=env, capture_output=True, text=True, timeout=TIME)
    log = gateway.stderr_tail()
    assert done.returncode == 0, f"{done.stdout[-12000:]}\n{done.stderr[-2000:]}\n{log[-4000:]}"
    assert f"Tested: {len(BY_NAME) - 2}" in done.stdout, done.stdout[-2000:]
    assert '"event": "route_failed"' not in log


def test_with_a_token(tmp_path: Path) -> None:
    with daemon(tmp_path, "--token", TOKEN) as (gateway, workspace):
        schemathesis(tmp_path, gateway, workspace, TOKEN)


def test_on_trusted_loopback(tmp_path: Path) -> None:
    with daemon(tmp_path, "--trust-loopback") as (gateway, workspace):
        schemathesis(tmp_path, gateway, workspace, None)


# ---- streams, and what no operation is -----------------------------------------------------------


def keeps_to(answer: httpx2.Response, operation: Documented) -> str:
    """Checks a refusal against the document; its word."""
    documented = operation.responses[answer.status_code]
    schema = operation.schema(answer.status_code)
    assert schema is not None
    validator(schema).validate(answer.json())
    assert {name.lower() for name in documented.get("headers", ())} <= set(answer.headers)
    word: str = answer.json()["code"]
    assert word in documented["x-codes"]
    return word


def refused(http: httpx2.Client, path: str) -> httpx2.Response:
    """Fails on a stream that is not refused: it would never end."""
    with http.stream("GET", path) as answer:
        assert answer.status_code != 200, path
        answer.read()
    return answer


def test_streams_answer_as_documented(tmp_path: Path) -> None:
    with (
        daemon(tmp_path, ACP_GATEWAY_MAX_SUBSCRIBERS="1") as (gateway, _),
        httpx2.Client(base_url=gateway.url, timeout=30) as http,
    ):
        session = http.post("/session", json={}).json()["sessionId"]
        for name, path in (
            ("session_events", f"/session/{session}/events"),
            ("workspace_events", "/workspace/events"),
        ):
            operation = BY_NAME[name]
            for query in ("maxQueued=15", "maxQueued=2049", "maxQueued=x", "maxQueued="):
                answer = refused(http, f"{path}?{query}")
                assert keeps_to(answer, operation) == "invalid_max_queued"
            with http.stream("GET", path) as stream:
                assert stream.status_code == 200
                assert stream.headers["content-type"] == "text/event-stream"
                for header in operation.responses[200]["headers"]:
                    assert stream.headers[header]
                lines = stream.iter_lines()
                assert next(lines) == "retry: 3000"
                assert keeps_to(refused(http, path), operation) == "subscriber_limit_exceeded"
        unknown = refused(http, "/session/unknown/events")
        assert keeps_to(unknown, BY_NAME["session_events"]) == "session_not_found"


@pytest.mark.parametrize("method", ["PUT", "TRACE", "QUERY", "POST"])
def test_other_methods_and_paths_are_refused_as_json(tmp_path: Path, method: str) -> None:
    with daemon(tmp_path) as (gateway, _), httpx2.Client(base_url=gateway.url, timeout=30) as http:
        for operation in BY_NAME.values():
            known = {each.method for each in BY_NAME.values() if each.path == operation.path}
            if method in known or (method == "POST" and operation.path.startswith("/acp")):
                continue
            path = operation.path.replace("{workspace}", "x").replace("{", "").replace("}", "")
            answer = http.request(method, path, json={})
            assert answer.status_code == 405, path
            assert answer.json()["code"] == "method_not_allowed"
            assert {each.strip() for each in answer.headers["allow"].split(",")} == known
        assert http.request(method, "/no/such/route", json={}).json()["code"] == "route_not_found"
