"""Money: what calls will have cost at most, and a cap that no run goes over.

It knows prices and sums, not calls. Not safe for threads: its owner has a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headgate.errors import ConfigurationError


class Spending:
    """Reserves the price of a call when it starts, and puts it right when its usage is known.

    Args:
        price: {meter: money per unit}, or a callable that makes a call's price of its arguments.
        cap: the most that may be spent; None for no cap.
    """

    def __init__(self, price: Mapping[str, float] | Callable[..., float] | None, cap: float | None) -> None:
        if cap is not None and price is None:
            raise ConfigurationError("spend_cap needs price=, to know what a call costs")
        if cap is not None and not cap >= 0:
            raise ConfigurationError(f"spend_cap is 0 or more; got {cap}")
        if price is not None and not callable(price):
            for meter, each in price.items():
                _checked(each, f"the price of {meter}")
        self._price = price
        self.cap = cap
        self.spent = 0.0
        self.reserved = 0.0

    @property
    def counts(self) -> bool:
        """Whether there is anything to count."""
        return self._price is not None

    def price_of(self, args: tuple[Any, ...], kwargs: dict[str, Any], units: Mapping[str, int]) -> float:
        """What a call will cost at most."""
        if self._price is None:
            return 0.0
        if callable(self._price):
            return _checked(self._price(*args, **kwargs), "the price of a call")
        return self._of_units(units)

    def _of_units(self, units: Mapping[str, int]) -> float:
        if self._price is None or callable(self._price):
            raise AssertionError("no price of units")
        return sum(price * units.get(meter, int(meter == "requests")) for meter, price in self._price.items())

    def fits(self, price: float) -> bool:
        """Whether the cap leaves room for a call."""
        return self.cap is None or self.spent + self.reserved + price <= self.cap * (1 + 1e-12)

    def reserve(self, price: float) -> None:
        """A call starts."""
        self.reserved += price

    def settle(self, price: float, units: Mapping[str, int] | None, *, charged: bool) -> None:
        """A call has ended.

        Args:
            price: what was reserved for it.
            units: what it used, if that is known.
            charged: whether it may have cost anything.
        """
        self.reserved = max(self.reserved - price, 0.0)
        if charged:
            known = units is not None and self._price is not None and not callable(self._price)
            self.spent += self._of_units(units) if known and units is not None else price


def _checked(price: float, what: str) -> float:
    if not 0 <= price < float("inf"):
        raise ConfigurationError(f"{what} is a finite number, 0 or more; got {price!r}")
    return float(price)
