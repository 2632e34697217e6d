"""Names, units, labels and buckets: the same figures in both worlds, each by its own conventions.

A label is a key, a limit or an outcome; so there are as many series as a program has keys, times their
limits. Nothing that a server says becomes a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]

KEY, LIMIT, OUTCOME = "key", "limit", "outcome"
"""Labels of Prometheus; in OpenTelemetry ``headgate.key`` and so on."""

WAIT_SECONDS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper edges of the histogram's buckets: from "at once" to a window of an hour."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure.

    Attributes:
        kind: a counter only grows; a gauge is read when it is asked for.
        otel: its name in OpenTelemetry.
        unit: its unit in OpenTelemetry, in the words of UCUM.
        prometheus: its name in Prometheus, with unit and suffix.
        labels: what tells its series apart.
        help: what it counts.
    """

    kind: Kind
    otel: str
    unit: str
    prometheus: str
    labels: tuple[str, ...]
    help: str


PERMITS = Metric(
    "counter", "headgate.permits", "{permit}", "headgate_permits_total", (KEY,), "Permits given."
)
UNITS = Metric(
    "counter",
    "headgate.units",
    "{unit}",
    "headgate_units_total",
    (KEY, LIMIT),
    "Units reserved by the permits that were given.",
)
WAIT = Metric(
    "histogram",
    "headgate.wait.duration",
    "s",
    "headgate_wait_seconds",
    (KEY,),
    "Time from asking for a permit to getting it.",
)
REFUSALS = Metric(
    "counter",
    "headgate.refusals",
    "{refusal}",
    "headgate_refusals_total",
    (KEY, LIMIT),
    "Calls that the server refused for their rate; the limit is empty if it named none.",
)
SETTLEMENTS = Metric(
    "counter",
    "headgate.settlements",
    "{settlement}",
    "headgate_settlements_total",
    (KEY, OUTCOME),
    "Permits settled: answered, lost or unsent.",
)
FAILURES = Metric(
    "counter",
    "headgate.store.failures",
    "{failure}",
    "headgate_store_failures_total",
    (KEY,),
    "Times that the shared store could not be reached any more.",
)
WAITING = Metric(
    "gauge",
    "headgate.waiting",
    "{call}",
    "headgate_waiting_calls",
    (KEY,),
    "Calls of this process that wait for a permit.",
)
USED = Metric(
    "gauge",
    "headgate.limit.used",
    "{unit}",
    "headgate_limit_used_units",
    (KEY, LIMIT),
    "Units that stand against a limit now, of all processes on the key.",
)
CAPACITY = Metric(
    "gauge",
    "headgate.limit.capacity",
    "{unit}",
    "headgate_limit_capacity_units",
    (KEY, LIMIT),
    "Units that may stand against a limit at once.",
)

COUNTERS = (PERMITS, UNITS, REFUSALS, SETTLEMENTS, FAILURES)
GAUGES = (WAITING, USED, CAPACITY)
ALL = (*COUNTERS, WAIT, *GAUGES)
