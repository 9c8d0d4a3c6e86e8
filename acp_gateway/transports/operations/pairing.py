"""Pairing: an admin asks for a code, a phone gives it back and gets a token for it."""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import Any, Final

import structlog
import trio

from acp_gateway.core.identity import WORDS, Kind
from acp_gateway.core.pairing import DIGITS, LIFETIME, Offer, TooMany
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.token_store import checked_name, iso
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.operations.call import NO_STORE, Call, Reply, bad_request

log = structlog.get_logger("acp_gateway.tokens")

LONGEST: Final = 10 * 365 * 86400


async def create_code(call: Call) -> Any:
    params = call.params
    name = params.get("name")
    if name is not None:
        checked_name(name)
    word = params.get("scope", "approve")  # a phone is there to answer what agents ask
    scope = WORDS.get(word) if isinstance(word, str) else None
    if scope is None:
        raise bad_request(f"`scope` must be one of {', '.join(WORDS)}", field="scope")
    lifetime = params.get("expiresInSeconds")
    if lifetime is not None and (
        isinstance(lifetime, bool) or not isinstance(lifetime, int) or not 0 < lifetime <= LONGEST
    ):
        raise bad_request(
            f"`expiresInSeconds` must be a whole number from 1 to {LONGEST}",
            field="expiresInSeconds",
        )
    code = f"{secrets.randbelow(10**DIGITS):0{DIGITS}}"
    offer = Offer(name=name, scope=scope, lifetime=lifetime)
    call.hub.pairing.offer(code, offer, trio.current_time())
    log.info("pairing_offered", scope=scope.word, by=call.caller.identity.name)
    policy, settings = call.hub.policy, call.hub.settings
    body = {
        "code": code,
        "scope": scope.word,
        "expiresAt": iso(time.time() + LIFETIME),
        "listens": {
            "host": settings.host,
            "port": policy.port,
            "loopback": policy.loopback,
            "tls": settings.tls_cert is not None,
        },
        "publicUrl": settings.public_url,
    }
    return Reply(body=body, headers=NO_STORE)


def check_limit(hub: Hub) -> None:
    """Raises ``pairing_limit_exceeded``."""
    many = hub.pairing.wait(trio.current_time())
    if many is not None:
        raise _refusal(many)


def _refusal(many: TooMany) -> GatewayError:
    return GatewayError(
        ErrorKind.PAIRING_LIMIT,
        "Too many codes were tried in this minute",
        remedy="wait a minute, and ask for a new code with `acp-gateway pair`",
        retryAfterMs=round(many.wait * 1000),
    )


async def pair(call: Call) -> Any:
    code, wish = call.params.get("code"), call.params.get("name")
    if not isinstance(code, str):
        raise bad_request("`code` must be the six digits, as a text", field="code")
    if wish is not None:
        checked_name(wish)
    worth = call.hub.pairing.redeem(code.strip(), trio.current_time())
    if isinstance(worth, TooMany):
        raise _refusal(worth)
    if worth is None:
        log.warning("pairing_refused")
        raise GatewayError(
            ErrorKind.PAIRING_FAILED,
            "This code is not good",
            remedy="ask for a new one with `acp-gateway pair`: a code is good for 2 minutes, once, "
            "and void after 5 wrong ones",
        )
    expires_at = None if worth.lifetime is None else time.time() + worth.lifetime
    keyring = call.hub.policy.keyring
    token, made = await trio.to_thread.run_sync(
        partial(
            keyring.writable.create,
            worth.name or wish or "device",
            worth.scope,
            expires_at=expires_at,
            kind=Kind.PAIRED,
            another_name=True,
        )
    )
    keyring.refresh()
    log.info("paired", name=made.name, scope=made.scope.word)
    body = {
        "token": token,
        "name": made.name,
        "scope": made.scope.word,
        "scopes": list(made.identity.scopes),
        "expiresAt": None if expires_at is None else iso(expires_at),
    }
    return Reply(body=body, headers=NO_STORE)
