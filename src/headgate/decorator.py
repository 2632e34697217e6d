"""``@limiter.limited``: a permit before each call of a function."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from headgate.core.model import ANSWERED, LOST, UNSENT, Signal
from headgate.core.plan import Plan
from headgate.errors import ConfigurationError
from headgate.stores.base import Store

if TYPE_CHECKING:
    from headgate.providers.outcome import Judge
    from headgate.providers.resets import Parser

Units: TypeAlias = Mapping[str, int]


class Asked(Protocol):
    """What is needed of a limiter."""

    plan: Plan
    store: Store

    def permit(self, *, max_wait: float | None = None, priority: float = 0, **units: int) -> Any:
        """A permit for ``with`` and ``async with``."""


def limited(
    limiter: Asked,
    *,
    cost: Callable[..., Units] | Units | None = None,
    usage: Callable[[Any], Units] | None = None,
    headers: str | None = None,
    token_header: str | None = None,
    requests_header: str | None = None,
    parser: Parser | None = None,
    max_wait: float | None = None,
    priority: float = 0,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """See :meth:`headgate.Limiter.limited`."""
    from headgate.providers.outcome import Judge  # only those who ask pay for it
    from headgate.providers.resets import resets_of

    resets = resets_of(headers, token_header, requests_header, parser)

    def units_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Units:
        return cost(*args, **kwargs) if callable(cost) else cost or {}

    def asking(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return limiter.permit(max_wait=max_wait, priority=priority, **units_of(args, kwargs))

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(
                "a generator function returns before it has begun: take the permit inside it"
            )
        celery: Any = None
        if "celery" in sys.modules:  # else nobody can have made a task of it
            celery = import_module("headgate.integrations.celery")
            celery.attend(limiter)
        judge = Judge(limiter.plan.meters, usage, (), None, None, resets)
        store = limiter.store
        is_coroutine = inspect.iscoroutinefunction
        if is_coroutine(function) or is_coroutine(getattr(function, "__call__", None)):  # noqa: B004

            @functools.wraps(function)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                handled = sys.exception()
                async with asking(args, kwargs) as permit:
                    try:
                        result = await function(*args, **kwargs)
                    except BaseException as error:
                        permit.signal(_of_error(judge, error, handled, store))
                        raise
                    permit.signal(_of_result(judge, result, store))
                    return result

            return call_async

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if celery is not None and (attempt := celery.attempt_of(call)) is not None:
                units = functools.partial(units_of, args, kwargs)
                once = functools.partial(function, *args, **kwargs)
                return celery.run(limiter, attempt, units, once, judge, priority)
            handled = sys.exception()
            with asking(args, kwargs) as permit:
                try:
                    result = function(*args, **kwargs)
                except BaseException as error:
                    permit.signal(_of_error(judge, error, handled, store))
                    raise
                permit.signal(_of_result(judge, result, store))
                return result

        return call

    return wrap


def _of_result(judge: Judge, result: Any, store: Store) -> Signal:
    if judge.is_mute(result):
        return ANSWERED
    try:
        return judge.of_value((), {}, result, None, store.now().wall_us).signal
    except Exception:  # out of the result itself, which is the caller's all the same
        return ANSWERED


def _of_error(judge: Judge, error: BaseException, handled: BaseException | None, store: Store) -> Signal:
    try:
        signal = judge.of_error(error, store.now().wall_us, handled).signal
    except Exception:  # out of the error itself
        return LOST
    return LOST if signal is UNSENT else signal  # it may have sent others before
