"""``python -m benchmarks``: see README.md here."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.bars import BARS, CONTROLS, OWN
from benchmarks.client import BenchmarkError
from benchmarks.judge import bar_table, judge
from benchmarks.measures import FULL, MEASURES, QUICK, TAKE_PART, Figures, Sizes, help_imports
from benchmarks.peers import NOT_BY_DEFAULT, PEERS, NotInstalledError, Peer, started
from benchmarks.plot import rows, svg
from benchmarks.report import Results, beside_peers, table

ROUNDS = 7
QUICK_ROUNDS = 2
# What a quick run leaves out.
NOT_QUICK = frozenset(
    {"paced", "large1m", "http", "connections", "streaming", "event_cost", "agents"}
    | {"real_qwen", "real_goose", "soak"}
    | {"fanout1", "fanout60", "fanout100", "fanout2x50", "sse1", "sse50", "sse2x50"}
    | {"beside_text", "beside_tool"}
)
# What runs in the first round only.
ONCE = frozenset({"soak"})
QUICK_PEERS = ("gateway", "qwen", "stdio")


Plan: TypeAlias = dict[type[Peer], list[str]]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the gateway and its peers in turn on the same agent and client.",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, under 2 minutes")
    parser.add_argument("--json", type=Path, metavar="F", help="write every figure of every round")
    parser.add_argument("--svg", type=Path, metavar="F", help="draw the ratios of the bars")
    parser.add_argument(
        "--bars",
        action="store_true",
        help="measure what the bars need, print whether each is reached, exit 1 if one is not",
    )
    parser.add_argument("--read", type=Path, metavar="F", help="figures of --json, nothing new")
    parser.add_argument("--only", nargs="+", choices=[*MEASURES, "help"], metavar="NAME")
    parser.add_argument("--peer", nargs="+", choices=list(PEERS), metavar="NAME")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, {QUICK_ROUNDS} when quick")
    parser.add_argument("--soak-seconds", type=float, default=FULL.soak, metavar="N")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _one_round(plan: Plan, sizes: Sizes, skipped: dict[str, str]) -> dict[str, dict[str, Figures]]:
    """Start every server, take each measurement on one after the other, and stop them.

    What is compared is measured within seconds; meanwhile the others are idle.
    """
    found: dict[str, dict[str, Figures]] = {}
    with ExitStack() as stack:
        running: dict[type[Peer], Peer] = {}
        for kind in list(plan):
            try:
                running[kind] = stack.enter_context(started(kind))
            except (NotInstalledError, BenchmarkError) as exc:
                skipped[kind.name] = str(exc)
                _say(f"  {kind.name} is skipped: {exc}")
                if isinstance(exc, NotInstalledError):
                    del plan[kind]
        for name, measure in MEASURES.items():
            for kind, peer in running.items():
                if name not in plan[kind]:
                    continue
                began = time.monotonic()
                try:
                    found.setdefault(kind.name, {})[name] = measure(peer, sizes)
                except (NotInstalledError, BenchmarkError, OSError) as exc:
                    _say(f"  {kind.name} {name} failed: {exc}")
                except Exception:  # a long run goes on without what has a bug
                    _say(f"  {kind.name} {name} failed:\n{traceback.format_exc()}")
                _say(f"  {name} {kind.name}: {time.monotonic() - began:.1f} s")
    return found


def _machine() -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load at the start": round(os.getloadavg()[0], 2),
    }


def _plan(args: argparse.Namespace) -> Plan:
    """What is measured on each peer, in order."""
    names = args.only or [n for n in MEASURES if not args.quick or n not in NOT_QUICK]
    default = QUICK_PEERS if args.quick else [name for name in PEERS if name not in NOT_BY_DEFAULT]
    kinds = [PEERS[name] for name in args.peer or default]
    needed = CONTROLS | {pair for bar in BARS for each in bar.any_of for pair in each.needs()}
    plan = {}
    for kind in kinds:
        plan[kind] = [
            name
            for name in MEASURES
            if name in names
            and kind.takes(name)
            and kind.name in TAKE_PART.get(name, {kind.name})
            and (not args.bars or (kind.name, name) in needed)
        ]
    return {kind: names for kind, names in plan.items() if names}


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every figure of every round, and what the run was like."""
    sizes = replace(QUICK if args.quick else FULL, soak=args.soak_seconds)
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    plan = _plan(args)
    with_help = not args.bars and "help" in (args.only or ["help"]) and OWN in (args.peer or [OWN])
    results: Results = {}
    skipped: dict[str, str] = {}
    machine = _machine()
    began = time.monotonic()
    for number in range(1, rounds + 1):
        _say(f"round {number} of {rounds} ({time.monotonic() - began:.0f} s)")
        due = {
            kind: [name for name in names if number == 1 or name not in ONCE]
            for kind, names in plan.items()
        }
        found = _one_round(due, sizes, skipped)
        plan = {kind: names for kind, names in plan.items() if kind in due}
        for kind, names in due.items():
            for name in names:
                figures = found.get(kind.name, {}).get(name, {})
                results.setdefault(kind.name, {}).setdefault(name, []).append(figures)
        if with_help:
            results.setdefault(OWN, {}).setdefault("help", []).append(help_imports())
    return {
        "command": ["python", "-m", "benchmarks", *sys.argv[1:]],
        "machine": {**machine, "load at the end": round(os.getloadavg()[0], 2)},
        "rounds": rounds,
        "results": results,
        "skipped": skipped,
    }


def main() -> int:
    args = _arguments()
    run = json.loads(args.read.read_text(encoding="utf-8")) if args.read else _measure(args)
    results: Results = run["results"]
    if args.json:
        args.json.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    conditions = ", ".join(f"{name} {value}" for name, value in run["machine"].items())
    print(table(results))
    print("\nMedians; the worst round in parentheses.")
    if beside := beside_peers(results):
        print(f"\nThe gateway over each peer, round by round:\n\n{beside}")
    verdicts = [judge(bar, results) for bar in BARS]
    if args.bars:
        print(f"\nThe bars:\n\n{bar_table(verdicts)}")
    print(f"\n{conditions}, rounds {run['rounds']}.")
    for name, reason in run["skipped"].items():
        print(f"Skipped: {name}: {reason}")
    if args.svg:
        args.svg.write_text(svg(rows(verdicts), f"{run['rounds']} rounds, {conditions}"))
    if args.bars and not all(verdict.ok for verdict in verdicts):
        return 1
    return 0 if results else 1


if __name__ == "__main__":
    raise SystemExit(main())
