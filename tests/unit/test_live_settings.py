"""Which settings change while the daemon runs, and that the others do not."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from acp_gateway.config import Settings
from acp_gateway.runtime.agent_profile import AgentProfile, Profiles
from acp_gateway.runtime.live_settings import LIVE, LiveSettings

NAMES = {field.name for field in attrs.fields(Settings)}
RESTART = {
    *("host", "port", "tcp", "unix_socket", "unix_socket_mode", "workspace", "isolation"),
    *("token", "token_file", "require_auth", "web", "open", "log_format"),
    *("public_url", "trusted_proxy", "max_header_bytes", "max_peer_connections"),
    *("body_timeout", "http_idle_timeout", "tokens_file", "jwt_jwks", "jwt_issuer"),
    *("jwt_audience", "jwt_scope_claim", "audit_log", "audit_raw_paths", "watch_files"),
    *("log_file", "log_level", "trace_wire", "otlp_endpoint", "allow_private_auth_base_url"),
}
"""A new setting goes here, or into `LIVE` when a test shows that its change is followed."""


def test_every_setting_is_one_or_the_other() -> None:
    assert set(LIVE) <= NAMES
    assert set(LIVE).isdisjoint(RESTART)
    assert set(LIVE) | RESTART == NAMES


def test_the_page_tells_the_same() -> None:
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    for name, when in LIVE.items():
        assert f"| `{name}` | {when} |" in page
    for name in RESTART:
        assert f"`{name}`" in page


def test_a_change_is_seen_by_whoever_holds_the_settings() -> None:
    settings = Settings()
    live = LiveSettings(settings)
    told: list[str] = []
    live.when_changed(("linger",), lambda: told.append("linger"))
    live.when_changed(("max_sessions", "max_agents"), lambda: told.append("max"))
    change = live.apply(attrs.evolve(settings, max_sessions=3, port=9, max_agents=2))
    assert (settings.max_sessions, settings.max_agents, settings.port) == (3, 2, 4170)
    assert (change.applied, change.restart) == (("max_sessions", "max_agents"), ("port",))
    assert live.pending == ("port",)
    assert told == ["max"]
    assert live.apply(attrs.evolve(settings)).applied == ()
    assert live.pending == ()


def test_settings_stay_frozen_for_everybody_else() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Settings().max_sessions = 3  # type: ignore[misc]


@pytest.mark.parametrize("before", [True, False])
def test_tls_itself_is_switched_by_a_restart(before: bool) -> None:
    with_tls = Settings(tls_cert=Path("/a"), tls_key=Path("/b"))
    old, new = (with_tls, Settings()) if before else (Settings(), with_tls)
    live = LiveSettings(attrs.evolve(old))
    assert live.apply(new).restart == ("tls_cert", "tls_key")
    renewed = attrs.evolve(with_tls, tls_cert=Path("/c"))
    assert LiveSettings(attrs.evolve(with_tls)).apply(renewed).applied == ("tls_cert",)


def profile(name: str, word: str = "x") -> AgentProfile:
    return AgentProfile(name=name, title=name, argv=("/bin/echo", word))


def test_profiles_become_others_and_the_same_stay_the_same_objects() -> None:
    profiles = Profiles([profile("a"), profile("b"), profile("c")])
    kept = profiles["b"]
    assert profiles.become(Profiles([profile("b"), profile("a", "y"), profile("d")])) == [
        *("a", "c", "d"),
    ]
    assert list(profiles) == ["b", "a", "d"]
    assert profiles["b"] is kept is profiles.default
    assert profiles["a"].argv[1] == "y"
