"""The tokens file: whole at any time, private, and without a token in it."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from acp_gateway import token_store
from acp_gateway.config import ConfigError
from acp_gateway.core.identity import Kind, Scope
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.token_store import PREFIX, TokenFileError, TokenStore, parse_expiry, token_digest


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "state" / "tokens.json")


def test_made_kept_and_taken_away(store: TokenStore) -> None:
    assert store.read() == () and store.fingerprint() is None
    token, made = store.create("laptop", Scope.PROMPT, expires_at=time.time() + 60)
    assert token.startswith(PREFIX) and len(token) == len(PREFIX) + 43
    assert store.read() == (made,)
    assert made.sha256 == token_digest(token) and token not in store.path.read_text()
    assert repr(made.sha256) not in repr(made)
    one = made.identity
    assert (one.name, one.scope, one.kind) == ("laptop", Scope.PROMPT, Kind.NAMED)
    assert one.party == one.token_id == f"token:{made.id}"
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    before = store.fingerprint()
    assert store.revoke("laptop") == made and store.revoke("laptop") is None
    assert store.read() == () and store.fingerprint() != before


def test_a_new_token_of_an_old_name_is_somebody_else(store: TokenStore) -> None:
    _, old = store.create("a", Scope.READ)
    store.revoke("a")
    _, new = store.create("a", Scope.READ)
    assert old.identity.party != new.identity.party


def test_names_are_one_each(store: TokenStore) -> None:
    store.create("a", Scope.READ)
    with pytest.raises(GatewayError) as caught:
        store.create("a", Scope.ADMIN)
    assert caught.value.kind is ErrorKind.TOKEN_NAME_TAKEN
    names = [store.create("a", Scope.READ, another_name=True)[1].name for _ in range(2)]
    assert names == ["a-2", "a-3"]
    long = "x" * 64
    store.create(long, Scope.READ)
    _, made = store.create(long, Scope.READ, another_name=True)
    assert len(made.name) <= 64 and made.name != long


@pytest.mark.parametrize(
    "name", ["", " a", "a b", "-a", ".a", "a/b", "a\n", "ä", "x" * 65, None, 1]
)
def test_names_that_are_none(store: TokenStore, name: Any) -> None:
    with pytest.raises(GatewayError) as caught:
        store.create(name, Scope.READ)
    assert caught.value.kind is ErrorKind.INVALID_TOKEN_NAME and not store.path.exists()


def test_it_is_there_until_it_is_deleted(store: TokenStore) -> None:
    assert not store.there
    store.create("a", Scope.READ, expires_at=time.time() - 1)
    assert store.there
    store.revoke("a")
    assert store.there and not store.read()
    store.path.unlink()
    assert not store.there
    store.path.symlink_to("gone")
    assert store.there


def test_an_expired_one_makes_room(store: TokenStore) -> None:
    store.create("a", Scope.READ, expires_at=time.time() - 1)
    assert store.read()[0].expired(time.time())
    store.create("a", Scope.READ)
    assert len(store.read()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"v": 2, "tokens": []}',
        b'{"v": 1, "tokens": {}}x',
        b'{"v": 1, "tokens": [{}]}',
        b'{"v": 1, "tokens": [null]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_no_empty_file(store: TokenStore, content: bytes) -> None:
    store.path.parent.mkdir()
    store.path.write_bytes(content)
    store.path.chmod(0o600)
    for act in (store.read, lambda: store.create("a", Scope.READ), lambda: store.revoke("a")):
        with pytest.raises(TokenFileError):
            act()
    assert store.path.read_bytes() == content, "it is left as it is"


@pytest.mark.parametrize("member", ["scope", "kind", "sha256", "name", "id", "expires_at"])
def test_a_token_with_something_wrong(store: TokenStore, member: str) -> None:
    store.create("a", Scope.READ)
    content = json.loads(store.path.read_text())
    words = () if member in ("name", "id") else ("daemon", "zz")
    for value in (*words, "a\nb", [], {}, "x" * 70):
        content["tokens"][0][member] = value
        store.path.write_text(json.dumps(content))
        with pytest.raises(TokenFileError):
            store.read()


def test_a_file_that_others_may_write_is_not_used(store: TokenStore) -> None:
    store.create("a", Scope.READ)
    for mode in (0o620, 0o602, 0o666):
        store.path.chmod(mode)
        with pytest.raises(TokenFileError, match="other users"):
            store.read()
    store.path.chmod(0o644)
    assert store.read()


def test_what_is_no_file(store: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(TokenFileError):
        TokenStore(tmp_path).read()
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenFileError):
        TokenStore(tmp_path / "file" / "tokens.json").create("a", Scope.READ)


def _many(path: Path, start: int) -> None:
    store = TokenStore(path)
    for number in range(start, start + 20):
        store.create(f"t{number}", Scope.READ)
        if number % 2:
            store.revoke(f"t{number}")


def test_many_write_and_one_reads(store: TokenStore) -> None:
    """Nobody's token is lost, and a reader never sees half a file."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_many, args=(store.path, 100 * n)) for n in range(3)]
    for each in writers:
        each.start()
    deadline = time.monotonic() + 60
    while any(each.is_alive() for each in writers):
        assert time.monotonic() < deadline
        store.read()
        time.sleep(0.001)
    for each in writers:
        each.join()
        assert each.exitcode == 0
    expected = {f"t{100 * n + m}" for n in range(3) for m in range(0, 20, 2)}
    assert {each.name for each in store.read()} == expected
    left = [each for each in os.listdir(store.path.parent) if each.startswith(".")]
    assert left == []


def test_a_lock_that_is_never_given_back(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_store, "LOCK_TIMEOUT", 0.1)
    with store._locked(), pytest.raises(TokenFileError, match="lock"):
        store.create("a", Scope.READ)


NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30d", 30 * 86400), ("12h", 43200), ("90M", 5400), ("45s", 45), (" 2w ", 14 * 86400)],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert parse_expiry(text, NOW) == NOW + seconds


def test_dates() -> None:
    assert parse_expiry("2031-12-31T00:00:00Z", NOW) == 1956441600.0
    assert parse_expiry("2031-12-31T02:00:00+02:00", NOW) == 1956441600.0
    assert parse_expiry("2031-12-31", NOW) > NOW


@pytest.mark.parametrize(
    "text", ["", "0d", "d", "-1d", "1y", "1.5d", "soon", "2001-01-01", "9999999d", "3 0d"]
)
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="no time to come"):
        parse_expiry(text, NOW)
