"""Every safe pair of server and plan, under every model of jitter: no refusal, and no idleness.

The seed is drawn anew in each run and printed with the table; set HEADGATE_SEED to repeat one.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from random import SystemRandom

import pytest

from tests.simulation import table
from tests.simulation.engine import JITTERS, Outcome, simulate
from tests.simulation.rows import ROWS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TOLERANCE = 0.03
"""Gaps at the ends of what is measured, whole calls, and the luck of the draw."""


@pytest.fixture(scope="module")
def seed() -> str:
    return os.environ.get("HEADGATE_SEED") or str(SystemRandom().randrange(10**6))


@pytest.fixture(scope="module")
def outcomes(seed: str) -> dict[str, list[Outcome]]:
    jobs = [(row, jitter, seed) for row in range(len(ROWS)) for jitter in JITTERS]
    found: dict[str, list[Outcome]] = {row.name: [] for row in ROWS}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for outcome in pool.map(simulate, jobs, chunksize=2):
            found[outcome.row].append(outcome)
    table.LINES[:] = table.render([one for row in found.values() for one in row], seed)
    return found


def test_names_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("name", [row.name for row in ROWS])
def test_nothing_is_refused_and_nothing_left_unused(
    name: str, outcomes: dict[str, list[Outcome]], seed: str
) -> None:
    for outcome in outcomes[name]:
        where = f"{outcome.jitter}, HEADGATE_SEED={seed}"
        assert outcome.refused == 0, f"{where}: {outcome.refused} refused, first {outcome.first_refusal}"
        assert outcome.utilisation >= outcome.bound - TOLERANCE, where


def test_there_are_a_million_calls(outcomes: dict[str, list[Outcome]]) -> None:
    assert sum(outcome.calls for row in outcomes.values() for outcome in row) >= 1_000_000
