"""Which paths a session may touch, as far as their text tells."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.path_boundary import absolute, inside
from acp_gateway.protocol.errors import ErrorKind, GatewayError

parts = st.lists(
    st.sampled_from(["a", "b", "..", ".", "", "...", "~", "a b", "é", "$HOME", "%2e%2e"]),
    max_size=8,
)


@given(parts)
def test_dots_are_resolved_by_text_and_never_above_the_root(names: list[str]) -> None:
    path = absolute("/" + "/".join(names))
    assert path.is_absolute() and not {".", ".."} & set(path.parts)
    assert str(path) == "/" + os.path.normpath("/" + "/".join(names)).lstrip("/")


@pytest.mark.parametrize("path", ["", "a", "./a", "../a", "~/a", "C:\\a", "\\a", "/a\0b", "\0"])
def test_what_is_not_absolute_is_refused_by_name(path: str) -> None:
    with pytest.raises(GatewayError, match="cwd must be an absolute path") as caught:
        absolute(path, "cwd")
    assert caught.value.kind is ErrorKind.INVALID_PARAMS
    assert caught.value.remedy and caught.value.data == {"field": "cwd"}


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/srv", "/srv"),
        ("/srv/a/b", "/srv"),
        ("/srv/deep", "/srv/deep"),
        ("/srv/deep/x", "/srv/deep"),
        ("/srvshop", None),
        ("/", None),
        ("/wor", None),
        ("/other/srv", None),
        ("/srv/../etc/passwd", None),
        ("/srv/deep/../../etc", None),
        ("/srv/deep/../x", "/srv"),
    ],
)
def test_the_deepest_root_that_holds_it(path: str, root: str | None) -> None:
    roots = [PurePosixPath(each) for each in ("/srv", "/srv/deep", "/opt")]
    for order in (roots, roots[::-1]):
        found = inside(absolute(path), order)
        assert found == (None if root is None else PurePosixPath(root))
    assert inside(absolute(path), []) is None
