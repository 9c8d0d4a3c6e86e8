"""The gateway beside its peers as an SVG: one bar for each ratio, on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10
from typing import TypeAlias
from xml.sax.saxutils import escape

from benchmarks.judge import Verdict
from benchmarks.report import short

WIDTH, LABELS, RIGHT, TOP, ROW, BAR = 900, 250, 150, 92, 24, 14
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
PEERS = ("qwen", "goose", "node-ws", "node-sse", "stdio")
"""Each has a colour of its own; others share the last one."""
Scale: TypeAlias = Callable[[float], float]

TITLE = "acp-gateway beside its peers: how many times better"
NOTE = (
    "Bar: median of the rounds; thin line: to the worst round; red: what is demanded. "
    "Less CPU, time or memory counts as better."
)
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-size: 17px; font-weight: 600 }
.note, .tick { fill: #57606a; font-size: 12px }
.grid { stroke: #d0d7de } .one { stroke: #24292f }
.worst { stroke: #24292f; stroke-width: 1.5 } .demand { stroke: #cf222e; stroke-width: 2 }
.p0 { fill: #2f81c7 } .p1 { fill: #8250df } .p2 { fill: #2da44e } .p3 { fill: #bf8700 }
.p4 { fill: #6e7781 } .p5 { fill: #d4628c }
.paper { fill: #ffffff }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .note, .tick { fill: #9da7b1 } .paper { fill: #0d1117 }
.grid { stroke: #30363d } .one, .worst { stroke: #e6edf3 } .demand { stroke: #ff7b72 }
.p0 { fill: #4493e0 } .p1 { fill: #a680f0 } .p2 { fill: #3fb950 } .p3 { fill: #d4a72c }
.p4 { fill: #8b949e } .p5 { fill: #e98bb0 }
}"""


@dataclass(frozen=True)
class Row:
    """A ratio, turned round where less is better: above 1 the gateway is ahead."""

    label: str
    peer: str
    median: float
    worst: float
    demanded: float


def rows(verdicts: Sequence[Verdict]) -> list[Row]:
    """The ratios to other servers among the bars, in their order."""
    found = []
    for verdict in verdicts:
        demand = verdict.demand
        if not demand.over or not verdict.figures:
            continue
        three = (verdict.median, verdict.worst, verdict.limit)
        if demand.at_least is None:
            three = (1 / three[0], 1 / three[1], 1 / three[2])
        found.append(Row(verdict.bar.what, demand.over, *three))
    return found


def svg(found: Sequence[Row], subtitle: str = "") -> str:
    """The drawing. Raises `ValueError` when there is nothing to draw."""
    if not found:
        raise ValueError("no ratio was measured; run the gateway and another peer")
    values = [v for row in found for v in (row.median, row.worst, row.demanded)] + [1.0]
    low = max((t for t in TICKS if t <= min(values)), default=TICKS[0])
    high = min((t for t in TICKS if t >= max(values)), default=TICKS[-1])
    if low == high:
        high = TICKS[TICKS.index(low) + 1]

    def x(value: float) -> float:
        inside = min(max(value, low), high)
        share = (log10(inside) - log10(low)) / (log10(high) - log10(low))
        return round(LABELS + share * (WIDTH - LABELS - RIGHT), 1)

    bottom = TOP + ROW * len(found)
    height = bottom + 36
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" aria-label="{TITLE}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        _text("title", 16, 28, TITLE),
        _text("note", 16, 48, subtitle),
        _text("note", 16, 66, NOTE),
    ]
    for tick in TICKS:
        if low <= tick <= high:
            parts.append(_line("one" if tick == 1 else "grid", x(tick), TOP - 8, x(tick), bottom))
            parts.append(_text("tick", x(tick), bottom + 18, f"{tick:g}", "middle"))
    for number, row in enumerate(found):
        parts += _bar(row, TOP + ROW * number, x)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    where = f'class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}"'
    return f"<text {where}>{escape(text)}</text>"


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _bar(row: Row, top: float, x: Scale) -> list[str]:
    colour = PEERS.index(row.peer) if row.peer in PEERS else len(PEERS)
    left, right = sorted((x(1), x(row.median)))
    place = f'x="{left}" y="{top}" width="{max(1, right - left):.1f}" height="{BAR}"'
    middle = top + BAR / 2
    return [
        _text("label", LABELS - 12, top + 12, row.label, "end"),
        f'<rect class="p{colour}" {place}/>',
        _line("worst", x(row.worst), middle, x(row.median), middle),
        _line("demand", x(row.demanded), top - 2, x(row.demanded), top + BAR + 2),
        _text("label", WIDTH - RIGHT + 10, top + 12, f"{short(row.median)} × {row.peer}"),
    ]
