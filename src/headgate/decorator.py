"""``@limiter.limited``: a permit before each call of a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from headgate.limiter import Limiter

Units: TypeAlias = Mapping[str, int]


def limited(
    limiter: Limiter,
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
        if inspect.iscoroutinefunction(function):

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
