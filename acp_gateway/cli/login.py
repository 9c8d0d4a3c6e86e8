"""``login``: sign in at a provider, through the gateway that runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from acp_gateway.cli.base import command, say
from acp_gateway.cli.qr import draw

if TYPE_CHECKING:
    from acp_gateway.runtime.runtime_file import RuntimeInfo

FLOWS: Final = "/workspace/auth/device-flow"
ANSWER: Final = 40.0
"""Seconds that the gateway has to answer; it has to ask the provider."""
LOOK: Final = 2.0
"""Seconds between two looks at the flow."""


class _Refused(Exception):
    """The gateway did not do it; the text is for the person."""


@command("login")
@click.option("--gateway", metavar="PID|URL", help="Which gateway, when several run.")
@click.argument("provider", required=False)
def login(provider: str | None, gateway: str | None) -> int:
    """Sign in at the provider of an agent's model.

    Prints a link and a code for a browser on any device, and waits. PROVIDER may be left out when
    the gateway knows one only.
    """
    from acp_gateway.cli.http import running

    info = running(gateway)
    if info is None:
        return 1
    call = _caller(info)
    try:
        flow = call("POST", FLOWS, {"providerId": provider or _only(call)})
        return _follow(call, flow)
    except _Refused as refusal:
        say(str(refusal))
        return 1


Call = Callable[..., Any]


def _caller(info: RuntimeInfo) -> Call:
    from acp_gateway.cli.http import ask_own

    def call(method: str, path: str, body: Any = None) -> Any:
        try:
            status, answer = ask_own(info, path, timeout=ANSWER, method=method, body=body)
        except OSError as error:
            raise _Refused(f"The gateway {info.url} does not answer: {error}.") from error
        if status < 400:
            return answer
        known = answer if isinstance(answer, dict) else {}
        text = str(known.get("error") or f"The gateway answered with HTTP status {status}")
        remedy = known.get("remedy")
        if providers := known.get("supportedProviders"):
            remedy = f"use one of: {', '.join(map(str, providers))}"
        raise _Refused(f"{text}.{f' Try: {remedy}.' if remedy else ''}")

    return call


def _only(call: Call) -> str:
    known = call("GET", "/workspace/auth/status").get("supportedDeviceFlowProviders", [])
    if len(known) == 1:
        return str(known[0])
    if known:
        raise _Refused(f"Name a provider: {', '.join(map(str, known))}.")
    raise _Refused(
        "This gateway knows no provider to sign in at. "
        "Try: add an [auth.NAME] table to its configuration file."
    )


def _follow(call: Call, flow: dict[str, Any]) -> int:
    mine = not flow.get("attached")
    path = f"{FLOWS}/{flow['deviceFlowId']}"
    try:
        if "userCode" not in flow:
            say("Another client has begun this sign-in and has the code; waiting for its end.")
        else:
            _show(flow)
        while (state := call("GET", path))["status"] == "pending":
            time.sleep(LOOK)
    except KeyboardInterrupt:
        if mine:
            call("DELETE", path)
            say("Cancelled.")
        return 130
    if state["status"] == "authorized":
        click.echo(f"Signed in at {state['providerId']}.")
        return 0
    say(f"Not signed in: {state.get('hint') or state['status']}.")
    return 1


def _show(flow: dict[str, Any]) -> None:
    link = flow.get("verificationUriComplete") or flow["verificationUri"]
    click.echo(f"Open   {flow['verificationUri']}")
    click.echo(f"Enter  {flow['userCode']}")
    if link != flow["verificationUri"]:
        click.echo(f"Or     {link}")
    draw(link)
    left = max(flow["expiresAt"] / 1000 - time.time(), 0)
    say(f"Waiting (the code is good for {left / 60:.0f} minutes); Ctrl-C gives up.")
