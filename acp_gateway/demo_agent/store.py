"""Sessions of the demo agent, in memory and as files.

Each session has two files in the state directory: ``ID.json`` (what lists need) and
``ID.history`` (one ``session/update`` object per line, append only). Files are best effort: where
the directory cannot be written the sessions live as long as the process.
MCP servers and standing permissions are never stored: they may hold secrets, and a person should
be asked again by a new process.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time

from acp_gateway.demo_agent.link import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from acp_gateway.demo_agent.turn import Turn

MODES = (
    ("ask", "Ask", "Asks before it writes a file"),
    ("auto", "Auto", "Writes files without asking"),
    ("plan", "Plan", "Never writes a file"),
)
MODELS = (
    ("demo-fast", "Fast", "Answers at once"),
    ("demo-typing", "Typing", "Pauses between words, as a model does"),
)
_CHUNKS = ("agent_message_chunk", "agent_thought_chunk")
_HISTORY = (*_CHUNKS, "user_message_chunk", "tool_call", "tool_call_update", "plan")


class Session:
    """One conversation. ``lock`` orders history and live updates against a replay."""

    def __init__(self, session_id: str, cwd: str) -> None:
        self.id = session_id
        self.cwd = cwd
        self.additional: list[str] = []
        self.servers: list[dict[str, Any]] = []
        self.mode = MODES[0][0]
        self.model = MODELS[0][0]
        self.verbose = False
        self.title: str | None = None
        self.updated = time.time()
        self.allow_always = False
        self._history: list[dict[str, Any]] = []
        self._tail: list[str] = []
        self.stored = 0
        self.turn: Turn | None = None
        self.lock = threading.Lock()

    @property
    def roots(self) -> list[str]:
        return [self.cwd, *self.additional]

    def record(self, update: dict[str, Any]) -> None:
        """Adds an update to the history; chunks of one message become one entry."""
        kind = update["sessionUpdate"]
        if kind not in _HISTORY:
            return
        if kind in _CHUNKS and self._tail:
            last = self._history[-1]
            if last["sessionUpdate"] == kind and last["messageId"] == update["messageId"]:
                self._tail.append(update["content"]["text"])
                return
        self._join_tail()
        if kind in _CHUNKS:
            self._tail.append(update["content"]["text"])
            update = {**update, "content": dict(update["content"])}
        self._history.append(update)

    def _join_tail(self) -> None:
        # Texts are joined once, not chunk by chunk: a stream must not cost quadratic time.
        if self._tail:
            self._history[-1]["content"]["text"] = "".join(self._tail)
            self._tail = []

    @property
    def history(self) -> list[dict[str, Any]]:
        """The entries, oldest first; none of them changes later."""
        self._join_tail()
        return self._history

    def info(self) -> dict[str, Any]:
        """The ``SessionInfo`` of ``session/list``."""
        return {
            "sessionId": self.id,
            "cwd": self.cwd,
            "additionalDirectories": self.additional,
            "title": self.title,
            "updatedAt": iso_time(self.updated),
        }

    def modes(self) -> dict[str, Any]:
        return {
            "currentModeId": self.mode,
            "availableModes": [{"id": i, "name": n, "description": d} for i, n, d in MODES],
        }

    def models(self) -> dict[str, Any]:
        return {
            "currentModelId": self.model,
            "availableModels": [{"modelId": i, "name": n, "description": d} for i, n, d in MODELS],
        }

    def config_options(self, boolean: bool) -> list[dict[str, Any]]:
        """The complete list; boolean options only for clients that know them."""
        options: list[dict[str, Any]] = [
            {
                "id": option,
                "name": option.capitalize(),
                "category": option,
                "type": "select",
                "currentValue": current,
                "options": [{"value": i, "name": n, "description": d} for i, n, d in values],
            }
            for option, current, values in (
                ("mode", self.mode, MODES),
                ("model", self.model, MODELS),
            )
        ]
        if boolean:
            options.append(
                {
                    "id": "verbose",
                    "name": "Verbose",
                    "description": "Think aloud in more words",
                    "type": "boolean",
                    "currentValue": self.verbose,
                }
            )
        return options


def iso_time(seconds: float) -> str:
    """UTC in ISO 8601 with milliseconds."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{stamp}.{int(seconds % 1 * 1000):03d}Z"


def state_directory() -> str:
    """``ACP_DEMO_HOME``, else ``acp-gateway/demo`` in the user's state directory."""
    if home := os.environ.get("ACP_DEMO_HOME"):
        return os.path.abspath(home)
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "acp-gateway", "demo")


def _is_id(session_id: str) -> bool:
    # Ids become file names: what we never make cannot name a file.
    return session_id.isascii() and session_id.isalnum()


class Store:
    """The files of all sessions, also of other processes."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._warned = False

    def _path(self, session_id: str, kind: str) -> str:
        return os.path.join(self._directory, f"{session_id}.{kind}")

    def save(self, session: Session) -> None:
        """Writes what changed since the last save."""
        with session.lock:
            new = session.history[session.stored :]
            session.stored = len(session.history)
            try:
                self._write(session, new)
            except OSError as error:
                if not self._warned:
                    self._warned = True
                    log(f"sessions are not kept: {error}")

    def _write(self, session: Session, new: list[dict[str, Any]]) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        if new:
            # The line end comes first: what a killed process left of a line stays one bad line.
            lines = "".join("\n" + json.dumps(update) for update in new)
            with open(self._path(session.id, "history"), "a", opener=_private) as file:
                file.write(lines)
        meta = {
            **session.info(),
            "updatedAt": session.updated,
            "mode": session.mode,
            "model": session.model,
            "verbose": session.verbose,
        }
        path = self._path(session.id, "json")
        with open(f"{path}.{os.getpid()}", "w", opener=_private) as file:
            json.dump(meta, file)
        os.replace(f"{path}.{os.getpid()}", path)

    def read_meta(self, session_id: str) -> Session | None:
        """The session without its history; None when there is no readable one."""
        if not _is_id(session_id):
            return None
        try:
            with open(self._path(session_id, "json")) as file:
                meta = json.load(file)
            session = Session(session_id, meta["cwd"])
            session.additional = meta["additionalDirectories"]
            session.title = meta["title"]
            session.updated = meta["updatedAt"]
            session.mode = meta["mode"]
            session.model = meta["model"]
            session.verbose = meta["verbose"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return session

    def load(self, session_id: str) -> Session | None:
        """The whole session from its files."""
        session = self.read_meta(session_id)
        if session is not None:
            try:
                with open(self._path(session_id, "history")) as file:
                    for line in filter(str.strip, file):
                        try:
                            update = json.loads(line)
                            session.record(update)
                        except (ValueError, TypeError, KeyError):
                            log(f"a broken line in the history of {session_id} is skipped")
            except OSError:
                pass
            session.stored = len(session.history)
        return session

    def delete(self, session_id: str) -> None:
        """Removes the files; none is no error."""
        if _is_id(session_id):
            for kind in ("json", "history"):
                with contextlib.suppress(OSError):
                    os.unlink(self._path(session_id, kind))

    def ids(self) -> list[str]:
        try:
            names = os.listdir(self._directory)
        except OSError:
            return []
        return [name[:-5] for name in names if name.endswith(".json")]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
