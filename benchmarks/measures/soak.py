"""A long run with clients, sessions and agents that come and go: what grows, and what stays behind.

A few sessions stream all the time. Beside them one thing after the other happens at random (always
the same, given the time): clients attach, read or do not, vanish with or without a close; sessions
are made, left and closed; agents are killed. At the end everything is closed, and the daemon must
have no more tasks, file descriptors, threads and children than before.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.client import BenchmarkError, Link, prompt, round_trip, run_turn
from benchmarks.measures.common import CHUNK, Figures, Measure, Sizes
from benchmarks.peers import STUB, Peer, started
from benchmarks.peers_real import Transient
from benchmarks.processes import MIB, PROC, descendants, rss_mib

STREAMS = 3
TURN = 5000
"""Chunks of a turn."""
PAUSE = 0.3
"""Seconds between the turns of a session."""
TURNS = 20
"""Turns of a session until the next one takes its place; the first session stays."""
STEP = 0.1
READING = 5.0
STALLED = 15.0
"""Longest that a client stays that reads, and one that does not."""
SETTLE = 12.0
"""Seconds until idle threads have ended."""
BACK = 60.0
"""Longest until all is as before."""
SEED = 1


def _counts(server: Peer) -> dict[str, int]:
    """What may not grow, by name."""
    proc = PROC / str(server.pid)
    counts = {
        "fds": len(list((proc / "fd").iterdir())),
        "threads": len(list((proc / "task").iterdir())),
        "children": len(descendants(server.pid)),
    }
    daemon = json.loads(_ask(server, "GET", "/daemon/status"))
    return {**counts, "tasks": daemon["runtime"]["process"]["tasks"]}


def _ask(server: Peer, method: str, path: str) -> bytes:
    headers = {"Accept": "application/json", "Connection": "close"}
    request = urllib.request.Request(server.url("http", path), method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        body: bytes = answer.read()
        return body


def _status(server: Peer) -> dict[str, Any]:
    status = json.loads(_ask(server, "GET", "/status"))
    assert isinstance(status, dict)
    return status


def _slope(samples: list[tuple[float, float]]) -> float:
    """MB a minute: least squares over the second half of (seconds, MiB)."""
    half = samples[len(samples) // 2 :]
    n = len(half)
    mean_t = sum(t for t, _ in half) / n
    mean_y = sum(y for _, y in half) / n
    spread = sum((t - mean_t) ** 2 for t, _ in half)
    return sum((t - mean_t) * (y - mean_y) for t, y in half) / spread * 60 * MIB / 1e6


@dataclass
class Churn:
    """Everything that happens to the server meanwhile."""

    server: Peer
    stop: threading.Event = field(default_factory=threading.Event)
    done: Counter[str] = field(default_factory=Counter)
    streaming: dict[int, str] = field(default_factory=dict)
    """The session of each stream."""
    held: list[tuple[float, Link, bool]] = field(default_factory=list)
    """Clients that are there until a time, and whether they read."""
    random: random.Random = field(default_factory=lambda: random.Random(SEED))

    def stream(self, number: int) -> None:
        """Turns of one session after the other, in a thread of its own."""
        while not self.stop.is_set():
            try:
                with closing(self.server.connect()) as link:
                    session_id = self.server.open_session(link)
                    self.streaming[number] = session_id
                    turns = 0
                    while not self.stop.is_set() and (turns < TURNS or number == 0):
                        turn = run_turn(link, session_id, TURN, CHUNK)
                        self.done["chunks"] += turn.chunks - turn.lost
                        self.done["late"] += turn.late
                        turns += 1
                        self.stop.wait(PAUSE)
                    round_trip(link, "session/close", {"sessionId": session_id})
            except (BenchmarkError, OSError):
                self.done["streams broken"] += 1
                self.stop.wait(1)

    def step(self) -> None:
        """One thing more; and those who read do so."""
        actions: dict[Callable[[], None], int] = {
            self.watch: 6,
            self.stall: 2,
            self.events: 6,
            self.over_http: 3,
            self.greet: 4,
            self.vanish: 2,
            self.open_and_close: 2,
            self.kill: 1,
        }
        (action,) = self.random.choices(list(actions), list(actions.values()))
        try:
            action()
            self.done[action.__name__] += 1
        except (BenchmarkError, OSError):
            self.done["refused"] += 1
        self.release(time.monotonic())

    def release(self, now: float) -> None:
        """Read what came for those who read; close those whose time is over."""
        for entry in list(self.held):
            until, link, reads = entry
            stays = now < until
            if reads and stays:
                try:
                    link.read(0.001)
                except (BenchmarkError, OSError):  # its session ended
                    stays = False
            if not stays:
                self.held.remove(entry)
                link.close()

    def _hold(self, link: Link, reads: bool) -> None:
        """Let it follow one of the streams for a while."""
        try:
            if not self.streaming:
                raise BenchmarkError("no session yet")
            self.server.join(link, self.random.choice(list(self.streaming.values())))
        except (BenchmarkError, OSError):
            link.close()
            raise
        stays = self.random.uniform(0, READING if reads else STALLED)
        self.held.append((time.monotonic() + stays, link, reads))

    def watch(self) -> None:
        self._hold(self.server.connect(), True)

    def stall(self) -> None:
        """A client that never reads: it is cut loose when it is too far behind."""
        self._hold(self.server.connect(), False)

    def events(self) -> None:
        self._hold(self.server.connect("events"), True)

    def over_http(self) -> None:
        """Streamable HTTP; the connection is never deleted."""
        self.server.connect("http").close()

    def greet(self) -> None:
        self.server.connect().close()

    def vanish(self) -> None:
        """A client is gone in the middle of its turn."""
        with closing(self.server.connect()) as link:
            session_id = self.server.open_session(link)
            link.request("session/prompt", prompt(session_id, f"stream {TURN} {CHUNK}"))

    def open_and_close(self) -> None:
        with closing(self.server.connect()) as link:
            session_id = self.server.open_session(link)
            run_turn(link, session_id, 1, CHUNK)
            round_trip(link, "session/close", {"sessionId": session_id})

    def kill(self) -> None:
        agents = []
        for pid in descendants(self.server.pid):
            with suppress(OSError):
                if str(STUB).encode() in (PROC / str(pid) / "cmdline").read_bytes():
                    agents.append(pid)
        if agents:
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(sorted(agents)), signal.SIGKILL)


def _close_all(server: Peer) -> None:
    for session in _status(server)["sessions"]:
        with suppress(OSError):  # it may be gone by now
            _ask(server, "DELETE", f"/session/{session['sessionId']}")


def soak(peer: Peer, sizes: Sizes) -> Figures:
    """See the module."""
    with started(Transient) as server:
        churn = Churn(server)
        for action in (churn.open_and_close, churn.over_http):
            action()
        churn.release(float("inf"))
        time.sleep(SETTLE)
        _close_all(server)
        before = _counts(server)
        streams = [threading.Thread(target=churn.stream, args=(n,)) for n in range(STREAMS)]
        for thread in streams:
            thread.start()
        samples: list[tuple[float, float]] = []
        began = time.monotonic()
        try:
            while (now := time.monotonic() - began) < sizes.soak:
                if not samples or now - samples[-1][0] > 1:
                    samples.append((now, rss_mib(server.pid)))
                churn.step()
                time.sleep(STEP)
        finally:
            churn.stop.set()
            for thread in streams:
                thread.join()
            churn.release(float("inf"))
        _close_all(server)
        limit = time.monotonic() + BACK
        while time.monotonic() < limit:
            grown = {name: count - before[name] for name, count in _counts(server).items()}
            if max(grown.values()) <= 0:
                break
            time.sleep(1)
    figures: Figures = {
        "rss MB/min": _slope(samples),
        "rss at the end MiB": samples[-1][1],
        **{f"{name} left": count for name, count in grown.items()},
        "left behind": sum(max(0, count) for count in grown.values()),
    }
    return figures | {name: churn.done[name] for name in sorted(churn.done)}


MEASURES: Mapping[str, Measure] = {"soak": soak}
PEERS = {"soak": frozenset({"gateway"})}
"""Which peers take part in a measurement."""
