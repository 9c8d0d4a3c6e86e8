"""Secrets leave no trace in logs; what is no secret stays readable."""

from __future__ import annotations

import re
import secrets
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.runtime import redact as module
from acp_gateway.runtime.redact import (
    REDACTED,
    clean,
    redact,
    redact_value,
    remember_secret,
    visible,
)
from acp_gateway.token_store import PREFIX

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
        "QQBot {}",
        "Authorization: QQBot {}",
        "Authorization: Token {}",
        "Proxy-Authorization: Basic {}",
        "authorization={}",
        "refresh_token={}&grant_type=x",
        '{{"access_token":"{}","expires_in":3600}}',
        '{{"id_token" : "{}"}}',
        '{{"password":"{} horse battery staple"}}',
        "{{'client_secret': '{}'}}",
        r'{{"params":"{{\"device_code\":\"{}\"}}"}}',
        "device_code={}",
        "code_verifier={}",
        "userCode: {}",
        "DASHSCOPE_API_KEY={}",
        "export GITHUB_TOKEN={}",
        "STRIPE_KEY={}",
        "AZURE_STORAGE_ACCOUNT_KEY={}",
        "DB_PASSWORD: {}",
        "MYSQL_PWD={}",
        "NPM_AUTH='{}'",
        "SENTRY_DSN={}",
        "passphrase = {}",
        "credentials: {}",
        "aws_secret_access_key = {}",
        "aws_access_key_id={}",
        "Cookie: sid={}; theme=dark",
        "Set-Cookie: session={}; HttpOnly; Path=/",
        'cookie: "{}"',
        "Acp-Connection-Id: {}",
        "redis://:{}@cache:6379/0",
        "amqp://guest:{}@mq.example:5672/vhost",
        "https://me:pa@{}@host.example/path",
        "wss://host/acp?access_token={}",
        "https://bucket.s3.example/x?X-Amz-Signature={}&y=1",
        "https://blob.example/x?sv=1&sig={}",
        "curl -H 'Authorization: Bearer {}' https://x",
        "curl --oauth2-token {}",
        "run --client-secret '{}'",
        "rk_live_{}",
        "pk_test_{}",
        "ghs_{} ghu_{} ghr_{}",
        "gldt-{}",
        "xapp-1-{}",
        "pypi-{}",
        "ya29.{}",
        "SG.{}.{}",
        "whsec_{}",
        "dop_v1_{}",
        "https://hooks.slack.com/services/T00000000/B00000000/{}",
        "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
        r"-----BEGIN PRIVATE KEY-----\n{}\nand it was cut",
        "-----BEGIN OPENSSH PRIVATE KEY-----\n{}",
        'error: {{"headers":{{"authorization":"Bearer {}"}}}}',
        "token\t=\t{}",
        "  secret:{}  ",
        "sessionKey={}",
        "signing_key: {}",
        "account-key: {}",
    ],
)
def test_secrets_are_taken_out(line: str) -> None:
    clean = redact(line.replace("{{", "{").replace("}}", "}").replace("{}", SECRET))
    assert SECRET not in clean and "[redacted]" in clean
    assert not re.search(r"abcdefghijklmnop", clean)
    assert redact(clean) == clean


@pytest.mark.parametrize(
    "secret",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ASIAIOSFODNN7EXAMPLE",
        "AGE-SECRET-KEY-1QQPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGP",
        "123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw1",
        "acpgw_" + "Zx81-abcdefghijklmnop_" * 2,
        "acpgw_" + "-_Zx81abcdefghijklmnop",
    ],
)
def test_what_is_a_secret_by_its_look(secret: str) -> None:
    assert redact(f"found {secret} here") == "found [redacted] here"


def test_a_named_token_within_something_else() -> None:
    token = f"{PREFIX}{secrets.token_urlsafe(32)}"
    for text in (f"/x/{token}", f"a%3D{token}%26", f"'{token}'", f"x{token}", token):
        assert token[6:] not in redact(text) and "[redacted]" in redact(text)


def test_the_codes_of_a_sign_in_go_by_name() -> None:
    state = {
        "userCode": "ABCD-EFGH",
        "verificationUri": "https://issuer.example/device",
        "verificationUriComplete": "https://issuer.example/device/ABCD-EFGH",
        "device_code": "xyzxyz",
    }
    told = redact_value({"result": {"view": state}})["result"]["view"]
    assert told == {
        **dict.fromkeys(state, REDACTED),
        "verificationUri": "https://issuer.example/device",
    }


def test_a_remembered_secret_is_taken_out_whatever_it_looks_like(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_known", [])
    assert redact("it is correct horse") == "it is correct horse"
    remember_secret("correct horse")
    assert redact("it is correct horse") == "it is [redacted]"
    remember_secret("a")  # too short: it would eat the log
    assert redact("a b") == "a b"


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
        "Bearer authentication is required",
        "send a bearer token",
        "Basic authentication",
        "a" * 300,
        "token: null",
        "password: required",
        "api_key: missing",
        "secret=undefined",
        '{"token": null, "password": true}',
        '"token": "string"',
        "authorization: none",
        "cookie: consent",
        "the cookie jar: full",
        "sort_key=name&order=asc",
        "KEY=1",
        "PRIMARY_KEY=id",
        "key: value",
        "keys: 12",
        "http://127.0.0.1:4170/session/abc/prompt",
        "http://[::1]:4170/acp",
        "ws://host:80/a?mail=me@example.com",
        "git@github.com:owner/name.git",
        "3f2a9c1e-1b2c-4d5e-8f90-aabbccddeeff",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sk-learn and sk_buff",
        "npm install -g @qwen-code/qwen-code",
        "ghost-writer of the highlands_of_scotland",
        "hf_hub_download",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "tokenizer: cl100k_base",
        "secretary: Jane",
        "passwordless sign-in",
        "inputTokens=12 outputTokens=9",
        "the agent demo ended unexpectedly (exit status 3)",
        "exit code: 137",
        "code: permission_forbidden",
        "/home/me/.ssh/id_rsa.pub",
        "--port 4170 --max-sessions 20",
        "--token-file /etc/acp/token",
        "C:\\Users\\me\\token.txt",
        "12:34:56 key pressed",
        "ACP-Session-Id: s-1",
        "x?a=1&sign=up",
        "design: blue",
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


UNITS = [
    *(
        "a",
        "-",
        "_",
        "token",
        "token=",
        "token ",
        "bearer ",
        "sk-",
        "://",
        "--key ",
        "eyJ.",
        "--a-",
    ),
    *("cookie: a=", '"token":"', "-----BEGIN PRIVATE KEY-----", "A_KEY=", "xxxxxxx_", "://a:"),
    *("://a:b@", '\\"token\\":\\"', "\\", "token\\\\\\", "key ", "basic a=", "?sig=", "1:AA"),
    *("eyJaaaaaaaaaaa.", "sk_a", "api-", "a.b.c@", "token='", "token:     ", 'token="\\'),
]


@pytest.mark.parametrize("unit", UNITS)
def test_no_text_makes_it_slow(unit: str) -> None:
    """Steps of the engine cannot be counted; a quadratic pattern would need minutes for this."""
    text = unit * (400_000 // len(unit))
    assert len(redact(text)) <= 5 * len(text)


class _Counting:
    """Stands for the patterns, and counts the characters that they are given."""

    def __init__(self) -> None:
        self.characters = 0

    def sub(self, _: str, text: str) -> str:
        self.characters += len(text)
        return text


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_each_pattern_reads_a_text_once_at_most(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = _Counting()
    patterns = sum(len(each.patterns) for each in module._RULES)
    rules = tuple(
        SimpleNamespace(hints=each.hints, patterns=(counting,) * len(each.patterns))
        for each in module._RULES
    )
    monkeypatch.setattr(module, "_RULES", rules)
    text = ("token=Zx81 ://a:b@c " * size)[:size]
    redact(text)
    assert 0 < counting.characters <= patterns * size
    counting.characters = 0
    redact("nothing to see " * (size // 15))
    assert counting.characters == 0  # without a hint no pattern is tried
    counting.characters = 0
    clean(text * 100, limit=100)  # what is cut off is not read
    assert counting.characters <= patterns * (4 * 100 + 4096)


# ---- what a terminal would obey ------------------------------------------------------------------


@pytest.mark.parametrize(
    "char",
    [
        *map(chr, (0, 7, 8, 9, 10, 13, 27, 31, 127, 0x80, 0x85, 0x9B, 0x9F)),
        *map(chr, (0x200B, 0x200E, 0x200F, 0x2028, 0x2029, 0x202A, 0x202E, 0x2066, 0x2069)),
        *map(chr, (0xFEFF, 0xD800, 0xDFFF, 0xE0041)),
    ],
)
def test_control_and_direction_characters_are_shown(char: str) -> None:
    shown = visible(f"a{char}b")
    assert char not in shown and shown.isprintable()
    assert shown.startswith("a\\") and shown.endswith("b")


def test_letters_of_all_languages_stay() -> None:
    text = "Grüße, 你好, שלום, مرحبا, 🙂"
    assert visible(text) == text


def test_clean_cuts_behind_the_redaction() -> None:
    shown = clean("x" * 90 + f" token={SECRET}", limit=100)
    assert SECRET[:4] not in shown and len(shown) < 130
    assert clean("one\ntwo\x1b[31m") == r"one\ntwo\x1b[31m"


# ---- JSON values ---------------------------------------------------------------------------------


def test_values_lose_what_their_names_call_secret() -> None:
    before = {
        "apiKey": SECRET,
        "x-api-key": "short",
        "nested": [{"refresh_token": "abc", "model": "m"}],
        "env": [{"name": "HOME", "value": "/home/me"}, {"name": "A", "value": SECRET}],
        "headers": {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"},
        "text": f"my key is token={SECRET}",
        "args": ["run", "--api-key", "plain", "--verbose", "-x", "y"],
        "inputTokens": 12,
        "key": "value",
        "ok": True,
        "none": None,
    }
    after = redact_value(before)
    assert SECRET not in repr(after)
    assert after["apiKey"] == after["x-api-key"] == after["key"] == REDACTED
    assert after["nested"] == [{"refresh_token": REDACTED, "model": "m"}]
    assert [each["value"] for each in after["env"]] == [REDACTED, REDACTED]
    assert after["headers"] == {"Authorization": REDACTED, "Content-Type": "application/json"}
    assert after["args"] == ["run", "--api-key", REDACTED, "--verbose", "-x", "y"]
    assert after["text"] == "my key is token=[redacted]"
    assert (after["inputTokens"], after["ok"], after["none"]) == (12, True, None)
    assert before["apiKey"] == SECRET  # it is a copy


def test_a_deep_value_ends_somewhere() -> None:
    value: object = SECRET
    for _ in range(500):
        value = [value]
    assert "[too deep]" in repr(redact_value(value)) and SECRET not in repr(redact_value(value))
