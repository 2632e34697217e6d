"""The figures for Prometheus: each registry has one collector, which tells when asked what was counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from headgate.metrics.counts import Counts
from headgate.metrics.table import COUNTERS, GAUGES, WAIT, WAIT_SECONDS, Metric

if TYPE_CHECKING:
    from headgate.limiter import Limiter

Family: TypeAlias = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class LimiterCollector(Collector):
    """What the limiters of a registry have done."""

    def __init__(self) -> None:
        self.counts = Counts()

    def describe(self) -> Iterator[Family]:
        """The metrics without their series, so that to register it reads no store."""
        return map(_family, (*COUNTERS, WAIT, *GAUGES))

    def collect(self) -> Iterator[Family]:
        """The metrics as they are now."""
        for metric, series in (*self.counts.counters().items(), *self.counts.gauges().items()):
            family = _family(metric)
            for labels, value in series.items():
                family.add_metric(labels, value)  # type: ignore[arg-type, call-arg]  # no histogram
            yield family
        waits = HistogramMetricFamily(WAIT.prometheus, WAIT.help, labels=WAIT.labels)
        for counts in self.counts.keys():  # noqa: SIM118  # no mapping
            with counts.lock:
                reached, seconds = list(accumulate(counts.waits)), counts.wait_seconds
            edges = map(floatToGoString, (*WAIT_SECONDS, inf))
            waits.add_metric([counts.key], list(zip(edges, reached, strict=True)), seconds)
        yield waits


def _family(metric: Metric) -> Family:
    if metric.kind == "counter":
        name = metric.prometheus.removesuffix("_total")
        return CounterMetricFamily(name, metric.help, labels=metric.labels)
    if metric.kind == "gauge":
        return GaugeMetricFamily(metric.prometheus, metric.help, labels=metric.labels)
    return HistogramMetricFamily(metric.prometheus, metric.help, labels=metric.labels)


_collectors: WeakKeyDictionary[CollectorRegistry, LimiterCollector] = WeakKeyDictionary()
_registering = threading.Lock()


def _collector_of(registry: CollectorRegistry) -> LimiterCollector:
    with _registering:
        collector = _collectors.get(registry)
        if collector is None:
            collector = LimiterCollector()
            registry.register(collector)
            _collectors[registry] = collector
        return collector


def instrument(limiter: Limiter, registry: CollectorRegistry) -> Callable[[], None]:
    """See :func:`headgate.metrics.instrument`."""
    return _collector_of(registry).counts.add(limiter)


def text(registry: CollectorRegistry | None = None) -> str:
    """See :func:`headgate.metrics.text`."""
    alone = CollectorRegistry()
    alone.register(_collector_of(REGISTRY if registry is None else registry))
    return generate_latest(alone).decode()
