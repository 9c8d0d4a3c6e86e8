"""Makes the tables of docs/agents-environment.md.

``python tests/support/environment_docs.py`` prints them.
"""

from __future__ import annotations

from collections.abc import Iterable

from acp_gateway.runtime.agent_profile import KNOWN_AGENTS
from acp_gateway.runtime.child_environment import MODELS, NEVER, PROXIES, USUAL, USUAL_PATTERNS


def _names(patterns: Iterable[str]) -> str:
    return " ".join(f"`{each}`" for each in patterns)


def _agents() -> Iterable[str]:
    for name, profile in KNOWN_AGENTS.items():
        further = [each for each in profile.env_allow if each not in USUAL_PATTERNS]
        keys = [each for each in profile.env_keys if each not in MODELS]
        models = "the keys of models " if set(MODELS) <= set(profile.env_keys) else ""
        keys = keys if models else list(profile.env_keys)
        yield f"| {name} | {_names(further)} | {models}{_names(keys)} | {_names(profile.env_set)} |"


def tables() -> list[str]:
    never = [f"| {_names(group.patterns)} | {group.reason} |" for group in NEVER]
    usual = [f"| {group.reason} | {_names(group.patterns)} |" for group in USUAL]
    usual.append(f"| proxies, with their passwords | {_names(PROXIES)} |")
    return [
        "\n".join(["| variables | what they are |", "|---|---|", *never]),
        "\n".join(["| for | variables |", "|---|---|", *usual]),
        _names(MODELS),
        "\n".join(
            ["| agent | further | with credentials | set for it |", "|---|---|---|---|", *_agents()]
        ),
    ]


if __name__ == "__main__":
    print("\n\n".join(tables()))
