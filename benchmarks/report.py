"""Figures of all rounds as a table: medians, the worst round, ratios to a peer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from benchmarks.measures import MORE_IS_BETTER, Figures

# {peer: {measure: one Figures for each round}}
Results = dict[str, dict[str, list[Figures]]]

OWN = "gateway"
BESIDE = "qwen"


def _short(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _spread(name: str, values: Sequence[float]) -> str:
    worst = min(values) if name in MORE_IS_BETTER else max(values)
    if len(values) == 1 or _short(worst) == _short(median(values)):
        return _short(median(values))
    return f"{_short(median(values))} ({_short(worst)})"


def _values(results: Results, peer: str, measure: str, name: str) -> list[float]:
    rounds = results.get(peer, {}).get(measure, [])
    return [figures[name] for figures in rounds if name in figures]


def _ratio(results: Results, measure: str, name: str) -> str:
    """Own figure over that of `BESIDE`, round by round."""
    own, other = (_values(results, peer, measure, name) for peer in (OWN, BESIDE))
    ratios = [a / b for a, b in zip(own, other, strict=False) if b]
    return _spread(name, ratios) if ratios else ""


def names(results: Results) -> Iterator[tuple[str, str]]:
    """Every (measure, figure), in the order in which they were measured."""
    seen: dict[tuple[str, str], None] = {}
    for measures in results.values():
        for measure, rounds in measures.items():
            for figures in rounds:
                seen.update({(measure, name): None for name in figures})
    order = {measure: n for n, measure in enumerate(dict.fromkeys(m for m, _ in seen))}
    yield from sorted(seen, key=lambda pair: order[pair[0]])


def table(results: Results) -> str:
    """A Markdown table: the median of each figure, the worst round in parentheses."""
    peers = list(results)
    with_ratio = OWN in peers and BESIDE in peers
    heads = ["", *peers, *([f"{OWN} / {BESIDE}"] if with_ratio else [])]
    lines = [heads, ["---"] * len(heads)]
    for measure, name in names(results):
        row = [f"{measure}: {name}"]
        for peer in peers:
            values = _values(results, peer, measure, name)
            row.append(_spread(name, values) if values else "")
        if with_ratio:
            row.append(_ratio(results, measure, name))
        lines.append(row)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
