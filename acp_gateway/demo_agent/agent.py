"""The ACP v1 agent side: which method does what, and the sessions that are open.

Rule 1: the main thread reads and answers everything but prompts; a prompt runs in its `Turn`.
Rule 2: error codes follow ACP v1: -32002 unknown session, -32601 unknown method, -32602 bad
params, -32600 wrong moment.
"""

from __future__ import annotations

import os
import signal
import time

from acp_gateway import __version__
from acp_gateway.demo_agent import params as params_of
from acp_gateway.demo_agent import script
from acp_gateway.demo_agent.link import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    NOT_FOUND,
    Link,
    RpcError,
    decode,
    interactive_hint,
    log,
    read_lines,
)
from acp_gateway.demo_agent.store import MODELS, MODES, Session, Store, state_directory
from acp_gateway.demo_agent.telemetry import Telemetry, context_of
from acp_gateway.demo_agent.turn import Turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Params = dict[str, Any]
    Handler = Callable[[Any, Params], Params | None]

PAGE = 50
"""Sessions of one page of ``session/list``."""
_JOIN_SECONDS = 1.0
_DRAIN_SECONDS = 1.0

_INITIALIZED = {
    "protocolVersion": 1,
    "agentInfo": {
        "name": "acp-gateway-demo",
        "title": "Demo agent of acp-gateway",
        "version": __version__,
    },
    "agentCapabilities": {
        "loadSession": True,
        "promptCapabilities": {"image": True, "audio": True, "embeddedContext": True},
        "mcpCapabilities": {"http": True, "sse": True},
        "sessionCapabilities": {
            "list": {},
            "delete": {},
            "resume": {},
            "close": {},
            "fork": {},
            "additionalDirectories": {},
        },
    },
    "authMethods": [],
}


class Agent:
    """All state of the process."""

    def __init__(self, link: Link, store: Store) -> None:
        self._link = link
        self._store = store
        self._sessions: dict[str, Session] = {}
        self._client: Params | None = None
        self._boolean = False
        self._telemetry = Telemetry()
        self._requests: dict[str, Handler] = {
            "initialize": self._initialize,
            "authenticate": self._authenticate,
            "session/new": self._new,
            "session/load": self._load,
            "session/resume": self._resume,
            "session/fork": self._fork,
            "session/list": self._list,
            "session/close": self._close,
            "session/delete": self._delete,
            "session/prompt": self._prompt,
            "session/set_mode": self._set_mode,
            "session/set_model": self._set_model,
            "session/set_config_option": self._set_config_option,
            "_demo/echo": lambda _, params: params,
        }

    # -- messages

    def receive(self, line: bytes) -> None:
        """Handles one line; whatever is wrong with it becomes an error response."""
        if not line.strip():
            return
        request_id = None
        try:
            message = decode(line)
            if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
                raise RpcError(INVALID_REQUEST, "a message must be one JSON-RPC 2.0 object")
            if "method" not in message and ("result" in message or "error" in message):
                self._link.settle(message)
                return
            if type(message.get("id")) not in (int, str, type(None)):
                raise RpcError(INVALID_REQUEST, "an id must be a string, an integer or null")
            if "id" not in message and "method" in message:
                self._notified(message)
                return
            request_id = message.get("id")
            result = self._requested(message)
        except RpcError as error:
            self._link.refuse(request_id, error)
        except Exception:
            import traceback

            log(traceback.format_exc())
            failure = RpcError(INTERNAL_ERROR, "the agent failed inside, see its stderr")
            self._link.refuse(request_id, failure)
        else:
            if result is not None:
                self._link.answer(request_id, result)

    def _requested(self, message: Params) -> Params | None:
        method = message.get("method")
        params = message.get("params")
        if not isinstance(method, str):
            raise RpcError(INVALID_REQUEST, "`method` must be a string")
        if self._client is None and method != "initialize":
            raise RpcError(INVALID_REQUEST, f"send initialize before {method}")
        handler = self._requests.get(method)
        if handler is None:
            raise RpcError(METHOD_NOT_FOUND, f"this agent has no method {method}")
        if params is not None and not isinstance(params, dict):
            raise params_of.bad("`params` must be an object")
        return handler(message["id"], params or {})

    def _notified(self, message: Params) -> None:
        # An unknown or malformed notification has nobody to tell: it is ignored.
        params = message.get("params")
        if not isinstance(params, dict):
            return
        if message["method"] == "session/cancel":
            session = self._sessions.get(str(params.get("sessionId")))
            if session and (turn := session.turn):
                turn.cancel()
        elif message["method"] == "$/cancel_request" and "requestId" in params:
            wanted = params["requestId"]
            for session in self._sessions.values():
                turn = session.turn
                # The types must agree too: True and 1 are equal to Python.
                if turn and (type(turn.request_id), turn.request_id) == (type(wanted), wanted):
                    turn.cancel()

    def stop(self) -> None:
        """Cancels what runs and waits for its answers, for a bounded time."""
        turns = [turn for session in self._sessions.values() if (turn := session.turn)]
        for turn in turns:
            turn.cancel()
        for turn in turns:
            turn.join(_JOIN_SECONDS / len(turns))
        self._link.drain(_DRAIN_SECONDS)
        self._telemetry.drain(_DRAIN_SECONDS)

    # -- connection

    def _initialize(self, _: Any, params: Params) -> Params:
        if self._client is not None:
            raise RpcError(INVALID_REQUEST, "this connection is already initialized")
        if type(params.get("protocolVersion")) is not int:
            raise params_of.bad("`protocolVersion` must be an integer")
        self._client = params_of.nested(params, "clientCapabilities")
        options = params_of.nested(self._client, "session", "configOptions")
        self._boolean = isinstance(options.get("boolean"), dict)
        return _INITIALIZED

    def _authenticate(self, _: Any, params: Params) -> Params:
        params_of.text(params, "methodId")
        return {}

    # -- sessions

    def _open(self, params: Params) -> Session:
        """The session of the params, from memory or from its files."""
        session_id = params_of.text(params, "sessionId")
        session = self._sessions.get(session_id) or self._store.load(session_id)
        if session is None:
            raise RpcError(NOT_FOUND, f"there is no session {session_id}")
        return session

    def _live(self, params: Params) -> Session:
        session_id = params_of.text(params, "sessionId")
        session = self._sessions.get(session_id)
        if session is None:
            raise RpcError(NOT_FOUND, f"there is no open session {session_id}; load it first")
        return session

    def _update(self, session: Session, kind: str, **fields: Any) -> None:
        update = {"sessionUpdate": kind, **fields}
        self._link.notify("session/update", {"sessionId": session.id, "update": update})

    def _state(self, session: Session) -> Params:
        return {
            "modes": session.modes(),
            "models": session.models(),
            "configOptions": session.config_options(self._boolean),
        }

    def _answer_opened(self, request_id: Any, session: Session, **fields: Any) -> None:
        """The answer comes before the commands: a client learns the session's id from it."""
        self._sessions[session.id] = session
        self._store.save(session)
        self._link.answer(request_id, {**fields, **self._state(session)})
        self._update(
            session, "available_commands_update", availableCommands=script.available_commands()
        )

    def _new(self, request_id: Any, params: Params) -> None:
        cwd, additional = params_of.directories(params)
        session = Session(params_of.own_id(params) or os.urandom(16).hex(), cwd)
        session.additional, session.servers = additional, params_of.servers(params)
        self._answer_opened(request_id, session, sessionId=session.id)

    def _attach(self, params: Params) -> Session:
        cwd, additional = params_of.directories(params)
        session = self._open(params)
        session.cwd, session.additional = cwd, additional
        session.servers = params_of.servers(params)
        return session

    def _load(self, request_id: Any, params: Params) -> None:
        session = self._attach(params)
        with session.lock:
            for update in session.history:
                self._link.notify("session/update", {"sessionId": session.id, "update": update})
        self._answer_opened(request_id, session)

    def _resume(self, request_id: Any, params: Params) -> None:
        self._answer_opened(request_id, self._attach(params))

    def _fork(self, request_id: Any, params: Params) -> None:
        cwd, additional = params_of.directories(params)
        parent = self._open(params)
        session = Session(os.urandom(16).hex(), cwd)
        session.additional, session.servers = additional, params_of.servers(params)
        session.mode, session.model, session.verbose = parent.mode, parent.model, parent.verbose
        session.title = parent.title
        with parent.lock:
            session.history.extend(parent.history)
        self._answer_opened(request_id, session, sessionId=session.id)

    def _list(self, _: Any, params: Params) -> Params:
        cwd = params.get("cwd")
        if cwd is not None and not (isinstance(cwd, str) and os.path.isabs(cwd)):
            raise params_of.bad("`cwd` must be an absolute path")
        before = params_of.cursor(params)
        sessions = dict(self._sessions)
        for session_id in self._store.ids():
            if session_id not in sessions and (stored := self._store.read_meta(session_id)):
                sessions[session_id] = stored
        found = sorted(
            (
                (session.updated, session.id)
                for session in sessions.values()
                if cwd is None or session.cwd == os.path.normpath(cwd)
            ),
            reverse=True,
        )
        if before:
            found = [key for key in found if key < before]
        result: Params = {"sessions": [sessions[key[1]].info() for key in found[:PAGE]]}
        if len(found) > PAGE:
            result["nextCursor"] = f"{found[PAGE - 1][0]!r}:{found[PAGE - 1][1]}"
        return result

    def _leave(self, session: Session) -> None:
        if turn := session.turn:
            turn.cancel()
            turn.join(_JOIN_SECONDS)
        self._sessions.pop(session.id, None)

    def _close(self, _: Any, params: Params) -> Params:
        self._leave(self._open(params))
        return {}

    def _delete(self, _: Any, params: Params) -> Params:
        # Deleting what is not there is a success: it is gone, which is what was asked for.
        session_id = params_of.text(params, "sessionId")
        if session := self._sessions.get(session_id):
            self._leave(session)
        self._store.delete(session_id)
        return {}

    # -- the conversation

    def _prompt(self, request_id: Any, params: Params) -> None:
        session = self._live(params)
        prompt = params.get("prompt")
        if not isinstance(prompt, list):
            raise params_of.bad("`prompt` must be a list of content blocks")
        for index, block in enumerate(prompt):
            if not isinstance(block, dict) or not isinstance(block.get("type"), str):
                raise params_of.bad(f"`prompt[{index}]` must be an object with a `type`")
            if block["type"] == "text" and not isinstance(block.get("text"), str):
                raise params_of.bad(f"`prompt[{index}].text` must be a string")
        if session.turn:
            raise RpcError(
                INVALID_REQUEST,
                f"session {session.id} is busy with a prompt: wait for its answer or cancel it",
            )
        client_fs = params_of.nested(self._client, "fs")
        context, began = context_of(params), time.time_ns()

        def ended(word: str) -> None:
            self._telemetry.span(context, "demo.turn", began, session.id, word)

        session.turn = Turn(self._link, self._store, session, client_fs, request_id, prompt, ended)
        session.turn.start()

    def _changed(self, session: Session) -> None:
        session_options = session.config_options(self._boolean)
        self._update(session, "config_option_update", configOptions=session_options)
        self._store.save(session)

    def _change_mode(self, session: Session, mode: str) -> None:
        session.mode = mode
        self._update(session, "current_mode_update", currentModeId=mode)
        self._changed(session)

    def _set_mode(self, _: Any, params: Params) -> Params:
        session = self._live(params)
        self._change_mode(session, params_of.choice(params.get("modeId"), MODES, "modeId"))
        return {}

    def _set_model(self, _: Any, params: Params) -> Params:
        session = self._live(params)
        session.model = params_of.choice(params.get("modelId"), MODELS, "modelId")
        self._changed(session)
        return {}

    def _set_config_option(self, _: Any, params: Params) -> Params:
        session = self._live(params)
        option, value = params_of.text(params, "configId"), params.get("value")
        if option == "mode":
            self._change_mode(session, params_of.choice(value, MODES, "value"))
        elif option == "model":
            session.model = params_of.choice(value, MODELS, "value")
            self._changed(session)
        elif option == "verbose" and self._boolean:
            if not isinstance(value, bool):
                raise params_of.bad("`value` must be true or false")
            session.verbose = value
            self._changed(session)
        else:
            raise params_of.bad(f"`configId` {option} is not an option of this session")
        return {"configOptions": session.config_options(self._boolean)}


def serve() -> int:
    """Speaks ACP on stdin and stdout until stdin ends or a signal asks to stop; gives 0."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    # The handler does nothing: the byte that the signal leaves in the pipe ends the reading,
    # so no exception can fall into the middle of a message.
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    interactive_hint()
    agent = Agent(Link(1), Store(state_directory()))
    for line in read_lines(0, wake_read):
        agent.receive(line)
    agent.stop()
    return 0
