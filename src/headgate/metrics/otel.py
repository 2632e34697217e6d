"""The figures for OpenTelemetry: by its API alone, so that a program without an SDK pays next to nothing.

Counters and gauges are observed when somebody reads them; only the histogram is told of each permit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter

from headgate.events import Granted
from headgate.metrics.counts import Counts, Labels, Series
from headgate.metrics.table import COUNTERS, GAUGES, WAIT, WAIT_SECONDS, WAITING, Metric

if TYPE_CHECKING:
    from headgate.limiter import Limiter


class Instruments:
    """The instruments of a provider."""

    def __init__(self, meter: Meter) -> None:
        self.counts = Counts()
        self._waits = meter.create_histogram(
            WAIT.otel, WAIT.unit, WAIT.help, explicit_bucket_boundaries_advisory=WAIT_SECONDS
        )
        for metric in COUNTERS:
            meter.create_observable_counter(
                metric.otel, [_observing(metric, self._counter(metric))], metric.unit, metric.help
            )
        for metric in GAUGES:
            meter.create_observable_gauge(
                metric.otel, [_observing(metric, self._gauge(metric))], metric.unit, metric.help
            )

    def add(self, limiter: Limiter) -> Callable[[], None]:
        """Count what a limiter does."""
        attributes = _attributes(WAIT, (limiter.key,))
        record = self._waits.record

        def note(event: Granted) -> None:
            record(event.waited_seconds, attributes)

        return self.counts.add(limiter, note)

    def _counter(self, metric: Metric) -> Callable[[], Series]:
        return lambda: self.counts.counters()[metric]

    def _gauge(self, metric: Metric) -> Callable[[], Series]:
        if metric is WAITING:
            return self.counts.waiting
        return lambda: self.counts.limits()[metric]


def _observing(
    metric: Metric, read: Callable[[], Series]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: CallbackOptions) -> Iterator[Observation]:
        for labels, value in read().items():
            yield Observation(value, _attributes(metric, labels))

    return observe


def _attributes(metric: Metric, labels: Labels) -> dict[str, str]:
    """Without those that are empty."""
    return {f"headgate.{name}": value for name, value in zip(metric.labels, labels, strict=True) if value}


_instruments: WeakKeyDictionary[MeterProvider, Instruments] = WeakKeyDictionary()
_of_the_program: Instruments | None = None
"""Of the global provider, which may be set later: until then the API remembers what was made."""
_making = threading.Lock()


def _instruments_of(provider: MeterProvider | None) -> Instruments:
    global _of_the_program  # noqa: PLW0603  # once in a process
    with _making:
        if provider is None:
            if _of_the_program is None:
                _of_the_program = Instruments(get_meter("headgate", version("headgate")))
            return _of_the_program
        found = _instruments.get(provider)
        if found is None:
            found = _instruments[provider] = Instruments(provider.get_meter("headgate", version("headgate")))
        return found


def instrument(limiter: Limiter, provider: MeterProvider | None) -> Callable[[], None]:
    """See :func:`headgate.metrics.instrument`."""
    return _instruments_of(provider).add(limiter)
