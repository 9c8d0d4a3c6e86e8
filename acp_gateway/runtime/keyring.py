"""The credentials that this daemon knows beside its own token, and who is connected by which.

The tokens file is looked at with every token that comes in, and while somebody is connected by one
every `WATCH` seconds, so a token that another process took away is refused at once and closes its
live connections within a second. A file that is gone or damaged lets nobody in.

An `Entry` is how a connection hears of it: made in its task, closed with it, told at most once.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal, Protocol, TypeAlias

import structlog
import trio

from acp_gateway.config import ConfigError
from acp_gateway.core.identity import Identity, Kind
from acp_gateway.protocol.errors import ErrorKind, GatewayError
from acp_gateway.token_store import PREFIX, NamedToken, TokenStore, token_digest

log = structlog.get_logger("acp_gateway.tokens")

WATCH: Final = 0.25

End: TypeAlias = Literal["token_revoked", "token_expired"]
_SENTENCES: Final[dict[End, str]] = {
    "token_revoked": "The token was revoked",
    "token_expired": "The token has expired",
}


def refusal_of(end: End) -> GatewayError:
    """For a request whose token was good when it came in."""
    return GatewayError(
        ErrorKind.AUTH_REQUIRED,
        "Unauthorized",
        remedy=f"{_SENTENCES[end].lower()}: come in with another one",
    )


class Issuer(Protocol):
    """Tokens of somebody else (`runtime.jwt_issuer`)."""

    def knows(self, token: str) -> bool:
        """Is it one of that kind, valid or not?"""

    def identify(self, token: str, now: float) -> Identity | None: ...
    def unsure(self, token: str) -> bool:
        """Might newer keys of the issuer accept it?"""

    async def renew(self) -> None:
        """Get them; bounded."""

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None: ...


class Entry:
    """Somebody who is connected. ``close`` is called with the reason and a sentence."""

    def __init__(self, identity: Identity, close: Callable[[End, str], None]) -> None:
        self.identity = identity
        self.close = close


class Keyring:
    def __init__(self, store: TokenStore | None, issuer: Issuer | None = None) -> None:
        """Raises `TokenFileError`."""
        self._store = store
        self._issuer = issuer
        self._seen = None if store is None else store.fingerprint()
        self._tokens = _by_digest(() if store is None else store.read())
        self._ids = {each.identity.token_id for each in self._tokens.values()}
        self._entries: set[Entry] = set()
        self._wanted = trio.Event()

    def __repr__(self) -> str:
        return f"<Keyring of {len(self._tokens)} tokens>"

    @property
    def demanding(self) -> bool:
        """Was somebody given a credential, good or ended? Then nobody comes in without one."""
        return self._issuer is not None or (self._store is not None and self._store.there)

    # ---- who is it ------------------------------------------------------------------------------

    def identify(self, token: str) -> Identity | None:
        """Whose token it is; None for an unknown, revoked or expired one."""
        now = time.time()
        if token.startswith(PREFIX):
            self._look()
            hashed = token_digest(token)
            # What a lookup by a hash could tell by its time is of the hash, not of the token.
            named = self._tokens.get(hashed)
            if named is None or not hmac.compare_digest(named.sha256, hashed):
                return None
            return None if named.expired(now) else named.identity
        if self._issuer is not None and self._issuer.knows(token):
            return self._issuer.identify(token, now)
        return None

    def claims(self, token: str) -> bool:
        """Is it meant for this keyring? Then it is refused, where it is not known, also where
        nobody asks for a token: a revoked one shall not become another's power."""
        return token.startswith(PREFIX) or (self._issuer is not None and self._issuer.knows(token))

    def unsure(self, token: str | None) -> bool:
        """Is it worth to `renew` before the token is refused?"""
        return token is not None and self._issuer is not None and self._issuer.unsure(token)

    async def renew(self) -> None:
        if self._issuer is not None:
            await self._issuer.renew()

    def check(self, identity: Identity) -> None:
        """Is what came in a moment ago still good? Raises ``auth_required``."""
        end = self._end_of(identity, look=True)
        if end is not None:
            raise refusal_of(end)

    # ---- who is connected -----------------------------------------------------------------------

    def hold(self, identity: Identity, close: Callable[[End, str], None]) -> Entry:
        """Have ``close`` called when the identity's token ends. `release` the entry."""
        entry = Entry(identity, close)
        if identity.token_id:
            self._entries.add(entry)
            self._wanted.set()
        return entry

    def renewed(self, entry: Entry, identity: Identity) -> None:
        """The same party came with a newer token."""
        entry.identity = identity

    def release(self, entry: Entry) -> None:
        self._entries.discard(entry)

    @contextmanager
    def holding(self, identity: Identity, close: Callable[[End, str], None]) -> Iterator[Entry]:
        entry = self.hold(identity, close)
        try:
            yield entry
        finally:
            self.release(entry)

    def connected(self, token_id: str) -> int:
        return sum(entry.identity.token_id == token_id for entry in self._entries)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Close what has lost its token, and keep an issuer's keys fresh, until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._issuer is not None:
                nursery.start_soon(self._issuer.run)
            task_status.started()
            await self._watch()

    async def _watch(self) -> None:
        while True:
            if not self._entries:
                self._wanted = trio.Event()
                await self._wanted.wait()
            self._look()
            self._sweep()
            await trio.sleep(WATCH)

    # ---- the file -------------------------------------------------------------------------------

    @property
    def writable(self) -> TokenStore:
        """Where new tokens go."""
        if self._store is None:
            raise GatewayError(ErrorKind.INTERNAL, "This gateway keeps no tokens")
        return self._store

    def refresh(self) -> None:
        """The file was changed by this process: read it now."""
        self._look()

    def _look(self) -> None:
        store = self._store
        if store is None or (seen := store.fingerprint()) == self._seen:
            return
        self._seen = seen
        before = self._ids
        try:
            tokens = store.read()
        except ConfigError as exc:
            log.error("tokens_file_unusable", error=exc.message, remedy=exc.remedy)
            tokens = ()
        self._tokens = _by_digest(tokens)
        self._ids = {each.identity.token_id for each in tokens}
        if before - self._ids:
            self._sweep()

    def _sweep(self) -> None:
        for entry in tuple(self._entries):
            end = self._end_of(entry.identity)
            if end is not None and entry in self._entries:
                self._entries.discard(entry)
                log.info("connection_closed", reason=end, identity=entry.identity.name)
                entry.close(end, _SENTENCES[end])

    def _end_of(self, identity: Identity, *, look: bool = False) -> End | None:
        if identity.kind in (Kind.NAMED, Kind.PAIRED):
            if look:
                self._look()
            if identity.token_id not in self._ids:
                return "token_revoked"
        if identity.expires_at is not None and identity.expires_at <= time.time():
            return "token_expired"
        return None


def _by_digest(tokens: tuple[NamedToken, ...]) -> dict[bytes, NamedToken]:
    return {each.sha256: each for each in tokens}
