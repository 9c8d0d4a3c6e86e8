"""The history as a load tells it: folded, complete, and without questions that were answered."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.envelope import NOTIFY
from acp_gateway.core.event_ring import Kind, Record
from acp_gateway.core.replay import replay, updates
from acp_gateway.core.transcript import Transcript
from acp_gateway.wire.jsonrpc import notification_bytes

CHUNKS = ("user_message_chunk", "agent_message_chunk", "agent_thought_chunk")
NOBODY: frozenset[str] = frozenset()
BIG = 1 << 30


def update(name: str, **fields: Any) -> Record:
    params = {"sessionId": "s", "update": {"sessionUpdate": name, **fields}}
    kind = Kind.ECHO if name == "user_message_chunk" else Kind.UPDATE
    return Record(kind, name, notification_bytes("session/update", params), 1.0)


def chunk(text: str, name: str = "agent_message_chunk", **fields: Any) -> Record:
    return update(name, content={"type": "text", "text": text}, **fields)


def notice(name: str, **data: Any) -> Record:
    line = notification_bytes(NOTIFY, {"kind": name, "data": {"sessionId": "s", **data}})
    return Record(Kind.NOTICE, name, line, 1.0)


def question(id: str) -> Record:
    return notice("permission_request", requestId=id)


def numbered(records: Sequence[Record]) -> list[Record]:
    for number, record in enumerate(records, 1):
        record.id = number
    return list(records)


def load(
    *records: Record, boundary: int = 10**9, open: frozenset[str] = NOBODY, evicted: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(finished, unfinished); the first ``evicted`` records have left the ring."""
    all = numbered(records)
    transcript = Transcript(BIG)
    transcript.add(all[:evicted])
    parts = replay(transcript.entries(), all[evicted:], boundary, open)
    one, two = ([json.loads(bytes(each)) for each in part] for part in parts)
    return one, two


def said(events: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """Who said what: neighbouring chunks of one kind joined."""
    spoken = [
        (each["data"]["update"]["sessionUpdate"], each["data"]["update"]["content"]["text"])
        for each in events
        if each["type"] == "session_update" and each["data"]["update"]["sessionUpdate"] in CHUNKS
    ]
    groups = itertools.groupby(spoken, key=lambda pair: pair[0])
    return [(name, "".join(text for _, text in group)) for name, group in groups]


def kinds(events: Iterable[dict[str, Any]]) -> list[str]:
    return [each["data"].get("update", {}).get("sessionUpdate") or each["type"] for each in events]


def test_chunks_of_a_message_are_one_event_with_the_id_of_the_last() -> None:
    finished, unfinished = load(chunk("a"), chunk("b"), chunk("c"), notice("turn_complete"))
    assert [each["id"] for each in finished] == [3, 4]
    assert said(finished) == [("agent_message_chunk", "abc")] and not unfinished


def test_what_parts_two_messages() -> None:
    one, _ = load(chunk("a"), chunk("b", "agent_thought_chunk"), chunk("c"))
    assert [each["id"] for each in one] == [1, 2, 3]
    one, _ = load(chunk("a", messageId="1"), chunk("b", messageId="2"))
    assert len(one) == 2
    one, _ = load(chunk("a"), notice("turn_complete"), chunk("b"))
    assert kinds(one) == ["agent_message_chunk", "turn_complete", "agent_message_chunk"]
    one, _ = load(chunk("a"), notice("model_switched"), chunk("b"))
    assert said(one) == [("agent_message_chunk", "ab")] and len(one) == 1


def test_a_tool_call_stands_once_in_its_last_state() -> None:
    finished, _ = load(
        update("tool_call", toolCallId="1", status="pending", title="t"),
        chunk("meanwhile"),
        update("tool_call_update", toolCallId="1", status="in_progress", content=[{"a": 1}]),
        update("tool_call_update", toolCallId="1", status="completed", title=None),
    )
    assert kinds(finished) == ["tool_call", "agent_message_chunk"]
    call = finished[0]
    assert call["id"] == 4
    assert call["data"]["update"] == {
        "sessionUpdate": "tool_call",
        "toolCallId": "1",
        "status": "completed",
        "title": "t",
        "content": [{"a": 1}],
    }


def test_only_open_questions_are_asked_again_wherever_they_stand() -> None:
    records = (
        question("old"),
        notice("permission_resolved", requestId="old"),
        question("new"),
        chunk("x"),
        question("newest"),
    )
    for boundary in range(6):
        parts = load(*records, boundary=boundary, open=frozenset({"new", "newest"}))
        told = [each for part in parts for each in part if each["type"] == "permission_request"]
        assert [each["data"]["requestId"] for each in told] == ["new", "newest"]
        assert [each["id"] for each in told] == [3, 5]


def test_the_boundary_parts_finished_from_unfinished() -> None:
    records = (chunk("one"), notice("turn_complete"), chunk("two"), chunk("three"))
    finished, unfinished = load(*records, boundary=2)
    assert kinds(finished) == ["agent_message_chunk", "turn_complete"]
    assert said(unfinished) == [("agent_message_chunk", "twothree")]
    finished, unfinished = load(*records, boundary=0)
    assert not finished and len(unfinished) == 3


def test_who_said_it_and_when_stays() -> None:
    record = chunk("a")
    record.prompt_id, record.client = "p", "c"
    ((event,), _) = load(record)
    assert (event["promptId"], event["originatorClientId"]) == ("p", "c")
    assert event["_meta"] == {"serverTimestamp": 1000}


def test_updates_are_the_conversation_alone() -> None:
    records = numbered([chunk("a"), question("q"), chunk("b"), notice("turn_complete")])
    assert updates([], records) == [
        (
            3,
            {
                "sessionUpdate": "agent_message_chunk",
                "content": {"type": "text", "text": "ab"},
                "timestamp": 1000,
            },
        )
    ]


TEXT = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ['"', "\\", '\\"', "a\\", "\x00\r\n", "\u2028", "🎈"]
)
META = st.sampled_from([{}, {"_meta": {"source": "x"}}, {"messageId": "m"}])
EVENT = st.one_of(
    st.builds(lambda t, n, f: chunk(t, n, **f), TEXT, st.sampled_from(CHUNKS), META),
    st.builds(lambda t: chunk(t), TEXT),
    st.builds(
        lambda n, i, s: update(n, toolCallId=i, status=s),
        st.sampled_from(["tool_call", "tool_call_update"]),
        st.sampled_from("12"),
        st.sampled_from(["pending", "completed"]),
    ),
    st.builds(lambda n: update(n), st.sampled_from(["plan", "usage_update"])),
    st.builds(lambda n: notice(n), st.sampled_from(["turn_complete", "model_switched"])),
)


def raw(record: Record) -> dict[str, Any]:
    params = json.loads(record.line)["params"]
    if record.kind is Kind.NOTICE:
        return {"type": record.name, "data": params["data"]}
    return {"type": "session_update", "data": params}


@given(st.lists(EVENT, max_size=25), st.integers(0, 25), st.integers(0, 25))
def test_nothing_that_was_said_is_lost(records: list[Record], evicted: int, boundary: int) -> None:
    spoken = said(raw(each) for each in records)
    states = {
        each["data"]["update"]["toolCallId"]: each["data"]["update"]["status"]
        for each in map(raw, records)
        if "toolCallId" in each["data"].get("update", {})
    }
    finished, unfinished = load(*records, boundary=boundary, evicted=evicted)
    assert said([*finished, *unfinished]) == spoken
    told = {
        each["data"]["update"]["toolCallId"]: each["data"]["update"]["status"]
        for each in [*finished, *unfinished]
        if "toolCallId" in each["data"].get("update", {})
    }
    assert told == states
    ids = [each["id"] for each in [*finished, *unfinished]]
    assert len(set(ids)) == len(ids) and set(ids) <= {each.id for each in records}
    assert all(id > boundary for id in [each["id"] for each in unfinished])


@given(st.lists(EVENT, max_size=25))
def test_the_transcript_s_entries_name_their_last_record(records: list[Record]) -> None:
    all = numbered(records)
    transcript = Transcript(BIG)
    for record in all:
        transcript.add((record,))
    by_id = {each.id: each for each in all}
    entries = transcript.entries()
    assert [each.line for each in entries] == transcript.lines()
    for entry in entries:
        assert by_id[entry.id].time == entry.time
        assert entry.name == json.loads(entry.line)["params"]["update"]["sessionUpdate"]
    newest = [each.id for each in all if each.kind is not Kind.NOTICE]
    assert max((each.id for each in entries), default=None) == max(newest, default=None)
