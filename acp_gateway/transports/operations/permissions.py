"""Votes on permission requests over HTTP, and the audit of what was asked and answered.

Order of the checks: the shape of the vote, the client id's syntax, the session, the request, the
client's registration, then the mediator.
"""

from __future__ import annotations

from typing import Any

from acp_gateway.core.mediator import Decision, Verdict
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.transports.operations.call import Call


async def vote(call: Call) -> Any:
    """In the URL of its session."""
    body = dict(call.params)
    _check_outcome(body)
    _ = call.caller.client_id  # its syntax comes before the session
    session = call.manager.get(call.text("sessionId") or "")
    return _vote(call, session.id, body)


async def vote_anywhere(call: Call) -> Any:
    """In the older URL, which does not name the session."""
    body = dict(call.params)
    _check_outcome(body)
    return _vote(call, None, body)


def _check_outcome(body: dict[str, Any]) -> None:
    outcome = body.get("outcome")
    if isinstance(outcome, dict):
        kind, option = outcome.get("outcome"), outcome.get("optionId")
        if kind == "cancelled" or (kind == "selected" and isinstance(option, str) and option):
            return
    raise GatewayError(
        ErrorKind.INVALID_OUTCOME,
        '`outcome` must be {"outcome":"selected","optionId":"…"} or {"outcome":"cancelled"}',
    )


def _vote(call: Call, named: str | None, body: dict[str, Any]) -> dict[str, Any]:
    manager, caller = call.manager, call.caller
    request_id = call.text("requestId") or ""
    known = manager.desk.session_of(request_id)
    if known is None or (named is not None and known != named):
        raise _not_found(request_id, named)
    session = manager.sessions.get(known)
    if session is not None:
        call.check_client(session)
    members = {key: body[key] for key in _PASSED_ON if key in body}
    decision = manager.desk.vote(named, request_id, members, caller.voter)
    if decision.verdict in (Verdict.RESOLVED, Verdict.RECORDED, Verdict.REPEATED):
        return {}
    raise _refusal(decision, request_id, known, named, body)


_PASSED_ON = ("outcome", "answers", "expectedPlanExecutionMode", "_meta")


def _not_found(request_id: str, session_id: str | None) -> GatewayError:
    if session_id is None:
        return GatewayError(
            ErrorKind.PERMISSION_NOT_FOUND, "No pending permission request", requestId=request_id
        )
    return GatewayError(
        ErrorKind.PERMISSION_NOT_FOUND,
        "No pending permission request for session",
        sessionId=session_id,
        requestId=request_id,
    )


def _refusal(
    decision: Decision, request_id: str, session_id: str, named: str | None, body: dict[str, Any]
) -> GatewayError:
    verdict = decision.verdict
    if verdict is Verdict.ALREADY_RESOLVED:
        error = _not_found(request_id, named)
        return GatewayError(
            ErrorKind.PERMISSION_ALREADY_RESOLVED,
            error.message,
            remedy="it has been answered; the outcome tells how",
            **{**error.data, "outcome": decision.outcome},
        )
    if verdict in (Verdict.INVALID_OPTION, Verdict.SENTINEL):
        option = body["outcome"].get("optionId")
        return GatewayError(
            ErrorKind.INVALID_OPTION_ID,
            f'Permission {request_id}: optionId "{option}" is not in the set of options the agent '
            "offered",
            remedy="vote for one of the options of the request",
            requestId=request_id,
            optionId=option,
        )
    if verdict is Verdict.FORBIDDEN:
        return GatewayError(
            ErrorKind.PERMISSION_FORBIDDEN,
            f"This client may not answer the permission request ({decision.reason})",
            remedy="let a client answer that the session's permission policy admits",
            requestId=request_id,
            sessionId=session_id,
            reason=decision.reason,
        )
    if verdict is Verdict.INVALID_OUTCOME:
        return GatewayError(ErrorKind.INVALID_OUTCOME, "`outcome` is not valid")
    return _not_found(request_id, named)


async def audit(call: Call) -> Any:
    limit = call.params.get("limit")
    count = None
    if limit is not None and limit != "":
        text = str(limit)
        if isinstance(limit, bool) or not (text.isascii() and text.isdigit() and len(text) < 10):
            raise GatewayError(
                ErrorKind.INVALID_LIMIT, "`limit` must be a non-negative integer", field="limit"
            )
        count = int(text)
    entries = call.manager.desk.audit.query(session_id=call.text("sessionId"), limit=count)
    return {"v": 1, "entries": list(entries)}
