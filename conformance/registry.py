"""The cases: what each proves, and what it needs to run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from conformance.context import Context
from conformance.manifest import BY_ID
from conformance.requirement import Requirement

Body = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class Case:
    """One function bound to one requirement; it runs once for each transport of that."""

    requirement: Requirement
    body: Callable[[Context], Awaitable[None]]
    needs: str | None
    slow: bool
    timeout: float


CASES: dict[str, Case] = {}


def case(
    requirement_id: str,
    *,
    needs: str | None = None,
    slow: bool = False,
    timeout: float = 20.0,
    **arguments: Any,
) -> Callable[[Body], Body]:
    """Make a function the case of a requirement.

    ``needs="demo"``: only against the demo agent. ``slow``: only with ``--slow``. ``timeout`` in
    seconds. Further ``arguments`` go to the function, so that one body may prove several
    requirements.
    """

    def register(body: Body) -> Body:
        if requirement_id in CASES:
            raise ValueError(f"{requirement_id} has two cases")
        if requirement_id not in BY_ID:
            raise ValueError(f"{requirement_id} is not in the manifest")
        bound = partial(body, **arguments) if arguments else body
        CASES[requirement_id] = Case(BY_ID[requirement_id], bound, needs, slow, timeout)
        return body

    return register


def load_cases() -> list[Case]:
    """Every case, in the order of the manifest."""
    package = import_module("conformance.cases")
    for module in iter_modules(package.__path__):
        import_module(f"conformance.cases.{module.name}")
    return [CASES[requirement] for requirement in BY_ID if requirement in CASES]
