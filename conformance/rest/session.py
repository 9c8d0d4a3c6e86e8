"""One session as a REST client sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from conformance.outcome import Failure, brief, check
from conformance.rest.answer import Answer
from conformance.rest.events import EventStream, Frame

if TYPE_CHECKING:
    from conformance.rest.api import Api

ME: Any = object()
"""The client id that the session was made with."""


@dataclass(frozen=True)
class Question:
    """An open permission request and the file that is written when it is allowed."""

    session: Session
    stream: EventStream
    prompt_id: str
    frame: Frame
    file: Path

    @property
    def id(self) -> str:
        return str(self.frame.data["requestId"])

    def option(self, kind: str) -> str:
        """The id of the first option of this kind."""
        for entry in self.frame.data["options"]:
            if entry.get("kind") == kind:
                return str(entry["optionId"])
        raise Failure(f"no option of kind {kind}: {brief(self.frame.data)}")

    async def vote(self, outcome: Any, *, client: Any = ME, **extra: Any) -> Answer:
        body = {"outcome": outcome, **extra}
        return await self.session.post(f"permission/{self.id}", body, client=client)

    async def choose(self, kind: str, *, client: Any = ME) -> Answer:
        return await self.vote(selected(self.option(kind)), client=client)

    async def settle(self) -> Frame:
        """Refuse the tool and wait for the end of the turn."""
        (await self.vote(CANCELLED)).ok()
        return await self.stream.turn_end(self.prompt_id)


CANCELLED = {"outcome": "cancelled"}


def selected(option: str) -> dict[str, str]:
    return {"outcome": "selected", "optionId": option}


class Session:
    def __init__(self, api: Api, id: str, client: str) -> None:
        self.api = api
        self.id = id
        self.client = client

    def path(self, tail: str = "") -> str:
        return f"/session/{self.id}" + (f"/{tail}" if tail else "")

    async def get(self, tail: str, *, client: str | None = None) -> Answer:
        return await self.api.call("GET", self.path(tail), client=client)

    async def post(self, tail: str, body: Any = None, *, client: Any = ME) -> Answer:
        """``client`` None is an anonymous caller."""
        who = self.client if client is ME else client
        return await self.api.call("POST", self.path(tail), body or {}, client=who)

    async def delete(self, tail: str = "", *, client: Any = ME) -> Answer:
        who = self.client if client is ME else client
        return await self.api.call("DELETE", self.path(tail), client=who)

    async def rename(self, name: Any, *, client: Any = ME) -> Answer:
        who = self.client if client is ME else client
        body = {"displayName": name}
        return await self.api.call("PATCH", self.path("metadata"), body, client=who)

    async def attach(self) -> str:
        """The client id of one more client."""
        joined = (await self.post("resume", {"cwd": str(self.api.cwd)}, client=None)).ok()
        client = joined.get("clientId")
        if not isinstance(client, str):
            raise Failure(f"resume gave no clientId: {brief(joined)}")
        return client

    async def load(self, *, client: str | None = None, **body: Any) -> dict[str, Any]:
        body = {"cwd": str(self.api.cwd), **body}
        return (await self.post("load", body, client=client)).ok()

    # --- events

    async def subscribe(self, query: str = "", **options: Any) -> EventStream:
        """An event stream, which may be refused; ``options`` as of `Api.stream`."""
        return await self.api.stream(self.path("events") + query, **options)

    async def events(self, query: str = "", **options: Any) -> EventStream:
        """An open event stream with its first bytes read."""
        stream = await self.subscribe(query, **options)
        check(stream.answer.status == 200, str(stream.answer))
        await stream.first_block()
        return stream

    async def fence(self, stream: EventStream) -> int:
        """Publish an event and wait for it: what came before it is in the stream's frames.
        Its index."""
        name = f"fence {uuid4().hex[:8]}"
        (await self.rename(name)).ok()
        return await stream.index("session_metadata_updated", displayName=name)

    # --- prompts

    async def send(
        self,
        text: str,
        *,
        client: Any = ME,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> Answer:
        body = {"prompt": [{"type": "text", "text": text}], **more}
        who = self.client if client is ME else client
        return await self.api.call("POST", self.path("prompt"), body, client=who, headers=headers)

    async def prompt(self, text: str, *, client: Any = ME, **more: Any) -> str:
        """The promptId of an accepted prompt."""
        body = (await self.send(text, client=client, **more)).ok(202)
        return str(body.get("promptId"))

    async def turn(self, stream: EventStream, text: str | None = None) -> str:
        """A whole turn, which must end in end_turn; its promptId."""
        prompt = await self.prompt(text or self.api.words.say)
        await stream.completed(prompt)
        return prompt

    async def running(self, stream: EventStream, *, client: Any = ME) -> str:
        """A turn that has begun to speak and goes on until it is cancelled; its promptId."""
        prompt = await self.prompt(self.api.words.work, client=client)
        await stream.find(
            lambda f: f.kind.endswith("agent_message_chunk") and f.prompt_id == prompt
        )
        return prompt

    async def question(self, stream: EventStream, *, client: Any = ME) -> Question:
        """A turn that waits for a permission."""
        text, file = self.api.words.ask(self.api.cwd)
        after = len(stream.frames)
        prompt = await self.prompt(text, client=client)
        frame = await stream.expect("permission_request", after=after)
        return Question(self, stream, prompt, frame, file)
