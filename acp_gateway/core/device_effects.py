"""What goes into and out of `core.device_flow`: answers of a provider, and effects to carry out."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeAlias

import attrs


class Failure(Enum):
    """Why a flow failed. Value: (word on the wire, what clients are told)."""

    EXPIRED_TOKEN = ("expired_token", "the code was not used in time: start again")
    ACCESS_DENIED = ("access_denied", "the sign-in was refused at the provider")
    INVALID_GRANT = ("invalid_grant", "the provider no longer knows the code: start again")
    UPSTREAM_ERROR = (
        "upstream_error",
        "the provider gave no usable answer; the gateway's log says more",
    )
    PERSIST_FAILED = (
        "persist_failed",
        "the credentials could not be written: check the disk and its permissions",
    )

    def __init__(self, word: str, hint: str) -> None:
        self.word = word
        self.hint = hint


@attrs.frozen
class Owner:
    """Who asks. ``binding`` is the ACP client that speaks, None over REST; ``party`` whose token it
    is, where tokens have owners."""

    client_id: str | None = None
    binding: str | None = None
    party: str | None = None


@attrs.frozen(kw_only=True)
class Codes:
    """What a person needs to sign in; for the initiator only."""

    user_code: str = attrs.field(repr=False)
    verification_uri: str = attrs.field(repr=False)
    verification_uri_complete: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class Begun:
    """The provider's answer to a start, seconds as it sent them (None: nothing usable)."""

    codes: Codes
    lifetime: float | None = None
    interval: float | None = None


# ---- outcomes of a poll --------------------------------------------------------------------------


@attrs.frozen
class Waiting:
    """Nobody has signed in yet."""


@attrs.frozen
class SlowDown:
    """Ask less often."""


@attrs.frozen
class Granted:
    """There is a token. ``expires_at``: Unix time in seconds at which it ends, if it was told."""

    expires_at: float | None = None


@attrs.frozen
class Refused:
    """It is over. ``detail`` is for the log."""

    failure: Failure
    detail: str = attrs.field(default="", repr=False)


@attrs.frozen
class Unreachable:
    """There was no answer; another may come."""

    detail: str = attrs.field(default="", repr=False)


Outcome: TypeAlias = Waiting | SlowDown | Granted | Refused | Unreachable

# ---- effects -------------------------------------------------------------------------------------


@attrs.frozen
class Start:
    """Ask the provider for codes; answer with `started` or `start_failed`."""

    start_id: int
    provider: str


@attrs.frozen
class StartFailed:
    """Whoever waits for this start gets an error; the call is to be abandoned."""

    start_id: int


@attrs.frozen
class Poll:
    """Ask the provider for the token; answer with `polled`."""

    flow_id: str
    attempt: int


@attrs.frozen
class Persist:
    """Write the credentials that were granted; answer with `persisted`."""

    flow_id: str
    attempt: int


@attrs.frozen
class Abort:
    """Give up the call of this attempt; its answer is only audited if it comes all the same."""

    flow_id: str
    attempt: int


@attrs.frozen
class AbortPersist:
    """Write no credentials if they are not written yet; `persisted` is still expected."""

    flow_id: str


@attrs.frozen
class Forget:
    """The flow is over: drop everything secret."""

    flow_id: str


@attrs.frozen
class Publish:
    kind: str
    data: dict[str, Any]
    client: str | None


@attrs.frozen
class SignedIn:
    """What was started before does not know the new credentials."""

    provider: str


@attrs.frozen(kw_only=True)
class Audit:
    flow_id: str
    provider: str
    client: str | None
    status: str
    failure: Failure | None = None
    detail: str = attrs.field(default="", repr=False)


Effect: TypeAlias = (
    Start
    | StartFailed
    | Poll
    | Persist
    | Abort
    | AbortPersist
    | Forget
    | Publish
    | SignedIn
    | Audit
)
