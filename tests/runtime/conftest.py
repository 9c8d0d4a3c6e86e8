"""Helpers on the path, short stop ladders, and a last-resort deadline for every test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.deadline import deadline  # noqa: F401

from acp_gateway.runtime import agent_process
from acp_gateway.runtime.session_feed import SessionFeed


@pytest.fixture(autouse=True)
def _short_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_process, "EOF_GRACE", 0.5)
    monkeypatch.setattr(agent_process, "TERM_GRACE", 0.5)
    # A killed process takes real time to go, whatever a mock clock has jumped over.
    monkeypatch.setattr(agent_process, "KILL_GRACE", 10_000.0)


@pytest.fixture(autouse=True)
def _ended_sessions_keep_their_story(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests read in a session's ring how it ended, which nobody else can."""
    if request.node.get_closest_marker("lets_go") is None:
        monkeypatch.setattr(SessionFeed, "let_go", lambda self: None)
