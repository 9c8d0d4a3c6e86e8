"""Votes of identities: one party however many clients, and a prompt that is its identity's."""

from __future__ import annotations

from typing import Any

import pytest

from acp_gateway.core.mediator import Mediator, Policy, Question, Rule, Settled, Verdict, Voter

PARAMS = {"options": [{"optionId": "yes"}, {"optionId": "no"}]}
ELECTORS = {"c1": "=token:a", "c2": "=token:a", "c3": "=token:b", "c4": "c4"}


def asked(policy: Policy, mediator: Mediator, **how: Any) -> Question:
    known = {"originator": "c1", "originator_party": "token:a", "voters": ELECTORS}
    question, _ = mediator.ask(
        "s",
        "r",
        PARAMS,
        rule=Rule(policy=policy),
        prompt_id="p",
        now=0.0,
        timeout=0.0,
        **{**known, **how},
    )
    return question


def vote(mediator: Mediator, client: str | None, party: str | None, option: str = "yes") -> Verdict:
    body = {"outcome": {"outcome": "selected", "optionId": option}}
    voter = Voter(client_id=client, party=party, name="n" if party else None)
    return mediator.vote("s", "r", body, voter, now=1.0).verdict


def test_consensus_is_between_identities() -> None:
    mediator = Mediator()
    question = asked(Policy.CONSENSUS, mediator)
    assert question.quorum == 2, "three parties"
    assert vote(mediator, "c1", "token:a") is Verdict.RECORDED
    for client in ("c1", "c2", "later", None):
        assert vote(mediator, client, "token:a", "no") is Verdict.REPEATED
    assert not mediator.may_vote(question, Voter(client_id="c2", party="token:a"))
    assert mediator.may_vote(question, Voter(client_id="c3", party="token:b"))
    assert vote(mediator, "c1", "token:x") is Verdict.FORBIDDEN, "another with its client id"
    assert vote(mediator, "token:b", None) is Verdict.FORBIDDEN, "its name as a client id"
    assert vote(mediator, "later", "token:b") is Verdict.RESOLVED
    assert question.reason is Settled.VOTE


def test_a_party_is_gone_when_all_its_clients_are() -> None:
    mediator = Mediator()
    question = asked(Policy.CONSENSUS, mediator)
    mediator.leave("s", "c1", now=1.0)
    assert vote(mediator, "c2", "token:a") is Verdict.RECORDED
    mediator.leave("s", "c2", now=1.0)
    assert question.open and question.votes == {"=token:a": "yes"}, "a vote given counts"
    mediator.leave("s", "c3", now=1.0)
    assert vote(mediator, "c9", "token:b") is Verdict.FORBIDDEN, "it does not come back"
    mediator.leave("s", "c4", now=1.0)
    assert question.reason is Settled.SPLIT


@pytest.mark.parametrize(
    ("client", "party", "good"),
    [
        ("c1", "token:a", True),
        ("c1", "token:b", False),
        ("c1", None, False),
        ("c2", "token:a", False),
        (None, "token:a", False),
    ],
)
def test_designated_is_both(client: str | None, party: str | None, good: bool) -> None:
    mediator = Mediator()
    asked(Policy.DESIGNATED, mediator)
    expected = Verdict.RESOLVED if good else Verdict.FORBIDDEN
    assert vote(mediator, client, party) is expected


def test_names_are_told() -> None:
    mediator = Mediator()
    asked(Policy.FIRST_RESPONDER, mediator, originator_name="o")
    body = {"outcome": {"outcome": "selected", "optionId": "yes"}}
    decision = mediator.vote("s", "r", body, Voter(client_id="c3", name="phone"), now=1.0)
    told: list[Any] = [
        getattr(each, "data", None) or getattr(each, "entry", None) for each in decision.effects
    ]
    resolved = next(d for d in told if d and d.get("voterClientId") == "c3")
    assert resolved["voterName"] == "phone"
    entry = next(d for d in told if d and d.get("kind") == "permission.resolved")
    assert entry["decisionReason"]["resolverName"] == "phone"
