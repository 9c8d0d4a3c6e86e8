"""Sign-ins on trio: waiting, giving up, secrets, files; with a clock that jumps."""

from __future__ import annotations

import gc
import json
import os
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing
from test_cancellation import cut_short, steps

from acp_gateway.core.device_effects import (
    Begun,
    Codes,
    Failure,
    Granted,
    Outcome,
    Owner,
    Refused,
    SlowDown,
    Waiting,
)
from acp_gateway.core.device_flow import Status
from acp_gateway.core.secret import Secret
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.runtime import credentials as credential_files
from acp_gateway.runtime import device_flow
from acp_gateway.runtime.credentials import credentials_text, write_credentials
from acp_gateway.runtime.device_flow import Grant, ProviderError, SignIns
from acp_gateway.runtime.sign_in_providers import Provider

ME, OTHER = Owner("me"), Owner("other")
CODE, VERIFIER, TOKEN, USER = "SECRET-device", "SECRET-verifier", "SECRET-token", "SECRET-user"
URI = "https://example.org/SECRET-uri"


class Calls:
    """A provider that does what it is told."""

    def __init__(self) -> None:
        self.begun = 0
        self.polls: list[float] = []
        self.begin_with: Callable[[], Awaitable[None]] | None = None
        self.poll_with: Callable[[], Awaitable[Outcome]] | None = None
        self.outcomes: list[Outcome] = [Waiting()]
        self.lifetime: float | None = 600.0
        self.interval: float | None = 5.0
        self.grants: list[Grant] = []
        self.written: list[Secret] = []

    async def begin(self, provider: Provider) -> tuple[Begun, Grant]:
        self.begun += 1
        await trio.lowlevel.checkpoint()
        if self.begin_with is not None:
            await self.begin_with()
        codes = Codes(
            user_code=USER, verification_uri=URI, verification_uri_complete=f"{URI}?{USER}"
        )
        grant = Grant(
            device_code=Secret(CODE), verifier=Secret(VERIFIER), token_endpoint="https://x/t"
        )
        self.grants.append(grant)
        return Begun(codes=codes, lifetime=self.lifetime, interval=self.interval), grant

    async def poll(self, provider: Provider, grant: Grant) -> tuple[Outcome, Secret | None]:
        assert grant.device_code.reveal() == CODE
        self.polls.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.poll_with is not None:
            outcome = await self.poll_with()
        else:
            outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Granted):
            answer = {"access_token": TOKEN}
            text = credentials_text(provider, answer, outcome.expires_at, grant.token_endpoint)
            self.written.append(text)
            return outcome, text
        return outcome, None


class Site:
    def __init__(self, path: Path) -> None:
        self.calls = Calls()
        self.events: list[tuple[str, dict[str, Any], str | None]] = []
        self.signed_in: list[str] = []
        self.told = trio.Event()
        self.file = path / "home" / "creds.json"
        self.providers = {
            name: Provider(name=name, title=name, client_id="c", credentials=self.file)
            for name in "abcdef"
        }
        self.sign_ins = SignIns(
            self.providers,
            self.calls,
            self.announce,
            lambda provider: self.signed_in.append(provider.name),
        )

    @property
    def kinds(self) -> list[str]:
        return [kind.removeprefix("auth_device_flow_") for kind, *_ in self.events]

    def announce(self, *event: Any) -> None:
        self.events.append(event)
        self.told.set()
        self.told = trio.Event()

    async def ended(self, flow: Any) -> None:
        while flow.pending:
            await self.told.wait()


@asynccontextmanager
async def site(path: Path) -> AsyncIterator[Site]:
    made = Site(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(made.sign_ins.run)
        yield made
        nursery.cancel_scope.cancel()


@pytest.fixture
def _jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps; files are written at once, as it would jump while a thread writes."""

    async def at_once(write: Callable[[], bool]) -> bool:
        await trio.lowlevel.checkpoint()
        return write()

    monkeypatch.setattr(device_flow, "in_thread", at_once)


@pytest.mark.usefixtures("_jumps")
async def test_a_sign_in(tmp_path: Path, autojump_clock: Any) -> None:
    async with site(tmp_path) as s:
        s.calls.outcomes = [Waiting(), SlowDown(), Waiting(), Granted(1_900_000_000.0)]
        began = trio.current_time()
        flow, attached = await s.sign_ins.start("a", ME)
        assert not attached and s.sign_ins.pending() == [flow]
        await s.ended(flow)
        assert [round(at - began) for at in s.calls.polls] == [5, 10, 20, 30]
        assert flow.status is Status.AUTHORIZED and s.signed_in == ["a"]
        assert s.kinds == ["started", "throttled", "authorized"]
        assert json.loads(s.file.read_text())["access_token"] == TOKEN
        assert stat.S_IMODE(s.file.stat().st_mode) == 0o600
        assert stat.S_IMODE(s.file.parent.stat().st_mode) == 0o700
        assert os.listdir(s.file.parent) == ["creds.json"]
        assert s.sign_ins.get(flow.id) is flow
        await trio.sleep(301)
        with pytest.raises(GatewayError) as gone:
            s.sign_ins.get(flow.id)
        assert gone.value.kind is ErrorKind.DEVICE_FLOW_NOT_FOUND


@pytest.mark.usefixtures("_jumps")
async def test_the_owner_sleeps_between_what_is_due(
    tmp_path: Path, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site(tmp_path) as s:
        times: list[float] = []
        real = s.sign_ins._flows.tick

        def tick(now: float) -> Any:
            times.append(now)
            assert len(times) < 1000, "it spins"
            return real(now)

        monkeypatch.setattr(s.sign_ins._flows, "tick", tick)
        await s.sign_ins.start("a", ME)
        await trio.sleep(60)
        assert len(s.calls.polls) in (11, 12)
        assert len(times) <= 5 * 12


@pytest.mark.usefixtures("_jumps")
async def test_whoever_asks_at_once_shares_one_start(tmp_path: Path, autojump_clock: Any) -> None:
    async with site(tmp_path) as s:
        got: list[Any] = []

        async def ask(owner: Owner) -> None:
            got.append(await s.sign_ins.start("a", owner))

        async def leaves() -> None:
            with trio.move_on_after(1):
                await ask(ME)

        s.calls.begin_with = partial(trio.sleep, 10)
        async with trio.open_nursery() as nursery:
            # The first one goes away while it waits: the start is not its own.
            nursery.start_soon(leaves)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(5):
                nursery.start_soon(ask, OTHER)
        assert s.calls.begun == 1 and len(got) == 5
        assert len({flow.id for flow, _ in got}) == 1
        assert [attached for _, attached in got] == [True] * 5
        assert got[0][0].owner == ME


@pytest.mark.usefixtures("_jumps")
@pytest.mark.parametrize("how", ["refused", "hangs", "bug"])
async def test_a_start_that_fails(tmp_path: Path, autojump_clock: Any, how: str) -> None:
    async def fails() -> None:
        if how == "refused":
            raise ProviderError(f"error=x {CODE}\r\nforged\x1b[0m " + "y" * 5000)
        if how == "bug":
            raise KeyError(CODE)
        await trio.sleep_forever()

    async with site(tmp_path) as s:
        s.calls.begin_with = fails
        began = trio.current_time()
        with structlog.testing.capture_logs() as lines, pytest.raises(GatewayError) as failure:
            await s.sign_ins.start("a", ME)
        assert failure.value.kind is ErrorKind.UPSTREAM_ERROR
        assert (trio.current_time() - began >= 30) == (how == "hangs")
        assert s.events == [] and s.sign_ins.pending() == []
        (line,) = [each for each in lines if each["event"] == "device_flow"]
        assert line["status"] == "start_failed" and line["detail"].isprintable()
        assert len(line["detail"]) <= 1024 and CODE not in str(failure.value.to_http())
        assert how != "bug" or CODE not in str(lines)
        s.calls.begin_with = None
        await s.sign_ins.start("a", ME)


@pytest.mark.usefixtures("_jumps")
async def test_a_poll_that_hangs_is_asked_again(tmp_path: Path, autojump_clock: Any) -> None:
    async with site(tmp_path) as s:

        async def hangs() -> Outcome:
            if len(s.calls.polls) < 3:
                await trio.sleep_forever()
            return Granted()

        s.calls.poll_with = hangs
        began = trio.current_time()
        flow, _ = await s.sign_ins.start("a", ME)
        await s.ended(flow)
        assert flow.status is Status.AUTHORIZED
        assert [round(at - began) for at in s.calls.polls] == [5, 45, 95]


@pytest.mark.usefixtures("_jumps")
@pytest.mark.parametrize(
    ("raised", "failure"),
    [
        (ProviderError("final", final=True), Failure.UPSTREAM_ERROR),
        (ProviderError("again and again"), Failure.UPSTREAM_ERROR),
        (RuntimeError(CODE), Failure.UPSTREAM_ERROR),
    ],
)
async def test_a_poll_that_raises(
    tmp_path: Path, autojump_clock: Any, raised: Exception, failure: Failure
) -> None:
    async def fails() -> Outcome:
        raise raised

    async with site(tmp_path) as s:
        s.calls.poll_with = fails
        flow, _ = await s.sign_ins.start("a", ME)
        with structlog.testing.capture_logs() as lines:
            await s.ended(flow)
        assert (flow.status, flow.failure) == (Status.ERROR, failure)
        assert len(s.calls.polls) == (4 if str(raised) == "again and again" else 1)
        assert CODE not in str(lines) and CODE not in str(s.events)


def polls_hang(s: Site) -> trio.Event:
    """Until they are given up, which sets the event."""
    gone = trio.Event()

    async def hangs() -> Outcome:
        try:
            await trio.sleep_forever()
        finally:
            gone.set()

    s.calls.poll_with = hangs
    return gone


@pytest.mark.usefixtures("_jumps")
async def test_expiry_ends_a_poll(tmp_path: Path, autojump_clock: Any) -> None:
    async with site(tmp_path) as s:
        s.calls.lifetime, s.calls.interval = 30, 20
        gone = polls_hang(s)
        flow, _ = await s.sign_ins.start("a", ME)
        await trio.sleep(31)
        assert flow.status is Status.EXPIRED and gone.is_set() and s.kinds[-1] == "failed"


@pytest.mark.usefixtures("_jumps")
async def test_cancel_ends_a_poll(tmp_path: Path, autojump_clock: Any) -> None:
    async with site(tmp_path) as s:
        gone = polls_hang(s)
        flow, _ = await s.sign_ins.start("a", ME)
        await trio.sleep(6)
        assert s.sign_ins.cancel(flow.id, OTHER) is False
        await gone.wait()
        assert s.events[-1] == ("auth_device_flow_cancelled", {"deviceFlowId": flow.id}, "other")
        assert s.sign_ins.cancel(flow.id, OTHER) is True


# ---- the file ------------------------------------------------------------------------------------


class Gate:
    """Holds up the thread that writes, before or behind the moment that counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        real = getattr(os, where)

        def held(*args: Any) -> Any:
            if where == "replace":
                result = real(*args)
                self.hold()
                return result
            self.hold()
            return real(*args)

        monkeypatch.setattr(credential_files.os, where, held)

    def hold(self) -> None:
        self.reached.set()
        assert self.go.wait(30)

    async def wait(self) -> None:
        await trio.to_thread.run_sync(self.reached.wait, 30)
        assert self.reached.is_set()


@pytest.mark.parametrize("where", ["fsync", "replace"])
async def test_cancel_while_the_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Before the file is in place: cancelled, and no file. Behind it: success is kept."""
    gate = Gate(monkeypatch, where)
    async with site(tmp_path) as s:
        s.calls.interval, s.calls.outcomes = 1, [Granted()]
        with trio.fail_after(20):
            flow, _ = await s.sign_ins.start("a", ME)
            await gate.wait()
            assert flow.pending
            assert s.sign_ins.cancel(flow.id, OTHER) is False
            assert flow.pending
            gate.go.set()
            await s.ended(flow)
        if where == "fsync":
            assert flow.status is Status.CANCELLED and os.listdir(s.file.parent) == []
            assert s.kinds == ["started", "cancelled"] and s.signed_in == []
        else:
            assert flow.status is Status.AUTHORIZED and s.file.exists()
            assert s.kinds == ["started", "authorized"] and s.signed_in == ["a"]


async def test_a_disk_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    gate = Gate(monkeypatch, "fsync")
    async with site(tmp_path) as s:
        s.calls.outcomes = [Granted()]
        flow, _ = await s.sign_ins.start("a", ME)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(5)
        await gate.wait()
        mock_clock.jump(30)
        await trio.testing.wait_all_tasks_blocked()
        assert flow.failure is Failure.PERSIST_FAILED and s.kinds[-1] == "failed"
        assert s.calls.written[0].forgotten
    # The daemon may end while the thread hangs; what it does later changes nothing.
    gate.go.set()
    await trio.to_thread.run_sync(_until_gone, s.file.parent)
    assert not s.file.exists()


def _until_gone(directory: Path) -> None:
    deadline = threading.Event()
    for _ in range(1000):
        if not os.listdir(directory):
            return
        deadline.wait(0.01)
    raise AssertionError(os.listdir(directory))


@pytest.mark.usefixtures("_jumps")
async def test_a_file_that_cannot_be_written(tmp_path: Path, autojump_clock: Any) -> None:
    async with site(tmp_path) as s:
        s.file.parent.parent.joinpath("home").write_text("a file, no directory")
        s.calls.outcomes = [Granted()]
        flow, _ = await s.sign_ins.start("a", ME)
        with structlog.testing.capture_logs() as lines:
            await s.ended(flow)
        assert flow.failure is Failure.PERSIST_FAILED and s.signed_in == []
        assert any("FileExistsError" in line.get("detail", "") for line in lines)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "creds.json"
    real.parent.mkdir()
    real.write_text("old")
    real.chmod(0o644)
    link = tmp_path / "creds.json"
    link.symlink_to(real)
    aborted = threading.Event()
    aborted.set()
    assert write_credentials(link, Secret("new"), aborted) is False
    assert real.read_text() == "old" and os.listdir(real.parent) == ["creds.json"]
    assert write_credentials(link, Secret("new"), threading.Event()) is True
    assert link.is_symlink() and real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o600


# ---- secrets -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_jumps")
@pytest.mark.parametrize("end", ["authorized", "refused", "cancelled", "expired", "shutdown"])
async def test_secrets_are_dropped_at_the_end(
    tmp_path: Path, autojump_clock: Any, end: str
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with site(tmp_path) as s:
            s.calls.outcomes = {
                "authorized": [Granted()],
                "refused": [Refused(Failure.ACCESS_DENIED, f"no: {CODE} {USER}")],
            }.get(end, [Waiting()])
            flow, _ = await s.sign_ins.start("a", ME)
            (grant,) = s.calls.grants
            assert "SECRET" not in repr(flow) + repr(grant) + repr(s.sign_ins._kept)
            if end == "cancelled":
                s.sign_ins.cancel(flow.id, ME)
            elif end != "shutdown":
                await s.ended(flow)
        assert grant.device_code.forgotten and grant.verifier is not None
        assert grant.verifier.forgotten and all(each.forgotten for each in s.calls.written)
        assert not s.sign_ins._kept
        if end != "shutdown":
            assert flow.codes is None
    assert "SECRET" not in str(lines) + str(s.events)
    if end == "refused":
        assert any("[redacted] [redacted]" in line.get("detail", "") for line in lines)
    del flow
    gc.collect()
    live = [each for each in gc.get_objects() if isinstance(each, Secret) and not each.forgotten]
    assert live == []


# ---- cancellation --------------------------------------------------------------------------------


async def test_a_waiting_client_may_be_cancelled_at_any_step(tmp_path: Path) -> None:
    async with site(tmp_path) as s:
        with trio.fail_after(60):
            for step in steps():

                async def ask() -> None:
                    await s.sign_ins.start("a", ME)

                through = await cut_short(step, ask)
                while s.sign_ins._starts:
                    await trio.lowlevel.checkpoint()
                # The flow is there whoever waited for it.
                for flow in s.sign_ins.pending():
                    s.sign_ins.cancel(flow.id, ME)
                assert not s.sign_ins._kept and not s.sign_ins._scopes
                if through:
                    break
            else:
                pytest.fail("it never got through")


async def test_the_owner_may_be_cancelled_at_any_step(tmp_path: Path) -> None:
    with trio.fail_after(100):
        for step in steps():
            s = Site(tmp_path / str(step))
            s.calls.interval, s.calls.outcomes = 1, [Granted()]

            async def whole(s: Site = s) -> None:
                async with trio.open_nursery() as nursery:
                    await nursery.start(s.sign_ins.run)
                    flow, _ = await s.sign_ins.start("a", ME)
                    at = device_flow.trio.current_time  # the poll is due at once
                    for effect in [s.sign_ins._flows.tick(at() + 1)]:
                        s.sign_ins._carry_out(effect)
                    while flow.pending:
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()

            through = await cut_short(step, whole)
            assert not s.sign_ins._kept and not s.sign_ins._scopes and not s.sign_ins._starts
            assert all(each.device_code.forgotten for each in s.calls.grants), step
            assert all(each.forgotten for each in s.calls.written), step
            if through:
                assert s.kinds == ["started", "authorized"]
                break
        else:
            pytest.fail("it never got through")


async def test_nobody_can_start_without_the_owner(tmp_path: Path) -> None:
    s = Site(tmp_path)
    with pytest.raises(GatewayError) as refusal:
        await s.sign_ins.start("a", ME)
    assert refusal.value.kind is ErrorKind.SHUTTING_DOWN
    with pytest.raises(GatewayError) as refusal:
        await s.sign_ins.start("x" * 500, ME)
    assert refusal.value.kind is ErrorKind.UNSUPPORTED_PROVIDER
    assert refusal.value.data["supportedProviders"] == list("abcdef")


async def test_a_start_in_flight_at_the_end_is_an_error_for_who_waits(tmp_path: Path) -> None:
    s = Site(tmp_path)
    s.calls.begin_with = trio.sleep_forever
    failures: list[ErrorKind] = []

    async def ask() -> None:
        try:
            await s.sign_ins.start("a", ME)
        except GatewayError as exc:
            failures.append(exc.kind)

    async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
        await nursery.start(s.sign_ins.run)
        outer.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert failures == [ErrorKind.UPSTREAM_ERROR]
