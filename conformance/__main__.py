"""``python -m conformance URL``: judge an ACP server from outside."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import trio

from conformance.registry import Case, load_cases
from conformance.requirement import ACP_TRANSPORTS, TRANSPORTS
from conformance.runner import NoServer, Options, run
from conformance.target import Target


def main(argv: list[str] | None = None) -> int:
    """0: nothing failed. 1: something failed. 2: wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("url", nargs="?", help="http(s) or ws(s) URL; the path defaults to /acp")
    parser.add_argument("--token", help="bearer token")
    parser.add_argument("--origin", help="an Origin that the server was told to allow")
    parser.add_argument(
        "--transport",
        choices=[*TRANSPORTS, "both", "all"],
        default="all",
        help="both: the two of ACP; rest: the daemon's REST routes and event streams",
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="ID", help="requirement ids or their beginnings"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write a report")
    parser.add_argument(
        "--agent",
        choices=["demo", "fake-model", "generic"],
        default="demo",
        help="what is behind the server: acp-gateway's demo agent, a coding agent whose model is"
        " tests/fake_model.py, or anything else",
    )
    parser.add_argument(
        "--cwd",
        type=Path,
        default=Path.cwd(),
        help="directory for sessions, which the server must accept (default: here)",
    )
    parser.add_argument("--slow", action="store_true", help="also cases that wait for 30 s timers")
    parser.add_argument("--list", action="store_true", help="print the requirements and end")
    arguments = parser.parse_args(argv)

    sets = {"all": TRANSPORTS, "both": ACP_TRANSPORTS}
    wanted = sets.get(arguments.transport, (arguments.transport,))
    selected = [
        (case, transport)
        for case in load_cases()
        for transport in case.requirement.transports
        if transport in wanted and _matches(case, arguments.only)
    ]
    if arguments.list:
        _list(selected)
        return 0
    if arguments.url is None:
        parser.error("give the URL of the server, for example http://127.0.0.1:4170")
    if not selected:
        parser.error("no case matches --only and --transport; see --list")
    if not arguments.cwd.is_dir():
        parser.error(f"--cwd {arguments.cwd}: no such directory")
    try:
        target = Target.parse(arguments.url, arguments.token).with_origin(arguments.origin)
    except ValueError as error:
        parser.error(str(error))
    options = Options(target, arguments.cwd.resolve(), arguments.agent, arguments.slow)
    try:
        report = trio.run(run, selected, options)
    except NoServer as error:
        parser.error(str(error))
    if arguments.json:
        report.write(arguments.json)
    return 1 if report.count("fail") else 0


def _matches(case: Case, only: list[str]) -> bool:
    return not only or any(case.requirement.id.startswith(prefix.upper()) for prefix in only)


def _list(selected: list[tuple[Case, str]]) -> None:
    for requirement in dict.fromkeys(case.requirement for case, _ in selected):
        transports = "+".join(requirement.transports)
        print(f"{requirement.id:<12} {transports:<8} {requirement.level:<8} {requirement.text}")
        print(f"{'':<30} [{requirement.source}]")


if __name__ == "__main__":
    sys.exit(main())
