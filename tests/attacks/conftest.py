"""One gateway with a token for all attacks, and a look at it after each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.attacked import CHUNKS, DEADLINE, MOST_MEMORY, SECRET, TOKEN, Site, os_listing
from support.deadline import deadline  # noqa: F401
from support.processes import eventually, gateway, rss


@pytest.fixture(scope="session")
def the_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("attacked").resolve()
    (base / "outside").mkdir()
    (base / "outside" / "secret").write_text(SECRET)
    file = base / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with gateway(base, "--token-file", str(file)) as made:
        client = httpx2.Client(
            base_url=made.url, headers=headers, trust_env=False, timeout=DEADLINE
        )
        with client as http:
            site = Site(made, base, http)
            site.turn()
            yield site
            assert site.chunks_of_all_turns() == site.turns * CHUNKS, "something was lost"


@pytest.fixture
def site(the_site: Site) -> Iterator[Site]:
    """Afterwards the user works as before, and the gateway is no larger."""
    yield the_site
    assert the_site.gateway.process.poll() is None, the_site.log()
    the_site.turn()
    assert rss(the_site.gateway.process.pid) < MOST_MEMORY
    assert os_listing(the_site.outside) == {"secret": SECRET}
    shown = the_site.log()
    assert TOKEN not in shown and SECRET not in shown

    def quiet() -> bool:
        told = the_site.http.get("/daemon/status").json()
        return not told["runtime"]["transport"]["acp"]["connections"]

    assert eventually(quiet, DEADLINE), "a connection of the attack is still there"
