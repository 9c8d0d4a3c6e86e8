"""``python -m benchmarks``: see README.md here."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.client import BenchmarkError
from benchmarks.measures import FULL, MEASURES, QUICK, Sizes, help_imports
from benchmarks.peers import PEERS, NotInstalledError, Peer, free_port
from benchmarks.report import OWN, Results, table

ROUNDS = 7
QUICK_ROUNDS = 2
# What a quick run leaves out.
NOT_QUICK = frozenset({"paced", "large1m"})
QUICK_PEERS = ("gateway", "qwen", "stdio")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures the gateway and its peers in turn on the same agent and client.",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, under 2 minutes")
    parser.add_argument("--json", type=Path, metavar="F", help="write every figure of every round")
    parser.add_argument("--only", nargs="+", choices=[*MEASURES, "help"], metavar="NAME")
    parser.add_argument("--peer", nargs="+", choices=list(PEERS), metavar="NAME")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, {QUICK_ROUNDS} when quick")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _one_round(kind: type[Peer], names: list[str], sizes: Sizes, results: Results) -> None:
    """Start a server, measure, stop it. Raises `NotInstalledError`, `BenchmarkError`."""
    with tempfile.TemporaryDirectory(prefix="acp-bench-", ignore_cleanup_errors=True) as home:
        peer = kind(Path(home), free_port())
        try:
            peer.start()
            for name in names:
                if name in kind.skips:
                    continue
                try:
                    figures = MEASURES[name](peer, sizes)
                except (BenchmarkError, OSError) as exc:
                    _say(f"  {kind.name} {name} failed: {exc}")
                    continue
                results.setdefault(kind.name, {}).setdefault(name, []).append(figures)
        finally:
            peer.stop()


def _machine() -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load at the start": round(os.getloadavg()[0], 2),
    }


def main() -> int:
    args = _arguments()
    sizes = QUICK if args.quick else FULL
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    kinds = [PEERS[name] for name in args.peer or (QUICK_PEERS if args.quick else PEERS)]
    chosen = args.only or [n for n in [*MEASURES, "help"] if not args.quick or n not in NOT_QUICK]
    names = [name for name in MEASURES if name in chosen]
    results: Results = {}
    skipped: dict[str, str] = {}
    machine = _machine()
    began = time.monotonic()
    for number in range(1, rounds + 1):
        for kind in list(kinds) if names else []:
            _say(f"round {number} of {rounds}: {kind.name} ({time.monotonic() - began:.0f} s)")
            try:
                _one_round(kind, names, sizes, results)
            except (NotInstalledError, BenchmarkError) as exc:
                skipped[kind.name] = str(exc)
                _say(f"  {kind.name} is skipped: {exc}")
                if isinstance(exc, NotInstalledError):
                    kinds.remove(kind)
        if "help" in chosen and any(kind.name == OWN for kind in kinds):
            results.setdefault(OWN, {}).setdefault("help", []).append(help_imports())
    print(table(results))
    print()
    print(
        "Medians; the worst round in parentheses. "
        + ", ".join(f"{k} {v}" for k, v in machine.items())
        + f", at the end {os.getloadavg()[0]:.2f}; rounds: {rounds}."
    )
    for name, reason in skipped.items():
        print(f"Skipped: {name}: {reason}")
    if args.json:
        document = {
            "command": ["python", "-m", "benchmarks", *sys.argv[1:]],
            "machine": machine,
            "rounds": rounds,
            "results": results,
            "skipped": skipped,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if results else 1


if __name__ == "__main__":
    raise SystemExit(main())
