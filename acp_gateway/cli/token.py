"""``token``: create, list and revoke named tokens. A running gateway notices at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from acp_gateway.cli.base import command, json_option, print_json, print_table, say

if TYPE_CHECKING:
    from acp_gateway.core.identity import Scope
    from acp_gateway.token_store import NamedToken, TokenStore

SCOPES = ("read", "prompt", "approve", "admin")


def scope_option(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--scope",
        "scopes",
        multiple=True,
        metavar="SCOPE",
        help=f"read, prompt, approve or admin; each includes the ones before it [{default}]. "
        "Of several (repeated, or with commas) the highest counts.",
    )


def chosen_scope(given: tuple[str, ...], default: str) -> Scope:
    """The scope that the words of ``--scope`` amount to. Raises `ConfigError`."""
    from acp_gateway.config import ConfigError, did_you_mean
    from acp_gateway.core.identity import WORDS, highest

    words = [word.strip().lower() for text in given for word in text.split(",") if word.strip()]
    for word in words:
        if word not in WORDS:
            raise ConfigError(
                f'"{word}" is not a scope.',
                remedy=did_you_mean(word, SCOPES) or f"Use one of {', '.join(SCOPES)}.",
                source="--scope",
            )
    scope = highest(words or [default])
    assert scope is not None
    return scope


_file_option = click.option(
    "--tokens-file", metavar="FILE", help="The file, when `serve` was told another one as well."
)


def _store(tokens_file: str | None) -> TokenStore:
    from acp_gateway.cli.base import without
    from acp_gateway.config_load import load_tokens_file
    from acp_gateway.token_store import TokenStore

    if tokens_file is not None:
        return TokenStore(Path(tokens_file).expanduser().absolute())
    with without("pydantic"):
        return TokenStore(load_tokens_file())


@click.group("token")
def token() -> None:
    """Create, list and revoke named tokens.

    Who comes in with one is known by its name in events, votes and the audit, and may do what its
    scope allows. A gateway that runs notices every change at once.
    """


@command("create")
@scope_option("prompt")
@click.option("--expires", metavar="WHEN", help="A length such as 30d or 12h, or a date [never].")
@_file_option
@json_option()
@click.argument("name")
def create(
    name: str, scopes: tuple[str, ...], expires: str | None, tokens_file: str | None, as_json: bool
) -> None:
    """Create a token and print it. It is shown this once and cannot be had again."""
    from acp_gateway.token_store import parse_expiry

    scope = chosen_scope(scopes, "prompt")
    expires_at = None if expires is None else parse_expiry(expires, time.time())
    text, made = _store(tokens_file).create(name, scope, expires_at=expires_at)
    if as_json:
        print_json({"token": text, **_shown(made)})
        return
    say(f'The token "{name}" ({scope.word}), shown this once:')
    click.echo(text)


@command("list")
@_file_option
@json_option()
def list_command(tokens_file: str | None, as_json: bool) -> None:
    """List the tokens, without themselves."""
    store = _store(tokens_file)
    tokens = store.read()
    if as_json:
        print_json({"file": str(store.path), "tokens": [_shown(each) for each in tokens]})
        return
    if not tokens:
        say("There are no named tokens. Create one with: acp-gateway token create NAME")
        return
    now = time.time()
    rows = [
        (
            each.name,
            each.scope.word,
            each.kind.value,
            _day(each.created_at),
            "expired" if each.expired(now) else _day(each.expires_at),
        )
        for each in tokens
    ]
    print_table(("NAME", "SCOPE", "KIND", "CREATED", "EXPIRES"), rows)


@command("revoke")
@_file_option
@click.argument("name")
def revoke(name: str, tokens_file: str | None) -> int:
    """Take a token away. Gateways close the connections that came in with it."""
    store = _store(tokens_file)
    gone = store.revoke(name)
    if gone is None:
        say(f'There is no token "{name}". `acp-gateway token list` lists them.')
        return 1
    click.echo(f'Revoked the token "{name}".')
    if not store.read():
        say(f"It was the last one. Gateways ask for a token until you delete {store.path}.")
    return 0


def _shown(token: NamedToken) -> dict[str, Any]:
    from acp_gateway.token_store import iso

    return {
        "name": token.name,
        "scope": token.scope.word,
        "scopes": list(token.identity.scopes),
        "kind": token.kind.value,
        "createdAt": iso(token.created_at),
        "expiresAt": None if token.expires_at is None else iso(token.expires_at),
        "expired": token.expired(time.time()),
    }


def _day(seconds: float | None) -> str:
    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


for _command in (create, list_command, revoke):
    token.add_command(_command)
