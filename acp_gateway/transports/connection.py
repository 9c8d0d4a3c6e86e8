"""One ``/acp`` peer, whatever its transport: what it may, what it follows, what it was asked.

The reader calls `receive` for every message, in wire order, and never runs a handler: requests get
a task, everything else is done at once. When the connection ends, its subscriptions and its client
handles go; turns, sessions and open questions stay.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from typing import Any, Final

import attrs
import structlog
import trio

from acp_gateway.core.identity import OPEN, Identity, Scope, required_by_acp
from acp_gateway.core.mediator import Question, Voter
from acp_gateway.core.outlet import Outlet, Slot, Subscription
from acp_gateway.core.tally import Histograms
from acp_gateway.core.turn_queue import Turn
from acp_gateway.protocol.errors import AgentError, ErrorKind, GatewayError
from acp_gateway.protocol.extensions import RPC
from acp_gateway.protocol.methods import METHODS
from acp_gateway.protocol.types import ClientCapabilities
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.parties import ClientIds
from acp_gateway.runtime.rpc import MethodTable, dispatch
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.session_feed import ClientGone
from acp_gateway.runtime.tracing import Span, begin, current, finish, parent_for, text, tracing
from acp_gateway.transports.rate_limits import RateLimits
from acp_gateway.wire.jsonrpc import (
    JsonId,
    Message,
    Notification,
    Request,
    Response,
    error_bytes,
    notification_bytes,
    request_bytes,
)

log = structlog.get_logger("acp_gateway.connection")

MAX_IN_FLIGHT: Final = 256
QWEN_CLIENT: Final = "qwen-code-sdk"
_COUNTED: Final = frozenset((*METHODS, *RPC))
"""Methods that are told by name in the figures; any other is ``other``."""


def connection_label(id: str) -> str:
    """Its name in logs and in the status: over HTTP the id is all that a client shows of itself."""
    return hashlib.sha256(id.encode(errors="replace")).hexdigest()[:12]


class Context:
    """One request of a client while it is served."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self.connection = connection
        self.request = request
        self.scope = trio.CancelScope()
        self.slot: Slot | None = None
        """Where the answer stands among the events of its session."""
        self.session: Session | None = None
        self.turn: Turn | None = None
        self.refusal: GatewayError | None = None
        """Why it is not served: a prompt that was not admitted, a token that is not enough, or
        a caller that has to wait."""
        self.direct = False
        """The answer is `payload`, for who waits for `over`; it is sent on no stream."""
        self.payload: bytes | None = None
        self.over = trio.Event()
        self.taken_back = False
        """The client does not want it any more; else it is cancelled when the connection ends."""

    def place(self, session: Session) -> None:
        """Let the answer take its place among the session's events on this connection."""
        if not self.connection.answers_on_session(self.request.method):
            return
        self.session = session
        sub = self.connection.subs.get(session.id)
        if sub is not None and sub.outlet is not None and self.slot is None:
            self.slot = Slot(sub)

    def fix(self, watermark: int) -> None:
        """The answer is known: it stands behind this event."""
        if self.slot is not None:
            self.slot.fix(watermark)


@attrs.define
class _Asked:
    """A request of ours to the client."""

    session: Session
    slot: Slot
    question: Question | None = None
    done: trio.Event = attrs.field(factory=trio.Event)
    response: Response | None = None


class Connection:
    """Base of the transports: they say where messages go (`outlet_of`) and how it ends (`kick`)."""

    kind = "?"

    def __init__(
        self,
        profile: AgentProfile,
        methods: MethodTable,
        ids: ClientIds,
        *,
        loopback: bool,
        identity: Identity = OPEN,
    ) -> None:
        self.id = str(uuid.uuid4())
        self.label = connection_label(self.id)
        self.began = trio.current_time()
        self.origin = self.id
        """Whose prompts these are; a client that names itself keeps it over its connections."""
        self.loopback = loopback
        """The peer is a program of this machine (`client_address`)."""
        self.identity = identity
        """Whose token it came in with."""
        self.caller = ""
        """Whose requests these are, for the rate limits."""
        self.limits: RateLimits | None = None
        self.max_in_flight = MAX_IN_FLIGHT
        self._ids = ids
        self.profile = profile
        self.greeted = False
        """An initialize request has come (its answer may be under way)."""
        self.initialized = False
        self.capabilities = ClientCapabilities()
        self.client_name: str | None = None
        self.subs: dict[str, Subscription] = {}
        self.closed = False
        self.revoked = False
        """Its token has ended."""
        self.overflowed = False
        """It was ended because too much waited for it."""
        self.request_seconds: Histograms | None = None
        """(method,): what its requests took; set by the hub."""
        self._methods = methods
        self._sessions: dict[str, Session] = {}
        self._asked: dict[str, _Asked] = {}
        self._next_id = 0
        self._in_flight: dict[JsonId, Context] = {}
        self._requests = 0

    # ---- for the transports ---------------------------------------------------------------------

    def outlet_of(self, session_id: str | None) -> Outlet:
        """The stream for messages of this session; None: of the connection."""
        raise NotImplementedError

    def answers_follow_load(self) -> bool:
        """Does the answer to load wait for the history? (Not where they use different streams.)"""
        return True

    def answers_on_session(self, method: str) -> bool:
        """Does the answer belong to the session's stream? (Not where there is but one.)"""
        return True

    def kick(self, code: int, reason: str) -> None:
        """End the connection; the code is WebSocket's (RFC 6455 §7.4)."""
        raise NotImplementedError

    def revoke(self, reason: str, sentence: str) -> None:
        """Its token has ended: from now on it is neither heard nor told anything. The transport
        closes it at once, without what is queued."""
        self.revoked = True
        log.info("token_ended", connection=self.label, identity=self.identity.name, reason=reason)
        self.drop_requests()
        self.release()

    def give_way(self) -> bool:
        """End, if its client seems to be gone; True when it did."""
        return False

    # ---- in -------------------------------------------------------------------------------------

    def receive(self, message: Message, spawn: Callable[[Context], None]) -> None:
        """One message of the client. ``spawn`` starts `serve` for a request in its own task."""
        if self.revoked:
            return
        if isinstance(message, Request):
            self._receive_request(message, spawn)
        elif isinstance(message, Response):
            self._receive_response(message)
        else:
            self._receive_notification(message)

    def _receive_request(self, request: Request, spawn: Callable[[Context], None]) -> None:
        limit = self.max_in_flight
        if self._requests >= limit:
            error = GatewayError(
                ErrorKind.REQUEST_LIMIT,
                f"{limit} requests are in flight on this connection",
                remedy="wait for answers before sending more",
                limit=limit,
            )
            self.outlet_of(None).send(error_bytes(request.id, error.to_jsonrpc()))
            return
        context = Context(self, request)
        self._requests += 1
        self._in_flight[request.id] = context
        context.refusal = self._refused(request.method)
        if context.refusal is not None:
            pass  # answered where the answer was to come
        elif request.method == "session/prompt" and isinstance(request.params, dict):
            # Admitted here and now, so that prompts keep the order in which they were sent and a
            # cancel behind one finds it.
            self.admit_prompt(context, request.params)
        spawn(context)

    def _refused(self, method: str) -> GatewayError | None:
        """Why a request is not served at all: too many of them, or a token that is not enough."""
        refusal = None
        if self.limits is not None:
            refusal = self.limits.refuse_method(method, self.caller)
        if refusal is None:
            try:
                self.identity.demand(required_by_acp(method))
            except GatewayError as exc:
                return exc
        return refusal

    def admit_prompt(self, context: Context, params: dict[str, Any]) -> None:
        raise NotImplementedError

    def cancel_turns(self, params: dict[str, Any]) -> None:
        """``session/cancel`` as the notification that it is."""
        raise NotImplementedError

    async def serve(self, context: Context) -> None:
        """Run one request and send its answer. Runs in a task of the connection's nursery."""
        request = context.request
        began = trio.current_time()
        try:
            self._answer(context, await self.answer_to(context))
        finally:
            if self.request_seconds is not None:
                method = request.method if request.method in _COUNTED else "other"
                self.request_seconds.observe(trio.current_time() - began, method)
            self._requests -= 1
            if self._in_flight.get(request.id) is context:
                del self._in_flight[request.id]
            slot = context.slot
            if slot is not None and not slot.done:
                sub = slot.sub
                slot.done = True
                if sub is not None and sub.outlet is not None:
                    sub.outlet.wake()
            context.over.set()

    async def answer_to(self, context: Context) -> bytes:
        """The response to a request; -32800 when the client took it back."""
        span = self._span_of(context.request)
        with context.scope:
            if context.refusal is not None:
                return error_bytes(context.request.id, context.refusal.to_jsonrpc())
            try:
                return await dispatch(self._methods, context, context.request)
            finally:
                finish(span)
        error = GatewayError(ErrorKind.REQUEST_CANCELLED, "The request was cancelled")
        return error_bytes(context.request.id, error.to_jsonrpc())

    def _span_of(self, request: Request) -> Span | None:
        """Of a request that does not come over HTTP, which has its span, and is no prompt, which
        has its turn's. In the request's own task: what it starts is a child."""
        params = request.params
        meta = params.get("_meta") if isinstance(params, dict) else None
        if request.method == "session/prompt" or not (tracing.on or meta is not None):
            return None
        parent = parent_for(meta)
        if isinstance(current.get(), Span):
            return None
        span = begin(
            "acp_gateway.request",
            parent,
            **{
                "rpc.system": "jsonrpc",
                "rpc.method": text(request.method),
                "acp_gateway.transport": self.kind,
                "acp_gateway.connection": self.label,
            },
        )
        current.set(span or parent)
        return span

    def _answer(self, context: Context, payload: bytes) -> None:
        if context.direct:
            context.payload = payload
            return
        row = METHODS.get(context.request.method)
        slot = context.slot
        if slot is not None and slot.sub is not None and slot.sub.outlet is not None:
            self._fill(slot.sub.outlet, slot, payload)
            return
        on_session = row is None or row.stream == "session"
        session_id = context.session.id if context.session is not None and on_session else None
        if session_id is None and row is not None and on_session:
            # A refusal goes where the answer was to come.
            params = context.request.params
            named = params.get("sessionId") if isinstance(params, dict) else None
            waits = named in self.subs or (self.is_qwen_sdk and isinstance(named, str))
            if waits and self.answers_on_session(row.name):
                session_id = named
        self.outlet_of(session_id).send(payload)

    def _fill(self, outlet: Outlet, slot: Slot, payload: bytes) -> None:
        outlet.fill(slot, payload)
        if outlet.over:
            self.kick(1013, "Resource limit")

    def _receive_response(self, response: Response) -> None:
        asked = self._asked.pop(response.id, None) if isinstance(response.id, str) else None
        if asked is None:
            return
        asked.response = response
        asked.done.set()
        question = asked.question
        heard = self.identity.may(required_by_acp("session/request_permission"))
        if question is not None and response.error is None and heard:
            # An error or a malformed answer abstains: it never cancels for the others.
            asked.session.desk.vote(
                asked.session.id, question.request_id, response.result, self.voter
            )

    def _receive_notification(self, message: Notification) -> None:
        params = message.params if isinstance(message.params, dict) else {}
        if message.method == "$/cancel_request":
            self._cancel_request(params.get("requestId"))
            return
        if not self.identity.may(required_by_acp(message.method)):
            return  # nobody waits for an answer to a notification
        if message.method == "session/cancel":
            self.cancel_turns(params)
            return
        if self.limits is not None and self.limits.refuse_method(message.method, self.caller):
            return  # nobody waits for an answer
        session = self._notified_session(message.method, params)
        if session is None:
            return
        if message.method.startswith("_"):
            session.notify_agent(message.method, params)

    def _notified_session(self, method: str, params: dict[str, Any]) -> Session | None:
        session_id = params.get("sessionId")
        if isinstance(session_id, str):
            return self._sessions.get(session_id)
        if method.startswith("_") and len(self._sessions) == 1:
            return next(iter(self._sessions.values()))
        return None

    def _cancel_request(self, request_id: Any) -> None:
        """``$/cancel_request`` (ACP v1): the request is still answered."""
        context = self._in_flight.get(request_id) if isinstance(request_id, str | int) else None
        if context is None:
            return
        if context.turn is not None and context.session is not None:
            context.session.cancel_turn(context.turn)
        else:
            context.taken_back = True
            context.scope.cancel()

    # ---- sessions -------------------------------------------------------------------------------

    def follow(
        self,
        session: Session,
        *,
        history: bool,
        last_event_id: int | None = None,
        context: Context | None = None,
    ) -> Subscription:
        """Attach to a session; the answer of ``context`` comes between history and live events."""
        for id, asked in tuple(self._asked.items()):
            if asked.session is session:
                # Its open questions are asked anew: the client shall not show them twice.
                self._withdraw(session, id, asked)
        self.leave(session.id)
        sub = session.attach(self, history=history, last_event_id=last_event_id)
        if self.is_qwen_sdk:
            sub.origin = None  # it shows its user's words when they come back
        self.subs[session.id] = sub
        self._sessions[session.id] = session
        for other in self._in_flight.values():
            if other.session is session and other.slot is not None and other is not context:
                # Its answer still comes behind the events that were before it.
                other.slot = Slot(sub)
        if context is not None:
            context.session = session
        if context is not None and self.answers_follow_load():
            slot = context.slot = Slot(sub)
            # A new session's events come behind the answer that names it.
            slot.fix(0 if context.request.method == "session/new" else session.ring.last_id)
        self.outlet_of(session.id).add(sub)
        for question in session.questions:
            self.ask(session, question)
        return sub

    def leave(self, session_id: str) -> None:
        """Detach from a session."""
        sub = self.subs.pop(session_id, None)
        session = self._sessions.pop(session_id, None)
        if sub is not None and sub.outlet is not None:
            sub.outlet.remove(session_id)
        if sub is not None and session is not None:
            session.detach(self, sub)
        for id, asked in tuple(self._asked.items()):
            if asked.session is session:
                del self._asked[id]
                asked.done.set()

    def drop_requests(self) -> None:
        """Nobody waits for their answers any more."""
        for context in tuple(self._in_flight.values()):
            context.scope.cancel()

    def release(self) -> None:
        """The connection has ended."""
        self.closed = True
        for session_id in tuple(self.subs):
            self.leave(session_id)

    def loading(self, session_id: str) -> bool:
        """Is a request under way that will attach this session?"""
        return any(
            context.request.method in ("session/load", "session/resume")
            and isinstance(context.request.params, dict)
            and context.request.params.get("sessionId") == session_id
            for context in self._in_flight.values()
        )

    @property
    def asked_count(self) -> int:
        """Requests to this client that it has not answered."""
        return len(self._asked)

    @property
    def waiting_bytes(self) -> int:
        """What waits for this client outside the rings."""
        return 0

    @property
    def attached(self) -> tuple[Session, ...]:
        return tuple(self._sessions.values())

    @property
    def only_session(self) -> Session | None:
        return next(iter(self._sessions.values())) if len(self._sessions) == 1 else None

    def session(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    # ---- what a session calls (runtime.session.Client) ------------------------------------------

    @property
    def present(self) -> bool:
        """Is somebody there? What nobody attends may give way to others."""
        return True

    @property
    def is_qwen_sdk(self) -> bool:
        """Qwen's client for its daemon, which takes ACP for another form of the REST surface."""
        return self.client_name == QWEN_CLIENT

    @property
    def client_id(self) -> str:
        """Its name in events and votes; nobody else may use it."""
        return self._ids.of(self.origin)

    @property
    def voter(self) -> Voter:
        return Voter(
            client_id=self.client_id,
            loopback=self.loopback,
            name=self.identity.name,
            party=self.identity.party,
        )

    @property
    def reads_files(self) -> bool:
        return self.capabilities.fs.read_text_file

    @property
    def writes_files(self) -> bool:
        return self.capabilities.fs.write_text_file

    def ask(self, session: Session, question: Question) -> None:
        if self.identity.may(Scope.APPROVE) and session.desk.may_vote(question, self.voter):
            self._request(session, "session/request_permission", question.params, question)

    def _request(
        self, session: Session, method: str, params: Any, question: Question | None = None
    ) -> tuple[str, _Asked] | None:
        sub = self.subs.get(session.id)
        if sub is None or sub.outlet is None:
            return None
        # A string: some clients look a number up among their own requests first.
        self._next_id += 1
        id = f"acp_gateway_{self._next_id}"
        slot = Slot(sub)
        slot.fix(session.ring.last_id)
        asked = _Asked(session, slot, question)
        self._asked[id] = asked
        self._fill(sub.outlet, slot, request_bytes(id, method, params))
        return id, asked

    def question_over(self, session: Session, question: Question) -> None:
        """Settled, by whomever: the copy that this client still holds is withdrawn."""
        for id, asked in tuple(self._asked.items()):
            if asked.question is question:
                del self._asked[id]
                self._withdraw(session, id, asked)

    def _withdraw(self, session: Session, id: str, asked: _Asked) -> None:
        sub = self.subs.get(session.id)
        outlet = None if sub is None else sub.outlet
        if sub is None or outlet is None or outlet.recall(asked.slot):
            return
        slot = Slot(sub)
        slot.fix(session.ring.last_id)
        outlet.fill(slot, notification_bytes("$/cancel_request", {"requestId": id}))

    def session_over(self, session: Session) -> None:
        """The session has ended; what is in its ring still goes out."""
        self.subs.pop(session.id, None)
        self._sessions.pop(session.id, None)
        for id, asked in tuple(self._asked.items()):
            if asked.session is session:
                del self._asked[id]
                asked.done.set()

    async def forward(self, session: Session, method: str, params: Any) -> Any:
        """Ask this client something for the agent. Raises its error, or `ClientGone`."""
        sent = self._request(session, method, params)
        if sent is None:
            raise ClientGone
        id, asked = sent
        try:
            await asked.done.wait()
        except trio.Cancelled:
            self._asked.pop(id, None)
            self._withdraw(session, id, asked)
            raise
        if asked.response is None:
            raise ClientGone
        if asked.response.error is not None:
            raise AgentError(asked.response.error)
        return asked.response.result
