"""The event envelope of the daemon's SSE streams: a pure function of a record.

``{id, v:1, type, data, promptId?, originatorClientId?, originatorName?, _meta:{serverTimestamp}}``.
``data`` is the bytes of the ACP notification's params (``session_update``) or of the notice's data,
spliced in unread. Synthetic frames, which belong to one stream and not to the session, have no
``id``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from acp_gateway.core.event_ring import Kind, Record
from acp_gateway.protocol.events import AGENT_NOTIFICATION
from acp_gateway.wire.json_codec import dumps
from acp_gateway.wire.jsonrpc import InvalidMessage, notice_data, open_line, params_of
from acp_gateway.wire.large_line import large_params

NOTIFY: Final = "_qwen/notify"
"""The ACP notification that carries the gateway's own events."""


def event_type(record: Record) -> str:
    """The envelope's ``type``."""
    if record.kind is not Kind.NOTICE:
        return "session_update"
    return AGENT_NOTIFICATION if record.name.startswith("_") else record.name


def envelope(record: Record) -> bytes:
    """One event as JSON on one line."""
    return b"".join(_parts(record, event_type(record).encode()))


def sse_envelopes(records: Sequence[Record]) -> list[bytes]:
    """Records as server-sent events: ``id:``, ``event:``, one ``data:`` line with the envelope."""
    parts: list[bytes] = []
    for record in records:
        kind = event_type(record).encode()
        parts.append(b"id: %d\nevent: %b\ndata: " % (record.id, kind))
        parts += _parts(record, kind)
        parts.append(b"\n\n")
    return parts


def _parts(record: Record, kind: bytes) -> tuple[bytes, ...]:
    return (
        b'{"id":%d,"v":1,"type":"%b","data":' % (record.id, kind),
        *_data(record),
        _tail(record.prompt_id, record.client, record.who, record.time),
    )


def _data(record: Record) -> Iterable[bytes]:
    if record.kind is not Kind.NOTICE:
        data = record.data
        try:
            return (params_of(data),) if isinstance(data, bytes) else large_params(data)
        except InvalidMessage:
            # Of a large line not everything was looked at. It must not end the streams it is on.
            return (b"{}",)
    if record.name.startswith("_"):
        line = open_line(record.line)
        told = {"sessionId": line.params_object().get("sessionId"), "method": line.method}
        return (dumps({**told, "params": msgspec.Raw(bytes(line.params) or b"null")}),)
    return (notice_data(record.line),)


@lru_cache(maxsize=256)
def _tail(prompt_id: str | None, client: str | None, who: str | None, time: float) -> bytes:
    text = b""
    if prompt_id is not None:
        text += b',"promptId":' + dumps(prompt_id)
    if client is not None:
        text += b',"originatorClientId":' + dumps(client)
    if who is not None:
        text += b',"originatorName":' + dumps(who)
    return text + b',"_meta":{"serverTimestamp":%d}}' % int(time * 1000)


def synthetic(kind: str, data: dict[str, Any], time: float) -> bytes:
    """An envelope without an id. ``time`` is Unix time in seconds."""
    return dumps(
        {"v": 1, "type": kind, "data": data, "_meta": {"serverTimestamp": int(time * 1000)}}
    )
