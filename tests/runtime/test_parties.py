"""Client ids: minted here, bound to who they were minted for, counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import support.transport_imports  # noqa: F401
from support.event_reader import hub_of
from support.fake_agent import PROFILE, FakePool, fake_manager, settle, start
from support.runtime_rig import Recorder

from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.parties import REMEMBERED, ClientIds, Parties, checked_syntax
from acp_gateway.runtime.rpc import MethodTable
from acp_gateway.runtime.session import Session
from acp_gateway.transports.connection import Connection
from acp_gateway.transports.operations import permissions, sessions, turns
from acp_gateway.transports.operations.call import Call, Caller


@pytest.mark.parametrize("value", ["a", "A.b_c:d-1", "client_" + "x" * 121])
def test_the_syntax(value: str) -> None:
    assert checked_syntax(value) == value


@pytest.mark.parametrize("value", ["a b", "x" * 129, "é", "a/b", "a\n", '"', "a\x00"])
def test_a_bad_one_is_refused(value: str) -> None:
    with pytest.raises(GatewayError) as caught:
        checked_syntax(value)
    status, body = caught.value.to_http()
    assert (status, body["code"]) == (400, "invalid_client_id")


@pytest.mark.parametrize("value", ["", None])
def test_empty_is_absent(value: str | None) -> None:
    assert checked_syntax(value) is None


def test_ids_are_minted_here_and_never_chosen_by_a_client() -> None:
    parties = Parties()
    one, two = parties.join(None, None), parties.join("alice", None)
    assert one != two and {one, two} == parties.ids
    assert all(each.startswith("client_") for each in (one, two))
    assert parties.join(one, None) == one, "its own it may go on using"
    assert len(parties) == 2


def test_references() -> None:
    parties = Parties()
    one = parties.join(None, None)
    for _ in range(2):
        parties.join(one, None)
    assert [parties.leave(one) for _ in range(4)] == [False, False, True, False]
    assert not parties and parties.find(one, None) is None


def test_an_id_works_only_for_whom_it_was_minted() -> None:
    parties = Parties()
    rest = parties.join(None, None)
    assert parties.join("client_acp", "origin-1") == "client_acp"
    assert parties.check(rest, None, "s") and parties.check("client_acp", "origin-1", "s")
    assert parties.check(None, None, "s") is None, "anonymous"
    for client, binding in (
        (rest, "origin-1"),
        ("client_acp", None),
        ("client_acp", "origin-2"),
        ("client_unknown", None),
    ):
        with pytest.raises(GatewayError) as caught:
            parties.check(client, binding, "s")
        status, body = caught.value.to_http()
        assert (status, body["code"]) == (400, "invalid_client_id")
        assert (body["sessionId"], body["clientId"]) == ("s", client)
        assert body["error"] == f'Client id "{client}" is not registered for session s'
    # Nor does attaching with another's id give it: a new one is minted.
    assert parties.join("client_acp", None) not in ("client_acp", rest)
    found = parties.find("client_acp", "origin-1")
    assert found is not None and found.references == 1


def test_an_acp_client_keeps_its_id_while_it_is_remembered() -> None:
    ids = ClientIds()
    first = ids.of("me")
    for number in range(REMEMBERED - 1):
        ids.of(str(number))
    assert ids.of("me") == first
    for number in range(REMEMBERED):
        ids.of(f"more {number}")
    assert ids.of("me") != first


# ---- in a session -------------------------------------------------------------------------------


class Peer(Connection):
    """A connection without a transport."""

    def __init__(self, ids: ClientIds, origin: str | None = None) -> None:
        super().__init__(PROFILE, MethodTable({}), ids, loopback=True)
        self.origin = origin or self.origin
        self._recorder = Recorder()

    def outlet_of(self, session_id: str | None) -> Any:
        return self._recorder.outlet


async def test_ids_do_not_cross_between_rest_and_acp(tmp_path: Path) -> None:
    async with fake_manager(tmp_path, FakePool()) as (manager, _):
        hub = hub_of(manager)
        session = await start(manager, tmp_path)
        peer = Peer(manager.client_ids)
        peer.follow(session, history=True)
        rest = session.parties.join(None, None)
        assert session.parties.ids == {rest, peer.client_id}

        def call(client: str | None, binding: str | None, **params: Any) -> Call:
            caller = Caller(claimed=client, binding=binding, loopback=True)
            return Call(hub=hub, caller=caller, params={"sessionId": session.id, **params})

        blocks = [{"type": "text", "text": "x"}]
        for client, binding in ((peer.client_id, None), (rest, peer.origin)):
            for handler, params in (
                (turns.prompt, {"prompt": blocks}),
                (turns.cancel, {}),
                (sessions.heartbeat, {}),
                (sessions.close, {}),
                (turns.mid_turn, {"message": "x"}),
            ):
                with pytest.raises(GatewayError) as caught:
                    await handler(call(client, binding, **params))
                assert caught.value.kind is ErrorKind.INVALID_CLIENT_ID
            # Detaching another is silently nothing.
            await sessions.detach(call(client, binding))
        assert session.over is None and session.ring.last_id == 0
        # Reading with it is allowed: one of Qwen's clients reads over REST what it does over ACP.
        reading = attrs.evolve(call(peer.client_id, None), reads=True)
        assert (await turns.pending(reading)) == {"pendingPrompts": []}
        with pytest.raises(GatewayError):
            await turns.pending(attrs.evolve(call("client_unknown", None), reads=True))
        assert session.parties.ids == {rest, peer.client_id}


async def test_a_vote_in_another_s_name_is_refused(tmp_path: Path) -> None:
    async with fake_manager(tmp_path, FakePool()) as (manager, pool):
        hub = hub_of(manager)
        session = await start(manager, tmp_path)
        peer = Peer(manager.client_ids)
        peer.follow(session, history=True)
        host = pool.hosts[-1]
        host.ask(session.agent_id)
        question = await _asked(session)
        params = {
            "sessionId": session.id,
            "requestId": question.request_id,
            "outcome": {"outcome": "selected", "optionId": "yes"},
        }
        for handler in (permissions.vote, permissions.vote_anywhere):
            caller = Caller(claimed=peer.client_id)
            with pytest.raises(GatewayError) as caught:
                await handler(Call(hub=hub, caller=caller, params=params))
            assert caught.value.kind is ErrorKind.INVALID_CLIENT_ID
        assert question.open


async def _asked(session: Session) -> Any:
    await settle(lambda: session.questions)
    return session.questions[0]


async def test_a_client_that_names_itself_keeps_its_id_over_its_connections(
    tmp_path: Path,
) -> None:
    async with fake_manager(tmp_path, FakePool()) as (manager, _):
        session = await start(manager, tmp_path)
        first, other = Peer(manager.client_ids, "key"), Peer(manager.client_ids)
        first.follow(session, history=True)
        id = first.client_id
        assert other.client_id != id
        # Its second connection is there before the first has gone.
        second = Peer(manager.client_ids, "key")
        second.follow(session, history=True)
        assert second.client_id == id
        party = session.parties.find(id, "key")
        assert party is not None and party.references == 2
        first.release()
        assert session.parties.ids == {id}
        # Attaching anew on the same connection counts once.
        second.follow(session, history=True)
        party = session.parties.find(id, "key")
        assert party is not None and party.references == 1
        second.release()
        assert not session.parties and not session.clients and not session.subs
