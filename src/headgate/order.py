"""The order of a line, and what is told to those who leave it without a permit.

Larger priorities go first, first come first served among equals; and every eighth permit goes to whoever has
waited longest, so that a steady feed of important calls starves nobody. No lock and no store in here.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar

from headgate.core.model import Costs, Refused
from headgate.core.plan import Plan
from headgate.errors import AcquireTimeout, CostExceedsLimit

ELDEST_EVERY = 8


class Placed(Protocol):
    """Whoever stands in a line."""

    priority: float
    number: int


T = TypeVar("T", bound=Placed)


class Order(Generic[T]):
    """Those who wait, by their places."""

    __slots__ = ("_numbers", "_ranks", "_served")

    def __init__(self) -> None:
        self._ranks: dict[float, deque[T]] = {}
        self._numbers = 0
        self._served = 0

    def __bool__(self) -> bool:
        return bool(self._ranks)

    def join(self, who: T) -> None:
        """Stand behind all of the same priority."""
        self._numbers += 1
        who.number = self._numbers
        rank = self._ranks.get(who.priority)
        if rank is None:
            self._ranks[who.priority] = deque((who,))
        else:
            rank.append(who)

    def rejoin(self, who: T) -> None:
        """Stand where one stood before."""
        rank = self._ranks.get(who.priority)
        if rank is None:
            self._ranks[who.priority] = deque((who,))
        else:
            behind = (place for place, other in enumerate(rank) if other.number > who.number)
            rank.insert(next(behind, len(rank)), who)

    def leads(self, who: T) -> bool:
        """Whether it stands here, and nobody before it."""
        return bool(self._ranks) and max(self._ranks) == who.priority and self._ranks[who.priority][0] is who

    def pop(self, into: list[T]) -> T:
        """Take out the next and put it into a list; there is one. Cut short, it is in one of them or both."""
        self._served += 1
        if len(self._ranks) == 1:
            [(priority, rank)] = self._ranks.items()
        elif self._served % ELDEST_EVERY:
            priority, rank = max(self._ranks.items())
        else:
            priority, rank = min(self._ranks.items(), key=lambda item: item[1][0].number)
        who = rank[0]
        into.append(who)
        if len(rank) == 1:
            del self._ranks[priority]
        else:
            rank.popleft()
        return who

    def push_back(self, who: T) -> None:
        """Put back who was taken out last; whoever has come back meanwhile to a place before stays there."""
        self._served -= 1
        rank = self._ranks.get(who.priority)
        if rank is not None and rank[0].number > who.number:
            rank.appendleft(who)
        else:
            self.rejoin(who)

    def restore(self, who: T) -> None:
        """Put back who may still be here."""
        if who not in self._ranks.get(who.priority, ()):
            self.push_back(who)

    def remove(self, who: T) -> bool:
        """Take out somebody; False if it is not there."""
        rank = self._ranks.get(who.priority)
        if rank is None or who not in rank:
            return False
        if len(rank) == 1:
            del self._ranks[who.priority]
        else:
            rank.remove(who)
        return True


def refusal(plan: Plan, costs: Costs, answer: Refused) -> CostExceedsLimit:
    """The cost can never fit."""
    limit = plan.limits[answer.rule]
    cost = costs[answer.rule]
    return CostExceedsLimit(
        f"{limit.name} can carry at most {answer.largest} {limit.meter} in one call; this one costs {cost}",
        limit=limit.name,
        cost=cost,
        largest=answer.largest,
    )


def timeout(plan: Plan, max_wait: float, rule: int = -1, seconds: float | None = None) -> AcquireTimeout:
    """No permit came in time: ``rule`` is in the way, for so many seconds."""
    name = plan.limits[rule].name if rule >= 0 else None
    why = "others are first in line, or the key is paused"
    if name is not None:
        why = f"{name} opens " + ("when a call ends" if seconds is None else f"in {seconds:.3g} s")
    return AcquireTimeout(f"no permit within {max_wait:g} s: {why}", limit=name, retry_after_seconds=seconds)
