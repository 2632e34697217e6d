"""What a run came to."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headgate.core.rates import possible_units
from headgate.core.text import parse_limit
from headgate.limiter import Limiter
from headgate.run.engine import Engine
from headgate.run.output import Appender
from headgate.run.rows import Row
from headgate.run.summary import lines, summarise
from tests.run.test_rows import settings


class NoRows(AsyncIterator[Row]):
    async def __anext__(self) -> Row:
        raise StopAsyncIteration


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    limits = ("requests=10/s:burst=2", "tokens=600/min:burst=100:transit=50ms", "concurrency=4")
    return Engine(
        settings(limits=tuple(map(parse_limit, limits))),
        Limiter(*limits),
        NoRows(),
        output=Appender(tmp_path / "out", fresh=True),
        errors=Appender(tmp_path / "errors", fresh=True),
        salt="",
        done=lambda row: None,
    )


@pytest.mark.parametrize(
    ("limit", "units"),
    [("requests=120/min:burst=1", 20), ("tokens=5/s:kind=sliding", 50), ("concurrency=3", 30)],
)
def test_what_a_limit_lets_through_in_ten_seconds(limit: str, units: float) -> None:
    assert possible_units(parse_limit(limit), 10) == units


def test_a_run_of_nothing_has_no_shares(engine: Engine) -> None:
    summary = summarise(engine, total=0, already_done=0, seconds=0)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["throughput"] is None
    assert {limit["utilisation"] for limit in summary["limits"]} == {None}
    assert lines(summary)[0].startswith("0 succeeded, 0 failed")


def test_figures_are_put_in_words(engine: Engine) -> None:
    figures = engine.figures
    figures.first_sent_at, figures.last_sent_at = 100.0, 110.0
    figures.counts.succeeded, figures.counts.failed, figures.counts.malformed_lines = 90, 3, 1
    figures.counts.requests, figures.counts.refused, figures.counts.late = 95, 2, 2
    engine.sent_units |= {"requests/s": 95, "tokens/min": 80}
    for _ in range(90):
        figures.latency.add(0.2)
    summary = summarise(engine, total=100, already_done=6, seconds=10)
    assert [limit["utilisation"] for limit in summary["limits"]] == [0.95, 0.8, 0.45]
    assert summary["throughput"] == 9
    assert summary["max_transit_seconds"] == 0.05
    told = lines(summary)
    assert told[0] == ("90 succeeded, 4 failed, 95 requests, 2 refused, 0 retries; 6 were done before")
    assert "requests/s: 95 of 100 possible  95.0%" in told
    assert "max_transit_seconds 0.05, exceeded 2 times" in told[-1]
