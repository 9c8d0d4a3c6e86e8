"""Runs cases one by one and prints what came of them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import trio

from conformance.context import Context
from conformance.outcome import Failure, Skip
from conformance.registry import Case
from conformance.target import Target

Verdict = Literal["pass", "fail", "skip"]


class NoServer(Exception):
    """Nothing to judge."""


@dataclass(frozen=True)
class Options:
    target: Target
    cwd: Path
    agent: str
    slow: bool


@dataclass(frozen=True)
class Outcome:
    """``ms`` is the time of the case with its clean-up; ``reason`` is empty for a pass."""

    id: str
    transport: str
    level: str
    verdict: Verdict
    ms: int
    reason: str


@dataclass
class Report:
    url: str
    server: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)

    def count(self, verdict: Verdict) -> int:
        return sum(outcome.verdict == verdict for outcome in self.outcomes)

    def write(self, path: Path) -> None:
        totals = {verdict: self.count(verdict) for verdict in ("pass", "fail", "skip")}
        body: dict[str, Any] = {"url": self.url, "server": self.server, "totals": totals}
        body["cases"] = [asdict(outcome) for outcome in self.outcomes]
        path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


async def run_case(case: Case, transport: str, options: Options) -> Outcome:
    """Run one case over one transport; every exception becomes a verdict."""
    begun = time.monotonic()

    def outcome(verdict: Verdict, reason: str = "") -> Outcome:
        ms = round((time.monotonic() - begun) * 1000)
        requirement = case.requirement
        return Outcome(requirement.id, transport, requirement.level, verdict, ms, reason)

    if case.slow and not options.slow:
        return outcome("skip", "slow: add --slow")
    if case.needs is not None and case.needs != options.agent:
        return outcome("skip", f"needs the {case.needs} agent")
    judged: tuple[Verdict, str] | None = None
    try:
        async with trio.open_nursery() as nursery:
            context = Context(nursery, options.target, transport, options.cwd, options.agent)
            try:
                with trio.fail_after(case.timeout):
                    await case.body(context)
                judged = "pass", ""
            except Exception as error:
                judged = _verdict(error, case.timeout)
            finally:
                await context.clean_up()
            nursery.cancel_scope.cancel()
    except Exception as error:
        # A background task broke. It matters only when it did so before the case was judged.
        judged = judged or _verdict(error, case.timeout)
    assert judged is not None
    return outcome(*judged)


def _verdict(error: BaseException, timeout: float) -> tuple[Verdict, str]:
    leaf = error
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    if isinstance(leaf, Skip):
        return "skip", str(leaf)
    if isinstance(leaf, trio.TooSlowError):
        return "fail", f"nothing came within {timeout:g} s"
    if isinstance(leaf, Failure):
        return "fail", str(leaf)
    where = leaf.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = f" at {Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else ""
    return "fail", f"{type(leaf).__name__}: {leaf}{place}"


async def run(cases: Iterable[tuple[Case, str]], options: Options) -> Report:
    """Run the (case, transport) pairs and print a line for each. Raises `NoServer`."""
    report = Report(options.target.http_url, await _server(options))
    print(f"server: {report.server.get('name')} {report.server.get('version')} at {report.url}")
    for case, transport in cases:
        result = await run_case(case, transport, options)
        report.outcomes.append(result)
        line = f"{result.id:<12} {transport:<4} {result.verdict:<4} {result.ms:>6} ms"
        print(f"{line}  {result.reason}".rstrip(), flush=True)
    counts = ", ".join(f"{report.count(v)} {v}" for v in ("pass", "fail", "skip"))
    print(f"{len(report.outcomes)} cases: {counts}")
    return report


async def _server(options: Options) -> dict[str, Any]:
    """agentInfo of the server, over whichever transport answers."""
    for transport in ("ws", "http"):
        try:
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    context = Context(nursery, options.target, transport, options.cwd, "generic")
                    try:
                        reply = await (await context.bare()).initialize()
                    finally:
                        await context.clean_up()
                    nursery.cancel_scope.cancel()
            info = reply.result.get("agentInfo")
            return info if isinstance(info, dict) else {}
        except* (Failure, OSError, trio.TooSlowError) as errors:
            print(f"no initialize over {transport}: {errors.exceptions[0]}", file=sys.stderr)
    raise NoServer(f"no ACP server answers at {options.target.http_url}")
