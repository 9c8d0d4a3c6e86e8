"""What a qwen child tells of a session beside ACP, as events of the daemon.

Source: the child's ``qwen/notify/session/*`` notifications. What the gateway is changing itself at
that moment it tells itself, with the name of the client that asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from acp_gateway.runtime.session import Session

PREFIX: Final = "qwen/notify/session/"


def publish(session: Session, kind: str, params: dict[str, Any]) -> None:
    """``kind``: the method without `PREFIX`. Unknown ones are nothing that clients know."""
    if kind == "model-update":
        _model(session, params.get("currentModelId"))
    elif kind == "mode-update":
        _mode(session, params.get("currentModeId"), told=params.get("legacyFrameSent") is True)
    elif kind == "title-update":
        _title(session, params.get("title"), params.get("titleSource"))
    elif kind == "prompt-suggestion":
        suggestion, prompt_id = params.get("suggestion"), params.get("promptId")
        if isinstance(suggestion, str) and suggestion and isinstance(prompt_id, str):
            session.publish("followup_suggestion", suggestion=suggestion, promptId=prompt_id)
            session.wake()


def _model(session: Session, model: Any) -> None:
    if not isinstance(model, str) or session.switching or model == session.state.model:
        return
    session.state.set_model(model)
    session.publish("model_switched", modelId=model)
    session.wake()


def _mode(session: Session, mode: Any, *, told: bool) -> None:
    previous = session.state.mode
    if not isinstance(mode, str) or session.switching or mode == previous:
        return
    if told:
        session.state.set_mode(mode)
    else:
        session.publish_update({"sessionUpdate": "current_mode_update", "currentModeId": mode})
    session.publish(
        "approval_mode_changed", previous=previous or "default", next=mode, persisted=False
    )
    session.wake()


def _title(session: Session, title: Any, source: Any) -> None:
    if not isinstance(title, str) or not title or title == session.title:
        return
    session.state.title, session.display_name = title, None
    session.title_source = source if source in ("auto", "manual") else "auto"
    session.publish("session_metadata_updated", displayName=title, titleSource=session.title_source)
    session.wake()
