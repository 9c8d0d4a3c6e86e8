"""docs/security.md against the program: every row of its tables is started."""

from __future__ import annotations

import datetime
import os
import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from conftest import Cli

import acp_gateway.daemon
from acp_gateway.config_load import load_settings

DOCS = Path(__file__).parents[2] / "docs" / "security.md"


def table(heading: str, columns: int) -> list[list[str]]:
    """The rows of the first table with so many columns below a heading."""
    text = DOCS.read_text(encoding="utf-8").partition(heading)[2]
    rows = [
        [cell.strip() for cell in line.strip("|\n").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith("|--")
    ]
    found = []
    for row in rows:
        if len(row) == columns and row[-2].startswith("`" if columns == 2 else ""):
            found.append(row)
        elif found:
            break
    return [row for row in found if "`" in row[0] + row[1]]


REFUSALS = [(row[1].strip("`"), row[2], row[3]) for row in table("## What refuses to start", 4)]
WARNINGS = [(row[0].strip("`"), row[1]) for row in table("Said at the start, but not", 2)]


@pytest.fixture
def names(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What stands in braces."""
    place = tmp_path / "place"
    (place / "outer" / "inner").mkdir(parents=True)
    (place / "closed").mkdir(mode=0)
    (place / "file").write_text("x")
    authority = trustme.CA()
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    times: dict[str, dict[str, Any]] = {
        "": {},
        "other_": {},
        "old_": {"not_after": now - day},
        "early_": {"not_before": now + day},
    }
    found = {each: str(place / each) for each in ("outer", "closed", "file", "missing")}
    found |= {"inner": str(place / "outer" / "inner"), "space": "a b"}
    for name, limits in times.items():
        leaf = authority.issue_cert("localhost", **limits)
        for kind, blob in (("cert", leaf.cert_chain_pems[0]), ("key", leaf.private_key_pem)):
            path = place / f"{name}{kind}.pem"
            blob.write_to_path(path)
            found[f"{name}{kind}"] = str(path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found["taken"] = str(taken.getsockname()[1])
        yield found
    (place / "closed").chmod(0o700)


def argv(line: str, names: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    words = []
    for word in shlex.split(line):
        variable, equals, value = word.partition("=")
        if variable.startswith("ACP_GATEWAY_") and equals:
            monkeypatch.setenv(variable, value)
        else:
            words.append(word.format(**names))
    return words


def fits(pattern: str, text: str, names: dict[str, str]) -> bool:
    parts = pattern.format(**names).split("…")
    return re.fullmatch(".*".join(map(re.escape, parts)), text) is not None


def test_the_tables_were_found() -> None:
    assert len(REFUSALS) >= 40 and len(WARNINGS) >= 5
    text = DOCS.read_text(encoding="utf-8")
    for number in range(1, 19):
        assert re.search(rf"(^| )R{number}\b", text, re.MULTILINE), number


@pytest.mark.parametrize(("line", "says", "remedy"), REFUSALS, ids=[row[0] for row in REFUSALS])
def test_it_refuses_to_start(
    line: str,
    says: str,
    remedy: str,
    names: dict[str, str],
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "{closed}" in line and os.geteuid() == 0:
        monkeypatch.setattr(os, "access", lambda path, mode: "closed" not in str(path))
    if "R17" not in line and "{taken}" not in line and "192.0.2.1" not in line:

        def started(*_: object) -> int:
            raise AssertionError("it started")

        monkeypatch.setattr(acp_gateway.daemon, "run", started)
    words = argv(line, names, monkeypatch)
    done = cli("serve", "--agent", "demo", *([] if "--port" in words else ["--port", "0"]), *words)
    assert done.status not in (0, 1, 130), done.err
    said, *rest = done.err.strip().splitlines()
    assert fits("acp-gateway: " + says, said, names), said
    told = [each.partition("try:")[2].strip() for each in rest if each.startswith("  try:")]
    assert told and fits(remedy, told[0], names), rest
    if "{taken}" not in line and "192.0.2.1" not in line:
        assert any(each.startswith("  from: ") for each in rest), rest


@pytest.mark.parametrize(("line", "warning"), WARNINGS, ids=[row[0] for row in WARNINGS])
def test_it_warns(
    line: str, warning: str, names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = argv(line, names, monkeypatch)
    flags: dict[str, Any] = {}
    while words:
        name = words.pop(0).removeprefix("--").replace("-", "_")
        value: Any = words.pop(0) if words and not words[0].startswith("--") else True
        flags[name] = (value,) if name in ("allow_origin", "trusted_proxy") else value
    loaded = load_settings(flags, environ={})
    assert warning in loaded.warnings
    # And nobody is warned of what was not said.
    assert load_settings({}, environ={}).warnings == ()


def test_the_limits_of_the_table_are_settings() -> None:
    import attrs

    from acp_gateway.config import KIB, MIB, Settings

    text = DOCS.read_text(encoding="utf-8").partition("## Limits")[2]
    rows = re.findall(r"^\| .* \| `(\w+)` \| (\d+) ?(KiB|MiB|s|s each)? \|", text, re.MULTILINE)
    assert len(rows) >= 13
    known = attrs.asdict(Settings())
    for name, number, unit in rows:
        assert known[name] == int(number) * {"KiB": KIB, "MiB": MIB}.get(unit, 1), name
