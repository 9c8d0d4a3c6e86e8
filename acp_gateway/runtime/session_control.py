"""What clients change in a session besides prompting: mode, model, title, history.

Qwen's extension methods are used where the agent has them, standard ACP else; where neither does
it, the typed error ``unsupported_by_agent``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import structlog

from acp_gateway.core.identity import CHANGES_MODE, Identity, Scope
from acp_gateway.core.mediator import Policy, Question, Rule
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.session import Session

if TYPE_CHECKING:
    from acp_gateway.runtime.sessions import SessionManager

log = structlog.get_logger("acp_gateway.session_control")

APPROVAL_MODES: Final = ("plan", "default", "auto-edit", "auto", "yolo")
_SAME: Final = {
    "plan": ("plan", "chat", "architect", "read-only"),
    "default": ("default", "ask", "approve", "auto-review"),
    "auto-edit": ("auto-edit", "acceptEdits", "autoEdit", "auto_edit", "smart_approve", "code"),
    "auto": ("auto", "smart_approve", "acceptEdits"),
    "yolo": ("yolo", "bypassPermissions", "full-access", "auto", "dontAsk"),
}
"""What other agents call the daemon's five approval modes; the first that an agent has is taken."""


def check_mode_word(mode: Any) -> str:
    """One of the daemon's five words, before any agent is asked."""
    if isinstance(mode, str) and mode in APPROVAL_MODES:
        return mode
    raise _bad_mode(mode, list(APPROVAL_MODES))


def _bad_mode(mode: Any, allowed: list[str]) -> GatewayError:
    return GatewayError(
        ErrorKind.INVALID_APPROVAL_MODE,
        f"`mode` must be one of {', '.join(allowed)}",
        allowed=allowed,
    )


def modes_of(session: Session) -> list[str]:
    """Ids of the modes that the agent offers."""
    modes = (session.state.modes or {}).get("availableModes")
    return [
        each["id"]
        for each in (modes if isinstance(modes, list) else ())
        if isinstance(each, dict) and isinstance(each.get("id"), str)
    ]


def resolve_mode(session: Session, mode: Any) -> str:
    """The agent's id for a mode: its own, or its word for one of the five.

    Raises ``invalid_approval_mode``, or ``unsupported_by_agent`` where there are no modes.
    """
    offered = modes_of(session)
    if not offered:
        if mode not in APPROVAL_MODES:
            raise _bad_mode(mode, list(APPROVAL_MODES))
        raise GatewayError(
            ErrorKind.UNSUPPORTED_BY_AGENT,
            f"The agent {session.profile.name} has no modes",
            agent=session.profile.name,
        )
    if mode in offered:
        return str(mode)
    for word in _SAME.get(mode, ()) if isinstance(mode, str) else ():
        if word in offered:
            return word
    raise _bad_mode(mode, list(dict.fromkeys([*offered, *APPROVAL_MODES])))


async def set_mode(
    session: Session,
    mode: Any,
    client: str | None,
    *,
    given: dict[str, Any] | None = None,
    placed: Callable[[int], None] = lambda _: None,
) -> tuple[str, str | None]:
    """Change the mode for everybody; (the agent's mode id, the one before).

    ``given``: further members of the request to the agent; ``placed``: see `Session.request`.
    """
    wanted = mode if given is not None else resolve_mode(session, mode)
    previous = session.state.mode
    params = {**(given or {}), "sessionId": session.id, "modeId": wanted}
    with _switching(session):
        await session.request("session/set_mode", params, placed)
    mode_changed(session, previous, wanted, client)
    return wanted, previous


@contextmanager
def _switching(session: Session) -> Iterator[None]:
    session.switching += 1
    try:
        yield
    finally:
        session.switching -= 1


def mode_changed(
    session: Session,
    previous: str | None,
    mode: str,
    client: str | None,
    *,
    persisted: bool = False,
) -> None:
    """Tell everybody, once, whatever the agent itself has told."""
    if session.state.mode != mode:
        session.publish_update(
            {"sessionUpdate": "current_mode_update", "currentModeId": mode}, client
        )
    if previous != mode:
        session.publish(
            "approval_mode_changed",
            client=client,
            previous=previous or "default",
            next=mode,
            persisted=persisted,
        )
        session.wake()


async def set_model(
    session: Session,
    model: str,
    client: str | None,
    *,
    given: dict[str, Any] | None = None,
    placed: Callable[[int], None] = lambda _: None,
) -> Any:
    """Change the model for everybody; the agent's own answer.

    ``given``: further members of the request to the agent; ``placed``: see `Session.request`.
    """
    params = {**(given or {}), "sessionId": session.id, "modelId": model}
    try:
        with _switching(session):
            result = await session.request("session/set_model", params, placed)
    except GatewayError as exc:
        option = session.state.option("model")
        if exc.kind is not ErrorKind.UNSUPPORTED_BY_AGENT or option is None:
            _model_failed(session, model, client, exc)
            raise
        # The agent has its models as a configuration option.
        result = await _set_option(session, str(option.get("id")), model, client)
    session.state.set_model(model)
    session.publish("model_switched", client=client, modelId=model)
    session.wake()
    return result


async def _set_option(session: Session, option: str, value: str, client: str | None) -> Any:
    try:
        result = await session.request(
            "session/set_config_option",
            {"sessionId": session.id, "configId": option, "value": value},
        )
    except GatewayError as exc:
        _model_failed(session, value, client, exc)
        raise
    options = result.get("configOptions") if isinstance(result, dict) else None
    if isinstance(options, list):
        session.publish_update(
            {"sessionUpdate": "config_option_update", "configOptions": options}, client
        )
    return {}


async def apply_wishes(
    session: Session, mode: Any, model: Any, client: str | None
) -> dict[str, bool]:
    """Mode and model that a new session is to begin with; what could not be had is told."""
    missed = {}
    if mode is not None:
        try:
            await set_mode(session, check_mode_word(mode), client)
        except GatewayError:
            missed["approvalModeApplied"] = False
    if isinstance(model, str) and model:
        try:
            await set_model(session, model, client)
        except GatewayError:
            missed["modelApplied"] = False
    return missed


def _model_failed(session: Session, model: str, client: str | None, exc: GatewayError) -> None:
    session.publish("model_switch_failed", client=client, requestedModelId=model, error=exc.message)
    session.wake()


def read_rule(params: Mapping[str, Any], standard: Rule, identity: Identity) -> Rule | None:
    """The permission policy that a client asks for its new session; None: the daemon's.

    Only an admin may be content with less than ``standard``, the daemon's: else whoever creates a
    session could make himself the one who decides.
    """
    name, quorum = params.get("permissionPolicy"), params.get("consensusQuorum")
    if name is None and quorum is None:
        return None
    names = [each.value for each in Policy]
    if name is not None and name not in names:
        raise GatewayError(
            ErrorKind.INVALID_PERMISSION_POLICY,
            f"`permissionPolicy` must be one of {', '.join(names)}",
            allowed=names,
        )
    if quorum is not None and (
        isinstance(quorum, bool) or not isinstance(quorum, int) or quorum < 1
    ):
        raise GatewayError(
            ErrorKind.INVALID_PERMISSION_POLICY, "`consensusQuorum` must be a positive integer"
        )
    policy = standard.policy if name is None else Policy(name)
    rule = Rule(policy=policy, quorum=quorum if quorum is not None else standard.quorum)
    if not rule.at_least(standard):
        identity.demand(Scope.ADMIN)
    return rule


def check_wished_mode(mode: Any, identity: Identity) -> None:
    """May a new session begin in ``mode``? As much is asked for as to change it later."""
    if mode is not None:
        identity.demand(CHANGES_MODE)


# ---- title ---------------------------------------------------------------------------------------


def clean_name(value: Any, limit: int) -> str | None:
    """A name for people: no control characters, cut to ``limit``; None when nothing is left."""
    if not isinstance(value, str):
        return None
    text = "".join(char for char in value if not has_controls(char)).strip()[:limit]
    return text or None


def has_controls(text: str) -> bool:
    """Line ends, escapes and the like, or half a character; joiners of emoji are none."""
    return any(unicodedata.category(char) in ("Cc", "Cs") for char in text)


async def tell_title(session: Session, title: str) -> None:
    """Let the agent keep the title, where it can; the gateway has it in any case."""
    if not session.profile.quirks.private_meta:
        return
    params = {"displayName": title[:200], "titleSource": "manual"}
    await ask_qwen(session, "qwen/control/session/title", params)


# ---- Qwen's extension methods --------------------------------------------------------------------


async def ask_qwen(session: Session, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """The answer of an agent that has Qwen's methods; None: it has not, ask elsewhere."""
    if not session.profile.quirks.private_meta:
        return None
    try:
        result = await session.request(method, {**params, "sessionId": session.id})
    except GatewayError as exc:
        if exc.kind is ErrorKind.UNSUPPORTED_BY_AGENT:
            return None
        raise
    return result if isinstance(result, dict) else {}


def no_fallback(session: Session, what: str) -> GatewayError:
    return GatewayError(
        ErrorKind.UNSUPPORTED_BY_AGENT,
        f"The agent {session.profile.name} cannot {what}",
        agent=session.profile.name,
    )


async def branch(
    manager: SessionManager, source: Session, name: str | None, at: str | None
) -> tuple[Session, str | None]:
    """A new session with the history of ``source``; and what the agent calls it."""
    params: dict[str, Any] = {"cwd": str(source.cwd)}
    if name is not None:
        params["name"] = name
    if at is not None:
        params["atRecordId"] = at
    told = await ask_qwen(source, "qwen/control/session/branch", params)
    asked = {"sessionId": source.id, "cwd": str(source.cwd), "mcpServers": []}
    if told is None:
        return await manager.fork(asked, source.profile), None
    new_id = told.get("newSessionId")
    if not isinstance(new_id, str):
        raise GatewayError(
            ErrorKind.AGENT_ERROR, "The agent's answer to branch has no newSessionId"
        )
    session = await manager.open("load", {**asked, "sessionId": new_id}, source.profile)
    display = told.get("displayName")
    return session, display if isinstance(display, str) else None


async def rewind(
    session: Session, prompt_id: str, files: bool, client: str | None
) -> dict[str, Any]:
    """Take the session back to where ``prompt_id`` (the agent's word) was sent."""
    params: dict[str, Any] = {"promptId": prompt_id, "rewindFiles": files}
    try:
        told = await ask_qwen(session, "qwen/control/session/rewind", params)
    except GatewayError as exc:
        if "invalid_rewind_target" in str(getattr(exc, "error", "")):
            raise GatewayError(
                ErrorKind.INVALID_REWIND_TARGET,
                f'There is no turn "{prompt_id}" to rewind to',
                remedy="use a promptId of GET …/rewind/snapshots",
                sessionId=session.id,
            ) from None
        raise
    if told is None:
        raise no_fallback(session, "rewind a session")
    if told.get("success") is False:
        raise GatewayError(
            ErrorKind.INVALID_REWIND_TARGET,
            f'There is no turn "{prompt_id}" to rewind to',
            sessionId=session.id,
        )
    result: dict[str, Any] = {
        "targetTurnIndex": told.get("targetTurnIndex"),
        "filesChanged": told.get("filesChanged") or [],
        "filesFailed": told.get("filesFailed") or [],
    }
    session.publish("session_rewound", client=client, promptId=prompt_id, **result)
    session.wake()
    return {"rewound": True, **result}


def is_user_question(question: Question) -> bool:
    """A question for words (Qwen), not for leave to use a tool."""
    meta = question.params["toolCall"].get("_meta")
    return isinstance(meta, dict) and meta.get("qwenInteractionKind") == "user_question"
