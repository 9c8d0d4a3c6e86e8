"""Messages for a running turn: each is taken, removed or promoted, and that once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.mid_turn import MAX_MESSAGES, REMEMBERED, MidTurnMessage, MidTurnQueue
from acp_gateway.protocol.errors import ErrorKind, GatewayError


def message(id: str, text: str = "t") -> MidTurnMessage:
    content = ({"type": "text", "text": text},)
    return MidTurnMessage(message_id=id, text=text, content=content, client="c")


def ids(messages: tuple[MidTurnMessage, ...]) -> list[str]:
    return [each.message_id for each in messages]


def test_the_agent_takes_all_in_order_and_once() -> None:
    queue = MidTurnQueue()
    for id in "abc":
        queue.add(message(id))
    assert ids(queue.waiting) == ids(queue.take()) == ["a", "b", "c"]
    assert queue.waiting == queue.take() == ()
    assert list(queue.settled) == ["a", "b", "c"] and not queue.promoted


def test_the_same_id_again_changes_nothing_whatever_became_of_it() -> None:
    queue = MidTurnQueue()
    queue.add(message("waits", "first"))
    queue.add(message("waits", "second"))
    assert [each.text for each in queue.waiting] == ["first"]
    for id, end in (("taken", "take"), ("removed", "remove"), ("promoted", "promote")):
        queue = MidTurnQueue()
        one = message(id)
        queue.add(one)
        if end == "take":
            queue.take()
        elif end == "remove":
            assert queue.remove(id)
        else:
            queue.promote(one)
        assert queue.knows(id)
        queue.add(one)
        assert queue.waiting == (), end


def test_removing_works_only_while_it_waits() -> None:
    queue = MidTurnQueue()
    queue.add(message("a"))
    assert queue.remove("a") and not queue.remove("a") and not queue.remove("b")
    queue.add(message("c"))
    queue.take()
    assert not queue.remove("c")
    assert list(queue.settled) == ["a", "c"]


def test_a_promoted_one_is_told_as_such() -> None:
    queue = MidTurnQueue()
    one, two = message("a"), message("b")
    queue.add(one)
    queue.add(two)
    queue.promote(one)
    assert ids(queue.waiting) == ["b"]
    assert (list(queue.promoted), list(queue.settled)) == (["a"], [])


def test_there_is_a_limit() -> None:
    queue = MidTurnQueue()
    for number in range(MAX_MESSAGES):
        queue.add(message(str(number)))
    queue.add(message("0"))  # known: no room needed
    with pytest.raises(GatewayError) as caught:
        queue.add(message("more"))
    assert caught.value.kind is ErrorKind.PROMPT_QUEUE_FULL
    assert caught.value.data["limit"] == MAX_MESSAGES
    assert queue.remove("0")
    queue.add(message("more"))


def test_memory_is_bounded() -> None:
    queue = MidTurnQueue()
    for number in range(REMEMBERED + 10):
        queue.add(message(str(number)))
        queue.take()
    assert len(queue.settled) == REMEMBERED
    assert not queue.knows("0") and queue.knows(str(REMEMBERED + 9))


@given(st.lists(st.tuples(st.sampled_from("artp"), st.sampled_from("abcde"))))
def test_each_id_is_in_one_place(steps: list[tuple[str, str]]) -> None:
    queue, taken = MidTurnQueue(), []
    for step, id in steps:
        if step == "a":
            queue.add(message(id))
        elif step == "r":
            queue.remove(id)
        elif step == "t":
            taken += ids(queue.take())
        elif id in ids(queue.waiting):
            queue.promote(next(each for each in queue.waiting if each.message_id == id))
        places = [*ids(queue.waiting), *queue.settled, *queue.promoted]
        assert len(places) == len(set(places))
    assert len(taken) == len(set(taken)), "the agent got one twice"
