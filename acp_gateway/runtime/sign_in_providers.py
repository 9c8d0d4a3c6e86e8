"""Whom a person can sign in at: providers of device-flow sign-ins, as data.

`KNOWN_PROVIDERS` has those that agents bring along; an ``[auth.NAME]`` table of the configuration
file adds one, or changes a known one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import attrs

from acp_gateway.config import AGENT_NAME, ConfigError, did_you_mean, secret_line
from acp_gateway.core.endpoint_rules import problem_of
from acp_gateway.core.secret import Secret
from acp_gateway.runtime.agent_profile import AgentProfile

Shape = Literal["standard", "qwen"]


@attrs.frozen(kw_only=True)
class Provider:
    """One authorization server, and where what it grants is kept."""

    name: str
    title: str
    client_id: str
    client_secret: Secret | None = None
    """Of the few servers that want one from programs, too (RFC 6749 §2.3.1)."""
    scope: str | None = None
    issuer: str | None = None
    """Its metadata names the endpoints that are not given (RFC 8414)."""
    device_authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    pkce: bool = True
    """Send a code challenge (RFC 7636); servers that know none ignore it."""
    parameters: Mapping[str, str] = attrs.field(factory=dict)
    """Further members of the request for codes, such as ``audience``."""
    credentials: Path
    """File that gets the tokens."""
    shape: Shape = "standard"
    """``standard``: the server's answer, with ``expires_at`` and what a refresh needs.
    ``qwen``: as Qwen Code keeps them."""
    agents: tuple[str, ...] | None = None
    """Agents that read the file; None: any may."""
    allow_private: bool = False
    """Its addresses may be of a private network."""


@attrs.frozen(kw_only=True)
class _Known:
    """A provider that agents bring along."""

    title: str
    client_id: str
    scope: str
    device_authorization_endpoint: str
    token_endpoint: str
    shape: Shape
    home_variable: str
    home: str
    file: str
    reads: Callable[[AgentProfile], bool]
    """Does this agent read the file?"""


KNOWN_PROVIDERS: Final[Mapping[str, _Known]] = {
    "qwen-oauth": _Known(
        title="Qwen",
        client_id="f0304373b74a44d2b584a3fb70ca9e56",
        scope="openid profile email model.completion",
        device_authorization_endpoint="https://chat.qwen.ai/api/v1/oauth2/device/code",
        token_endpoint="https://chat.qwen.ai/api/v1/oauth2/token",
        shape="qwen",
        home_variable="QWEN_HOME",
        home="~/.qwen",
        file="oauth_creds.json",
        reads=lambda profile: profile.quirks.private_meta,
    )
}

_TEXT: Final = ("title", "client_id", "scope", "issuer")
_ENDPOINTS: Final = ("device_authorization_endpoint", "token_endpoint")
_PATHS: Final = ("credentials", "client_secret_file")
_KEYS: Final = (*_TEXT, *_ENDPOINTS, *_PATHS, "pkce", "parameters", "shape", "agents")


def resolve_providers(
    tables: Mapping[str, Any],
    profiles: Mapping[str, AgentProfile],
    *,
    base: Path,
    state: Path,
    source: str = "file",
    allow_private: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Provider]:
    """The providers that this daemon offers, by name.

    A known one is offered when an agent that is served reads its file, or when it has a table.
    Relative paths of ``tables`` start at ``base``; tokens that no agent has a place for go below
    ``state``. Raises `ConfigError`.
    """
    providers = {}
    for name, known in KNOWN_PROVIDERS.items():
        readers = tuple(key for key, profile in profiles.items() if known.reads(profile))
        if readers or name in tables:
            providers[name] = _of_known(name, known, readers, allow_private, environ)
    for name, table in tables.items():
        where = f"{source}, table [auth.{name}]"
        if not re.fullmatch(AGENT_NAME, name) or not isinstance(table, dict):
            raise ConfigError(
                f'"auth.{name}" does not describe a provider.',
                remedy="Write a table [auth.NAME] whose NAME has letters, digits, - and _ only.",
                source=source,
            )
        values = _checked({key.replace("-", "_"): table[key] for key in table}, base, where)
        providers[name] = _made(name, values, providers.get(name), state, where, allow_private)
        _check_agents(providers[name], profiles, where)
    return providers


def _of_known(
    name: str,
    known: _Known,
    readers: tuple[str, ...],
    allow_private: bool,
    environ: Mapping[str, str],
) -> Provider:
    home = environ.get(known.home_variable) or known.home
    return Provider(
        name=name,
        title=known.title,
        client_id=known.client_id,
        scope=known.scope,
        device_authorization_endpoint=known.device_authorization_endpoint,
        token_endpoint=known.token_endpoint,
        credentials=Path(os.path.abspath(os.path.expanduser(home))) / known.file,
        shape=known.shape,
        agents=readers,
        allow_private=allow_private,
    )


def _wrong(key: str, what: str, where: str) -> ConfigError:
    return ConfigError(f'"{key}" {what}.', remedy="Correct it or leave it out.", source=where)


def _checked(values: dict[str, Any], base: Path, where: str) -> dict[str, Any]:
    for key, value in values.items():
        if key not in _KEYS:
            raise ConfigError(
                f'"{key}" is not a setting of a provider.',
                remedy=did_you_mean(key, _KEYS) or f"Known are: {', '.join(_KEYS)}.",
                source=where,
            )
        if key == "pkce":
            if not isinstance(value, bool):
                raise _wrong(key, "must be true or false", where)
        elif key == "parameters":
            if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
                raise _wrong(key, "must be a table of texts", where)
        elif key == "agents":
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise _wrong(key, "must be a list of names", where)
            values[key] = tuple(value)
        elif not isinstance(value, str) or not value.strip() or "\0" in value:
            raise _wrong(key, "must be text that is not empty", where)
        elif key == "shape" and value not in ("standard", "qwen"):
            raise _wrong(key, "must be standard or qwen", where)
        elif key in _PATHS:
            values[key] = Path(os.path.abspath(base / os.path.expanduser(value)))
    return values


def _made(
    name: str,
    values: dict[str, Any],
    known: Provider | None,
    state: Path,
    where: str,
    allow_private: bool,
) -> Provider:
    for key in ("issuer", *_ENDPOINTS):
        problem = problem_of(values[key], private=allow_private) if key in values else None
        if problem is not None:
            raise ConfigError(
                f'"{key}" {problem}.',
                remedy="Allow it with --allow-private-auth-base-url."
                if "network" in problem
                else "Correct it.",
                source=where,
            )
    secret = values.pop("client_secret_file", None)
    if secret is not None:
        values["client_secret"] = Secret(secret_line(secret, "client_secret_file", where))
    if known is not None:
        if "issuer" in values:  # another server: nothing of the known one's addresses holds
            values = dict.fromkeys(_ENDPOINTS) | values
        made = attrs.evolve(known, **values)
    elif "client_id" not in values:
        raise ConfigError(
            f'The provider "{name}" has no client_id.',
            remedy=did_you_mean(name, KNOWN_PROVIDERS)
            or "Add the id under which the provider knows this program.",
            source=where,
        )
    else:
        made = Provider(
            **{
                "name": name,
                "title": name,
                "credentials": state / "credentials" / f"{name}.json",
                "allow_private": allow_private,
                **values,
            }
        )
    if made.issuer is None and not (made.device_authorization_endpoint and made.token_endpoint):
        raise ConfigError(
            f'The provider "{name}" has no address.',
            remedy="Set issuer, or both device_authorization_endpoint and token_endpoint.",
            source=where,
        )
    return made


def _check_agents(provider: Provider, served: Iterable[str], where: str) -> None:
    names = tuple(served)
    for name in provider.agents or ():
        if name not in names:
            raise ConfigError(
                f'"agents" names "{name}", which is not served.',
                remedy=did_you_mean(name, names) or f"Served are: {', '.join(names)}.",
                source=where,
            )
