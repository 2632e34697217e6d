"""From the limits that a server declares to the rules that keep a caller under them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from headgate.core import calendar
from headgate.core.limits.base import Rule
from headgate.core.limits.concurrency import Concurrency
from headgate.core.limits.fixed_window import FixedWindow
from headgate.core.limits.sliding_window import SlidingWindow
from headgate.core.limits.token_bucket import SmallBucket, TokenBucket
from headgate.core.model import NEVER, SECOND, Costs, Limit
from headgate.errors import ConfigurationError

_RULES: Mapping[str, Callable[[Limit], Rule]] = MappingProxyType(
    {
        "bucket": TokenBucket,
        "sliding": SlidingWindow,
        "anchored": SlidingWindow,
        "fixed": FixedWindow,
        "calendar": FixedWindow,
        "concurrency": Concurrency,
        "unknown": SmallBucket,
    }
)

ALWAYS_ONE = frozenset({"requests", "concurrency"})
"""A call is one request and takes one slot, unless its cost says otherwise."""


def _rule(limit: Limit) -> Rule:
    try:
        return _RULES[limit.kind](limit)
    except OverflowError as error:
        raise ConfigurationError(f"{limit.name} cannot be kept in whole numbers: {error}") from error


class Plan:
    """How to stay under several limits at once: their rules, in the order of the limits.

    Attributes:
        limits: as declared.
        rules: one for each limit.
        indexes: range(len(rules)): the cheapest way through several lists side by side.
        use_before_us: how long a grant may lie before it is sent: half of the shortest ``D``, so that
            the other half is left for the way to the server. NEVER if no rule has one.
    """

    __slots__ = ("_defaults", "_meters", "indexes", "limits", "rules", "use_before_us")

    def __init__(self, limits: Sequence[Limit]) -> None:
        names = [limit.name for limit in limits]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"two limits are named {name!r}: tell them apart by name=")
        for limit in limits:
            if limit.calendar:
                calendar.zone(limit.zone)  # an unknown zone is told now, not at the first call
        self.limits = tuple(limits)
        self.rules = tuple(_rule(limit) for limit in limits)
        self.indexes = range(len(self.rules))
        transits = [rule.transit_us for rule in self.rules if rule.transit_us]
        self.use_before_us = min(transits) // 2 if transits else NEVER
        self._meters = frozenset(limit.meter for limit in limits)
        self._defaults: Costs = tuple(int(limit.meter in ALWAYS_ONE) for limit in limits)

    @property
    def meters(self) -> frozenset[str]:
        return self._meters

    def weight_us(self, costs: Sequence[int]) -> int:
        """The time that it takes the slowest limit to bring back a call's cost; how much of a turn it is."""
        longest = 1
        for limit, cost in zip(self.limits, costs, strict=True):
            period_us = limit.period_us or SECOND  # slots: as if each were free again in a second
            longest = max(longest, cost * period_us // limit.amount)
        return longest

    def costs(self, units: Mapping[str, int]) -> Costs:
        """The cost on each rule of a call that costs ``units`` (meter → units).

        Meters that are not named cost nothing, but for one request and one slot.

        Raises:
            ConfigurationError: a meter that no limit counts, or a cost that is no whole number >= 0.
        """
        if not units:
            return self._defaults
        for meter, cost in units.items():
            if meter not in self._meters and meter not in ALWAYS_ONE:
                known = ", ".join(sorted(self._meters)) or "none"
                raise ConfigurationError(f"no limit counts {meter!r}; the limits count: {known}")
            if type(cost) is not int or cost < 0:
                raise ConfigurationError(
                    f"{meter}: a cost is a whole number of units, 0 or more; got {cost!r}"
                )
        return tuple(
            units.get(limit.meter, default)
            for limit, default in zip(self.limits, self._defaults, strict=True)
        )
