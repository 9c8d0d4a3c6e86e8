"""``pair``: a code, as digits and as a QR code, that gives a phone a token of its own."""

from __future__ import annotations

import socket
import time
from typing import Any

import click

from acp_gateway.cli.base import command, json_option, print_json, say
from acp_gateway.cli.qr import draw
from acp_gateway.cli.token import chosen_scope, scope_option


@command("pair")
@click.option("--name", help="What to call the device [what it calls itself].")
@scope_option("approve")
@click.option("--expires", metavar="WHEN", help="When its token ends: 30d, or a date [never].")
@click.option(
    "--url", metavar="URL", help="Address by which the device reaches the gateway, if not its own."
)
@json_option()
@click.argument("gateway", required=False, metavar="[PID|URL]")
def pair(
    gateway: str | None,
    name: str | None,
    scopes: tuple[str, ...],
    expires: str | None,
    url: str | None,
    as_json: bool,
) -> int:
    """Let a phone in: scan the QR code, or open /pair there and type the digits.

    The code is good for 2 minutes, once, and void after 5 wrong ones. The device gets a named
    token, which `acp-gateway token revoke` takes away.
    """
    from acp_gateway.cli.http import ask_own, running
    from acp_gateway.core.pairing import LIFETIME
    from acp_gateway.token_store import parse_expiry

    info = running(gateway)
    if info is None:
        return 1
    body: dict[str, Any] = {"scope": chosen_scope(scopes, "approve").word}
    if name is not None:
        body["name"] = name
    if expires is not None:
        body["expiresInSeconds"] = max(1, round(parse_expiry(expires, time.time()) - time.time()))
    try:
        status, told = ask_own(info, "/pair/code", timeout=10, method="POST", body=body)
    except OSError as error:
        say(f"The gateway at {info.url} does not answer: {error}.")
        return 1
    if status != 201:
        known = told if isinstance(told, dict) else {}
        say(f"The gateway refuses: {known.get('error', f'HTTP status {status}')}.")
        if known.get("code") == "token_required":
            say("It asks nobody for a token, so there is nothing to pair: serve with --token-file.")
        elif known.get("remedy"):
            say(f"  try:  {known['remedy']}")
        return 1
    base, hint = _address(info.url, told, url)
    link = f"{base}/pair#{told['code']}"
    if as_json:
        print_json({**told, "url": link, "hint": hint})
        return 0
    draw(link)
    click.echo(f"Scan it, or open {base}/pair and type")
    click.echo(f"\n    {told['code'][:3]} {told['code'][3:]}\n")
    say(f"Good for {LIFETIME / 60:g} minutes, once. The device may {told['scope']}.")
    if hint:
        say(hint)
    return 0


def _address(url: str, told: dict[str, Any], wanted: str | None) -> tuple[str, str | None]:
    """(base URL for the device, what to tell about it)"""
    if wanted is None:
        wanted = told.get("publicUrl")
    if wanted:
        base = wanted if "//" in wanted else f"https://{wanted}"
        return base.split("#")[0].rstrip("/").removesuffix("/pair"), None
    listens = told["listens"]
    if listens["loopback"]:
        return url, (
            "The gateway listens on this machine only: a phone cannot reach it. Serve with --host "
            "0.0.0.0, or name the address of a tunnel or proxy with --url."
        )
    scheme = "https" if listens["tls"] else "http"
    host = listens["host"]
    if host in ("", "0.0.0.0", "::"):
        host = _own_address(socket.AF_INET6 if host == "::" else socket.AF_INET) or "127.0.0.1"
    if ":" in host:
        host = f"[{host}]"
    hint = None
    if not listens["tls"]:
        hint = "Without TLS everybody on the way reads the token: use it in a network you trust."
    return f"{scheme}://{host}:{listens['port']}", hint


def _own_address(family: socket.AddressFamily) -> str | None:
    """The address by which others reach this machine: that of the way out. Nothing is sent."""
    outside = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"  # RFC 3849, RFC 5737
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((outside, 9))
            address: str = sock.getsockname()[0]
        except OSError:
            return None
    return address
