"""Names are by the conventions of both worlds."""

import re
from pathlib import Path

import pytest

from headgate.metrics.table import ALL, WAIT_SECONDS, Metric


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.otel)
def test_names(metric: Metric) -> None:
    assert re.fullmatch(r"headgate(\.[a-z_]+)+", metric.otel)
    assert not metric.otel.endswith(("total", "seconds")), "OpenTelemetry has units for that"
    assert re.fullmatch(r"headgate(_[a-z]+)+", metric.prometheus)
    assert metric.prometheus.endswith("_total") == (metric.kind == "counter")
    assert metric.unit == "s" or re.fullmatch(r"\{[a-z]+\}", metric.unit)
    assert ("_seconds" in metric.prometheus) == (metric.unit == "s")
    assert metric.help.endswith(".")
    assert set(metric.labels) <= {"key", "limit", "outcome"}


def test_names_differ() -> None:
    assert len({metric.otel for metric in ALL}) == len({metric.prometheus for metric in ALL}) == len(ALL)


def test_buckets_grow() -> None:
    assert list(WAIT_SECONDS) == sorted(set(WAIT_SECONDS))


def test_the_documentation_tells_each_name() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    rows = {line for line in text.splitlines() if line.startswith("| `headgate_")}
    assert len(rows) == len(ALL)
    for metric in ALL:
        start = f"| `{metric.prometheus}` | `{metric.otel}` {metric.unit} | {', '.join(metric.labels)} |"
        assert any(row.startswith(start) for row in rows), start
    assert ", ".join(f"{edge:g}" for edge in WAIT_SECONDS) in text
