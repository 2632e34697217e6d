"""``@limiter.limited``: a permit before each call of a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from headgate.errors import ConfigurationError

Units: TypeAlias = Mapping[str, int]


class Asked(Protocol):
    """What is needed of a limiter."""

    def permit(self, *, max_wait: float | None = None, priority: float = 0, **units: int) -> Any:
        """A permit for ``with`` and ``async with``."""


def limited(
    limiter: Asked,
    *,
    cost: Callable[..., Units] | Units | None = None,
    usage: Callable[[Any], Units] | None = None,
    max_wait: float | None = None,
    priority: float = 0,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """See :meth:`headgate.Limiter.limited`."""

    def asking(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        units = cost(*args, **kwargs) if callable(cost) else cost or {}
        return limiter.permit(max_wait=max_wait, priority=priority, **units)

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                "a generator function returns before it has begun: take the permit inside it"
            )
        is_coroutine = inspect.iscoroutinefunction
        if is_coroutine(function) or is_coroutine(getattr(function, "__call__", None)):  # noqa: B004

            @functools.wraps(function)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                async with asking(args, kwargs) as permit:
                    result = await function(*args, **kwargs)
                    if usage is not None:
                        permit.settle(**usage(result))
                    return result

            return call_async

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with asking(args, kwargs) as permit:
                result = function(*args, **kwargs)
                if usage is not None:
                    permit.settle(**usage(result))
                return result

        return call

    return wrap
