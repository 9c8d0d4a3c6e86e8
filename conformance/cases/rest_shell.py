"""POST /session/:id/shell: commands of a user. Skipped where the tag is not advertised."""

from __future__ import annotations

import trio

from conformance.context import Context
from conformance.outcome import Skip, brief, check
from conformance.registry import case
from conformance.rest.answer import Answer, members
from conformance.rest.events import EventStream, Frame
from conformance.rest.session import Session

TAG = "session_shell_command"


async def opened(ctx: Context) -> tuple[Session, EventStream]:
    api = await ctx.rest()
    api.need(TAG)
    session = await api.session()
    return session, await session.events()


async def run(session: Session, command: str) -> dict[str, object]:
    """The answer of a command."""
    body = (await session.post("shell", {"command": command})).ok()
    members(body, exitCode=(int, type(None)), output=str, aborted=bool)
    return body


async def told(session: Session, stream: EventStream) -> list[Frame]:
    """The events of the commands so far."""
    await session.fence(stream)
    kinds = ("user_shell_command", "user_shell_result")
    return [f for f in stream.frames if f.type in kinds or f.kind.endswith("shell_output")]


@case("SHELL-001")
async def answer(ctx: Context) -> None:
    session, _ = await opened(ctx)
    body = await run(session, "echo out; exit 3")
    seen = (body["exitCode"], body["output"], body["aborted"])
    check(seen == (3, "out\n", False), brief(body))


@case("SHELL-002")
async def events(ctx: Context) -> None:
    session, stream = await opened(ctx)
    await run(session, "echo one; exit 3")
    frames = await told(session, stream)
    check(len(frames) >= 3, f"{[f.type for f in frames]}")
    first, *output, last = frames
    check(first.type == "user_shell_command", f"first {first.type}")
    members(first.data, sessionId=str, command=str, cwd=str)
    check("".join(f.update["output"] for f in output) == "one\n", brief([f.data for f in output]))
    check(last.type == "user_shell_result", f"last {last.type}")
    check((last.data["exitCode"], last.data["aborted"]) == (3, False), brief(last.data))
    client = session.client
    named = [f.envelope.get("originatorClientId") for f in frames]
    check(named == [client] * len(frames), f"originators {named}")


@case("SHELL-003")
async def streams(ctx: Context) -> None:
    session, stream = await opened(ctx)
    done: list[float] = []

    async def ask() -> None:
        await run(session, "echo early; sleep 1; echo late")
        done.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await stream.find(lambda f: f.kind.endswith("shell_output") and "early" in brief(f.data))
        check(not done, "the output came with the answer")


@case("SHELL-004")
async def killed(ctx: Context) -> None:
    session, stream = await opened(ctx)
    body = await run(session, "kill -9 $$")
    check((body["exitCode"], body["aborted"]) == (None, False), brief(body))
    last = (await told(session, stream))[-1]
    check(last.data.get("signal") in (9, "SIGKILL"), brief(last.data))


@case("SHELL-005")
async def no_input(ctx: Context) -> None:
    session, _ = await opened(ctx)
    body = await run(session, "cat; echo done")
    check(body["output"] == "done\n", brief(body))


@case("SHELL-006")
async def anonymous(ctx: Context) -> None:
    session, stream = await opened(ctx)
    refusal = await session.post("shell", {"command": "true"}, client=None)
    refusal.refused(403, "client_id_required")
    check(not await told(session, stream), "events of a refused command")


@case("SHELL-007")
async def stranger(ctx: Context) -> None:
    session, _ = await opened(ctx)
    refusal = await session.post("shell", {"command": "true"}, client="client_stranger")
    refusal.refused(400, "invalid_client_id")


@case("SHELL-008")
async def bad(ctx: Context) -> None:
    session, stream = await opened(ctx)
    for command in (None, "", " \n", 5, ["true"]):
        (await session.post("shell", {"command": command})).refused(400)
    (await session.post("shell", {})).refused(400)
    check(not await told(session, stream), "events of a refused command")


@case("SHELL-009", timeout=30)
async def hung_up(ctx: Context) -> None:
    session, stream = await opened(ctx)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, session, "sleep 25")
        await stream.expect("user_shell_command")
        nursery.cancel_scope.cancel()
    last = await stream.expect("user_shell_result")
    check(last.data["aborted"] is True, brief(last.data))


@case("SHELL-010")
async def beside_a_turn(ctx: Context) -> None:
    session, stream = await opened(ctx)
    await session.running(stream)
    body = await run(session, "echo beside")
    check(body["output"] == "beside\n", brief(body))
    ends = [f for f in stream.frames if f.type in ("turn_complete", "turn_error")]
    check(not ends, "the turn has ended")
    (await session.post("cancel")).empty()


@case("SHELL-011")
async def off(ctx: Context) -> None:
    api = await ctx.rest()
    if TAG in api.features:
        raise Skip(f"{TAG} is advertised")
    session = await api.session()
    refusal: Answer = await session.post("shell", {"command": "true"})
    check(refusal.status in (401, 403), str(refusal))
    code = refusal.body.get("code")
    check(code in ("session_shell_disabled", "token_required"), f"code {code!r}")


@case("SHELL-012")
async def unknown(ctx: Context) -> None:
    session, _ = await opened(ctx)
    body = (await session.post("shell/none/cancel")).ok()
    check(body.get("cancelled") is False, brief(body))


@case("SHELL-013", timeout=30)
async def stopped(ctx: Context) -> None:
    session, stream = await opened(ctx)
    answers: list[dict[str, object]] = []

    async def ask() -> None:
        answers.append(await run(session, "echo up; sleep 25"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        shell = (await stream.expect("user_shell_command")).data["shellId"]
        body = (await session.post(f"shell/{shell}/cancel")).ok()
        check(body.get("cancelled") is True, brief(body))
    (body,) = answers
    check(body["aborted"] is True and body["exitCode"] is None, brief(body))


@case("SHELL-014")
async def remains(ctx: Context) -> None:
    session, _ = await opened(ctx)
    with trio.move_on_after(8) as waiting:
        body = await run(session, "sleep 25 & echo up")
        check(body["output"] == "up\n", brief(body))
    check(not waiting.cancelled_caught, "a process in the background held up the answer")
