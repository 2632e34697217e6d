"""The benchmark of shared keys runs; what it finds is nobody's business here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import shared
from tests.servers.redis import RedisServer

FEW = shared.Crowd(processes=2, coroutines=4, share=0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture(autouse=True)
def no_time_to_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "WARM_SECONDS", 0.1)


@pytest.mark.parametrize("name", shared.SUBJECTS)
def test_each_subject_gets_permits(name: str, server: RedisServer) -> None:
    found = shared.measure(name, FEW, 1.0, server)
    assert found.rate > 0
    assert 0 <= found.p50_ms <= found.p99_ms


def test_the_table_has_a_row_for_each_crowd_and_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = {name: shared.SUBJECTS[name] for name in (shared.REFERENCE, shared.ON_SQLITE)}
    monkeypatch.setattr(shared, "SUBJECTS", subjects)
    monkeypatch.setattr(shared, "CROWDS", (FEW, shared.Crowd(processes=1, coroutines=1, share=0.05)))
    table = shared.run(0.3)
    assert [(crowd, name) for crowd, name, *_ in table.rows] == [
        (crowd, name) for crowd in ("2 × 4", "1 × 1") for name in subjects
    ]
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_quantiles_are_values_that_were_met() -> None:
    counts = {5: 1, 1: 98, 9: 1}
    assert [shared.quantile(counts, part) for part in (0.5, 0.98, 0.99, 1.0)] == [1, 1, 5, 9]
