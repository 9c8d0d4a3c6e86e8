"""The event envelope: exactly the documented object, on one line, spliced from what is there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.envelope import NOTIFY, envelope, event_type, sse_envelopes, synthetic
from acp_gateway.core.event_ring import Kind, Record
from acp_gateway.wire.jsonrpc import notification_bytes

TIME = 1795201133.3704
MILLIS = 1795201133370
UPDATE = {"sessionId": "s", "update": {"sessionUpdate": "plan", "entries": [], "x": "é\u2028"}}


def record(kind: Kind, name: str, method: str, params: Any, **who: Any) -> Record:
    made = Record(kind, name, notification_bytes(method, params), TIME, **who)
    made.id = 7
    return made


def notice(kind: str, data: dict[str, Any], **who: Any) -> Record:
    params = {"kind": kind, "data": data, "_meta": {"serverTimestamp": 5}}
    return record(Kind.NOTICE, kind, NOTIFY, params, **who)


def as_bytes(made: Record) -> bytes:
    head, event, data, end, rest = b"".join(sse_envelopes([made])).split(b"\n")
    assert head == b"id: %d" % made.id and event == b"event: " + event_type(made).encode()
    assert data == b"data: " + envelope(made) and end == rest == b"" and b"\r" not in data
    return envelope(made)


def told(made: Record) -> Any:
    return json.loads(as_bytes(made))


def expected(type: str, data: Any, **who: Any) -> dict[str, Any]:
    meta = {"serverTimestamp": MILLIS}
    return {"id": 7, "v": 1, "type": type, "data": data, **who, "_meta": meta}


@pytest.mark.parametrize("kind", [Kind.UPDATE, Kind.ECHO])
def test_an_update(kind: Kind) -> None:
    made = record(kind, "plan", "session/update", UPDATE)
    assert told(made) == expected("session_update", UPDATE)
    assert event_type(made) == "session_update"


def test_whose_it_is() -> None:
    who = {"prompt_id": "p", "client": 'c"\\1'}
    wire = {"promptId": "p", "originatorClientId": 'c"\\1'}
    made = record(Kind.UPDATE, "plan", "session/update", UPDATE, **who)
    assert told(made) == expected("session_update", UPDATE, **wire)
    made = notice("turn_complete", {"sessionId": "s"}, **who)
    assert told(made) == expected("turn_complete", {"sessionId": "s"}, **wire)


def test_the_members_stand_in_a_fixed_order() -> None:
    made = record(Kind.UPDATE, "plan", "session/update", {}, prompt_id="p", client="c")
    assert as_bytes(made) == (
        b'{"id":7,"v":1,"type":"session_update","data":{},"promptId":"p",'
        b'"originatorClientId":"c","_meta":{"serverTimestamp":%d}}' % MILLIS
    )


def test_a_notice_loses_its_wrapping() -> None:
    data = {"sessionId": "s", "data": {"kind": "x"}, "kind": "y"}
    assert told(notice("permission_request", data)) == expected("permission_request", data)
    assert event_type(notice("turn_error", {})) == "turn_error"


def test_a_notification_of_the_agent_is_named_as_such() -> None:
    made = record(Kind.NOTICE, "_qwen/ping", "_qwen/ping", {"sessionId": "s", "a": [1]})
    params = {"sessionId": "s", "a": [1]}
    data = {"sessionId": "s", "method": "_qwen/ping", "params": params}
    assert event_type(made) == "agent_notification"
    assert told(made) == expected("agent_notification", data)
    bare = Record(Kind.NOTICE, "_x", b'{"jsonrpc":"2.0","method":"_x"}', TIME)
    bare.id = 7
    assert told(bare)["data"] == {"sessionId": None, "method": "_x", "params": None}


def test_the_agent_s_bytes_are_not_touched() -> None:
    params = b'{"sessionId" : "s", "update":{"sessionUpdate":"plan","n":1.0e0,"n":2,"t":"\\u00e9"}}'
    line = b'{"jsonrpc":"2.0","method":"session/update","params":' + params + b"}"
    made = Record(Kind.UPDATE, "plan", line, TIME)
    assert b'"data":' + params + b',"_meta"' in as_bytes(made)


def test_synthetic_frames_have_no_id() -> None:
    assert json.loads(synthetic("replay_complete", {"replayedCount": 0}, TIME)) == {
        "v": 1,
        "type": "replay_complete",
        "data": {"replayedCount": 0},
        "_meta": {"serverTimestamp": MILLIS},
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.none() | st.text(), st.none() | st.text())
def test_any_data_survives(data: dict[str, Any], prompt: str | None, client: str | None) -> None:
    who: dict[str, Any] = {"prompt_id": prompt, "client": client}
    wire = {"promptId": prompt, "originatorClientId": client}
    wire = {name: value for name, value in wire.items() if value is not None}
    made = record(Kind.UPDATE, "plan", "session/update", data, **who)
    assert told(made) == expected("session_update", data, **wire)
    assert told(notice("turn_error", data, **who)) == expected("turn_error", data, **wire)
