"""JSON-RPC 2.0 messages: classify what came in, build what goes out.

Ids are strings, numbers or null and are echoed unchanged in type and value (JSON-RPC 2.0 §4, ACP
v1). A boolean is not an id. Batches are not part of ACP v1 and are the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import attrs
import msgspec

from acp_gateway.wire.json_codec import JsonError, dumps, loads, valid_utf8

JsonId: TypeAlias = str | int | float | None


@attrs.frozen
class Request:
    id: JsonId
    method: str
    params: Any = None
    """As it came in; ``None`` when absent or null."""


@attrs.frozen
class Notification:
    method: str
    params: Any = None


@attrs.frozen
class Response:
    """``error`` is None for a success; ``result`` is then any JSON value, also null."""

    id: JsonId
    result: Any = None
    error: dict[str, Any] | None = None


Message: TypeAlias = Request | Notification | Response


class InvalidMessage(ValueError):
    """Valid JSON that is not a JSON-RPC 2.0 message. ``id`` is what an answer should carry."""

    def __init__(self, reason: str, id: JsonId = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.id = id


def is_id(value: Any) -> bool:
    """May ``value`` be the id of a request?"""
    return value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))


def classify(value: Any) -> Message:
    """A decoded JSON value as a message. Raises `InvalidMessage`."""
    if not isinstance(value, dict):
        raise InvalidMessage("a JSON-RPC message is an object")
    raw_id = value.get("id")
    usable = raw_id if is_id(raw_id) else None
    if value.get("jsonrpc") != "2.0":
        raise InvalidMessage('"jsonrpc" must be "2.0"', usable)
    if "id" in value and not is_id(raw_id):
        raise InvalidMessage('"id" must be a string, a number or null')
    method = value.get("method")
    if method is not None:
        if not isinstance(method, str):
            raise InvalidMessage('"method" must be a string', usable)
        params = value.get("params")
        return Request(raw_id, method, params) if "id" in value else Notification(method, params)
    if "id" not in value:
        raise InvalidMessage('a message needs a "method" or an "id"')
    has_result, error = "result" in value, value.get("error")
    if has_result == (error is not None):
        raise InvalidMessage('a response has exactly one of "result" and "error"', usable)
    if error is not None and not isinstance(error, dict):
        raise InvalidMessage('"error" must be an object', usable)
    return Response(raw_id, value.get("result"), error)


# ---- building -----------------------------------------------------------------------------------


def request_bytes(id: JsonId, method: str, params: Any) -> bytes:
    return dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params})


def notification_bytes(method: str, params: Any) -> bytes:
    return dumps({"jsonrpc": "2.0", "method": method, "params": params})


def result_bytes(id: JsonId, result: Any) -> bytes:
    """``result`` may be a `msgspec.Raw`: its bytes are spliced in unread."""
    return dumps({"jsonrpc": "2.0", "id": id, "result": result})


def error_bytes(id: JsonId, error: dict[str, Any]) -> bytes:
    return dumps({"jsonrpc": "2.0", "id": id, "error": error})


# ---- the peek at an agent's line ----------------------------------------------------------------


class _Update(msgspec.Struct, gc=False):
    sessionUpdate: str = ""


class _Params(msgspec.Struct, gc=False):
    sessionId: str = ""
    update: _Update | None = None


class _Peek(msgspec.Struct, gc=False):
    method: str = ""
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    params: _Params | None = None


class _Opened(msgspec.Struct, gc=False):
    params: msgspec.Raw = msgspec.Raw()


class Line(msgspec.Struct):
    """One message of an agent, opened no further than its members.

    An empty `msgspec.Raw` means that the member was absent.
    """

    method: str = ""
    id: msgspec.Raw = msgspec.Raw()
    params: msgspec.Raw = msgspec.Raw()
    result: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()

    def params_object(self) -> dict[str, Any]:
        """The parameters, ``{}`` when they are absent or not an object."""
        value = _opened(self.params)
        return value if isinstance(value, dict) else {}

    def error_object(self) -> dict[str, Any]:
        value = _opened(self.error)
        if not isinstance(value, dict):
            return {"code": -32603, "message": "the agent sent a malformed error"}
        return value


def _opened(raw: msgspec.Raw) -> Any:
    try:
        return loads(bytes(raw))
    except JsonError:  # absent, or nested too deeply
        return None


class _NoticeParams(msgspec.Struct):
    data: msgspec.Raw


class _Notice(msgspec.Struct):
    params: _NoticeParams


_peek = msgspec.json.Decoder(_Peek).decode
_params = msgspec.json.Decoder(_Opened).decode
_notice = msgspec.json.Decoder(_Notice).decode
_open = msgspec.json.Decoder(Line).decode


Update: TypeAlias = tuple[str, str]
"""(sessionId, update kind)"""


def peek_updates(lines: Iterable[bytes]) -> list[tuple[Update | None, list[bytes]]]:
    """Lines in runs of ``session/update`` notifications of the same session and kind.

    None: a line by itself that is something else. Checks the syntax of each line but builds
    nothing more than the two strings.
    """
    runs: list[tuple[Update | None, list[bytes]]] = []
    last: Update | None = None
    run: list[bytes] = []
    for line in lines:
        try:
            head = _peek(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            update = None
        else:
            params = head.params
            if (
                params is None
                or params.update is None
                or head.method != "session/update"
                or head.id is not msgspec.UNSET
            ):
                update = None
            else:
                update = (params.sessionId, params.update.sessionUpdate)
        if update is None or update != last:
            run = []
            runs.append((update, run))
            last = update
        run.append(line)
    return runs


def peek_update(line: bytes) -> Update | None:
    """What `peek_updates` tells of one line."""
    return peek_updates((line,))[0][0]


def params_of(line: bytes) -> bytes:
    """The JSON of ``params`` in a line that was peeked at before; ``{}`` when there are none."""
    try:
        return bytes(_params(line).params) or b"{}"
    except (msgspec.DecodeError, RecursionError):
        return bytes(open_line(line).params)


def notice_data(line: bytes) -> bytes:
    """The JSON of ``params.data`` in a notification that this gateway wrote."""
    return bytes(_notice(line).params.data)


def open_line(line: bytes) -> Line:
    """Open any message. Raises `InvalidMessage` for what is not a JSON object.

    ``"method": null`` and ``"error": null`` count as absent, as they do in `classify`.
    """
    line = valid_utf8(line)
    try:
        opened = _open(line)
    except (msgspec.DecodeError, RecursionError):
        opened = _open_slowly(line)
    if bytes(opened.error) == b"null":
        opened.error = msgspec.Raw()
    return opened


def _open_slowly(line: bytes) -> Line:
    # The strict decoder refuses a lone surrogate; the lenient one decides.
    try:
        value = loads(line)
        if not isinstance(value, dict):
            raise InvalidMessage("not a JSON object")
        raw = {
            name: msgspec.Raw(dumps(value[name]))
            for name in ("id", "params", "result", "error")
            if name in value
        }
    except JsonError as exc:
        raise InvalidMessage(str(exc)) from None
    method = value.get("method")
    if method is not None and not isinstance(method, str):
        raise InvalidMessage('"method" must be a string')
    return Line(method=method or "", **raw)
