"""The method table against the official package's lists, and the removal of private members."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from acp.meta import AGENT_METHODS, CLIENT_METHODS
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.protocol import types as t
from acp_gateway.protocol.converter import read
from acp_gateway.protocol.methods import (
    METHODS,
    PRIVATE_META_KEYS,
    PRIVATE_META_PREFIX,
    strip_private_meta,
)

UNSTABLE = ("nes/", "document/", "providers/", "mcp/")


def test_every_stable_method_is_there_with_its_direction() -> None:
    def stable(names: dict[str, str]) -> set[str]:
        return {name for name in names.values() if not name.startswith(UNSTABLE)}

    def rows(direction: str) -> set[str]:
        return {name for name, row in METHODS.items() if row.direction == direction}

    assert rows("to_agent") == stable(AGENT_METHODS) | {"session/set_model"}
    assert rows("to_client") == stable(CLIENT_METHODS)
    assert rows("both") == {"$/cancel_request"}


def test_notifications() -> None:
    notifications = {name for name, row in METHODS.items() if row.kind == "notification"}
    assert notifications == {
        "session/cancel",
        "session/update",
        "elicitation/complete",
        "$/cancel_request",
    }


def test_streams_of_answers_to_clients() -> None:
    on_session = {
        name
        for name, row in METHODS.items()
        if row.direction == "to_agent" and row.stream == "session"
    }
    assert on_session == {
        "session/prompt",
        "session/cancel",
        "session/set_mode",
        "session/set_config_option",
        "session/set_model",
        "session/close",
    }


@pytest.mark.parametrize("row", METHODS.values(), ids=lambda row: row.name)
def test_session_scope_is_a_session_id_in_the_params(row: Any) -> None:
    if row.params is not None and not row.name.startswith("elicitation/"):
        has_id = "session_id" in attrs.fields_dict(row.params)
        assert has_id is (row.scope == "session")


@pytest.mark.parametrize("row", METHODS.values(), ids=lambda row: row.name)
def test_capabilities_are_fields_that_are_read(row: Any) -> None:
    if row.capability is None:
        return
    side, *path = row.capability.split(".")
    capabilities: Any = {
        "agentCapabilities": t.AgentCapabilities,
        "clientCapabilities": t.ClientCapabilities,
    }[side]
    wire: dict[str, Any] = {}
    inner = wire
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
    # A flag is true, a marker is an object; one of the two must be seen.
    seen = []
    for value in (True, {}):
        inner[path[-1]] = value
        seen.append(read(capabilities, wire) != capabilities())
    assert any(seen) or row.name == "elicitation/create"


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        METHODS["x"] = METHODS["initialize"]  # type: ignore[index]


# -- private members of _meta ----------------------------------------------------------------------

PRIVATE = st.sampled_from(sorted(PRIVATE_META_KEYS)) | st.text(max_size=5).map(
    lambda rest: PRIVATE_META_PREFIX + rest
)
PUBLIC = st.sampled_from(["traceparent", "qwen-code/sessionId", "qwen.session.source", "x"])


@pytest.mark.parametrize(
    "params",
    [{}, {"_meta": None}, {"_meta": "x"}, {"_meta": {}}, {"a": 1, "_meta": {"traceparent": "t"}}],
)
def test_nothing_to_strip_is_the_same_object(params: dict[str, Any]) -> None:
    assert strip_private_meta(params) is params


def test_the_keys_that_the_daemon_uses_itself_are_private() -> None:
    keys = [
        "qwen-code/invocation",
        "qwen-code/private-parent-capability",
        "qwen.daemon.retry",
        "qwen.daemon.continueLastTurn",
        "qwen.daemon.restoreAskUserQuestion",
        "qwen.daemon.channelDelivery",
        "qwen.daemon.promptDisplayText",
        "qwen.daemon.submittedPrompt",
        "qwen.daemon.modelPrompt",
        "qwen.daemon.attachmentReferences",
        "qwen.submittedPrompt",
        "qwen.channel.prompt",
        "qwen.channel.outputMode",
        "qwen.goalProposalApproval",
    ]
    assert strip_private_meta({"_meta": dict.fromkeys(keys, 1)}) == {}


@given(st.dictionaries(PRIVATE, st.integers(), min_size=1), st.dictionaries(PUBLIC, st.integers()))
def test_private_members_go_and_all_others_stay(
    private: dict[str, int], public: dict[str, int]
) -> None:
    prompt = [{"type": "text", "text": "x"}]
    params = {"sessionId": "s", "prompt": prompt, "_meta": {**public, **private}}
    before = {**params, "_meta": dict(params["_meta"])}
    stripped = strip_private_meta(params)
    assert stripped.get("_meta", {}) == public
    assert ("_meta" in stripped) is bool(public)
    assert stripped["prompt"] is prompt
    assert params == before
