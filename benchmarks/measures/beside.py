"""What one session feels of another one that is busy."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from statistics import median

from benchmarks.client import SILENCE, BenchmarkError, Link, prompt, round_trip, run_turn
from benchmarks.measures.common import CHUNK, FLOOD, Figures, Measure, Sizes, percentile
from benchmarks.peers import Peer

LINE = 50 * 1024 * 1024
"""Characters of text in a line of the agent."""
LINES = 8
"""At least so many pass."""
LINES_LIMIT = 10.0
"""Seconds after which fewer samples must do."""
PAUSE = 0.001
"""Between two samples; without it the load gets what the scheduler leaves."""
EVERY = 0.004
"""Seconds from one turn to the next beside long lines."""


@contextmanager
def _busy(link: Link, session_id: str, work: Callable[..., None], *args: object) -> Iterator[None]:
    """A session that a process of its own keeps busy, so that it cannot slow the samples.

    Raises `BenchmarkError` when that process gave up.
    """
    process = multiprocessing.get_context("fork").Process(
        target=work, args=(link, session_id, *args), daemon=True
    )
    process.start()
    try:
        yield
        if not process.is_alive():
            raise BenchmarkError("the busy session broke off")
    finally:
        with suppress(OSError):
            link.notify("session/cancel", {"sessionId": session_id})
        process.terminate()
        process.join()


def _flood(link: Link, session_id: str) -> None:
    link.request("session/prompt", prompt(session_id, f"stream {FLOOD} {CHUNK}"))
    while link.read(SILENCE):
        pass


def _lines(link: Link, session_id: str, kind: str, passed: Synchronized[int]) -> None:
    while not run_turn(link, session_id, 1, LINE, how=kind).lost:
        passed.value += 1


def flood(peer: Peer, sizes: Sizes) -> Figures:
    """Small requests, and turns of one chunk in another session, beside a flood.

    The small request is one that the server itself refuses (no such method).
    """
    with ExitStack() as stack:
        small, other, flooded = (stack.enter_context(closing(peer.connect())) for _ in range(3))
        session_id, flooding = peer.open_session(other), peer.open_session(flooded)
        run_turn(other, session_id, 1, CHUNK)
        run_turn(flooded, flooding, 2000, CHUNK)

        def sample(count: int) -> list[float]:
            times = []
            for _ in range(count):
                times.append(round_trip(small, "no/such/method", {}) * 1e3)
                time.sleep(PAUSE)
            return times

        idle_times = sample(sizes.samples // 2)
        with _busy(flooded, flooding, _flood):
            time.sleep(0.3)
            beside = sample(sizes.samples)
            turns = [run_turn(other, session_id, 1, CHUNK) for _ in range(sizes.turns // 2)]
        ends = [each.end * 1e3 for each in turns]
        return {
            "request idle p50 ms": median(idle_times),
            "request p50 ms": median(beside),
            "request p99 ms": percentile(beside, 0.99),
            "turn p50 ms": median(ends),
            "turn p99 ms": percentile(ends, 0.99),
        }


def _beside_lines(peer: Peer, sizes: Sizes, kind: str) -> Figures:
    """Turns of one chunk, alone and then while lines of 50 MiB pass in another session.

    One begins each `EVERY` seconds. Those that a slow one kept from beginning count as well, with
    what they would have waited, so that a stall weighs as long as it lasts.
    """
    passed: Synchronized[int] = multiprocessing.get_context("fork").Value("q", 0)
    with closing(peer.connect()) as small, closing(peer.connect(room=1)) as big:
        session_id, busy = peer.open_session(small), peer.open_session(big)
        run_turn(big, busy, 1, LINE, how=kind)

        def sample(enough: Callable[[int], bool]) -> list[float]:
            times: list[float] = []
            while not enough(len(times)):
                began = time.perf_counter()
                run_turn(small, session_id, 1, CHUNK)
                waited = time.perf_counter() - began
                time.sleep(max(0.0, EVERY - waited))
                times.append(waited * 1e3)
                while (waited := waited - EVERY) > 0:
                    times.append(waited * 1e3)
            return times

        def enough(samples: int) -> bool:
            late = time.monotonic() - began > LINES_LIMIT
            return passed.value >= LINES and (samples >= sizes.samples or late)

        sample(lambda samples: samples >= 20)
        alone = sample(lambda samples: samples >= sizes.samples)
        with _busy(big, busy, _lines, kind, passed):
            began = time.monotonic()
            beside = sample(enough)
            took = time.monotonic() - began
        p99 = percentile(alone, 0.99)
        return {
            "turn alone p50 ms": median(alone),
            "turn alone p99 ms": p99,
            "turn p50 ms": median(beside),
            "turn p99 ms": percentile(beside, 0.99),
            "turn worst ms": max(beside),
            "p99 times": percentile(beside, 0.99) / p99,
            "samples": len(beside),
            "lines": passed.value,
            "lines/s": passed.value / took,
        }


MEASURES: Mapping[str, Measure] = {
    "flood": flood,
    "beside_text": partial(_beside_lines, kind="stream"),
    "beside_tool": partial(_beside_lines, kind="tool"),
}
