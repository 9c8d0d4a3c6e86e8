"""An agent that writes files through its client without end: ``python writing_agent.py``.

A prompt is JSON: {"paths": […], "size": bytes, "until": path, "report": path}. It sends
``fs/write_text_file`` for the paths in turns, several at once, until the file ``until`` is there.
Then the file ``report`` gets {"good": number, "refused": {errorKind: number}}.

Each content is `content`: its length and hash stand in its first line.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "agents"))

from base import Agent, prompt_text

AT_ONCE = 4


def content(word: str, size: int) -> str:
    """A text of its own, which tells whether it is whole."""
    body = (word + ".") * (size // (len(word) + 1) + 1)
    return f"{len(body)} {hashlib.sha256(body.encode()).hexdigest()}\n{body}"


def is_whole(text: str) -> bool:
    head, _, body = text.partition("\n")
    return head == f"{len(body)} {hashlib.sha256(body.encode()).hexdigest()}"


class Writing(Agent):
    def on_prompt(self, params: dict[str, Any]) -> dict[str, Any]:
        wanted = json.loads(prompt_text(params))
        good, refused = 0, {}
        number = waiting = 0
        while True:
            over = os.path.exists(wanted["until"])
            while not over and waiting < AT_ONCE:
                number += 1
                waiting += 1
                self.send(
                    id=number,
                    method="fs/write_text_file",
                    params={
                        "sessionId": params["sessionId"],
                        "path": wanted["paths"][number % len(wanted["paths"])],
                        "content": content(f"agent-{os.getpid()}-{number}", wanted["size"]),
                    },
                )
            if not waiting:
                break
            message = self.read()
            if message is None:
                sys.exit(0)
            if "method" in message:
                self.handle(message)
                continue
            waiting -= 1
            if "error" in message:
                word = message["error"].get("data", {}).get("errorKind", "none")
                refused[word] = refused.get(word, 0) + 1
            else:
                good += 1
        Path(wanted["report"]).write_text(json.dumps({"good": good, "refused": refused}))
        return {"stopReason": "end_turn"}


if __name__ == "__main__":
    Writing().run()
