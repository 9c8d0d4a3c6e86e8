"""JSON values -> shapes of `types`, with errors that name the member (the only home of cattrs).

Rule 1: no coercion. A number is not a string, a bool is neither a number nor an id, ``"1"`` is
not 1, a string is not a list of characters.
Rule 2: unknown members are ignored, null or absent params are ``{}``.
Rule 3: a failure is a `GatewayError` that tells where (``params.prompt[0].type``) and what is
expected. It never repeats the value: it may be large or secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import eq
from typing import Any, Final, Literal, TypeVar, cast, get_args, get_origin

import attrs
from cattrs import ClassValidationError, Converter
from cattrs.errors import AttributeValidationNote
from cattrs.gen import make_dict_structure_fn, override

from . import types as t
from .errors import ErrorKind, GatewayError

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]
Problem = tuple[str, str]
"""(path below the value that was read, what is wrong with it)"""

MAX_ERRORS: Final = 20
"""Problems reported for one message."""


class _Invalid(Exception):
    def __init__(self, *problems: Problem) -> None:
        super().__init__()
        self.problems = problems


def read(cls: type[T], value: object) -> T:
    """Read the params of a request or notification.

    Raises `GatewayError` ``invalid_params`` with ``errors: [{path, message}]`` in its data.
    """
    return _read(cls, value, "params", ErrorKind.INVALID_PARAMS, "Invalid params")


def read_result(cls: type[T], value: object) -> T:
    """Read an answer of the other side; null is ``{}``, as some agents send it.

    Raises `GatewayError` ``agent_error``, data as in `read`.
    """
    return _read(cls, value, "result", ErrorKind.AGENT_ERROR, "Invalid answer")


def read_protocol_version(value: object) -> int:
    """The protocol version that ``value`` stands for, 0 to 65535; 1 when it stands for none.

    Clients are seen that send a date or a numeric string.
    """
    try:
        number = int(value) if isinstance(value, int | float | str) else 1
    except (ValueError, OverflowError):
        return 1
    return max(0, min(number, 0xFFFF))


def _read(cls: type[T], value: object, root: str, kind: ErrorKind, intro: str) -> T:
    try:
        return _converter.structure({} if value is None else value, cls)
    except (_Invalid, ClassValidationError) as exc:
        problems = _problems(exc)[:MAX_ERRORS]
    errors = [{"path": root + path, "message": message} for path, message in problems]
    first = errors[0]
    raise GatewayError(kind, f"{intro}: {first['path']} {first['message']}.", errors=errors)


def _problems(exc: Exception) -> list[Problem]:
    """Flatten what reading raised into paths with wire names."""
    if isinstance(exc, _Invalid):
        return list(exc.problems)
    if isinstance(exc, KeyError):
        return [("", "is required")]
    if not isinstance(exc, ClassValidationError):
        raise exc  # a bug in a hook
    found: list[Problem] = []
    for inner in exc.exceptions:
        notes = getattr(inner, "__notes__", ())
        name = next(note.name for note in notes if isinstance(note, AttributeValidationNote))
        found += [(f".{_wire_name(name)}{path}", text) for path, text in _problems(inner)]
    return found


def _wire_name(name: str) -> str:
    if name == "meta":
        return "_meta"
    head, *rest = name.split("_")
    return head + "".join(map(str.capitalize, rest))


# -- values --------------------------------------------------------------------------------------

_JSON_NAMES: Final = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def _must_be(wanted: str, value: object) -> _Invalid:
    found = "null" if value is None else _JSON_NAMES.get(type(value), "something else")
    return _Invalid(("", f"must be {wanted}, not {found}"))


def _exactly(cls: type, wanted: str) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        if type(value) is cls:
            return value
        raise _must_be(wanted, value)

    return hook


def _uint(value: Any, _: Any) -> int:
    if type(value) is int and value >= 0:
        return value
    raise _must_be("an integer of at least 0", value)


def _marker(value: Any, _: Any) -> bool:
    return type(value) is dict


def _request_id(value: Any, _: Any) -> str | int | None:
    if value is None or type(value) is str or type(value) is int:
        return value
    raise _must_be("a string, an integer or null", value)


def _config_value(value: Any, _: Any) -> str | bool:
    if type(value) is str or type(value) is bool:
        return value
    raise _must_be("a string or a boolean", value)


def _literal(value: Any, cls: Any) -> Any:
    words = get_args(cls)
    if type(value) is str and value in words:
        return value
    raise _Invalid(("", "must be one of " + ", ".join(words)))


# -- objects that stay raw -----------------------------------------------------------------------

_BLOCK_MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "text": ("text",),
    "image": ("data", "mimeType"),
    "audio": ("data", "mimeType"),
    "resource_link": ("uri", "name"),
}


def _with_strings(value: Any, names: tuple[str, ...], at: str = "") -> dict[str, Any]:
    """``value`` itself when it is an object whose members ``names`` are strings."""
    if type(value) is not dict:
        problem = _must_be("an object", value).problems[0]
        raise _Invalid((at, problem[1]))
    for name in names:
        if type(value.get(name)) is not str:
            missing = "must be a string" if name in value else "is required"
            raise _Invalid((f"{at}.{name}", missing))
    return value


def _content_block(value: Any, _: Any) -> dict[str, Any]:
    # Blocks are echoed to every client of the session, and a client that gets a broken one may
    # drop the connection. Types that ACP v1 does not know are for the agent to judge.
    block = _with_strings(value, ("type",))
    kind = block["type"]
    if kind == "resource":
        resource = _with_strings(block.get("resource"), ("uri",), ".resource")
        if type(resource.get("text")) is not str and type(resource.get("blob")) is not str:
            raise _Invalid((".resource", "must have a string text or blob"))
        return block
    return _with_strings(block, _BLOCK_MEMBERS.get(kind, ()))


def _mcp_server(value: Any, _: Any) -> dict[str, Any]:
    server = _with_strings(value, ("name",))
    kind = server.get("type")
    if kind in ("http", "sse"):
        _with_strings(server, ("url",))
        _objects_of_strings(server, "headers")
    elif type(kind) is not str or kind == "stdio":
        _with_strings(server, ("command",))
        _objects_of_strings(server, "env")
        args = server.get("args")
        if type(args) is not list or not all(type(arg) is str for arg in args):
            raise _Invalid((".args", "must be an array of strings"))
    return server


def _objects_of_strings(server: dict[str, Any], name: str) -> None:
    pairs = server.get(name)
    if type(pairs) is not list:
        raise _Invalid((f".{name}", "must be an array"))
    for i, pair in enumerate(pairs):
        _with_strings(pair, ("name", "value"), f".{name}[{i}]")


def _permission_outcome(value: Any, _: Any) -> t.PermissionOutcome:
    word = _with_strings(value, ("outcome",))["outcome"]
    if word == "cancelled":
        return t.PermissionOutcome(None)
    if word != "selected":
        raise _Invalid((".outcome", "must be one of selected, cancelled"))
    return t.PermissionOutcome(_with_strings(value, ("optionId",))["optionId"])


# -- arrays and classes --------------------------------------------------------------------------


def _is_array(cls: Any) -> bool:
    return get_origin(cls) in (list, tuple)


def _is_literal(cls: Any) -> bool:
    return get_origin(cls) is Literal


def _array_hook(cls: Any, converter: Converter, skip: bool = False) -> Hook:
    """Hook of ``list[X]`` or ``tuple[X, ...]``; ``skip`` drops wrong items."""
    make, item_type = get_origin(cls), get_args(cls)[0]
    item_hook = converter.get_structure_hook(item_type)

    def hook(value: Any, _: Any) -> Any:
        if type(value) is not list:
            raise _must_be("an array", value)
        items: list[Any] = []
        problems: list[Problem] = []
        for i, item in enumerate(value):
            try:
                items.append(item_hook(item, item_type))
            except (_Invalid, ClassValidationError) as exc:
                if skip:
                    continue
                problems += [(f"[{i}]{path}", text) for path, text in _problems(exc)]
                if len(problems) >= MAX_ERRORS:
                    break
        if problems:
            raise _Invalid(*problems)
        return make(items)

    return hook


def _lenient_hook(inner: Hook, default: Any) -> Hook:
    make_default = getattr(default, "factory", lambda: default)

    def hook(value: Any, cls: Any) -> Any:
        try:
            return inner(value, cls)
        except (_Invalid, ClassValidationError):
            return make_default()

    return hook


def _class_hook(cls: Any, converter: Converter) -> Hook:
    """Hook of an attrs class; the rules are those of `types`."""
    attrs.resolve_types(cls)
    overrides: dict[str, Any] = {}
    for field in attrs.fields(cls):
        hook: Hook | None = None
        if field.default is not attrs.NOTHING and t.STRICT not in field.metadata:
            if get_origin(field.type) is tuple:
                hook = _array_hook(field.type, converter, skip=True)
            else:
                hook = converter.get_structure_hook(cast(Any, field.type))
            hook = _lenient_hook(hook, field.default)
        overrides[field.name] = override(
            rename=field.metadata.get(t.KEY) or _wire_name(field.name), struct_hook=hook
        )
    from_dict = make_dict_structure_fn(cls, converter, **overrides)

    def hook_of_class(value: Any, wanted: Any) -> Any:
        if type(value) is not dict:
            raise _must_be("an object", value)
        return from_dict(value, wanted)

    return hook_of_class


def _make_converter() -> Converter:
    converter = Converter()  # detailed_validation is on: its notes are the error paths
    converter.register_structure_hook_factory(attrs.has, _class_hook)
    converter.register_structure_hook_factory(_is_array, _array_hook)
    converter.register_structure_hook_func(_is_literal, _literal)
    converter.register_structure_hook(t.PermissionOutcome, _permission_outcome)
    converter.register_structure_hook(str, _exactly(str, "a string"))
    converter.register_structure_hook(bool, _exactly(bool, "a boolean"))
    by_type: list[tuple[Any, Hook]] = [
        (t.Raw, _exactly(dict, "an object")),
        (t.UInt, _uint),
        (t.Marker, _marker),
        (t.ProtocolVersion, lambda value, _: read_protocol_version(value)),
        (t.RequestId, _request_id),
        (str | bool, _config_value),
        (t.ContentBlock, _content_block),
        (t.McpServer, _mcp_server),
        (t.AuthMethod, lambda value, _: _with_strings(value, ("id", "name"))),
        (t.ToolCall, lambda value, _: _with_strings(value, ("toolCallId",))),
    ]
    for shape, hook in by_type:
        converter.register_structure_hook_func(partial(eq, shape), hook)
    return converter


_converter: Final = _make_converter()
