"""What to say to an agent so that it does what a case needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4


@dataclass(frozen=True)
class Words:
    """``work`` keeps it busy until it is cancelled, and it says something at once; ``chunks`` makes
    it say 000000 and so on up to the last of ``{n}`` numbers."""

    work: str
    chunks: str
    write: str

    @property
    def say(self) -> str:
        """A short answer and no question."""
        return self.many(3)

    def many(self, count: int) -> str:
        return self.chunks.format(n=count)

    def ask(self, directory: Path) -> tuple[str, Path]:
        """Words that make it ask once whether it may write a new file, and that file."""
        path = directory / f"asked-{uuid4().hex[:8]}.txt"
        return self.write.format(path=path), path


WORDS = {
    "demo": Words("/sleep 60", "/chunks {n} 20", "/write {path} text"),
    # The words of tests/fake_model.py, which is the model of the agent behind the server.
    "fake-model": Words("SLOW", "CHUNKS {n}", "WRITE {path}"),
}


def says_all(text: str, count: int) -> bool:
    """The answer to `Words.many` is whole and in order."""
    places = [text.find(f"{n:06d}") for n in range(count)]
    return -1 not in places and places == sorted(places)
