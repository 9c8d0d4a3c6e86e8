"""Figures of all rounds as tables: medians, the worst round, the gateway beside its peers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import median

from benchmarks.bars import OWN
from benchmarks.measures import MORE_IS_BETTER, Figures

# {peer: {measure: one Figures for each round}}; empty where the measurement failed, so that the
# same place in two lists is the same round.
Results = dict[str, dict[str, list[Figures]]]

LIMIT = "stdio"
"""What takes longer than there is told as a difference, not as a ratio; its CPU is the agent's."""
COMPARED = (
    *MORE_IS_BETTER,
    "ms",
    "us/chunk",
    "us/delivery",
    "us/turn",
    "us/request",
    "ms/s",
    "MiB",
    "KiB",
)
"""Ends of the names of figures that can be set against those of a peer."""


def short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _spread(name: str, figures: Sequence[float], sign: str = "") -> str:
    worst = min(figures) if name in MORE_IS_BETTER else max(figures)
    middle = f"{median(figures):{sign}.3g}" if sign else short(median(figures))
    if len(figures) == 1 or short(worst) == short(median(figures)):
        return middle
    return f"{middle} ({short(worst)})"


def values(results: Results, peer: str, measure: str, name: str) -> list[float | None]:
    """A figure of each round; None where it was not measured."""
    return [figures.get(name) for figures in results.get(peer, {}).get(measure, [])]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of cells; the first row has the heads."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def names(results: Results) -> Iterator[tuple[str, str]]:
    """Every (measure, figure), in the order in which they were measured."""
    seen: dict[tuple[str, str], None] = {}
    for measures in results.values():
        for measure, rounds in measures.items():
            for figures in rounds:
                seen.update({(measure, name): None for name in figures})
    order = {measure: n for n, measure in enumerate(dict.fromkeys(m for m, _ in seen))}
    yield from sorted(seen, key=lambda pair: order[pair[0]])


def _peers(results: Results, measure: str) -> tuple[str, ...]:
    return tuple(peer for peer in results if any(results[peer].get(measure, [])))


def table(results: Results) -> str:
    """Markdown tables: the median of each figure, the worst round in parentheses.

    Measurements that the same peers took part in, one after the other, share a table.
    """
    tables = []
    for peers, pairs in groupby(names(results), key=lambda pair: _peers(results, pair[0])):
        rows = [["", *peers]]
        for measure, name in pairs:
            row = [f"{measure}: {name}"]
            for peer in peers:
                found = [v for v in values(results, peer, measure, name) if v is not None]
                row.append(_spread(name, found) if found else "")
            rows.append(row)
        tables.append(markdown(rows))
    return "\n\n".join(tables)


def beside_peers(results: Results) -> str:
    """A Markdown table: the gateway's figure over each peer's in the same round, and its spread.

    Times stand beside those of the limit as a difference in ms. Empty without another peer.
    """
    peers = [peer for peer in results if peer != OWN]
    rows = [["", *peers]]
    for measure, name in names(results):
        row = [f"{measure}: {name}"]
        for peer in peers:
            own, other = (values(results, each, measure, name) for each in (OWN, peer))
            pairs = [
                (a, b)
                for a, b in zip(own, other, strict=False)
                if a is not None and b and name.endswith(COMPARED)
                if peer != LIMIT or not name.startswith("cpu")
            ]
            if pairs and peer == LIMIT and name.endswith("ms"):
                row.append(_spread(name, [a - b for a, b in pairs], "+") + " ms")
            else:
                row.append(_spread(name, [a / b for a, b in pairs]) if pairs else "")
        if any(row[1:]):
            rows.append(row)
    return markdown(rows) if len(rows) > 1 else ""
