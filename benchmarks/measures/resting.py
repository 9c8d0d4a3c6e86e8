"""A server at rest: its start, its idle cost, and what ``--help`` imports."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping

from benchmarks.measures.common import HEAVY_IMPORTS, SETTLE, Figures, Measure, Sizes
from benchmarks.peers import ROOT, Peer
from benchmarks.processes import cpu_seconds, descendants, rss_mib


def start(peer: Peer, sizes: Sizes) -> Figures:
    """Times that `Peer.start` took."""
    return {
        "listening ms": peer.listening * 1e3,
        "health 200 ms": peer.healthy * 1e3,
        "initialize answered ms": peer.greeted * 1e3,
    }


def idle(peer: Peer, sizes: Sizes) -> Figures:
    """A server at rest after its start, its agents apart; and the CPU time that rest costs."""
    time.sleep(SETTLE)
    began, used = time.perf_counter(), cpu_seconds(peer.pid)
    time.sleep(1)
    used = (cpu_seconds(peer.pid) - used) / (time.perf_counter() - began)
    return {
        "rss MiB": rss_mib(peer.pid),
        "rss of children MiB": sum(map(rss_mib, descendants(peer.pid))),
        "cpu ms/s": used * 1e3,
    }


def help_imports() -> Figures:
    """``acp-gateway --help``: its time, and how many of the heavy libraries it imports."""
    code = (
        "import sys, atexit\n"
        f"heavy = {HEAVY_IMPORTS!r}\n"
        "atexit.register(lambda: print(*[n for n in heavy if n in sys.modules], file=sys.stderr))\n"
        "sys.argv[1:] = ['--help']\n"
        "from acp_gateway.cli import main\n"
        "main()\n"
    )
    argv = [sys.executable, "-m", "acp_gateway", "--help"]
    began = time.perf_counter()
    subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - began
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, check=True, text=True, capture_output=True)
    return {"ms": took * 1e3, "heavy imports": len(done.stderr.split())}


MEASURES: Mapping[str, Measure] = {"start": start, "idle": idle}
