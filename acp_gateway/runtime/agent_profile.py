"""How to start an agent: its command, what it may see of our environment, and its habits.

A profile is data. `AgentHost` starts what it says and reads the quirks; nobody else knows an
agent by name. The habits come from running each agent (see `KNOWN_AGENTS`).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import platformdirs

from acp_gateway.config import (
    AGENT_NAME,
    APP_NAME,
    PACKAGE_PATH,
    AgentNotFoundError,
    AgentSpec,
    ConfigError,
    did_you_mean,
    split_command,
)
from acp_gateway.runtime.child_environment import MODELS, USUAL_PATTERNS, select


@attrs.frozen(kw_only=True)
class Quirks:
    """Where an agent differs from the others. The defaults are plain ACP."""

    echoes_prompt: bool = False
    """Sends the user's prompt back as ``user_message_chunk`` in a live turn."""
    ignores_eof: bool = False
    """Does not end when its stdin closes: the stop ladder goes to SIGTERM at once."""
    cancel_answers_end_turn: bool = False
    """Ends a cancelled turn with ``end_turn``."""
    advertise_fs_read: bool = True
    """Tell it that fs/read_text_file is served."""
    advertise_fs_write: bool = True
    """Tell it that fs/write_text_file is served."""
    private_meta: bool = False
    """Understands the private ``_meta`` keys and ext methods of the Qwen daemon."""
    chosen_session_ids: bool = False
    """Gives a new session the id that the client chose (Qwen's member of ``_meta``)."""
    usage_in_chunks: bool = False
    """Tells the tokens of each call of the model in ``_meta.usage`` of a message chunk."""
    ping_method: str | None = None
    """Request ``{v: 1, nonce: int}`` that is answered with the same, for health checks."""
    initialize_meta: Mapping[str, Any] = attrs.field(factory=dict)
    """Merged into ``_meta`` of initialize."""


@attrs.frozen(kw_only=True)
class AgentProfile:
    """How to start one kind of agent. ``argv[0]`` is absolute once `resolve_agents` saw it."""

    name: str
    title: str
    argv: tuple[str, ...]
    alternatives: tuple[tuple[str, ...], ...] = ()
    """Other commands of the same agent, tried in order when ``argv[0]`` is not installed."""
    env_allow: tuple[str, ...] = ("*",)
    """Patterns of variable names that are passed on, unless they look like a credential."""
    env_keys: tuple[str, ...] = ()
    """Patterns of names that are passed on also where they do. `child_environment.NEVER` is
    neither."""
    env_set: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Variables set for the agent. ``{cache}`` stands for the gateway's cache directory."""
    cwd: Path | None = None
    """Directory to start in; the session's workspace root when None."""
    handshake_timeout: float | None = None
    """Seconds to answer initialize; ``Settings.handshake_timeout`` when None."""
    expected_memory_mb: int = 200
    """RSS of the process tree after a prompt, for admission by memory."""
    quirks: Quirks = attrs.field(factory=Quirks)
    install: str | None = None
    """Command that installs it."""
    version_argv: tuple[str, ...] | None = None
    """Arguments after the program that print its version and exit."""

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The child's whole environment, from the daemon's."""
        passed = select(environ, self.env_allow, self.env_keys)
        cache = platformdirs.user_cache_dir(APP_NAME, appauthor=False)
        return passed | {
            name: value.replace("{cache}", cache) for name, value in self.env_set.items()
        }


_COMPILE_CACHE: Final = {"NODE_COMPILE_CACHE": "{cache}/node-compile-cache"}

KNOWN_AGENTS: Final[Mapping[str, AgentProfile]] = {
    profile.name: profile
    for profile in (
        AgentProfile(
            name="demo",
            title="Demo agent (built in, no model)",
            argv=(sys.executable, "-P", "-m", "acp_gateway.demo_agent"),
            env_allow=(*USUAL_PATTERNS, "OTEL_EXPORTER_OTLP_*"),
            env_set={
                "PYTHONPATH": os.pathsep.join(
                    filter(None, (PACKAGE_PATH, os.environ.get("PYTHONPATH")))
                )
            },
            expected_memory_mb=30,
            quirks=Quirks(chosen_session_ids=True),
        ),
        AgentProfile(
            name="qwen",
            title="Qwen Code",
            argv=("qwen", "--acp"),
            env_allow=(*USUAL_PATTERNS, "DEBUG"),
            env_keys=(*MODELS, "QWEN_*", "TAVILY_*"),
            # Without the first it starts itself again with other memory limits: two processes.
            env_set={"QWEN_CODE_NO_RELAUNCH": "1", **_COMPILE_CACHE},
            handshake_timeout=20.0,
            expected_memory_mb=300,
            quirks=Quirks(
                private_meta=True,
                chosen_session_ids=True,
                usage_in_chunks=True,
                ping_method="qwen/status/channel/ping",
                initialize_meta={"qwen.daemon.channelLiveness": {"v": 1}},
            ),
            install="npm install -g @qwen-code/qwen-code",
            version_argv=("--version",),
        ),
        AgentProfile(
            name="goose",
            title="Goose",
            argv=("goose", "acp", "--with-builtin", "developer"),
            env_allow=(*USUAL_PATTERNS, "OTEL_*"),
            env_keys=(*MODELS, "GOOSE_*"),
            expected_memory_mb=120,
            quirks=Quirks(ignores_eof=True, cancel_answers_end_turn=True),
            install="curl -fsSL https://github.com/aaif-goose/goose/releases/download/stable/"
            "download_cli.sh | bash",
            version_argv=("--version",),
        ),
        AgentProfile(
            name="claude",
            title="Claude Code",
            argv=("claude-agent-acp",),
            alternatives=(("claude-code-acp",),),
            env_allow=(
                *(*USUAL_PATTERNS, "CLOUD_ML_REGION", "IS_SANDBOX", "DISABLE_*"),
                "API_TIMEOUT_MS",
            ),
            env_keys=("ANTHROPIC_*", "CLAUDE_*", "AWS_*", "GOOGLE_*"),
            env_set=_COMPILE_CACHE,
            expected_memory_mb=450,
            install="npm install -g @agentclientprotocol/claude-agent-acp",
        ),
        AgentProfile(
            name="codex",
            title="Codex",
            argv=("codex-acp",),
            env_allow=(*USUAL_PATTERNS, "RUST_LOG"),
            env_keys=("OPENAI_*", "CODEX_*", "AZURE_*", "*_API_KEY"),
            env_set=_COMPILE_CACHE,
            expected_memory_mb=500,
            quirks=Quirks(ignores_eof=True),
            install="npm install -g @agentclientprotocol/codex-acp",
        ),
        AgentProfile(
            name="gemini",
            title="Gemini CLI",
            argv=("gemini", "--acp"),
            env_allow=(*USUAL_PATTERNS, "DEBUG"),
            env_keys=("GEMINI_*", "GOOGLE_*", "CLOUDSDK_*"),
            env_set={"GEMINI_CLI_NO_RELAUNCH": "true", **_COMPILE_CACHE},
            handshake_timeout=20.0,
            expected_memory_mb=490,
            install="npm install -g @google/gemini-cli",
            version_argv=("--version",),
        ),
        AgentProfile(
            name="opencode",
            title="OpenCode",
            argv=("opencode", "acp"),
            env_allow=USUAL_PATTERNS,
            env_keys=(*MODELS, "OPENCODE_*"),
            handshake_timeout=20.0,
            expected_memory_mb=750,
            install="npm install -g opencode-ai",
            version_argv=("--version",),
        ),
    )
}
AUTO_ORDER: Final = ("qwen", "goose", "claude", "codex", "gemini", "opencode")


class Profiles(Mapping[str, AgentProfile]):
    """The agents that a daemon serves, by name, in the order that they were asked for."""

    def __init__(self, profiles: Iterable[AgentProfile], note: str | None = None) -> None:
        self._profiles = {profile.name: profile for profile in profiles}
        self.default = next(iter(self._profiles.values()))
        """The agent of clients that ask for none."""
        self.note = note
        """A sentence for the person who started the daemon: what ``auto`` chose."""

    def become(self, other: Profiles) -> list[str]:
        """Take over the agents of ``other``; the names that are new, gone or another agent now."""
        before = self._profiles
        # What is the same stays the same object: children are found by it.
        after = {
            name: before[name] if before.get(name) == profile else profile
            for name, profile in other._profiles.items()
        }
        names = dict.fromkeys([*before, *after])
        self._profiles, self.note = after, other.note
        self.default = next(iter(after.values()))
        return [name for name in names if before.get(name) is not after.get(name)]

    def __getitem__(self, name: str) -> AgentProfile:
        return self._profiles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._profiles)

    def __len__(self) -> int:
        return len(self._profiles)


@attrs.frozen
class FoundAgent:
    """A known agent; ``path`` of its program is None when it is not installed."""

    profile: AgentProfile
    path: str | None


def find_agents(
    specs: Mapping[str, AgentSpec] | None = None, environ: Mapping[str, str] = os.environ
) -> list[FoundAgent]:
    """All known agents and those of ``[agents.NAME]`` tables, installed or not."""
    specs = specs or {}
    found = []
    for name in [*KNOWN_AGENTS, *(name for name in specs if name not in KNOWN_AGENTS)]:
        profile = _named_profile(name, specs)
        located = _locate(profile, environ)
        found.append(FoundAgent(located or profile, located.argv[0] if located else None))
    return found


def parse_agent_spec(
    text: str, specs: Mapping[str, AgentSpec] | None = None
) -> tuple[str, AgentProfile]:
    """The name and profile of one ``--agent`` value; the program may still be missing.

    NAME is a known agent or an ``[agents.NAME]`` table; anything else is a command, split as a
    shell splits words, called after its program unless NAME= stands before it. A command whose
    program is a known agent keeps that agent's habits. Raises `ConfigError`.
    """
    specs = specs or {}
    text = text.strip()
    if text in specs or text in KNOWN_AGENTS:
        return text, _named_profile(text, specs)
    match = re.fullmatch(rf"({AGENT_NAME})=(.*)", text, re.DOTALL)
    command = match[2].strip() if match else text
    if match and (command in specs or command in KNOWN_AGENTS):
        return match[1], attrs.evolve(_named_profile(command, specs), name=match[1])
    words = split_command(command, "agent")
    program = Path(words[0]).name
    name = match[1] if match else re.sub(r"[^A-Za-z0-9_-]+", "-", program).lstrip("-_0123456789")
    base = _profile_of_program(program) or (KNOWN_AGENTS.get(name) if match else None)
    return name or "agent", _with_command(base, name or "agent", words)


def resolve_agents(
    texts: Iterable[str],
    specs: Mapping[str, AgentSpec] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Profiles:
    """The agents to serve, each with the absolute path of its program.

    ``texts`` are ``--agent`` values, ``specs`` the ``[agents.NAME]`` tables. ``auto`` is the
    first installed agent of `AUTO_ORDER`, else the demo agent. Raises `AgentNotFoundError` for
    an agent that is unknown or not installed, `ConfigError` for two of one name.
    """
    specs = specs or {}
    chosen: dict[str, AgentProfile] = {}
    note = None
    for text in texts:
        if text.strip() == "auto":
            profile = _first_installed(specs, environ)
            note = _auto_note(profile)
        else:
            _, wanted = parse_agent_spec(text, specs)
            profile = _locate(wanted, environ) or _missing(text, wanted, specs)
        if profile.name in chosen:
            raise ConfigError(
                f'Two agents are called "{profile.name}".',
                remedy="Give one another name: --agent NAME='COMMAND ARGS'.",
                source="agent",
            )
        chosen[profile.name] = profile
    if not chosen:
        raise ConfigError("No agent is set.", remedy="Use --agent auto.", source="agent")
    return Profiles(chosen.values(), note)


def binary_stamp(profile: AgentProfile) -> tuple[tuple[str, int, int, int], ...]:
    """Changes when the agent's program was replaced: (path, mtime ns, ctime ns, bytes) of each
    word of the command that is a file. Links are followed; what does not exist is left out.
    """
    stamp = []
    for word in profile.argv:
        if not os.path.isabs(word):
            continue
        path = os.path.realpath(word)
        try:
            status = os.stat(path)
        except OSError:
            continue
        # npm gives every file of every release the same mtime; ctime tells them apart.
        stamp.append((path, status.st_mtime_ns, status.st_ctime_ns, status.st_size))
    return tuple(stamp)


def _profile_of_program(program: str) -> AgentProfile | None:
    for profile in KNOWN_AGENTS.values():
        commands = (profile.argv, *profile.alternatives)
        if profile.name != "demo" and program in [command[0] for command in commands]:
            return profile
    return None


def _with_command(base: AgentProfile | None, name: str, argv: tuple[str, ...]) -> AgentProfile:
    """A user's own command: it sees what is no credential, and the keys of models."""
    if base is None:
        return AgentProfile(name=name, title=name, argv=argv, env_keys=MODELS)
    return attrs.evolve(
        base, name=name, argv=argv, alternatives=(), env_allow=("*",), version_argv=None
    )


def _named_profile(name: str, specs: Mapping[str, AgentSpec]) -> AgentProfile:
    spec = specs.get(name)
    profile = KNOWN_AGENTS.get(name)
    if spec is None:
        assert profile is not None
        return profile
    source = f"table [agents.{name}]"
    if spec.command is not None:
        base = profile or _profile_of_program(Path(spec.command[0]).name)
        profile = _with_command(base, name, spec.command)
    if profile is None:
        raise ConfigError(
            f'The agent "{name}" has no command.',
            remedy=did_you_mean(name, KNOWN_AGENTS) or 'Add command = "PROGRAM ARGS".',
            source=source,
        )
    return attrs.evolve(
        profile,
        title=spec.title or profile.title,
        env_allow=(*profile.env_allow, *spec.env_pass),
        env_keys=(*profile.env_keys, *spec.env_pass),
        env_set={**profile.env_set, **spec.env},
        cwd=spec.cwd or profile.cwd,
        handshake_timeout=spec.handshake_timeout or profile.handshake_timeout,
        quirks=_with_quirks(profile.quirks, spec.quirks, source),
    )


def _with_quirks(quirks: Quirks, changes: Mapping[str, Any], source: str) -> Quirks:
    fields = {field.name: field for field in attrs.fields(Quirks)}
    for name, value in changes.items():
        if name not in fields:
            raise ConfigError(
                f'"{name}" is not a quirk.',
                remedy=did_you_mean(name, fields) or f"Known are: {', '.join(fields)}.",
                source=source,
            )
        kind = {"bool": bool, "str | None": str}.get(str(fields[name].type), dict)
        if not isinstance(value, kind):
            word = {bool: "true or false", str: "text", dict: "a table"}[kind]
            raise ConfigError(
                f'The quirk "{name}" must be {word}.', remedy="Correct it.", source=source
            )
    return attrs.evolve(quirks, **changes)


def _locate(profile: AgentProfile, environ: Mapping[str, str]) -> AgentProfile | None:
    for argv in (profile.argv, *profile.alternatives):
        # Looked up now: the child may get another directory and another PATH.
        program = shutil.which(os.path.expanduser(argv[0]), path=environ.get("PATH"))
        if program is not None:
            return attrs.evolve(profile, argv=(os.path.abspath(program), *argv[1:]))
    return None


def _first_installed(specs: Mapping[str, AgentSpec], environ: Mapping[str, str]) -> AgentProfile:
    for name in AUTO_ORDER:
        profile = _locate(_named_profile(name, specs), environ)
        if profile is not None:
            return profile
    return _named_profile("demo", specs)


def _auto_note(profile: AgentProfile) -> str:
    if profile.name != "demo":
        return f"{profile.title} is the first installed agent; --agent NAME chooses another."
    names = ", ".join(AUTO_ORDER)
    return f"No agent of {names} is installed: the built-in demo agent answers, without a model."


def _missing(text: str, profile: AgentProfile, specs: Mapping[str, AgentSpec]) -> AgentProfile:
    program = profile.argv[0]
    remedy = f"Install it: {profile.install}" if profile.install else None
    if remedy is None and len(profile.argv) == 1:
        remedy = did_you_mean(text.strip(), ["auto", *KNOWN_AGENTS, *specs]) or None
    raise AgentNotFoundError(
        f'The agent "{profile.name}" cannot be started: the program {program} was not found.',
        remedy=remedy
        or "Check the command, or install the program; `acp-gateway agents` lists "
        "the known agents.",
        source="agent",
    )
