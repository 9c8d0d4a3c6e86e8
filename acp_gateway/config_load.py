"""Reads settings from flags, environment and file, merges them, and checks the result.

Each place becomes a typed-settings loader with values that were checked already, so that an error
can name the place and say what was expected; typed-settings merges them, resolves paths and builds
`Settings`. Rules and precedence: ``acp_gateway.config``.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import attrs

from acp_gateway import config_access as access
from acp_gateway.config import (
    AGENT_NAME,
    CONFIG_VARIABLE,
    ENV_PREFIX,
    SECRET_SETTINGS,
    AgentSpec,
    ConfigError,
    LoadedSettings,
    Settings,
    default_config_file,
    did_you_mean,
    secret_line,
    split_command,
)


def load_settings(
    flags: Mapping[str, object],
    *,
    config_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> LoadedSettings:
    """Merge flags, environment, file and defaults, and check the result.

    ``flags`` maps setting names to values; ``None`` and empty sequences mean "not given". A
    ``config_file`` that is named (here or by ``ACP_GATEWAY_CONFIG``) must exist, the user's own
    need not. ``environ`` is ``os.environ`` unless given. The result has canonical workspaces
    (the current directory when none is set) and the content of the token file in ``token``.

    Raises `ConfigError`.
    """
    environ = os.environ if environ is None else environ
    path, required = config_file, config_file is not None
    if path is None and environ.get(CONFIG_VARIABLE):
        path, required = Path(environ[CONFIG_VARIABLE]), True
    path = Path(os.path.abspath((path or default_config_file()).expanduser()))

    try:
        here = Path.cwd()
    except OSError as error:
        raise ConfigError(
            "The current directory does not exist any more.", remedy="Change to another one."
        ) from error
    kinds = get_type_hints(Settings)
    file_layer, agents, auth = _read_file(path, kinds, required=required)
    layers = [layer for layer in (file_layer, _read_environment(environ, kinds, here)) if layer]
    layers.append(_read_flags(flags, kinds, here))
    _keep_one_token(layers)

    sources = dict.fromkeys(kinds, "default")
    for layer in layers:
        sources |= {key: layer.source(key) for key in layer.values}
    settings = _merge(layers)
    settings, sources = _finish(settings, sources, here)
    return LoadedSettings(
        settings=settings,
        sources=sources,
        agents=agents,
        auth=auth,
        config_file=path if file_layer else None,
        warnings=tuple(access.warnings(settings, sources, lambda: _has_other_tokens(settings))),
    )


def load_tokens_file(environ: Mapping[str, str] | None = None) -> Path | None:
    """The setting ``tokens_file`` of environment and file, whatever the others are: who creates a
    token may still lack what `serve` would refuse to start without. Raises `ConfigError`."""
    environ = os.environ if environ is None else environ
    named = environ.get(CONFIG_VARIABLE)
    path = Path(os.path.abspath(Path(named or default_config_file()).expanduser()))
    kinds, here = get_type_hints(Settings), Path.cwd()
    file_layer, _, _ = _read_file(path, kinds, required=bool(named))
    layers = [layer for layer in (file_layer, _read_environment(environ, kinds, here)) if layer]
    return _merge(layers).tokens_file if layers else None


@attrs.frozen
class _Layer:
    """The values of one place, checked; a typed-settings loader."""

    name: str
    values: dict[str, Any]
    base_dir: Path
    """Relative paths start here."""

    def source(self, key: str) -> str:
        return _source(self.name, key)

    def __call__(self, settings_cls: type, options: Any) -> Any:
        from typed_settings.types import LoadedSettings, LoaderMeta

        return LoadedSettings(dict(self.values), LoaderMeta(self.name, base_dir=self.base_dir))


def _source(layer: str, key: str) -> str:
    if layer == "flag":
        return f"flag --{key.replace('_', '-')}"
    if layer == "environment":
        return f"environment {ENV_PREFIX}{key.upper()}"
    return layer


def _read_flags(flags: Mapping[str, object], kinds: Mapping[str, Any], here: Path) -> _Layer:
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    return _Layer("flag", _check_values(given, kinds, "flag"), here)


def _read_environment(environ: Mapping[str, str], kinds: Mapping[str, Any], here: Path) -> _Layer:
    given: dict[str, object] = {}
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        key = variable.removeprefix(ENV_PREFIX).lower()
        if key not in kinds or variable != variable.upper():
            known = [ENV_PREFIX + name.upper() for name in kinds]
            raise ConfigError(
                f"{variable} is not a setting.",
                remedy=did_you_mean(variable.upper(), known) or "Unset the variable.",
                source=f"environment {variable}",
            )
        given[key] = value
        if get_origin(kinds[key]) is tuple and value.startswith("["):
            try:
                given[key] = json.loads(value)
            except ValueError as error:
                raise ConfigError(
                    f"{variable} begins like a JSON array but is not one.",
                    remedy='Write it like ["one", "two"].',
                    source=f"environment {variable}",
                ) from error
    return _Layer("environment", _check_values(given, kinds, "environment"), here)


def _read_file(
    path: Path, kinds: Mapping[str, Any], *, required: bool
) -> tuple[_Layer | None, dict[str, AgentSpec], dict[str, Any]]:
    from typed_settings.exceptions import ConfigFileLoadError, ConfigFileNotFoundError
    from typed_settings.loaders import TomlFormat

    source = f"file {path}"
    try:
        content = TomlFormat(None)(path, Settings, ())
    except (ConfigFileNotFoundError, NotADirectoryError) as error:
        if not required:
            return None, {}, {}
        raise ConfigError(
            f"The configuration file {path} does not exist.",
            remedy="Check --config.",
            source=source,
        ) from error
    except (ConfigFileLoadError, OSError, ValueError) as error:
        raise ConfigError(
            f"The configuration file {path} cannot be read: {error}.",
            remedy="It must be a TOML file that you may read.",
            source=source,
        ) from error
    values = {key.replace("-", "_"): value for key, value in content.items()}
    tables = values.pop("agents", {})
    auth = values.pop("auth", {})
    if not isinstance(auth, dict):
        raise ConfigError(
            '"auth" must hold tables.', remedy="Write [auth.NAME] above them.", source=source
        )
    for key in values:
        if key not in kinds:
            raise ConfigError(
                f'"{key}" is not a setting.',
                remedy=did_you_mean(key, [*kinds, "agents", "auth"])
                or "`acp-gateway config show` lists all settings.",
                source=source,
            )
    base = path.parent
    layer = _Layer(source, _check_values(values, kinds, source), base)
    return layer, _agent_specs(tables, base, source), auth


def _check_values(
    values: Mapping[str, object], kinds: Mapping[str, Any], layer: str
) -> dict[str, Any]:
    return {key: _check(key, kinds[key], value, layer) for key, value in values.items()}


def _check(key: str, kind: Any, value: object, layer: str) -> Any:
    """``value`` as something that converts to ``kind`` without loss; text is read as from a shell.

    typed-settings converts with the type's constructor: it would make 1 of ``true`` and 3 of 3.7.
    """
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else (value,)
        return tuple(_check(key, get_args(kind)[0], item, layer) for item in items)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if value in choices:
            return value
        raise _not_a(" or ".join(choices), key, value, layer)
    if kind is bool:
        word = value.strip().lower() if isinstance(value, str) else value
        if word is True or word in _TRUE:
            return True
        if word is False or word in _FALSE:
            return False
        raise _not_a("true or false", key, value, layer)
    if kind is int or kind is float:
        what = "a whole number" if kind is int else "a number"
        if isinstance(value, bool) or not isinstance(
            value, (str, int) if kind is int else (str, int, float)
        ):
            raise _not_a(what, key, value, layer)
        try:
            number = kind(value)
        except (ValueError, OverflowError):
            raise _not_a(what, key, value, layer) from None
        if isinstance(number, float) and not math.isfinite(number):
            raise _not_a(what, key, value, layer)
        return number
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise _not_a("text that is not empty", key, value, layer)
    return os.path.expanduser(value) if Path in (kind, *get_args(kind)) else value


_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")


def _not_a(what: str, key: str, value: object, layer: str) -> ConfigError:
    shown = "this value" if key in SECRET_SETTINGS else json.dumps(value, default=str)
    return ConfigError(
        f'"{key}" must be {what}, not {shown}.',
        remedy="Correct it or leave it out.",
        source=_source(layer, key),
    )


def _agent_specs(tables: object, base: Path, source: str) -> dict[str, AgentSpec]:
    if not isinstance(tables, dict):
        raise ConfigError(
            '"agents" must hold tables.', remedy="Write [agents.NAME] above them.", source=source
        )
    kinds = {
        "command": tuple[str, ...],
        "title": str,
        "env": dict,
        "env_pass": tuple[str, ...],
        "cwd": Path,
        "handshake_timeout": float,
        "quirks": dict,
    }
    specs = {}
    for name, table in tables.items():
        here = f"{source}, table [agents.{name}]"
        if not re.fullmatch(AGENT_NAME, name) or not isinstance(table, dict):
            raise ConfigError(
                f'"agents.{name}" does not describe an agent.',
                remedy="Write a table [agents.NAME] whose NAME has letters, digits, - and _ only.",
                source=source,
            )
        values: dict[str, Any] = {}
        for raw, value in table.items():
            key = raw.replace("-", "_")
            if key not in kinds:
                raise ConfigError(
                    f'"{raw}" is not a setting of an agent.',
                    remedy=did_you_mean(key, kinds) or f"Known are: {', '.join(kinds)}.",
                    source=here,
                )
            if key == "command" and isinstance(value, str):
                value = split_command(value, here)
            if kinds[key] is dict:
                if not isinstance(value, dict):
                    raise _not_a("a table", key, value, here)
                values[key] = value
                continue
            values[key] = _check(key, kinds[key], value, here)
        for variable, value in values.get("env", {}).items():
            if not isinstance(value, str):
                raise _not_a("text", f"env.{variable}", value, here)
        if "cwd" in values:
            values["cwd"] = _directory(base / values["cwd"], "cwd", here)
        if values.get("handshake_timeout", 1) <= 0:
            raise _not_a("more than 0", "handshake_timeout", values["handshake_timeout"], here)
        specs[name] = AgentSpec(**values)
    return specs


def _keep_one_token(layers: list[_Layer]) -> None:
    """A token beats a token file of a lower layer and the other way round; one layer has one."""
    found = False
    for layer in reversed(layers):
        names = [key for key in ("token", "token_file") if key in layer.values]
        if found:
            for key in names:
                del layer.values[key]
        elif len(names) == 2:
            raise ConfigError(
                "Both a token and a token file are set.",
                remedy="Keep one of them.",
                source=f"{layer.source('token')} and {layer.source('token_file')}",
            )
        found = found or bool(names)


def _merge(layers: list[_Layer]) -> Settings:
    import typed_settings

    return typed_settings.load_settings(Settings, layers, converter=_make_converter())


def _make_converter() -> Any:
    """`_check` has converted everything but paths, which need the directory of their layer.

    typed-settings' own converters would import cattrs or pydantic for this, which takes longer
    than everything else here.
    """
    from typed_settings.converters import PathConverter

    to_path = PathConverter()

    class PathsOnly:
        def get_structure_hook(self, kind: Any) -> Any:
            return to_path

        def structure(self, value: Any, kind: Any) -> Any:
            if kind is Settings:
                return Settings(**value)
            if value is not None and Path in (kind, *get_args(kind)):
                if isinstance(value, tuple):
                    return tuple(to_path(item, Path) for item in value)
                return to_path(value, Path)
            return value

    return PathsOnly()


def _finish(
    settings: Settings, sources: dict[str, str], here: Path
) -> tuple[Settings, dict[str, str]]:
    """Rules about values and about more than one setting."""
    for key in _POSITIVE:
        if getattr(settings, key) <= 0:
            raise _not_a("more than 0", key, getattr(settings, key), sources[key])
    for key in _NOT_NEGATIVE:
        if getattr(settings, key) < 0:
            raise _not_a("0 or more", key, getattr(settings, key), sources[key])
    if settings.port > 65535:
        raise _not_a("a port from 0 to 65535", "port", settings.port, sources["port"])
    if settings.rate_limit_window < 1:
        raise _not_a(
            "1 or more",
            "rate_limit_window",
            settings.rate_limit_window,
            sources["rate_limit_window"],
        )
    if not re.fullmatch(r"0?[0-7]{3}", settings.unix_socket_mode):
        raise _not_a(
            "an octal mode such as 0660",
            "unix_socket_mode",
            settings.unix_socket_mode,
            sources["unix_socket_mode"],
        )
    if settings.unix_socket is not None:
        path = Path(os.path.abspath(settings.unix_socket))
        settings = attrs.evolve(settings, unix_socket=path)
    endpoint = settings.otlp_endpoint
    if endpoint is not None and not re.fullmatch(r"https?://[^/?#\s@]+(/[^?#\s]*)?", endpoint):
        raise _not_a(
            "a URL such as http://127.0.0.1:4318",
            "otlp_endpoint",
            endpoint,
            sources["otlp_endpoint"],
        )
    if (settings.tls_cert is None) != (settings.tls_key is None):
        given, missing = ("cert", "key") if settings.tls_cert else ("key", "cert")
        raise ConfigError(
            f"tls_{given} is set but tls_{missing} is not.",
            remedy=f"Set tls_{missing} as well, or leave both out.",
            source=sources[f"tls_{given}"],
        )
    for key in ("tls_cert", "tls_key"):
        path = getattr(settings, key)
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigError(
                f"{key} {path} cannot be read.",
                remedy="Check that the file exists and that you may read it.",
                source=sources[key],
            )
    if settings.web is not None:
        web = _directory(settings.web, "web", sources["web"])
        if not (web / "index.html").is_file():
            raise ConfigError(
                f"The web directory {web} has no index.html.",
                remedy="Name the directory of a finished build.",
                source=sources["web"],
            )
        settings = attrs.evolve(settings, web=web)
    roots = [_directory(root, "workspace", sources["workspace"]) for root in settings.workspace]
    settings = attrs.evolve(settings, workspace=tuple(roots or [here.resolve()]))
    if settings.token_file is not None:
        token = read_token(settings.token_file, sources["token_file"])
        settings = attrs.evolve(settings, token=token)
        sources = {**sources, "token": f"token file {settings.token_file}"}
    if settings.token is not None and not re.fullmatch(r"[\x21-\x7e]+", settings.token):
        raise ConfigError(
            "The token holds a character that cannot be sent in a header.",
            remedy="Use letters, digits and punctuation of ASCII, without spaces.",
            source=sources["token"],
        )
    # To connect takes the right to write: unix(7).
    shared = settings.unix_socket is not None and int(settings.unix_socket_mode, 8) & 0o022
    if shared and settings.token is None and not _has_other_tokens(settings):
        raise ConfigError(
            f"A Unix socket of mode {settings.unix_socket_mode} without a token would let other "
            "users run commands as you.",
            remedy="Add --token-file FILE (or --token), or leave the mode at 0600.",
            source=sources["unix_socket_mode"],
        )
    return access.checked(settings, sources, lambda: _has_other_tokens(settings)), sources


def _has_other_tokens(settings: Settings) -> bool:
    """Will a token be asked for all the same: a named one, or an outside issuer's?

    The same as `Keyring.demanding`. Raises `ConfigError` for tokens that cannot be read."""
    if settings.jwt_jwks is not None:
        return True
    from acp_gateway.token_store import TokenStore

    store = TokenStore(settings.tokens_file)
    store.read()
    return store.there


_NOT_NEGATIVE: Final = (
    "port",
    "max_agents",
    "spare_agents",
    "consensus_quorum",
    "permission_timeout",
    "prompt_deadline",
    "max_queued_prompts",
    "max_peer_connections",
)
_POSITIVE: Final = tuple(
    field.name
    for field in attrs.fields(Settings)
    if str(field.type) in ("int", "float") and field.name not in _NOT_NEGATIVE
)


def _directory(path: Path, key: str, source: str) -> Path:
    if not path.is_dir():
        problem = "is not a directory" if path.exists() else "does not exist"
        raise ConfigError(
            f"The {key} {path} {problem}.", remedy="Name an existing directory.", source=source
        )
    return path.resolve()


def read_token(path: Path, source: str) -> str:
    """The token in a file."""
    return secret_line(path, "token file", source)
