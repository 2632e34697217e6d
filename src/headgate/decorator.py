"""``@limiter.limited``: a permit before each call of a function."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
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
        celery: Any = None
        if "celery" in sys.modules:  # else nobody can have made a task of it
            celery = import_module("headgate.integrations.celery")
            celery.attend(limiter)
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
            if celery is not None and (attempt := celery.attempt_of(call)) is not None:
                units = cost(*args, **kwargs) if callable(cost) else cost or {}
                once = functools.partial(function, *args, **kwargs)
                return celery.run(limiter, attempt, units, once, usage, priority)
            with asking(args, kwargs) as permit:
                result = function(*args, **kwargs)
                if usage is not None:
                    permit.settle(**usage(result))
                return result

        return call

    return wrap
