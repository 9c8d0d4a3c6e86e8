"""The history of a session as a load over REST tells it: envelopes, folded.

Chunks of one message are one event that carries the id of its last chunk, a tool call and its
updates are one event, and what was asked and answered is left out: a replay never asks a settled
question again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from acp_gateway.core.envelope import envelope
from acp_gateway.core.event_ring import Kind, Record
from acp_gateway.core.transcript import Transcript
from acp_gateway.wire.json_codec import loads

_TOLD: Final = frozenset(
    {
        "turn_complete",
        "turn_error",
        "prompt_cancelled",
        "user_shell_command",
        "user_shell_result",
        "mid_turn_message_injected",
        "session_rewound",
    }
)
"""Notices that are part of the conversation."""


def replay(
    history: Iterable[Record],
    records: Sequence[Record],
    boundary: int,
    open_questions: frozenset[str],
) -> tuple[list[msgspec.Raw], list[msgspec.Raw]]:
    """(finished turns, the unfinished one), each a list of envelopes as JSON.

    ``history``: what has left the ring, folded. ``records``: what the ring has. Events up to the
    id ``boundary`` belong to finished turns. ``open_questions``: ids of the requests that still
    wait for an answer.
    """
    told = [each for each in records if not _settled(each, open_questions)]
    finished = [*history, *_fold(each for each in told if each.id <= boundary)]
    unfinished = _fold(each for each in told if each.id > boundary)
    return [_raw(each) for each in finished], [_raw(each) for each in unfinished]


def updates(
    history: Iterable[Record], records: Sequence[Record]
) -> list[tuple[int, dict[str, Any]]]:
    """The conversation alone: (id of its last record, the ACP update) of each event, folded."""
    told = []
    conversation = [each for each in history if each.kind is not Kind.NOTICE]
    for record in [*conversation, *_fold(each for each in records if each.kind is not Kind.NOTICE)]:
        update = loads(record.line)["params"]["update"]
        told.append((record.id, {**update, "timestamp": int(record.time * 1000)}))
    return told


def _settled(record: Record, open_questions: frozenset[str]) -> bool:
    """A question that has its answer."""
    if record.kind is not Kind.NOTICE or record.name != "permission_request":
        return False
    return not any(each.encode() in record.line for each in open_questions)


def _raw(record: Record) -> msgspec.Raw:
    return msgspec.Raw(envelope(record))


def _fold(records: Iterable[Record]) -> list[Record]:
    folded: list[Record] = []
    part = Transcript(sys.maxsize)
    for record in records:
        if record.kind is not Kind.NOTICE:
            part.add((record,))
        elif record.name in _TOLD or record.name == "permission_request":
            folded += part.entries()
            folded.append(record)
            part = Transcript(sys.maxsize)
    return [*folded, *part.entries()]
