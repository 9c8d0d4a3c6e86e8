"""A session's folded history: same words, last states, same order, never over the cap."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acp_gateway.core.event_ring import Kind, Record
from acp_gateway.core.transcript import MAX_MERGED, Transcript
from acp_gateway.wire.json_codec import dumps, loads
from acp_gateway.wire.large_line import Pieces

CHUNKS = ("user_message_chunk", "agent_message_chunk", "agent_thought_chunk")
STATES = ("available_commands_update", "current_mode_update", "usage_update")
MIB = 1024 * 1024


def line_of(update: dict[str, Any]) -> bytes:
    params = {"sessionId": "s", "update": update}
    return dumps({"jsonrpc": "2.0", "method": "session/update", "params": params})


def chunk(text: str, kind: str = "agent_message_chunk", **more: Any) -> dict[str, Any]:
    return {"sessionUpdate": kind, "content": {"type": "text", "text": text}, **more}


def tool(id: str, **more: Any) -> dict[str, Any]:
    return {"sessionUpdate": "tool_call", "toolCallId": id, "title": f"tool {id}", **more}


def tool_update(id: str, **more: Any) -> dict[str, Any]:
    return {"sessionUpdate": "tool_call_update", "toolCallId": id, **more}


def add(transcript: Transcript, *updates: dict[str, Any]) -> Transcript:
    for update in updates:
        transcript.add([Record(Kind.UPDATE, update["sessionUpdate"], line_of(update), 0.0)])
    return transcript


def folded(transcript: Transcript) -> list[dict[str, Any]]:
    messages = [loads(line) for line in transcript.lines()]
    assert all(m["method"] == "session/update" and m["jsonrpc"] == "2.0" for m in messages)
    return [m["params"]["update"] for m in messages]


def said(updates: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What was said, whatever the cuts: (who, text) of each run."""
    parts = [(u["sessionUpdate"], u["content"]["text"]) for u in updates if "content" in u]
    return [(who, "".join(t for _, t in run)) for who, run in groupby(parts, lambda p: p[0])]


update_lists = st.lists(
    st.one_of(
        st.builds(chunk, st.text(max_size=8), st.sampled_from(CHUNKS)),
        st.builds(chunk, st.text(max_size=8), messageId=st.sampled_from(["m1", "m2"])),
        st.builds(tool, st.sampled_from("ab"), status=st.just("pending")),
        st.builds(tool_update, st.sampled_from("abc"), status=st.sampled_from(["done", None])),
        st.builds(lambda n: {"sessionUpdate": "plan", "entries": [n]}, st.integers(0, 9)),
        st.builds(
            lambda k, n: {"sessionUpdate": k, "n": n}, st.sampled_from(STATES), st.integers()
        ),
    ),
    max_size=40,
)


@given(update_lists, st.sets(st.integers(0, 40)))
def test_folding_keeps_the_words_the_last_states_and_the_order(
    updates: list[dict[str, Any]], read_at: set[int]
) -> None:
    transcript = Transcript(MIB)
    for number, update in enumerate(updates):
        if number in read_at:
            transcript.lines()  # when it was compacted makes no difference
        add(transcript, update)
    result = folded(transcript)
    assert not transcript.truncated
    # Words: the same; where a state stood between two chunks it does not part them.
    spoken = [u for u in updates if "content" in u]
    assert said([u for u in result if "content" in u]) == said(spoken)
    # States: the last of each kind.
    for kind in (*STATES, "plan"):
        told = [u for u in updates if u["sessionUpdate"] == kind]
        assert [u for u in result if u["sessionUpdate"] == kind] == told[-1:]
    # Tools: one for each id, with the last status that was told.
    for id in "abc":
        mine = [u for u in updates if u.get("toolCallId") == id]
        left = [u for u in result if u.get("toolCallId") == id]
        calls = sum(u["sessionUpdate"] == "tool_call" for u in mine)
        first_is_update = bool(mine) and mine[0]["sessionUpdate"] == "tool_call_update"
        assert len(left) == calls + first_is_update
        if left:
            status = None
            for u in mine:
                status = u["status"] if u["sessionUpdate"] == "tool_call" else u["status"] or status
            assert left[-1]["status"] == status
    # Order: conversation and tools stand in the order in which they began.
    order = [key(u) for u in updates if key(u)]
    kept = [key(u) for u in result if key(u)]
    it = iter(order)
    assert all(any(each == other for other in it) for each in kept)


def key(update: dict[str, Any]) -> str:
    kind = update["sessionUpdate"]
    if kind in CHUNKS:
        return f"{kind} {update.get('messageId')}"
    return f"tool {update['toolCallId']}" if kind == "tool_call" else ""


def test_runs_become_one_message_and_a_state_between_does_not_part_them() -> None:
    transcript = Transcript(MIB)
    for number in range(500):
        add(transcript, chunk(f"{number} "), {"sessionUpdate": "usage_update", "used": number})
    result = folded(transcript)
    assert [u["sessionUpdate"] for u in result] == ["agent_message_chunk", "usage_update"]
    assert result[0]["content"]["text"] == "".join(f"{n} " for n in range(500))
    assert result[1]["used"] == 499


@pytest.mark.parametrize(
    "second",
    [
        chunk("b", "agent_thought_chunk"),
        chunk("b", messageId="other"),
        chunk("b", _meta={"x": 1}),
        {"sessionUpdate": "agent_message_chunk", "content": {"type": "image", "data": "b"}},
        {"sessionUpdate": "agent_message_chunk", "content": {"type": "image", "text": "b"}},
        {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": 5}},
        {"sessionUpdate": "agent_message_chunk"},
    ],
)
def test_what_differs_stays_apart_and_whole(second: dict[str, Any]) -> None:
    first = chunk("a")
    for pair in ((first, second), (second, first)):
        assert folded(add(Transcript(MIB), *pair)) == list(pair)


def test_a_plan_parts_a_run_and_stands_where_it_was_told_last() -> None:
    plans = [{"sessionUpdate": "plan", "entries": [n]} for n in (1, 2)]
    transcript = add(Transcript(MIB), plans[0], chunk("a"), plans[1], chunk("b"))
    assert folded(transcript) == [chunk("a"), plans[1], chunk("b")]


def test_a_tool_call_keeps_its_place_and_what_an_update_does_not_name() -> None:
    transcript = add(
        Transcript(MIB),
        tool("a", status="pending", rawInput={"x": 1}),
        chunk("text"),
        tool_update("a", status="completed", title=None, content=[{"type": "content"}]),
    )
    assert folded(transcript) == [
        tool("a", status="completed", rawInput={"x": 1}, content=[{"type": "content"}]),
        chunk("text"),
    ]


def test_an_update_of_a_call_that_is_no_longer_known_stands_for_itself() -> None:
    updates = [tool_update("gone", status="done"), tool_update("gone", title="T")]
    assert folded(add(Transcript(MIB), *updates)) == [tool_update("gone", status="done", title="T")]


def test_notices_are_no_history() -> None:
    transcript = Transcript(MIB)
    transcript.add([Record(Kind.NOTICE, "turn_complete", b'{"method":"_qwen/notify"}', 0.0)])
    transcript.add([Record(Kind.ECHO, "user_message_chunk", line_of(chunk("hi", CHUNKS[0])), 0.0)])
    assert folded(transcript) == [chunk("hi", CHUNKS[0])]


@pytest.mark.parametrize("text", ["a" * 1000, "é" * 500, '"' * 500, "\x01" * 200, "😀" * 250])
def test_a_merged_message_stays_below_what_clients_take(text: str) -> None:
    """In bytes of JSON, whatever a character takes."""
    transcript = Transcript(64 * MIB)
    for _ in range(3 * MAX_MERGED // 1000):
        add(transcript, chunk(text))
    lines = transcript.lines()
    assert max(map(len, lines)) <= MAX_MERGED + 200
    assert 2 <= len(lines) <= 8
    assert said(folded(transcript)) == [("agent_message_chunk", text * (3 * MAX_MERGED // 1000))]


def test_a_tool_that_repeats_its_output_counts_once() -> None:
    """A known agent sends all of its output again with every line; that is no reason to forget."""
    transcript = add(Transcript(40_000), chunk("the beginning"), tool("a"))
    for number in range(200):
        add(transcript, tool_update("a", content=[{"text": "x" * 5_000 + str(number)}]))
    assert not transcript.truncated
    first, call = folded(transcript)
    assert first == chunk("the beginning")
    assert call["content"][0]["text"].endswith("x199")
    assert transcript.size == sum(map(len, transcript.lines()))


sizes = st.lists(
    st.tuples(st.sampled_from(["chunk", "tool", "update", "plan"]), st.integers(0, 900))
)


@settings(deadline=None)
@given(sizes, st.integers(500, 4000))
def test_it_is_never_over_its_cap_and_says_when_something_is_missing(
    steps: list[tuple[str, int]], cap: int
) -> None:
    transcript = Transcript(cap)
    total = 0
    for number, (what, size) in enumerate(steps):
        text = "x" * size
        update = {
            "chunk": chunk(text, CHUNKS[number % 2]),
            "tool": tool(str(number), rawOutput=text),
            "update": tool_update(str(number - 1), rawOutput=text),
            "plan": {"sessionUpdate": "plan", "entries": [text]},
        }[what]
        total += len(line_of(update))
        add(transcript, update)
        assert transcript.size <= cap
    lines = transcript.lines()
    assert sum(map(len, lines)) <= transcript.size <= cap
    if total <= cap:
        assert not transcript.truncated
    if transcript.truncated:
        assert total > cap


def test_the_oldest_go_first() -> None:
    transcript = Transcript(10_000)
    for number in range(300):
        add(transcript, chunk(f"{number:03}" + "x" * 100, messageId=str(number)))
    numbers = [int(u["content"]["text"][:3]) for u in folded(transcript)]
    assert transcript.truncated and numbers == list(range(300 - len(numbers), 300))
    assert transcript.size > 5_000  # and not all of them


def test_after_a_cut_everything_folds_on() -> None:
    transcript = Transcript(3_000)
    add(transcript, tool("a"), {"sessionUpdate": "plan", "entries": []}, chunk("lost"))
    add(transcript, tool("big", rawOutput="x" * 2_900))
    assert transcript.truncated
    add(transcript, tool_update("a", status="done"), {"sessionUpdate": "plan", "entries": [1]})
    add(transcript, chunk("kept"), chunk(" on"))
    assert folded(transcript)[-3:] == [
        tool_update("a", status="done"),
        {"sessionUpdate": "plan", "entries": [1]},
        chunk("kept on"),
    ]


def test_a_line_that_cannot_be_read_again_is_missing_and_nothing_else_is() -> None:
    transcript = add(Transcript(MIB), chunk("a"))
    deep = b'{"params":{"update":{"sessionUpdate":"x","a":' + b"[" * 9_000 + b"]" * 9_000 + b"}}}"
    transcript.add([Record(Kind.UPDATE, "x", deep, 0.0)])
    assert folded(add(transcript, chunk("b"))) == [chunk("ab")]
    assert transcript.truncated


@pytest.mark.parametrize("kind", ["plan", "usage_update"])
def test_replacing_costs_the_same_in_a_long_history(kind: str) -> None:
    """Counted in comparisons of entries, not in time: there are none."""
    transcript = Transcript(64 * MIB)
    for number in range(2_000):
        add(transcript, chunk("x", messageId=str(number)))
    add(transcript, {"sessionUpdate": kind, "n": 0})
    transcript.lines()
    before = list(transcript._entries)
    for number in range(2_000):
        add(transcript, {"sessionUpdate": kind, "n": number})
    assert len(transcript.lines()) == 2_001
    # A dict: the others stay where they are.
    assert list(transcript._entries)[:-1] == before[:-1]


def test_nothing_is_merged_into_what_was_dropped() -> None:
    transcript = add(Transcript(2_000), chunk("x" * 2_000))
    assert transcript.lines() == [] and transcript.truncated
    assert folded(add(transcript, chunk("kept"))) == [chunk("kept")]


def test_what_is_large_is_kept_as_it_is_and_not_looked_into() -> None:
    transcript = Transcript(4 * MIB)
    big = "x" * 100_000
    add(transcript, chunk("a"), tool("t"), chunk("b"), chunk(big), chunk("c"), chunk("d"))
    large = line_of(tool_update("t", rawOutput="y" * 700_000))
    transcript.add([Record(Kind.UPDATE, "tool_call_update", Pieces((large[:50], large[50:])), 0.0)])
    # What follows may contradict the large one, which stands behind the call.
    add(transcript, tool_update("t", status="done"))
    updates = folded(transcript)
    assert [u.get("content", u).get("text", u["sessionUpdate"])[:9] for u in updates] == [
        "a", "tool_call", "b", "x" * 9, "cd", "tool_call", "tool_call",
    ]  # fmt: skip
    assert transcript.lines()[5] == large and updates[6] == tool_update("t", status="done")
    assert not transcript.truncated


def test_one_huge_message_does_not_push_out_all_that_was_said_before() -> None:
    transcript = add(Transcript(4 * MIB), chunk("a"))
    huge = line_of(tool_update("t", rawOutput="y" * 3 * MIB))
    transcript.add([Record(Kind.UPDATE, "tool_call_update", Pieces((huge,)), 0.0)])
    assert folded(add(transcript, chunk("b"))) == [chunk("ab")]
    assert transcript.truncated
