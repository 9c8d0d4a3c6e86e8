"""Operations on the turns of a session: prompts, the queue, cancel, mode and model."""

from __future__ import annotations

import uuid
from typing import Any

from acp_gateway.core.mid_turn import MidTurnMessage
from acp_gateway.core.turn_queue import Turn
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.protocol.methods import strip_private_meta
from acp_gateway.runtime import session_control
from acp_gateway.runtime.turn_trace import told_meta
from acp_gateway.transports.operations.call import Call, bad_request

MAX_KEY = 256


async def prompt(call: Call) -> Any:
    session = call.session()
    blocks = _blocks(call.params.get("prompt"))
    params: dict[str, Any] = {"sessionId": session.id, "prompt": blocks}
    meta = call.params.get("_meta")
    if isinstance(meta, dict):
        params = strip_private_meta({**params, "_meta": meta})
    key = call.idempotency_key
    if key is not None and not 0 < len(key) <= MAX_KEY:
        raise bad_request(f"Idempotency-Key must have 1 to {MAX_KEY} characters")
    turn = session.submit(
        params,
        origin=call.caller.binding,
        client=call.caller.client_id,
        identity=call.caller.identity,
        key=None if key is None else f"rest:{call.caller.client_id or ''}:{key}",
        time_limit=_deadline(call.params.get("deadlineMs")),
    )
    return {
        "promptId": turn.prompt_id,
        "lastEventId": turn.watermark,
        "eventEpoch": session.epoch,
        "_meta": told_meta(turn),
    }


def _blocks(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise bad_request("`prompt` must be a non-empty array of content blocks", field="prompt")
    for index, block in enumerate(value):
        if not isinstance(block, dict):
            raise bad_request(f"`prompt[{index}]` must be an object", field="prompt")
        kind = block.get("type")
        if not isinstance(kind, str):
            raise bad_request(f"`prompt[{index}].type` must be a string", field="prompt")
        needed = _NEEDED.get(kind, ())
        for name in needed:
            if not isinstance(block.get(name), str):
                raise bad_request(f"`prompt[{index}].{name}` must be a string", field="prompt")
    return value


_NEEDED = {"text": ("text",), "image": ("data", "mimeType"), "audio": ("data", "mimeType")}


def _deadline(value: Any) -> float | None:
    """Seconds. Raises ``invalid_deadline_ms``."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise GatewayError(ErrorKind.INVALID_DEADLINE, "`deadlineMs` must be a positive integer")
    return value / 1000


async def cancel(call: Call) -> Any:
    """The running turn only; returns once it has ended."""
    session = call.session()
    client = call.caller.client_id
    running = session.queue.running
    if running is None:
        if not session.halted:
            session.publish("prompt_cancelled", client=client)
            session.wake()
        return
    session.cancel_turn(running, client)
    await session.settled(running)


def _pending(turn: Turn, running: bool) -> dict[str, Any]:
    content = turn.params.get("prompt")
    return {
        "promptId": turn.prompt_id,
        "text": turn.text,
        "content": content if isinstance(content, list) else [],
        "queuedAt": int(turn.asked_at * 1000),
        "state": "running" if running else "queued",
        **({"originatorClientId": turn.client} if turn.client is not None else {}),
    }


async def pending(call: Call) -> Any:
    session = call.session()
    running = session.queue.running
    return {"pendingPrompts": [_pending(each, each is running) for each in session.queue.turns()]}


async def pending_remove(call: Call) -> Any:
    session = call.session()
    turn = session.queue.get(call.text("promptId") or "")
    if turn is None:
        return {"removed": False}
    session.cancel_turn(turn, call.caller.client_id)
    return {"removed": True}


async def mid_turn(call: Call) -> Any:
    session = call.session()
    text = call.params.get("message")
    if not isinstance(text, str) or not text.strip():
        raise bad_request("`message` must be a non-empty string", field="message")
    message_id = call.params.get("messageId")
    if message_id is not None and not (isinstance(message_id, str) and 0 < len(message_id) <= 128):
        raise bad_request("`messageId` must be a string of 1 to 128 characters", field="messageId")
    extra = call.params.get("content")
    blocks = [] if not extra else _blocks(extra)
    waiting = session.mid_turn
    if message_id is None or not waiting.knows(message_id):
        if session.queue.running is None:
            return {"accepted": False, "reason": "session_idle"}
        message_id = message_id or str(uuid.uuid4())
        waiting.add(
            MidTurnMessage(
                message_id=message_id,
                text=text,
                content=({"type": "text", "text": text}, *blocks),
                client=call.caller.client_id,
            )
        )
    return {"accepted": True, "messageId": message_id}


async def mid_turn_remove(call: Call) -> Any:
    session = call.session()
    message_id = call.text("messageId") or ""
    removed = session.mid_turn.remove(message_id)
    if removed:
        session.publish(
            "pending_prompt_completed",
            client=call.caller.client_id,
            promptId=message_id,
            state="removed",
        )
        session.wake()
    return {"removed": removed}


async def mid_turn_list(call: Call) -> Any:
    queue = call.session().mid_turn
    return {
        "messages": [
            {"messageId": each.message_id, "text": each.text, "content": list(each.content)}
            for each in queue.waiting
        ],
        "settledMessageIds": list(queue.settled),
        "promotedMessageIds": list(queue.promoted),
    }


async def model(call: Call) -> Any:
    session = call.session()
    wanted = call.params.get("modelId")
    if not isinstance(wanted, str) or not wanted.strip():
        raise bad_request("`modelId` must be a non-empty string", field="modelId")
    result = await session_control.set_model(session, wanted, call.caller.client_id)
    return {**(result if isinstance(result, dict) else {}), "modelId": wanted}


async def approval_mode(call: Call) -> Any:
    session = call.session()
    persist = call.params.get("persist")
    if persist is not None and not isinstance(persist, bool):
        raise GatewayError(ErrorKind.INVALID_PERSIST_FLAG, "`persist` must be true or false")
    mode = call.params.get("mode")
    changed, previous = await session_control.set_mode(session, mode, call.caller.client_id)
    return {
        "sessionId": session.id,
        "mode": changed,
        "previous": previous or "default",
        "persisted": False,
    }


async def recap(call: Call) -> Any:
    session = call.session()
    told = await session_control.ask_qwen(session, "qwen/control/session/recap", {})
    if told is None:
        raise session_control.no_fallback(session, "sum up a session")
    return {"sessionId": session.id, "recap": told.get("recap")}


async def btw(call: Call) -> Any:
    session = call.session()
    question = call.params.get("question")
    if not isinstance(question, str) or not 0 < len(question.strip()) <= 4096:
        raise bad_request("`question` must be a string of 1 to 4096 characters", field="question")
    told = await session_control.ask_qwen(
        session, "qwen/control/session/btw", {"question": question.strip()}
    )
    if told is None:
        raise session_control.no_fallback(session, "answer a question beside the conversation")
    return {"sessionId": session.id, "answer": told.get("answer")}
