"""Secrets leave no trace in logs; what is no secret stays readable."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.runtime.redact import redact

SECRET = "Zx81-abcdefghijklmnop_9"


@pytest.mark.parametrize(
    "line",
    [
        "OPENAI_API_KEY={}",
        "export ANTHROPIC_AUTH_TOKEN='{}'",
        "api-key: {}",
        "apiKey: {}",
        "x-api-key: {}",
        'config {{"api_key": "{}", "model": "m"}}',
        r'{{"message":"bad config {{\"apiKey\":\"{}\"}}"}}',
        "password = {}",
        "passwd:{}",
        "client_secret={}&grant=1",
        "https://host/path?token={}&x=1",
        "Authorization: Bearer {}",
        "authorization: bearer {}",
        "Authorization: Basic {}",
        "'Authorization': 'Bearer {}'",
        "sent header Bearer {}",
        "run --api-key {} --verbose",
        "run --token={}",
        "run --github-token {}",
        "postgres://user:{}@db.example/x",
        "https://:{}@registry.example/",
        "key sk-{}",
        "sk-proj-{}",
        "ghp_{} gho_{}",
        "github_pat_{}",
        "glpat-{}",
        "xoxb-{}",
        "hf_{}",
        "npm_{}",
        "AIza{}",
        "jwt eyJhbGciOiJIUzI1NiJ9.{}.{}",
    ],
)
def test_secrets_are_taken_out(line: str) -> None:
    clean = redact(line.replace("{{", "{").replace("}}", "}").replace("{}", SECRET))
    assert SECRET not in clean and "[redacted]" in clean
    assert not re.search(r"abcdefghijklmnop", clean)
    assert redact(clean) == clean


def test_an_access_key_id() -> None:
    assert redact("AKIAIOSFODNN7EXAMPLE") == "[redacted]"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Error: connect ECONNREFUSED 127.0.0.1:4170",
        "max_tokens=4096, tokens: 120",
        "the token is too short",
        "Unexpected token } in JSON at position 3",
        "reading /home/me/project/secret_garden/notes.md",
        "https://example.com/a/b?c=d",
        "user@example.com",
        "task-based risk-averse desk-organizer",
        "Bearer of bad news",
        "a" * 300,
    ],
)
def test_what_is_no_secret_stays(line: str) -> None:
    assert redact(line) == line


def test_what_stands_around_a_secret_stays() -> None:
    line = f'2024-01-01 ERROR {{"api_key": "{SECRET}", "model": "m"}} failed'
    assert redact(line) == '2024-01-01 ERROR {"api_key": "[redacted]", "model": "m"} failed'
    assert redact(f"postgres://me:{SECRET}@db/x") == "postgres://me:[redacted]@db/x"


@given(st.text())
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "unit", ["a", "-", "_", "token", "token=", "token ", "bearer ", "sk-", "://", "--key ", "eyJ."]
)
def test_no_text_makes_it_slow(unit: str) -> None:
    """Steps of the engine cannot be counted; a quadratic pattern would need minutes for this."""
    text = unit * (400_000 // len(unit))
    assert len(redact(text)) <= 5 * len(text)
