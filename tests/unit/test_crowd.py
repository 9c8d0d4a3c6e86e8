"""Connections of one peer: who is counted, and that every place is given back."""

from __future__ import annotations

from acp_gateway.transports.client_address import Proxies
from acp_gateway.transports.crowd import Crowd


def test_one_peer_has_its_limit_and_others_theirs() -> None:
    crowd = Crowd(2, Proxies())
    places = [crowd.enter("203.0.113.1") for _ in range(3)]
    assert [place.too_many for place in places] == [False, False, True]
    assert not crowd.enter("203.0.113.2").too_many
    # One that was too many leaves as well; a place can be left once only.
    places[2].leave()
    places[2].leave()
    assert crowd.enter("203.0.113.1").too_many
    for place in places:
        place.leave()
    assert not crowd.enter("203.0.113.1").too_many


def test_another_address_of_the_same_network_is_the_same_peer() -> None:
    crowd = Crowd(1, Proxies())
    assert not crowd.enter("2001:db8::1").too_many
    assert crowd.enter("2001:db8::2").too_many
    assert not crowd.enter("2001:db8:0:1::1").too_many
    assert not crowd.enter("203.0.113.1").too_many
    assert crowd.enter("::ffff:203.0.113.1").too_many


def test_who_is_not_counted() -> None:
    crowd = Crowd(1, Proxies(("10.0.0.0/8",)))
    for peer in ("127.0.0.1", "::1", "10.1.2.3", None):
        assert not any(crowd.enter(peer).too_many for _ in range(5)), peer
    assert not any(Crowd(0, Proxies()).enter("203.0.113.1").too_many for _ in range(5))


def test_nothing_is_kept_of_those_who_left() -> None:
    crowd = Crowd(5, Proxies())
    for number in range(100):
        crowd.enter(f"203.0.113.{number}").leave()
    assert not crowd._open
