"""What an attempt came to: which signal its limits get, and whether the call is done.

It reads errors and results by what is known of APIs, and decides by the core's rules; it knows neither loops
nor threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from headgate.core.model import ANSWERED, LOST, UNSENT, Signal, Throttle
from headgate.core.retry import SPENDS_NO_ATTEMPT, ErrorClass
from headgate.errors import AcquireTimeout, CallCancelled, CostExceedsLimit, ValidationError
from headgate.providers.answers import Answer, read_answer
from headgate.providers.reply import PLAIN, read_failure, read_reply
from headgate.providers.resets import Resets

log = logging.getLogger("headgate")

Validator: TypeAlias = Callable[[Any], Any]
RetryOn: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]"

NEVER_SENT = (AcquireTimeout, CostExceedsLimit, CallCancelled)
_NOTHING: Mapping[str, int] = {}


class Outcome(NamedTuple):
    """Of an attempt.

    ``error`` is what went wrong, None if nothing did; ``usage`` the units really used, None if unknown.
    """

    kind: ErrorClass
    error: BaseException | None
    value: Any
    signal: Signal
    usage: Mapping[str, int] | None
    retry_after_us: int | None
    pauses: bool = True


@dataclass(slots=True)
class Judge:
    """How results and errors are read.

    Attributes:
        usage: as the user gave it; None if unknown.
        validators: in order; the first that says no decides.
        retry_on: overrules what errors say of themselves, but for refusals.
        learn: told (args, kwargs, result) of each success; makes {meter: units charged} of it.
        resets: fields that tell how long a throttle lasts; None to go by Retry-After alone.
    """

    meters: frozenset[str]
    usage: Callable[[Any], Mapping[str, int]] | None
    validators: Sequence[Validator]
    retry_on: RetryOn | None
    learn: Callable[[tuple[Any, ...], dict[str, Any], Any], Mapping[str, int]] | None
    resets: Resets | None = None
    _complaints: set[str] = field(default_factory=set)

    def is_mute(self, value: Any) -> bool:
        """Whether there is nothing to be read in a result, as in most."""
        return self.usage is None and type(value) in PLAIN

    def of_value(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        value: Any,
        failed: ValidationError | None,
        wall_us: int,
    ) -> Outcome:
        """The function has returned; ``failed`` if a validator said no."""
        reply = read_reply(value)
        answer: Answer | None = None
        if reply is not None:
            answer = read_answer(*reply, wall_us, self.meters, self.resets)
            if answer.error in SPENDS_NO_ATTEMPT:
                error = RuntimeError(f"the server refused it: HTTP {reply.status}")
                return self._refused(answer, error)
        usage, charged = self._used(args, kwargs, value)
        readings = answer.readings if answer is not None else ()
        signal = ANSWERED
        if usage or charged or readings:
            signal = Signal(usage=usage or _NOTHING, charged=charged, readings=readings)
        if failed is not None:
            return Outcome(ErrorClass.MALFORMED, failed, None, signal, usage, None, pauses=False)
        return Outcome(ErrorClass.OK, None, value, signal, usage, None)

    def of_error(self, error: BaseException, wall_us: int, handled: BaseException | None = None) -> Outcome:
        """The function has raised. ``handled`` is the error that was being handled as it was called."""
        answer = read_failure(error, wall_us, self.meters, self.resets, handled)
        if answer.error in SPENDS_NO_ATTEMPT:
            return self._refused(answer, error)
        kind = answer.error if self.retry_on is None else self._by_wish(error, self.retry_on)
        if isinstance(error, NEVER_SENT):
            signal = UNSENT
        elif kind is ErrorClass.MONEY_GONE:
            signal = Signal(throttle=Throttle(answer.meter, answer.retry_after_us), readings=answer.readings)
        elif answer.status is not None:
            signal = Signal(readings=answer.readings) if answer.readings else ANSWERED
        else:
            signal = LOST
        return Outcome(kind, error, None, signal, None, answer.retry_after_us)

    def _by_wish(self, error: BaseException, retry_on: RetryOn) -> ErrorClass:
        try:
            wanted = isinstance(error, retry_on) if isinstance(retry_on, type | tuple) else retry_on(error)
        except Exception:
            self._complain("retry_on= failed; errors are not tried again where it does")
            wanted = False
        return ErrorClass.OVERLOADED if wanted else ErrorClass.CALLER

    def _complain(self, text: str) -> None:
        """Once: a mistake in a callback is the same for all calls."""
        if text not in self._complaints:
            self._complaints.add(text)
            log.exception(text)

    def _refused(self, answer: Answer, error: BaseException) -> Outcome:
        until_edge = answer.error is ErrorClass.WINDOW_GONE and not answer.is_whole
        throttle = Throttle(answer.meter, answer.retry_after_us, until_edge=until_edge)
        signal = Signal(readings=answer.readings, throttle=throttle)
        return Outcome(answer.error, error, None, signal, None, answer.retry_after_us)

    def _used(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
    ) -> tuple[Mapping[str, int] | None, Mapping[str, int]]:
        """Units used by the user's own word, and units charged by the preset's.

        A mistake there costs no paid result: the call is booked as reserved.
        """
        if self.usage is None:
            return None, _NOTHING
        try:
            usage = self.usage(value)
            for meter, units in usage.items():
                if type(units) is not int or units < 0:
                    raise ValueError(f"usage= returned {units!r} for {meter}; expected a whole number >= 0")
            charged = _NOTHING if self.learn is None else self.learn(args, kwargs, value)
        except Exception:
            self._complain("usage= failed; calls are booked as reserved where it does")
            return None, _NOTHING
        return usage, charged


def unreadable(error: BaseException) -> Outcome:
    """What came could not even be looked at."""
    return Outcome(ErrorClass.CALLER, error, None, LOST, None, None)


def rejection(validator: Validator, value: Any) -> ValidationError:
    """A validator's no."""
    name = getattr(validator, "__qualname__", None) or repr(validator)
    text = repr(value)
    shown = text if len(text) <= 200 else text[:200] + "…"
    return ValidationError(f"{name} said that this is not valid: {shown}", value=value, validator=name)
