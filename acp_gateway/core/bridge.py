"""What `connect` has to remember so that its editor never notices a lost connection.

Pure: messages in, messages out. Rules:

1. The editor sees one connection for ever. Ids of the gateway's requests are replaced by ours,
   because they start anew on every connection.
2. The bridge counts its place in each session by the gateway's cursor notifications and loads the
   session again from there: no history twice, no gap.
3. A request of the editor that was under way is sent again. Prompts and new sessions carry a key,
   by which the gateway finds what it has begun already. When the gateway itself was started anew it
   cannot know the key, and a prompt that had been sent is answered with an error, not run twice.
4. A question of the gateway that the editor still shows is the same question after a reconnect: it
   is not asked twice, and an answer given meanwhile is delivered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from acp_gateway.protocol.errors import ErrorKind, GatewayError

OWN: Final = "acp_gateway"
_OPENING: Final = frozenset({"session/new", "session/load", "session/resume", "session/fork"})
_ENDING: Final = frozenset({"session/close", "session/delete"})
_PLACE: Final = ("cwd", "mcpServers", "additionalDirectories")

Message = dict[str, Any]


@attrs.define
class _Followed:
    """A session that the editor has open."""

    params: dict[str, Any]
    """What loads it again: cwd, MCP servers, directories."""
    epoch: str | None = None
    cursor: int = 0
    muted: bool = False
    """The gateway replays history that the editor has; drop it until the answer."""


@attrs.define
class _Asked:
    """A request of the gateway that the editor has not answered."""

    gateway_id: Any
    session_id: str | None
    request_id: str | None
    """The question's lasting name; None for requests that die with their connection."""
    answer: Message | None = None
    """What the editor said; the gateway may not have got it."""


@attrs.define
class Output:
    """What to do next, in this order."""

    to_editor: list[Message] = attrs.field(factory=list)
    to_gateway: list[Message] = attrs.field(factory=list)


class Bridge:
    """``new_key`` makes keys that nobody else makes."""

    def __init__(self, new_key: Callable[[], str]) -> None:
        self._new_key = new_key
        self._initialize: Message | None = None
        self._initialized = False
        self._online = False
        """Connected and all sessions are back; the editor's messages pass."""
        self._sessions: dict[str, _Followed] = {}
        self._in_flight: dict[Any, Message] = {}
        self._sent: set[Any] = set()
        """Ids of in-flight requests that went out on some connection."""
        self._held: list[Message] = []
        """Notifications of the editor that wait for the gateway."""
        self._cancelled: set[str] = set()
        """Sessions whose running prompts the editor took back: said again after a loss."""
        self._asked: dict[int, _Asked] = {}
        self._next_id = 0
        self._own: dict[str, tuple[str, str | None]] = {}
        """Our own requests: id -> (method, session id)."""

    # ---- the editor -----------------------------------------------------------------------------

    def from_editor(self, message: Message) -> Output:
        """A message of the editor. What cannot go out now goes out after the reconnect."""
        method = message.get("method")
        out = Output()
        if method is None:
            self._editor_answered(message, out)
        elif "id" in message:
            message = self._keyed(message)
            if method == "initialize":
                self._initialize = message
            self._in_flight[_key(message["id"])] = message
            if self._online or (method == "initialize" and self._can_greet):
                self._send(message, out)
        else:
            if method == "session/cancel":
                self._cancelled.add(str((message.get("params") or {}).get("sessionId")))
            if self._online:
                out.to_gateway.append(message)
            else:
                self._held.append(message)
        return out

    @property
    def _can_greet(self) -> bool:
        return not self._initialized and self._connected

    _connected = False

    def _keyed(self, message: Message) -> Message:
        method = message["method"]
        if method == "initialize":
            return _with_own(message, {"cursor": True})
        if method == "session/prompt":
            return _with_own(message, {"promptKey": self._new_key()})
        if method == "session/new":
            return _with_own(message, {"requestKey": self._new_key()})
        return message

    def _send(self, message: Message, out: Output) -> None:
        self._sent.add(_key(message["id"]))
        out.to_gateway.append(message)

    def _editor_answered(self, message: Message, out: Output) -> None:
        id = message.get("id")
        asked = self._asked.get(id) if isinstance(id, int) else None
        if asked is None or asked.answer is not None:
            return
        # Kept until the gateway says that the question is over: what was written to a connection
        # may be lost with it.
        asked.answer = message
        if self._online and asked.gateway_id is not None:
            out.to_gateway.append({**message, "id": asked.gateway_id})
        if asked.request_id is None:
            del self._asked[id]  # type: ignore[arg-type]

    # ---- the gateway ----------------------------------------------------------------------------

    def wants_update(self, session_id: str) -> bool:
        """May a ``session/update`` of this session pass unread?"""
        followed = self._sessions.get(session_id)
        return followed is None or not followed.muted

    def from_gateway(self, message: Message) -> Output:
        """Any other message of the gateway."""
        method = message.get("method")
        params = message.get("params")
        params = params if isinstance(params, dict) else {}
        out = Output()
        if method is None:
            self._gateway_answered(message, out)
        elif "id" in message:
            self._gateway_asked(message, params, out)
        elif method == "_acp_gateway/cursor":
            followed = self._sessions.get(str(params.get("sessionId")))
            if followed is not None and isinstance(params.get("lastEventId"), int):
                followed.cursor = params["lastEventId"]
        elif method == "$/cancel_request":
            for id, asked in tuple(self._asked.items()):
                if asked.gateway_id == params.get("requestId"):
                    del self._asked[id]
                    if asked.answer is None:
                        out.to_editor.append(_cancel(id))
        else:
            self._note(method, params)
            out.to_editor.append(message)
        return out

    def _note(self, method: str, params: dict[str, Any]) -> None:
        data = params.get("data")
        if method != "_qwen/notify" or not isinstance(data, dict):
            return
        if params.get("kind") == "permission_resolved":
            for id, asked in tuple(self._asked.items()):
                if asked.answer is not None and asked.request_id == data.get("requestId"):
                    del self._asked[id]
        if params.get("kind") != "state_resync_required":
            return
        session_id = data.get("sessionId")
        followed = self._sessions.get(str(session_id))
        if followed is not None and any(sid == session_id for _, sid in self._own.values()):
            followed.muted = True

    def _gateway_asked(self, message: Message, params: dict[str, Any], out: Output) -> None:
        meta = params.get("_meta")
        qwen = meta.get("qwen") if isinstance(meta, dict) else None
        request_id = qwen.get("requestId") if isinstance(qwen, dict) else None
        if isinstance(request_id, str):
            for asked in self._asked.values():
                if asked.request_id == request_id:
                    asked.gateway_id = message["id"]
                    if asked.answer is not None:
                        out.to_gateway.append({**asked.answer, "id": message["id"]})
                    return
        self._next_id += 1
        self._asked[self._next_id] = _Asked(
            message["id"],
            params.get("sessionId"),
            request_id if isinstance(request_id, str) else None,
        )
        out.to_editor.append({**message, "id": self._next_id})

    def _gateway_answered(self, message: Message, out: Output) -> None:
        id = message.get("id")
        own = self._own.pop(id, None) if isinstance(id, str) else None
        if own is not None:
            self._own_answered(own, message, out)
            return
        request = self._in_flight.pop(_key(id), None)
        if request is None:
            return
        self._sent.discard(_key(id))
        if request["method"] == "session/prompt":
            self._cancelled.discard(str((request.get("params") or {}).get("sessionId")))
        if "error" not in message:
            self._learn(request, message.get("result"))
        if request["method"] == "initialize":
            self._initialized = "error" not in message
            self._online = self._initialized
        out.to_editor.append(message)
        if request["method"] == "initialize" and self._online:
            self._flush(out)

    def _learn(self, request: Message, result: Any) -> None:
        params = request.get("params") or {}
        result = result if isinstance(result, dict) else {}
        session_id = result.get("sessionId") or params.get("sessionId")
        if not isinstance(session_id, str):
            return
        if request["method"] in _OPENING:
            place = {name: params[name] for name in _PLACE if name in params}
            followed = _Followed({"mcpServers": [], **place, "sessionId": session_id})
            self._sessions[session_id] = followed
            _take_place(followed, result)
        elif request["method"] in _ENDING:
            self._sessions.pop(session_id, None)

    # ---- losing and finding the gateway ---------------------------------------------------------

    def disconnected(self) -> Output:
        """The connection is gone. Requests that die with it are withdrawn from the editor."""
        out = Output()
        self._connected = self._online = False
        self._own.clear()
        for id, asked in tuple(self._asked.items()):
            asked.gateway_id = None
            if asked.request_id is None:
                del self._asked[id]
                out.to_editor.append(_cancel(id))
        return out

    def connected(self) -> Output:
        """A new connection: greet, and bring the sessions back."""
        out = Output()
        self._connected = True
        if self._initialize is None:
            return out
        if not self._initialized:
            self._send(self._initialize, out)
            return out
        self._ask_own("initialize", self._initialize.get("params"), None, out)
        return out

    def _ask_own(self, method: str, params: Any, session_id: str | None, out: Output) -> None:
        self._next_id += 1
        id = f"bridge-{self._next_id}"
        self._own[id] = (method, session_id)
        out.to_gateway.append({"jsonrpc": "2.0", "id": id, "method": method, "params": params})

    def _own_answered(self, own: tuple[str, str | None], message: Message, out: Output) -> None:
        method, session_id = own
        if method == "initialize":
            for known_id, followed in self._sessions.items():
                own_meta = {"lastEventId": followed.cursor, "epoch": followed.epoch}
                params = {**followed.params, "_meta": {OWN: own_meta}}
                self._ask_own("session/load", params, known_id, out)
        elif session_id is not None:
            self._reloaded(session_id, message, out)
        if not self._own:
            self._online = True
            self._flush(out)

    def _reloaded(self, session_id: str, message: Message, out: Output) -> None:
        followed = self._sessions.get(session_id)
        if followed is None:
            return
        result = message.get("result")
        epoch = followed.epoch
        if "error" in message:
            del self._sessions[session_id]
            self._fail_session(session_id, message["error"], out, only_sent=False)
        elif isinstance(result, dict):
            followed.muted = False
            _take_place(followed, result)
            if followed.epoch != epoch:
                restarted = GatewayError(
                    ErrorKind.AGENT_EXITED,
                    "The gateway was started anew while this turn ran; the turn has ended",
                    remedy="look at what was done, and send the prompt again if need be",
                )
                self._fail_session(session_id, restarted.to_jsonrpc(), out, only_sent=True)
        own = _own_of(result)
        still_open = own.get("openPermissions")
        names = set(still_open) if isinstance(still_open, list) else set()
        for id, asked in tuple(self._asked.items()):
            gone = asked.session_id == session_id and asked.request_id not in names
            if gone and asked.gateway_id is None:
                del self._asked[id]
                if asked.answer is None:
                    out.to_editor.append(_cancel(id))

    def _fail_session(
        self, session_id: str, error: dict[str, Any], out: Output, *, only_sent: bool
    ) -> None:
        for key, request in tuple(self._in_flight.items()):
            params = request.get("params")
            if not isinstance(params, dict) or params.get("sessionId") != session_id:
                continue
            if only_sent and not (request["method"] == "session/prompt" and key in self._sent):
                continue
            del self._in_flight[key]
            self._sent.discard(key)
            out.to_editor.append({"jsonrpc": "2.0", "id": request["id"], "error": error})

    def _flush(self, out: Output) -> None:
        """The way is free: what was under way goes out again, then what waited."""
        for request in self._in_flight.values():
            if request["method"] != "initialize":
                self._send(request, out)
        held, self._held = self._held, []
        running = {
            str((request.get("params") or {}).get("sessionId"))
            for request in self._in_flight.values()
            if request["method"] == "session/prompt"
        }
        self._cancelled &= running
        out.to_gateway += [
            {"jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": session_id}}
            for session_id in sorted(self._cancelled)
        ]
        out.to_gateway += held

    def give_up(self, error: GatewayError) -> Output:
        """The gateway cannot be reached at all: answer whatever waits."""
        out = Output()
        for request in self._in_flight.values():
            out.to_editor.append(
                {"jsonrpc": "2.0", "id": request["id"], "error": error.to_jsonrpc()}
            )
        self._in_flight.clear()
        return out

    @property
    def waiting(self) -> int:
        """Messages of the editor that wait for the gateway."""
        return len(self._held) + len(self._in_flight)


def _key(id: Any) -> Any:
    # 1, 1.0 and "1" are different ids.
    return (type(id).__name__, id)


def _cancel(id: int) -> Message:
    return {"jsonrpc": "2.0", "method": "$/cancel_request", "params": {"requestId": id}}


def _own_of(result: Any) -> dict[str, Any]:
    meta = result.get("_meta") if isinstance(result, dict) else None
    own = meta.get(OWN) if isinstance(meta, dict) else None
    return own if isinstance(own, dict) else {}


def _take_place(followed: _Followed, result: dict[str, Any]) -> None:
    own = _own_of(result)
    if isinstance(own.get("epoch"), str):
        followed.epoch = own["epoch"]
    if isinstance(own.get("lastEventId"), int):
        followed.cursor = max(followed.cursor, own["lastEventId"])


def _with_own(message: Message, members: dict[str, Any]) -> Message:
    params = message.get("params")
    if not isinstance(params, dict):
        return message
    meta = params.get("_meta")
    meta = meta if isinstance(meta, dict) else {}
    own = meta.get(OWN)
    merged = {**(own if isinstance(own, dict) else {}), **members}
    return {**message, "params": {**params, "_meta": {**meta, OWN: merged}}}
