"""One open event stream, read as strictly as the format allows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx2
import trio

from conformance.outcome import Failure, LinkClosed, brief, check
from conformance.rest.answer import Answer

SYNTHETIC = (
    "state_resync_required",
    "replay_complete",
    "session_snapshot",
    "slow_client_warning",
    "client_evicted",
    "stream_error",
    "history_truncated",
)
"""Frames that speak to one subscriber; they have no id."""
ENDS = ("turn_complete", "turn_error")
OPEN_TIMEOUT = 15.0


@dataclass(frozen=True)
class Frame:
    """One event. ``block`` is its text without the blank line; ``id`` and ``event`` are its lines,
    ``envelope`` the JSON of its data line."""

    block: str
    id: str | None
    event: str | None
    envelope: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.envelope.get("type"))

    @property
    def number(self) -> int | None:
        return self.envelope.get("id")

    @property
    def data(self) -> dict[str, Any]:
        data = self.envelope.get("data")
        return data if isinstance(data, dict) else {}

    @property
    def update(self) -> dict[str, Any]:
        """The ACP update of a session_update, {} for another event."""
        update = self.data.get("update")
        return update if self.type == "session_update" and isinstance(update, dict) else {}

    @property
    def kind(self) -> str:
        """The type, and for a session_update its kind, to show an order in one line."""
        kind = self.update.get("sessionUpdate")
        return f"{self.type}/{kind}" if kind else self.type

    @property
    def prompt_id(self) -> Any:
        return self.data.get("promptId") or self.envelope.get("promptId")


Wanted = Callable[[Frame], bool]


class EventStream:
    """Keeps every frame in `frames`; cases look back in it and never race the reader."""

    def __init__(self, client: httpx2.AsyncClient, path: str, headers: dict[str, str]) -> None:
        self._client = client
        self._path = path
        self._request_headers = headers
        self._scope = trio.CancelScope()
        self._pulse = trio.Event()
        self._rest = ""
        self.answer: Answer
        self.blocks: list[str] = []
        """Every block as it came, comments and retry too, without the blank line behind it."""
        self.frames: list[Frame] = []
        self.over = False

    @property
    def headers(self) -> httpx2.Headers:
        return self.answer.headers

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read until the end; started when the head (of a refusal also the body) is here."""
        what = f"GET {self._path}"
        headers = {"Accept": "text/event-stream", **self._request_headers}
        begun = False
        try:
            with self._scope:
                async with self._client.stream("GET", self._path, headers=headers) as response:
                    text = ""
                    if response.status_code != 200:
                        text = (await response.aread()).decode("utf-8", "replace")
                    self.answer = Answer(what, response.status_code, response.headers, text)
                    begun = True
                    task_status.started()
                    if response.status_code == 200:
                        async for chunk in response.aiter_raw():
                            self._feed(chunk.decode("utf-8"))
        except httpx2.HTTPError as error:
            if not begun:
                raise Failure(f"{what}: {error!r}") from None
        finally:
            self.over = True
            self._wake()

    def _feed(self, text: str) -> None:
        *blocks, self._rest = (self._rest + text).split("\n\n")
        for block in blocks:
            self.blocks.append(block)
            frame = _frame(block)
            if frame is not None:
                self.frames.append(frame)
        self._wake()

    def _wake(self) -> None:
        self._pulse.set()
        self._pulse = trio.Event()

    def close(self) -> None:
        """Hang up without a word."""
        self._scope.cancel()

    # --- waiting

    async def find(self, wanted: Wanted, *, after: int = 0) -> int:
        """Index in `frames` of the first wanted one at or after ``after``; waits for it."""
        index = after
        while True:
            while index < len(self.frames):
                if wanted(self.frames[index]):
                    return index
                index += 1
            if self.over:
                raise LinkClosed(f"the stream ended after {self.order()[-6:]}")
            await self._pulse.wait()

    async def expect(self, kind: str, *, after: int = 0, **data: Any) -> Frame:
        """The first event of this type (or type/kind) whose data has these members."""
        return self.frames[await self.index(kind, after=after, **data)]

    async def index(self, kind: str, *, after: int = 0, **data: Any) -> int:
        """Where in `frames` that event is."""
        return await self.find(
            lambda frame: (
                kind in (frame.type, frame.kind)
                and all(frame.data.get(name) == value for name, value in data.items())
            ),
            after=after,
        )

    async def turn_end(self, prompt_id: str, *, after: int = 0) -> Frame:
        """The end of this prompt's turn, whichever it is."""
        return self.frames[
            await self.find(
                lambda f: f.type in ENDS and f.data.get("promptId") == prompt_id, after=after
            )
        ]

    async def completed(self, prompt_id: str, reason: str = "end_turn") -> Frame:
        """The end of this turn, which must be turn_complete with this stop reason."""
        frame = await self.turn_end(prompt_id)
        seen = (frame.type, frame.data.get("stopReason"))
        check(seen == ("turn_complete", reason), f"the turn ended with {brief(frame.envelope)}")
        return frame

    async def first_block(self) -> str:
        while not self.blocks:
            check(not self.over, "the stream ended before its first block")
            await self._pulse.wait()
        return self.blocks[0]

    async def ended(self) -> None:
        """Wait until the server ended the stream."""
        while not self.over:
            await self._pulse.wait()

    async def comment(self) -> str:
        """The first comment; waits for it."""
        while True:
            for block in self.blocks:
                if block.startswith(":"):
                    return block
            check(not self.over, "the stream ended before a comment")
            await self._pulse.wait()

    # --- looking back

    def order(self, after: int = 0) -> list[str]:
        return [frame.kind for frame in self.frames[after:]]

    def numbers(self) -> list[int]:
        return [frame.number for frame in self.frames if frame.number is not None]

    def of(self, *types: str) -> list[Frame]:
        return [frame for frame in self.frames if frame.type in types or frame.kind in types]

    def turn(self, prompt_id: str) -> list[Frame]:
        """The frames that belong to one prompt."""
        return [frame for frame in self.frames if frame.prompt_id == prompt_id]


def _frame(block: str) -> Frame | None:
    lines = [line for line in block.split("\n") if not line.startswith(":")]
    fields = dict(line.partition(": ")[::2] for line in lines)
    if "data" not in fields:
        return None
    try:
        envelope = json.loads(fields["data"])
    except ValueError:
        raise Failure(f"a frame without JSON: {brief(block)}") from None
    check(isinstance(envelope, dict), f"a frame without an object: {brief(block)}")
    return Frame(block, fields.get("id"), fields.get("event"), envelope)


def agent_text(frames: Iterable[Frame]) -> str:
    """The agent's message chunks, joined."""
    return "".join(
        str(frame.update["content"].get("text", ""))
        for frame in frames
        if frame.update.get("sessionUpdate") == "agent_message_chunk"
    )


def ascending(numbers: list[int]) -> bool:
    """Consecutive, each once."""
    return not numbers or numbers == list(range(numbers[0], numbers[0] + len(numbers)))
