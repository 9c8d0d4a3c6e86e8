"""Which paths a session may touch, as far as their text tells."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_gateway.core.path_boundary import absolute, client_path, inside
from acp_gateway.protocol.errors import ErrorKind, FileError, GatewayError

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


# ---- paths of clients ----------------------------------------------------------------------------

ROOT = PurePosixPath("/srv/ws")

SPELLINGS = (
    # (as it is sent, what it means: a path, or the refusal)
    ("../../etc/passwd", "/etc/passwd"),
    ("a/../../../etc/passwd", "/etc/passwd"),
    ("/etc/passwd", "/etc/passwd"),
    ("/srv/ws/../../etc/passwd", "/etc/passwd"),
    ("/srv/wsx/a", "/srv/wsx/a"),
    ("....//....//etc/passwd", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    (".../etc", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("..\\..\\etc\\passwd", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("a\\..\\..\\b", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("..\\../etc", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("C:\\windows\\win.ini", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("c:/windows", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("\\\\host\\share\\x", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("\\\\?\\C:\\x", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("//host/share", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("//?/C:/x", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("a/NUL", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("com1.txt/x", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("LPT9", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("a/COM¹.txt", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("conout$", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("aux .c", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("prn.\nx", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    (". ./etc", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("a/.. /.. /etc", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("..\t/etc", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("a/..../b", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("..\u3000/etc", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("\\\\.\\pipe\\x", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("//./pipe/x", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("secret.", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("secret ", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    (".. /etc", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("a\u00a0/b", ErrorKind.PATH_OUTSIDE_WORKSPACE),
    ("a\0/../../etc", ErrorKind.PARSE_ERROR),
    ("a\ud800", ErrorKind.PARSE_ERROR),
    ("", ErrorKind.PARSE_ERROR),
    (None, ErrorKind.PARSE_ERROR),
    (["a"], ErrorKind.PARSE_ERROR),
    ("a/" * 2049, ErrorKind.PARSE_ERROR),
    ("é" * 2049, ErrorKind.PARSE_ERROR),
    # Names like any other: nothing is decoded, expanded or folded.
    ("%2e%2e/%2e%2e/etc", "/srv/ws/%2e%2e/%2e%2e/etc"),
    ("..%2f..%2fetc", "/srv/ws/..%2f..%2fetc"),
    ("%00", "/srv/ws/%00"),
    ("\u2025/\uff0e\uff0e/etc", "/srv/ws/\u2025/\uff0e\uff0e/etc"),
    ("%252e%252e/etc", "/srv/ws/%252e%252e/etc"),
    ("..%c0%af..%c0%afetc", "/srv/ws/..%c0%af..%c0%afetc"),
    ("\u2024\u2024/\uff0fetc", "/srv/ws/\u2024\u2024/\uff0fetc"),
    ("..\u2215..\u2044etc", "/srv/ws/..\u2215..\u2044etc"),
    ("com0/lpt10/nulls", "/srv/ws/com0/lpt10/nulls"),
    ("~/x", "/srv/ws/~/x"),
    ("$HOME/x", "/srv/ws/$HOME/x"),
    ("..a/b..c", "/srv/ws/..a/b..c"),
    ("console/auxiliary", "/srv/ws/console/auxiliary"),
    (".", "/srv/ws"),
    ("./a//b/", "/srv/ws/a/b"),
    ("/srv/ws/a", "/srv/ws/a"),
    ("x:y", "/srv/ws/x:y"),
)


@pytest.mark.parametrize(("sent", "meant"), SPELLINGS, ids=range(len(SPELLINGS)))
def test_spellings_of_a_client(sent: object, meant: str | ErrorKind) -> None:
    if isinstance(meant, str):
        assert str(client_path(sent, ROOT)) == meant
        return
    with pytest.raises(FileError) as caught:
        client_path(sent, ROOT)
    assert caught.value.kind is meant


@given(st.text(max_size=40))
def test_a_client_s_path_is_plain_or_refused(text: str) -> None:
    try:
        path = client_path(text, ROOT)
    except FileError:
        return
    assert path.is_absolute() and not {".", "..", "..."} & set(path.parts)
    whole = text if text.startswith("/") else f"{ROOT}/{text}"
    assert str(path) == os.path.normpath("/" + whole.lstrip("/"))  # POSIX gives // a meaning
    assert client_path(str(path), ROOT) == path
