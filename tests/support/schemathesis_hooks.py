"""What schemathesis (a process of its own) adds to its requests and checks.

Three requests of four go to a session, client, agent and directory that there are: generated ids
alone would only ever be unknown. Reads ``ACP_TEST_WORKSPACE`` and ``ACP_TEST_TOKEN``.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import requests
import schemathesis

WORKSPACE = os.environ["ACP_TEST_WORKSPACE"]
TOKEN = os.environ.get("ACP_TEST_TOKEN")
_count = itertools.count(1)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    if next(_count) % 4 == 0:
        return
    body, path = case.body, case.path_parameters or {}
    if isinstance(body, dict):
        for name, real in (("cwd", WORKSPACE), ("agent", "demo")):
            if isinstance(body.get(name), str):
                body[name] = real
    if "workspace" in path:
        path["workspace"] = WORKSPACE
    if "sessionId" in path:
        _to_a_session(case, path)


def _to_a_session(case: Any, path: dict[str, Any]) -> None:
    answer = requests.post(
        f"{case.operation.base_url.rstrip('/')}/session",
        json={"sessionScope": "single"},
        headers={"Authorization": f"Bearer {TOKEN}"} if TOKEN else {},
        timeout=30,
    )
    if answer.status_code == 200:  # else there is no room for one at the moment
        session = answer.json()
        path["sessionId"] = session["sessionId"]
        if case.headers and "X-Qwen-Client-Id" in case.headers:
            case.headers["X-Qwen-Client-Id"] = session["clientId"]


@schemathesis.check
def documented_code(ctx: Any, response: Any, case: Any) -> None:
    """The word of an error is one that the operation names under this status."""
    document = case.operation.schema.raw_schema
    responses = case.operation.definition.raw["responses"]
    documented = responses.get(str(response.status_code), {})
    if "$ref" in documented:
        name = documented["$ref"].rsplit("/", 1)[1]
        documented = document["components"]["responses"][name]
    if "x-codes" in documented:
        code = response.json()["code"]
        allowed = documented["x-codes"]
        # A number is the agent's own; the schema says where one may stand.
        assert not isinstance(code, str) or code in allowed, f"{code} is not one of {allowed}"
