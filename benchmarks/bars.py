"""What the gateway must reach, as data; `benchmarks.judge` says whether it did."""

from __future__ import annotations

from dataclasses import dataclass

OWN = "gateway"


@dataclass(frozen=True)
class Demand:
    """A limit for a figure, or for its relation to another figure of the same round.

    With ``over`` the figure is divided by that peer's, with ``less`` that peer's is taken from it.
    ``other_measure`` and ``other_figure`` say which one, where it is not the same.
    """

    measure: str
    figure: str
    at_least: float | None = None
    at_most: float | None = None
    over: str = ""
    less: str = ""
    other_measure: str = ""
    other_figure: str = ""

    def needs(self) -> set[tuple[str, str]]:
        """The (peer, measure) pairs that it is made of."""
        needed = {(OWN, self.measure)}
        if self.over or self.less:
            needed.add((self.over or self.less, self.other_measure or self.measure))
        return needed


@dataclass(frozen=True)
class Bar:
    number: int
    what: str
    any_of: tuple[Demand, ...]
    """Alternatives: the loosest counts."""


def _bar(number: int, what: str, *any_of: Demand) -> Bar:
    return Bar(number, what, any_of)


# Measured with the bars because it explains them: what the pipe and the machine do by themselves.
CONTROLS = frozenset({("stdio", "burst"), ("stdio", "beside_text"), ("stdio", "beside_tool")})

BARS: tuple[Bar, ...] = (
    _bar(1, "WebSocket relay", Demand("burst", "chunks/s", 8, over="qwen")),
    _bar(1, "the relay, one write a line", Demand("burst1", "chunks/s", 0.35, over="stdio")),
    _bar(1, "CPU of the relay", Demand("burst", "cpu us/chunk", at_most=0.12, over="qwen")),
    _bar(1, "WebSocket relay over TLS", Demand("burst_tls", "chunks/s", 8, over="qwen")),
    _bar(1, "late or lost, WebSocket", Demand("order", "late or lost", at_most=0)),
    _bar(1, "late or lost, Streamable HTTP", Demand("order_http", "late or lost", at_most=0)),
    _bar(1, "late or lost, SSE", Demand("order_sse", "late or lost", at_most=0)),
    _bar(2, "WebSocket to 10", Demand("fanout10", "deliveries/s", 3, over="node-ws")),
    _bar(2, "WebSocket to 60", Demand("fanout60", "deliveries/s", 3, over="node-ws")),
    _bar(2, "WebSocket to 2 x 50", Demand("fanout2x50", "deliveries/s", 3, over="node-ws")),
    _bar(2, "SSE to 10", Demand("sse10", "deliveries/s", 5, over="qwen")),
    _bar(2, "SSE to 10", Demand("sse10", "deliveries/s", 1.2, over="node-sse")),
    _bar(2, "SSE to 50", Demand("sse50", "deliveries/s", 5, over="qwen")),
    _bar(2, "SSE to 50", Demand("sse50", "deliveries/s", 1.2, over="node-sse")),
    _bar(2, "SSE to 2 x 50", Demand("sse2x50", "deliveries/s", 5, over="qwen")),
    _bar(2, "SSE to 2 x 50", Demand("sse2x50", "deliveries/s", 1.2, over="node-sse")),
    _bar(
        3,
        "first chunk of a small turn",
        Demand("turn", "first chunk p50 ms", at_most=0.6, over="qwen"),
        Demand("turn", "first chunk p50 ms", at_most=0.7, less="stdio"),
    ),
    _bar(
        3,
        "request beside a flood, p99",
        Demand("flood", "request p99 ms", at_most=0.5, over="qwen"),
    ),
    _bar(4, "64 KiB updates", Demand("large64k", "messages/s", 2, over="qwen")),
    _bar(4, "1 MiB updates", Demand("large1m", "messages/s", 1.5, over="qwen")),
    _bar(4, "p99 beside 50 MiB of text", Demand("beside_text", "p99 times", at_most=2)),
    _bar(4, "p99 beside 50 MiB of a tool", Demand("beside_tool", "p99 times", at_most=2)),
    _bar(5, "real qwen, beside its own pipe", Demand("real_qwen", "chunks/s", 0.9, over="stdio")),
    _bar(5, "real qwen", Demand("real_qwen", "chunks/s", 1.1, over="qwen")),
    _bar(5, "real goose", Demand("real_goose", "chunks/s", 1.2, over="goose")),
    _bar(6, "start-up", Demand("start", "listening ms", at_most=0.7, over="qwen")),
    _bar(6, "memory at rest", Demand("idle", "rss MiB", at_most=0.35, over="qwen")),
    _bar(6, "memory of a connection", Demand("connections", "KiB/connection", at_most=40)),
    _bar(6, "CPU at rest", Demand("idle", "cpu ms/s", at_most=1)),
    _bar(7, "cost beside 100 sessions", Demand("event_cost", "beside / alone", at_most=1.2)),
    _bar(7, "cost behind a million events", Demand("event_cost", "behind / alone", at_most=1.2)),
    _bar(7, "cost with 20 agents", Demand("agents", "20 / 1", at_most=1.25)),
    _bar(7, "growth in the soak", Demand("soak", "rss MB/min", at_most=1)),
    _bar(7, "tasks, files, children after it", Demand("soak", "left behind", at_most=0)),
    _bar(8, "GET /session/:id/status", Demand("http", "status x16 /s", 0.5, over="qwen")),
    _bar(8, "connect, initialize, close", Demand("http", "connect x1 /s", 1, over="qwen")),
    _bar(8, "connect and close, 16 at once", Demand("http", "connect x16 /s", 1, over="qwen")),
)
