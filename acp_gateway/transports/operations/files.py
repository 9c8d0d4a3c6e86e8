"""Files of the workspace: read, list, stat, search, write, edit.

The bodies are those of the Qwen daemon's file routes. Paths are relative to the first root, or
absolute; those in answers lead to the file itself where the request named a link.
"""

from __future__ import annotations

import base64
import time
from typing import Any, Final

import trio

from acp_gateway.core.file_audit import Who
from acp_gateway.core.text_file import (
    MAX_CURSOR,
    MAX_WINDOW,
    Cursor,
    LineEnding,
    checked_hash,
    encoding_of,
)
from acp_gateway.protocol.errors import ErrorKind, FileError, GatewayError
from acp_gateway.runtime import workspace_files, workspace_search, workspace_write
from acp_gateway.runtime.workspace_files import kind_of
from acp_gateway.runtime.workspace_write import Written
from acp_gateway.transports.operations.call import Call, Reply

HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
"""Of every answer, also of errors: a file's text is no page of this gateway."""
MAX_LINES: Final = 2000
DEFAULT_BYTES: Final = 64 * 1024
DEFAULT_RESULTS: Final = 5000
MAX_RESULTS: Final = 50_000
MAX_NUMBER: Final = 2**53 - 1


def _wrong(message: str, **data: Any) -> FileError:
    return FileError(ErrorKind.PARSE_ERROR, message, **data)


def _number(call: Call, name: str, least: int, most: int) -> int | None:
    value = call.params.get(name)
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 16:
        value = int(value)
    if type(value) is int and least <= value <= most:
        return value
    raise _wrong(f"`{name}` must be an integer from {least} to {most}", field=name)


def _text(call: Call, name: str) -> str:
    value = call.params.get(name)
    if isinstance(value, str):
        return value
    raise _wrong(f"`{name}` must be a string", field=name)


def _answer(body: dict[str, Any], status: int | None = None) -> Reply:
    return Reply(body=body, status=status, headers=HEADERS)


# ---- reading -------------------------------------------------------------------------------------


async def read(call: Call) -> Any:
    cursor = call.params.get("cursor")
    line = _number(call, "line", 1, MAX_NUMBER)
    if cursor is not None:
        if not isinstance(cursor, str) or not 0 < len(cursor) <= MAX_CURSOR:
            raise _wrong(f"`cursor` must have 1 to {MAX_CURSOR} characters", field="cursor")
        if line is not None:
            raise _wrong("`cursor` and `line` exclude each other", field="cursor")
    workspace = call.manager.workspace
    found = await workspace.for_client(
        "read",
        "GET /file",
        workspace_files.read_text,
        call.params.get("path"),
        _who(call),
        max_bytes=_number(call, "maxBytes", 1, MAX_WINDOW),
        line=line,
        limit=_number(call, "limit", 1, MAX_LINES),
        cursor=None if cursor is None else Cursor.of_text(cursor),
    )
    following = None if found.cursor is None else found.cursor.to_text()
    return _answer(
        {
            "kind": "file",
            "path": workspace.told(found.path),
            "content": found.content,
            "encoding": found.encoding.name,
            "bom": found.encoding.bom,
            "lineEnding": found.ending,
            "sizeBytes": found.size,
            "returnedBytes": len(found.content.encode()),
            "truncated": following is not None,
            **({} if found.hash is None else {"hash": found.hash}),
            "matchedIgnore": await workspace.hides(found.path),
            "originalLineCount": found.lines,
            "nextCursor": following,
            "hasMore": following is not None,
        }
    )


async def read_bytes(call: Call) -> Any:
    offset = _number(call, "offset", 0, MAX_NUMBER) or 0
    length = _number(call, "maxBytes", 1, MAX_WINDOW)
    workspace = call.manager.workspace
    found = await workspace.for_client(
        "read",
        "GET /file/bytes",
        workspace_files.read_bytes,
        call.params.get("path"),
        _who(call),
        offset=offset,
        length=DEFAULT_BYTES if length is None else length,
    )
    return _answer(
        {
            "kind": "file_bytes",
            "path": workspace.told(found.path),
            "offset": offset,
            "sizeBytes": found.size,
            "returnedBytes": len(found.data),
            "truncated": found.truncated,
            "contentBase64": base64.b64encode(found.data).decode(),
            **({} if found.hash is None else {"hash": found.hash}),
        }
    )


async def stat(call: Call) -> Any:
    workspace = call.manager.workspace
    path, status = await workspace.for_client(
        "stat", "GET /stat", workspace_files.status_of, call.params.get("path"), _who(call)
    )
    return _answer(
        {
            "kind": "stat",
            "path": workspace.told(path),
            "type": kind_of(status.st_mode),
            "sizeBytes": status.st_size,
            "modifiedMs": status.st_mtime_ns / 1e6,
        }
    )


async def listing(call: Call) -> Any:
    workspace = call.manager.workspace
    found = await workspace.for_client(
        "list",
        "GET /list",
        workspace_search.list_directory,
        call.params.get("path"),
        _who(call),
        rules=workspace.rules,
        ignored=call.flag("includeIgnored"),
    )
    return _answer(
        {
            "kind": "list",
            "path": workspace.told(found.path),
            "entries": [
                {"name": each.name, "kind": each.kind, "ignored": each.ignored}
                for each in found.entries
            ],
            "truncated": found.truncated,
            "matchedIgnore": await workspace.hides(found.path, directory=True),
        }
    )


async def glob(call: Call) -> Any:
    pattern = _text(call, "pattern")
    most = _number(call, "maxResults", 1, MAX_RESULTS)
    cwd = call.params.get("cwd")
    workspace = call.manager.workspace
    began = time.perf_counter()
    found = await workspace.for_client(
        "glob",
        "GET /glob",
        workspace_search.search,
        "." if cwd in (None, "") else cwd,
        _who(call),
        pattern=pattern,
        rules=workspace.rules,
        ignored=call.flag("includeIgnored"),
        most=DEFAULT_RESULTS if most is None else most,
        go_on=trio.from_thread.check_cancelled,
    )
    return _answer(
        {
            "kind": "glob",
            "pattern": pattern,
            "cwd": cwd or "",
            "matches": [workspace.told(each) for each in found.paths],
            "count": len(found.paths),
            "truncated": found.truncated,
            "durationMs": round((time.perf_counter() - began) * 1000),
        }
    )


# ---- writing -------------------------------------------------------------------------------------


async def write(call: Call) -> Any:
    who = _writer(call)
    content, mode = _text(call, "content"), call.params.get("mode")
    if mode not in ("create", "replace"):
        raise _wrong("`mode` must be create or replace", field="mode")
    expected = call.params.get("expectedHash")
    if mode == "replace" or expected is not None:
        expected = checked_hash(expected)
    bom = call.params.get("bom")
    if bom is not None and not isinstance(bom, bool):
        raise _wrong("`bom` must be true or false", field="bom")
    written = await call.manager.workspace.for_client(
        "write",
        "POST /file/write",
        workspace_write.write_text,
        call.params.get("path"),
        who,
        content=content,
        expected=expected if mode == "replace" else None,
        encoding=encoding_of(call.params.get("encoding")),
        bom=bom,
        ending=_ending(call),
    )
    return _answer(
        {
            "kind": "file_write",
            **await _told(call, written),
            "mode": mode,
            "created": written.created,
        },
        201 if written.created else 200,
    )


async def edit(call: Call) -> Any:
    who = _writer(call)
    written = await call.manager.workspace.for_client(
        "edit",
        "POST /file/edit",
        workspace_write.edit_text,
        call.params.get("path"),
        who,
        old_text=_text(call, "oldText"),
        new_text=_text(call, "newText"),
        expected=checked_hash(call.params.get("expectedHash")),
    )
    return _answer({"kind": "file_edit", **await _told(call, written), "replacements": 1})


def _ending(call: Call) -> LineEnding | None:
    value = call.params.get("lineEnding")
    if value not in (None, "lf", "crlf"):
        raise _wrong("`lineEnding` must be lf or crlf", field="lineEnding")
    ending: LineEnding | None = value
    return ending


async def _told(call: Call, written: Written) -> dict[str, Any]:
    workspace = call.manager.workspace
    return {
        "path": workspace.told(written.path),
        "sizeBytes": written.size,
        "hash": written.hash,
        "encoding": written.encoding.name,
        "bom": written.encoding.bom,
        "lineEnding": written.ending,
        "matchedIgnore": await workspace.hides(written.path),
    }


def _is_known(call: Call) -> bool:
    """Is the client id that the caller names one of a live session, or its own?"""
    claimed, identity = call.caller.claimed, call.caller.identity
    if call.caller.binding is not None or claimed in (None, identity.party):
        return True
    return any(each.parties.has(claimed, identity) for each in call.manager.sessions.values())


def _who(call: Call) -> Who:
    """For the audit. What cannot be believed is left out: reading takes any header."""
    known = _is_known(call)
    return Who(client=call.caller.claimed if known else None, actor=call.caller.identity.name)


def _writer(call: Call) -> Who:
    check_client(call)
    return _who(call)


def check_client(call: Call) -> None:
    """Who names itself must be known in some session. Raises ``invalid_client_id``."""
    if call.caller.client_id is not None and not _is_known(call):
        raise GatewayError(
            ErrorKind.INVALID_CLIENT_ID,
            "`X-Qwen-Client-Id` is not registered in any session",
            remedy="send the clientId that creating or attaching answered with, or none",
        )
