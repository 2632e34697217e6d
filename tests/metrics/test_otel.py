"""What OpenTelemetry is told, by the real SDK."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from headgate import metrics
from headgate.metrics.table import ALL, WAIT_SECONDS
from headgate.testing import FakeClock
from tests.metrics.working import limiter_of, worked


class Told:
    """A provider, and what it was told."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])

    def read(self) -> dict[str, Any]:
        """{name: metric}."""
        data = json.loads(self._reader.get_metrics_data().to_json())  # type: ignore[union-attr]  # there is some
        [resource] = data["resource_metrics"]
        [scope] = resource["scope_metrics"]
        assert scope["scope"]["name"] == "headgate"
        return {metric["name"]: metric for metric in scope["metrics"]}

    def points(self, name: str) -> dict[tuple[str, ...], Any]:
        """{values of attributes: point}."""
        found = self.read()[name]["data"]["data_points"]
        return {tuple(point["attributes"].values()): point for point in found}

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        return {labels: point["value"] for labels, point in self.points(name).items()}


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.provider.shutdown()


def test_all_that_happens_is_counted(fake_clock: FakeClock, told: Told) -> None:
    limiter = limiter_of(fake_clock)
    metrics.instrument(limiter, meter_provider=told.provider)
    worked(fake_clock, limiter)
    found = told.read()
    assert found.keys() == {metric.otel for metric in ALL} - {
        "headgate.limit.used",
        "headgate.limit.capacity",
    }
    for metric in ALL:
        if metric.otel in found:
            assert (found[metric.otel]["unit"], found[metric.otel]["description"]) == (
                metric.unit,
                metric.help,
            )
    assert told.values("headgate.permits") == {("openai",): 7}
    assert told.values("headgate.units") == {
        ("openai", "requests/s"): 7,
        ("openai", "requests/day"): 7,
        ("openai", "tokens/min"): 700,
        ("openai", "concurrency"): 7,
    }
    assert told.values("headgate.settlements") == {
        ("openai", "answered"): 4,
        ("openai", "lost"): 1,
        ("openai", "unsent"): 1,
    }
    assert told.values("headgate.refusals")["openai", "requests/s"] == 1
    assert told.values("headgate.refusals")["openai",] == 0, "what names no limit has no such attribute"
    assert told.values("headgate.store.failures") == {("openai",): 1}
    assert told.values("headgate.waiting") == {("openai",): 0}


def test_counters_grow_and_gauges_do_not_add_up(fake_clock: FakeClock, told: Told) -> None:
    limiter = limiter_of(fake_clock)
    metrics.instrument(limiter, meter_provider=told.provider)
    limiter.acquire().settle()
    first = told.read()
    limiter.acquire()
    assert told.values("headgate.permits") == {("openai",): 2}
    assert first["headgate.permits"]["data"]["is_monotonic"]
    assert told.values("headgate.limit.used")["openai", "concurrency"] == 1
    assert told.values("headgate.limit.capacity")["openai", "tokens/min"] == 1000


def test_waits_are_a_histogram_with_our_buckets(fake_clock: FakeClock, told: Told) -> None:
    limiter = limiter_of(fake_clock)
    metrics.instrument(limiter, meter_provider=told.provider)
    worked(fake_clock, limiter)
    point = told.points("headgate.wait.duration")["openai",]
    assert tuple(point["explicit_bounds"]) == WAIT_SECONDS
    assert point["count"] == 7
    assert point["bucket_counts"][0] == 5
    assert point["attributes"] == {"headgate.key": "openai"}


def test_a_stop_stops(fake_clock: FakeClock, told: Told) -> None:
    limiter = limiter_of(fake_clock)
    stop = metrics.instrument(limiter, meter_provider=told.provider)
    metrics.instrument(limiter, meter_provider=told.provider)
    limiter.acquire()
    stop()
    limiter.acquire()
    assert told.values("headgate.permits") == {("openai",): 1}
    assert told.points("headgate.wait.duration")["openai",]["count"] == 1


def test_providers_count_for_themselves(fake_clock: FakeClock, told: Told) -> None:
    other = Told()
    limiter = limiter_of(fake_clock)
    metrics.instrument(limiter, meter_provider=told.provider)
    limiter.acquire()
    metrics.instrument(limiter, meter_provider=other.provider)
    limiter.acquire()
    assert told.values("headgate.permits") == {("openai",): 2}
    assert other.values("headgate.permits") == {("openai",): 1}
    other.provider.shutdown()


GLOBAL = """
from headgate import Limiter, metrics
limiter = Limiter("requests=5/s:burst=5:start=full", key="openai")
metrics.instrument(limiter)
limiter.acquire()
from opentelemetry import metrics as otel
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
otel.set_meter_provider(MeterProvider([reader]))
other = Limiter("requests=5/s:burst=5:start=full", key="maps")
metrics.instrument(other)
limiter.acquire()
other.acquire()
print(reader.get_metrics_data().to_json())
"""


def test_the_programs_own_provider_may_be_set_later() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", GLOBAL], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stderr == ""
    [scope] = json.loads(ran.stdout)["resource_metrics"][0]["scope_metrics"]
    found = {metric["name"]: metric["data"]["data_points"] for metric in scope["metrics"]}
    permits = {point["attributes"]["headgate.key"]: point["value"] for point in found["headgate.permits"]}
    assert permits == {"openai": 2, "maps": 1}


def test_without_an_sdk_nothing_is_asked_of_it(fake_clock: FakeClock) -> None:
    code = "import sys; from headgate import Limiter, metrics; metrics.instrument(Limiter(key='k'))"
    code += "; print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "[]\n"
