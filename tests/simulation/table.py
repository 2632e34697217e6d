"""What the simulation found, as text."""

from __future__ import annotations

from collections.abc import Sequence

from tests.simulation.engine import Outcome

LINES: list[str] = []
"""Filled by the tests; printed when all are through."""


def render(outcomes: Sequence[Outcome], seed: str) -> list[str]:
    """A line for each run; utilisation and bound in percent of what the server allows in the long run."""
    lines = [
        "",
        f"simulation, HEADGATE_SEED={seed}: {sum(outcome.calls for outcome in outcomes):,} calls",
        f"{'server / plan':<52} {'jitter':<12} {'calls':>7} {'refused':>7} {'used %':>7} {'bound %':>7}",
    ]
    lines += [
        f"{one.row:<52} {one.jitter:<12} {one.calls:>7} {one.refused:>7} "
        f"{100 * one.utilisation:>7.2f} {100 * one.bound:>7.2f}"
        for one in outcomes
    ]
    return lines
