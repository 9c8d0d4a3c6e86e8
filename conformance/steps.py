"""What many cases do in the same way."""

from __future__ import annotations

from typing import Any

from conformance.links import Link, Message, Pending, Reply
from conformance.outcome import Failure, brief, check

STOP_REASONS = ("end_turn", "max_tokens", "max_turn_requests", "refusal", "cancelled")


def text_prompt(session_id: str, text: str) -> dict[str, Any]:
    """Params of session/prompt."""
    return {"sessionId": session_id, "prompt": [{"type": "text", "text": text}]}


async def start_prompt(link: Link, session_id: str, text: str) -> Pending:
    return await link.start("session/prompt", text_prompt(session_id, text))


async def run_prompt(link: Link, session_id: str, text: str) -> Reply:
    """A whole turn, which must end in end_turn."""
    reply = await link.request("session/prompt", text_prompt(session_id, text))
    expect_stop(reply, "end_turn")
    return reply


def expect_stop(reply: Reply, *reasons: str) -> str:
    reason = reply.result.get("stopReason")
    check(reason in reasons, f"stopReason {reason!r} instead of {' or '.join(reasons)}")
    return str(reason)


async def running(link: Link, session_id: str) -> Pending:
    """A turn that works for a minute unless it is cancelled, and has begun to."""
    pending = await start_prompt(link, session_id, "/sleep 60")
    await link.expect(
        lambda message: chunk_text(message, session_id) is not None, after=pending.start
    )
    return pending


def chunk_text(message: Message, session_id: str) -> str | None:
    """The text of an agent_message_chunk of the session, None for any other message."""
    if message.get("method") != "session/update" or message["params"]["sessionId"] != session_id:
        return None
    update = message["params"]["update"]
    if update.get("sessionUpdate") != "agent_message_chunk":
        return None
    return str(update["content"].get("text", ""))


def check_numbers(text: str, count: int, size: int) -> None:
    """``text`` must be the whole of ``/chunks COUNT SIZE``: every number once and in order."""
    for index in range(count):
        want = f"{index:06d} "
        have = text[index * size : index * size + len(want)]
        if have != want:
            raise Failure(f"chunk {index} of {count} begins with {have!r}; {len(text)} bytes came")
    check(len(text) == count * size, f"{len(text)} bytes of chunks instead of {count * size}")


def names_member(error: dict[str, Any], member: str) -> None:
    """The error must tell which member of the params is wrong."""
    check(member in f"{error['message']} {error.get('data')}", f"{member}: {brief(error)}")
