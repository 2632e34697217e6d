"""What can go wrong, as one tree.

The class answers the question that a caller has first: *was my request sent?*

::

    HeadgateError
    ├── ConfigurationError     the limits, options or files do not make sense; nothing was sent
    │   └── NoSuchKey          the store knows nothing of the key that an operator named
    ├── NotSent                the request was never sent
    │   ├── AcquireTimeout     no permit within ``max_wait``
    │   ├── CallCancelled      cancelled or cleared before it was done
    │   ├── CostExceedsLimit   the cost can never fit; waiting would be for ever
    │   ├── DuplicateCall      the same call waits or runs already
    │   └── InvalidRequest     a request for the mediator makes no sense, or may not be made
    ├── RunStopped             nothing more is sent, for a reason that concerns all calls
    ├── StorageError           object storage refused, or cannot do, what was asked of it
    │   ├── InvalidObjectName  no object can be called that; storage was not asked
    │   ├── ObjectNotFound     there is no object of that name
    │   ├── ObjectTooLarge     there is one, larger than was to be read
    │   └── StorageUnavailable it did not answer, or said that it cannot now
    ├── Throttled              it was sent, and the server refused it for its rate, for too long
    ├── ValidationError        it was answered, and a validator of the caller's said no
    └── StoreError             the shared state could not be used
        ├── StoreUnavailable   it did not answer
        └── LeaseLost          it answered that a slot is no longer ours

Facts are attributes, so that no caller has to read messages; messages say what was expected and
what came. Every error pickles.
"""

from __future__ import annotations

from typing import Any


class HeadgateError(Exception):
    """Base of every error that headgate raises itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions with keyword-only facts do not pickle by default: rebuild from the parts.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(kind: type[HeadgateError], args: tuple[Any, ...], facts: dict[str, Any]) -> HeadgateError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class ConfigurationError(HeadgateError, ValueError):
    """Limits, options or files that do not make sense. Nothing was sent."""


class NoSuchKey(ConfigurationError):
    """The store knows nothing of the key that an operator named.

    Attributes:
        key: that name.
        nearest: keys of the store that are called alike, the nearest first.
    """

    def __init__(self, message: str, *, key: str, nearest: tuple[str, ...] = ()):
        super().__init__(message)
        self.key = key
        self.nearest = nearest


class NotSent(HeadgateError):
    """The request was not sent."""


class AcquireTimeout(NotSent, TimeoutError):
    """No permit came within ``max_wait``.

    Attributes:
        limit: name of the limit that was in the way, or None if others were first in line, or the key was
            paused.
        retry_after_seconds: seconds until that limit would have opened, or None if nobody can say.
    """

    def __init__(self, message: str, *, limit: str | None = None, retry_after_seconds: float | None = None):
        super().__init__(message)
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds


class CostExceedsLimit(NotSent, ValueError):
    """The cost is above what the limit can ever carry.

    Attributes:
        limit: name of the limit.
        cost: units asked for.
        largest: the largest cost that can pass it, in the same units.
    """

    def __init__(self, message: str, *, limit: str, cost: int, largest: int):
        super().__init__(message)
        self.limit = limit
        self.cost = cost
        self.largest = largest


class CallCancelled(NotSent):
    """The call was cancelled or cleared before it was done; if it ran, nobody waits for its result."""


class DuplicateCall(NotSent, ValueError):
    """A call with the same digest waits or runs already."""


class InvalidRequest(NotSent, ValueError):
    """A request for the mediator makes no sense, may not be made, or has the id of another one."""


class RunStopped(HeadgateError):
    """Nothing more is sent, for a reason that concerns all calls: no credit, a refused key, a deadline."""


class ValidationError(HeadgateError):
    """A validator said no.

    Attributes:
        value: the result that was not valid.
        validator: the name of the validator.
    """

    def __init__(self, message: str, *, value: Any = None, validator: str = "") -> None:
        super().__init__(message)
        self.value = value
        self.validator = validator


class Throttled(HeadgateError):
    """The server refused the call for its rate, again and again.

    Attributes:
        status: the last HTTP status, or None where there was none.
        throttled_seconds: how long the call has been refused and waiting.
    """

    def __init__(self, message: str, *, status: int | None = None, throttled_seconds: float = 0.0):
        super().__init__(message)
        self.status = status
        self.throttled_seconds = throttled_seconds


class StoreError(HeadgateError):
    """The shared state could not be used."""


class StoreUnavailable(StoreError):
    """The store did not answer."""


class LeaseLost(StoreError):
    """The store says that a slot is no longer ours."""


class StorageError(HeadgateError):
    """Object storage refused, or cannot do, what was asked of it; asking again is of no use."""


class InvalidObjectName(StorageError, ValueError):
    """No object can be called that; storage was not asked."""


class ObjectNotFound(StorageError, FileNotFoundError):
    """There is no object of that name."""


class ObjectTooLarge(StorageError):
    """An object is larger than was to be read; nothing of it was.

    Attributes:
        size: bytes it has.
        most: bytes that were allowed.
    """

    def __init__(self, message: str, *, size: int, most: int):
        super().__init__(message)
        self.size = size
        self.most = most


class StorageUnavailable(StorageError):
    """Object storage did not answer, or said that it cannot now; a later try may succeed."""
