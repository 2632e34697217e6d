"""What Prometheus is told, by the real library."""

from __future__ import annotations

import gc
import sys
from weakref import ref

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from headgate import ConfigurationError, Limiter, metrics
from headgate.events import StoreBack, StoreFailed
from headgate.metrics.table import ALL
from headgate.stores.memory import MemoryStore
from headgate.testing import FakeClock
from tests.metrics.working import limiter_of, worked
from tests.waiting import InThread, wait_until


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_all_that_happens_is_counted(fake_clock: FakeClock, registry: CollectorRegistry) -> None:
    limiter = limiter_of(fake_clock)
    metrics.instrument(limiter, registry=registry)
    worked(fake_clock, limiter)
    told = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text(registry))
        for sample in family.samples
        if "_bucket" not in sample.name and "_wait" not in sample.name and "_limit_" not in sample.name
    }
    assert told == {
        ("headgate_permits_total", "openai"): 7,
        ("headgate_units_total", "openai", "requests/s"): 7,
        ("headgate_units_total", "openai", "requests/day"): 7,
        ("headgate_units_total", "openai", "tokens/min"): 700,
        ("headgate_units_total", "openai", "concurrency"): 7,
        ("headgate_refusals_total", "openai", ""): 0,
        ("headgate_refusals_total", "openai", "requests/s"): 1,
        ("headgate_refusals_total", "openai", "requests/day"): 0,
        ("headgate_refusals_total", "openai", "tokens/min"): 0,
        ("headgate_refusals_total", "openai", "concurrency"): 0,
        ("headgate_settlements_total", "openai", "answered"): 4,
        ("headgate_settlements_total", "openai", "lost"): 1,
        ("headgate_settlements_total", "openai", "unsent"): 1,
        ("headgate_store_failures_total", "openai"): 1,
    }


def test_waits_are_a_histogram(fake_clock: FakeClock, registry: CollectorRegistry) -> None:
    limiter = limiter_of(fake_clock)
    metrics.instrument(limiter, registry=registry)
    worked(fake_clock, limiter)
    assert value(registry, "headgate_wait_seconds_count", key="openai") == 7
    assert value(registry, "headgate_wait_seconds_bucket", key="openai", le="0.001") == 5, "at once"
    assert value(registry, "headgate_wait_seconds_bucket", key="openai", le="2.5") == 7
    assert value(registry, "headgate_wait_seconds_bucket", key="openai", le="+Inf") == 7
    seconds = value(registry, "headgate_wait_seconds_sum", key="openai")
    assert seconds is not None
    assert 0.1 < seconds < 2


def test_gauges_are_read_when_they_are_asked_for(fake_clock: FakeClock, registry: CollectorRegistry) -> None:
    limiter = Limiter("concurrency=2", key="openai", store=MemoryStore(fake_clock))
    metrics.instrument(limiter, registry=registry)
    labels = {"key": "openai", "limit": "concurrency"}
    assert value(registry, "headgate_limit_used_units", **labels) == 0
    permits = [limiter.acquire() for _ in range(2)]
    assert value(registry, "headgate_limit_used_units", **labels) == 2
    assert value(registry, "headgate_limit_capacity_units", **labels) == 2
    limiter.set_limits("concurrency=1")
    assert value(registry, "headgate_limit_capacity_units", **labels) == 1, "the limits in force"
    for permit in permits:
        permit.settle()
    assert value(registry, "headgate_limit_used_units", **labels) == 0


def test_those_who_wait_are_counted_once_however_many_limiters_know_them(
    fake_clock: FakeClock, registry: CollectorRegistry
) -> None:
    store = MemoryStore(fake_clock)
    limiters = [Limiter("concurrency=1", key="k", store=store) for _ in range(2)]
    limiters.append(limiters[0].of_class("bulk"))
    for limiter in limiters:
        metrics.instrument(limiter, registry=registry)
    first = limiters[0].acquire()
    waiting = [InThread(limiter.acquire) for limiter in limiters]
    wait_until(lambda: value(registry, "headgate_waiting_calls", key="k") == 3)
    assert value(registry, "headgate_limit_used_units", key="k", limit="concurrency") == 1
    first.settle()
    while waiting:
        wait_until(lambda: any(thread.done for thread in waiting))
        [served] = [thread for thread in waiting if thread.done]
        waiting.remove(served)
        served.result().settle()
    assert value(registry, "headgate_waiting_calls", key="k") == 0
    assert value(registry, "headgate_permits_total", key="k") == 4, "limiters of a key are counted together"


def test_keys_are_told_apart(fake_clock: FakeClock, registry: CollectorRegistry) -> None:
    for key in ("one", "two"):
        limiter = limiter_of(fake_clock, key)
        metrics.instrument(limiter, registry=registry)
        limiter.acquire()
    assert value(registry, "headgate_permits_total", key="one") == 1
    assert value(registry, "headgate_permits_total", key="two") == 1


def test_nothing_that_a_server_says_becomes_a_label(
    fake_clock: FakeClock, registry: CollectorRegistry
) -> None:
    limiter = limiter_of(fake_clock)
    metrics.instrument(limiter, registry=registry)
    for meter in (None, "whatever-1", "whatever-2"):
        limiter.acquire().throttled(meter=meter)
        fake_clock.advance(120)
    assert value(registry, "headgate_refusals_total", key="openai", limit="") == 3
    assert "whatever" not in metrics.text(registry)


def test_twice_counts_once_and_a_stop_stops(fake_clock: FakeClock, registry: CollectorRegistry) -> None:
    limiter = limiter_of(fake_clock)
    stop = metrics.instrument(limiter, registry=registry)
    again = metrics.instrument(limiter, registry=registry)
    limiter.acquire()
    assert value(registry, "headgate_permits_total", key="openai") == 1
    stop()
    again()
    stop()
    limiter.acquire()
    assert value(registry, "headgate_permits_total", key="openai") == 1, "what was counted stays"
    assert value(registry, "headgate_waiting_calls", key="openai") is None
    metrics.instrument(limiter, registry=registry)
    limiter.acquire()
    assert value(registry, "headgate_permits_total", key="openai") == 2


def test_a_limiter_is_not_kept_alive(fake_clock: FakeClock, registry: CollectorRegistry) -> None:
    limiter = limiter_of(fake_clock)
    stop = metrics.instrument(limiter, registry=registry)
    limiter.acquire()
    found = ref(limiter)
    del limiter
    gc.collect()
    assert found() is None
    stop()
    assert value(registry, "headgate_permits_total", key="openai") == 1


def test_a_store_that_is_away_is_not_asked(fake_clock: FakeClock, registry: CollectorRegistry) -> None:
    limiter = limiter_of(fake_clock)
    metrics.instrument(limiter, registry=registry)
    labels = {"key": "openai", "limit": "concurrency"}
    limiter._tell(StoreFailed("openai", "gone"))
    assert value(registry, "headgate_limit_used_units", **labels) is None
    assert value(registry, "headgate_waiting_calls", key="openai") == 0
    limiter._tell(StoreBack("openai", 2.0))
    assert value(registry, "headgate_limit_used_units", **labels) == 0


def test_to_register_reads_nothing_and_the_library_knows_all_names(registry: CollectorRegistry) -> None:
    metrics.text(registry)
    known = {family.name for collector in [*registry._collector_to_names] for family in collector.describe()}  # type: ignore[attr-defined]  # ours can
    assert known == {metric.prometheus.removesuffix("_total") for metric in ALL}
    assert generate_latest(registry).decode().count("# TYPE headgate_") == len(ALL)


def test_the_usual_registry_is_meant_if_none_is_named(fake_clock: FakeClock) -> None:
    from prometheus_client import REGISTRY

    limiter = limiter_of(fake_clock, "usual")
    stop = metrics.instrument(limiter, registry=REGISTRY)
    limiter.acquire()
    assert 'headgate_permits_total{key="usual"} 1.0' in metrics.text()
    assert "python_info" not in metrics.text(), "nothing else"
    stop()


def test_two_places_at_once_are_refused(fake_clock: FakeClock, registry: CollectorRegistry) -> None:
    with pytest.raises(ConfigurationError, match="instrument twice for both"):
        metrics.instrument(limiter_of(fake_clock), registry=registry, meter_provider=NoOpMeterProvider())


@pytest.mark.parametrize("extra", ["prometheus", "otel"])
def test_a_library_that_is_not_there_is_told(
    extra: str, fake_clock: FakeClock, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = {"prometheus": "prometheus_client", "otel": "opentelemetry.metrics"}[extra]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"headgate.metrics.{extra}", raising=False)
    monkeypatch.delattr(metrics, extra, raising=False)
    with pytest.raises(ConfigurationError, match=rf"pip install 'headgate\[{extra}\]'"):
        metrics.instrument(limiter_of(fake_clock), registry=registry if extra == "prometheus" else None)
