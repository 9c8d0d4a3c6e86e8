"""The whole REST surface with each agent behind it: who answers, and that it is as documented.

Every answer is checked against schemas/openapi.json, where 500 does not stand, and comes in time;
see tests/support/rest_surface.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agent_env import AGENTS
from fake_model import FakeModel
from peers_env import need
from support.rest_surface import UNKNOWN, Answer, Surface, documented, run, surface

from acp_gateway.protocol.extensions import OPERATIONS, Operation

pytestmark = pytest.mark.real

OF_A_SESSION = sorted(
    (row for row in OPERATIONS.values() if row.scope == "session"),
    key=lambda row: row.name == "session_close",
)
"""Closing is last."""

REFUSED = {
    ("any", "session_permission_vote"): "permission_not_found",
    ("any", "session_rewind"): "invalid_rewind_target",
    ("running", "session_rewind"): "session_busy",
    ("running", "session_branch"): "branch_while_prompt_active",
}
"""(State of the session, operation) -> the word of its refusal, where it cannot succeed."""

FOR_ANYBODY = {"session_load", "session_resume", "session_detach", "session_events"}
"""They answer the same to a foreign client id: the first two register the caller, who is nobody to
leave in the third, and a stream knows no caller."""


@pytest.fixture(scope="module", params=AGENTS)
def on(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: FakeModel
) -> Iterator[Surface]:
    need(*AGENTS[request.param].peers)
    base = tmp_path_factory.mktemp(f"surface-{request.param}").resolve()
    with surface(request.param, base, model.url) as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh(on: Surface) -> None:
    on.faults.clear()


def ask(on: Surface, row: Operation, session: str, client: str | None) -> Answer:
    call = on.stream if row.stream else on.call
    return call(row.name, session, client=client)


def wanted(on: Surface, row: Operation, state: str) -> int | str:
    """What it has to answer: the word of a refusal, or the status of success."""
    if (state, row.name) in REFUSED:
        return REFUSED[state, row.name]
    if documented(on.agent).get((row.name, "")) == "unsupported":
        return "unsupported_by_agent"
    return REFUSED.get(("any", row.name), row.success)


def test_the_table(on: Surface) -> None:
    cells = run(on)
    assert {name for name, _ in cells} == set(OPERATIONS)
    assert not on.faults
    told = documented(on.agent)
    assert cells == told, "make it anew: python tests/support/rest_surface.py"


@pytest.mark.parametrize("state", ["idle", "running", "killed", "dying"])
def test_a_session_in_a_state(on: Surface, state: str) -> None:
    """``killed``: everybody knows that its agent is dead; ``dying``: it died in this moment."""
    session = client = ""
    wrong = []
    for row in OF_A_SESSION:
        if not session or on.call("session_heartbeat", session, client=client).status != 200:
            session, client = on.opened()  # the last call was its end
        if state in ("running", "dying"):
            on.running(session, client)
        else:
            on.settle(session)
        if state == "killed":
            on.killed(session)
        elif state == "dying":
            on.kill(session)
        answer = ask(on, row, session, client)
        right = {wanted(on, row, state)}
        if state == "dying":  # whichever was first: the call, the death or its news
            right |= {wanted(on, row, "running"), "agent_exited"}
        if (answer.code or answer.status) not in right:
            wrong.append((row.name, answer, right))
    assert not wrong
    assert not on.faults


def test_a_session_that_is_not_known(on: Surface) -> None:
    for row in OF_A_SESSION:
        answer = ask(on, row, UNKNOWN, None)
        assert (answer.status, answer.code) == (404, "session_not_found"), row.name
    gone = on.call("sessions_delete", body={"sessionIds": [UNKNOWN]})
    assert gone.body == {"removed": [], "notFound": [UNKNOWN], "errors": []}
    assert on.call("permission_vote").code == "permission_not_found"
    assert not on.faults


def test_a_client_of_another_session(on: Surface) -> None:
    (session, client), (other, foreign) = on.opened(), on.opened()
    for row in OF_A_SESSION:
        answer = ask(on, row, session, foreign)
        if row.name == "session_permission_vote":
            right: object = "permission_not_found"  # whether there is one is asked first
        else:
            right = row.success if row.name in FOR_ANYBODY else "invalid_client_id"
        assert (answer.code or answer.status) == right, row.name
    made = on.call("session_create", client=foreign, body={"sessionScope": "thread"}).body
    assert made["clientId"] not in (client, foreign)
    for each in (session, other, made["sessionId"]):
        on.call("session_close", each)
    assert not on.faults
