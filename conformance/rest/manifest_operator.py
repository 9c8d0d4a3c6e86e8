"""Rows about what an operator sees: status, preflight, environment, readiness, figures."""

from __future__ import annotations

from conformance.requirement import Requirement, rows
from conformance.rest.manifest_sessions import DAEMON, GATEWAY

OPERATOR_REQUIREMENTS: tuple[Requirement, ...] = (
    *rows(
        DAEMON,
        "rest",
        ("HEALTH-007", "must", "deep health tells when something was done last, or null"),
        ("STATUS-004", "must", "the status is that of the worst issue, and each issue has a code"),
        ("STATUS-005", "must", "the runtime of the status counts sessions, prompts and streams"),
        ("STATUS-006", "must", "?detail=full tells who follows a session and what is queued in it"),
        ("STATUS-007", "must", "?detail=full has the preflight and the environment as sections"),
        ("PREFLIGHT-001", "must", "GET /workspace/preflight has cells and says if an agent lives"),
        ("PREFLIGHT-002", "must", "each cell has a kind, a known status and a locality"),
        ("PREFLIGHT-003", "must", "entry point, workspace, ripgrep and git have cells"),
        ("PREFLIGHT-004", "must", "what only the agent knows has cells, also where it is unknown"),
        ("PREFLIGHT-005", "should", "a cell that is an error says what is wrong"),
        ("ENV-001", "must", "GET /workspace/env has cells of runtime, platform, memory, variables"),
        ("ENV-002", "must", "a variable is present or not, and its value is never told"),
        ("ENV-003", "must", "the proxies are told, without credentials"),
    ),
    *rows(
        GATEWAY,
        "rest",
        ("READY-001", "gateway", "GET /readyz is 200 ready while a session can be opened"),
        ("METRICS-001", "gateway", "GET /metrics is text that Prometheus reads"),
        ("METRICS-002", "gateway", "GET /metrics is OpenMetrics for who prefers it"),
        ("METRICS-003", "gateway", "a finished turn is counted, and stays counted"),
        ("METRICS-004", "gateway", "no label has a session id or a path"),
    ),
)
