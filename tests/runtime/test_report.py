"""Status, health, issues and usage, without HTTP and without processes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from support.event_reader import hub_of
from support.fake_agent import FakePool, fake_manager, start
from support.runtime_rig import make_rig, obedient, settings
from trio.testing import MockClock

from acp_gateway.core.identity import DAEMON, NOBODY, OPEN, Identity, Kind
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime.loop_lag import OFTEN, SELDOM, LoopLag
from acp_gateway.runtime.machine import Disk, ProcessFacts
from acp_gateway.runtime.session import Session
from acp_gateway.transports import machine_watch
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.machine_watch import Machine, MachineWatch
from acp_gateway.transports.operations import report, web_shell
from acp_gateway.transports.operations.call import Call, Caller, Reply
from acp_gateway.transports.operations.issues import issues_of
from acp_gateway.transports.rate_limits import RateLimits

GIB = 1 << 30


@pytest.fixture
async def hub(tmp_path: Path) -> Hub:
    """Of a pool that was never run."""
    return hub_of(make_rig(tmp_path, [obedient(tmp_path / "log")], settings()).manager)


def machine(**disks: Disk) -> Machine:
    return Machine(own=ProcessFacts(), max_fds=None, agents={}, disks=disks)


def codes(hub: Hub, found: Machine | None = None, sections: Any = None) -> list[str]:
    return [each["code"] for each in issues_of(hub, found or machine(), sections or {})]


async def ask(hub: Hub, operation: Any, **params: Any) -> tuple[int | None, Any]:
    told = await operation(Call(hub=hub, caller=Caller(), params=params))
    return (told.status, told.body) if isinstance(told, Reply) else (None, told)


# ---- health --------------------------------------------------------------------------------------


async def test_numbers_that_cannot_be_collected_are_a_503(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await ask(hub, report.health, deep="1"))[0] is None

    def broken(*_: Any) -> Any:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(hub.manager.desk, "pending", broken)
    degraded = {"status": "degraded", "reason": "aggregation_failed"}
    for deep in ("1", "true", "", True):
        assert await ask(hub, report.health, deep=deep) == (503, degraded)
    # Without deep nothing is collected.
    assert (await ask(hub, report.health))[1]["status"] == "ok"
    assert (await ask(hub, report.health, deep="0"))[1]["status"] == "ok"


@pytest.mark.parametrize("loopback", [True, False])
@pytest.mark.parametrize("require_auth", [True, False])
async def test_who_may_see_numbers(tmp_path: Path, loopback: bool, require_auth: bool) -> None:
    made = settings(require_auth=require_auth, token="t")
    hub = hub_of(make_rig(tmp_path, [obedient(tmp_path / "log")], made).manager)
    hub.policy = attrs.evolve(hub.policy, loopback=loopback)
    nothing = Identity(kind=Kind.JWT, name="x")
    refused = (ErrorKind.AUTH_REQUIRED, ErrorKind.INSUFFICIENT_SCOPE)
    guarded = require_auth or not loopback
    for identity, kind in (
        (NOBODY, refused[0]),
        (nothing, refused[1]),
        (DAEMON, None),
        (OPEN, None),
    ):
        caller = Caller(identity=identity)
        for deep in ("1", "true", "", True):
            call = Call(hub=hub, caller=caller, params={"deep": deep})
            if guarded and kind is not None:
                with pytest.raises(GatewayError) as caught:
                    await report.health(call)
                assert caught.value.kind is kind
            else:
                assert "sessions" in await report.health(call)
        plain = Call(hub=hub, caller=caller, params={})
        assert set(await report.health(plain)) == {"status", "version"}


async def test_readiness(hub: Hub) -> None:
    name = hub.default_profile.name
    assert await ask(hub, report.readyz) == (503, {"status": "agent_starting"})
    hub.manager.pool.failures[name] = GatewayError(ErrorKind.AGENT_START_FAILED, "It broke")
    assert await ask(hub, report.readyz) == (503, {"status": "agent_failed"})
    hub.manager.pool.failures.clear()
    hub.manager.pool.handshakes[name] = {}
    assert await ask(hub, report.readyz) == (None, {"status": "ready"})
    hub.manager.draining = True
    assert await ask(hub, report.readyz) == (503, {"status": "draining"})


# ---- issues --------------------------------------------------------------------------------------


async def test_nothing_is_wrong(hub: Hub) -> None:
    plenty = Disk(path="/", total_bytes=100 * GIB, free_bytes=50 * GIB)
    assert codes(hub, machine(workspace=plenty, state=Disk(path="/unknown"))) == []


async def test_each_issue_has_its_cause(hub: Hub) -> None:
    hub.limits = RateLimits(settings(rate_limit=True, rate_limit_prompt=1))
    assert hub.limits.refuse_method("session/prompt", "me") is None
    assert hub.limits.refuse_method("session/prompt", "me") is not None
    assert codes(hub) == ["rate_limit_hits"]
    hub.log_health = lambda: {"logMode": "fallback", "logHealth": "degraded", "logIssues": ["full"]}
    assert codes(hub) == ["rate_limit_hits", "daemon_log_degraded"]
    hub.traffic.open_sockets = hub.settings.max_tcp_connections
    hub.manager._budget.total = hub.settings.total_ring_bytes
    assert codes(hub)[:2] == ["connection_capacity_high", "event_memory_high"]
    for _, severity in [(each["code"], each["severity"]) for each in issues_of(hub, machine(), {})]:
        assert severity == "warning"
    hub.manager.pool.failures["scripted"] = GatewayError(ErrorKind.AGENT_START_FAILED, "It broke")
    (down,) = [i for i in issues_of(hub, machine(), {}) if i["code"] == "acp_channel_down"]
    assert down["severity"] == "error" and "It broke" in down["message"]


@pytest.mark.parametrize(
    ("total", "free", "low"),
    [(100 * GIB, GIB, False), (100 * GIB, GIB // 4, True), (GIB, GIB // 4, False), (0, 0, False)],
)
async def test_a_disk_is_low_by_share_and_by_size(
    hub: Hub, total: int, free: int, low: bool
) -> None:
    found = machine(state=Disk(path="/", total_bytes=total, free_bytes=free))
    assert codes(hub, found) == (["disk_space_low"] if low else [])


async def test_a_section_that_fails_takes_nothing_with_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(call: Call) -> Any:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(web_shell, "providers", broken)
    _, body = await ask(hub, report.status, detail="full")
    found = body["full"]["workspace"]
    assert found["providers"]["status"] == "unavailable"
    assert found["providers"]["error"]["kind"] == "error" and "secret" not in str(body)
    assert found["preflight"]["data"]["cells"] and found["env"]["status"] == "ok"
    assert "workspace_status_unavailable" in [each["code"] for each in body["issues"]]


# ---- processes, and the loop ---------------------------------------------------------------------


async def test_what_was_looked_up_is_kept_for_a_second(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looks = 0
    real = machine_watch._look

    def look(*given: Any) -> Machine:
        nonlocal looks
        looks += 1
        return real(*given)

    monkeypatch.setattr(machine_watch, "_look", look)
    watch = MachineWatch()
    pids, places = {os.getpid()}, {"state": tmp_path / "not" / "made" / "yet"}
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(watch.look, pids, places)
    assert looks == 1
    found = await watch.look(pids, places)
    assert looks == 1 and found.own.rss_bytes
    assert found.disks["state"].path == str(tmp_path)  # the nearest that is there
    mock_clock.jump(1.1)
    await watch.look(pids, places)
    assert looks == 2


async def test_the_loop_is_looked_at_often_only_while_somebody_asks(
    autojump_clock: MockClock,
) -> None:
    lag = LoopLag()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lag.run)
        await trio.sleep(10 * SELDOM + 0.5)
        assert lag.seconds.count == 10
        lag.ask()
        await trio.sleep(SELDOM + 30 * OFTEN)
        assert 30 <= lag.seconds.count - 10 <= 31 + SELDOM
        assert lag.seconds.largest < 0.001
        nursery.cancel_scope.cancel()


# ---- usage ---------------------------------------------------------------------------------------


def chunk(session: Session, text: str, **meta: Any) -> bytes:
    update: dict[str, Any] = {
        "sessionUpdate": "agent_message_chunk",
        "content": {"type": "text", "text": text},
    }
    if meta:
        update["_meta"] = meta
    return told(session, update)


def told(session: Session, update: dict[str, Any]) -> bytes:
    params = {"sessionId": session.agent_id, "update": update}
    message = {"jsonrpc": "2.0", "method": "session/update", "params": params}
    return json.dumps(message, separators=(",", ":")).encode()


async def turn(session: Session, pool: FakePool, *lines: bytes, **result: Any) -> None:
    params = {"sessionId": session.id, "prompt": [{"type": "text", "text": "go"}]}
    asked = session.submit(params, origin=None)
    while session.agent_id not in pool.prompts:
        await trio.lowlevel.checkpoint()
    host = pool.hosts[-1]
    host.handle(list(lines))
    host.reply(pool.prompts.pop(session.agent_id), {"stopReason": "end_turn", **result})
    await session.settled(asked)


USED = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15}


async def test_usage_in_chunks_is_read_of_the_agents_that_tell_it_so(tmp_path: Path) -> None:
    async with fake_manager(tmp_path) as (manager, pool):
        session = await start(manager, tmp_path)
        lines = (
            chunk(session, "a"),
            # Text of the model is no report of the agent.
            chunk(session, json.dumps({"_meta": {"usage": USED}})),
            chunk(session, "", usage=USED, durationMs=1),
            chunk(session, "", usage=USED),
        )
        await turn(session, pool, *lines)
        assert session.usage.all.told is False
        session._usage_in_chunks = True
        await turn(session, pool, *lines)
        assert (session.usage.all.total, session.usage.all.turns) == (30, 1)
        # What is replayed, or comes between turns, is of none.
        pool.hosts[-1].handle([chunk(session, "", usage=USED)])
        assert session.usage.new.told is False
        assert manager.ledger.usage["fake"].total == 30
        assert session.ring.last_id == len([*lines, *lines]) + 1 + 2 * 2  # nothing is left out


async def test_results_and_costs_are_folded_at_the_end_of_a_turn(tmp_path: Path) -> None:
    async with fake_manager(tmp_path) as (manager, pool):
        session = await start(manager, tmp_path)

        def spent(amount: float) -> bytes:
            cost = {"amount": amount, "currency": "USD"}
            return told(
                session, {"sessionUpdate": "usage_update", "used": 1, "size": 2, "cost": cost}
            )

        await turn(session, pool, spent(0.1), spent(0.25), usage=USED)
        await turn(session, pool, spent(0.75), usage=USED)
        assert session.usage.all.as_json() == {
            **dict.fromkeys(("thoughtTokens", "cachedReadTokens", "cachedWriteTokens"), 0),
            **{name: 2 * value for name, value in USED.items()},
            "turns": 2,
            "cost": [{"amount": 0.75, "currency": "USD"}],
        }
        assert manager.ledger.usage["fake"].cost == {"USD": pytest.approx(0.75)}
        await session.close("client_close")
        # The session is gone, the daemon's sums are not.
        assert manager.ledger.usage["fake"].total == 30
        assert manager.ledger.ended == {("fake", "client_close"): 1}
        assert manager.ledger.turns == {("fake", "end_turn"): 2}


async def test_words_of_agents_are_no_labels(tmp_path: Path) -> None:
    async with fake_manager(tmp_path) as (manager, pool):
        session = await start(manager, tmp_path)
        for number in range(5):
            await turn(session, pool, stopReason=f"reason-{number}")
        assert manager.ledger.turns == {("fake", "other"): 5}


async def test_an_agent_that_dies_is_counted_once(tmp_path: Path) -> None:
    pool = FakePool(can_load=False)
    async with fake_manager(tmp_path, pool) as (manager, _):
        session = await start(manager, tmp_path)
        params = {"sessionId": session.id, "prompt": [{"type": "text", "text": "go"}]}
        asked = session.submit(params, origin=None)
        while session.agent_id not in pool.prompts:
            await trio.lowlevel.checkpoint()
        pool.hosts[-1].die()
        await session.settled(asked)
        await session.ended.wait()
        ledger = manager.ledger
        await trio.testing.wait_all_tasks_blocked()
        assert ledger.died == {("fake", "channel_closed", "false"): 1}
        assert ledger.ended == {("fake", "agent_exited"): 1}
        assert ledger.turns == {("fake", "error"): 1}
        assert sum(ledger.turn_errors.values()) == 1
        assert ledger.turn_seconds[("fake",)].count == 1
