"""Operations on the life of a session: create, attach, load, branch, leave, close, delete."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import trio

from acp_gateway.core.identity import Scope
from acp_gateway.core.replay import replay
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime import session_control
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.session import How, Session
from acp_gateway.runtime.session_catalog import iso
from acp_gateway.runtime.sessions import checked_session_id
from acp_gateway.transports.operations.call import Call, bad_request

MAX_DELETED: Final = 100
MAX_NAME: Final = 256


# ---- create and attach ---------------------------------------------------------------------------


def profile_of(call: Call) -> AgentProfile:
    """The agent that the body names; the daemon's first one when it names none."""
    name = call.params.get("agent")
    if name is None:
        return call.caller.profile or call.hub.default_profile
    profile = call.manager.profiles.get(name) if isinstance(name, str) else None
    if profile is None:
        known = ", ".join(call.manager.profiles)
        raise bad_request(f"There is no agent {name!r} here", remedy=f"use one of {known}")
    return profile


async def create(call: Call) -> Any:
    params, manager = call.params, call.manager
    cwd = _cwd(call)
    scope = params.get("sessionScope")
    if scope not in (None, "single", "thread"):
        raise GatewayError(
            ErrorKind.INVALID_SESSION_SCOPE,
            "`sessionScope` must be single or thread",
            allowed=["single", "thread"],
        )
    wanted = params.get("sessionId")
    wanted = None if wanted is None else checked_session_id(wanted)
    labels = _labels(params)
    mode = params.get("approvalMode")
    if mode is not None:
        session_control.check_mode_word(mode)
        session_control.check_wished_mode(mode, call.caller.identity)
    asked: dict[str, Any] = {"cwd": cwd, "mcpServers": params.get("mcpServers") or []}
    session, attached = await manager.create_or_attach(
        asked,
        profile_of(call),
        shared=scope != "thread" and wanted is None,
        session_id=wanted,
        rule=session_control.read_rule(params, manager.desk.rule, call.caller.identity),
    )
    if session.halted:
        await session.agent()  # its agent had died: an attach brings it back
    client_id = _join(call, session)
    body = _opened(session, client_id, attached)
    if attached:
        return body
    session.labels = labels
    try:
        model = params.get("modelServiceId")
        missed = await session_control.apply_wishes(session, mode, model, client_id)
        return body | labels | missed
    except trio.Cancelled:
        # The caller has hung up before it knew of the session.
        session.parties.leave(client_id)
        if not session.parties and session.idle:
            session.begin_close("last_client_detached")
        raise


def _join(call: Call, session: Session) -> str:
    """The caller's id in the session, which is used from now on."""
    session.touch()
    caller = call.caller
    return session.parties.join(caller.client_id, caller.binding, caller.identity)


def _cwd(call: Call) -> str:
    cwd = call.params.get("cwd")
    if cwd is None:
        cwd = call.params.get("workspaceCwd")
    if cwd is None:
        return str(call.manager.workspace.roots[0])
    if not isinstance(cwd, str) or not cwd.startswith("/") or len(cwd) > 4096:
        raise bad_request(
            "`cwd` must be an absolute path", remedy="send a path that begins with /", field="cwd"
        )
    return cwd


def _labels(params: Mapping[str, Any]) -> dict[str, str]:
    labels = {}
    for name in ("sourceType", "sourceId"):
        value = params.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or not 0 < len(value) <= 256 or not value.isprintable():
            raise bad_request(f"`{name}` must be a text of 1 to 256 characters", field=name)
        labels[name] = value
    return labels


def _opened(session: Session, client_id: str, attached: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "sessionId": session.id,
        "workspaceCwd": str(session.cwd),
        "attached": attached,
        "clientId": client_id,
        "createdAt": iso(session.created_at),
        "agent": session.profile.name,
    }
    if attached:
        body["hasActivePrompt"] = session.queue.running is not None
    return body | session.labels


async def load(call: Call) -> Any:
    session, body = await _restored(call, "load")
    boundary = session.ring.last_id
    if session.queue.running is not None:
        boundary = session.queue.running.first_event
    finished, unfinished = replay(
        session.transcript.entries(),
        session.ring.records,
        boundary,
        frozenset(each.request_id for each in session.questions),
    )
    body |= {
        "compactedReplay": finished,
        "liveJournal": unfinished,
        "promptTerminals": list(session.terminals),
    }
    if session.transcript.truncated:
        body["historyHasMore"] = True
        body["replayDegraded"] = True
    return body


async def resume(call: Call) -> Any:
    _, body = await _restored(call, "resume")
    return body


async def _restored(call: Call, how: How) -> tuple[Session, dict[str, Any]]:
    for name in ("liveReplayMode", "compactedReplayMode"):
        if call.params.get(name) not in (None, "full", "summary"):
            raise bad_request(f"`{name}` must be full or summary", field=name)
    session_id = call.text("sessionId") or ""
    manager = call.manager
    live = manager.sessions.get(session_id)
    attached = live is not None and live.over is None and live.has_agent
    asked = {"sessionId": session_id, "cwd": _cwd(call), "mcpServers": []}
    profile = profile_of(call)
    placed = call.params.get("cwd") is not None
    if live is not None:
        asked["cwd"] = asked["cwd"] if placed else str(live.cwd)
    elif not placed or (len(manager.profiles) > 1 and call.params.get("agent") is None):
        # A stored session knows its own agent and directory.
        profile, known = await _locate(call, session_id)
        asked["cwd"] = asked["cwd"] if placed else known or asked["cwd"]
    try:
        session = await manager.open(how, asked, profile)
    except GatewayError as exc:
        if exc.kind is ErrorKind.UNSUPPORTED_BY_AGENT and live is None:
            raise manager.not_found(session_id) from exc
        raise
    if session.halted:
        await session.agent()  # its agent had died: a load brings it back
    client_id = _join(call, session)
    body = _opened(session, client_id, attached)
    body |= {
        "hasActivePrompt": session.queue.running is not None,
        "state": {} if attached else session.state.as_result(),
        "hasRunningBackgroundTasks": False,
        "lastEventId": session.ring.last_id,
        "eventEpoch": session.epoch,
    }
    if session.display_name is not None:
        body["displayName"] = session.display_name
    return session, body


async def _locate(call: Call, session_id: str) -> tuple[AgentProfile, str | None]:
    """Where a session is stored: with the agent that the body names, else with any."""
    named = call.params.get("agent") is not None
    others = () if named else tuple(call.manager.profiles.values())
    return await call.manager.catalog.locate(session_id, profile_of(call), others)


async def branch(call: Call) -> Any:
    source = call.session()
    if source.queue.running is not None or source.queue.waiting:
        raise GatewayError(
            ErrorKind.BRANCH_WHILE_PROMPT_ACTIVE,
            "The session is working on a prompt",
            remedy="branch when it has ended, or cancel it",
            sessionId=source.id,
        )
    name = session_control.clean_name(call.params.get("name"), 200)
    session, told = await session_control.branch(
        call.manager, source, name, call.text("atRecordId")
    )
    client_id = session.parties.join(None, call.caller.binding, call.caller.identity)
    finished, journal = replay(
        session.transcript.entries(),
        session.ring.records,
        0,
        frozenset(),
    )
    source_name = source.title or source.id[:8]
    display = told or name or f"{source_name} (branch)"
    session.rename(display, source="manual")
    source.publish(
        "session_branched",
        client=call.caller.client_id,
        sourceSessionId=source.id,
        newSessionId=session.id,
        displayName=display,
    )
    source.wake()
    return _opened(session, client_id, False) | {
        "state": session.state.as_result(),
        "hasActivePrompt": False,
        "hasRunningBackgroundTasks": False,
        "compactedReplay": [],
        "liveJournal": [*finished, *journal],
        "promptTerminals": [],
        "lastEventId": session.ring.last_id,
        "eventEpoch": session.epoch,
        "displayName": display,
        "forkedFrom": {"sessionId": source.id, "displayName": source_name},
    }


async def rewind_snapshots(call: Call) -> Any:
    session = call.session()
    told = await session_control.ask_qwen(session, "qwen/status/session/rewind_snapshots", {})
    snapshots = None if told is None else told.get("snapshots")
    return {"snapshots": snapshots if isinstance(snapshots, list) else []}


async def rewind(call: Call) -> Any:
    session = call.session(anybody=True)
    target = call.params.get("promptId")
    if not isinstance(target, str) or not target:
        raise GatewayError(ErrorKind.MISSING_PROMPT_ID, "`promptId` is missing")
    if len(session.queue):
        raise GatewayError(
            ErrorKind.SESSION_BUSY,
            "The session is working on a prompt",
            remedy="rewind when it has ended, or cancel it",
            sessionId=session.id,
        )
    return await session_control.rewind(
        session, target, call.params.get("rewindFiles") is True, call.caller.client_id
    )


# ---- leaving -------------------------------------------------------------------------------------


async def detach(call: Call) -> Any:
    manager = call.manager
    session = manager.get(call.text("sessionId") or "")
    caller = call.caller
    party = session.parties.find(caller.client_id, caller.binding, caller.identity)
    if party is None or not session.parties.has(party.client_id):
        return  # gone already, or anonymous: leaving twice is no error
    if caller.leave is not None:
        caller.leave(session.id)
    else:
        session.parties.leave(party.client_id)
    if not session.parties.has(party.client_id):
        session.desk.leave(session.id, party.client_id)
        last = not session.parties and session.idle
        if last and caller.identity.may(Scope.PROMPT):
            session.begin_close("last_client_detached", client=party.client_id)
    session.touch()


async def close(call: Call) -> Any:
    session = call.session()
    await session.close("client_close", client=call.caller.client_id)


async def delete_many(call: Call) -> Any:
    ids = call.params.get("sessionIds")
    if (
        not isinstance(ids, list)
        or not 1 <= len(ids) <= MAX_DELETED
        or not all(isinstance(each, str) and each for each in ids)
    ):
        raise bad_request(f"`sessionIds` must be a list of 1 to {MAX_DELETED} session ids")
    removed: list[str] = []
    missing: list[str] = []
    errors: list[dict[str, str]] = []
    standard = profile_of(call)
    for session_id in dict.fromkeys(ids):
        profile = standard
        if session_id not in call.manager.sessions:
            profile, stored = await _locate(call, session_id)
            if stored is None:
                missing.append(session_id)
                continue
        try:
            await call.manager.delete(session_id, {"sessionId": session_id}, profile)
            removed.append(session_id)
        except GatewayError as exc:
            errors.append({"sessionId": session_id, "error": exc.message, "code": exc.kind.word})
    return {"removed": removed, "notFound": missing, "errors": errors}


async def metadata(call: Call) -> Any:
    session = call.session()
    params = call.params
    nested = params.get("metadata")
    if isinstance(nested, dict) and "displayName" not in params:
        params = nested  # the shape of the JSON-RPC twin
    if "displayName" in params:
        value = params["displayName"]
        name = session_control.clean_name(value, MAX_NAME)
        if name is None or session_control.has_controls(value[:MAX_NAME]):
            raise GatewayError(
                ErrorKind.INVALID_METADATA,
                "`displayName` must be a text without control characters",
                field="displayName",
            )
        await session_control.tell_title(session, name)
        session.rename(name, source="manual", client=call.caller.client_id)
    body: dict[str, Any] = {"sessionId": session.id}
    if session.title is not None:
        body["displayName"] = session.title
    return body


async def heartbeat(call: Call) -> Any:
    session = call.session()
    session.touch()
    body: dict[str, Any] = {"sessionId": session.id}
    if call.caller.client_id is not None:
        body["clientId"] = call.caller.client_id
    body["lastSeenAt"] = int(time.time() * 1000)
    return body
