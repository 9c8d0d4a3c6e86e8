"""What a session is: status, context, usage, statistics, commands, tasks, transcript.

An agent with Qwen's status methods answers for itself; for any other the gateway tells what it
knows from standard ACP, in the same shape.
"""

from __future__ import annotations

import time
from typing import Any, Final

from acp_gateway.core.mediator import Question
from acp_gateway.core.replay import updates
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.session_catalog import iso
from acp_gateway.runtime.session_control import ask_qwen, is_user_question
from acp_gateway.transports.operations.call import NO_STORE, Call, Reply, bad_request
from acp_gateway.transports.operations.cursors import bad_cursor, from_cursor, to_cursor
from acp_gateway.transports.operations.lists import summary

MAX_EVENTS: Final = 500


async def status(call: Call) -> Any:
    session = call.session()
    return summary(session) | {
        "pendingInteractions": [_asked(q) for q in session.questions],
        "usage": session.usage.all.as_json(),
    }


def _asked(question: Question) -> dict[str, Any]:
    call = question.params["toolCall"]
    options = [
        {"optionId": each["optionId"], "label": each.get("name"), "kind": each.get("kind")}
        for each in question.params["options"]
        if isinstance(each, dict)
        and isinstance(each.get("optionId"), str)
        and each["optionId"] in question.option_ids
    ]
    common = {
        "requestId": question.request_id,
        "createdAt": iso(question.issued_at),
        "policy": question.rule.policy.value,
        "options": options,
    }
    if is_user_question(question):
        questions = call["_meta"].get("qwenQuestions")
        return {
            **common,
            "kind": "user_question",
            "title": call.get("title"),
            "questions": [
                {**each, "answerKey": str(index)}
                for index, each in enumerate(questions if isinstance(questions, list) else ())
                if isinstance(each, dict)
            ],
        }
    return {
        **common,
        "kind": "permission",
        "action": {
            "type": call.get("kind"),
            "title": call.get("title"),
            "content": call.get("content") or [],
            "locations": call.get("locations") or [],
            "input": call.get("rawInput"),
        },
    }


def _head(session: Session) -> dict[str, Any]:
    return {"v": 1, "sessionId": session.id, "workspaceCwd": str(session.cwd)}


async def context(call: Call) -> Any:
    session = call.session()
    told = await ask_qwen(session, "qwen/status/session/context", {})
    if told is not None:
        return {**_head(session), **told, "sessionId": session.id}
    state = session.state.as_result()
    return {
        **_head(session),
        "recovery": {"kind": "clean", "canContinue": False},
        "state": {
            "models": {
                "currentModelId": session.state.model,
                "availableModels": session.state.offered_models,
            },
            **state,
        },
    }


async def context_usage(call: Call) -> Any:
    session = call.session()
    told = await ask_qwen(
        session, "qwen/status/session/context_usage", {"detail": call.flag("detail")}
    )
    if told is not None:
        return {**_head(session), **told, "sessionId": session.id}
    usage = session.state.usage or {}
    used, size = usage.get("used"), usage.get("size")
    free = max(0, size - used) if isinstance(used, int) and isinstance(size, int) else None
    text = "The agent has not told how much of its context is used."
    if isinstance(used, int):
        text = f"{used:,} tokens used" + (f" of {size:,}" if isinstance(size, int) else "")
    return {
        **_head(session),
        "usage": {
            "modelName": session.state.model,
            "totalTokens": used if isinstance(used, int) else 0,
            "contextWindowSize": size if isinstance(size, int) else 0,
            "breakdown": {"messages": used or 0, **({} if free is None else {"freeSpace": free})},
            "builtinTools": [],
            "mcpTools": [],
            "memoryFiles": [],
            "skills": [],
            "isEstimated": not isinstance(used, int),
            "showDetails": call.flag("detail"),
        },
        "formattedText": text,
    }


async def stats(call: Call) -> Any:
    session = call.session()
    told = await ask_qwen(session, "qwen/status/session/stats", {})
    if told is None:
        told = {
            "sessionStartTimeMs": int(session.created_at * 1000),
            "durationMs": max(0, int((time.time() - session.created_at) * 1000)),
            "promptCount": session.prompts,
            "models": _models(session),
            "sources": [],
            "tools": _tools(session),
            "files": {"totalLinesAdded": 0, "totalLinesRemoved": 0},
            "skills": {},
        }
    told |= {"sessionId": session.id, "usage": session.usage.all.as_json()}
    return Reply(body={**_head(session), **told}, headers=NO_STORE)


def _models(session: Session) -> dict[str, Any]:
    """The tokens that the agent told, all under the model of now: ACP names none with them."""
    used = session.usage.all
    if not used.total and not any(used.tokens.values()):
        return {}
    return {
        session.state.model or session.profile.name: {
            # Turns, not calls of the model: of those nobody tells.
            "api": {"totalRequests": used.turns, "totalErrors": 0, "totalLatencyMs": 0},
            "tokens": {
                "prompt": used.tokens["input"],
                "candidates": used.tokens["output"],
                "total": used.total,
                "cached": used.tokens["cached_read"],
                "thoughts": used.tokens["thought"],
            },
        }
    }


def _tools(session: Session) -> dict[str, Any]:
    """Counted from the conversation as it is kept."""
    told = updates(session.transcript.entries(), session.ring.records)
    calls = [each for _, each in told if each.get("sessionUpdate") == "tool_call"]
    states = [each.get("status") for each in calls]
    return {
        "totalCalls": len(calls),
        "totalSuccess": states.count("completed"),
        "totalFail": states.count("failed"),
        "totalDurationMs": 0,
        "byName": {},
    }


async def supported_commands(call: Call) -> Any:
    session = call.session()
    told = await ask_qwen(session, "qwen/status/session/supported_commands", {})
    if told is None:
        told = {
            "availableCommands": [
                {"input": None, "_meta": {}, **each}
                for each in session.state.commands
                if isinstance(each, dict)
            ],
            "availableSkills": session.state.skills,
            "workflowsEnabled": False,
            "workflowToolFeatures": {},
            "savedWorkflows": [],
        }
    return {"v": 1, **told, "sessionId": session.id}


async def tasks(call: Call) -> Any:
    session = call.session()
    told = await ask_qwen(
        session,
        "qwen/status/session/tasks",
        {"includeWorkflows": True} if call.flag("includeWorkflows") else {},
    )
    now = int(time.time() * 1000)
    return {"v": 1, "now": now, "tasks": [], **(told or {}), "sessionId": session.id}


async def task_cancel(call: Call) -> Any:
    session = call.session()
    kind = call.params.get("kind")
    if kind not in ("agent", "shell", "monitor", "workflow"):
        raise bad_request("`kind` must be agent, shell, monitor or workflow", field="kind")
    told = await ask_qwen(
        session,
        "qwen/control/session/task/cancel",
        {"taskId": call.text("taskId"), "taskKind": kind},
    )
    if told is None:
        return {"cancelled": False, "reason": "not_found"}
    return {key: told[key] for key in ("cancelled", "reason", "status") if key in told}


# ---- transcript ----------------------------------------------------------------------------------


async def transcript(call: Call) -> Any:
    """The conversation so far, in pages: every member of ``events`` is the ACP update itself."""
    session = call.session()
    limit = _limit(call.params.get("limit"), MAX_EVENTS)
    told = updates(session.transcript.entries(), session.ring.records)
    after = _after(call.text("cursor"), session.epoch)
    rest = [each for each in told if each[0] > after]
    page = rest[:limit]
    body: dict[str, Any] = {
        **_head(session),
        "events": [{"v": 1, "type": "session_update", "data": update} for _, update in page],
        "hasMore": len(rest) > len(page),
        "startTime": iso(session.created_at),
        "lastUpdated": iso(session.updated_at),
    }
    if len(rest) > len(page):
        text = f"{session.epoch}:{page[-1][0]}"
        body["nextCursor"] = to_cursor(text)
    if session.transcript.truncated:
        body["partial"] = True
    return body


def _limit(value: Any, most: int) -> int:
    if value is None or value == "":
        return most
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if not 1 <= number <= most or isinstance(value, bool):
        raise GatewayError(
            ErrorKind.INVALID_LIMIT, f"`limit` must be a number from 1 to {most}", field="limit"
        )
    return number


def _after(cursor: str | None, epoch: str) -> int:
    if not cursor:
        return 0
    try:
        of, _, number = from_cursor(cursor).rpartition(":")
        if of == epoch:
            return int(number)
    except ValueError:
        pass
    raise bad_cursor("begin again without one: it belongs to another life of the session")
