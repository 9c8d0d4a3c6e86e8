"""gitignore rules, compared with git where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.ignore_rules import IgnoreRules

RULES = rf"""
# a comment

*.log
!keep.log
build/
/only-here
docs/*.txt
deep/**/x
whole/**
\#sharp
\!bang
trailing
space\{" "}
[a-c]?.o
[^z]q
**/any/y
*.t[mx]p
star\*
a//b
"""
PATHS = (
    *("a.log", "keep.log", "x/keep.log", "build", "build/x", "x/build/y", "only-here"),
    *("x/only-here", "docs/a.txt", "docs/b/a.txt", "x/docs/a.txt", "deep/x", "deep/a/b/x"),
    *("whole", "whole/a", "whole/a/b", "#sharp", "!bang", "trailing", "space ", "ab.o", "dd.o"),
    *("aq", "zq", "any/y", "p/any/y", "q/r/any/y", "a.tmp", "a.tzp", "star*", "starx", "a/b"),
    *("src/main.py", "x/a.log/y", ".hidden", "c", "builds"),
)


def hidden(rules: IgnoreRules, path: str) -> bool:
    return rules.hides(tuple(path.split("/")), directory=False) is not None


def by_git(where: Path, rules: str, paths: tuple[str, ...]) -> set[str]:
    """Paths that git ignores; none of them exists."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    if not (where / ".git").exists():
        subprocess.run(["git", "init", "-q", str(where)], check=True, capture_output=True)
    (where / ".gitignore").write_text(rules)
    ran = subprocess.run(
        ["git", "-C", str(where), "check-ignore", "--no-index", "-z", "--stdin"],
        input="\0".join(paths).encode() + b"\0",
        capture_output=True,
        check=False,
    )
    assert ran.returncode in (0, 1), ran.stderr
    return {each.decode() for each in ran.stdout.split(b"\0") if each}


def test_the_same_as_git(tmp_path: Path) -> None:
    rules = IgnoreRules([RULES])
    assert {path for path in PATHS if hidden(rules, path)} == by_git(tmp_path, RULES, PATHS)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


part = st.text("ab*?", min_size=1, max_size=3).filter(lambda text: "**" not in text)
line = st.builds(
    lambda bang, lead, parts, tail: bang + lead + "/".join(parts) + tail,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "/", "**/"]),
    st.lists(part, min_size=1, max_size=3),
    st.sampled_from(["", "/", "/**"]),
)
path = st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=4).map("/".join)


@given(lines=st.lists(line, min_size=1, max_size=4), paths=st.sets(path, min_size=1, max_size=8))
def test_any_rules_are_read_as_git_reads_them(
    repository: Path, lines: list[str], paths: set[str]
) -> None:
    text = "\n".join(lines)
    rules = IgnoreRules([text])
    found = {each for each in paths if hidden(rules, each)}
    assert found == by_git(repository, text, tuple(paths))


def test_file_or_directory() -> None:
    rules = IgnoreRules(["x\nd/\n", "!y\n"])
    assert rules.hides(("x",), directory=False) == "file"
    assert rules.hides(("x",), directory=True) == "directory"
    assert rules.hides(("x", "a", "b"), directory=False) == "directory"
    assert rules.hides(("d",), directory=False) is None
    assert rules.hides(("d",), directory=True) == "directory"
    assert rules.hides(("a",), directory=False) is None
    assert IgnoreRules(["y", "!y"]).hides(("y",), directory=False) is None
    assert IgnoreRules().hides(("y",), directory=False) is None


@given(st.text(max_size=80))
def test_any_text_is_rules(text: str) -> None:
    IgnoreRules([text]).hides(("a", "b"), directory=True)


def test_a_root_itself_is_never_hidden() -> None:
    assert IgnoreRules(["*\n/*/\n"]).hides((), directory=True) is None
