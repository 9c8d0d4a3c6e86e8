"""Whether the figures of a run reach the bars.

The median of the rounds must; the worst round may miss it by a fifth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.bars import OWN, Bar, Demand
from benchmarks.report import Results, markdown, short, values

WORST = 0.8


@dataclass(frozen=True)
class Verdict:
    bar: Bar
    demand: Demand
    """The alternative that counts."""
    figures: Sequence[float]
    """Of each round in which all that it takes was measured."""
    failed: int = 0
    """Rounds in which the gateway's own measurement broke off."""

    @property
    def limit(self) -> float:
        limit = self.demand.at_most if self.demand.at_least is None else self.demand.at_least
        assert limit is not None
        return limit

    @property
    def median(self) -> float:
        return median(self.figures)

    @property
    def worst(self) -> float:
        return min(self.figures) if self.demand.at_least is not None else max(self.figures)

    @property
    def share(self) -> float:
        """How far the demand is met: 1 is just."""
        if not self.figures:
            return 0.0
        if self.demand.at_least is not None:
            return min(self.median, self.worst / WORST) / self.limit
        reached = max(self.median, self.worst * WORST)
        return self.limit / reached if reached > 0 else 1.0

    @property
    def ok(self) -> bool:
        return self.share >= 1 and not self.failed


def _figures(results: Results, demand: Demand) -> list[float]:
    own = values(results, OWN, demand.measure, demand.figure)
    peer = demand.over or demand.less
    if not peer:
        return [value for value in own if value is not None]
    measure, figure = demand.other_measure or demand.measure, demand.other_figure or demand.figure
    other = values(results, peer, measure, figure)
    pairs = [(a, b) for a, b in zip(own, other, strict=False) if a is not None and b is not None]
    return [a / b if demand.over else a - b for a, b in pairs if b or demand.less]


def judge(bar: Bar, results: Results) -> Verdict:
    """The verdict by the alternative that is met best."""
    verdicts = [
        Verdict(
            bar,
            demand,
            _figures(results, demand),
            values(results, OWN, demand.measure, demand.figure).count(None),
        )
        for demand in bar.any_of
    ]
    return max(verdicts, key=lambda verdict: verdict.share)


def _demanded(demand: Demand) -> str:
    sign, limit = (
        ("at least", demand.at_least)
        if demand.at_least is not None
        else ("at most", demand.at_most)
    )
    other = " ".join(filter(None, (demand.other_measure, demand.other_figure)))
    if demand.over:
        return f"{sign} {limit} x {' '.join(filter(None, (demand.over, other)))}"
    if demand.less:
        return f"{sign} {demand.less} + {limit}"
    return f"{sign} {limit}"


def bar_table(verdicts: Iterable[Verdict]) -> str:
    """A Markdown table, one line for each bar."""
    lines = [["bar", "what", "figure", "demanded", "median", "worst round", "rounds", ""]]
    for verdict in verdicts:
        bar, demand = verdict.bar, verdict.demand
        row = [str(bar.number), bar.what, f"{demand.measure}: {demand.figure}", _demanded(demand)]
        if verdict.figures:
            row += [short(verdict.median), short(verdict.worst), str(len(verdict.figures))]
        else:
            row += ["", "", "0"]
        if verdict.failed:
            row.append(f"FAILED in {verdict.failed}")
        elif not verdict.figures:
            row.append("not measured")
        else:
            row.append("ok" if verdict.ok else "NOT REACHED")
        lines.append(row)
    return markdown(lines)
