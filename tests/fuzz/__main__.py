"""``python -m fuzz TARGET [--seconds N]``: search with coverage feedback (atheris), from the seeds.

Prints the executions. An input that breaks a rule of `fuzz.targets` is written to the seeds, so
that the tests run it from then on; the exit status is then not 0. Needs ``pip install atheris``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

SEEDS = Path(__file__).parent / "seeds"
sys.path.insert(0, str(Path(__file__).parents[2]))


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["acp_gateway"]):
        from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, help="directory for inputs that reach new code")
    asked = parser.parse_args()
    seeds = SEEDS / asked.target
    seeds.mkdir(parents=True, exist_ok=True)
    # What is interesting goes into the first directory.
    corpus = asked.corpus or Path(tempfile.mkdtemp(prefix="acp-fuzz-"))
    corpus.mkdir(parents=True, exist_ok=True)
    flags = [f"-max_total_time={asked.seconds}", "-print_final_stats=1", "-timeout=10"]
    flags += ["-rss_limit_mb=2048", "-verbosity=0", f"-artifact_prefix={seeds}/found-"]
    atheris.Setup([sys.argv[0], *flags, str(corpus), str(seeds)], TARGETS[asked.target])
    atheris.Fuzz()


main()
