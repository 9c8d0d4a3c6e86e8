"""The answer to one REST request."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx2

from conformance.outcome import Failure, brief, check


@dataclass(frozen=True)
class Answer:
    """``what`` is the request in words, for failure texts."""

    what: str
    status: int
    headers: httpx2.Headers
    text: str

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object; `Failure` when it is not one."""
        kind = self.headers.get("content-type", "")
        check(kind.startswith("application/json"), f"{self}: content-type {kind!r}, not JSON")
        try:
            body = json.loads(self.text)
        except ValueError:
            raise Failure(f"{self}: the body is not JSON") from None
        check(isinstance(body, dict), f"{self}: the body is no object")
        return dict(body)

    def ok(self, status: int = 200) -> dict[str, Any]:
        """The body of a success with this status."""
        check(self.status == status, f"{self} instead of {status}")
        return self.body

    def empty(self, status: int = 204) -> None:
        check(self.status == status, f"{self} instead of {status}")
        check(self.text == "", f"{self}: a body with {status}")

    def refused(self, status: int, code: str | None = None, **members: Any) -> dict[str, Any]:
        """The body of a refusal: ``error`` is a sentence, ``code`` and ``members`` are as given
        (a code of None is not looked at)."""
        check(self.status == status, f"{self} instead of {status}")
        body = self.body
        check(isinstance(body.get("error"), str) and body["error"], f"{self}: no error text")
        if code is not None:
            members["code"] = code
        for name, value in members.items():
            check(body.get(name) == value, f"{self}: {name} is not {value!r}")
        return body

    def __str__(self) -> str:
        return f"{self.what} was answered {self.status} {brief(self.text)}"


def members(value: Any, **types: type | tuple[type, ...]) -> None:
    """``value`` must be an object with members of these types (a bool is no int)."""
    check(isinstance(value, dict), f"no object: {brief(value)}")
    for name, kind in types.items():
        found = value.get(name)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        good = isinstance(found, kinds) and (bool in kinds or not isinstance(found, bool))
        check(good, f"{name} is {found!r}: {brief(value)}")
