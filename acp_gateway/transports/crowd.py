"""How many connections one peer has, counted where they are accepted.

Not counted are the peers of this machine and the trusted proxies, behind whom many are.
"""

from __future__ import annotations

from collections import Counter

import attrs
import trio

from acp_gateway.transports.client_address import Proxies, caller_key, normal
from acp_gateway.transports.guards import is_loopback_address


def peer_of(stream: trio.SocketStream) -> str | None:
    """The address of the other end; None where there is none, or where it has gone."""
    try:
        address = stream.socket.getpeername()
    except OSError:
        return None
    return str(address[0]) if isinstance(address, tuple) else None


@attrs.define
class Place:
    """One connection in the count."""

    crowd: Crowd
    key: str | None
    too_many: bool

    def leave(self) -> None:
        if self.key is not None:
            self.crowd.forget(self.key)
            self.key = None


class Crowd:
    """``limit`` 0: any number."""

    def __init__(self, limit: int, proxies: Proxies) -> None:
        self._limit = limit
        self._proxies = proxies
        self._open: Counter[str] = Counter()

    def enter(self, peer: str | None) -> Place:
        """Count a connection; it leaves by `Place.leave`, also when it was one too many."""
        if not self._limit or peer is None or is_loopback_address(peer) or peer in self._proxies:
            return Place(self, None, too_many=False)
        key = caller_key(normal(peer))
        self._open[key] += 1
        return Place(self, key, self._open[key] > self._limit)

    def forget(self, key: str) -> None:
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]
