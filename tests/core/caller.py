"""One key's state under a plan, for tables of what happens at t0, t1, …"""

from __future__ import annotations

import json

from headgate.core import decide
from headgate.core.decide import State
from headgate.core.model import ANSWERED, Decision, Granted, Limit, Now, Report, Signal, Wait
from headgate.core.plan import Plan
from headgate.core.text import parse_limits

WALL = 1_790_000_000_000_000
"""Unix time when the elapsed clock stands at 0: a multiple of ten seconds and no more."""


class Caller:
    """Asks and settles at instants of the elapsed clock; the wall clock goes along."""

    def __init__(self, *limits: str | Limit, at: int = 0) -> None:
        self.plan = Plan(parse_limits(limits))
        self.wall_us = WALL
        self.state = decide.fresh(self.plan, self.now(at))

    def now(self, at: int) -> Now:
        return Now(at, at + self.wall_us)

    def ask(self, at: int, *asks: tuple[int, ...]) -> list[Decision]:
        return decide.acquire(self.plan, asks, self.state, self.now(at))

    def grant(self, at: int, *costs: int) -> Granted:
        answer = self.ask(at, costs or (1,) * len(self.plan.rules))[0]
        assert isinstance(answer, Granted), answer
        return answer

    def until(self, at: int, *costs: int) -> int:
        """The instant that an ask at ``at`` is told."""
        answer = self.ask(at, costs or (1,) * len(self.plan.rules))[0]
        assert isinstance(answer, Wait), answer
        return answer.until_us

    def granted(self, at: int, *costs: int, most: int = 1_000_000) -> list[Granted]:
        """As many as are granted at once."""
        grants: list[Granted] = []
        while len(grants) < most:
            answer = self.ask(at, costs or (1,) * len(self.plan.rules))[0]
            if not isinstance(answer, Granted):
                break
            grants.append(answer)
        return grants

    def settle(self, at: int, grant: Granted, signal: Signal = ANSWERED) -> None:
        decide.settle(self.plan, [Report(grant, signal)], self.state, self.now(at))

    def used(self, at: int) -> tuple[int, ...]:
        return decide.used(self.plan, self.state, self.now(at))

    def copy(self) -> Caller:
        """Another with the same state, by way of JSON."""
        other = object.__new__(Caller)
        other.plan, other.wall_us = self.plan, self.wall_us
        other.state = State.load(json.loads(json.dumps(self.state.dump())))
        return other
