"""Real clients over WebSocket and Streamable HTTP, with the demo agent, qwen and goose behind."""

from __future__ import annotations

import pytest
from conftest import SCENARIOS, Site, run_client

pytestmark = pytest.mark.real

CLIENTS = ("ts-ws", "ts-http", "py-ws", "py-http")


def _cases() -> list[tuple[str, str, str]]:
    """(agent, client, scenario): all of them for the light demo agent; for the others each
    scenario once over each transport, the two SDKs taking turns.
    """
    cases = [("demo", client, scenario) for client in CLIENTS for scenario in SCENARIOS]
    for agent in ("goose", "qwen"):
        for number, scenario in enumerate(SCENARIOS):
            first, second = ("ts", "py") if number % 2 else ("py", "ts")
            cases += [(agent, f"{first}-ws", scenario), (agent, f"{second}-http", scenario)]
    return cases


@pytest.mark.parametrize(("site", "client", "scenario"), _cases(), indirect=["site"])
def test_scenario(site: Site, client: str, scenario: str) -> None:
    sdk, transport = client.split("-")
    url = site.gateway.ws_url if transport == "ws" else site.gateway.http_url
    cwd = site.directory(f"{client}-{scenario}")
    run_client(site, sdk, scenario, cwd, ["--transport", transport, "--url", url])
