"""Whom one can sign in at: tables, addresses, secrets."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import structlog

from acp_gateway.config import ConfigError
from acp_gateway.config_load import load_settings
from acp_gateway.core.endpoint_rules import is_public, is_this_machine, may_be_shown, problem_of
from acp_gateway.core.secret import Secret
from acp_gateway.runtime.agent_profile import KNOWN_AGENTS
from acp_gateway.runtime.credentials import credentials_text
from acp_gateway.runtime.device_flow import clean_detail
from acp_gateway.runtime.sign_in_providers import Provider, resolve_providers
from acp_gateway.wire.json_codec import JsonError, dumps

DEMO = {"demo": KNOWN_AGENTS["demo"]}
QWEN = {"main": KNOWN_AGENTS["qwen"], **DEMO}
ENDS = {
    "device_authorization_endpoint": "https://a.example/device",
    "token_endpoint": "https://a.example/token",
}


def resolved(
    tables: dict[str, Any], served: dict[str, Any] = DEMO, **more: Any
) -> dict[str, Provider]:
    base = Path("/base")
    given = {"base": base, "state": Path("/state"), "environ": {}} | more
    return resolve_providers(tables, served, **given)


def test_the_known_one_is_there_for_the_agent_that_reads_its_file() -> None:
    assert resolved({}) == {}
    (qwen,) = resolved({}, QWEN).values()
    assert qwen.name == "qwen-oauth" and qwen.agents == ("main",)
    assert qwen.credentials == Path.home() / ".qwen" / "oauth_creds.json"
    moved = resolved({}, QWEN, environ={"QWEN_HOME": "/q"})["qwen-oauth"]
    assert moved.credentials == Path("/q/oauth_creds.json")
    changed = resolved({"qwen-oauth": {"token_endpoint": "http://127.0.0.1:1/t"}})["qwen-oauth"]
    assert changed.token_endpoint == "http://127.0.0.1:1/t" and changed.agents == ()
    assert changed.client_id == qwen.client_id
    other = resolved({"qwen-oauth": {"issuer": "https://i.example"}})["qwen-oauth"]
    assert other.token_endpoint is None and other.issuer == "https://i.example"


def test_a_new_one(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\nmore\n")
    table = {
        **ENDS,
        "client-id": "c",
        "client_secret_file": str(secret),
        "credentials": "here/c.json",
        "parameters": {"audience": "a"},
        "agents": ["demo"],
        "pkce": False,
    }
    made = resolved({"mine": table})["mine"]
    assert made.credentials == Path("/base/here/c.json") and made.agents == ("demo",)
    assert made.client_secret is not None and made.client_secret.reveal() == "hunter2"
    assert "hunter2" not in repr(made) + str(made)
    plain = resolved({"mine": {"issuer": "https://i.example", "client_id": "c"}})["mine"]
    assert plain.credentials == Path("/state/credentials/mine.json") and plain.pkce


@pytest.mark.parametrize(
    ("name", "table", "word"),
    [
        ("a b", {}, "does not describe"),
        ("x", "text", "does not describe"),
        ("x", {}, "no client_id"),
        ("x", {"client_id": "c"}, "no address"),
        ("x", {"client_id": "c", "token_endpoint": "https://a.example"}, "no address"),
        ("x", {"client_id": 5}, "client_id"),
        ("x", {"client_idd": "c"}, "client_idd"),
        ("x", {**ENDS, "client_id": "c", "pkce": "yes"}, "pkce"),
        ("x", {**ENDS, "client_id": "c", "shape": "round"}, "shape"),
        ("x", {**ENDS, "client_id": "c", "agents": "demo"}, "agents"),
        ("x", {**ENDS, "client_id": "c", "agents": ["qwen"]}, "not served"),
        ("x", {**ENDS, "client_id": "c", "parameters": {"a": 1}}, "parameters"),
        ("x", {**ENDS, "client_id": "c", "client_secret_file": "/none"}, "cannot be read"),
        ("x", {"client_id": "c", "issuer": "http://a.example"}, "https"),
        ("x", {"client_id": "c", "issuer": "https://192.168.1.1"}, "private network"),
        ("x", {"client_id": "c", "issuer": "https://me@a.example"}, "user name"),
        ("x", {"client_id": "c", "issuer": "a.example"}, "web address"),
    ],
)
def test_tables_that_are_wrong(name: str, table: Any, word: str) -> None:
    with pytest.raises(ConfigError) as problem:
        resolved({name: table})
    assert word in problem.value.message and problem.value.remedy and problem.value.source


def test_private_addresses_where_they_are_allowed() -> None:
    table = {"x": {"client_id": "c", "issuer": "https://192.168.1.1"}}
    assert resolved(table, allow_private=True)["x"].allow_private


def test_tables_come_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[auth.mine]\nclient_id = "c"\n')
    loaded = load_settings({}, config_file=file, environ={})
    assert loaded.auth == {"mine": {"client_id": "c"}} and loaded.agents == {}
    file.write_text('auth = "x"\n')
    with pytest.raises(ConfigError):
        load_settings({}, config_file=file, environ={})


# ---- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://a.example/x?y=1", None),
        ("https://8.8.8.8/", None),
        ("http://127.0.0.1:80/", None),
        ("http://localhost/", None),
        ("http://[::1]:8080/", None),
        ("http://a.example/", "https"),
        ("http://localhost.a.example/", "https"),
        ("http://127.0.0.1.a.example/", "https"),
        ("https://10.1.2.3/", "private"),
        ("https://169.254.169.254/latest", "private"),
        ("https://[fd00::1]/", "private"),
        ("https://[::ffff:10.0.0.1]/", "private"),
        ("https://0.0.0.0/", "private"),
        ("https://100.64.0.1/", "private"),
        ("https://224.0.0.1/", "private"),
        ("https://user:pw@a.example/", "user name"),
        ("https://a.example/#x", "fragment"),
        ("https://", "web address"),
        ("ftp://a.example", "web address"),
        ("https://a.example/\r\nHost: b", "web address"),
        ("https://a.example:99999/", "web address"),
        ("https://[::1", "web address"),
        ("", "web address"),
        ("https://\u0430.example", "web address"),
    ],
)
def test_where_requests_may_go(url: str, problem: str | None) -> None:
    found = problem_of(url)
    assert (found is None) == (problem is None) and (problem or "") in (found or "")


def test_addresses() -> None:
    assert problem_of("http://127.0.0.1/", here=False) == "leads to this machine"
    assert problem_of("https://10.0.0.1/", private=True) is None
    assert is_this_machine("http://127.8.9.1/") and not is_this_machine("http://a.example/")
    assert not is_public("::ffff:127.0.0.1") and not is_public("fe80::1%eth0")
    assert is_public("2606:4700::1111")
    assert may_be_shown("http://a.example") and not may_be_shown("javascript:alert(1)")


# ---- secrets -------------------------------------------------------------------------------------


def test_a_secret_shows_nothing() -> None:
    secret = Secret("hunter2hunter2")
    shown = [str(secret), repr(secret), f"{secret!r:>20}{secret}", f"{secret}", secret + ""]
    shown += [json.dumps({"a": secret}), repr({"a": [secret]}), str(secret.encode())]
    shown.append(structlog.processors.JSONRenderer()(None, "", {"a": secret}))  # type: ignore[arg-type]
    try:
        shown.append(dumps({"a": secret}).decode())
    except JsonError as error:
        shown.append(str(error))
    assert not [each for each in shown if "hunter2" in each]
    for store in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            store(secret)
    assert secret != Secret("hunter2hunter2") and secret != "[redacted]" and len({secret}) == 1
    assert secret.hide_in("a hunter2hunter2 b") == "a [redacted] b"
    assert secret.reveal() == "hunter2hunter2"
    secret.forget()
    assert secret.forgotten and secret.hide_in("x") == "x"
    with pytest.raises(LookupError):
        secret.reveal()


def test_details_are_fit_for_a_log_line() -> None:
    said = "a\r\nforged \x1b[0m \u202e token=abcdefghijkl " + "x" * 9000
    text = clean_detail(said, [Secret("forged")])
    assert text.isprintable() and 1000 < len(text) <= 1024
    assert "forged" not in text and "abcdefghijkl" not in text


def test_what_files_hold() -> None:
    (qwen,) = resolved({}, QWEN).values()
    answer = {"access_token": "a", "token_type": "Bearer", "refresh_token": None, "scope": "s"}
    kept = json.loads(credentials_text(qwen, answer, 12.5, "https://t").reveal())
    assert kept == {"access_token": "a", "token_type": "Bearer", "expiry_date": 12500}
    mine = resolved({"mine": {**ENDS, "client_id": "c"}})["mine"]
    kept = json.loads(credentials_text(mine, answer, None, "https://t").reveal())
    assert kept == {**answer, "client_id": "c", "token_endpoint": "https://t"}
