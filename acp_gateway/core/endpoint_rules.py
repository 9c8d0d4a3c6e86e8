"""Where the daemon itself may send a request: https, and no private network by accident.

Plain http is for this machine only. An address of a private network is refused unless the operator
allows it: a name in a configuration, or in an answer, must not reach what only the daemon can.
"""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import SplitResult, urlsplit

LONGEST: Final = 2048


def _split(url: str) -> SplitResult | None:
    if (
        not 0 < len(url) <= LONGEST
        or not url.isascii()
        or any(c <= " " or c in '\x7f"<>\\' for c in url)
    ):
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def host_of(url: str) -> str:
    """The host in lower case, without brackets; empty when there is none."""
    parts = _split(url)
    return (parts.hostname or "") if parts else ""


def is_this_machine(url: str) -> bool:
    """Its host is ``localhost`` or a loopback address, written out."""
    host = host_of(url)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_public(address: str) -> bool:
    """An address that anybody on the internet means by it. Raises `ValueError` for no address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    ip = mapped or ip
    return ip.is_global and not ip.is_multicast


def problem_of(url: str, *, private: bool = False, here: bool = True) -> str | None:
    """Why no request may go to ``url``, as a clause; None when one may.

    ``private``: addresses of private networks are fine; ``here``: this machine is.
    """
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        return "is not a web address"
    if parts.username is not None or parts.password is not None or parts.fragment:
        return "must have neither a user name nor a fragment"
    if is_this_machine(url):
        return None if here or private else "leads to this machine"
    if parts.scheme != "https":
        return "must begin with https:// (http:// is for this machine only)"
    try:
        public = is_public(parts.hostname)
    except ValueError:
        return None  # a name; what it stands for is checked when it is used
    return None if public or private else "leads into a private network"


def may_be_shown(url: str) -> bool:
    """A link that a person may be asked to open."""
    parts = _split(url)
    return bool(parts and parts.scheme in ("http", "https") and parts.hostname)
