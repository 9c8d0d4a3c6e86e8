"""`connect`'s memory, against a scripted gateway that is lost, found and started anew."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from acp_gateway.core.bridge import Bridge, Output
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.wire.json_codec import dumps, loads

Json = dict[str, Any]


def request(id: Any, method: str, **params: Any) -> Json:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}


def notification(method: str, **params: Any) -> Json:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def result(id: Any, value: Any) -> Json:
    return {"jsonrpc": "2.0", "id": id, "result": value}


def own(message: Json) -> Json:
    found: Json = message["params"].get("_meta", {}).get("acp_gateway", {})
    return found


class Turn:
    def __init__(self, text: str, origin: object) -> None:
        self.text = text
        self.origin = origin
        self.outcome: str | None = None
        self.waiters: list[tuple[Connection, Any]] = []


class Session:
    """As much of a gateway's session as a client can tell."""

    def __init__(self, id: str, epoch: str, stored: int) -> None:
        self.id = id
        self.epoch = epoch
        self.stored = stored
        """Events of earlier gateways, which only the history has."""
        self.last = 0
        self.first = 1  # oldest kept in the ring
        self.turns: list[Turn] = []  # the first one runs
        self.by_key: dict[str, Turn] = {}
        self.questions: dict[str, Any] = {}

    def token(self, event_id: int) -> int:
        """The lasting number of an event, over all gateways."""
        return self.stored + event_id


class Connection:
    """The gateway's end. What it sends waits in ``out`` until the machine lets it through."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.out: list[Json] = []
        self.greeted = False
        self.follows: set[str] = set()
        self.asked: dict[int, tuple[str, str | None]] = {}
        self.next_id = count(1)

    def events(self, session: Session, after: int, until: int) -> None:
        """One batch and the cursor behind it."""
        for event_id in range(after + 1, until + 1):
            update = {"sessionUpdate": "x", "token": session.token(event_id)}
            self.out.append(notification("session/update", sessionId=session.id, update=update))
        self.cursor(session, until)

    def cursor(self, session: Session, at: int) -> None:
        self.out.append(notification("_acp_gateway/cursor", sessionId=session.id, lastEventId=at))

    def ask(self, session: Session, method: str, name: str | None, token: str) -> None:
        id = next(self.next_id)
        self.asked[id] = (token, name)
        meta = {"_meta": {"qwen": {"requestId": name}}} if name else {}
        self.out.append(request(id, method, sessionId=session.id, token=token, **meta))

    def ask_again(self, session: Session) -> None:
        for name, token in session.questions.items():
            self.ask(session, "session/request_permission", name, token)

    def opened(self, session: Session) -> Json:
        place = {
            "epoch": session.epoch,
            "lastEventId": session.last,
            "openPermissions": list(session.questions),
        }
        return {"sessionId": session.id, "_meta": {"acp_gateway": place}}

    # ---- what the bridge says -------------------------------------------------------------------

    def receive(self, message: Json) -> None:
        message = loads(dumps(message))
        method = message.get("method")
        if method is None:
            self.answered(message)
        elif "id" in message:
            assert self.greeted or method == "initialize", "the first message is initialize"
            getattr(self, "on_" + method.replace("/", "_").lstrip("_"))(message)
        elif method == "session/cancel":
            session = self.gateway.sessions.get(message["params"]["sessionId"])
            for turn in list(session.turns) if session else ():
                assert session is not None
                if turn is session.turns[0] or turn.origin is self:
                    self.gateway.end(session, turn, "cancelled")
        elif method == "$/cancel_request":
            self.gateway.cancel_request(self, message["params"]["requestId"])
        else:
            self.gateway.notified.append(message["params"]["n"])

    def on_initialize(self, message: Json) -> None:
        assert not self.greeted and own(message)["cursor"] is True
        self.greeted = True
        self.out.append(result(message["id"], {"protocolVersion": 1}))

    def on_session_new(self, message: Json) -> None:
        gateway = self.gateway
        key = own(message)["requestKey"]
        session_id = gateway.started.get(key)
        if session_id is None:
            session_id = gateway.started[key] = f"s{next(gateway.names)}"
            gateway.sessions[session_id] = Session(session_id, gateway.epoch, 0)
        session = gateway.sessions[session_id]
        self.follows.add(session_id)
        # The answer first, then all events: it names the session that they belong to.
        self.out.append(result(message["id"], self.opened(session)))
        self.events(session, session.first - 1, session.last)
        self.ask_again(session)

    def on_session_load(self, message: Json) -> None:
        gateway, params = self.gateway, message["params"]
        assert params["cwd"] == "/w"
        session = gateway.load(params["sessionId"])
        last, epoch = own(message)["lastEventId"], own(message)["epoch"]
        self.follows.add(session.id)
        if epoch == session.epoch and session.first - 1 <= last <= session.last:
            self.events(session, last, session.last)
        else:
            reason = "ring_evicted" if epoch == session.epoch else "epoch_reset"
            if reason == "epoch_reset":
                # The new gateway cannot tell what the editor has seen of all this.
                gateway.untold[session.id] = session.token(session.last)
            data = {"sessionId": session.id, "reason": reason}
            self.out.append(notification("_qwen/notify", kind="state_resync_required", data=data))
            for token in range(1, session.token(session.first)):
                update = {"sessionUpdate": "x", "token": token}
                self.out.append(notification("session/update", sessionId=session.id, update=update))
            self.cursor(session, session.first - 1)
            self.events(session, session.first - 1, session.last)
        self.out.append(result(message["id"], self.opened(session)))
        self.ask_again(session)

    def on_session_prompt(self, message: Json) -> None:
        params = message["params"]
        session = self.gateway.load(params["sessionId"])
        key = own(message)["promptKey"]
        turn = session.by_key.get(key)
        if turn is None:
            turn = session.by_key[key] = Turn(params["text"], self)
            session.turns.append(turn)
            self.gateway.runs[turn.text] += 1
        turn.waiters.append((self, message["id"]))
        if turn.outcome is not None:
            self.out.append(result(message["id"], {"stopReason": turn.outcome}))

    def on_echo(self, message: Json) -> None:
        self.out.append(result(message["id"], {"n": message["params"]["n"]}))

    def answered(self, message: Json) -> None:
        token, name = self.asked.pop(message["id"])  # KeyError: answered twice, or never asked
        assert message["result"] == {"token": token}, "the answer to another question"
        for session in self.gateway.sessions.values():
            if name is not None and session.questions.pop(name, None):
                data = {"sessionId": session.id, "requestId": name}
                if session.id in self.follows:
                    self.out.append(
                        notification("_qwen/notify", kind="permission_resolved", data=data)
                    )


class Gateway:
    def __init__(self) -> None:
        self.epochs = count(1)
        self.names = count(1)
        self.sessions: dict[str, Session] = {}
        self.stored: dict[str, int] = {}
        self.started: dict[str, str] = {}
        self.epoch = f"e{next(self.epochs)}"
        self.connection: Connection | None = None
        self.runs: Counter[str] = Counter()
        self.outcomes: dict[str, str] = {}
        self.notified: list[int] = []
        self.untold: dict[str, int] = {}

    def load(self, session_id: str) -> Session:
        session = self.sessions.get(session_id)
        if session is None:
            session = Session(session_id, self.epoch, self.stored[session_id])
            self.sessions[session_id] = session
        return session

    def restart(self) -> None:
        """Sessions are stored; turns, questions and keys are not."""
        for session in self.sessions.values():
            self.stored[session.id] = session.token(session.last)
        self.sessions.clear()
        self.started.clear()
        self.epoch = f"e{next(self.epochs)}"
        self.connection = None

    def end(self, session: Session, turn: Turn, outcome: str) -> None:
        session.turns.remove(turn)
        turn.outcome = self.outcomes[turn.text] = outcome
        for connection, id in turn.waiters:
            if connection is self.connection:
                connection.out.append(result(id, {"stopReason": outcome}))

    def cancel_request(self, connection: Connection, id: Any) -> None:
        for session in self.sessions.values():
            for turn in list(session.turns):
                if (connection, id) in turn.waiters:
                    self.end(session, turn, "cancelled")


class BridgeMachine(RuleBasedStateMachine):
    @initialize(ready=st.booleans())
    def start(self, ready: bool) -> None:
        keys = count(1)
        self.bridge = Bridge(lambda: f"k{next(keys)}")
        self.gateway = Gateway()
        self.to_gateway: list[Json] = []
        self.ids = count(1)
        self.numbers = count(1)
        # The editor's view.
        self.pending: dict[Any, Json] = {}
        self.done: set[Any] = set()
        self.sessions: list[str] = []
        self.seen: dict[str, int] = {}
        self.may_miss: dict[str, set[int]] = {}
        self.open_questions: dict[int, Json] = {}
        self.question_names: set[str] = set()
        self.cancelled: set[str] = set()
        self._ask_gateway("initialize", protocolVersion=1)
        if ready:
            self.connect()
            self._ask_gateway("session/new", cwd="/w", mcpServers=[])
            self._settle()

    # ---- the editor -----------------------------------------------------------------------------

    def _ask_gateway(self, method: str, **params: Any) -> None:
        id = next(self.ids)
        message = request(id, method, **params)
        self.pending[id] = message
        self._do(self.bridge.from_editor(message))

    @rule()
    def new_session(self) -> None:
        if len(self.sessions) < 3:
            self._ask_gateway("session/new", cwd="/w", mcpServers=[])

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def prompt(self, data: st.DataObject) -> None:
        session_id = data.draw(st.sampled_from(self.sessions))
        self._ask_gateway("session/prompt", sessionId=session_id, text=f"p{next(self.numbers)}")

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        session_id = data.draw(st.sampled_from(self.sessions))
        for message in self.pending.values():
            if message["params"].get("sessionId") == session_id and "text" in message["params"]:
                self.cancelled.add(message["params"]["text"])
        self._do(self.bridge.from_editor(notification("session/cancel", sessionId=session_id)))

    @rule()
    def notify(self) -> None:
        self._do(self.bridge.from_editor(notification("_note", n=next(self.numbers))))

    @rule()
    def other_request(self) -> None:
        self._ask_gateway("_echo", n=next(self.numbers))

    @precondition(lambda self: self.open_questions)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.open_questions)))
        message = self.open_questions.pop(id)
        self._do(self.bridge.from_editor(result(id, {"token": message["params"]["token"]})))

    # ---- the agent ------------------------------------------------------------------------------

    def _live(self, data: st.DataObject) -> Session | None:
        sessions = self.gateway.sessions
        return sessions[data.draw(st.sampled_from(sorted(sessions)))] if sessions else None

    @rule(data=st.data(), size=st.integers(1, 4))
    def events(self, data: st.DataObject, size: int) -> None:
        session = self._live(data)
        if session is not None:
            session.last += size
            connection = self.gateway.connection
            if connection is not None and session.id in connection.follows:
                connection.events(session, session.last - size, session.last)

    @rule(data=st.data())
    def turn_ends(self, data: st.DataObject) -> None:
        session = self._live(data)
        if session is not None and session.turns:
            self.gateway.end(session, session.turns[0], "end_turn")

    @rule(data=st.data(), lasting=st.booleans())
    def ask(self, data: st.DataObject, lasting: bool) -> None:
        session, connection = self._live(data), self.gateway.connection
        if session is None:
            return
        token = f"q{next(self.numbers)}"
        if lasting:
            session.questions[token] = token
        if connection is not None and session.id in connection.follows:
            method = "session/request_permission" if lasting else "fs/read_text_file"
            connection.ask(session, method, token if lasting else None, token)

    @rule(data=st.data())
    def question_times_out(self, data: st.DataObject) -> None:
        session, connection = self._live(data), self.gateway.connection
        if session is None or not session.questions:
            return
        name = data.draw(st.sampled_from(sorted(session.questions)))
        del session.questions[name]
        if connection is not None and session.id in connection.follows:
            for id, (_, each) in tuple(connection.asked.items()):
                if each == name:
                    connection.out.append(notification("$/cancel_request", requestId=id))
            data_ = {"sessionId": session.id, "requestId": name}
            connection.out.append(
                notification("_qwen/notify", kind="permission_resolved", data=data_)
            )

    @rule(data=st.data())
    def ring_runs_over(self, data: st.DataObject) -> None:
        """While nobody is there: what an attached reader has not got is kept for it."""
        session = self._live(data)
        if session is not None and self.gateway.connection is None and session.last:
            session.first = data.draw(st.integers(session.first, session.last + 1))
            gone = range(1, session.token(session.first))
            self.may_miss.setdefault(session.id, set()).update(gone)

    # ---- the network ----------------------------------------------------------------------------

    @rule(count=st.integers(1, 8))
    def up(self, count: int) -> None:
        connection = self.gateway.connection
        for _ in range(count):
            if connection is not None and self.to_gateway:
                message = self.to_gateway.pop(0)
                if message.get("method") is None and message["id"] not in connection.asked:
                    continue  # the question was settled meanwhile
                connection.receive(message)

    @rule(count=st.integers(1, 12))
    def down(self, count: int) -> None:
        connection = self.gateway.connection
        for _ in range(count):
            if connection is not None and connection.out:
                self._from_gateway(connection.out.pop(0))

    def _from_gateway(self, message: Json) -> None:
        if message.get("method") == "session/update":
            self._do(self.bridge.update(message["params"]["sessionId"], dumps(message)))
        else:
            self._do(self.bridge.from_gateway(loads(dumps(message))))

    @rule()
    def connect(self) -> None:
        if self.gateway.connection is None:
            self.gateway.connection = Connection(self.gateway)
            self._do(self.bridge.connected())

    @rule()
    def all_through(self) -> None:
        if self.gateway.connection is not None:
            self._settle()

    @rule(data=st.data(), size=st.integers(1, 4), gone=st.integers(0, 3), got=st.integers(0, 6))
    def cut_in_the_middle(self, data: st.DataObject, size: int, gone: int, got: int) -> None:
        """Everything is quiet; then a batch, of which a part arrives."""
        self.connect()
        self._settle()
        self.events(data, size)
        if gone == 3:
            self.ask(data, data.draw(st.booleans()))
        self.down(got)
        if gone == 1:
            self.gateway_restarts()
        elif gone == 2:
            self.cut()
            self.ring_runs_over(data)
        else:
            self.cut()
        self.connect()
        self.up(2)  # the greeting and a load or two
        self.down(2)
        self.up(data.draw(st.integers(0, 3)))
        self.down(data.draw(st.integers(0, 12)))

    @rule()
    def cut(self) -> None:
        if self.gateway.connection is not None:
            self.gateway.connection = None
            self.to_gateway.clear()
            self._do(self.bridge.disconnected())
            # What died with the connection is no longer shown.
            assert all("_meta" in m["params"] for m in self.open_questions.values())

    @rule()
    def gateway_restarts(self) -> None:
        self.cut()
        for session in self.gateway.sessions.values():
            # Its ring is gone; what had not come is history only.
            gone = range(1, session.token(session.last) + 1)
            self.may_miss.setdefault(session.id, set()).update(gone)
        self.gateway.restart()

    # ---- what the editor sees -------------------------------------------------------------------

    def _do(self, out: Output) -> None:
        for each in out.to_editor:
            self._to_editor(loads(each) if isinstance(each, bytes) else each)
        if out.to_gateway:
            assert self.gateway.connection is not None, "sent to nobody"
            self.to_gateway += out.to_gateway

    def _to_editor(self, message: Json) -> None:
        method = message.get("method")
        if method is None:
            self._answered(message)
        elif "id" in message:
            assert message["id"] not in self.open_questions
            self.open_questions[message["id"]] = message
            token = message["params"]["token"]
            assert token not in self.question_names, "a question was asked twice"
            self.question_names.add(token)
        elif method == "session/update":
            session_id, token = message["params"]["sessionId"], message["params"]["update"]["token"]
            assert session_id in self.sessions, "an event before the answer that names its session"
            before = self.seen.get(session_id, 0)
            assert token > before, "history came twice"
            self._assert_no_gap(session_id, before, token)
            self.seen[session_id] = token
        elif method == "$/cancel_request":
            # Only for what the editor still shows.
            del self.open_questions[message["params"]["requestId"]]
        else:
            assert method == "_qwen/notify", "private messages stay inside"

    def _assert_no_gap(self, session_id: str, before: int, token: int) -> None:
        missed = set(range(max(before, self.gateway.untold.get(session_id, 0)) + 1, token))
        assert missed <= self.may_miss.get(session_id, set()), "a gap"

    def _answered(self, message: Json) -> None:
        asked = self.pending.pop(message["id"])  # KeyError: answered twice
        method, params = asked["method"], asked["params"]
        if method == "session/new":
            self.sessions.append(message["result"]["sessionId"])
        elif method == "_echo":
            assert message["result"] == {"n": params["n"]}
        elif method == "session/prompt":
            if "error" in message:
                assert message["error"]["data"]["errorKind"] == "agent_exited"
            else:
                stop = message["result"]["stopReason"]
                assert stop == self.gateway.outcomes[params["text"]]
                assert stop != "cancelled" or params["text"] in self.cancelled

    # ---- the end --------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "bridge"):
            return
        self.connect()
        self._settle()
        gateway = self.gateway
        for session in gateway.sessions.values():
            for turn in session.turns[:1]:
                assert turn.text not in self.cancelled, "a cancel was lost"
        for session in tuple(gateway.sessions.values()):
            while session.turns:
                gateway.end(session, session.turns[0], "end_turn")
        self._settle()
        assert self.pending == {} and self.bridge.waiting == 0
        assert set(gateway.runs.values()) <= {1}, "a prompt ran twice"
        assert gateway.notified == sorted(set(gateway.notified)), "notifications out of order"
        for session_id in self.sessions:
            session = gateway.sessions.get(session_id)
            if session is not None:
                end = session.token(session.last) + 1
                self._assert_no_gap(session_id, self.seen.get(session_id, 0), end)
            # What is still asked is exactly what the editor still shows.
            shown = {
                m["params"]["token"]
                for m in self.open_questions.values()
                if m["params"]["sessionId"] == session_id and "_meta" in m["params"]
            }
            assert shown == set(session.questions if session else ())

    def _settle(self) -> None:
        connection = self.gateway.connection
        assert connection is not None
        while self.to_gateway or connection.out:
            self.up(1)
            self.down(1)


TestBridge = BridgeMachine.TestCase
TestBridge.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


# ---- single rules -------------------------------------------------------------------------------


class Link:
    """A bridge whose gateway is written out by the test."""

    def __init__(self) -> None:
        keys = count(1)
        self.bridge = Bridge(lambda: f"k{next(keys)}")

    def connect(self) -> Link:
        """Initialized, with a session ``s``."""
        self.bridge.from_editor(request(1, "initialize", protocolVersion=1))
        self.bridge.connected()
        self.bridge.from_gateway(result(1, {}))
        self.bridge.from_editor(request(2, "session/new", cwd="/w"))
        place = {"epoch": "e", "lastEventId": 4}
        self.bridge.from_gateway(result(2, {"sessionId": "s", "_meta": {"acp_gateway": place}}))
        return self

    def reconnect(self, **place: Any) -> Output:
        """Lose the gateway, find it, load the session: what comes of its answer."""
        self.bridge.disconnected()
        (greeting,) = self.bridge.connected().to_gateway
        (load,) = self.bridge.from_gateway(result(greeting["id"], {})).to_gateway
        assert load["method"] == "session/load"
        meta = {"acp_gateway": {"epoch": "e", "lastEventId": 9, "openPermissions": [], **place}}
        return self.bridge.from_gateway(result(load["id"], {"sessionId": "s", "_meta": meta}))


def methods(messages: list[Any]) -> list[Any]:
    return [message.get("method") for message in messages]


def test_the_editors_initialize_is_marked_and_nothing_passes_before_its_answer() -> None:
    bridge = Bridge(lambda: "k")
    assert bridge.from_editor(request(1, "initialize", _meta={"x": 1})) == Output()
    assert bridge.from_editor(request(2, "session/list")) == Output()
    assert bridge.from_editor(notification("_n")) == Output()
    (greeting,) = bridge.connected().to_gateway
    meta = greeting["params"]["_meta"]
    assert meta["x"] == 1 and meta["acp_gateway"]["cursor"] is True
    assert meta["acp_gateway"]["clientKey"]
    out = bridge.from_gateway(result(1, {}))
    assert [m["id"] for m in out.to_editor] == [1]
    assert methods(out.to_gateway) == ["session/list", "_n"]


def test_a_lost_initialize_is_sent_again_and_answered_once() -> None:
    bridge = Bridge(lambda: "k")
    bridge.connected()
    first = bridge.from_editor(request(1, "initialize")).to_gateway
    bridge.disconnected()
    assert bridge.connected().to_gateway == first
    assert bridge.from_gateway(result(1, {})).to_editor == [result(1, {})]


def test_a_refused_initialize_refuses_what_waited_and_may_be_tried_again() -> None:
    bridge = Bridge(lambda: "k")
    bridge.connected()
    bridge.from_editor(request(1, "initialize"))
    bridge.from_editor(request(2, "session/new"))
    bridge.from_editor(notification("_n"))
    error = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no"}}
    first, second = bridge.from_gateway(error).to_editor
    assert first == error
    assert second["id"] == 2 and second["error"]["data"]["errorKind"] == "not_initialized"
    assert methods(bridge.from_editor(request(3, "initialize")).to_gateway) == ["initialize"]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (request(2, "initialize"), "already_initialized"),
        (request([2], "session/list"), "invalid_request"),
        (request(True, "session/list"), "invalid_request"),
    ],
)
def test_what_the_editor_may_not_send_is_answered_by_the_bridge(message: Json, kind: str) -> None:
    link = Link().connect()
    out = link.bridge.from_editor(message)
    (answer,) = out.to_editor
    assert answer["error"]["data"]["errorKind"] == kind and not out.to_gateway
    assert methods(link.reconnect().to_gateway) == []
    # And it was not taken for the real thing.
    assert link.bridge.from_editor(request(5, "_x")).to_gateway == [request(5, "_x")]


def test_a_request_before_initialize_is_answered() -> None:
    (answer,) = Bridge(lambda: "k").from_editor(request(1, "session/new")).to_editor
    assert answer["error"]["data"]["errorKind"] == "not_initialized"


def test_what_waited_goes_out_in_the_order_in_which_it_was_sent() -> None:
    link = Link().connect()
    link.bridge.from_editor(request(3, "session/prompt", sessionId="s"))
    link.bridge.disconnected()
    for message in (
        notification("_a"),
        request(4, "_b"),
        notification("session/cancel", sessionId="s"),
        request(5, "session/prompt", sessionId="s"),
        notification("_c"),
    ):
        assert link.bridge.from_editor(message) == Output()
    out = link.reconnect().to_gateway
    assert methods(out) == [
        *("session/prompt", "$/cancel_request", "_a", "_b"),
        *("session/cancel", "session/prompt", "_c"),
    ]
    assert out[1]["params"] == {"requestId": 3}
    # Notifications are not sent again; the requests are.
    assert methods(link.reconnect().to_gateway) == [
        *("session/prompt", "$/cancel_request", "_b", "session/prompt")
    ]


def test_a_cancel_that_was_lost_does_not_end_what_was_asked_since() -> None:
    link = Link().connect()
    link.bridge.from_editor(request(3, "session/prompt", sessionId="s"))
    link.bridge.from_editor(notification("session/cancel", sessionId="s"))
    link.bridge.from_editor(request(4, "session/prompt", sessionId="s"))
    again = link.reconnect().to_gateway
    assert [(m["method"], m.get("id")) for m in again] == [
        ("session/prompt", 3),
        ("$/cancel_request", None),
        ("session/prompt", 4),
    ]
    keys = [own(m)["promptKey"] for m in again if "id" in m]
    assert len(set(keys)) == 2


def test_a_withdrawn_request_is_withdrawn_again() -> None:
    link = Link().connect()
    link.bridge.from_editor(request(3, "_slow"))
    link.bridge.from_editor(notification("$/cancel_request", requestId=3))
    link.bridge.from_editor(notification("$/cancel_request", requestId={"no": "id"}))
    assert link.reconnect().to_gateway[1] == notification("$/cancel_request", requestId=3)


def test_ids_of_the_editor_are_told_apart_by_type() -> None:
    link = Link().connect()
    for id in (3, "3", 3.5, None):
        link.bridge.from_editor(request(id, "_x"))
    for id in (None, "3", 3.5, 3):
        assert link.bridge.from_gateway(result(id, {})).to_editor == [result(id, {})]
    assert link.bridge.waiting == 0
    assert link.bridge.from_gateway(result(3, {})) == Output()


def test_events_behind_the_answer_to_new_are_not_skipped() -> None:
    """The answer tells the ring's end, but all events of a new session come behind it."""
    link = Link().connect()
    link.bridge.disconnected()
    (greeting,) = link.bridge.connected().to_gateway
    (load,) = link.bridge.from_gateway(result(greeting["id"], {})).to_gateway
    assert own(load) == {"lastEventId": 0, "epoch": "e"}


def test_a_batch_that_was_cut_short_comes_again_and_is_seen_once() -> None:
    link = Link().connect()
    line = dumps(notification("session/update", sessionId="s", update={"sessionUpdate": "x"}))
    assert link.bridge.update("s", line) == Output()
    link.reconnect()
    assert link.bridge.update("s", line) == Output()
    cursor = notification("_acp_gateway/cursor", sessionId="s", lastEventId=1)
    assert link.bridge.from_gateway(cursor).to_editor == [line]


@pytest.mark.parametrize("what", ["answer", "question"])
def test_what_stands_behind_a_batch_does_not_overtake_it(what: str) -> None:
    link = Link().connect()
    link.bridge.from_editor(request(3, "session/close", sessionId="s"))
    link.bridge.update("s", b"line")
    message = result(3, {}) if what == "answer" else question(1)
    assert link.bridge.from_gateway(message).to_editor[0] == b"line"


def test_a_gateway_that_tells_no_cursors_still_streams() -> None:
    bridge = Link().bridge
    bridge.connected()
    bridge.from_editor(request(1, "initialize"))
    bridge.from_gateway(result(1, {}))
    bridge.from_editor(request(2, "session/new", cwd="/w"))
    bridge.from_gateway(result(2, {"sessionId": "s"}))
    assert bridge.update("s", b"line").to_editor == [b"line"]
    # Nor can it know a prompt again: it is not run twice.
    bridge.from_editor(request(3, "session/prompt", sessionId="s"))
    bridge.disconnected()
    (greeting,) = bridge.connected().to_gateway
    (load,) = bridge.from_gateway(result(greeting["id"], {})).to_gateway
    out = bridge.from_gateway(result(load["id"], {}))
    assert out.to_editor[0]["id"] == 3 and out.to_gateway == []


def test_a_session_that_does_not_come_back_fails_what_was_asked_of_it() -> None:
    link = Link().connect()
    link.bridge.from_editor(request(3, "session/prompt", sessionId="s"))
    link.bridge.from_editor(request(4, "_other", sessionId="else"))
    link.bridge.disconnected()
    (greeting,) = link.bridge.connected().to_gateway
    (load,) = link.bridge.from_gateway(result(greeting["id"], {})).to_gateway
    error = {"code": -32002, "message": "gone"}
    out = link.bridge.from_gateway({"jsonrpc": "2.0", "id": load["id"], "error": error})
    assert out.to_editor == [{"jsonrpc": "2.0", "id": 3, "error": error}]
    assert methods(out.to_gateway) == ["_other"]


def question(id: int, name: str | None = "q") -> Json:
    meta = {"_meta": {"qwen": {"requestId": name}}} if name else {}
    return request(id, "session/request_permission", sessionId="s", **meta)


def test_an_answer_that_may_be_lost_is_given_again_until_it_counts() -> None:
    link = Link().connect()
    (shown,) = link.bridge.from_gateway(question(1)).to_editor
    answer = result(shown["id"], {"outcome": 1})
    assert link.bridge.from_editor(answer).to_gateway == [result(1, {"outcome": 1})]
    assert link.reconnect(openPermissions=["q"]).to_editor == []
    assert link.bridge.from_gateway(question(7)) == Output(to_gateway=[result(7, {"outcome": 1})])
    resolved = {"sessionId": "s", "requestId": "q"}
    link.bridge.from_gateway(
        notification("_qwen/notify", kind="permission_resolved", data=resolved)
    )
    # The name is free again: another question is another question.
    assert question(8)["params"] == link.bridge.from_gateway(question(8)).to_editor[-1]["params"]


def test_an_answer_reaches_a_gateway_whose_other_sessions_are_not_back_yet() -> None:
    link = Link().connect()
    link.bridge.from_editor(request(3, "session/load", sessionId="t", cwd="/w"))
    link.bridge.from_gateway(result(3, {"_meta": {"acp_gateway": {"epoch": "f"}}}))
    link.bridge.disconnected()
    (greeting,) = link.bridge.connected().to_gateway
    first, _ = link.bridge.from_gateway(result(greeting["id"], {})).to_gateway
    link.bridge.from_gateway(result(first["id"], {"_meta": {"acp_gateway": {"epoch": "e"}}}))
    for name in (None, "q"):
        (shown,) = link.bridge.from_gateway(question(1, name)).to_editor
        out = link.bridge.from_editor(result(shown["id"], "yes"))
        assert out.to_gateway == [result(1, "yes")]


def test_a_question_that_is_over_disappears_from_the_editor_once() -> None:
    link = Link().connect()
    (shown,) = link.bridge.from_gateway(question(1)).to_editor
    out = link.reconnect(openPermissions=[])
    withdrawn = notification("$/cancel_request", requestId=shown["id"])
    assert out.to_editor == [withdrawn]
    assert link.bridge.from_editor(result(shown["id"], "late")) == Output()
    assert link.bridge.from_gateway(notification("$/cancel_request", requestId=1)) == Output()


def test_giving_up_answers_everything_once() -> None:
    link = Link().connect()
    link.bridge.from_editor(request(3, "_x"))
    link.bridge.disconnected()
    link.bridge.from_editor(request(4, "_y"))
    link.bridge.from_editor(notification("_n"))
    assert link.bridge.waiting == 3
    out = link.bridge.give_up(GatewayError(ErrorKind.INTERNAL, "gone"))
    assert [m["id"] for m in out.to_editor] == [3, 4] and link.bridge.waiting == 0
