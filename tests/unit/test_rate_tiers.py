"""What each request costs, the same over REST and over ``/acp``; what a refusal says."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import structlog
import trio

from acp_gateway.config import Settings
from acp_gateway.core.rate_limit import Exceeded, Tier
from acp_gateway.protocol.extensions import OPERATIONS, RPC, Access
from acp_gateway.transports.rate_limits import (
    RateLimitExceeded,
    RateLimits,
    tier_of_method,
    tier_of_request,
)


@pytest.mark.parametrize(
    ("request_line", "tier"),
    [
        ("POST /session/x/prompt", Tier.PROMPT),
        ("POST /session/x/y/prompt", Tier.MUTATION),
        ("GET /session/x/prompt", Tier.READ),
        ("POST /session", Tier.MUTATION),
        ("POST /session/x/cancel", Tier.MUTATION),
        ("POST /session/x/permission/r", Tier.MUTATION),
        ("DELETE /session/x", Tier.MUTATION),
        ("PATCH /session/x/metadata", Tier.MUTATION),
        ("PUT /nothing", Tier.MUTATION),
        ("BREW /nothing", Tier.MUTATION),
        ("GET /capabilities", Tier.READ),
        ("HEAD /capabilities", Tier.READ),
        ("GET /nothing", Tier.READ),
        ("POST /sessions/catalog", Tier.READ),
        ("OPTIONS /session/x/prompt", None),
        ("GET /health", None),
        ("HEAD /health", None),
        ("POST /health", Tier.MUTATION),
        ("GET /demo", None),
        ("POST /session/x/heartbeat", None),
        ("GET /session/x/events", None),
        ("POST /session/x/events", Tier.MUTATION),
        ("GET /session/x/events/more", Tier.READ),
        ("POST /acp", None),
        ("GET /acp", None),
        ("DELETE /acp", None),
        ("POST /agents/demo/acp", None),
        ("POST /acp/x", Tier.MUTATION),
    ],
)
def test_requests(request_line: str, tier: Tier | None) -> None:
    assert tier_of_request(*request_line.split(" ")) is tier


@pytest.mark.parametrize(
    ("method", "tier"),
    [
        ("session/prompt", Tier.PROMPT),
        ("session/list", Tier.READ),
        ("session/new", Tier.MUTATION),
        ("session/load", Tier.MUTATION),
        ("_somebody/else", Tier.MUTATION),
        ("", Tier.MUTATION),
        ("_qwen/session/heartbeat", None),
        ("_qwen/session/context", Tier.READ),
        ("_qwen/file/write", Tier.MUTATION),
        # What begins a connection is limited by their number; what stops must always go.
        ("initialize", None),
        ("session/cancel", None),
        ("$/cancel_request", None),
    ],
)
def test_methods(method: str, tier: Tier | None) -> None:
    assert tier_of_method(method) is tier


def test_every_twin_costs_what_its_route_costs() -> None:
    for method, row in RPC.items():
        path = row.path.replace("{", "").replace("}", "")
        assert tier_of_method(method) is tier_of_request(row.method, path), method


def test_only_what_changes_nothing_is_a_read_or_free() -> None:
    # The last one wants a token because it shows codes; it changes nothing.
    free = {"session_heartbeat", "auth_device_flow_get"}
    for row in OPERATIONS.values():
        tier = tier_of_request(row.method, row.path.replace("{", "").replace("}", ""))
        if row.access is not Access.READ and row.name not in free:
            assert tier in (Tier.PROMPT, Tier.MUTATION), row.name


def test_what_a_refusal_says() -> None:
    refusal = RateLimitExceeded(Exceeded(Tier.PROMPT, 2, 22.9301, 1))
    status, body = refusal.to_http()
    assert status == 429
    assert body == {
        "error": "Rate limit exceeded",
        "code": "rate_limit_exceeded",
        "tier": "prompt",
        "retryAfterMs": 22931,
    }
    headers = dict(refusal.headers)
    assert headers["retry-after"] == "23"
    assert headers["x-ratelimit-limit"] == "2"
    assert headers["x-ratelimit-remaining"] == "0"
    reset = int(headers["x-ratelimit-reset"])
    assert reset - math.ceil(time.time() + 22.931) in (-1, 0)
    data: Any = refusal.to_jsonrpc()["data"]
    assert data["errorKind"] == "rate_limit_exceeded"
    assert (data["tier"], data["retryAfterMs"], data["httpStatus"]) == ("prompt", 22931, 429)
    assert data["retryable"] is True


def test_the_first_and_every_hundredth_refusal_is_logged() -> None:
    async def main() -> None:
        limits = RateLimits(Settings(rate_limit_read=1, rate_limit_window=1e9))
        with structlog.testing.capture_logs() as lines:
            for _ in range(301):
                limits.refuse_request("GET", "/capabilities", "1.2.3.4")
            assert limits.refuse_request("GET", "/capabilities", "other") is None
            limits.refuse_request("GET", "/capabilities", "other")
        told = [(line["caller"], line["tier"], line["suppressed"]) for line in lines]
        assert told == [
            ("1.2.3.4", "read", 0),
            ("1.2.3.4", "read", 98),
            ("1.2.3.4", "read", 99),
            ("1.2.3.4", "read", 99),
            ("other", "read", 0),
        ]
        assert limits.snapshot() == {
            "enabled": True,
            "callers": 2,
            "forgotten": 0,
            "rejectedSinceStart": {"prompt": 0, "mutation": 0, "read": 301},
        }

    trio.run(main)


def test_a_daemon_that_drains_holds_nobody_up() -> None:
    async def main() -> None:
        limits = RateLimits(Settings(rate_limit_mutation=1))
        assert limits.refuse_method("session/close", "a") is None
        assert limits.refuse_method("session/close", "a") is not None
        limits.draining = True
        assert limits.refuse_method("session/close", "a") is None
        assert limits.refuse_request("DELETE", "/session/x", "a") is None

    trio.run(main)
