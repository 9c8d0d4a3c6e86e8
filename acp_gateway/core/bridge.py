"""What `connect` has to remember so that its editor never notices a lost connection.

Pure: messages in, messages out. Rules:

1. The editor sees one connection for ever. Ids of the gateway's requests are replaced by ours,
   because they start anew on every connection.
2. The bridge knows its place in each session by the gateway's cursor notifications, one behind
   each batch of events, and loads the session again from there. Events are held until their cursor
   has come: those of a batch that was cut short are dropped, for they come again. So there is no
   history twice, and no gap but what left the gateway's ring meanwhile or went with the gateway. (A
   load of the editor's own that was cut short has no place yet: it starts over.)
3. A request of the editor that was under way is sent again, in order with what waited. Prompts and
   new sessions carry a key, by which the gateway finds what it has begun already. When the gateway
   itself was started anew it cannot know the key, and a prompt that had been sent is answered with
   an error, not run twice. What the editor had cancelled is cancelled again, by its id.
4. A question of the gateway that the editor was shown is the same question after a reconnect: it
   is not asked twice, and its answer is given again until the gateway says that it is settled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.wire.jsonrpc import is_id

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
    """None: the gateway is another program, and tells no cursors."""
    cursor: int = 0
    held: list[Message | bytes] = attrs.field(factory=list)
    """Events of the batch that is coming in."""
    replaying: str | None = None
    """Why the gateway tells history that the editor has. It is dropped until the answer; when only
    the ring ran over (``ring_evicted``) until the ring begins, which is news to the editor."""


@attrs.define
class _Asked:
    """A request of the gateway that the editor was shown."""

    gateway_id: Any
    """On the present connection; None while it was not asked there."""
    session_id: str | None
    request_id: str | None
    """The question's lasting name; None for requests that die with their connection."""
    answer: Message | None = None
    """What the editor said; the gateway may not have got it."""


@attrs.define
class _Pending:
    """A request of the editor that has no answer, or a notification that could not go out."""

    message: Message
    sent: bool = False
    """It went out on some connection."""
    cancelled: bool = False
    """The editor took it back."""


@attrs.define
class Output:
    """What to do next, in this order."""

    to_editor: list[Message | bytes] = attrs.field(factory=list)
    """Bytes are messages that were never opened."""
    to_gateway: list[Message] = attrs.field(factory=list)


class Bridge:
    """``new_key`` makes keys that nobody else makes."""

    def __init__(self, new_key: Callable[[], str]) -> None:
        self._new_key = new_key
        self._initialize: Message | None = None
        """Accepted, or under way."""
        self._initialized = False
        self._connected = False
        self._online = False
        """Connected and all sessions are back; the editor's messages pass."""
        self._sessions: dict[str, _Followed] = {}
        self._pending: dict[Any, _Pending] = {}
        """In the order in which the editor sent them."""
        self._asked: dict[int, _Asked] = {}
        self._next_id = 0
        self._own: dict[str, tuple[str, str | None]] = {}
        """Our own requests: id -> (method, session id)."""

    # ---- the editor -----------------------------------------------------------------------------

    def from_editor(self, message: Message) -> Output:
        """A message of the editor. What cannot go out now goes out after the reconnect."""
        out = Output()
        if message.get("method") is None:
            self._editor_answered(message, out)
        elif "id" in message:
            self._editor_asked(message, out)
        else:
            self._note_cancel(message)
            if self._online:
                out.to_gateway.append(message)
            else:
                self._next_id += 1
                self._pending["held", self._next_id] = _Pending(message)
        return out

    def _editor_asked(self, message: Message, out: Output) -> None:
        id, first = message["id"], message["method"] == "initialize"
        refusal = None
        if not is_id(id):
            id = None
            refusal = GatewayError(
                ErrorKind.INVALID_REQUEST, '"id" must be a string, a number or null'
            )
        elif first and self._initialize is not None:
            refusal = GatewayError(
                ErrorKind.ALREADY_INITIALIZED, "This connection is initialized already"
            )
        elif not first and self._initialize is None:
            refusal = _not_initialized()
        if refusal is not None:
            out.to_editor.append(_error(id, refusal.to_jsonrpc()))
            return
        message = self._keyed(message)
        if first:
            self._initialize = message
        pending = self._pending[_key(id)] = _Pending(message)
        if self._online or (first and self._connected):
            self._send(pending, out)

    def _keyed(self, message: Message) -> Message:
        method = message["method"]
        if method == "initialize":
            return _with_own(message, {"cursor": True, "clientKey": self._new_key()})
        if method == "session/prompt":
            return _with_own(message, {"promptKey": self._new_key()})
        if method == "session/new":
            return _with_own(message, {"requestKey": self._new_key()})
        return message

    def _send(self, pending: _Pending, out: Output) -> None:
        pending.sent = True
        out.to_gateway.append(pending.message)

    def _note_cancel(self, message: Message) -> None:
        """A notification may be lost with its connection, so a cancel is remembered."""
        params = _params(message)
        if message["method"] == "session/cancel":
            for pending in self._pending.values():
                asked = pending.message
                same = _params(asked).get("sessionId") == params.get("sessionId")
                if asked["method"] == "session/prompt" and same:
                    pending.cancelled = True
        elif message["method"] == "$/cancel_request" and is_id(params.get("requestId")):
            found = self._pending.get(_key(params["requestId"]))
            if found is not None:
                found.cancelled = True

    def _editor_answered(self, message: Message, out: Output) -> None:
        id = message.get("id")
        asked = self._asked.get(id) if isinstance(id, int) else None
        if asked is None or asked.answer is not None:
            return
        # Kept until the gateway says that the question is over: what was written to a connection
        # may be lost with it.
        asked.answer = message
        if asked.gateway_id is not None:
            out.to_gateway.append({**message, "id": asked.gateway_id})
        if asked.request_id is None:
            del self._asked[id]  # type: ignore[arg-type]

    # ---- the gateway ----------------------------------------------------------------------------

    def update(self, session_id: str, line: bytes) -> Output:
        """A ``session/update``, as it came."""
        out = Output()
        self._event(session_id, line, out)
        return out

    def _event(self, session_id: str, event: Message | bytes, out: Output) -> None:
        followed = self._sessions.get(session_id)
        if followed is None or followed.epoch is None:
            out.to_editor.append(event)
        elif followed.replaying is None:
            followed.held.append(event)

    def _release(self, session_id: Any, out: Output) -> None:
        """The batch is whole."""
        followed = self._sessions.get(str(session_id))
        if followed is not None:
            out.to_editor += followed.held
            followed.held = []

    def from_gateway(self, message: Message) -> Output:
        """Any other message of the gateway."""
        method, params = message.get("method"), _params(message)
        out = Output()
        if method is None:
            self._gateway_answered(message, out)
        elif "id" in message:
            self._gateway_asked(message, params, out)
        elif method == "_acp_gateway/cursor":
            self._note_cursor(params, out)
        elif method == "$/cancel_request":
            for id, asked in tuple(self._asked.items()):
                if asked.gateway_id is not None and asked.gateway_id == params.get("requestId"):
                    self._forget_asked(id, out)
        else:
            data = params.get("data") if method == "_qwen/notify" else None
            data = data if isinstance(data, dict) else {}
            session_id = str(data.get("sessionId", params.get("sessionId")))
            self._event(session_id, message, out)
            self._note_notice(params.get("kind"), data, session_id)
        return out

    def _note_cursor(self, params: dict[str, Any], out: Output) -> None:
        followed = self._sessions.get(str(params.get("sessionId")))
        if followed is not None and isinstance(params.get("lastEventId"), int):
            followed.cursor = params["lastEventId"]
            self._release(params["sessionId"], out)
            if followed.replaying == "ring_evicted":
                followed.replaying = None

    def _note_notice(self, kind: Any, data: dict[str, Any], session_id: str) -> None:
        if kind == "state_resync_required":
            followed = self._sessions.get(session_id)
            if followed is not None and any(sid == session_id for _, sid in self._own.values()):
                followed.replaying = str(data.get("reason"))
        elif kind == "permission_resolved":
            for id, asked in tuple(self._asked.items()):
                # One that the editor still shows is withdrawn by a cancel of its own.
                if asked.answer is not None and asked.request_id == data.get("requestId"):
                    del self._asked[id]

    def _forget_asked(self, id: int, out: Output) -> None:
        """The question is over; an editor that has not answered is told."""
        if self._asked.pop(id).answer is None:
            out.to_editor.append(_cancel(id))

    def _gateway_asked(self, message: Message, params: dict[str, Any], out: Output) -> None:
        # A request stands behind the cursor of what came before it.
        self._release(params.get("sessionId"), out)
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
        pending = self._pending.pop(_key(id), None) if is_id(id) else None
        if pending is None:
            return
        self._release(_params(pending.message).get("sessionId"), out)
        out.to_editor.append(message)
        if "error" not in message:
            self._learn(pending.message, message.get("result"))
        if pending.message is not self._initialize:
            return
        if "error" in message:
            self._initialize = None  # the editor may try again
            out.to_editor += self.give_up(_not_initialized()).to_editor
        else:
            self._initialized = self._online = True
            self._flush(out)

    def _learn(self, request: Message, result: Any) -> None:
        params = _params(request)
        result = result if isinstance(result, dict) else {}
        session_id = result.get("sessionId") or params.get("sessionId")
        if not isinstance(session_id, str):
            return
        if request["method"] in _OPENING:
            place: dict[str, Any] = {name: params[name] for name in _PLACE if name in params}
            followed = _Followed({"mcpServers": [], **place, "sessionId": session_id})
            self._sessions[session_id] = followed
            _take_place(followed, result)
            if request["method"] == "session/new":
                followed.cursor = 0  # all of its events come behind the answer
        elif request["method"] in _ENDING:
            self._sessions.pop(session_id, None)

    # ---- losing and finding the gateway ---------------------------------------------------------

    def disconnected(self) -> Output:
        """The connection is gone. Requests that die with it are withdrawn from the editor."""
        out = Output()
        self._connected = self._online = False
        self._own.clear()
        for followed in self._sessions.values():
            followed.held.clear()
        for id, asked in tuple(self._asked.items()):
            asked.gateway_id = None
            if asked.request_id is None:
                self._forget_asked(id, out)
        return out

    def connected(self) -> Output:
        """A new connection: greet, and bring the sessions back."""
        out = Output()
        self._connected = True
        if self._initialized and self._initialize is not None:
            self._ask_own("initialize", self._initialize.get("params"), None, out)
        elif self._initialize is not None:
            self._send(self._pending[_key(self._initialize["id"])], out)
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
        self._release(session_id, out)
        result = message.get("result")
        epoch = followed.epoch
        if "error" in message:
            del self._sessions[session_id]
            self._fail_session(session_id, message["error"], out, only_sent=False)
        elif isinstance(result, dict):
            followed.replaying = None
            _take_place(followed, result)
            if epoch is None or followed.epoch != epoch:
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
                self._forget_asked(id, out)

    def _fail_session(
        self, session_id: str, error: dict[str, Any], out: Output, *, only_sent: bool
    ) -> None:
        for key, pending in tuple(self._pending.items()):
            request = pending.message
            if "id" not in request or _params(request).get("sessionId") != session_id:
                continue
            if only_sent and not (pending.sent and request["method"] == "session/prompt"):
                continue
            del self._pending[key]
            out.to_editor.append(_error(request["id"], error))

    def _flush(self, out: Output) -> None:
        """The way is free: what has no answer goes out again, and what waited, in order."""
        for key, pending in tuple(self._pending.items()):
            again = pending.sent
            self._send(pending, out)
            if "id" not in pending.message:
                del self._pending[key]
            elif again and pending.cancelled:
                # Not session/cancel: that would end what the editor asked since.
                out.to_gateway.append(_cancel(pending.message["id"]))

    def give_up(self, error: GatewayError) -> Output:
        """The gateway cannot be reached at all: answer whatever waits."""
        out = Output()
        for pending in self._pending.values():
            if "id" in pending.message:
                out.to_editor.append(_error(pending.message["id"], error.to_jsonrpc()))
        self._pending.clear()
        return out

    @property
    def waiting(self) -> int:
        """Messages of the editor that wait for the gateway."""
        return len(self._pending)


def _params(message: Message) -> dict[str, Any]:
    params = message.get("params")
    return params if isinstance(params, dict) else {}


def _key(id: Any) -> Any:
    # 1, 1.0 and "1" are different ids.
    return (type(id).__name__, id)


def _cancel(id: Any) -> Message:
    return {"jsonrpc": "2.0", "method": "$/cancel_request", "params": {"requestId": id}}


def _error(id: Any, error: dict[str, Any]) -> Message:
    return {"jsonrpc": "2.0", "id": id, "error": error}


def _not_initialized() -> GatewayError:
    return GatewayError(
        ErrorKind.NOT_INITIALIZED,
        "First message must be initialize",
        remedy="send an initialize request first",
    )


def _own_of(result: Any) -> dict[str, Any]:
    meta = result.get("_meta") if isinstance(result, dict) else None
    own = meta.get(OWN) if isinstance(meta, dict) else None
    return own if isinstance(own, dict) else {}


def _take_place(followed: _Followed, result: dict[str, Any]) -> None:
    own = _own_of(result)
    if isinstance(own.get("epoch"), str):
        followed.epoch = own["epoch"]
    if isinstance(own.get("lastEventId"), int):
        followed.cursor = own["lastEventId"]


def _with_own(message: Message, members: dict[str, Any]) -> Message:
    params = message.get("params")
    if not isinstance(params, dict):
        return message
    meta = params.get("_meta")
    meta = meta if isinstance(meta, dict) else {}
    own = meta.get(OWN)
    merged = {**(own if isinstance(own, dict) else {}), **members}
    return {**message, "params": {**params, "_meta": {**meta, OWN: merged}}}
