"""A client that attaches later is told the present state of a session, whatever its agent sent."""

from __future__ import annotations

from typing import Any

import pytest

from acp_gateway.runtime.session_state import SessionState
from acp_gateway.wire.json_codec import dumps

MODES = {"currentModeId": "a", "availableModes": [{"id": "a"}, {"id": "b", "name": "B"}]}
MODELS = {"currentModelId": "m", "availableModels": [{"modelId": "m"}, "odd"]}


def opened(**result: Any) -> SessionState:
    state = SessionState()
    state.opened(result)
    return state


def note(state: SessionState, kind: str, **update: Any) -> None:
    params = {"sessionId": "s", "update": {"sessionUpdate": kind, **update}}
    state.note(kind, dumps({"method": "session/update", "params": params}))


def test_what_opened_it_is_told_again_with_the_names_that_clients_need() -> None:
    state = opened(modes=MODES, models=MODELS, configOptions=[{"id": "x"}], _meta={"k": 1})
    result = state.as_result()
    assert [mode["name"] for mode in result["modes"]["availableModes"]] == ["a", "B"]
    assert result["models"]["availableModels"] == [{"modelId": "m", "name": "m"}, "odd"]
    assert result["configOptions"] == [{"id": "x"}] and state.meta == {"k": 1}


@pytest.mark.parametrize("junk", [None, 5, "x", []])
def test_an_answer_of_odd_shapes_does_no_harm(junk: Any) -> None:
    state = opened(modes=junk, models=junk, configOptions=junk, _meta=junk)
    assert state.meta == {}
    state.set_mode("b")
    state.set_model("n")
    assert state.as_result() == ({"configOptions": []} if junk == [] else {})


def test_updates_keep_it_current() -> None:
    state = opened(modes=dict(MODES), models=dict(MODELS))
    note(state, "current_mode_update", currentModeId="b")
    note(state, "config_option_update", configOptions=[{"id": "y"}])
    note(state, "session_info_update", title="T")
    note(state, "available_commands_update", availableCommands=[{"name": "c"}])
    state.set_model("n")
    assert (state.mode, state.title, state.commands) == ("b", "T", [{"name": "c"}])
    assert state.as_result()["configOptions"] == [{"id": "y"}]
    assert state.as_result()["models"]["currentModelId"] == "n"
    note(state, "session_info_update", title=None)
    note(state, "session_info_update", updatedAt="now")
    assert state.title is None


def test_odd_updates_change_nothing() -> None:
    state = opened(modes=dict(MODES))
    note(state, "current_mode_update", currentModeId=None)
    note(state, "current_mode_update")
    note(state, "config_option_update", configOptions="x")
    note(state, "agent_message_chunk", currentModeId="b")
    assert state.mode == "a" and state.as_result() == {"modes": state.modes}
    for line in (b"", b"garbage", b"[" * 100_000):
        state.note("current_mode_update", line)
    assert state.mode == "a"


def test_bytes_that_are_not_utf8_do_not_hide_an_update() -> None:
    state = SessionState()
    state.note(
        "session_info_update",
        b'{"params":{"update":{"sessionUpdate":"session_info_update","title":"a\xffb"}}}',
    )
    assert state.title == "a�b"


def test_a_session_restored_without_modes_keeps_those_it_had() -> None:
    state = opened(modes=dict(MODES))
    state.opened({})
    assert state.mode == "a"
