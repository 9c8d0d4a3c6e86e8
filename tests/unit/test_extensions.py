"""The table of operations: each row has a handler and a route, each feature tag a row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
from quart_trio import QuartTrio

from acp_gateway.protocol import extensions
from acp_gateway.protocol.extensions import OPERATIONS, RPC, Access, Operation, features
from acp_gateway.transports.operations.table import HANDLERS
from acp_gateway.transports.rest.routes import Routes

ROWS = list(OPERATIONS.values())
SAMPLE = {"workspace": "/home/me/project", "sessionId": "Aé~1"}


def path_of(row: Operation) -> str:
    return re.sub(r"{(\w+)}", lambda match: SAMPLE.get(match[1], "x-1"), row.path)


def name_of(row: Operation) -> str:
    return row.name


@pytest.fixture(scope="module")
def app() -> QuartTrio:
    return QuartTrio(__name__, static_folder=None)


@pytest.fixture(scope="module")
def found(app: QuartTrio) -> Routes:
    # A route needs its hub only when it is called, and a view only when the application calls it.
    return Routes(app, cast(Any, None), lambda row: no_view)


async def no_view(**_: str) -> str:
    raise AssertionError("not called")


# -- rows ------------------------------------------------------------------------------------------


def test_nothing_is_there_twice() -> None:
    table = extensions._TABLE
    assert len(OPERATIONS) == len(table)
    assert len({(row.method, row.path) for row in table}) == len(table)
    methods = [row.rpc for row in table if row.rpc is not None]
    assert len(RPC) == len(methods)
    assert all(method.startswith("_qwen/") for method in methods)


def test_handlers_are_those_of_the_rows() -> None:
    assert set(HANDLERS) == {row.name for row in ROWS if not row.stream}


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_a_row_is_whole(row: Operation) -> None:
    assert row.tags and len(set(row.tags)) == len(row.tags)
    # A strict GET tells more than everybody may read.
    assert (row.access is Access.READ) <= (row.method == "GET") <= (row.access is not Access.MUTATE)
    assert row.success in (200, 201, 202, 204)
    if row.stream:
        assert (row.method, row.success, row.rpc) == ("GET", 200, None)


# -- routes ----------------------------------------------------------------------------------------


def routes(app: QuartTrio) -> Iterator[tuple[str, str]]:
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            yield rule.endpoint, method


@pytest.mark.usefixtures("found")
def test_routes_are_those_of_the_rows(app: QuartTrio) -> None:
    assert sorted(routes(app)) == sorted((row.name, row.method) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_a_path_leads_to_its_row(found: Routes, row: Operation) -> None:
    names = re.findall(r"{(\w+)}", row.path)
    values = {name: SAMPLE.get(name, "x-1") for name in names}
    assert found.find(row.method, path_of(row)) == (row, values)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("GET", "/health/"),
        ("GET", "/session//status"),
        ("PUT", "/health"),
        ("HEAD", "/health"),
        ("OPTIONS", "/health"),
        ("GET", "/session"),
    ],
)
def test_what_the_application_itself_answers(found: Routes, method: str, path: str) -> None:
    assert found.find(method, path) is None


# -- features --------------------------------------------------------------------------------------


def test_every_tag_has_rows_and_every_row_s_tags_are_told() -> None:
    told = features(agent_extensions=True, flags={})
    assert len(set(told)) == len(told)
    assert set(told) == {tag for row in ROWS for tag in row.tags}
    for tag in told:
        serving = [row for row in ROWS if tag in row.tags]
        assert all(row.stream or row.name in HANDLERS for row in serving)


def test_what_needs_qwen_s_methods_is_told_only_where_they_are() -> None:
    without = set(features(agent_extensions=False, flags={}))
    assert without == {tag for row in ROWS if not row.needs_agent for tag in row.tags}
    missing = set(features(agent_extensions=True, flags={})) - without
    assert missing == {tag for row in ROWS if row.needs_agent for tag in row.tags} - without
    assert missing


def test_a_setting_switches_a_tag() -> None:
    on = features(agent_extensions=True, flags={"require_auth": True})
    off = features(agent_extensions=True, flags={"require_auth": False})
    assert [tag for tag in on if tag not in off] == ["require_auth"]
    assert "health" not in features(agent_extensions=True, flags={"health": False})
