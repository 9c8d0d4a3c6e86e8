"""What the demo agent does in a turn: the slash commands and the answer to plain text."""

from __future__ import annotations

import json
import os
import time

from acp_gateway.demo_agent.link import RpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from acp_gateway.demo_agent.store import Session
    from acp_gateway.demo_agent.turn import Turn

FILE_NAME = "acp-demo.txt"
FILE_LIMIT = 1 << 16
"""Characters of the prompt that go into the file, so that its diff stays a small message."""
QUOTE_LIMIT = 300
SIZE_LIMIT = 256 << 20
CONTEXT_TOKENS = 200_000
_TYPING_PAUSE = 0.03
_TICK = 0.1

now = time.time


def prompt_text(prompt: list[dict[str, Any]]) -> str:
    """The text blocks of a prompt, joined by line ends."""
    return "\n".join(block["text"] for block in prompt if block["type"] == "text").strip()


def tokens_used(session: Session) -> int:
    """A guess at the context's size: four characters of conversation are one token."""
    with session.lock:
        chunks = [u for u in session.history if u["sessionUpdate"].endswith("_message_chunk")]
    contents = [chunk["content"] for chunk in chunks]
    return sum(len(content["text"]) for content in contents if content["type"] == "text") // 4


def play(turn: Turn) -> None:
    """Runs the prompt of a turn to its end."""
    text = prompt_text(turn.prompt)
    name, _, rest = text.partition(" ")
    if name in COMMANDS:
        COMMANDS[name][2](turn, rest.strip())
    elif name.startswith("/") and "/" not in name[1:]:
        _tell(turn, f"{name} is not a command of mine. /help lists them.")
    else:
        _answer(turn, text)


def _words(turn: Turn, text: str, message_id: str, kind: str = "agent_message_chunk") -> None:
    *words, last = text.split(" ")
    for word in [*(word + " " for word in words), last]:
        turn.say(word, message_id, kind)
        if turn.session.model == "demo-typing":
            turn.sleep(_TYPING_PAUSE)


def _tell(turn: Turn, text: str) -> None:
    turn.say(text, turn.message_id())


def _answer(turn: Turn, text: str) -> None:
    thought = turn.message_id()
    _words(turn, "The person wrote to me, so I answer.", thought, "agent_thought_chunk")
    if turn.session.verbose:
        more = " I have no model: I repeat the words, show a plan and write a file."
        _words(turn, more, thought, "agent_thought_chunk")
    message = turn.message_id()
    for block in turn.prompt:
        if block["type"] != "text":
            turn.say(_acknowledge(block) + "\n", message)
    if not text:
        return
    quote = text if len(text) <= QUOTE_LIMIT else f"{text[:QUOTE_LIMIT]}… ({len(text)} characters)"
    _words(turn, f"You wrote: {quote}\n", message)
    _plan(turn, 0)
    _plan(turn, 1)
    done = _write_file(turn, os.path.join(turn.session.cwd, FILE_NAME), text[:FILE_LIMIT] + "\n")
    _plan(turn, 2)
    _tell(turn, done)
    _plan(turn, 3)
    turn.update("usage_update", used=tokens_used(turn.session), size=CONTEXT_TOKENS)


def _acknowledge(block: dict[str, Any]) -> str:
    """One line about a block that is not text: what it is, its name and its size in bytes."""
    kind = block["type"]
    inner = block.get("resource") if kind == "resource" else block
    if not isinstance(inner, dict):
        return f"I got a {kind} without content."
    name = inner.get("name") or inner.get("uri") or "without a name"
    data = inner.get("data") or inner.get("blob")
    if isinstance(data, str):
        size = len(data) * 3 // 4 - data.count("=", -2)
    elif isinstance(inner.get("text"), str):
        size = len(inner["text"].encode(errors="replace"))
    else:
        size = inner.get("size") or 0
    return f"I got {kind} {name} ({inner.get('mimeType', 'no type')}, {size} bytes)."


def _plan(turn: Turn, done: int) -> None:
    steps = ("Repeat what the person wrote", f"Write {FILE_NAME}", "Sum up")
    entries = [
        {
            "content": step,
            "priority": "medium",
            "status": "completed" if i < done else "in_progress" if i == done else "pending",
        }
        for i, step in enumerate(steps)
    ]
    turn.update("plan", entries=entries)


def _inside(session: Session, path: str) -> bool:
    try:
        real = os.path.realpath(path)
    except ValueError:  # a null byte or a lone surrogate names no file
        return False
    roots = [os.path.realpath(root) for root in session.roots]
    return any(os.path.commonpath([root, real]) == root for root in roots)


def _old_text(session: Session, path: str) -> str | None:
    if not _inside(session, path):
        return None
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(FILE_LIMIT)
    except OSError:
        return None


def _write_file(turn: Turn, path: str, text: str) -> str:
    """The tool call that writes; gives one sentence on what became of it."""
    session = turn.session
    name = os.path.basename(path)
    if session.mode == "plan":
        return f"In plan mode I do not write {name}."
    title = f"Write {name}"
    diff = {"type": "diff", "path": path, "oldText": _old_text(session, path), "newText": text}
    call = turn.tool_started("edit", title, path, rawInput={"path": path})
    try:
        allowed = turn.may_write(call, title, path, diff)
        if allowed:
            turn.update("tool_call_update", toolCallId=call, status="in_progress")
            if turn.client_fs.get("writeTextFile") is True:
                turn.ask("fs/write_text_file", {"path": path, "content": text})
            elif _inside(session, path):
                with open(path, "w", encoding="utf-8", errors="replace") as file:
                    file.write(text)
            else:
                raise OSError(f"{path} is outside the session's directories")
    except (OSError, RpcError) as error:
        turn.tool_ended(call, "failed", _text_content(str(error)))
        return f"I could not write {name}: {error}"
    if not allowed:
        turn.tool_ended(call, "failed", _text_content("rejected by the person"))
        return f"You said no, so I did not write {name}."
    turn.tool_ended(call, "completed", diff)
    return f"I wrote {name}."


def _text_content(text: str) -> dict[str, Any]:
    return {"type": "content", "content": {"type": "text", "text": text}}


def _help(turn: Turn, rest: str) -> None:
    lines = [f"{name} {hint}".strip() + f": {text}" for name, (text, hint, _) in COMMANDS.items()]
    _tell(turn, "\n".join(lines))


def _plan_command(turn: Turn, rest: str) -> None:
    for done in range(4):
        _plan(turn, done)
    _tell(turn, "This was a plan.")


def _write(turn: Turn, rest: str) -> None:
    path, _, text = rest.partition(" ")
    if not path:
        _tell(turn, "Say which file: /write PATH [TEXT]")
    else:
        path = os.path.normpath(os.path.join(turn.session.cwd, path))
        _tell(turn, _write_file(turn, path, (text or "Written by the demo agent.") + "\n"))


def _read(turn: Turn, rest: str) -> None:
    if not rest:
        _tell(turn, "Say which file: /read PATH")
        return
    session = turn.session
    path = os.path.normpath(os.path.join(session.cwd, rest))
    call = turn.tool_started("read", f"Read {os.path.basename(path)}", path)
    try:
        if turn.client_fs.get("readTextFile") is True:
            result = turn.ask("fs/read_text_file", {"path": path})
            content = result.get("content") if isinstance(result, dict) else None
            if not isinstance(content, str):
                raise OSError("the client's answer has no content")
        elif _inside(session, path):
            with open(path, encoding="utf-8", errors="replace") as file:
                content = file.read()
        else:
            raise OSError(f"{path} is outside the session's directories")
    except (OSError, RpcError) as error:
        turn.tool_ended(call, "failed", _text_content(str(error)))
        _tell(turn, f"I could not read {rest}: {error}")
        return
    turn.tool_ended(call, "completed", _text_content(content))
    _tell(turn, content)


def _number(text: str, low: float, high: float) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if low <= value <= high else None


def _chunk_stream(turn: Turn, rest: str) -> None:
    count_text, _, size_text = rest.partition(" ")
    count = _number(count_text, 0, 10_000_000)
    size = _number(size_text or "200", 0, SIZE_LIMIT)
    if count is None or size is None:
        _tell(turn, "Say how many: /chunks N [SIZE], for example /chunks 100 200")
    else:
        turn.chunks(int(count), int(size))


def _size(turn: Turn, rest: str) -> None:
    size = _number(rest, 0, SIZE_LIMIT)
    if size is None:
        _tell(turn, f"Say how many bytes: /size BYTES, at most {SIZE_LIMIT}")
    else:
        _tell(turn, "x" * int(size))


def _sleep(turn: Turn, rest: str) -> None:
    seconds = _number(rest, 0, 86_400)
    if seconds is None:
        _tell(turn, "Say how long: /sleep SECONDS")
        return
    message = turn.message_id()
    start = time.monotonic()
    while (left := seconds - (time.monotonic() - start)) > 0:
        turn.say("tick ", message)
        turn.sleep(min(_TICK, left))
    turn.say(f"slept {seconds:g} s", message)


def _crash(turn: Turn, rest: str) -> None:
    _tell(turn, "Now I crash.")
    turn.crash()


def _session(turn: Turn, rest: str) -> None:
    session = turn.session
    facts = {
        "sessionId": session.id,
        "pid": os.getpid(),
        "cwd": session.cwd,
        "roots": session.roots,
        "mcpServers": [server["name"] for server in session.servers],
        "mode": session.mode,
        "model": session.model,
        "verbose": session.verbose,
    }
    _tell(turn, json.dumps(facts))


COMMANDS: dict[str, tuple[str, str, Callable[[Turn, str], None]]] = {
    "/help": ("lists the commands", "", _help),
    "/plan": ("shows a plan that progresses", "", _plan_command),
    "/write": ("writes a file after asking", "PATH [TEXT]", _write),
    "/read": ("reads a text file", "PATH", _read),
    "/chunks": ("streams N chunks, numbered from 000000, of SIZE bytes", "N [SIZE]", _chunk_stream),
    "/size": ("sends one chunk of so many bytes", "BYTES", _size),
    "/sleep": ("works so long, with a tick every 0.1 s", "SECONDS", _sleep),
    "/session": ("tells the session's directories and servers as JSON", "", _session),
    "/crash": ("ends the agent's process with status 70", "", _crash),
}


def available_commands() -> list[dict[str, Any]]:
    """The commands as ``available_commands_update`` has them: names without the slash."""
    return [
        {"name": name[1:], "description": text, **({"input": {"hint": hint}} if hint else {})}
        for name, (text, hint, _) in COMMANDS.items()
    ]
