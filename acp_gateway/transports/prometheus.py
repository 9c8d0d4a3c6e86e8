"""The figures as Prometheus and OpenMetrics read them (the home of prometheus-client).

Imported with the first request for them: whom nobody scrapes pays nothing. Nothing is registered
anywhere; every answer is made from a registry of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest as text
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPEN_METRICS
from prometheus_client.openmetrics.exposition import generate_latest as open_metrics
from prometheus_client.registry import Collector

from acp_gateway.core.tally import Histogram
from acp_gateway.transports.figures import PREFIX, Family, families
from acp_gateway.transports.hub import Hub
from acp_gateway.transports.machine_watch import Machine

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"


def exposition(hub: Hub, machine: Machine, accept: str) -> tuple[bytes, str]:
    """(body, content type): the format that ``accept`` prefers, plain text if it says nothing."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(list(families(hub, machine))))
    # The library's own choice repeats what the client sent in the content type.
    if _wants_open_metrics(accept):
        body: bytes = open_metrics(registry)  # type: ignore[no-untyped-call]
        return body, OPEN_METRICS
    return text(registry), TEXT


def _wants_open_metrics(accept: str) -> bool:
    """Is it the most wanted of the two (RFC 9110 §12.5.1)?"""
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for item in accept.split(","):
        media, *parameters = (part.strip() for part in item.split(";"))
        if media.lower() not in best:
            continue
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        best[media.lower()] = max(best[media.lower()], quality)
    return best["application/openmetrics-text"] > best["text/plain"]


class _Collector(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            yield _metric(family)

    def describe(self) -> Iterator[Metric]:
        return iter(())  # asked at registration; the names are known to clash with none


def _metric(family: Family) -> Metric:
    name = PREFIX + family.name
    if family.kind == "histogram":
        made = HistogramMetricFamily(name, family.help, labels=family.labels, unit=family.unit)
        for labels, value in family.samples:
            assert isinstance(value, Histogram)
            buckets = [(_bound(bound), count) for bound, count in value.cumulative()]
            made.add_metric(labels, buckets, value.sum)
        return made
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    plain = kind(name, family.help, labels=family.labels, unit=family.unit)
    for labels, value in family.samples:
        assert not isinstance(value, Histogram)
        plain.add_metric(labels, value)
    return plain


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(float(bound))
