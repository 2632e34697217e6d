"""What is known of an API beforehand: its limits, and what a call costs there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, Self, TypeAlias

from headgate.core.model import Limit
from headgate.core.text import parse_limits
from headgate.errors import ConfigurationError

Units: TypeAlias = Mapping[str, int]


def no_units(*args: Any, **kwargs: Any) -> Units:
    """Nothing to say."""
    return {}


class Preset(tuple[Limit, ...]):
    """The limits of an API, which ``Limiter(*preset)`` takes, with what its calls cost.

    All three callables return {meter: units}, for meters that the limits count; {} where nothing is known.

    Attributes:
        name: what it is the preset of.
        cost: of a call's arguments, what it will cost: ``cost(*args, **kwargs)``. It may learn, so ask it as
            late as you can, before each attempt; what it says later is nearer to the truth.
        usage: of a call's result, what it really used: ``usage(result)``.
        learn: ``learn(args, kwargs, result)``, told once of each call that came back, teaches ``cost`` and
            returns what the server has charged by its own formula, as far as that can be known: the
            ``charged`` of a :class:`~headgate.Signal`.

    Raises:
        ConfigurationError: no limits, or limits that cannot be read.
    """

    name: str
    cost: Callable[..., Units]
    usage: Callable[[Any], Units]
    learn: Callable[[tuple[Any, ...], Mapping[str, Any], Any], Units]

    def __new__(
        cls,
        limits: Iterable[Limit | str],
        *,
        name: str = "",
        cost: Callable[..., Units] = no_units,
        usage: Callable[[Any], Units] = no_units,
        learn: Callable[[tuple[Any, ...], Mapping[str, Any], Any], Units] = no_units,
    ) -> Self:
        self = super().__new__(cls, parse_limits(limits))
        if not self:
            raise ConfigurationError("a preset has at least one limit")
        self.__dict__.update(name=name, cost=cost, usage=usage, learn=learn)
        return self

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a preset does not change; make another with {name}={value!r:.80}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a preset does not change; make another without {name}")

    def __repr__(self) -> str:
        limits = ", ".join(f"{limit.name} {limit.amount}" for limit in self)
        return f"<Preset {self.name + ': ' if self.name else ''}{limits}>"
