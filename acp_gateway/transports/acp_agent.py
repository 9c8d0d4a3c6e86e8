"""The gateway as an ACP *agent* towards its clients: the method table of ``/acp``."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from acp_gateway.core.identity import OPEN, Identity, Scope
from acp_gateway.core.resume import resync
from acp_gateway.protocol.capabilities import initialize_result
from acp_gateway.protocol.converter import read
from acp_gateway.protocol.errors import AgentError, ErrorKind, GatewayError, unsupported
from acp_gateway.protocol.extensions import OPERATIONS, RPC, Access
from acp_gateway.protocol.methods import strip_private_meta
from acp_gateway.protocol.types import (
    AuthenticateParams,
    InitializeParams,
    LoadSessionParams,
    PromptParams,
    ResumeSessionParams,
    SessionIdParams,
    SetConfigOptionParams,
    SetModelParams,
    SetModeParams,
)
from acp_gateway.runtime.agent_profile import AgentProfile
from acp_gateway.runtime.rpc import MethodTable
from acp_gateway.runtime.session import Session
from acp_gateway.runtime.session_catalog import iso
from acp_gateway.runtime.session_control import (
    apply_wishes,
    branch,
    check_wished_mode,
    clean_name,
    read_rule,
    set_mode,
    set_model,
)
from acp_gateway.runtime.sessions import OWN_ID, SessionManager, checked_session_id
from acp_gateway.runtime.turn_trace import told_meta
from acp_gateway.transports.connection import Connection, Context
from acp_gateway.transports.outlets import resync_notice
from acp_gateway.wire.json_codec import with_meta

OWN_META = "acp_gateway"


def own_meta(params: dict[str, Any]) -> dict[str, Any]:
    """The members that a client addressed to the gateway itself."""
    meta = params.get("_meta")
    own = meta.get(OWN_META) if isinstance(meta, dict) else None
    return own if isinstance(own, dict) else {}


def for_agent(params: dict[str, Any]) -> dict[str, Any]:
    """``params`` without what is meant for the gateway or reserved to it."""
    params = strip_private_meta(params)
    meta = params.get("_meta")
    if isinstance(meta, dict) and OWN_META in meta:
        rest = {key: value for key, value in meta.items() if key != OWN_META}
        params = {key: value for key, value in params.items() if key != "_meta"}
        if rest:
            params["_meta"] = rest
    return params


def _to_attach(context: Context, params: dict[str, Any]) -> dict[str, Any]:
    """What the agent is told of a load or resume. Who may only look names the session: servers,
    directories and what else an agent might act on are for those who may have it work.
    """
    if context.connection.identity.may(Scope.PROMPT):
        return for_agent(params)
    named: dict[str, Any] = {"mcpServers": []}
    return named | {name: params[name] for name in ("sessionId", "cwd") if name in params}


def _resync(session: Session, last: int, epoch: Any) -> bytes:
    """Tells a client that its cursor is of no use: all of the history follows."""
    reason = "ring_evicted" if epoch == session.epoch else "epoch_reset"
    return resync_notice(session.id, resync(reason, last, session.ring.first_id))


_NO_ATTACH = frozenset({"session_detach", "session_permission_vote"})
"""Operations that do not make a stranger follow the session: leaving, and answering a question that
was asked of others."""
_ALL_METHODS = tuple(RPC)
_OWN_METHODS = tuple(name for name, row in RPC.items() if not row.needs_agent)
"""Those that work with any agent."""
Operations: TypeAlias = Callable[[str, Context, dict[str, Any]], Awaitable[Any]]


class AcpAgent:
    """The handlers. They wait for domain work and never own it."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager
        self.operations: Operations | None = None
        """Runs one of `protocol.extensions`; set by the hub."""
        self.client_ids = manager.client_ids
        self.methods = MethodTable(
            {
                "initialize": self.initialize,
                "authenticate": self.authenticate,
                "logout": self.logout,
                "session/new": self.new,
                "session/load": self.load,
                "session/resume": self.resume,
                "session/list": self.list,
                "session/fork": self.fork,
                "session/close": self.close,
                "session/delete": self.delete,
                "session/prompt": self.prompt,
                "session/permission": self.vote,
                "session/cancel": self.cancel,
                "session/set_mode": self.set_mode,
                "session/set_model": self.set_model,
                "session/set_config_option": self.set_config_option,
            },
            fallback=self.extension,
        )

    # ---- connection -----------------------------------------------------------------------------

    async def initialize(self, context: Context, params: dict[str, Any]) -> Any:
        connection = context.connection
        if connection.initialized:
            raise GatewayError(
                ErrorKind.ALREADY_INITIALIZED,
                "This connection is initialized already",
                remedy="open another connection",
            )
        shape = read(InitializeParams, {"protocolVersion": 1, **params})
        connection.initialized = True
        connection.capabilities = shape.client_capabilities
        connection.client_name = shape.client_info.name if shape.client_info else None
        key = own_meta(params).get("clientKey")
        if isinstance(key, str) and key:
            # Never another connection's id, which is its name only where no key is given.
            # Nor another identity's, whatever key that has.
            party = connection.identity.party
            own = key if party is None else f"{party} {key}"
            connection.origin = "key:" + hashlib.sha256(own.encode(errors="replace")).hexdigest()
        handshake = await self._manager.pool.handshake(connection.profile)
        return initialize_result(
            handshake,
            connection_id=connection.id,
            workspaces=tuple(str(root) for root in self._manager.workspace.roots),
            agents=tuple(self._manager.profiles),
            profile=connection.profile.name,
            methods=self._methods_for(connection.profile),
            identity=connection.identity.to_dict(),
        )

    def _methods_for(self, profile: AgentProfile) -> tuple[str, ...]:
        """The ``_qwen/*`` methods to announce."""
        methods = _ALL_METHODS if profile.quirks.private_meta else _OWN_METHODS
        if self._manager.shell_is_on:
            return methods
        return tuple(each for each in methods if "session_shell_command" not in RPC[each].tags)

    async def authenticate(self, context: Context, params: dict[str, Any]) -> Any:
        shape = read(AuthenticateParams, params)
        await self._check_auth_method(context.connection.profile, shape.method_id)
        result = await self._manager.pool.authenticate(
            context.connection.profile, for_agent(params)
        )
        return result if isinstance(result, dict) else {}

    async def _check_auth_method(self, profile: AgentProfile, method_id: str) -> None:
        """Refuse a method that initialize did not offer, or that is for a terminal (ACP v1)."""
        handshake = await self._manager.pool.handshake(profile)
        methods = (handshake or {}).get("authMethods")
        if handshake is None or not isinstance(methods, list):
            return
        offered = [
            method.get("id")
            for method in methods
            if isinstance(method, dict) and method.get("type", "agent") != "terminal"
        ]
        if method_id not in offered:
            raise GatewayError(
                ErrorKind.INVALID_PARAMS,
                f'The agent {profile.name} has no authentication method "{method_id}"',
                remedy=f"use one of {offered}" if offered else "this agent needs no sign-in",
                errors=[{"path": "params.methodId", "message": "is not an offered method"}],
            )

    async def logout(self, context: Context, params: dict[str, Any]) -> Any:
        profile, pool = context.connection.profile, self._manager.pool
        async with pool.borrow(profile) as host:
            timeout = self._manager.settings.agent_request_timeout
            try:
                await host.request("logout", for_agent(params), timeout=timeout)
            except AgentError as exc:
                raise unsupported(exc, profile.name, "logout") from None
        pool.retire_spares(profile)
        return {}

    # ---- sessions -------------------------------------------------------------------------------

    async def new(self, context: Context, params: dict[str, Any]) -> Any:
        own = own_meta(params)
        key = own.get("requestKey")
        wishes = {
            name: params[name] for name in ("approvalMode", "modelServiceId") if name in params
        }
        params = {name: value for name, value in params.items() if name not in wishes}
        identity = context.connection.identity
        check_wished_mode(wishes.get("approvalMode"), identity)
        rule = read_rule(own, self._manager.desk.rule, identity)
        profile = context.connection.profile
        meta = params.get("_meta")
        wanted = meta.get(OWN_ID) if isinstance(meta, dict) else None
        if wanted is not None:
            session = await self._manager.create_named(
                for_agent(params), profile, checked_session_id(wanted), rule
            )
        else:
            session = await self._manager.create(
                for_agent(params), profile, key if isinstance(key, str) else None, rule
            )
        client = context.connection.client_id
        await apply_wishes(
            session, wishes.get("approvalMode"), wishes.get("modelServiceId"), client
        )
        context.connection.follow(session, history=True, context=context)
        return self._opened(session, context.connection)

    def _opened(
        self,
        session: Session,
        connection: Connection,
        *,
        resumed: bool = False,
        attached: bool = False,
    ) -> dict[str, Any]:
        # ``sessionId`` also for load and resume: two known clients open the session's stream only
        # when a result names it.
        # The other plain members are for Qwen's client, which takes this for the REST answer.
        return {
            "sessionId": session.id,
            "workspaceCwd": str(session.cwd),
            "clientId": connection.client_id,
            "createdAt": iso(session.created_at),
            "attached": attached,
            "hasActivePrompt": session.queue.running is not None,
            **session.state.as_result(),
            "_meta": {
                **session.state.meta,
                OWN_META: {
                    "epoch": session.epoch,
                    "lastEventId": session.ring.last_id,
                    "resumed": resumed,
                    "openPermissions": [each.request_id for each in session.questions],
                },
            },
        }

    async def load(self, context: Context, params: dict[str, Any]) -> Any:
        read(LoadSessionParams, params)
        attached = params["sessionId"] in self._manager.sessions
        asked = _to_attach(context, params)
        session = await self._manager.open("load", asked, context.connection.profile)
        own = own_meta(params)
        last = own.get("lastEventId")
        ring = session.ring
        resumed = (
            isinstance(last, int)
            and own.get("epoch") == session.epoch
            and ring.first_id - 1 <= last <= ring.last_id
        )
        sub = context.connection.follow(
            session,
            history=not resumed,
            last_event_id=last if resumed else None,
            context=context,
        )
        if isinstance(last, int) and not resumed:
            ring.missed += 1
            sub.history.appendleft(_resync(session, last, own.get("epoch")))
        return self._opened(session, context.connection, resumed=resumed, attached=attached)

    async def resume(self, context: Context, params: dict[str, Any]) -> Any:
        read(ResumeSessionParams, params)
        attached = params["sessionId"] in self._manager.sessions
        asked = _to_attach(context, params)
        session = await self._manager.open("resume", asked, context.connection.profile)
        context.connection.follow(session, history=False, context=context)
        return self._opened(session, context.connection, attached=attached)

    async def list(self, context: Context, params: dict[str, Any]) -> Any:
        if "workspaceCwd" in params:  # Qwen's client: the list of the REST route
            meta = params.get("_meta")
            size = meta.get("size") if isinstance(meta, dict) else None
            asked = {**params, "workspace": params["workspaceCwd"], "size": size}
            return await self._operation("session_list", context, asked)
        # A spare that is just starting knows the stored sessions.
        await self._manager.pool.handshake(context.connection.profile)
        return await self._manager.catalog.page(for_agent(params), context.connection.profile)

    async def fork(self, context: Context, params: dict[str, Any]) -> Any:
        shape = read(SessionIdParams, params)
        if "cwd" in params:
            session = await self._manager.fork(for_agent(params), context.connection.profile)
        else:  # Qwen's client
            source = self._manager.get(shape.session_id)
            name = clean_name(params.get("name"), 200)
            session, told = await branch(self._manager, source, name, None)
            if told or name:
                session.rename(told or name or "", source="manual")
        context.connection.follow(session, history=False, context=context)
        return self._opened(session, context.connection) | (
            {} if session.display_name is None else {"displayName": session.display_name}
        )

    async def close(self, context: Context, params: dict[str, Any]) -> Any:
        shape = read(SessionIdParams, params)
        session = self._manager.get(shape.session_id)
        connection = context.connection
        context.place(session)
        others = [
            client
            for client in session.clients.values()
            if client is not connection and client.present
        ]
        if others or session.streams or len(session.parties) > 1:
            connection.leave(session.id)
            if not session.parties.has(connection.client_id, connection.identity):
                session.desk.leave(session.id, connection.client_id)
        else:
            await session.close("client_close", client=connection.client_id)
        return {}

    async def delete(self, context: Context, params: dict[str, Any]) -> Any:
        shape = read(SessionIdParams, params)
        await self._manager.delete(shape.session_id, for_agent(params), context.connection.profile)
        return {}

    # ---- in a session ---------------------------------------------------------------------------

    def session_of(self, context: Context, session_id: str) -> Session:
        """The live session; a connection that did not attach to it follows it from now on."""
        session = self._manager.get(session_id)
        if session_id not in context.connection.subs:
            context.connection.follow(session, history=False)
        return session

    def admit(self, context: Context, params: dict[str, Any]) -> None:
        """Take a prompt into its session's queue, in wire order (see `Connection`)."""
        try:
            shape = read(PromptParams, params)
            if not shape.prompt:
                raise GatewayError(
                    ErrorKind.INVALID_PARAMS,
                    "params.prompt must hold at least one content block",
                    errors=[{"path": "params.prompt", "message": "must not be empty"}],
                )
            session = self.session_of(context, shape.session_id)
            key = own_meta(params).get("promptKey")
            turn = session.submit(
                for_agent(params),
                origin=context.connection.origin,
                client=context.connection.client_id,
                identity=context.connection.identity,
                key=f"acp:{key}" if isinstance(key, str) else None,
            )
        except GatewayError as exc:
            context.refusal = exc
            return
        context.turn = turn
        context.place(session)
        turn.when_settled(lambda _: context.fix(session.ring.last_id))

    async def prompt(self, context: Context, params: dict[str, Any]) -> Any:
        if context.refusal is not None:
            raise context.refusal
        turn = context.turn
        if turn is None:  # params were no object, or a transport did not admit
            raise GatewayError(ErrorKind.INVALID_PARAMS, "params must be an object")
        await Session.settled(turn)
        if isinstance(turn.outcome, GatewayError):
            raise turn.outcome
        return with_meta(turn.outcome, told_meta(turn))

    async def cancel(self, context: Context, params: dict[str, Any]) -> Any:
        """``session/cancel`` is a notification; sent as a request it is answered."""
        read(SessionIdParams, params)
        self._manager.get(params["sessionId"])
        self.cancel_turns(context.connection, params)
        return {}

    def cancel_turns(self, connection: Connection, params: dict[str, Any]) -> None:
        """The running turn, whoever began it, and the waiting ones of this connection."""
        session = self._manager.sessions.get(str(params.get("sessionId")))
        if session is not None:
            session.cancel(connection.origin, connection.client_id)

    async def set_mode(self, context: Context, params: dict[str, Any]) -> Any:
        shape = read(SetModeParams, params)
        session = self.session_of(context, shape.session_id)
        context.place(session)
        await set_mode(
            session,
            shape.mode_id,
            context.connection.client_id,
            given=for_agent(params),
            placed=context.fix,
        )
        return {}

    async def set_model(self, context: Context, params: dict[str, Any]) -> Any:
        shape = read(SetModelParams, params)
        session = self.session_of(context, shape.session_id)
        context.place(session)
        result = await set_model(
            session,
            shape.model_id,
            context.connection.client_id,
            given=for_agent(params),
            placed=context.fix,
        )
        return result if isinstance(result, dict) else {}

    async def set_config_option(self, context: Context, params: dict[str, Any]) -> Any:
        shape = read(SetConfigOptionParams, params)
        session = self.session_of(context, shape.session_id)
        context.place(session)
        result = await session.request("session/set_config_option", for_agent(params), context.fix)
        options = result.get("configOptions") if isinstance(result, dict) else None
        if isinstance(options, list) and options != session.state.config_options:
            session.publish_update(
                {"sessionUpdate": "config_option_update", "configOptions": options}
            )
        return result

    async def vote(self, context: Context, params: dict[str, Any]) -> Any:
        """``session/permission`` (Qwen): a vote as a request of its own."""
        named = "session_permission_vote" if "sessionId" in params else "permission_vote"
        return await self._operation(named, context, params)

    async def _operation(self, name: str, context: Context, params: dict[str, Any]) -> Any:
        if self.operations is None:
            raise GatewayError(ErrorKind.METHOD_NOT_FOUND, f'Method not found: "{name}"')
        session_id = params.get("sessionId")
        row = OPERATIONS[name]
        if isinstance(session_id, str) and row.scope == "session":
            self._check_client(context, session_id, params)
            if row.access is not Access.READ and name not in _NO_ATTACH:
                self.session_of(context, session_id)
        return await self.operations(name, context, params)

    def _check_client(self, context: Context, session_id: str, params: dict[str, Any]) -> None:
        """A client id in ``_meta`` must be the connection's own."""
        meta = params.get("_meta")
        named = meta.get("clientId") if isinstance(meta, dict) else None
        if isinstance(named, str):
            session = self._manager.get(session_id)
            connection = context.connection
            session.parties.check(named, connection.origin, session_id, connection.identity)

    async def extension(self, context: Context, params: dict[str, Any]) -> Any:
        """A method that begins with ``_``: the daemon's own, else the agent's of its session."""
        row = RPC.get(context.request.method)
        if row is not None:
            return await self._operation(row.name, context, params)
        connection = context.connection
        session_id = params.get("sessionId")
        if isinstance(session_id, str):
            session = self.session_of(context, session_id)
        elif connection.only_session is not None:
            session = connection.only_session
        else:
            raise GatewayError(
                ErrorKind.INVALID_PARAMS,
                f"{context.request.method} needs params.sessionId: "
                "it does not say which agent it is for",
                remedy="add sessionId to params",
                errors=[{"path": "params.sessionId", "message": "is required"}],
            )
        context.place(session)
        return await session.request(context.request.method, for_agent(params), context.fix)


class AcpConnection(Connection):
    """A connection whose prompts are admitted by an `AcpAgent`."""

    def __init__(
        self, agent: AcpAgent, profile: Any, *, loopback: bool, identity: Identity = OPEN
    ) -> None:
        super().__init__(
            profile, agent.methods, agent.client_ids, loopback=loopback, identity=identity
        )
        self._agent = agent

    def admit_prompt(self, context: Context, params: dict[str, Any]) -> None:
        self._agent.admit(context, params)

    def cancel_turns(self, params: dict[str, Any]) -> None:
        self._agent.cancel_turns(self, params)
